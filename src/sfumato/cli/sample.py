"""`sfumato sample`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.options import SAMPLER_NAMES

if TYPE_CHECKING:
    from sfumato.model import Model


def sample(
    model: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME (`sfumato zoo` lists them).")],
    out: Annotated[
        Path, typer.Option(help="s.npz, s.csv (tables), s.png or .jpg (a sheet), s.gif (the reverse process), or a folder for PNGs.")
    ],
    count: Annotated[int | None, typer.Option(help="Number of samples; by default 2000 points or rows, else 64.")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLER_NAMES)}; the recipe's by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler; the recipe's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i depends on (model, seed, i) alone.")] = 0,
    labels: Annotated[str | None, typer.Option(help="Classes, used in turn: 3,5 or sneaker,bag, or none; all of them by default.")] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A condition: a class, comma-separated numbers, an image file, or none; may be repeated."),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="Scale of classifier-free guidance (1 = off, 0 = unconditional; one each: color=3,size=1), or of --classifier."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Factor on a VAE's standard deviations.")] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="RUN", help="Guide by RUN/classifier instead of labels; 1 = Bayes' rule.")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Width of the weights' average to use; the recipe's first by default.")] = None,
    batch: Annotated[int, typer.Option(help="Samples at a time; does not change them.")] = 64,
    kernels: Annotated[
        str, typer.Option(help="On a CPU: torch, compiled (sfumato's; a few pixels differ by a grey level), or auto (the faster one).")
    ] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile: slow at first, faster for many samples.")] = False,
    forward: Annotated[bool, typer.Option("--forward", help="With a .gif: show the forward process on training data instead.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw samples from a model.

    Example: sfumato sample zoo:fashion --labels 0,1,2 --count 30 --out sheet.png
    """
    import torch

    from sfumato.classifiers import load_classifier
    from sfumato.cli.progress import Stage, reporter
    from sfumato.engine import Engine
    from sfumato.loading import load
    from sfumato.runtime import keep_memory
    from sfumato.samples import Samples, check_target

    run, chosen = load(model, ema=ema), labels_of(labels)
    if run.sampler.use:
        raise ValueError(f"{model} is {run.sampler.kind}, which has no samples. {run.sampler.use}")
    judge = None if classifier is None else load_classifier(classifier)
    if count is None:
        count = 2000 if len(run.spec.shape) == 1 else 64
    for name, number, least in (("--count", count, 1), ("--batch", batch, 1), ("--seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    is_gif = out.suffix.lower() == ".gif"
    if forward and not is_gif:
        raise ValueError(f"--forward makes an animation, so --out must end in .gif, got {out}.")
    asked: dict[str, Any] = {"steps": steps, "guidance": guidance_of(guidance), "sampler": sampler, "classifier": judge}
    conditions: dict[str, Any] = {"labels": chosen, "cond": _cond(run, cond or [])}
    heat: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    given = {name: value for name, value in {**asked, **heat}.items() if value is not None}
    run.sampler.check(given, run.conditions(range(min(count, 1000)), options=given, **conditions))
    check_target(out, is_image=run.spec.is_image, has_picture=run.spec.has_picture, is_table=len(run.spec.shape) == 1)
    if out.is_file() and not force:
        raise ValueError(f"{out} exists; choose another file, or add --force to overwrite it.")
    keep_memory()
    engine = Engine.begin()
    run.to(engine.device)
    if compile:
        if kernels == "compiled":
            raise ValueError("--compile uses torch's kernels; leave --kernels at auto or torch.")
        run.compile()
    elif _by_kernels(run, kernels, count, given) and engine.is_main:
        typer.echo("Using sfumato's kernels for normalisations and 3×3 convolutions, faster here; --kernels torch turns them off.")
    if is_gif and not engine.is_main:
        pass  # there is only one process
    elif forward:
        source = run.recipe.data.load().scaled_like(run.spec)
        rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:count]
        run.forward_gif(out, source.batch(rows.numpy()).x, seed=seed)
    elif is_gif:
        run.reverse_gif(out, count, seed=seed, **conditions, **asked)
    else:
        rows = engine.share(count)
        with reporter(Stage("sampling", rows.stop - rows.start), unit="samples", quiet=not engine.is_main) as report:
            part = run.sample(count, seed=seed, batch=batch, rows=rows, on_batch=report, **conditions, **asked, **heat)
        samples = Samples(engine.gather(part.values), {name: engine.gather(value) for name, value in part.cond.items()}, run.spec)
        if engine.is_main:
            samples.save(out, columns=run.columns(chosen, count))
    if engine.is_main:
        typer.echo(f"Wrote {out}.")
    engine.wait()


def _by_kernels(run: "Model", wanted: str, count: int, options: Mapping[str, object]) -> bool:
    """Chooses the network's kernels; returns whether they are ours. A step costs a third of one in training."""
    import torch

    from sfumato.kernels import choice
    from sfumato.kernels.build import were_compiled

    if wanted not in ("auto", "torch", "compiled"):
        raise ValueError(f'--kernels must be auto, torch or compiled, got "{wanted}".')
    images = count * run.sampler.evaluations(options) // 3 if choice.has_kernels(run.network) else 0
    is_on = choice.is_wanted(wanted, torch.float32, run.device, images=images, waits=not were_compiled())
    choice.use(run.network, is_on)
    return is_on


def labels_of(text: str | None) -> list[str] | None:
    """Classes joined by commas."""
    if text is None:
        return None
    labels = [part.strip() for part in text.split(",")]
    if not all(labels):
        raise ValueError(f'--labels needs comma-separated numbers or names of classes, such as 3,5 or sneaker,bag, or none; got "{text}".')
    return labels


def _cond(run: "Model", texts: list[str]) -> dict[str, object]:
    """Conditions by name, from NAME=VALUE."""
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f'--cond needs NAME=VALUE, such as color=red; got "{text}".')
        if name not in run.spec.conditions:
            raise ValueError(f'{run.name} has no condition "{name}"; its conditions: {", ".join(run.spec.conditions) or "none"}.')
        found[name] = None if value == "none" else run.spec.conditions[name].read(value)
    return found


def guidance_of(text: str | None) -> float | dict[str, float] | None:
    """A scale, or scales by name."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        return {name.strip(): float(value) for name, value in (part.split("=", 1) for part in text.split(","))}
    except ValueError:
        raise ValueError(f'--guidance needs a number, or one for each condition, such as color=3,size=1; got "{text}".') from None
