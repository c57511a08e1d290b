"""What steps that remember have in common: predictions at several levels, and the sums that they end in."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.schedule import Level

Known = tuple[Tensor, float]  # what was predicted, and at which half log-SNR

_FARTHEST = 4.0  # how many times the last step's length a prediction is extrapolated at most


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


def remember(now: Known, past: tuple[Known, ...], most: int) -> tuple[Known, ...]:
    """The last predictions, latest first; none but the first of a walk can be without signal, and no polynomial goes through that one."""
    return (now, *(each for each in past if math.isfinite(each[1])))[:most]


def forecast(known: tuple[Known, ...], then: float) -> tuple[Known, ...]:
    """Those of the predictions that foretell what comes until then: all, or where that is far, the latest."""
    if len(known) == 1:
        return known
    (_, now), (_, before), *_ = known
    return known if (then - now) / (now - before) <= _FARTHEST else known[:1]


def combine(x: Tensor, scale: float, weights: Sequence[float], known: Sequence[Known]) -> Tensor:
    """x + scale Σ w_i known_i."""
    for weight, (value, _) in zip(weights, known, strict=True):
        x = torch.add(x, value, alpha=scale * weight)
    return x
