"""Bits/dim of `zoo:digits` from the variational bound, on chains of several lengths, and from the probability-flow ODE.

All are bounds on -log2 P(x0) / 64 for one model on the same digits, given their labels; their 17 grey levels are 2/16 apart in [-1, 1],
which is the bin width. Chains are uniform in log-SNR between the ends of the recipe's sampling schedule, and the flow joins the same ends:
the noise of the first level affects the result, so figures for different ends cannot be compared. For chains of more than 100 steps, 100
of the terms are drawn again for every 50 digits. Each figure is a mean over the digits with its standard error.

Run: python benchmarks/likelihood.py [--count 300] [--first 9] [--out benchmarks/likelihood.md]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sfumato as sf
from sfumato import data, likelihood
from sfumato.noise import seeded
from sfumato.schedule import Level

WIDTH = 2 / 16
LENGTHS = (10, 25, 50, 100, 250, 1000)
BATCH = 50


def digits(run: sf.Model, count: int) -> tuple[Tensor, Tensor]:
    """The first digits with their labels, on their exact grid: bytes round it by up to half of 1/255."""
    known = data.digits()
    x0 = run.spec.codec.encode(known.values[:count]).double()
    return (x0 / WIDTH).round() * WIDTH, torch.as_tensor(known.labels)[:count]


def chain(ends: sf.Schedule, steps: int) -> list[Level]:
    """Steps + 1 levels, uniform in log-SNR between the ends, then the data."""
    one = torch.ones((), dtype=torch.float64)
    return [*sf.grid(ends, steps - 1), Level(one, 0 * one)]


def measured(x0: Tensor, labels: Tensor, bits: Callable[[Tensor, dict[str, Tensor], int], Tensor]) -> tuple[float, float, float]:
    """Mean bits/dim over the digits, its standard error, and the seconds it took."""
    started = time.perf_counter()
    parts = [bits(x, {"labels": y}, i) for i, (x, y) in enumerate(zip(x0.split(BATCH), labels.split(BATCH), strict=True))]
    total = torch.cat(parts)
    return float(total.mean()), float(total.std() / len(total) ** 0.5), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=float, default=9.0, help="log-SNR of the first level, nats")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    run = sf.load("zoo:digits")
    x0, labels = digits(run, options.count)
    ends = sf.Cosine(log_snr_max=options.first, log_snr_min=-9.0)
    lines = ["| how | bits/dim | standard error | seconds |", "| --- | ---: | ---: | ---: |"]

    def enter(name: str, figures: tuple[float, float, float]) -> None:
        lines.append(f"| {name} | {figures[0]:.3f} | {figures[1]:.3f} | {figures[2]:.0f} |")
        print(lines[-1], flush=True)

    for steps in LENGTHS:
        levels, terms = chain(ends, steps), None if steps <= 100 else 100

        def bound(x: Tensor, cond: dict[str, Tensor], i: int, levels: list[Level] = levels, terms: int | None = terms) -> Tensor:
            return likelihood.vlb(
                run.predictor, x, levels, cond, bin_width=WIDTH, terms=terms, generator=seeded(0, i), choice=seeded(1, i)
            ).total

        enter(f"bound, {steps} steps", measured(x0, labels, bound))
    for dequantise in (likelihood.TruncatedNormal(), likelihood.Uniform()):

        def flow(x: Tensor, cond: dict[str, Tensor], i: int, dequantise: likelihood.Dequantisation = dequantise) -> Tensor:
            return likelihood.bits_per_dim(
                run.predictor,
                x,
                ends,
                cond,
                bin_width=WIDTH,
                dequantise=dequantise,
                divergence=likelihood.Hutchinson(1),
                tolerance=1e-3,
                generator=seeded(2, i),
            ).total

        enter(f"ODE, {type(dequantise).__name__}", measured(x0, labels, flow))
    if options.out is not None:
        text = (__doc__ or "").strip().replace("\n\nRun: ", "\n\nRepeat with: ")
        options.out.write_text(f"# Likelihood of zoo:digits\n\n{text}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
