"""Moment matching: x0 given x_t as a Gaussian with the predictor's own covariance, conditioned on y. The default method."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.restoration.moments import Covariance, Full, Krylov, Moments, posterior_draw
from sfumato.restoration.observed import Observed, default_levels, differentiable, ratio
from sfumato.restoration.walked import Walked
from sfumato.sampling.loop import Step
from sfumato.schedule import Level


@dataclass(frozen=True)
class MomentMatching(Walked):
    """Draws x0 from N(x0_hat, Cov[x0 | x_t]) given y, then x_s given x0 (and a share of x_t): exact for Gaussian data at any steps.

    Cov[x0 | x_t] is the predictor's own where it has one in closed form (`covariance_given`), and (sigma²/alpha) ∂x0_hat/∂x_t by products
    with vectors elsewhere. With fresh noise (renoise 1) each level is a step of Gibbs sampling between x0 and x_t given y, so that what the
    Gaussian got wrong at noisy levels is forgotten; renoise 0 is the posterior of DDPM, which keeps it.

    Args:
        renoise: how much of x_t is replaced by fresh noise: x_s = alpha_s (x0 + (1 - renoise) (b/a)² (x_t/alpha_t - x0) + …), with a and b
            the sigma/alpha of t and s.
        iterations: products with the Jacobian at most, for a draw and again for the gain.

    Raises:
        ValueError: renoise outside [0, 1], or iterations below 1.

    Reference: Boys et al. (2023), arXiv:2310.06721; Rozet et al. (2024), arXiv:2405.13712; fresh noise: Zhang et al. (2024),
    arXiv:2407.01521.
    """

    renoise: float = 1.0
    iterations: int = 5

    def __post_init__(self) -> None:
        """Refuses options out of range."""
        if not 0 <= self.renoise <= 1:
            raise ValueError(f"renoise must lie in [0, 1] (1 = fresh noise, 0 = DDPM's posterior), got {self.renoise}.")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}.")

    def levels(self, steps: int = 40) -> list[Level]:
        """`default_levels`."""
        return default_levels(steps)

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """Draws x0 given x_t and y, then x_s."""

        def step(
            predict: Predictor, x: Float[Tensor, "n *x"], t: Level, s: Level, memory: None, generator: Generator | None
        ) -> tuple[Float[Tensor, "n *x"], None]:
            a, b = ratio(t), ratio(s)
            x0, moments = matched(predict, x, t, observed, covariance, self.iterations)
            drawn = posterior_draw(moments, x0, generator).reshape(x.shape)
            if b == 0:
                return drawn, None
            kept = (1 - self.renoise) * (b / a) ** 2
            clean = drawn + kept * (x / t.alpha - drawn)
            return s.alpha * (clean + math.sqrt(b * b - kept * kept * a * a) * normal_like(x, generator)), None

        return step


def matched(
    predict: Predictor, x: Float[Tensor, "n *x"], t: Level, observed: Observed, covariance: Covariance | None, iterations: int
) -> tuple[Float[Tensor, "n d"], Moments]:
    """x0_hat, flat, and the moments of x0 given x_t."""
    if covariance is not None:
        return predict(x, t).x0.flatten(1), Full(covariance(x, t), observed)
    prediction, pull = differentiable(predict, x, t)
    scale = float(t.sigma) ** 2 / float(t.alpha)
    return prediction.x0.flatten(1), Krylov(lambda v: scale * pull(v).flatten(1), observed, iterations)
