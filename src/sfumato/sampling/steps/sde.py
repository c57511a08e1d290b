"""Solvers of the reverse SDE on a Brownian path for each row: more steps follow the same path more closely.

With N the path in units of sigma (`brownian`), everything but x0 is integrated exactly. The noise does not depend on x, so the strong order
is 1, and the weak order 2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.sampling.steps.brownian import BrownianPath, Path
from sfumato.sampling.steps.chain import refuse_eta
from sfumato.sampling.steps.history import half_log_snr
from sfumato.sampling.steps.renoised import refuse_negative
from sfumato.sampling.steps.singlestep import level_at, to_level
from sfumato.schedule import Level


@dataclass(frozen=True)
class SinglestepSDE:
    """DPM++ SDE: x0 predicted at the midpoint (in half log-SNR) is used for the whole step; two evaluations a step.

    eta is DDIM's: the noise of a step has variance eta² β̃, 1 is the reverse SDE and 0 DPM-Solver++(2S); in between, the weak order is 1.
    s_noise scales the noise; values other than 1 change the law. A step to a level without noise returns x0; one from a level without
    signal is of first order.

    Reference: sample_dpmpp_sde of k-diffusion, with r = 1/2.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        """Checks the options."""
        refuse_eta(self.eta)
        refuse_negative(s_noise=self.s_noise)

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: Path | None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Path]:
        """One step; remembers the path."""
        path = memory or BrownianPath.draw(x, generator)
        now, then = half_log_snr(t), half_log_snr(s)
        x0 = predict(x, t).x0
        if math.isfinite(now) and math.isfinite(then):
            middle = level_at((now + then) / 2)
            x0 = predict(self._move(x, t, middle, x0, path), middle).x0
        return self._move(x, t, s, x0, path), path

    def _move(self, x: Tensor, t: Level, s: Level, x0: Tensor, path: Path) -> Tensor:
        """x at s for constant x0."""
        now, then = half_log_snr(t), half_log_snr(s)
        kept = math.sqrt(1 + self.eta**2 * math.expm1(2 * (now - then)))  # DDIM's sqrt(1 - v / sigma_s²)
        x_s = to_level(x, t, s, x0, kept)
        if self.eta == 0 or then == math.inf:
            return x_s
        return torch.add(x_s, path.at(then) - math.exp(now - then) * path.at(now), alpha=float(s.sigma) * self.eta * self.s_noise)


@dataclass(frozen=True)
class MultistepSDE:
    """DPM++ 2M SDE with k-diffusion's eta: the rate of the Langevin dynamics added to the probability flow; one evaluation a step.

        d(x/sigma) = (1 + eta) exp(λ) x0 dλ - eta x/sigma dλ + sqrt(2 eta) dW

    The noise of a step has variance sigma_s² (1 - exp(-2 eta h)). eta is 0 or more: 0 is the probability flow, 1 the reverse SDE (that of
    `Multistep(2, 1)`, on a path); larger values reduce errors of earlier steps faster. s_noise scales the noise; values other than 1 change
    the law. x0 is extrapolated from the last two levels, except in the first step and in steps more than four times as long as the previous
    one.

    Reference: sample_dpmpp_2m_sde of k-diffusion ("midpoint").
    """

    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        """Checks the options."""
        refuse_negative(eta=self.eta, s_noise=self.s_noise)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[Path, Tensor, float] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[Path, Tensor, float]]:
        """One step; remembers the path, and x0 with its half log-SNR."""
        path, before, at = memory or (BrownianPath.draw(x, generator), x, -math.inf)
        x0, now, then = predict(x, t).x0, half_log_snr(t), half_log_snr(s)
        h, known = then - now, x0
        if h <= 4 * (now - at) < math.inf:
            x0 = torch.lerp(before, x0, 1 + h / (2 * (now - at)))  # at the midpoint
        rate = self.eta * h if self.eta > 0 else 0.0
        x_s = to_level(x, t, s, x0, math.exp(-rate))
        if rate > 0 and then < math.inf:
            noise = path.at(self.eta * then) - math.exp(-rate) * path.at(self.eta * now)
            x_s = torch.add(x_s, noise, alpha=float(s.sigma) * self.s_noise)
        return x_s, (path, known, now)
