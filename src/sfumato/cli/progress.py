"""Progress: a bar with rate and time left on a terminal, plain lines every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Reporter:
    """Shows how far a piece of work is, how fast it goes, and when it will end, from the rate since its first report."""

    def __init__(self, what: str, total: int, unit: str, per: int, bar: Progress | None) -> None:
        """For `total` parts of work, each `per` units."""
        self.what, self.total, self.unit, self.per, self.bar = what, total, unit, per, bar
        self.task = None if bar is None else bar.add_task(what, total=total, note="")
        self.spoken = self.started = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, note: str = "") -> None:
        """`done` of the total, with a few words on how it goes."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = done, now
        if self.bar is None and now - self.spoken < 5 and done < self.total:
            return
        self.spoken = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        speed = [f"{rate * self.per:.0f} {self.unit}/s", f"{_clock((self.total - done) / rate)} left"] if rate > 0 else []
        words = ", ".join(part for part in (note, *speed) if part)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, note=words)
        else:
            print(f"{self.what} {done}/{self.total}{', ' + words if words else ''}", flush=True)


@contextmanager
def reporter(what: str, total: int, *, unit: str, per: int = 1, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A `Reporter` for the time of a with-block; one that says nothing where it is quiet."""
    if quiet:
        yield lambda done, note="": None
        return
    if not sys.stdout.isatty():
        yield Reporter(what, total, unit, per, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns) as bar:
        yield Reporter(what, total, unit, per, bar)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
