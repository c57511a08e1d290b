"""Precision, recall, density and coverage by balls around each sample that reach to its k-th nearest neighbour.

Precision and recall: Kynkäänniemi et al. (2019), eq. 1-3, arXiv:1904.06991. Density and coverage: Naeem et al. (2020), eq. 3 and 4,
arXiv:2002.09797. Clipped: Salvy, Talbot & Thirion (2025), arXiv:2507.01761; an outlier has a ball that reaches far, so radii are cut to
their median, and each sample counts at most once.
"""

import numpy as np
from numpy.typing import ArrayLike

from sfumato.metrics.chance import beta_binomial
from sfumato.metrics.checks import pair
from sfumato.metrics.neighbours import distance_blocks, kth_nearest


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5, *, block: int | None = None, clip: bool = False) -> dict[str, float]:
    """Precision, recall, density and coverage of fake samples beside real ones; with `clip` also the clipped four.

    `precision`: share of the fake in a ball of a real sample. `recall`: share of the real in a ball of a fake one. `density`: balls of
    the real that a fake sample lies in, over k; 1 is expected of equal laws. `coverage`: share of the real whose ball holds a fake one.

    `clipped_precision` and `clipped_recall` are over the same share of real samples in balls of other real ones (of fake in fake),
    `clipped_density` likewise, and all are at most 1: their radii are cut to the median. `clipped_coverage` is the share of good
    samples at which the expected count of fake samples in real balls, each cut to k, is the one found.

    Args:
        real: features of the data, [n, d].
        fake: features of the samples, [m, d].
        k: which neighbour a ball reaches to.
        block: rows whose distances to all others are held at once; by default as many as need 128 MB.
        clip: whether the clipped four are computed.

    Raises:
        ValueError: sets that do not fit, or not more than k samples in one.
    """
    first, second = pair(real, fake, least=k + 1)
    centre = first.mean(axis=0)
    first, second = first - centre, second - centre
    real_radii, fake_radii = kth_nearest(first, k, block), kth_nearest(second, k, block)
    cut_real, cut_fake = (np.minimum(radii, np.median(radii)) for radii in (real_radii, fake_radii))
    inside, clipped_inside = np.zeros((2, len(second)))  # balls of the real that a fake sample lies in
    covered, recalled, clipped_recalled = np.zeros((3, len(first)))  # fake samples in a ball of the real; whether one of theirs holds it
    for rows, squared in distance_blocks(first, second, block):
        within = squared < real_radii[rows, None]
        inside += within.sum(axis=0)
        covered[rows] = within.sum(axis=1)
        recalled[rows] = (squared < fake_radii).any(axis=1)
        if clip:
            clipped_inside += (squared <= cut_real[rows, None]).sum(axis=0)
            clipped_recalled[rows] = (squared <= cut_fake).any(axis=1)
    figures = {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(1 / k * inside.mean()),
        "coverage": float((covered > 0).mean()),
    }
    if clip:
        held, other = (_balls_around(points, cut, block) for points, cut in ((first, cut_real), (second, cut_fake)))
        figures |= {
            "clipped_precision": _share((clipped_inside > 0).mean(), (held > 0).mean()),
            "clipped_recall": _share(clipped_recalled.mean(), (other > 0).mean()),
            "clipped_density": _share((clipped_inside / k).clip(max=1).mean(), (held / k).clip(max=1).mean()),
            "clipped_coverage": _good_share(float((covered / k).clip(max=1).mean()), k, len(first), len(second)),
        }
    return figures


def _share(value: float, of: float) -> float:
    return min(float(value / of), 1.0)


def _balls_around(points: np.ndarray, radii: np.ndarray, block: int | None) -> np.ndarray:
    """In how many balls of the others each point lies."""
    counts = np.zeros(len(points))
    for rows, squared in distance_blocks(points, points, block):
        squared[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = np.inf
        counts += (squared <= radii[rows, None]).sum(axis=0)
    return counts


def expected_coverage(k: int, real: int, fake: int) -> float:
    """E min(j, k) / k, where j of `fake` samples of the law of the `real` ones lie within a real sample's k-th nearest of real - 1 others.

    j is beta-binomial: the mass of the ball is Beta(k, real - k).
    """
    missing = sum((k - j) * beta_binomial(j, fake, k, real - k) for j in range(min(k, fake + 1)))
    return float(1 - missing / k)


def _good_share(found: float, k: int, real: int, fake: int) -> float:
    """The least number of samples of the real law that are expected to give this coverage, over all fake samples; at most 1."""
    low, high = 0, fake
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if expected_coverage(k, real, middle) >= found else (middle + 1, high)
    return low / fake
