"""Checks: each reads one number from a recipe or a run, compares it with one limit, and returns a finding if it is beyond the limit.

A check is a function of a subject, `Plan` (a recipe, its data, a short trial) or `Outcome` (a run), that returns a `Reading`, or None if it
does not apply. `check` registers it with its limit, so that the whole list can be shown as a table (`docs/doctor.md`) and every limit can
be compared with readings of healthy and faulty subjects.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How bad a finding is: an error ruins the run, a warning may, a note is for information."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


@dataclass(frozen=True)
class Finding:
    """One present or future problem: what was measured, what it means, what to change."""

    id: str
    severity: Severity
    measured: str
    means: str
    change: str

    def to_json(self) -> dict[str, str]:
        """As JSON types."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Limit:
    """The value beyond which a reading becomes a finding (above or below it), and `why` this value."""

    value: float
    is_ceiling: bool
    why: str

    def is_passed_by(self, reading: float) -> bool:
        """Whether the reading is beyond the limit; NaN is."""
        return math.isnan(reading) or bool(reading > self.value if self.is_ceiling else reading < self.value)

    def __str__(self) -> str:
        """As in a table: "above 0.25"."""
        return f"{'above' if self.is_ceiling else 'below'} {self.value:g}"


def above(value: float | int, why: str) -> Limit:
    """A ceiling."""
    return Limit(float(value), True, why)


def below(value: float | int, why: str) -> Limit:
    """A floor."""
    return Limit(float(value), False, why)


@dataclass(frozen=True)
class Reading:
    """The number that a check reads, with the texts of the finding if it is beyond the limit."""

    value: float
    measured: str
    means: str
    change: str


@dataclass(frozen=True)
class Check:
    """One check: what is read, of which kind of subject, its limit and severity; `of_levels` if it reads noise levels."""

    id: str
    severity: Severity
    limit: Limit
    subject: type
    of_levels: bool
    read: Callable[[Any], Reading | None]

    @property
    def what(self) -> str:
        """What is read: the first line of the function's docstring."""
        return (self.read.__doc__ or "").strip().splitlines()[0]

    def __call__(self, subject: object) -> Finding | None:
        """The finding, if there is one."""
        reading = self.read(subject)
        if reading is None or not self.limit.is_passed_by(reading.value):
            return None
        return Finding(self.id, self.severity, reading.measured, reading.means, reading.change)


_CHECKS: dict[str, Check] = {}


def check(
    id: str, severity: Severity, limit: Limit, *, of_levels: bool = False
) -> Callable[[Callable[[Any], Reading | None]], Callable[[Any], Reading | None]]:
    """Registers a function of one annotated argument, its subject, as a check."""

    def enter(read: Callable[[Any], Reading | None]) -> Callable[[Any], Reading | None]:
        if id in _CHECKS:
            raise ValueError(f'there already is a check "{id}"; give this one another name.')
        (subject,) = (kind for name, kind in read.__annotations__.items() if name != "return")
        _CHECKS[id] = Check(id, severity, limit, subject, of_levels, read)
        return read

    return enter


def checks() -> list[Check]:
    """All checks, in the order of the table."""
    from sfumato.doctor import table  # importing the modules registers their checks

    del table
    return list(_CHECKS.values())


def examine(subject: Any) -> Iterator[Finding]:
    """The findings of every check for this kind of subject and of model."""
    for each in checks():
        if each.subject is not type(subject) or (each.of_levels and not subject.has_levels):
            continue
        if (finding := each(subject)) is not None:
            yield finding


def share(part: float) -> str:
    """A share as a percentage: "12%", "0.3%"."""
    return f"{100 * part:.2g}%" if part < 0.1 else f"{100 * part:.0f}%"
