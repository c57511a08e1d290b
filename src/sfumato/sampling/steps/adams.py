"""Adams's methods on v: the probability flow as a curve whose tangent the model predicts.

With φ = atan(sigma/alpha) and u = x / hypot(alpha, sigma) = cos φ x0 + sin φ eps, the flow is du/dφ = v = cos φ eps - sin φ x0, under every
scaling, and nothing is left to integrate for data of unit variance, where v = 0. x0 is a steady forecast in noise and eps near the data; v
is the one between the levels and the other beyond. Salimans & Ho (2022), appendix D, arXiv:2202.00512, take its first-order step.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.sampling.steps.known import Known, combine, forecast, half_log_snr, refuse_order
from sfumato.schedule import Level

_SHORT = 0.8  # in half log-SNR: a longer step is not corrected, as the prediction at its end says too little of its middle
_PLACES, _MASSES = ((1 + np.polynomial.legendre.leggauss(32)[0]) / 2, np.polynomial.legendre.leggauss(32)[1] / 2)


@dataclass(frozen=True)
class Adams:
    """v laid through the last `order` levels in log-SNR and integrated over φ, then through the new one too: one evaluation a step.

    The predictor is of Adams-Bashforth, the corrector of Adams-Moulton one order above, for steps of at most 1.6 nats of log-SNR; the last
    x is not corrected. Its first steps are of lower order, as are those long beside the step before; a step to the data returns x0.
    """

    order: int = 3

    def __post_init__(self) -> None:
        """Refuses orders that are not there."""
        refuse_order(self.order, 4)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[Tensor, Level, tuple[Known, ...]] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[Tensor, Level, tuple[Known, ...]]]:
        """Corrects x, then one step; remembers the corrected x, its level and the last v."""
        p, now, radius = predict(x, t), half_log_snr(t), _radius(t)
        v = torch.mul(p.eps, float(t.alpha) / radius).sub_(p.x0, alpha=float(t.sigma) / radius)
        known: tuple[Known, ...] = ((v, now),)
        if memory is not None:
            before, level, past = memory
            known = (*known, *past)[: self.order + 1]
            if now - past[0][1] <= _SHORT:
                x = _turn(before, level, t, known)
        return _turn(x, t, s, forecast(known[: self.order], half_log_snr(s))), (x, t, known)


def _turn(x: Tensor, t: Level, s: Level, known: tuple[Known, ...]) -> Tensor:
    """x at s from x at t, with v laid through what is known of it; at the data cos φ u - sin φ v, which is x0."""
    radius, radius_s = _radius(t), _radius(s)
    now, then = half_log_snr(t), half_log_snr(s)
    if math.isinf(then):
        return torch.sub(float(t.alpha) / radius**2 * x, known[0][0], alpha=float(t.sigma) / radius).mul_(radius_s)
    known = tuple(each for each in known if math.isfinite(each[1])) or known
    return combine(radius_s / radius * x, -radius_s, _arcs(now, then, tuple(at for _, at in known)), known)


def _radius(level: Level) -> float:
    return math.hypot(float(level.alpha), float(level.sigma))


@lru_cache(maxsize=4096)
def _arcs(now: float, then: float, nodes: tuple[float, ...]) -> list[float]:
    """The w with Σ w_i p(nodes_i) = ∫ p dφ from half log-SNR `then` to `now`, for every polynomial p in it that the nodes determine."""
    arc = math.atan(math.exp(-now)) - math.atan(math.exp(-then))
    if len(nodes) == 1:
        return [arc]
    length = then - now
    mass = _MASSES * length / (2 * np.cosh(now + length * _PLACES))  # -dφ/dλ = ½ sech λ
    moments = [arc, *(float((mass * _PLACES**k).sum()) for k in range(1, len(nodes)))]
    return np.linalg.solve(np.vander((np.array(nodes) - now) / length, increasing=True).T, moments).tolist()
