"""Finds present and future problems of a recipe or a run, and says what to do about them: `doctor.recipe`, `doctor.run`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.doctor.check import Check, Finding, Limit, Reading, Severity, checks, examine
from sfumato.doctor.outcome import Outcome
from sfumato.doctor.plan import Plan
from sfumato.recipe import load_recipe
from sfumato.task import Recipe, Stage

__all__ = ["Check", "Finding", "Limit", "Outcome", "Plan", "Reading", "Severity", "checks", "recipe", "run"]


def recipe(source: str | Path | Recipe | Plan, changes: Sequence[str] = (), *, trial_seconds: float = 10.0) -> tuple[Finding, ...]:
    """Checks a recipe before its training: options, data, and a short trial on them. The worst findings come first.

    Args:
        source: a recipe, its name, its file, or a `Plan` of it.
        changes: `path=value`, as `sfumato train --set` takes them.
        trial_seconds: duration of the trial.

    Raises:
        ValueError: there is no such recipe, or a change does not fit.
    """
    if not isinstance(source, Plan):
        source = Plan(source if isinstance(source, Recipe) else load_recipe(source, changes), trial_seconds=trial_seconds)
    found, whole = list(examine(source)), source.recipe
    for name, plan in source.stages.items():
        found += [_of_stage(finding, name, whole) for finding in examine(plan) if finding not in found]
    return _worst_first(found)


def run(model: str | Path | Outcome, changes: Sequence[str] = (), *, samples: int = 256) -> tuple[Finding, ...]:
    """Checks a run during or after its training: its curve, its losses by level, its samples, and the checks of `recipe` but the trial.

    Args:
        model: a run folder, `zoo:NAME`, or an `Outcome` of one.
        changes: `path=value` changes of the place of the data, or of the sampling.
        samples: how many to draw, at most.

    Raises:
        ValueError: there is no such model, or a change does not fit.
    """
    outcome = model if isinstance(model, Outcome) else Outcome(model, changes, samples=samples)
    if stages := outcome.recipe.stages(outcome.folder):
        there = [stage for stage in stages if (outcome.folder / stage.name / "recipe.yaml").is_file()]
        found = {s.name: run(_stage_of(outcome, s, changes, samples)) for s in there}
        return _worst_first(_of_stage(finding, name, outcome.recipe) for name, findings in found.items() for finding in findings)
    left_out = {"data-refused"} | ({"floats-for-images"} if outcome.is_later_stage else set())  # see data-elsewhere; latents are no images
    return _worst_first([*examine(outcome), *(finding for finding in examine(outcome.plan) if finding.id not in left_out)])


def _stage_of(whole: Outcome, stage: Stage, changes: Sequence[str], samples: int) -> Outcome:
    return Outcome(whole.folder / stage.name, _changes_of(stage, whole.recipe, changes), samples=samples, part_of=whole.folder)


def _changes_of(stage: Stage, whole: Recipe, changes: Sequence[str]) -> list[str]:
    """The changes of the whole recipe (place of the data, sampling) that apply to a stage."""
    groups = {"sampling"} | ({"data"} if stage.recipe.data == whole.data else set())
    return [change for change in changes if change.partition("=")[0].partition(".")[0] in groups & set(type(stage.recipe).model_fields)]


def _of_stage(finding: Finding, name: str, whole: Recipe) -> Finding:
    """The finding with the name of its stage, and advice in options of the whole recipe."""
    change = finding.change.replace("--set training.", f"--set {name}_training.") if hasattr(whole, f"{name}_training") else finding.change
    return replace(finding, measured=f"In the stage {name}: {finding.measured}", change=change)


def _worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: list(Severity).index(finding.severity)))
