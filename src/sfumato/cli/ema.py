"""`sfumato ema`."""

from typing import Annotated

import typer


def ema(
    run: Annotated[str, typer.Argument(help="A run folder, trained with training.snapshot_every above 0.")],
    width: Annotated[float, typer.Option(help="Width of the average: its standard deviation relative to the run's length, below 0.288.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compute an average of another width from a run's snapshots; `sample --ema WIDTH` then uses it.

    Example: sfumato ema runs/digits --width 0.15
    """
    from sfumato.storage import folder_of
    from sfumato.training.posthoc import reconstruct_ema

    if run.startswith("zoo:"):
        raise ValueError(f"{run} is part of the package, which sfumato does not change; give a run folder.")
    path, misfit = reconstruct_ema(folder_of(run), width)
    typer.echo(f"Wrote {path}; its profile differs by {misfit:.2%}. Sample with: sfumato sample {run} --ema {width:g} --out samples.png")
