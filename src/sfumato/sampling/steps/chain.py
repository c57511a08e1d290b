"""Methods with one prediction for each step: the reverse chains of DDPM and DDIM, and Euler's method on the reverse SDE."""

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

    The variance is β̃ ("small"), β ("large"), or interpolated in its logarithm as the model has learned it ("learned": Nichol &
    Dhariwal 2021, eq. 15, arXiv:2102.09672). A step to a level without noise returns the mean.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        """Checks the variance."""
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f'variance must be "small", "large" or "learned", got "{self.variance}".')

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One ancestral step."""
        model = reverse(predict(x, t), x, t, s, variance=self.variance)
        is_random = torch.compiler.is_compiling() or bool(s.sigma.any())  # without noise, a draw is the mean
        return (model.sample(generator) if is_random else model.mean), None


@dataclass(frozen=True)
class DDIM:
    """x_s = alpha_s x0 + sqrt(sigma_s² - v) eps + sqrt(v) z with v = eta² β̃. Song et al. (2021), eqs. 12 and 16, arXiv:2010.02502.

    eta = 0 follows the probability-flow ODE to first order; eta = 1 is `Ancestral("small")`.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Checks eta."""
        refuse_eta(self.eta)

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
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE, in half log-SNR λ and for u = x / hypot(alpha, sigma), so it is the same under every scaling.

        du = -sigma (alpha v + eps) dλ + sqrt(2) sigma dW,   alpha² + sigma² = 1

    The first part is the probability flow, the other two are Langevin dynamics, which keep the law of x_t. The noise does not depend on u,
    so strong and weak order are both 1. Unstable for steps of 2 in λ (4 nats) or more: `Ancestral` solves the linear part exactly. A step
    from a level without signal, or to one without noise, is infinite in λ and uses Ancestral's step.

    Reference: Song et al. (2021), eq. 6 and appendix D, arXiv:2011.13456.
    """

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One Euler-Maruyama step."""
        h = (s.log_snr - t.log_snr) / 2
        if not bool(h.isfinite().all()):
            return Ancestral()(predict, x, t, s, None, generator)
        p, scale, scale_s = predict(x, t), torch.hypot(t.alpha, t.sigma), torch.hypot(s.alpha, s.sigma)
        sigma = t.sigma / scale
        drift = -sigma * (t.alpha / scale * p.v(t) + p.eps)
        return scale_s * (x / scale + h * drift + (2 * h).sqrt() * sigma * normal_like(x, generator)), None


def refuse_eta(eta: float) -> None:
    """Checks eta."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1] (0 = deterministic, 1 = ancestral), got {eta}.")
