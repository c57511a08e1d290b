"""Shared by multistep methods: past predictions, which of them a step may use, and their weighted sum."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.schedule import Level

PastPrediction = tuple[Tensor, float]  # the prediction, and the half log-SNR it was made at

_LARGEST = {2: 2.5, 3: 4.5, 4: 8.0, 5: 13.0}  # Σ |w| / |Σ w| at most, by the number of predictions


def refuse_order(order: int, most: int) -> None:
    """Refuses orders that a method does not have."""
    if order not in range(1, most + 1):
        raise ValueError(f"order must be 1 to {most}, got {order}.")


def half_log_snr(level: Level) -> float:
    """λ = log(alpha/sigma): infinite at the ends, as a number, since many small tensors cost more than the large one.

    Raises:
        ValueError: a level with one value a row: these methods lay one polynomial for the whole batch.
    """
    if level.alpha.numel() != 1:
        raise ValueError(f"this method takes one level for all rows, got one of shape {tuple(level.alpha.shape)}; take grid's, or DDIM.")
    alpha, sigma = float(level.alpha), float(level.sigma)
    return math.inf if sigma == 0 else -math.inf if alpha == 0 else math.log(alpha / sigma)


def remember(now: PastPrediction, past: tuple[PastPrediction, ...], most: int) -> tuple[PastPrediction, ...]:
    """The last predictions, latest first; none but the first of a walk can be without signal, and no polynomial goes through that one."""
    return (now, *(each for each in past if math.isfinite(each[1])))[:most]


def latest(known: Sequence[PastPrediction], then: float, longest: float) -> list[Sequence[PastPrediction]]:
    """All that is known, all but the oldest, … and the latest two, those that a step to `then` is not too long for.

    `longest` is the length, in half log-SNR, for two predictions; so many times two thirds of it for three, a half for four.
    """
    length = abs(then - known[0][1])
    return [known[:count] for count in range(len(known), 1, -1) if count * length <= 2 * longest]


def bounded(
    candidates: Sequence[Sequence[PastPrediction]], weigh: Callable[[tuple[float, ...]], list[float]]
) -> tuple[list[float], Sequence[PastPrediction]] | None:
    """The first of the candidates whose weights are bounded, after its weights; None where there is no such.

    `weigh` maps half log-SNRs to weights, which sum to the length of the step in the measure that the method integrates over. What the sum
    of their sizes has above that is extrapolation, and an error of the predictions can grow by as much. Short steps of one length have 2,
    3.7, 6.7 and 12.2 times it at orders 2 to 5; the bounds let order 2 go up to 1.5 times the step before, order 3 up to 1.15 times. They
    were chosen on mixtures of several tightnesses, under all schedules and spacings, so that no method is much worse than DDIM.
    """
    for known in candidates:
        weights = weigh(tuple(at for _, at in known))
        if sum(map(abs, weights)) <= _LARGEST[len(known)] * abs(sum(weights)):
            return weights, known
    return None


def combine(x: Tensor, scale: float, weights: Sequence[float], known: Sequence[PastPrediction]) -> Tensor:
    """x + scale Σ w_i known_i."""
    for weight, (value, _) in zip(weights, known, strict=True):
        x = torch.add(x, value, alpha=scale * weight)
    return x
