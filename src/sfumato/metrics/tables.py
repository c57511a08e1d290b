"""How rows of a table differ from real ones: column by column, in their correlations, and for a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import ArrayLike

from sfumato.metrics.checks import pair
from sfumato.metrics.transport import wasserstein_1d


@dataclass(frozen=True)
class Column:
    """How one column differs.

    Args:
        name: of the column.
        kind: "number" or "class".
        distance: of numbers the Wasserstein-1 distance over the standard deviation of the real ones (their plain distance where that is
            zero); of classes the total variation, half the sum of |differences of shares|.
        largest_gap: of numbers the Kolmogorov-Smirnov statistic, of classes the largest |difference of shares|.
    """

    name: str
    kind: str
    distance: float
    largest_gap: float


def column_distances(real: ArrayLike, fake: ArrayLike, *, names: Sequence[str] = (), classes: Sequence[int] = ()) -> tuple[Column, ...]:
    """The distance of each column's law.

    Args:
        real: rows [n, d].
        fake: rows [m, d].
        names: of the columns; "0", "1", … where not given.
        classes: places of the columns whose numbers stand for classes.

    Raises:
        ValueError: sets that do not fit, or as many names as there are no columns.
    """
    first, second = pair(real, fake)
    width = first.shape[1]
    if names and len(names) != width:
        raise ValueError(f"there must be a name for each of {width} columns, got {len(names)}.")
    if any(not 0 <= place < width for place in classes):
        raise ValueError(f"columns of classes must be among 0 to {width - 1}, got {list(classes)}.")
    named = names or [str(place) for place in range(width)]
    return tuple(
        _class_column(named[j], first[:, j], second[:, j]) if j in classes else _number_column(named[j], first[:, j], second[:, j])
        for j in range(width)
    )


def _number_column(name: str, real: np.ndarray, fake: np.ndarray) -> Column:
    distance, spread = float(wasserstein_1d(real[:, None], fake[:, None])[0]), float(real.std())
    values = np.sort(np.concatenate([real, fake]))
    shares = [np.searchsorted(np.sort(column), values, side="right") / len(column) for column in (real, fake)]
    return Column(name, "number", distance / spread if spread > 0 else distance, float(np.abs(shares[0] - shares[1]).max()))


def _class_column(name: str, real: np.ndarray, fake: np.ndarray) -> Column:
    values = np.union1d(real, fake)
    gaps = np.abs(np.array([(real == value).mean() - (fake == value).mean() for value in values]))
    return Column(name, "class", float(gaps.sum() / 2), float(gaps.max()))


def correlation_difference(real: ArrayLike, fake: ArrayLike) -> float:
    """The root mean square of the differences of the correlations of all pairs of columns.

    A column that is constant in either set has no correlation; its pairs are left out.

    Raises:
        ValueError: sets that do not fit, fewer than two rows, or no pair of columns that vary in both.
    """
    first, second = pair(real, fake, least=2)
    varies = (np.ptp(first, axis=0) > 0) & (np.ptp(second, axis=0) > 0)
    if varies.sum() < 2:
        raise ValueError(f"correlations need two columns that vary in both sets, got {varies.sum()} of {len(varies)}.")
    gaps = np.corrcoef(first[:, varies], rowvar=False) - np.corrcoef(second[:, varies], rowvar=False)
    return float(np.sqrt(np.square(gaps[np.triu_indices(len(gaps), 1)]).mean()))


@dataclass(frozen=True)
class TwoSample:
    """A classifier two-sample test.

    Args:
        accuracy: of a classifier on rows that it was not trained on, half of them real; 0.5 where it finds no difference.
        error: the standard error of the accuracy.
        p_value: the chance of at least this accuracy if the laws are equal.
        count: rows it was tested on.
    """

    accuracy: float
    error: float
    p_value: float
    count: int


def classifier_two_sample(real: ArrayLike, fake: ArrayLike, *, seed: int = 0) -> TwoSample:
    """Whether gradient-boosted trees, trained on half of the rows, tell the other half's real from fake.

    Both sets are cut to the smaller count.

    Raises:
        ValueError: sets that do not fit, fewer than 40 rows in one, or no scikit-learn.

    Reference:
        Lopez-Paz & Oquab (2017), section 3, arXiv:1610.06545
    """
    first, second = pair(real, fake, least=40)
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError:
        raise ValueError("the classifier two-sample test needs scikit-learn; run pip install 'sfumato[metrics]'.") from None
    count, generator = min(len(first), len(second)), np.random.default_rng(seed)
    cut = [rows[generator.permutation(len(rows))[:count]] for rows in (first, second)]
    half = count // 2
    train, test = (np.concatenate([rows[part] for rows in cut]) for part in (slice(half), slice(half, None)))
    labels = [np.repeat([0, 1], n) for n in (half, count - half)]
    model = HistGradientBoostingClassifier(random_state=seed).fit(train, labels[0])
    right = model.predict(test) == labels[1]
    accuracy, n = float(right.mean()), len(right)
    return TwoSample(accuracy, sqrt(accuracy * (1 - accuracy) / n), erfc((accuracy - 0.5) * 2 * sqrt(n) / sqrt(2)) / 2, n)
