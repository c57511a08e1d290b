"""`sfumato train`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.progress import Stage, reporter
from sfumato.cli.stopping import stoppable
from sfumato.runtime import keep_memory
from sfumato.training.engine import Engine
from sfumato.tasks import load_recipe, stages_of, train_of


def train(
    recipe: Annotated[str, typer.Argument(help="A name (`sfumato recipes` lists them) or a YAML file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one option; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/RECIPE where not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps, instead of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, or begin where there is none.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a recipe into a run folder. Ctrl-C writes a checkpoint first; --resume goes on from it.

    Example: sfumato train folder --set data.path=flowers --set data.size=64 --out runs/flowers
    """
    resolved = load_recipe(recipe, changes or [], steps=steps)
    if out is None and Path(recipe).name == "recipe.yaml":
        raise ValueError(f"{recipe} is the recipe of a run; name the folder of the new run with --out.")
    out = out or Path("runs") / Path(recipe).stem
    keep_memory()
    is_main = Engine.begin().is_main
    stages = [Stage(name, stage.steps, stage.batch) for name, stage in stages_of(resolved).items()]
    progress = reporter(*stages, unit="images", quiet=not is_main)
    with stoppable() as should_stop, progress as report:
        train_of(resolved)(
            resolved,
            out,
            resume=resume,
            on_step=lambda step, loss: report(step, f"loss {loss:.3f}"),
            say=typer.echo,
            should_stop=should_stop,
        )
    if is_main:
        typer.echo(f"Done: {out}. Sample it with: sfumato sample {out} --out samples.png")
