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
    """λ = log(alpha/sigma): infinite at the ends; a Python number, because many small tensors cost more than the large one.

    Raises:
        ValueError: a level with one value for each row: these methods use one polynomial for the whole batch.
    """
    if level.alpha.numel() != 1:
        raise ValueError(f"this method takes one level for all rows, got one of shape {tuple(level.alpha.shape)}; use grid, or DDIM.")
    alpha, sigma = float(level.alpha), float(level.sigma)
    return math.inf if sigma == 0 else -math.inf if alpha == 0 else math.log(alpha / sigma)


def remember(now: PastPrediction, past: tuple[PastPrediction, ...], most: int) -> tuple[PastPrediction, ...]:
    """The last predictions, latest first; predictions without signal (only the first of a run) are left out, as no polynomial fits them."""
    return (now, *(each for each in past if math.isfinite(each[1])))[:most]


def latest(known: Sequence[PastPrediction], then: float, longest: float) -> list[Sequence[PastPrediction]]:
    """All past predictions, all but the oldest, … and the latest two: those for which a step to `then` is not too long.

    `longest` is the longest step, in half log-SNR, for two predictions; two thirds of it for three, half for four.
    """
    length = abs(then - known[0][1])
    return [known[:count] for count in range(len(known), 1, -1) if count * length <= 2 * longest]


def bounded(
    candidates: Sequence[Sequence[PastPrediction]], weigh: Callable[[tuple[float, ...]], list[float]]
) -> tuple[list[float], Sequence[PastPrediction]] | None:
    """The first candidate with bounded weights, and its weights; None if there is none.

    `weigh` maps half log-SNRs to weights, whose sum is the length of the step in the measure of the method's integral. The sum of their
    absolute values exceeds that by the extrapolation, and can amplify errors of the predictions by as much. For short steps of equal length
    the ratio is 2, 3.7, 6.7 and 12.2 at orders 2 to 5; the bounds let order 2 go up to 1.5 times the previous step, order 3 up to 1.15
    times. They were chosen on mixtures of several widths, under all schedules and spacings, so that no method is much worse than DDIM.
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
