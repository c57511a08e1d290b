"""`sfumato evaluate`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sfumato.options import METRIC_NAMES, SAMPLER_NAMES


def evaluate(
    samples: Annotated[
        str, typer.Argument(metavar="MODEL|SAMPLES", help="A run folder or zoo:NAME; an .npz, .csv, .zip or folder of images.")
    ],
    data: Annotated[
        str, typer.Option(help="A data set's name, its options ({kind: fashion, train: false}), a path; held-out or training of the run.")
    ] = "held-out",
    metrics: Annotated[
        str | None, typer.Option(help=f"Joined by commas: {', '.join(METRIC_NAMES)}; by the form of the data by default.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many samples; 1000 of a model (2000 points), else all.")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="pixels, grey28, efficientnet-lite0, stlpips-vgg, stlpips-alex, inception:PATH; by the data."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Sample i depends on (model, seed, i) alone.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many independent seeds: figures are means, errors their standard errors.")] = 1,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLER_NAMES)}; the recipe's by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler; the recipe's by default.")] = None,
    guidance: Annotated[str | None, typer.Option(help="Its scale, as `sfumato sample` takes it; the recipe's by default.")] = None,
    labels: Annotated[str | None, typer.Option(help="Classes, taken in turn; all in turn by default.")] = None,
    ema: Annotated[float | None, typer.Option(help="Which average of the weights, by its width; the recipe's first by default.")] = None,
    batch: Annotated[int, typer.Option(help="How many samples are drawn at a time; changes no figure.")] = 64,
    judge: Annotated[str | None, typer.Option(help="Who reads classes for label accuracy: fashion, svm; by the data.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Bring data of another size or other channels to the samples'.")] = False,
    out: Annotated[Path | None, typer.Option(help="The report, a .json; samples are kept beside it until it is written.")] = None,
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Keep the drawn samples beside the report.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a report that is there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure a model, or samples, against data; the report says everything that its figures depend on.

    An evaluation that was stopped goes on where the same command is given again.

    Example: sfumato evaluate zoo:digits --data digits --count 1000 --out report.json
    """
    from rich.console import Console

    from sfumato.cli.sample import guidance_of, labels_of
    from sfumato.engine import Engine
    from sfumato.evaluation.evaluate import evaluate as evaluate_samples
    from sfumato.runtime import keep_memory

    keep_memory()
    is_main = Engine.begin().is_main
    with shown(quiet=not is_main) as progress:
        report = evaluate_samples(
            samples,
            data,
            metrics=names_of(metrics),
            features=names_of(features),
            count=count,
            seed=seed,
            seeds=seeds,
            labels=labels_of(labels),
            steps=steps,
            sampler=sampler,
            guidance=guidance_of(guidance),
            ema=ema,
            batch=batch,
            judge=judge,
            resize=resize,
            out=out,
            force=force,
            keep_samples=keep_samples,
            on_progress=progress,
        )
    if is_main:
        Console().print(report.table())
        for note in report.notes:
            typer.echo(note)
        if "model" in report.manifest:
            typer.echo(f"Choice of the settings: {report.manifest['chosen']}.")
        if out is not None:
            typer.echo(f"Wrote {out}.")


def names_of(text: str | None) -> list[str] | None:
    """Names joined by commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


@contextmanager
def shown(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Shows each stage as a progress of its own."""
    from sfumato.cli.progress import Stage, reporter
    from sfumato.evaluation.subject import PART

    with ExitStack() as stack:
        stages: dict[str, Callable[[int], None]] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stack.close()
                per = 32 if stage == "bits/dim" else PART
                stages[stage] = stack.enter_context(reporter(Stage(stage, total, per), unit="examples", quiet=quiet))
            stages[stage](done)

        yield progress
