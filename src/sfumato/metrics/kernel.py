"""The kernel distance (KID with Inception features): the squared maximum mean discrepancy under a cubic kernel, unbiased.

Reference: Bińkowski et al. (2018), eq. 4 and section 4, arXiv:1801.01401
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sfumato.metrics.checks import pair


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


def kernel_distance(a: ArrayLike, b: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Estimate:
    """The mean of unbiased estimates of MMD² under k(x, y) = (x·y / d + 1)³ on subsets drawn without replacement.

    It has no bias, so it may be negative. The error is that of the figure of all samples, by the subsets' scatter (Politis, Romano &
    Wolf (1999), section 2.3): std² · (size / n) / (1 - size / n) for the smaller set's n, and std² / subsets for the drawing.

    Args:
        a: features [n, d].
        b: features [m, d].
        subsets: how many.
        size: samples in each, of each set; cut to the smaller half of the samples where there are fewer than twice as many.
        seed: of the subsets.

    Raises:
        ValueError: fewer than four samples, sets that do not fit, or fewer than two subsets or samples in one.
    """
    first, second = pair(a, b, least=4)
    if subsets < 2 or size < 2:
        raise ValueError(f"the kernel distance needs at least 2 subsets of at least 2 samples, got {subsets} of {size}.")
    fewest = min(len(first), len(second))
    size = min(size, fewest // 2)
    generator = np.random.default_rng(seed)
    values = np.array(
        [unbiased_mmd(*(rows[generator.choice(len(rows), size, replace=False)] for rows in (first, second))) for _ in range(subsets)]
    )
    share = size / fewest
    return Estimate(float(values.mean()), float(values.std(ddof=1) * np.sqrt(share / (1 - share) + 1 / subsets)))


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of MMD² of all rows under the cubic kernel."""

    def within(x: np.ndarray) -> float:
        k = _cubic(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * _cubic(a, b).mean())


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
