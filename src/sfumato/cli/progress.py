"""Progress: a bar with rate and time left on a terminal, plain lines every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

MARKS, BLOCKS = 500, 5  # reports kept (at most twice as many), and intervals that they are divided into


@dataclass(frozen=True)
class Stage:
    """A part of the work: its name, and its number of steps, of `per` units each."""

    name: str
    total: int
    per: int = 1


class Reporter:
    """Shows the progress of the current stage, its rate and the time left, from the rates since the stage's first report."""

    def __init__(self, stages: Sequence[Stage], unit: str, bar: Progress | None) -> None:
        """For stages that run one after another."""
        self.unit, self.bar = unit, bar
        self.stages, self.before = list(stages), 0  # unfinished stages, and the number of steps in finished ones
        self.spoken = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        stage = self.stages[0]
        self.task = None if self.bar is None else self.bar.add_task(stage.name, total=stage.total, note="")
        self.marks: list[tuple[int, float]] = []

    def __call__(self, done: int, note: str = "") -> None:
        """Reports `done` steps of all stages together, with a short note."""
        while len(self.stages) > 1 and done > self.before + self.stages[0].total:
            self.before += self.stages.pop(0).total
            self._begin()
        now, stage, done = time.monotonic(), self.stages[0], done - self.before
        self.marks.append((done, now))
        if len(self.marks) > 2 * MARKS:
            self.marks = self.marks[::2]
        if self.bar is None and now - self.spoken < 5 and done < stage.total:
            return
        self.spoken = now
        rate = steady_rate(self.marks)
        speed = [f"{rate * stage.per:.0f} {self.unit}/s", f"{_clock((stage.total - done) / rate)} left"] if rate > 0 else []
        words = ", ".join(part for part in (note, *speed) if part)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, note=words)
        else:
            print(f"{stage.name} {done}/{stage.total}{', ' + words if words else ''}", flush=True)


def steady_rate(marks: Sequence[tuple[int, float]]) -> float:
    """Steps a second, from (steps done, seconds) in order: by the median time of a step over `BLOCKS` intervals, so that a single delay
    (a machine asleep, a slow step) changes it little, and regular ones (checkpoints, sheets) count. 0 if unknown.
    """
    count = min(BLOCKS, len(marks) - 1)
    edges = [marks[(len(marks) - 1) * i // count] for i in range(count + 1)] if count > 0 else []
    times = [(late - early) / (after - before) for (before, early), (after, late) in pairwise(edges) if after > before]
    return 1 / max(median_low(times), 1e-9) if times else 0.0


@contextmanager
def reporter(*stages: Stage, unit: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A `Reporter` for the time of a with-block; with `quiet`, it prints nothing."""
    if quiet:
        yield lambda done, note="": None
        return
    if not sys.stdout.isatty():
        yield Reporter(stages, unit, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns) as bar:
        yield Reporter(stages, unit, bar)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
