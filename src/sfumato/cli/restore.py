"""`sfumato restore`."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfumato.cli.progress import Stage, reporter
from sfumato.condition import Condition, CondLike
from sfumato.data.writing import write_png
from sfumato.denoiser import Predictor
from sfumato.loading import load
from sfumato.model import Model
from sfumato.noise import row_generators, seeded
from sfumato.restoration import Matrix, Method, MomentMatching, Operator, Restored, TwistedSMC, draw, estimate_noise, observe
from sfumato.restoration.diagnosis import diagnose, strangeness
from sfumato.restoration.tasks import METHODS, TASKS, kernel_of, method_of, operator_of
from sfumato.runtime import keep_memory
from sfumato.schedule import Level


def restore(
    model: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME; it need never have seen damaged data.")],
    damaged: Annotated[Path, typer.Argument(metavar="IN", help="The damaged picture, or an .npy of y; a clean one is never asked for.")],
    task: Annotated[str, typer.Option(help=f"What damaged it: {', '.join(TASKS)}.")],
    out: Annotated[Path, typer.Option(help="A folder for 000.png …, mean.png, std.png and report.json (draws.npz where x is no picture).")],
    mask: Annotated[Path | None, typer.Option(help="inpaint: a picture or .npy of the model's size; what is not black is seen.")] = None,
    factor: Annotated[int | None, typer.Option(help="upscale: how many times smaller IN is.")] = None,
    downsampling: Annotated[str, typer.Option(help="upscale: how it was made smaller, average or bicubic.")] = "average",
    kernel: Annotated[str | None, typer.Option(help="deblur: gaussian:SIGMA, box:SIZE, or a file (.npy or a picture).")] = None,
    padding: Annotated[str, typer.Option(help="deblur: what lay beyond the border: reflect, replicate, zeros or circular.")] = "reflect",
    matrix: Annotated[Path | None, typer.Option(help="matrix: A as .npy [m, d]; IN is y = A x as .npy.")] = None,
    noise: Annotated[str, typer.Option(help="Standard deviation of the noise in IN (pictures lie in [-1, 1]), or estimate.")] = "0.05",
    draws: Annotated[int, typer.Option(help="How many restorations.")] = 16,
    method: Annotated[str | None, typer.Option(help=f"{', '.join(METHODS)}; moment-matching by default.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Particles: exact as they grow many; also log p(y).")] = False,
    particles: Annotated[int, typer.Option(help="How many, with --exact.")] = 1024,
    steps: Annotated[int | None, typer.Option(help="Evaluations of the model a draw; the method's own by default, 40 of most.")] = None,
    seed: Annotated[int, typer.Option(help="Draw i depends on (model, IN, seed, i) alone; particles also on their number.")] = 0,
    labels: Annotated[str | None, typer.Option(help="A class that the picture is of, by number or name; none by default.")] = None,
    ema: Annotated[float | None, typer.Option(help="Which average of the weights, by its width; the recipe's first by default.")] = None,
    batch: Annotated[int, typer.Option(help="How many draws at a time; does not change them.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw what a damaged picture may have been, by a model of such pictures: draws of the posterior, their mean and their spread.

    Example: sfumato restore zoo:fashion damaged.png --task inpaint --mask mask.png --out restored
    """
    if exact and method not in (None, "twisted-smc"):
        raise ValueError(f"--exact takes particles, which is the method twisted-smc, got --method {method}; leave one of them out.")
    for name, number, least in (("--draws", draws, 1), ("--batch", batch, 1), ("--seed", seed, 0), ("--particles", particles, 2)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    by_particles = exact or method == "twisted-smc"
    chosen = TwistedSMC(particles=particles, batch=batch) if by_particles else method_of(method or "moment-matching")
    asked = _noise(noise)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise ValueError(f"{out} is there already; name another folder, or add --force to write into it.")
    run = load(model, ema=ema)
    if not run.sampler.predicts_data:
        raise ValueError(f"{model} denoises latents, of which no operator on the data is linear; take a model of the data themselves.")
    predict, shape = run.predictor, run.spec.sizes
    operator = operator_of(
        task,
        shape,
        mask=None if mask is None else _plane(mask, shape),
        factor=factor,
        downsampling=downsampling,
        kernel=None if kernel is None else _kernel(kernel),
        padding=padding,
        matrix=None if matrix is None else torch.from_numpy(_array(matrix)),
    )
    operator, y = _read(run, damaged, task, operator)
    cond = _condition(run, labels)
    keep_memory()
    y = y.to(run.device)
    levels = chosen.levels() if steps is None else chosen.levels(steps)
    unknown = observe(y, operator, 1.0 if asked is None else asked, shape=shape)  # refuses before the work begins
    started = time.perf_counter()
    if asked is None:
        asked = float(estimate_noise(predict, unknown, method=MomentMatching(), cond=cond, generator=seeded(seed, 2, 0)))
        typer.echo(f"The noise of {damaged} is about {asked:.3g}.")
    at_once = draws if by_particles else batch
    restored = _draws(
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
            "steps": len(levels) - 1, "seed": seed, "labels": labels, "mask": _text(mask), "factor": factor,
            "downsampling": downsampling if factor else None, "kernel": kernel, "padding": padding if kernel else None,
            "matrix": _text(matrix),
        },
        "noise_std": float(restored.noise_std[0]),
        "chi_squared": {"mean": _number(restored.chi_squared.mean()), "expected_spread": math.sqrt(2 / linear.m),
                        "draws": [_number(each) for each in restored.chi_squared[:, 0]]},
        "strangeness": odd,
        "seconds": seconds,
        "findings": findings,
        "version": 1,
    }  # fmt: skip
    if restored.ess is not None and restored.log_evidence is not None:
        report |= {"effective_particles": [float(size) for size in restored.ess[0]], "log_evidence": float(restored.log_evidence[0])}
    _write(run, out, restored.x[:, 0], report)
    _say(out, restored, findings)


def _draws(
    predict: Predictor,
    y: Tensor,
    operator: Operator,
    noise_std: float,
    *,
    levels: Sequence[Level],
    method: Method,
    count: int,
    batch: int,
    cond: CondLike | None,
    seed: int,
    shape: tuple[int, ...],
) -> Restored:
    """Draws, `batch` at a time; each has its own generator."""
    parts, steps = [], len(levels) - 1
    with reporter(Stage("restoring", -(-count // batch) * steps), unit="steps") as report:
        for first in range(0, count, batch):
            rows, done = range(first, min(first + batch, count)), len(parts) * steps
            told = lambda i, _, done=done: report(done + min(i + 1, steps))  # noqa: E731
            options: dict[str, Any] = {"levels": levels, "method": method, "cond": cond, "shape": shape, "on_step": told}
            parts.append(draw(predict, y, operator, noise_std, count=len(rows), generator=row_generators(seed, rows), **options))
    x, chi = torch.cat([part.x for part in parts]), torch.cat([part.chi_squared for part in parts])
    return replace(parts[0], x=x, chi_squared=chi)


def _noise(text: str) -> float | None:
    """A number; None where it is to be estimated."""
    if text == "estimate":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--noise is a number or estimate, got "{text}".') from None


def _condition(run: Model, labels: str | None) -> dict[str, Condition] | None:
    """No condition but the class that is asked for, of one row."""
    if labels is None:
        if missing := [name for name in run.spec.conditions if run.sampler.needs(name)]:
            raise ValueError(f"{run.name} was never trained without {missing[0]}, so it must be known; give --labels.")
        return None
    given = run.conditions([0], labels=[labels])
    run.sampler.check({}, given)
    return {name: condition.to(run.device) for name, condition in given.items()}


def _array(path: Path) -> np.ndarray:
    """A float array of an .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as an .npy of numbers: {' '.join(str(error).split())}.") from None
    if not isinstance(array, np.ndarray) or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"{path} must hold one array of numbers, as np.save writes it.")
    return array.astype(np.float64)


def _pixels(path: Path, channels: int) -> np.ndarray:
    """A picture [h, w, c] of bytes, with one or three channels."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that can be read; give a PNG or JPEG, or an .npy.") from None
    return pixels[:, :, None] if channels == 1 else pixels


def _plane(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A mask: an .npy, or a picture, of which above 0 is seen; one for all channels where it has none."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(_array(path) > 0)
    plane = _pixels(path, 1)[:, :, 0] > 0
    if plane.shape != tuple(shape[1:]):
        raise ValueError(
            f"the mask {path} is {plane.shape[0]} × {plane.shape[1]}, the model's pictures are {' × '.join(map(str, shape[1:]))}."
        )
    return torch.from_numpy(plane)


def _kernel(text: str) -> Tensor:
    path = Path(text)
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(_array(path))
    if path.is_file():
        return torch.from_numpy(_pixels(path, 1)[:, :, 0].astype(np.float64))
    return kernel_of(text)


def _read(run: Model, path: Path, task: str, operator: Operator) -> tuple[Operator, Tensor]:
    """y [1, *y] in the units of x0, with the operator that then goes with it."""
    shape, codec = run.spec.sizes, run.spec.codec
    wanted = operator.output(shape)
    if path.suffix.lower() == ".npy":
        y = torch.from_numpy(_array(path)).float()
        if task == "matrix" and not run.spec.is_image:  # A and y speak of the data's own values
            unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
            zero = _values(run, torch.zeros(1, *shape, dtype=torch.float64))
            scale = (_values(run, unit) - zero).sum(0)
            assert isinstance(operator, Matrix)
            return Matrix(operator.a * scale, shape=shape), (y - (operator.a @ zero[0]).float())[None]
        if not run.spec.is_image and tuple(y.shape) == shape:
            return operator, codec.encode(y.numpy()[None].astype(np.float32))
        return operator, y[None]
    if not run.spec.is_image or task == "matrix":
        what = "y of the task matrix" if task == "matrix" else f"the data of {run.name}"
        raise ValueError(f"{what} is no picture; give IN as .npy, got {path}.")
    pixels = _pixels(path, 1 if task == "colourise" else shape[0])
    expected = shape if task == "inpaint" else wanted
    if pixels.shape[:2] != tuple(expected[1:]):
        sizes = f"{pixels.shape[0]} × {pixels.shape[1]}"
        raise ValueError(
            f"{path} is {sizes} pixels; for the task {task} and pictures of {shape[1]} × {shape[2]} of {run.name} it must be "
            f"{expected[1]} × {expected[2]}."
        )
    return operator, codec.encode(pixels[None])


def _values(run: Model, x0: Tensor) -> Tensor:
    """The data's values of x0, flat, in float64."""
    return torch.from_numpy(run.spec.codec.decode(x0).astype(np.float64)).flatten(1)


def _write(run: Model, out: Path, x: Tensor, report: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("[0-9][0-9][0-9].png"):
        old.unlink()
    mean, std = x.mean(0), x.std(0, correction=0)
    if run.spec.is_image:
        values, centre = run.spec.codec.decode(x), run.spec.codec.decode(mean[None])[0]
        for i, value in enumerate(values):
            write_png(out / f"{i:03d}.png", value)
        write_png(out / "mean.png", centre)
        white = float(std.max()) or 1.0
        grey = (255 * std / white).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        write_png(out / "std.png", np.moveaxis(grey, 0, -1))
        report["std_png_white"] = white
    else:
        unit = run.spec.codec.decode(mean[None] + std[None]).astype(np.float64) - run.spec.codec.decode(mean[None]).astype(np.float64)
        np.savez(out / "draws.npz", arr_0=run.spec.codec.decode(x), mean=run.spec.codec.decode(mean[None])[0], std=unit[0])
    (out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))


def _say(out: Path, restored: Restored, findings: list[str]) -> None:
    chi = float(restored.chi_squared.mean())
    typer.echo(f"Wrote {out}." + ("" if math.isnan(chi) else f" Residuals: {chi:.2f} of the noise's variance (1 is right)."))
    if restored.ess is not None and restored.log_evidence is not None:
        least, evidence = float(restored.ess.min()), float(restored.log_evidence[0])
        typer.echo(f"Effective particles: {least:.0f} at the worst level. log p(y) = {evidence:.4g} nats.")
    for finding in findings:
        typer.echo(f"- {finding}")


def _number(value: Tensor) -> float | None:
    return None if math.isnan(float(value)) else float(value)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
