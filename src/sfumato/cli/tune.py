"""`sfumato tune`."""

from typing import Annotated

import typer


def tune(
    model: Annotated[str, typer.Argument(help="A run folder.")],
    steps: Annotated[int, typer.Option(help="Evaluations for each sample: 5, 8, 10, ….")] = 10,
    guidance: Annotated[float | None, typer.Option(help="The guidance to tune for; the recipe's by default.")] = None,
    rows: Annotated[int, typer.Option(help="Number of sampled trajectories; a third of them is held out to measure the error.")] = 96,
    seed: Annotated[int, typer.Option(help="Seed of their noise.")] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Fit the levels and the method to a model and a number of steps; `sample --steps N` then uses them.

    Example: sfumato tune runs/demo --steps 8
    """
    from sfumato.loading import load
    from sfumato.runtime import keep_memory
    from sfumato.storage import folder_of

    if model.startswith("zoo:"):
        raise ValueError(
            f"{model} is part of the package, which sfumato does not change; tune a run folder, or call load({model!r}).tune in Python."
        )
    for name, number, least in (("--steps", steps, 2), ("--rows", rows, 12), ("--seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    run = load(model)
    keep_memory()
    tuned = run.tune(steps, guidance=guidance, rows=rows, seed=seed)
    path = run.sampler.save_tuned(folder_of(model), steps, guidance, tuned)
    typer.echo(f"Distance from a fine solution: {tuned.default_error:.4g} before, {tuned.error:.4g} with {tuned.step!r}. Wrote {path}.")
