"""Checks for a sampling step: its results on data whose flow and law are known in closed form.

In one dimension the probability flow keeps quantiles, so P(x_t <= x) is the same at both ends: a reference that needs no solver.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.oracle import GaussianMixture
from sfumato.process import marginal
from sfumato.sampling.loop import Step, sample
from sfumato.sampling.spacing import grid
from sfumato.schedule import Cosine, Discrete, Level, Scales, flow_scales, ve_scales, vp_scales
from sfumato.verify import ledger
from sfumato.verify.ledger import Check, Result, Row

SCALES: tuple[Scales, ...] = (vp_scales, ve_scales, flow_scales)
WEIGHTS, MEANS, VARIANCES = torch.tensor([[0.3, 0.5, 0.2], [2.0, -1.0, 0.2], [0.1, 0.2, 0.05]], dtype=torch.float64)


def line() -> GaussianMixture:
    """Three components on the real line."""
    return GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])


def quantile(x: Float[Tensor, "b 1"], level: Level) -> Float[Tensor, "b"]:
    """P(x_t <= x) of `line` at this level."""
    spread = (level.alpha**2 * VARIANCES + level.sigma**2).sqrt()
    return (WEIGHTS * torch.special.ndtr((x - level.alpha * MEANS) / spread)).sum(1)


def quantile_order(step: Step, scales: Scales, steps: int) -> float:
    """The order at which a run keeps quantiles, from `steps` to twice as many, starting where x0 is nearly constant."""
    schedule, errors = Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-16.0), []
    for n in (steps, 2 * steps):
        levels = grid(schedule, n)
        x = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None] * torch.hypot(levels[0].alpha, levels[0].sigma)
        end = sample(line(), x, levels, step)
        errors.append(float((quantile(end, levels[-1]) - quantile(x, levels[0])).abs().mean()))
    return ledger.order(errors)


def kolmogorov(step: Step, steps: int, *, count: int = 20_000) -> float:
    """Kolmogorov distance of a stochastic sampler's results from the exact law, in units of 1/sqrt(count); chance exceeds 1.95 in 0.1%."""
    generator, levels = torch.Generator().manual_seed(3), grid(Cosine(log_snr_max=8.0, log_snr_min=-8.0), steps)
    x0, _ = line().sample(count, generator)
    x = sample(line(), marginal(x0, levels[0]).sample(generator), levels, step, generator=generator)
    even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return float((quantile(x, levels[-1]).sort().values - even).abs().max()) * math.sqrt(count)


def strays(step: Step, schedule: Discrete) -> float:
    """The share of 64 runs over a chain to sigma = 0 that end where the data have almost no density; infinite if any is not finite."""
    generator = torch.Generator().manual_seed(0)
    levels = grid(schedule, min(30, len(schedule)))
    x = sample(line(), torch.randn(64, 1, generator=generator, dtype=torch.float64), levels, step, generator=generator)
    data = Level(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    return float((line().log_prob(x, data) < -12).double().mean()) if bool(x.isfinite().all()) else math.inf


def step(part: Step, *, order: int | None = None, steps: int | None = None) -> list[Result]:
    """Checks a sampling step of your own, as the ledger checks ours.

    A deterministic step must keep the quantiles of a mixture to its order under three scalings; a stochastic one must reach the mixture's
    law. Both must work at a first level without signal and at a last level without noise.

    Args:
        part: the step.
        order: its nominal convergence order in steps that are uniform in log-SNR; None for a stochastic step.
        steps: number of steps: of the coarser run for a measured order (64 by default), or of the run whose law is tested (200).

    Returns:
        One result for each check: `passed`, and the error in the unit that the row's `how` names.
    """
    name = repr(part)
    rows = [_law(part, name, steps or 200)] if order is None else [_order(part, name, order, scales, steps or 64) for scales in SCALES]
    without_signal = torch.cat([torch.linspace(1e-3, 0.1, 99, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    rows += [_ends(part, name, "clean-end", Discrete.linear(1000)), _ends(part, name, "end-without-signal", Discrete(without_signal))]
    return ledger.run(rows)


def _row(id: str, equation: str, name: str, check: Check, how: str, tolerance: float) -> Row:
    check.__doc__ = how
    return Row(id, equation, "a part of your own", name, check, tolerance)


def _order(part: Step, name: str, order: int, scales: Scales, steps: int) -> Row:
    how = "nominal minus measured order, on the quantiles of a mixture"
    which = scales.__name__.removesuffix("_scales").replace("_", "-")
    return _row(f"step-order-{which}", f"error = O(h^{order})", name, lambda: order - quantile_order(part, scales, steps), how, 0.2)


def _law(part: Step, name: str, steps: int) -> Row:
    how = "Kolmogorov distance of 20,000 samples from the mixture's law, in units of 1/sqrt(20,000)"
    return _row("step-law", "p(x_s) = ∫ p(x_s | x0) p(x0) dx0", name, lambda: kolmogorov(part, steps), how, 1.95)


def _ends(part: Step, name: str, which: str, chain: Discrete) -> Row:
    how = "the share of runs over a chain to sigma = 0 that end outside the data; infinite if any is not finite"
    return _row(f"step-{which}", "sigma_s = 0 at the end", name, lambda: strays(part, chain), how, 0.05)
