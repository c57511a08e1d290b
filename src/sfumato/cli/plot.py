"""`sfumato plot`."""

from pathlib import Path
from typing import Annotated

import typer


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are drawn into the same axes.")],
    out: Annotated[Path | None, typer.Option(help="A .png; RUN/curves.png by default, curves.png for several runs.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Plot runs in one picture: losses, also by noise level, gradients, rates, speed, memory, samples.

    Example: sfumato plot runs/first runs/second --out both.png
    """
    from sfumato.curves import draw
    from sfumato.storage import aside

    out = out or (runs[0] / "curves.png" if len(runs) == 1 else Path("curves.png"))
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {out}.")
    image = draw(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as partial:
        image.save(partial, format="PNG")
    typer.echo(f"Wrote {out}.")
