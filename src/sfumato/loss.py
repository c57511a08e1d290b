"""Training losses: noise comes in, one number an example goes out.

At a given x_t the errors of x0, eps and v are one error seen through different scales: with r = hypot(alpha, sigma),

    v_hat - v = (r/alpha) (eps_hat - eps) = -(r/sigma) (x0_hat - x0),

so every published loss is a weight on the squared error of v, which is the one that is finite at both ends of every schedule. A `Weight`
is that factor as a function of the level; the weights here are named after the loss they give.

The times at which examples are noised come from a `TimeSampler`: (n, generator) -> t [n] in [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Cond, Predictor
from sfumato.prediction import Prediction
from sfumato.schedule import Discrete, Level, Schedule

Weight = Callable[[Level], Tensor]
TimeSampler = Callable[[int, torch.Generator], Tensor]


def eps_weight(level: Level) -> Tensor:
    """alpha²/(alpha² + sigma²): the mean square of eps_hat - eps. Ho et al. (2020), eq. 14, arXiv:2006.11239."""
    return level.log_snr.sigmoid()


def x0_weight(level: Level) -> Tensor:
    """sigma²/(alpha² + sigma²): the mean square of x0_hat - x0."""
    return (-level.log_snr).sigmoid()


def v_weight(level: Level) -> Tensor:
    """1: the mean square of v_hat - v. Salimans & Ho (2022), section 4, arXiv:2202.00512."""
    return torch.ones_like(level.alpha)


def min_snr_weight(level: Level, *, gamma: float = 5.0) -> Tensor:
    """The mean square of x0_hat - x0 times min(SNR, gamma). Hang et al. (2023), eq. 4, arXiv:2303.09556."""
    return (-level.log_snr).sigmoid() * level.log_snr.exp().clamp(max=gamma)


def edm_weight(level: Level, *, data_std: float = 0.5) -> Tensor:
    """The mean square of EDM's network output: (σ² + s²)/(σ s)² on x0, σ = sigma/alpha. Karras et al. (2022), eq. 8, arXiv:2206.00364."""
    return eps_weight(level) + x0_weight(level) / data_std**2


def sigmoid_weight(level: Level, *, bias: float = 1.0) -> Tensor:
    """sigmoid(bias - log_snr) on the square of eps_hat - eps. Hoogeboom et al. (2024), section 3.1, arXiv:2410.19324."""
    return level.log_snr.sigmoid() * (bias - level.log_snr).sigmoid()


def simple(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    level: Level,
    cond: Cond | None = None,
    *,
    weight: Weight = eps_weight,
) -> Float[Tensor, "b"]:
    """weight(level) · mean over x of (v_hat - v)², one value an example; the caller averages.

    With the default weight this is L_simple, the mean square of eps_hat - eps. Ho et al. (2020), eq. 14, arXiv:2006.11239.
    """
    truth = Prediction(x0, eps)
    error = predict(level.alpha * x0 + level.sigma * eps, level, cond).v(level) - truth.v(level)
    return (weight(level) * error.square()).flatten(1).mean(1)


@dataclass(frozen=True)
class Uniform:
    """t uniform: over (0, 1] on a continuous schedule, over the levels 1/T … 1 of a chain. Ho et al. (2020), alg. 1."""

    schedule: Schedule

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n independent times."""
        return _to_chain(torch.rand(n, generator=generator, dtype=torch.float64), self.schedule)


@dataclass(frozen=True)
class Stratified:
    """Uniform times spread evenly over a batch, so that its loss varies less. Kingma et al. (2021), appendix I.1, arXiv:2107.00630."""

    schedule: Schedule

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n times, one in each nth of [0, 1), in random order."""
        u = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
        return _to_chain(u[torch.randperm(n, generator=generator)], self.schedule)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma/alpha) normal, spread evenly over a batch; cut to the schedule's ends, or to a chain's levels.

    Karras et al. (2022), table 1, arXiv:2206.00364.
    """

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n times, their log-SNR normal with mean -2 mean and deviation 2 std."""
        u = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        log_ratio = self.mean + self.std * math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-12, 1 - 1e-12))
        t = self.schedule.time(-2 * log_ratio[torch.randperm(n, generator=generator)])
        return _nearest_level(t, self.schedule)


def _nearest_level(t: Tensor, schedule: Schedule) -> Tensor:
    """On a chain, the nearest of its levels 1 … T."""
    return (t * len(schedule)).round().clamp(min=1) / len(schedule) if isinstance(schedule, Discrete) else t


def _to_chain(u: Tensor, schedule: Schedule) -> Tensor:
    """u in [0, 1) to a time: 1 - u, or one of the levels 1 … T of a chain."""
    if isinstance(schedule, Discrete):
        return ((u * len(schedule)).floor() + 1) / len(schedule)
    return 1 - u
