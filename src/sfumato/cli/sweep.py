"""`sfumato sweep`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")


def sweep(
    model: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME.")],
    out: Annotated[Path, typer.Option(help="A folder: a report a setting, table.md, sweep.png.")],
    sampler: Annotated[str | None, typer.Option(help="Names, joined by commas; the recipe's by default.")] = None,
    steps: Annotated[str | None, typer.Option(help="Numbers, joined by commas; the recipe's by default.")] = None,
    guidance: Annotated[str | None, typer.Option(help="Scales, joined by commas; the recipe's by default.")] = None,
    data: Annotated[str, typer.Option(help="As `sfumato evaluate` takes it.")] = "held-out",
    metrics: Annotated[str | None, typer.Option(help="As `sfumato evaluate` takes them; fd, prdc and accuracy of images.")] = None,
    features: Annotated[str | None, typer.Option(help="As `sfumato evaluate` takes them.")] = None,
    count: Annotated[int | None, typer.Option(help="How many samples a setting; 1000 (2000 points) by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, the same for all settings.")] = 0,
    labels: Annotated[str | None, typer.Option(help="Classes, taken in turn; all in turn by default.")] = None,
    ema: Annotated[float | None, typer.Option(help="Which average of the weights, by its width; the recipe's first by default.")] = None,
    batch: Annotated[int, typer.Option(help="How many samples are drawn at a time; changes no figure.")] = 64,
    judge: Annotated[str | None, typer.Option(help="As `sfumato evaluate` takes it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make a sweep anew that is there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure a model under several samplers, numbers of steps and scales of guidance: a table and a picture.

    A sweep that was stopped goes on where the same command is given again.

    Example: sfumato sweep zoo:digits --data digits --sampler ddim,adams --steps 5,10,20 --guidance 1,2 --out sweep
    """
    from sfumato.cli.evaluate import names_of, shown
    from sfumato.cli.sample import labels_of
    from sfumato.engine import Engine
    from sfumato.evaluation.sweep import PICTURE, TABLE
    from sfumato.evaluation.sweep import sweep as sweep_settings
    from sfumato.runtime import keep_memory

    keep_memory()
    is_main = Engine.begin().is_main
    with shown(quiet=True) as progress:
        made = sweep_settings(
            model,
            data,
            out,
            samplers=names_of(sampler),
            steps=_numbers(steps, int, "--steps"),
            guidance=_numbers(guidance, float, "--guidance"),
            metrics=names_of(metrics),
            features=names_of(features),
            count=count,
            seed=seed,
            labels=labels_of(labels),
            ema=ema,
            batch=batch,
            judge=judge,
            force=force,
            on_progress=progress,
            on_message=typer.echo if is_main else None,
        )
    if is_main:
        name = next(iter(made.rows[0][1].metrics))
        typer.echo(made.table(name))
        typer.echo(f"Wrote {out / TABLE}, {out / PICTURE} and a report a setting.")


def _numbers(text: str | None, kind: Callable[[str], T], option: str) -> list[T] | None:
    """Numbers joined by commas."""
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'{option} takes numbers joined by commas, as in 5,10,20; got "{text}".') from None
