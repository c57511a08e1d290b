"""Adams's methods on v: the probability flow as a curve whose tangent the model predicts.

With φ = atan(sigma/alpha) and u = x / hypot(alpha, sigma) = cos φ x0 + sin φ eps, the flow is du/dφ = v = cos φ eps - sin φ x0, under every
scaling; for data of unit variance v = 0 and there is nothing to integrate. x0 varies slowly in noise and eps near the data; v is good
at all levels between. Salimans & Ho (2022), appendix D, arXiv:2202.00512, use the first-order step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.sampling.steps.history import PastPrediction, bounded, combine, half_log_snr, latest, refuse_order, remember
from sfumato.schedule import Level

_SHORT = 0.8  # in half log-SNR: a longer step is not corrected, because the prediction at its end is too far from its middle
_STRAIGHT, _WIDE = 1.6, 0.25  # in half log-SNR and in φ: over longer steps with a single v, x is rotated and not moved along its tangent
_LONGEST = 3.0  # in half log-SNR: the longest step over which two v are used (`latest`)
_WHOLE = 1.5  # in φ: no polynomial through v over a wider arc, which is nearly the whole way from noise to data
_PLACES, _MASSES = ((1 + np.polynomial.legendre.leggauss(32)[0]) / 2, np.polynomial.legendre.leggauss(32)[1] / 2)


@dataclass(frozen=True)
class Adams:
    """A polynomial through v at the last `order` levels, integrated over φ and corrected with the new v; one evaluation a step.

    The predictor is Adams-Bashforth, the corrector Adams-Moulton of one order more, for steps of at most 1.6 nats of log-SNR; the last x is
    not corrected. The first steps are of lower order, as are steps that are long relative to the previous one (see `Multistep`), or of more
    than 6 nats. A long first-order step rotates (x, v) by its arc, as DDIM does, and is exact on data of one point; a step to the data
    returns x0.
    """

    order: int = 3

    def __post_init__(self) -> None:
        """Checks the order."""
        refuse_order(self.order, 4)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[Tensor, Level, tuple[PastPrediction, ...]] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[Tensor, Level, tuple[PastPrediction, ...]]]:
        """Corrects x, then one step; remembers the corrected x, its level and the last v."""
        p, now, radius = predict(x, t), half_log_snr(t), _radius(t)
        v = torch.mul(p.eps, float(t.alpha) / radius).sub_(p.x0, alpha=float(t.sigma) / radius)
        known: tuple[PastPrediction, ...] = ((v, now),)
        if memory is not None:
            before, level, past = memory
            known = remember((v, now), past, self.order + 1)
            if now - past[0][1] <= _SHORT:
                x = _advance(before, level, t, known[0], [known[:count] for count in range(len(known), 1, -1)])
        then = half_log_snr(s)
        near = [each for each in latest(known[: self.order], then, _LONGEST) if _arc(each[-1][1], then) <= _WHOLE]
        return _advance(x, t, s, known[0], near), (x, t, known)


def _advance(x: Tensor, t: Level, s: Level, last: PastPrediction, candidates: Sequence[Sequence[PastPrediction]]) -> Tensor:
    """x at s from x at t, with a polynomial through v of the first bounded candidate; without one, along the last v, or rotated."""
    radius, radius_s = _radius(t), _radius(s)
    now, then = half_log_snr(t), half_log_snr(s)
    found = bounded(candidates, lambda places: _arcs(now, then, places))
    if found is not None:
        return combine(radius_s / radius * x, -radius_s, *found)
    if not candidates and then - now <= _STRAIGHT and _arc(now, then) <= _WIDE:
        return combine(radius_s / radius * x, -radius_s, _arcs(now, then, (now,)), [last])
    cosine = float(t.alpha) * float(s.alpha) + float(t.sigma) * float(s.sigma)
    sine = float(t.sigma) * float(s.alpha) - float(t.alpha) * float(s.sigma)
    return torch.sub(cosine / (radius**2 * radius_s) * x, last[0], alpha=sine / (radius * radius_s)).mul_(radius_s)


def _radius(level: Level) -> float:
    return math.hypot(float(level.alpha), float(level.sigma))


def _arc(now: float, then: float) -> float:
    """The change of φ from half log-SNR `then` to `now`."""
    return math.atan(math.exp(-now)) - math.atan(math.exp(-then))


@lru_cache(maxsize=4096)
def _arcs(now: float, then: float, nodes: tuple[float, ...]) -> list[float]:
    """The w with Σ w_i p(nodes_i) = ∫ p dφ from half log-SNR `then` to `now`, for every polynomial p in it that the nodes determine."""
    arc = _arc(now, then)
    if len(nodes) == 1:
        return [arc]
    length = then - now
    mass = _MASSES * length / (2 * np.cosh(now + length * _PLACES))  # -dφ/dλ = ½ sech λ
    moments = [arc, *(float((mass * _PLACES**k).sum()) for k in range(1, len(nodes)))]
    return np.linalg.solve(np.vander((np.array(nodes) - now) / length, increasing=True).T, moments).tolist()
