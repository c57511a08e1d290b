"""`sfumato recipes`."""

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one in full, as YAML.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the recipes that ship with sfumato, or print one.

    Example: sfumato recipes fashion > mine.yaml
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sfumato.recipe import load_recipe, recipe_names

    if name is not None:
        typer.echo(load_recipe(name, ["data.path=DATA"] if name in NEED_PATH else []).to_yaml())
        return
    table = Table("recipe", "model", "steps", "trains on", box=None)
    for each in recipe_names():
        recipe = load_recipe(each, ["data.path=DATA"] if each in NEED_PATH else [])
        table.add_row(each, recipe.what, str(sum(each.steps for each in recipe.trainings().values())), escape(recipe.about))
    Console().print(table)


NEED_PATH = ("cifar10", "cifar100", "datasaurus", "datasets", "folder", "ldm", "ldm-flowers", "signals", "table", "upscale", "volumes")
