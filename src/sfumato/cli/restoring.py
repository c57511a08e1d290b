"""What `sfumato restore` reads, draws and writes."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfumato.cli.progress import Stage, reporter
from sfumato.condition import Condition, CondLike
from sfumato.data.writing import write_png
from sfumato.denoiser import Predictor
from sfumato.model import Model
from sfumato.noise import row_generators
from sfumato.restoration import Matrix, Method, Operator, Restored, draw
from sfumato.restoration.tasks import kernel_of
from sfumato.schedule import Level


def draw_in_parts(
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
            on_step = lambda i, _, done=done: report(done + min(i + 1, steps))  # noqa: E731
            options: dict[str, Any] = {"levels": levels, "method": method, "cond": cond, "shape": shape, "on_step": on_step}
            parts.append(draw(predict, y, operator, noise_std, count=len(rows), generator=row_generators(seed, rows), **options))
    x, chi = torch.cat([part.x for part in parts]), torch.cat([part.chi_squared for part in parts])
    return replace(parts[0], x=x, chi_squared=chi)


def noise_of(text: str) -> float | None:
    """A number; None for "estimate"."""
    if text == "estimate":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--noise must be a number or estimate, got "{text}".') from None


def condition_of(run: Model, labels: str | None) -> dict[str, Condition] | None:
    """No condition but the requested class, as one row."""
    if labels is None:
        if missing := [name for name in run.spec.conditions if run.sampler.needs(name)]:
            raise ValueError(f"{run.name} was never trained without {missing[0]}, so it needs one; give --labels.")
        return None
    given = run.conditions([0], labels=[labels])
    run.sampler.check({}, given)
    return {name: condition.to(run.device) for name, condition in given.items()}


def array(path: Path) -> np.ndarray:
    """A float array of an .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as an .npy of numbers: {' '.join(str(error).split())}.") from None
    if not isinstance(array, np.ndarray) or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"{path} must hold one array of numbers, as np.save writes it.")
    return array.astype(np.float64)


def _pixels(path: Path, channels: int) -> np.ndarray:
    """An image [h, w, c] of bytes, with one or three channels."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a readable image; give a PNG or JPEG, or an .npy.") from None
    return pixels[:, :, None] if channels == 1 else pixels


def plane(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A mask, from an .npy or an image: values above 0 are seen; a mask without channels applies to all of them."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(array(path) > 0)
    plane = _pixels(path, 1)[:, :, 0] > 0
    if plane.shape != tuple(shape[1:]):
        raise ValueError(
            f"the mask {path} is {plane.shape[0]} × {plane.shape[1]}, the model's images are {' × '.join(map(str, shape[1:]))}."
        )
    return torch.from_numpy(plane)


def kernel(text: str) -> Tensor:
    """A blur kernel: an .npy, an image, or a name of `kernel_of`."""
    path = Path(text)
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(array(path))
    if path.is_file():
        return torch.from_numpy(_pixels(path, 1)[:, :, 0].astype(np.float64))
    return kernel_of(text)


def read(run: Model, path: Path, task: str, operator: Operator) -> tuple[Operator, Tensor]:
    """y [1, *y] in the units of x0, and the operator in the same units."""
    shape, codec = run.spec.sizes, run.spec.codec
    wanted = operator.output(shape)
    if path.suffix.lower() == ".npy":
        y = torch.from_numpy(array(path)).float()
        if task == "matrix" and not run.spec.is_image:  # A and y are in the data's own units
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
        raise ValueError(f"{what} is not an image; give IN as .npy, got {path}.")
    pixels = _pixels(path, 1 if task == "colourise" else shape[0])
    expected = shape if task == "inpaint" else wanted
    if pixels.shape[:2] != tuple(expected[1:]):
        sizes = f"{pixels.shape[0]} × {pixels.shape[1]}"
        raise ValueError(
            f"{path} is {sizes} pixels; for the task {task} and images of {shape[1]} × {shape[2]} of {run.name} it must be "
            f"{expected[1]} × {expected[2]}."
        )
    return operator, codec.encode(pixels[None])


def _values(run: Model, x0: Tensor) -> Tensor:
    """The data's values of x0, flat, in float64."""
    return torch.from_numpy(run.spec.codec.decode(x0).astype(np.float64)).flatten(1)


def write(run: Model, out: Path, x: Tensor, report: dict[str, Any]) -> None:
    """Writes the draws, their mean and spread, and the report."""
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


def print_summary(out: Path, restored: Restored, findings: list[str]) -> None:
    """Prints what was written and how well it fits."""
    chi = float(restored.chi_squared.mean())
    typer.echo(f"Wrote {out}." + ("" if math.isnan(chi) else f" Residuals: {chi:.2f} of the noise's variance (1 is right)."))
    if restored.ess is not None and restored.log_evidence is not None:
        least, evidence = float(restored.ess.min()), float(restored.log_evidence[0])
        typer.echo(f"Effective particles: {least:.0f} at the worst level. log p(y) = {evidence:.4g} nats.")
    for finding in findings:
        typer.echo(f"- {finding}")


def number(value: Tensor) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(float(value)) else float(value)


def text(path: Path | None) -> str | None:
    """A path for JSON."""
    return None if path is None else str(path)
