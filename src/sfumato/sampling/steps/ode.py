"""Higher-order solvers of the probability flow, and of the reverse SDE (`Multistep` with eta > 0).

With λ = log(alpha/sigma), half the log-SNR, the flow is linear except for the prediction:

    d(x/sigma)/dλ =  exp(λ) x0      so  x_s = sigma_s/sigma_t x_t + alpha_s ∫_0^1 h exp(h (u - 1)) x0(u) du
    d(x/alpha)/dλ = -exp(-λ) eps    so  x_s = alpha_s/alpha_t x_t + sigma_s ∫_0^1 g exp(g (u - 1)) eps(u) du,  g = -h

with h = λ_s - λ_t and u from 0 at t to 1 at s: the second is the first with alpha and sigma exchanged. The methods differ in which of the
two they use and through which levels they fit a polynomial. Lu et al. (2022), eqs. 8 and 9, arXiv:2211.01095.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.sampling.steps.chain import DDIM, refuse_eta
from sfumato.sampling.steps.history import PastPrediction, bounded, combine, half_log_snr, latest, refuse_order, remember
from sfumato.schedule import Level

# The longest steps, in half log-SNR, over which two predictions are used (`latest`): x0 weighs most at the far end of a step, eps at the
# near one; Heun's eps at the far end is multiplied by exp(h) / 2. Longer ones are DDIM's.
_LONGEST_X0, _LONGEST_EPS, _LONGEST_HEUN = 1.5, 2.0, 1.3


@dataclass(frozen=True)
class Heun:
    """The trapezoidal rule on d(x/alpha)/d(sigma/alpha) = eps; two evaluations a step. Karras et al. (2022), alg. 1, arXiv:2206.00364.

    The rule is useless over long steps: an error of eps at the step's end is multiplied by half the ratio of sigma/alpha. A step of more
    than 2.6 nats of log-SNR is Euler's, which is DDIM's, with one evaluation; a run that starts with one warns.
    """

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: bool | None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], bool]:
        """One Heun step; DDIM's if it is long, s has no noise, or a level has no signal. Remembers that the run has started."""
        length = abs(half_log_snr(s) - half_log_snr(t))
        if length > _LONGEST_HEUN:
            if memory is None and math.isfinite(length):
                warnings.warn(
                    f"Heun's rule is not accurate over a step of {2 * length:.3g} nats of log-SNR, so DDIM's is used there; use more "
                    f"steps (of at most {2 * _LONGEST_HEUN:g} nats), or another sampler.",
                    stacklevel=2,
                )
            return DDIM()(predict, x, t, s, None, generator)[0], True
        ratio = float(s.alpha) / float(t.alpha)
        length = float(s.sigma) - float(t.sigma) * ratio
        eps, start = predict(x, t).eps, ratio * x
        return start + length / 2 * (eps + predict(start + length * eps, s).eps), True


@dataclass(frozen=True)
class Multistep:
    """DPM-Solver++: a polynomial through x0 at the last `order` levels. Lu et al. (2022), alg. 2 and eq. 18, arXiv:2211.01095.

    order=1 is DDIM(eta); order=2 is 2M, with half of 1 - exp(-h) for the slope's integral; order=3 integrates the parabola exactly (the
    authors' code takes half of its last term, and has order 2). eta is DDIM's: at 1 it solves the reverse SDE (SDE-DPM-Solver++).

    The first steps are of lower order, and so is one that is long relative to the previous one (order 2 goes up to 1.5 times its length,
    order 3 to 1.15 times), or longer than 3 nats of log-SNR (2 for order 3): there an extrapolation of past predictions is worse than DDIM.
    A step to a level without noise is always of order 1.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        """Checks order and eta."""
        refuse_order(self.order, 3)
        refuse_eta(self.eta)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[PastPrediction, ...] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[PastPrediction, ...]]:
        """One multistep update; remembers the last x0."""
        now, then = half_log_snr(t), half_log_snr(s)
        known = remember((predict(x, t).x0, now), memory or (), self.order)
        x_s = _move(x, t, s, known[0], latest(known, then, _LONGEST_X0), self.eta)
        if self.eta > 0:
            fresh = float(s.sigma) * self.eta * math.sqrt(-math.expm1(2 * (now - then)))
            x_s = x_s + fresh * normal_like(x, generator)
        return x_s, known


@dataclass(frozen=True)
class UniPC:
    """`Multistep(order)`, with each x corrected once its prediction is known: the polynomial then includes that x0; one evaluation a step.

    UniPC-p with B(h) = exp(h) - 1, which matters only in the first correction and in the predictor of order 2: all else is exact. The last
    x of a run is not corrected, because there is no prediction for it. Zhao et al. (2023), alg. 1 and 2, arXiv:2302.04867.
    """

    order: int = 2

    def __post_init__(self) -> None:
        """Checks the order."""
        refuse_order(self.order, 3)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[Tensor, Level, tuple[PastPrediction, ...]] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[Tensor, Level, tuple[PastPrediction, ...]]]:
        """Corrects x, then one multistep update; remembers the corrected x, its level and the last x0."""
        now, past = (predict(x, t).x0, half_log_snr(t)), ()
        if memory is not None:
            before, level, past = memory
            if now[1] - past[0][1] <= _LONGEST_X0:
                x = _move(before, level, t, past[0], [(*past[:count], now) for count in range(len(past), 0, -1)])
        known = remember(now, past, self.order)
        return _move(x, t, s, known[0], latest(known, half_log_snr(s), _LONGEST_X0)), (x, t, known)


@dataclass(frozen=True)
class AdamsBashforth:
    """A polynomial through eps at the last `order` levels, integrated exactly: the exponential Adams-Bashforth method.

    The counterpart of `Multistep` for eps, of orders 1 (DDIM) to 4. Its first steps, and long ones, are of lower order as there. Zhang &
    Chen (2023), eqs. 14 and 15 in λ, arXiv:2204.13902.
    """

    order: int = 2

    def __post_init__(self) -> None:
        """Checks the order."""
        refuse_order(self.order, 4)

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[PastPrediction, ...] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[PastPrediction, ...]]:
        """One Adams-Bashforth update; remembers the last eps."""
        p, now, then = predict(x, t), half_log_snr(t), half_log_snr(s)
        known = remember((p.eps, now), memory or (), self.order)
        weigh = lambda places: _weights(now - then, [(at - now) / (then - now) for at in places])  # noqa: E731
        found = bounded(latest(known, then, _LONGEST_EPS), weigh)
        if found is None:
            return s.alpha * p.x0 + s.sigma * p.eps, known
        return combine(float(s.alpha) / float(t.alpha) * x, float(s.sigma), *found), known


def _move(x: Tensor, t: Level, s: Level, last: PastPrediction, candidates: Sequence[Sequence[PastPrediction]], eta: float = 0.0) -> Tensor:
    """x at s from x at t, with a polynomial through the first bounded candidate, or constant x0; the mean, if eta > 0."""
    now, then = half_log_snr(t), half_log_snr(s)
    h = then - now
    kept = math.sqrt(1 + eta**2 * math.expm1(-2 * h)) if eta > 0 else 1.0  # DDIM's sqrt(1 - v / sigma_s²)
    ratio = float(s.sigma) / float(t.sigma) * kept
    stretched = h - math.log(max(kept, 1e-300))

    def weigh(places: tuple[float, ...]) -> list[float]:
        nodes = [(at - now) / h for at in places]
        if len(nodes) > 2:
            return _weights(stretched, nodes)
        total = -math.expm1(-stretched)
        slope = total / (2 * (nodes[1] - nodes[0]))
        return [total - slope, slope]

    found = bounded(candidates, weigh)
    if found is None:
        return combine(ratio * x, float(s.alpha) - float(t.alpha) * ratio, [1.0], [last])
    return combine(ratio * x, float(s.alpha), *found)


def _weights(h: float, nodes: Sequence[float]) -> list[float]:
    """The w with Σ w_i p(nodes_i) = ∫_0^1 h exp(h (u - 1)) p(u) du for every polynomial p that the nodes determine."""
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k / h * moments[-1])
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()
