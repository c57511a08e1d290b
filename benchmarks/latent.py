"""A table of bits/dim for the whole family: VAE, hierarchical VAEs, latent diffusion, diffusion, variational diffusion.

All are bounds on -log2 P(x) / d for trained runs on the same images of bytes, by level, with standard errors of the mean over the images.
VAEs and ladders: the evidence lower bound, and the importance-weighted bound of K draws. Diffusion models, variational or not: the
continuous-time bound (T → ∞) under their own schedule (not cleaner than the data's grid requires), and that of T steps. A model with labels
is measured without them (the others have none), and with them in its own column. The page also has reconstructions, samples of each model,
and the log-SNRs at which the diffusion models' bits are.

Run: python benchmarks/latent.py VAE=runs/vae-fashion "HVAE 2"=runs/hvae2-fashion … --data '{kind: fashion, train: false}' \
         --count 500 --out docs/latent
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from torch import Tensor

import sfumato as sf
from sfumato import latent
from sfumato.data.options import data_union
from sfumato.kernels.build import compiled
from sfumato.kernels.choice import use
from sfumato.noise import normal_like, seeded
from sfumato.pictures import sheet
from sfumato.runtime import keep_memory
from sfumato.schedule import Schedule
from sfumato.tasks.options import CurveSchedule

BATCH = 50
LEVELS = 49  # of the curve over log-SNR
VAES = ("vae", "ladder")


@dataclass(frozen=True)
class Row:
    """The measurements of a run: named parts in bits/dim, with the values of all images."""

    total: Tensor
    parts: dict[str, Tensor]
    tighter: dict[str, Tensor]  # other bounds of the same model

    @classmethod
    def joined(cls, rows: list["Row"]) -> "Row":
        merge = lambda name: {key: torch.cat([getattr(row, name)[key] for row in rows]) for key in getattr(rows[0], name)}  # noqa: E731
        return cls(torch.cat([row.total for row in rows]), merge("parts"), merge("tighter"))


def measure(run: sf.Model, x: Tensor, labels: Tensor | None, first: int, *, draws: int, steps: int, values: int) -> Row:
    """The bounds of one batch; its noise depends on (first) only."""
    if run.recipe.what in VAES:
        bound = latent.bound(run.network, x, draws=4, generator=seeded(0, first))
        levels = [bound.prior, *bound.steps.unbind(1)]
        parts = {f"level {len(levels) - i}": level for i, level in enumerate(levels)} | {"decoder": bound.decoder}
        return Row(bound.total, parts, {f"K = {draws}": latent.importance_bits(run.network, x, draws=draws, generator=seeded(1, first))})
    if run.recipe.what == "latent-diffusion":
        bound = run.sampler.bound(x, None, draws=16, values=values, seed=first)
        return Row(bound.total, {"latent": bound.latent, "decoder": bound.reconstruction}, {})
    width, schedule = 2 / (values - 1), schedule_of(run, values)

    def continuous(cond: dict[str, Tensor] | None, steps: int | None = None) -> sf.likelihood.Bound:
        return latent.vdm.bound(
            run.predictor, x, schedule, cond, steps=steps, draws=16, bin_width=width, generator=seeded(0, first), times=seeded(1, first)
        )

    endless, chain = continuous(None), continuous(None, steps)
    parts = {"prior": endless.prior, "diffusion": endless.steps @ endless.weights, "decoder": endless.decoder}
    given = {} if labels is None or not run.spec.classes else {"given its label": continuous({"labels": labels}).total}
    return Row(endless.total, parts, {f"T = {steps}": chain.total} | given)


def schedule_of(run: sf.Model, values: int) -> Schedule:
    """The run's schedule; if it starts cleaner, a fixed curve from where sigma is a sixth of the grid spacing: there x is known exactly."""
    options, enough = getattr(run.recipe, "schedule", None), 2 * math.log(6 * (values - 1) / 2)
    if not isinstance(options, CurveSchedule) or options.log_snr_max <= enough:
        return run.schedule
    return options.model_copy(update={"log_snr_max": enough}).build()


@torch.no_grad()
def bits_by_level(run: sf.Model, x: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Log-SNRs [n], and ½ |eps_hat - eps|² / d / log 2 of each image there [n, b]: the area below is the bound's diffusion part."""
    noisy, clean = (float(schedule.level(t).log_snr) for t in (1.0, 0.0))
    places = torch.linspace(noisy, clean, LEVELS, dtype=torch.float64)

    def at(i: int) -> Tensor:
        level = schedule.level(schedule.time(places[i])).to(x)
        eps = normal_like(x, seeded(2, i))
        return (run.predictor(level.alpha * x + level.sigma * eps, level).eps - eps).square().flatten(1).mean(1) / (2 * math.log(2))

    return places, torch.stack([at(i) for i in range(LEVELS)])


def draw_levels(curves: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """The curves of `bits_by_level`, with two standard errors."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, (places, bits) in curves.items():
        mean, error = bits.mean(1), bits.std(1) / bits.shape[1] ** 0.5
        (line,) = axes.plot(places, mean, label=f"{name}: {torch.trapezoid(mean, places):.2f} bits/dim in all")
        axes.fill_between(places, mean - 2 * error, mean + 2 * error, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.set(xlabel="log-SNR (noise at the left, data at the right)", ylabel="bits/dim per nat of log-SNR")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def refuse_other(run: sf.Model, path: str, shape: tuple[int, ...], held_out: float, values: int) -> None:
    """Refuses a run whose figures could not be compared with the others'."""
    training = run.recipe.training
    if run.spec.shape != shape:
        raise SystemExit(f"{path} was trained on images {run.spec.shape}, but the data are {shape}.")
    if held_out and (training.held_out, training.seed) != (held_out, 0):
        raise SystemExit(f"{path} held out a share of {training.held_out} with seed {training.seed}, not {held_out} with seed 0.")
    if run.recipe.what in VAES:
        width = getattr(run.network.likelihood, "bin_width", None)
        if width is None or abs(width * (values - 1) - 2) > 1e-6:
            raise SystemExit(f"{path} has the likelihood {run.network.likelihood}, which is not a probability of {values} values.")
    elif run.recipe.what != "latent-diffusion" and float(run.schedule.level(0.0).sigma) == 0:
        raise SystemExit(f"{path} has a chain that starts without noise: its bound in continuous time is infinite.")


def speed_up(runs: Iterable[sf.Model]) -> None:
    """Makes runs compute as fast as training and the command line do: memory kept, compiled kernels if available."""
    keep_memory()
    for run in runs:
        use(run.network, is_on=compiled())


def figure(values: Tensor) -> str:
    """Mean ± standard error."""
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def described(folder: Path) -> tuple[str, str]:
    """Parameters and training, from the run's own reports (of both stages)."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("report.json")) + sorted(folder.glob("*/report.json"))]
    parameters = sum(report["parameters"] for report in reports)
    seconds, images = sum(report["seconds"] for report in reports), sum(report["images"] for report in reports)
    return f"{parameters:,}", f"{images:,} images, {seconds / 60:.0f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--data", required=True, help="the options of a recipe's data, as YAML")
    parser.add_argument("--held-out", type=float, default=0.0, help="measure on this share, which the trainings held out with seed 0")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--draws", type=int, default=64, help="K of the importance-weighted bounds")
    parser.add_argument("--steps", type=int, default=1000, help="T of the discrete bounds")
    parser.add_argument("--values", type=int, default=256, help="number of values of the data")
    parser.add_argument("--out", type=Path, required=True, help="folder of latent.md and the pictures")
    options = parser.parse_args()
    dataset = TypeAdapter(data_union()).validate_python(yaml.safe_load(options.data)).load()
    if options.held_out:
        dataset = dataset.split(options.held_out, 0)[1]
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[: options.count])
    batch = dataset.batch(rows)
    x, labels = batch.x, batch.cond["labels"].value if "labels" in batch.cond else None
    runs = {name: (path, sf.load(path)) for name, _, path in (argument.partition("=") for argument in options.runs)}
    for path, run in runs.values():
        refuse_other(run, path, dataset.shape, options.held_out, options.values)
    speed_up(run for _, run in runs.values())
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ["| model | parameters | trained on | bits/dim | its parts | other bounds |", "| --- | ---: | ---: | ---: | --- | --- |"]
    some, pictures = dataset.values[rows[:16]], [dataset.values[rows[:16]]]
    names, curves = ["data"], {}
    for name, (path, run) in runs.items():
        started = time.perf_counter()
        measured = Row.joined(
            [
                measure(
                    run,
                    x[first : first + BATCH],
                    None if labels is None else labels[first : first + BATCH],
                    first,
                    draws=options.draws,
                    steps=options.steps,
                    values=options.values,
                )
                for first in range(0, len(x), BATCH)
            ]
        )
        parameters, trained = described(Path(path))
        parts = ", ".join(f"{key} {value.mean():.3f}" for key, value in measured.parts.items())
        others = ", ".join(f"{key}: {figure(value)}" for key, value in measured.tighter.items())
        lines.append(f"| {name} | {parameters} | {trained} | {figure(measured.total)} | {parts} | {others or '–'} |")
        print(lines[-1], f"({time.perf_counter() - started:.0f} s)", flush=True)
        stem = name.lower().replace(" ", "-")
        sheet(run.sample(64).values, columns=8).save(options.out / f"samples-{stem}.png")
        if run.recipe.what in VAES or run.recipe.what == "latent-diffusion":
            pictures.append(run.reconstruct(some))
            names.append(name if run.recipe.what in VAES else f"{name} (autoencoder)")
        else:
            curves[name] = bits_by_level(run, x[: 2 * BATCH], schedule_of(run, options.values))
    sheet(np.concatenate(pictures), columns=16).save(options.out / "reconstructions.png")
    text = [
        "# The latent family, in bits/dim",
        "",
        f"{len(x)} {'held-out ' if options.held_out else ''}images of {options.data}, {time.strftime('%Y-%m-%d')}; lower is better;",
        "± is one standard error of the mean.",
        "Written by `benchmarks/latent.py`, which says how each is measured.",
        "",
        *lines,
        "",
        f"Reconstructions, from above: {', '.join(names)}.",
        "",
        "![reconstructions](reconstructions.png)",
        "",
    ]
    if curves:
        draw_levels(curves, options.out / "levels.png")
        text += [f"Where the diffusion part of the bound comes from, {min(len(x), 2 * BATCH)} images:", "", "![levels](levels.png)", ""]
    for name in runs:
        text += [f"Samples of {name}:", "", f"![samples](samples-{name.lower().replace(' ', '-')}.png)", ""]
    (options.out / "latent.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
