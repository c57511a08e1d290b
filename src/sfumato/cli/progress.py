"""Progress: a bar with rate and time left on a terminal, plain lines every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows how far a piece of work is."""

    def __init__(self, what: str, total: int, bar: Progress | None) -> None:
        """For `total` units of work."""
        self.what, self.total, self.bar = what, total, bar
        self.task = None if bar is None else bar.add_task(what, total=total, note="")
        self.started = self.spoken = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, note: str = "") -> None:
        """`done` of the total, with a few words on how it goes."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if now - self.spoken < 5 and done < self.total:
            return
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = f", {(self.total - done) / rate:.0f} s left" if rate > 0 and done < self.total else ""
        print(f"{self.what} {done}/{self.total}{', ' + note if note else ''}{left}", flush=True)
        self.spoken = now


@contextmanager
def reporter(what: str, total: int) -> Iterator[Reporter]:
    """A `Reporter` for the time of a with-block."""
    if not sys.stdout.isatty():
        yield Reporter(what, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        yield Reporter(what, total, bar)
