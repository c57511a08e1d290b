"""`sfumato upscale`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def upscale(
    model: Annotated[str, typer.Argument(help="A run of `sfumato train upscale`, or of a regression.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture, or a folder of pictures.")],
    out: Annotated[Path, typer.Argument(help="A .png for a picture, a new folder for a folder.")],
    steps: Annotated[int | None, typer.Option(help="Of the sampler; the recipe's by default.")] = None,
    sampler: Annotated[str | None, typer.Option(help="The recipe's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Picture i depends on (model, picture, seed, i) alone.")] = 0,
    overlap: Annotated[int, typer.Option(help="Pixels of IN that tiles of a larger picture share.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Enlarge pictures with a super-resolution model.

    Example: sfumato upscale runs/upscale photo.png large.png
    """
    from sfumato.cli.progress import Stage, reporter
    from sfumato.data.images import SUFFIXES
    from sfumato.data.writing import write_png
    from sfumato.loading import load
    from sfumato.runtime import compute_device, keep_memory
    from sfumato.task import Request

    run = load(model, device=compute_device())
    if "low" not in run.spec.conditions:
        raise ValueError(f"{model} is {run.sampler.kind}, which enlarges no pictures; train one that does: sfumato train upscale.")
    if not source.exists():
        raise ValueError(f"there is no picture or folder {source}.")
    is_folder = source.is_dir()
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES) if is_folder else [source]
    if not files:
        raise ValueError(f"{source} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
    if not is_folder and out.suffix.lower() != ".png":
        raise ValueError(f"an enlarged picture is written as .png, got {out}.")
    if not force and (any(out.iterdir()) if out.is_dir() else out.exists()):
        raise ValueError(f"{out} is there already; name another, or add --force to write over it.")
    options: dict[str, Any] = {name: value for name, value in {"steps": steps, "sampler": sampler}.items() if value is not None}
    keep_memory()
    with reporter(Stage("enlarging", len(files)), unit="pictures") as report:
        for i, path in enumerate(files):
            cond = run.conditions([i], cond={"low": str(path)}, options=options)
            run.sampler.check(options, cond)
            given = {name: one.to(run.device) for name, one in cond.items()}
            x = run.sampler.upscale(Request(range(i, i + 1), seed, run.device, given, options), overlap=overlap)
            target = out / f"{path.stem}.png" if is_folder else out
            target.parent.mkdir(parents=True, exist_ok=True)
            write_png(target, run.spec.codec.decode(x.cpu())[0])
            report(i + 1)
    typer.echo(f"Wrote {out}.")
