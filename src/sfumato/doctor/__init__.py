"""What is wrong with a recipe or a run, or will be, and what to do about it: `doctor.recipe`, `doctor.run`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sfumato.doctor.check import Check, Finding, Limit, Reading, Severity, checks, examine
from sfumato.doctor.outcome import Outcome
from sfumato.doctor.plan import Plan
from sfumato.recipe import load_recipe
from sfumato.task import Recipe

__all__ = ["Check", "Finding", "Limit", "Outcome", "Plan", "Reading", "Severity", "checks", "recipe", "run"]


def recipe(source: str | Path | Recipe | Plan, changes: Sequence[str] = (), *, trial_seconds: float = 10.0) -> tuple[Finding, ...]:
    """Looks at a recipe before its training: options, data, and a short trial on them. The worst findings come first.

    Args:
        source: a recipe, its name, its file, or a `Plan` of it.
        changes: `path=value`, as `sfumato train --set` takes them.
        trial_seconds: how long the trial may take.

    Raises:
        ValueError: there is no such recipe, or a change does not fit.
    """
    if not isinstance(source, Plan):
        source = Plan(source if isinstance(source, Recipe) else load_recipe(source, changes), trial_seconds=trial_seconds)
    return _worst_first(examine(source))


def run(model: str | Path | Outcome, changes: Sequence[str] = (), *, samples: int = 256) -> tuple[Finding, ...]:
    """Looks at a run during or after its training: its curve, its losses by level, its samples, and what `recipe` looks at but the trial.

    Args:
        model: a run folder, `zoo:NAME`, or an `Outcome` of one.
        changes: `path=value`: where the data are now, or how it is to be sampled.
        samples: how many are drawn, at most.

    Raises:
        ValueError: there is no such model, or a change does not fit.
    """
    outcome = model if isinstance(model, Outcome) else Outcome(model, changes, samples=samples)
    if stages := outcome.recipe.stages(outcome.folder):
        there = [outcome.folder / stage.name for stage in stages if (outcome.folder / stage.name / "recipe.yaml").is_file()]
        return _worst_first(finding for folder in there for finding in run(folder, samples=samples))
    of_plan = [finding for finding in examine(outcome.plan) if finding.id != "data-refused"]  # `data-elsewhere` says it of a run
    return _worst_first([*examine(outcome), *of_plan])


def _worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: list(Severity).index(finding.severity)))
