"""`sfumato train`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.progress import Stage, reporter
from sfumato.cli.stopping import stoppable
from sfumato.run import read_form
from sfumato.runtime import keep_memory
from sfumato.train.autoencoder import AutoencoderRecipe
from sfumato.train.engine import Engine
from sfumato.train.kinds import AnyRecipe, load_recipe, stages_of, train_of


def train(
    recipe: Annotated[str, typer.Argument(help="A name (`sfumato recipes` lists them) or a YAML file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one option; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/RECIPE where not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps, instead of the recipe's; in all its stages together.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, or begin where there is none.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a recipe into a run folder. Ctrl-C writes a checkpoint first; --resume goes on from it.

    A run is made longer with --resume and more --steps than it was begun with.

    Example: sfumato train folder --set data.path=flowers --set data.size=64 --out runs/flowers
    """
    resolved = load_recipe(recipe, changes or [], steps=steps)
    if out is None and Path(recipe).name == "recipe.yaml":
        raise ValueError(f"{recipe} is the recipe of a run; name the folder of the new run with --out.")
    out = out or Path("runs") / Path(recipe).stem
    keep_memory()
    is_main = Engine.begin().is_main
    stages = [Stage(name, stage.steps, stage.batch) for name, stage in stages_of(resolved).items()]
    if len(stages) > 1 and is_main:
        typer.echo(f"{sum(stage.total for stage in stages)} steps: {', '.join(f'{stage.total} of the {stage.name}' for stage in stages)}.")
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
        typer.echo(f"Done: {out}. {_use(resolved, out)}")


def _use(recipe: AnyRecipe, out: Path) -> str:
    """What can be done with a run, in a sentence."""
    if isinstance(recipe, AutoencoderRecipe):
        return f"Diffuse its latents with: sfumato train ldm --set model.path={out} --set data='{{kind: {recipe.data.kind}, …}}'"
    return f"Sample it with: sfumato sample {out} --out samples.{'png' if read_form(out).has_picture else 'npz'}"
