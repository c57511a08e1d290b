"""`sfumato train`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.progress import reporter
from sfumato.runtime import keep_memory
from sfumato.train.loop import train as train_recipe
from sfumato.train.recipe import load_recipe


def train(
    recipe: Annotated[str, typer.Argument(help="A name (`sfumato recipes` lists them) or a YAML file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one option; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/RECIPE where not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps, instead of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, or begin where there is none.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a recipe into a run folder.

    Example: sfumato train folder --set data.path=flowers --set data.size=64 --out runs/flowers
    """
    resolved = load_recipe(recipe, changes or [], steps=steps)
    out = out or Path("runs") / Path(recipe).stem
    keep_memory()
    with reporter("training", resolved.training.steps) as report:
        train_recipe(
            resolved,
            out,
            resume=resume,
            watch=lambda r: report(int(r["step"]), f"loss {r['loss']:.4f}, {r['images_per_second']:.0f} images/s"),
            say=typer.echo,
        )
    typer.echo(f"Done: {out}. Sample it with: sfumato sample {out} --out samples.png")
