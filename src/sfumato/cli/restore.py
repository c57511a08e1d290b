"""`sfumato restore`."""

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from sfumato.options import RESTORATION_METHODS, RESTORATION_TASKS


def restore(
    model: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME; trained on clean data.")],
    damaged: Annotated[Path, typer.Argument(metavar="IN", help="The damaged image, or an .npy of y.")],
    task: Annotated[str, typer.Option(help=f"The kind of damage: {', '.join(RESTORATION_TASKS)}.")],
    out: Annotated[
        Path, typer.Option(help="A folder for 000.png …, mean.png, std.png and report.json (draws.npz if the data are not images).")
    ],
    mask: Annotated[Path | None, typer.Option(help="inpaint: an image or .npy of the model's size; black is missing.")] = None,
    factor: Annotated[int | None, typer.Option(help="upscale: how many times smaller IN is.")] = None,
    downsampling: Annotated[str, typer.Option(help="upscale: how IN was downsampled, average or bicubic.")] = "average",
    kernel: Annotated[str | None, typer.Option(help="deblur: gaussian:SIGMA, box:SIZE, or a file (.npy or image).")] = None,
    padding: Annotated[str, typer.Option(help="deblur: the padding at the border: reflect, replicate, zeros or circular.")] = "reflect",
    matrix: Annotated[Path | None, typer.Option(help="matrix: A as .npy [m, d]; IN is y = A x as .npy.")] = None,
    noise: Annotated[str, typer.Option(help="Standard deviation of the noise in IN (images are in [-1, 1]), or estimate.")] = "0.05",
    draws: Annotated[int, typer.Option(help="Number of restorations.")] = 16,
    method: Annotated[str | None, typer.Option(help=f"{', '.join(RESTORATION_METHODS)}; moment-matching by default.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Use particles: exact in the limit of many; also gives log p(y).")] = False,
    particles: Annotated[int, typer.Option(help="Number of particles, with --exact.")] = 1024,
    steps: Annotated[int | None, typer.Option(help="Model evaluations for each draw; the method's default is mostly 40.")] = None,
    seed: Annotated[int, typer.Option(help="Draw i depends only on (model, IN, seed, i); particles also on their number.")] = 0,
    labels: Annotated[str | None, typer.Option(help="The image's class, by number or name; none by default.")] = None,
    ema: Annotated[float | None, typer.Option(help="Width of the weights' average to use; the recipe's first by default.")] = None,
    batch: Annotated[int, typer.Option(help="Draws at a time; does not change them.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Write into an existing folder.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Restore a damaged image with a model of clean images: draws from the posterior, their mean and standard deviation.

    Example: sfumato restore zoo:fashion damaged.png --task inpaint --mask mask.png --out restored
    """
    import torch

    from sfumato.cli import restoring
    from sfumato.loading import load
    from sfumato.noise import seeded
    from sfumato.restoration import MomentMatching, TwistedSMC, estimate_noise, observe
    from sfumato.restoration.diagnosis import diagnose, strangeness
    from sfumato.restoration.tasks import method_of, operator_of
    from sfumato.runtime import keep_memory

    if exact and method not in (None, "twisted-smc"):
        raise ValueError(f"--exact uses the method twisted-smc, got --method {method}; leave out one of them.")
    for name, number, least in (("--draws", draws, 1), ("--batch", batch, 1), ("--seed", seed, 0), ("--particles", particles, 2)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    by_particles = exact or method == "twisted-smc"
    chosen = TwistedSMC(particles=particles, batch=batch) if by_particles else method_of(method or "moment-matching")
    asked = restoring.noise_of(noise)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise ValueError(f"{out} exists; choose another folder, or add --force to write into it.")
    run = load(model, ema=ema)
    if not run.sampler.predicts_data:
        raise ValueError(f"{model} denoises latents, and no operator on the data is linear in them; use a model of the data themselves.")
    predict, shape = run.predictor, run.spec.sizes
    operator = operator_of(
        task,
        shape,
        mask=None if mask is None else restoring.plane(mask, shape),
        factor=factor,
        downsampling=downsampling,
        kernel=None if kernel is None else restoring.kernel(kernel),
        padding=padding,
        matrix=None if matrix is None else torch.from_numpy(restoring.array(matrix)),
    )
    operator, y = restoring.read(run, damaged, task, operator)
    cond = restoring.condition_of(run, labels)
    keep_memory()
    y = y.to(run.device)
    levels = chosen.levels() if steps is None else chosen.levels(steps)
    unknown = observe(y, operator, 1.0 if asked is None else asked, shape=shape)  # raises before the work starts
    started = time.perf_counter()
    if asked is None:
        asked = float(estimate_noise(predict, unknown, method=MomentMatching(), cond=cond, generator=seeded(seed, 2, 0)))
        typer.echo(f"The noise of {damaged} is about {asked:.3g}.")
    at_once = draws if by_particles else batch
    restored = restoring.draw_in_parts(
        predict, y, operator, asked, levels=levels, method=chosen, count=draws, batch=at_once, cond=cond, seed=seed, shape=shape
    )
    seconds = time.perf_counter() - started
    keys = [seeded(seed, 1, i) for i in range(3)]
    odd = strangeness(predict, restored.x[:, 0], cond=cond, generators=(keys[0], keys[1], keys[2]))
    linear = operator.at(shape)
    findings = diagnose(restored, linear.m, strangeness=odd)
    report = {
        "settings": {
            "model": model, "in": str(damaged), "task": task, "noise": noise, "draws": draws, "method": repr(chosen),
            "steps": len(levels) - 1, "seed": seed, "labels": labels, "mask": restoring.text(mask), "factor": factor,
            "downsampling": downsampling if factor else None, "kernel": kernel, "padding": padding if kernel else None,
            "matrix": restoring.text(matrix),
        },
        "noise_std": float(restored.noise_std[0]),
        "chi_squared": {"mean": restoring.number(restored.chi_squared.mean()), "expected_spread": math.sqrt(2 / linear.m),
                        "draws": [restoring.number(each) for each in restored.chi_squared[:, 0]]},
        "strangeness": odd,
        "seconds": seconds,
        "findings": findings,
        "version": 1,
    }  # fmt: skip
    if restored.ess is not None and restored.log_evidence is not None:
        report |= {"effective_particles": [float(size) for size in restored.ess[0]], "log_evidence": float(restored.log_evidence[0])}
    restoring.write(run, out, restored.x[:, 0], report)
    restoring.print_summary(out, restored, findings)
