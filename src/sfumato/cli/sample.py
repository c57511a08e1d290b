"""`sfumato sample`."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from sfumato.cli.progress import Stage, reporter
from sfumato.kernels import choice
from sfumato.kernels.build import were_compiled
from sfumato.run import Run, Samples, check_target
from sfumato.runtime import keep_memory
from sfumato.train.classifier import load as load_classifier
from sfumato.train.engine import Engine
from sfumato.train.kinds import AnyRun, load
from sfumato.train.recipe import SAMPLERS
from sfumato.train.vae import VAERun


def sample(
    model: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME (`sfumato zoo` lists them).")],
    out: Annotated[
        Path, typer.Option(help="s.npz, s.csv (of rows), s.png or .jpg (a sheet), s.gif (the reverse process), or a folder for PNGs.")
    ],
    count: Annotated[int | None, typer.Option(help="How many; 2000 points or rows, 64 of all else by default.")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLERS)}; the recipe's by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler; the recipe's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i depends on (model, seed, i) alone.")] = 0,
    labels: Annotated[str | None, typer.Option(help="Classes, taken in turn: 3,5 or sneaker,bag, or none; all in turn by default.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Its scale: classifier-free, 1 = off, 0 = without the label; or of --classifier.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="RUN", help="Guide by RUN/classifier: the model without its labels, 1 = Bayes' rule.")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Which average of the weights, by its width; the recipe's first by default.")] = None,
    batch: Annotated[int, typer.Option(help="How many at a time; does not change the samples.")] = 64,
    kernels: Annotated[
        str, typer.Option(help="On a CPU: torch, compiled (sfumato's: a grey level off now and then), or auto, the faster in long work.")
    ] = "auto",
    forward: Annotated[bool, typer.Option("--forward", help="With a .gif: the forward process on the training data instead.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw samples from a model.

    Example: sfumato sample zoo:fashion --labels 0,1,2 --count 30 --out sheet.png
    """
    run, chosen = load(model, ema=ema), _labels(labels)
    judge = None if classifier is None else load_classifier(classifier)
    if count is None:
        count = 2000 if len(run.form.shape) == 1 else 64
    for name, number, least in (("--count", count, 1), ("--batch", batch, 1), ("--seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    is_gif = out.suffix.lower() == ".gif"
    if forward and not is_gif:
        raise ValueError(f"--forward draws a moving picture, so --out must end in .gif, got {out}.")
    asked = {"steps": steps, "labels": chosen, "guidance": guidance, "sampler": sampler, "classifier": judge}
    if isinstance(run, VAERun):
        given = [name for name, value in asked.items() if value is not None] + ["out …gif"] * is_gif
        if given:
            raise ValueError(f"{model} is a VAE, which is drawn in one pass without classes; leave out --{', --'.join(given)}.")
        asked = {}
    check_target(out, is_image=run.form.is_image, has_picture=run.has_picture, is_table=len(run.form.shape) == 1)
    keep_memory()
    engine = Engine.begin()
    run.to(engine.device)
    if _by_kernels(run, kernels, count, steps) and engine.is_main:
        typer.echo("Normalisations and 3×3 convolutions go by sfumato's kernels, which are faster here; --kernels torch takes torch's.")
    if is_gif and not engine.is_main:
        pass  # one process draws it
    elif forward:
        if not isinstance(run, Run):
            raise ValueError(f"--forward draws the noise on pixels, but {model} noises latents; leave --forward out.")
        dataset = run.recipe.data.load().scaled(run.form.scaling)
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
        out.parent.mkdir(parents=True, exist_ok=True)
        run.forward_gif(out, dataset.batch(rows)[0], seed=seed)
    elif is_gif:
        assert not isinstance(run, VAERun)
        run.reverse_gif(out, count, seed=seed, **asked)
    else:
        rows = engine.share(count)
        with reporter(Stage("sampling", rows.stop - rows.start), unit="samples", quiet=not engine.is_main) as report:
            part = run.sample(count, seed=seed, batch=batch, rows=rows, on_batch=report, **asked)
        samples = Samples(engine.gather(part.values), None if part.labels is None else engine.gather(part.labels), run.form)
        if engine.is_main:
            samples.save(out, columns=run.columns(chosen, count))
    if engine.is_main:
        typer.echo(f"Wrote {out}.")
    engine.wait()


def _by_kernels(run: AnyRun, wanted: str, count: int, steps: int | None) -> bool:
    """Tells the networks how to compute; whether that is by our kernels. A step is a third of what it is in training."""
    if wanted not in ("auto", "torch", "compiled"):
        raise ValueError(f'--kernels is auto, torch or compiled, got "{wanted}".')
    steps = 1 if isinstance(run, VAERun) else run.recipe.sampling.steps if steps is None else steps
    images = count * steps // 3 if any(map(choice.has_kernels, run.networks)) else 0
    is_on = choice.is_wanted(wanted, torch.float32, run.device, images=images, waits=not were_compiled())
    for net in run.networks:
        choice.use(net, is_on)
    return is_on


def _labels(text: str | None) -> list[str] | None:
    if text is None:
        return None
    labels = [part.strip() for part in text.split(",")]
    if not all(labels):
        raise ValueError(f'--labels takes numbers or names of classes joined by commas, as in 3,5 or sneaker,bag, or none; got "{text}".')
    return labels
