"""The Fréchet distance of two sets of features: the squared 2-Wasserstein distance of the Gaussians with their means and covariances.

    d² = |m_a - m_b|² + tr(A) + tr(B) - 2 tr (A^½ B A^½)^½

The last trace is the sum of the singular values of F_aᵀ F_b for any F_a F_aᵀ = A and F_b F_bᵀ = B. It needs no inverse and no square root
of a product, so a covariance that is not of full rank is no special case, and nothing is added to it. Dowson & Landau (1982), eq. 16; as a
figure of image models, Heusel et al. (2017), arXiv:1706.08500.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from sfumato.metrics.checks import matrix

BLOCK = 256  # rows whose sums are added at once, whatever the size of the batches that they came in


class GaussianSums:
    """Count, mean and covariance of features that come in batches, in float64; memory is d² whatever the count.

    Rows are taken in blocks of a fixed size, so the result is the same to the bit for any batch size. Two sums of blocks are joined as
    in Chan, Golub & LeVeque (1979), eq. 2.1, without the cancellation of sums of squares.
    """

    def __init__(self, dim: int | None = None) -> None:
        """No features yet; `dim` is taken from the first batch where it is not given."""
        self._count = 0
        self._start(dim or 0)

    def _start(self, dim: int) -> None:
        self._mean, self._scatter, self._waiting = np.zeros(dim), np.zeros((dim, dim)), np.zeros((0, dim))

    @property
    def dim(self) -> int:
        """How many features a sample has; 0 where nothing is known yet."""
        return self._waiting.shape[1]

    @property
    def count(self) -> int:
        """How many samples were added."""
        return self._count + len(self._waiting)

    def update(self, features: ArrayLike) -> None:
        """Adds a batch of features [n, d].

        Raises:
            ValueError: as `checks.matrix`, or another number of features than before.
        """
        rows = matrix(features, "features", least=0)
        if not self.dim:
            self._start(rows.shape[1])
        if rows.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} numbers a sample as those before, got {rows.shape[1]}.")
        rows = np.concatenate([self._waiting, rows])
        whole = len(rows) - len(rows) % BLOCK
        for start in range(0, whole, BLOCK):
            self._join(*_sums(rows[start : start + BLOCK]))
        self._waiting = rows[whole:].copy()

    def merge(self, other: "GaussianSums") -> None:
        """Adds the samples of another sum, such as that of another process.

        Raises:
            ValueError: another number of features.
        """
        if not other.count:
            return
        if not self.dim:
            self._start(other.dim)
        if other.dim != self.dim:
            raise ValueError(f"features must have {self.dim} numbers a sample as those before, got {other.dim}.")
        self._join(other._count, other._mean, other._scatter)
        self.update(other._waiting)

    @property
    def mean(self) -> Float64[np.ndarray, "d"]:
        """The mean of each feature.

        Raises:
            ValueError: no samples.
        """
        return self._total()[1]

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The unbiased covariance, divided by count - 1.

        Raises:
            ValueError: fewer than two samples.
        """
        count, _, scatter = self._total()
        if count < 2:
            raise ValueError(f"a covariance needs at least two samples, got {count}.")
        return scatter / (count - 1)

    def state(self) -> dict[str, np.ndarray]:
        """As arrays, to be kept in a file and given to `from_state`."""
        return {"count": np.array(self._count), "mean": self._mean, "scatter": self._scatter, "waiting": self._waiting}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> "GaussianSums":
        """From `state`, to the bit."""
        sums = cls()
        sums._count, sums._waiting = int(state["count"]), np.asarray(state["waiting"], dtype=np.float64)
        sums._mean, sums._scatter = (np.asarray(state[name], dtype=np.float64) for name in ("mean", "scatter"))
        return sums

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        self._count, self._mean, self._scatter = _joined((self._count, self._mean, self._scatter), (count, mean, scatter))

    def _total(self) -> tuple[int, np.ndarray, np.ndarray]:
        """With the rows that wait for a whole block."""
        if not self.count:
            raise ValueError("there are no samples; add some with update.")
        own = (self._count, self._mean, self._scatter)
        return _joined(own, _sums(self._waiting)) if len(self._waiting) else own


Sums = tuple[int, np.ndarray, np.ndarray]  # count, mean, sum of outer products of what is left without the mean


def _sums(rows: np.ndarray) -> Sums:
    mean = rows.mean(axis=0)
    left = rows - mean
    return len(rows), mean, left.T @ left


def _joined(a: Sums, b: Sums) -> Sums:
    count = a[0] + b[0]
    if not count:
        return a
    step = b[1] - a[1]
    return count, a[1] + step * (b[0] / count), a[2] + b[2] + np.outer(step, step) * (a[0] * b[0] / count)


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance.

    Args:
        value: the distance, squared as published figures are; of the units of the features, squared.
        mean_term: |m_a - m_b|².
        covariance_term: the rest.
        rank_a: of the first covariance, by numpy's `matrix_rank` rule on its eigenvalues; at most count - 1.
        rank_b: of the second.
        dim: of the features.
        count_a: samples of the first set.
        count_b: of the second.
    """

    value: float
    mean_term: float
    covariance_term: float
    rank_a: int
    rank_b: int
    dim: int
    count_a: int
    count_b: int

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each covariance that is not of full rank."""
        sets = (("first", self.rank_a, self.count_a), ("second", self.rank_b, self.count_b))
        return tuple(_rank_note(which, rank, self.dim, count) for which, rank, count in sets if rank < self.dim)


def _rank_note(which: str, rank: int, dim: int, count: int) -> str:
    said = f"the covariance of the {which} set has rank {rank} of {dim}"
    if rank == 0:
        return f"{said}: all of its {count} samples have the same features."
    if count <= dim:
        return f"{said}, as it has {count} samples; give at least {dim + 1}: with fewer, the distance is mostly that of too few samples."
    return f"{said}, as some features are constant or follow from others; the distance is exact in the space that is left."


def frechet_distance(a: GaussianSums, b: GaussianSums) -> Frechet:
    """The Fréchet distance |m_a - m_b|² + tr(A + B - 2 (A^½ B A^½)^½) of two sets of samples.

    Covariances are unbiased. One that is singular is taken as it is; its rank is in the result.

    Raises:
        ValueError: fewer than two samples in a set, or two numbers of features.
    """
    if a.dim != b.dim:
        raise ValueError(f"both sets must have the same features, got {a.dim} and {b.dim} of them a sample.")
    (cov_a, cov_b), step = (a.covariance, b.covariance), a.mean - b.mean
    (factor_a, rank_a), (factor_b, rank_b) = _factor(cov_a), _factor(cov_b)
    cross = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum() if rank_a and rank_b else 0.0
    mean_term, covariance_term = float(step @ step), float(np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
    value = max(mean_term + covariance_term, 0.0)  # a square; below zero by rounding where the sets are equal
    return Frechet(value, mean_term, covariance_term, rank_a, rank_b, a.dim, a.count, b.count)


def _factor(covariance: np.ndarray) -> tuple[np.ndarray, int]:
    """F with F Fᵀ = the covariance, and its rank. Eigenvalues that rounding made negative are zero."""
    values, vectors = np.linalg.eigh(covariance)
    rank = int(np.sum(values > values[-1] * len(values) * np.finfo(np.float64).eps))
    return vectors * np.sqrt(values.clip(min=0)), rank


@dataclass(frozen=True)
class Extrapolated:
    """A figure at infinite count, read off a line through those at finite counts.

    Args:
        value: the line at 1 / count = 0.
        error: its standard error by the scatter about the line; too small by as much as the subsets share samples.
        slope: the bias times the count.
        counts: of the subsets.
        values: their distances.
    """

    value: float
    error: float
    slope: float
    counts: tuple[int, ...]
    values: tuple[float, ...]


def frechet_infinity(
    features: ArrayLike, reference: GaussianSums, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> Extrapolated:
    """The Fréchet distance extrapolated to infinitely many samples: the intercept of a line in 1 / count.

    It is another figure than the Fréchet distance of the samples, and is to be named so. The reference keeps its own finite count.

    Args:
        features: of the samples, [n, d].
        reference: of the data.
        points: how many subsets, their sizes evenly spread from `smallest` to n.
        smallest: a tenth of the samples where it is not given, and more than d where there are as many.
        seed: of the subsets.

    Raises:
        ValueError: fewer than three points, or sizes that do not fit.

    Reference:
        Chong & Forsyth (2020), section 4, arXiv:1911.07023
    """
    rows = matrix(features, "features", least=4)
    least = max(len(rows) // 10, min(rows.shape[1] + 1, len(rows) // 2), 2) if smallest is None else smallest
    if points < 3 or not 2 <= least < len(rows):
        raise ValueError(f"a line needs at least 3 points at sizes from 2 to {len(rows)}, got {points} from {least} on.")
    counts = np.unique(np.linspace(least, len(rows), points).round().astype(int))
    generator = np.random.default_rng(seed)
    values = []
    for count in counts:
        sums = GaussianSums()
        sums.update(rows[generator.choice(len(rows), count, replace=False)])
        values.append(frechet_distance(sums, reference).value)
    design = np.stack([np.ones(len(counts)), 1 / counts], axis=1)
    (value, slope), *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    left = np.array(values) - design @ np.array([value, slope])
    variance = left @ left / max(len(counts) - 2, 1) * np.linalg.inv(design.T @ design)[0, 0]
    return Extrapolated(float(value), float(np.sqrt(variance)), float(slope), tuple(map(int, counts)), tuple(map(float, values)))
