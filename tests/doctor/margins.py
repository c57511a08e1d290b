"""Writes docs/doctor.md: every check with its limit and the readings of the healthy and the planted subjects. Takes a few minutes."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
from cases import HEALTHY, RECIPE_FAULTS, RUN_FAULTS, Shelf

from sfumato.doctor import Outcome, Plan, checks
from sfumato.doctor.table import page


def subjects(made: Plan | Outcome) -> list[Plan | Outcome]:
    return [made] if isinstance(made, Plan) else [made, made.plan]


def number(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:.3g}"


def main() -> None:
    shelf = Shelf(Path(tempfile.mkdtemp()))
    by_id = {check.id: check for check in checks()}
    healthy: dict[str, list[float]] = {name: [] for name in by_id}
    planted: dict[str, float] = {}
    for name, make in HEALTHY.items():
        try:
            made = subjects(make(shelf))
        except pytest.skip.Exception as reason:
            print(f"left out: {name} ({reason})")
            continue
        for check in by_id.values():
            for subject in made:
                if check.subject is type(subject) and (reading := check.read(subject)) is not None:
                    healthy[check.id].append(reading.value)
    for name, make in {**RECIPE_FAULTS, **RUN_FAULTS}.items():
        for subject in subjects(make(shelf)):
            if by_id[name].subject is type(subject) and (reading := by_id[name].read(subject)) is not None:
                planted[name] = reading.value
    margins = {}
    for name, check in by_id.items():
        nearest = (max if check.limit.is_ceiling else min)(healthy[name], default=None)
        margins[name] = ("none to read" if nearest is None else number(nearest), number(planted[name]))
    (Path(__file__).parents[2] / "docs" / "doctor.md").write_text(page(margins))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
