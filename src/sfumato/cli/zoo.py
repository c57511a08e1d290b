"""`sfumato zoo`."""

import json
from typing import Annotated

import typer


def zoo(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """List the models that ship with sfumato.

    Example: sfumato zoo
    """
    from rich.console import Console
    from rich.table import Table

    from sfumato.storage import ZOO, zoo_names

    table = Table("model", "parameters", "size", "figures", box=None)
    for name in zoo_names():
        card = json.loads((ZOO / name / "card.json").read_text())
        size = sum(path.stat().st_size for path in (ZOO / name).rglob("*") if path.is_file())
        figures = ", ".join(f"{key} {value}" for key, value in card["figures"].items())
        table.add_row(f"zoo:{name}", f"{card['parameters'] / 1e6:.2f} M", f"{size / 1e6:.1f} MB", figures)
    Console().print(table)
