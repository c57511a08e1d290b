"""Methods without memory: a step evaluates the predictor at levels of its own between t and s.

Those levels have unit scale (alpha² + sigma² = 1), as networks see x_t anyway, so the methods are the same under every scaling.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.prediction import Prediction
from sfumato.sampling.steps.chain import DDIM
from sfumato.sampling.steps.history import half_log_snr
from sfumato.schedule import Level, vp_scales


@dataclass(frozen=True)
class Singlestep:
    """DPM-Solver of order 2 or 3 in one step: x0 or eps is expanded in half log-SNR around t, from levels between t and s.

    Order 2 evaluates also at the midpoint (two evaluations a step), order 3 at one and two thirds (three). On "eps" it is DPM-Solver-2 and
    -3: Lu et al. (2022), alg. 1 and 2, arXiv:2206.00927; order 2 is also k-diffusion's DPM2. On "x0" it is DPM-Solver++(2S), and its
    analogue of order 3: Lu et al. (2022), alg. 1, arXiv:2211.01095. A step to a level without noise, or from one without signal, is DDIM's
    (one evaluation).
    """

    order: int = 2
    on: str = "eps"

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {self.order}; order 1 is DDIM.")
        if self.on not in ("eps", "x0"):
            raise ValueError(f'on must be "eps" (DPM-Solver) or "x0" (DPM-Solver++), got "{self.on}".')

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One step of two or three evaluations."""
        now, then = half_log_snr(t), half_log_snr(s)
        if math.isinf(now) or math.isinf(then):
            return DDIM()(predict, x, t, s, None, generator)
        first = self._value(predict(x, t))
        if self.order == 2:
            middle = level_at((now + then) / 2)
            return self._move(x, t, s, self._value(predict(self._move(x, t, middle, first), middle))), None
        near, far = level_at(now + (then - now) / 3), level_at(now + 2 * (then - now) / 3)
        slope = self._value(predict(self._move(x, t, near, first), near)) - first
        ahead = self._move(x, t, far, first) + 2 * self._curve(t, far) * slope
        slope = self._value(predict(ahead, far)) - first
        return self._move(x, t, s, first) + 1.5 * self._curve(t, s) * slope, None

    def _value(self, prediction: Prediction) -> Tensor:
        return prediction.eps if self.on == "eps" else prediction.x0

    def _move(self, x: Tensor, t: Level, s: Level, value: Tensor) -> Tensor:
        """x at s for constant x0 or eps."""
        return to_level(x, t, s, value, 1.0) if self.on == "x0" else to_level(x, _exchanged(t), _exchanged(s), value, 1.0)

    def _curve(self, t: Level, s: Level) -> float:
        """The change of x at s for each unit by which x0 or eps, linear in λ, rises from t to s, in addition to `_move`."""
        length = half_log_snr(s) - half_log_snr(t)
        g, scale = (length, s.sigma) if self.on == "eps" else (-length, s.alpha)
        return -float(scale) * (math.expm1(g) / g - 1)


def to_level(x: Tensor, t: Level, s: Level, x0: Tensor, kept: float) -> Tensor:
    """x at s for constant x0, where a reverse SDE keeps the share `kept` of x_t's noise (1 for the probability flow)."""
    ratio = float(s.sigma) / float(t.sigma) * kept
    return torch.add(ratio * x, x0, alpha=float(s.alpha) - float(t.alpha) * ratio)


def level_at(half: float) -> Level:
    """The level of this half log-SNR at unit scale, zero-dimensional and in float64 like those of a grid."""
    return Level(*vp_scales(torch.tensor(2 * half, dtype=torch.float64)))


def _exchanged(level: Level) -> Level:
    return Level(level.sigma, level.alpha)
