"""`sfumato train-classifier`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def train_classifier(
    run: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME, whose data have classes.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one option (net.…, times.…, training.…); may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The classifier's folder; RUN/classifier by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps; 1000 by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint, or start if there is none.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a classifier of a run's noisy data, for `sample --classifier`. Ctrl-C writes a checkpoint first.

    Example: sfumato train-classifier runs/digits --steps 2000
    """
    from sfumato import classifiers
    from sfumato.cli.progress import Stage, reporter
    from sfumato.cli.stopping import stoppable
    from sfumato.engine import Engine
    from sfumato.loading import load
    from sfumato.runtime import keep_memory
    from sfumato.training import Callbacks

    if out is None and run.startswith("zoo:"):
        raise ValueError(f"{run} ships with sfumato; give a folder for its classifier with --out.")
    model = load(run)
    recipe, folder = classifiers.recipe_for(model, changes or [], steps=steps), out or Path(run) / "classifier"
    keep_memory()
    accuracy = ""

    def keep_accuracy(record: Mapping[str, float | int]) -> None:
        nonlocal accuracy
        accuracy = ", ".join(f"{name} {value:.2f}" for name, value in record.items() if name.startswith("accuracy"))

    options, is_main = recipe.training, Engine.begin().is_main
    progress = reporter(Stage("training", options.steps, options.batch), unit="examples", quiet=not is_main)
    with stoppable() as should_stop, progress as report:
        calls = Callbacks(
            on_step=lambda step, loss: report(step, f"loss {loss:.3f}"),
            on_log=keep_accuracy,
            on_message=typer.echo,
            should_stop=should_stop,
        )
        classifiers.train_classifier(model, recipe, folder, callbacks=calls, resume=resume)
    if is_main:
        typer.echo(
            f"Done: {folder}{f' ({accuracy})' if accuracy else ''}. Use it with: sfumato sample {run} --classifier {out or run} "
            f"--out samples.{'png' if model.spec.has_picture else 'npz'}"
        )
