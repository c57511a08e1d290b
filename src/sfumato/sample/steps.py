"""The methods that move x from a level t to a cleaner level s; each is one frozen dataclass.

All are written in (alpha, sigma) and log-SNR, so they hold under every scaling, and a last level with sigma = 0 needs no care: there the
exponential integrators return x0, and the ODE steps fall back to first order, as eps has no meaning without noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.process import posterior_log_variance, reverse
from sfumato.schedule import Level


@dataclass(frozen=True)
class Ancestral:
    """x_s ~ N(μ̃(x_t, x0_hat), variance): the reverse chain. Ho et al. (2020), alg. 2, arXiv:2006.11239.

    The variance is β̃ ("small"), β ("large"), or between the two in its logarithm where the model has learned it ("learned": Nichol &
    Dhariwal 2021, eq. 15, arXiv:2102.09672). A step to a level without noise returns the mean.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        """Refuses an unknown variance."""
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f'variance must be "small", "large" or "learned", got "{self.variance}".')

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One ancestral step."""
        model = reverse(predict(x, t), x, t, s, variance=self.variance)
        return (model.sample(generator) if bool(s.sigma.any()) else model.mean), None


@dataclass(frozen=True)
class DDIM:
    """x_s = alpha_s x0 + sqrt(sigma_s² - v) eps + sqrt(v) z with v = eta² β̃. Song et al. (2021), eqs. 12 and 16, arXiv:2010.02502.

    eta = 0 follows the probability-flow ODE to first order; eta = 1 is `Ancestral("small")`.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Refuses an eta outside [0, 1]."""
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1] (0 = deterministic, 1 = ancestral), got {self.eta}.")

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One DDIM step."""
        p = predict(x, t)
        if self.eta == 0:
            return s.alpha * p.x0 + s.sigma * p.eps, None
        variance = self.eta**2 * posterior_log_variance(t, s).exp()
        x_s = s.alpha * p.x0 + (s.sigma.square() - variance).clamp(min=0).sqrt() * p.eps
        return x_s + variance.sqrt() * normal_like(x, generator), None


@dataclass(frozen=True)
class Heun:
    """The trapezoidal rule on d(x/alpha)/d(sigma/alpha) = eps; two evaluations a step. Karras et al. (2022), alg. 1, arXiv:2206.00364."""

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One Heun step; Euler's (which is DDIM's) where s has no noise or t no signal."""
        if not bool(t.alpha.any()):
            return DDIM()(predict, x, t, s, None, generator)
        eps = predict(x, t).eps
        start, length = x / t.alpha, s.sigma / s.alpha - t.sigma / t.alpha
        euler = s.alpha * (start + length * eps)
        if not bool(s.sigma.any()):
            return euler, None
        return s.alpha * (start + length * (eps + predict(euler, s).eps) / 2), None


_FARTHEST = 4.0  # how many times the last step's length a prediction is extrapolated at most


@dataclass(frozen=True)
class Multistep:
    """DPM-Solver++(2M): x0 extrapolated in log-SNR from two steps. Lu et al. (2022), alg. 2, arXiv:2211.01095.

    order=1 is DDIM. The first step is of first order, and so is one more than four times as long as the step before: there a line through
    two predictions is no longer a forecast. A step to a level without noise is always such a one, and so is the last of a uniform grid.
    """

    order: int = 2

    def __post_init__(self) -> None:
        """Refuses orders that are not there."""
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order}.")

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[Tensor, Tensor] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[Tensor, Tensor]]:
        """One multistep update; remembers x0 and the step's length in half log-SNR."""
        h = (s.log_snr - t.log_snr) / 2
        x0 = predict(x, t).x0
        ahead = x0
        if self.order == 2 and memory is not None and bool((h <= _FARTHEST * memory[1]).all()):
            previous, previous_h = memory
            ahead = x0 + h / (2 * previous_h) * (x0 - previous)
        return s.sigma / t.sigma * x - s.alpha * torch.expm1(-h) * ahead, (x0, h)
