"""`sfumato train`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A name (`sfumato recipes` lists them) or a YAML file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one option; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/RECIPE by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps of all stages together, instead of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint, or start if there is none.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a recipe into a run folder. Ctrl-C writes a checkpoint first; --resume continues from it.

    To train a finished run for longer, use --resume and more --steps.

    Example: sfumato train folder --set data.path=flowers --set data.size=64 --out runs/flowers
    """
    from sfumato.cli.progress import Stage, reporter
    from sfumato.cli.stopping import stoppable
    from sfumato.engine import Engine
    from sfumato.recipe import load_recipe
    from sfumato.runtime import keep_memory
    from sfumato.training import Callbacks
    from sfumato.training import train as train_recipe

    resolved = load_recipe(recipe, changes or [], steps=steps)
    if out is None and Path(recipe).name == "recipe.yaml":
        raise ValueError(f"{recipe} is the recipe of a run; give the new run's folder with --out.")
    out = out or Path("runs") / Path(recipe).stem
    keep_memory()
    is_main = Engine.begin().is_main
    stages = [Stage(name, stage.steps, stage.batch) for name, stage in resolved.trainings().items()]
    if len(stages) > 1 and is_main:
        typer.echo(f"{sum(stage.total for stage in stages)} steps: {', '.join(f'{stage.total} of the {stage.name}' for stage in stages)}.")
    progress = reporter(*stages, unit="images", quiet=not is_main)
    with stoppable() as should_stop, progress as report:
        calls = Callbacks(on_step=lambda step, loss: report(step, f"loss {loss:.3f}"), on_message=typer.echo, should_stop=should_stop)
        model = train_recipe(resolved, out=out, callbacks=calls, resume=resume)
    if is_main:
        use = f"Sample with: sfumato sample {out} --out samples.{'png' if model.spec.has_picture else 'npz'}"
        typer.echo(f"Done: {out}. {model.sampler.use or use}")
