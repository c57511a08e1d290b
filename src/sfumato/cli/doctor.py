"""`sfumato doctor`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.doctor import Finding
    from sfumato.doctor.trial import Trial


def doctor(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe (a name or a YAML file), a run folder, or zoo:NAME.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one option; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Find what is wrong with a recipe or a run, or will go wrong, and how to fix it.

    Before training, it checks the data and the options and tries a few steps; during or after training, it checks the curve, the losses by
    noise level and the samples. Exit code 0 if nothing is found (or only notes), 1 on an error or a warning, 2 on bad use.
    Example: sfumato doctor folder --set data.path=flowers --set data.size=64
    """
    from sfumato import doctor as doctors
    from sfumato.recipe import load_recipe
    from sfumato.runtime import keep_memory

    keep_memory()
    trial, forecasts = None, list[str]()
    if target.startswith("zoo:") or (Path(target) / "recipe.yaml").is_file():
        findings = doctors.run(target, changes or [])
    else:
        plan = doctors.Plan(load_recipe(target, changes or []))
        findings = doctors.recipe(plan)
        trial, forecasts = plan.trial, _forecast(plan.trial, plan.recipe.training.steps)
        for name, stage in plan.stages.items():
            forecasts += [f"The stage {name}: {line}" for line in _forecast(stage.trial, stage.recipe.training.steps)]
    if as_json:
        record = {"findings": [finding.to_json() for finding in findings], "trial": None if trial is None else asdict(trial)}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*forecasts, _report(findings)]))
    if any(finding.severity is not doctors.Severity.NOTE for finding in findings):
        raise typer.Exit(1)


def _forecast(trial: "Trial | None", steps: int) -> list[str]:
    if trial is None:
        return []
    return [
        f"On this machine ({trial.device}): {trial.seconds_per_step:.3g} s a step, {_clock(steps * trial.seconds_per_step)} for {steps} "
        f"steps; {trial.peak_bytes / 2**30:.1f} GiB at the peak, {trial.free_bytes / 2**30:.1f} GiB free."
    ]


def _report(findings: "Sequence[Finding]") -> str:
    from sfumato.doctor import Severity

    if not findings:
        return "Nothing found."
    blocks = [
        f"{finding.severity.upper()}  {finding.id}\n  seen    {finding.measured}\n  means   {finding.means}\n  change  {finding.change}\n"
        for finding in findings
    ]
    counts = [f"{n} {kind}{'s' if n > 1 else ''}" for kind in Severity if (n := sum(f.severity is kind for f in findings))]
    return "\n".join(["", *blocks, ", ".join(counts) + "."])


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
