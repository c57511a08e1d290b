"""Turns deterministic methods into stochastic ones: noise is added, and a longer step removes it again.

The probability flow and fresh Gaussian noise keep the marginals, whatever their sizes, so exact steps stay exact. The inner step starts
again each time (its memory is None), because x has changed since its last step.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.process import transition
from sfumato.sampling.loop import Step
from sfumato.sampling.steps.history import half_log_snr
from sfumato.sampling.steps.ode import Heun
from sfumato.sampling.steps.singlestep import Singlestep, level_at
from sfumato.schedule import Level


@dataclass(frozen=True)
class Renoised:
    """k-diffusion's ancestral methods: the step goes beyond s, to where noise of std eta sqrt(β̃) (at most sigma_s) leads back to s.

    With DDIM it is DDIM(eta) ("Euler ancestral"), with `Singlestep(2)` DPM2 ancestral, with `Singlestep(2, "x0")` DPM++ 2S ancestral. eta
    is 0 or more: 0 is the step itself, 1 ancestral, larger values replace more of the noise. s_noise scales the noise; values other than 1
    change the law. It has as many evaluations as its step.

    Reference: get_ancestral_step of k-diffusion; Song et al. (2021), eq. 16, arXiv:2010.02502, for eta.
    """

    step: Step = field(default_factory=Singlestep)
    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        """Checks the scales."""
        refuse_negative(eta=self.eta, s_noise=self.s_noise)

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One step down, one up to s."""
        now, then = half_log_snr(t), half_log_snr(s)
        if self.eta == 0 or then == math.inf:
            return self.step(predict, x, t, s, None, generator)[0], None
        share = 1 - min(1.0, -(self.eta**2) * math.expm1(2 * (now - then)))  # share of sigma_s² that remains below
        below = level_at(math.inf if share <= 0 else then - math.log(share) / 2)
        x, _ = self.step(predict, x, t, below, None, generator)
        return _noised(x, below, s, self.s_noise, generator), None


@dataclass(frozen=True)
class EDM:
    """EDM's stochastic sampler: fresh noise raises sigma/alpha by the share `churn`, then the step goes from there to s.

    `churn` is the γ of one step: in the paper min(S_churn / N, sqrt(2) - 1) for N steps. s_tmin and s_tmax, in units of sigma/alpha, limit
    the levels at which noise is added; s_noise scales it, and values other than 1 change the law. With churn = 0 it is the step itself, by
    default Heun's (two evaluations a step).

    Reference: Karras et al. (2022), alg. 2 and table 5, arXiv:2206.00364.
    """

    step: Step = field(default_factory=Heun)
    churn: float = 0.2
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        """Checks the options."""
        if not 0 <= self.churn <= math.sqrt(2) - 1 + 1e-9:
            raise ValueError(f"churn must lie in [0, sqrt(2) - 1], got {self.churn}; it is S_churn / N of Karras et al. for N steps.")
        if not 0 <= self.s_tmin <= self.s_tmax:
            raise ValueError(f"0 <= s_tmin <= s_tmax must hold, in units of sigma/alpha, got {self.s_tmin} and {self.s_tmax}.")
        refuse_negative(s_noise=self.s_noise)

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One step up, one down to s."""
        now = half_log_snr(t)
        if self.churn > 0 and math.isfinite(now) and self.s_tmin <= math.exp(-now) <= self.s_tmax:
            above = level_at(now - math.log1p(self.churn))
            x, t = _noised(x, t, above, self.s_noise, generator), above
        return self.step(predict, x, t, s, None, generator)[0], None


@dataclass(frozen=True)
class Restart:
    """Restart sampling: when the run passes sigma/alpha = low, it goes back up to high with fresh noise and down again, `times` times.

    Each way down has `steps` steps, uniform in (sigma/alpha)^(1/7), so there are times · steps additional steps of the method, and one more
    to stop at `low`. A step that is itself a Restart has a second interval, which must not overlap the first.

    Reference: Xu et al. (2023), section 3 and alg. 1, arXiv:2306.14878.
    """

    step: Step = field(default_factory=Heun)
    low: float = 0.06
    high: float = 0.30
    times: int = 10
    steps: int = 3

    def __post_init__(self) -> None:
        """Checks the options."""
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"0 < low < high must hold, in units of sigma/alpha, got {self.low} and {self.high}.")
        for name, number in (("times", self.times), ("steps", self.steps)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: Any, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Any]:
        """One step of the method, with its restarts if it passes `low`."""
        stop = -math.log(self.low)
        if not half_log_snr(t) < stop <= half_log_snr(s):
            return self.step(predict, x, t, s, memory, generator)
        roots = torch.linspace(self.high ** (1 / 7), self.low ** (1 / 7), self.steps + 1, dtype=torch.float64)
        levels = [level_at(-7 * math.log(root)) for root in roots.tolist()]
        x, _ = self.step(predict, x, t, levels[-1], memory, generator)
        for _ in range(self.times):
            x, inner = _noised(x, levels[-1], levels[0], 1.0, generator), None
            for i, level in enumerate(levels[:-1]):
                x, inner = self.step(predict, x, level, levels[i + 1], inner, generator)
        if half_log_snr(s) - stop < 1e-9:
            return float(torch.hypot(s.alpha, s.sigma)) * x, None
        return self.step(predict, x, levels[-1], s, None, generator)


def _noised(x: Tensor, t: Level, above: Level, s_noise: float, generator: Generator | None) -> Tensor:
    """x at a noisier level, from the forward process with its noise scaled by s_noise."""
    q = transition(x, t, above)
    return q.mean + s_noise * (q.log_variance / 2).exp() * normal_like(x, generator)


def refuse_negative(**scales: float) -> None:
    """Refuses scales that are negative, infinite or NaN."""
    for name, value in scales.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {value}.")
