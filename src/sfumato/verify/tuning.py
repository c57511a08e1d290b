"""Ledger rows on fewer evaluations: the bound as a sum over steps, its shortest chain, levels fitted to the flow."""

from itertools import combinations

import torch

from sfumato.likelihood import term_bits
from sfumato.noise import normal_like
from sfumato.oracle import GaussianMixture
from sfumato.sampling import Step, grid, sample
from sfumato.sampling.spacing import log_snr
from sfumato.sampling.steps import Adams, Heun, Multistep, UniPC
from sfumato.schedule import Cosine, Discrete, flow_scales
from sfumato.tuning import bound_costs, tune
from sfumato.verify.ledger import order, row, worst

_CHAIN = Discrete.linear(10, beta_max=0.008)


def _mixture() -> GaussianMixture:
    means = torch.tensor([[0.5, 0.0], [-0.4, 0.3], [0.0, -0.6]])
    return GaussianMixture(torch.tensor([0.3, 0.5, 0.2]), means, torch.tensor([0.03, 0.01, 0.02])[:, None, None] * torch.eye(2))


def _data() -> torch.Tensor:
    return (torch.randn(50, 2) * 4).round().clamp(-8, 8) / 8


@row(
    "adams-order",
    "du/dφ = v, u = x / hypot(alpha, sigma), tan φ = sigma/alpha; v of two levels, and of a third to correct",
    notes="beyond the notes",
    function="sf.steps.Adams",
    tolerance=0.2,
)
def _adams() -> float:
    """Shortfall of order 3 (predictor 2, corrected) under flow scales, against UniPC-3 with 400 steps; v: Salimans & Ho (2022), app. D."""
    model, schedule, noise = _mixture(), Cosine(scales=flow_scales, log_snr_max=4.0, log_snr_min=-6.0), torch.randn(30, 2)

    def walk(step: Step, steps: int) -> torch.Tensor:
        levels = grid(schedule, steps, spacing=log_snr)
        return sample(model, levels[0].sigma * noise, levels, step)

    truth = walk(UniPC(3), 400)
    return 3 - order([float((walk(Adams(2), n) - truth).norm(dim=1).median()) for n in (64, 128)])


@row(
    "bound-step-cost",
    "KL(t → s) = ½ (r (SNR_s - SNR_t) E(x0_hat - x0)² + r - 1 - log r), r = 1 or sigma_s²/sigma_t²",
    notes="beyond the notes",
    function="sfumato.tuning.bound_costs",
    tolerance=1e-9,
)
def _step_cost() -> float:
    """Both variances, every pair of levels: the KL of the two Gaussians. Watson et al. (2021), section 3, arXiv:2106.03802."""
    x0, model, errors = _data(), _mixture(), []
    levels = [_CHAIN.level(k / 10) for k in range(11)]
    for variance in ("small", "large"):
        table = bound_costs(model, _CHAIN, x0, variance=variance, bin_width=1 / 8, generator=torch.Generator().manual_seed(1)).steps
        generator = torch.Generator().manual_seed(1)
        for t in range(1, 11):
            x_t = levels[t].alpha * x0 + levels[t].sigma * normal_like(x0, generator)
            p = model(x_t, levels[t])
            errors += [
                worst(table[t, s], term_bits(p, x0, x_t, levels[t], levels[s], variance=variance).mean().double()) for s in range(1, t)
            ]
    return max(errors)


@row(
    "bound-shortest-chain",
    "min over 0 < k_1 < … < T of Σ L(k_{i+1} → k_i), by D_n(s) = min_t D_{n-1}(t) + L(t → s)",
    notes="beyond the notes",
    function="sfumato.tuning.BoundCosts.shortest",
    tolerance=1e-12,
)
def _shortest() -> float:
    """Every number of steps: the smallest bound among all subsets of the chain's levels. Watson et al. (2021), alg. 1, arXiv:2106.03802."""
    costs = bound_costs(_mixture(), _CHAIN, _data(), bin_width=1 / 8, ends=4)

    def least(steps: int) -> float:
        inner = combinations(range(1, 10), steps - 1)
        return min(costs.total([10, *reversed(path), 0]) for path in inner if path[0] <= 4)

    return max(worst(costs.total(costs.shortest(steps)), least(steps)) for steps in range(2, 11))


@row(
    "tuned-levels",
    "levels = argmin E log ‖x_walk - x_flow‖², by damped Gauss-Newton",
    notes="beyond the notes",
    function="sfumato.tuning.tune",
    tolerance=0.5,
)
def _tuned() -> float:
    """5 steps on the linear chain, unseen noise: endpoint error as a share of the default's, against Heun's rule with 150 steps."""
    model, chain = (
        GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[1.0, 0.5], [-1.0, 0.0]]), 0.02 * torch.eye(2).expand(2, 2, 2)),
        Discrete.linear(1000),
    )
    tuned = tune(model, chain, torch.randn(36, 2), steps=5, methods=(UniPC(2),), rounds=6, reference=48)
    low, high = (float(chain.level(t).log_snr) for t in (1.0, 1 / 1000))
    fine = [chain.level(t) for t in chain.time(torch.linspace(low, high, 151, dtype=torch.float64))]
    x = chain.level(1.0).sigma * torch.randn(100, 2)
    truth = sample(model, x, [chain.level(1.0), *fine[1:], chain.level(0.0)], Heun())
    error = lambda levels, step: float((sample(model, x, levels, step) - truth).norm(dim=1).median())  # noqa: E731
    return error(tuned.levels, tuned.step) / error(grid(chain, 5), Multistep())
