"""Which figures there are, by the name that `--metrics` takes, and how each is had from the features of samples and of data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sfumato.data.source import DataSpec
from sfumato.metrics.frechet import GaussianSums, frechet_distance, frechet_infinity
from sfumato.metrics.kernel import kernel_distance
from sfumato.metrics.prdc import prdc
from sfumato.metrics.tables import classifier_two_sample, column_distances, correlation_difference
from sfumato.metrics.transport import exact_wasserstein, mind, mmd, sliced_wasserstein
from sfumato.options import unknown

K = 5  # neighbours of precision and recall
EXACT = 2000  # points of an exact Wasserstein distance, whose time grows as their cube
PAIRS = 5000  # points whose pairs a mean discrepancy is summed over
BLOCK = 4096  # rows of features that are read at once


@dataclass(frozen=True)
class Estimate:
    """A figure of one set of samples, with its standard error where one seed tells it, and how many samples it is of."""

    value: float
    error: float | None = None
    count: int | None = None


@dataclass
class FeatureSet:
    """Features of some examples: all rows, in memory or in a file, or their sums alone.

    Args:
        rows: [n, d]; None where only sums are kept.
        sums: count, mean and covariance; computed of the rows where they are asked for first.
        columns: names of the features of a table.
    """

    rows: np.ndarray | None
    _sums: GaussianSums | None = None
    columns: Sequence[str] = field(default=())

    @property
    def sums(self) -> GaussianSums:
        """Count, mean and covariance."""
        if self._sums is None:
            assert self.rows is not None
            self._sums = GaussianSums()
            for start in range(0, len(self.rows), BLOCK):
                self._sums.update(self.rows[start : start + BLOCK])
        return self._sums

    @property
    def every(self) -> np.ndarray:
        """All rows."""
        assert self.rows is not None
        return np.asarray(self.rows)

    def __len__(self) -> int:
        """How many examples."""
        return self.sums.count if self.rows is None else len(self.rows)

    def some(self, count: int, seed: int) -> np.ndarray:
        """Up to `count` rows, chosen by the seed."""
        if self.rows is None or count >= len(self.rows):
            return self.every
        return np.asarray(self.rows[np.sort(np.random.default_rng(seed).permutation(len(self.rows))[:count])])

    def halves(self, count: int) -> "tuple[FeatureSet, FeatureSet]":
        """`count` rows, half of all at most, and all others: disjoint."""
        assert self.rows is not None
        order = np.random.default_rng(0).permutation(len(self.rows))
        count = min(count, len(order) // 2)
        some, others = np.sort(order[:count]), np.sort(order[count:])
        return FeatureSet(np.asarray(self.rows[some]), columns=self.columns), FeatureSet(
            np.asarray(self.rows[others]), columns=self.columns
        )


Estimates = dict[str, Estimate]
Distance = Callable[[FeatureSet, FeatureSet, int], Estimates]  # of samples from data, by a seed


def _frechet(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    return {"fd": Estimate(frechet_distance(samples.sums, real.sums).value)}


def _frechet_infinity(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    found = frechet_infinity(samples.every, real.sums, seed=seed)
    return {"fd_infinity": Estimate(found.value, found.error)}


def _kernel(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    found = kernel_distance(samples.every, real.some(len(samples), seed), seed=seed)
    return {"kd": Estimate(found.value, found.error)}


def _mind(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    return {"mind": Estimate(mind(samples.every, real.some(len(samples), seed), seed=seed).value)}


def _prdc(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    found = prdc(real.some(len(samples), seed), samples.every, K, clip=True)
    return {name: Estimate(value) for name, value in found.items()}


def _sliced(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    return {"sliced_wasserstein": Estimate(sliced_wasserstein(samples.every, real.some(len(samples), seed), seed=seed))}


def _exact(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    count = min(EXACT, len(samples), len(real))
    return {"wasserstein": Estimate(exact_wasserstein(samples.some(count, seed), real.some(count, seed)), count=count)}


def _mmd(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    count = min(PAIRS, len(samples))
    return {"mmd": Estimate(mmd(samples.some(count, seed), real.some(count, seed)), count=count)}


def _columns(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    found = column_distances(real.every, samples.every, names=real.columns)
    return {f"column_distance {column.name}": Estimate(column.distance) for column in found}


def _correlations(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    return {"correlation_difference": Estimate(correlation_difference(real.every, samples.every))}


def _two_sample(samples: FeatureSet, real: FeatureSet, seed: int) -> Estimates:
    found = classifier_two_sample(real.some(PAIRS, seed), samples.some(PAIRS, seed), seed=seed)
    return {"two_sample_accuracy": Estimate(found.accuracy, found.error, found.count)}


DISTANCES: Mapping[str, Distance] = {
    "fd": _frechet,
    "fd-infinity": _frechet_infinity,
    "kd": _kernel,
    "mind": _mind,
    "prdc": _prdc,
    "sw": _sliced,
    "w": _exact,
    "mmd": _mmd,
    "columns": _columns,
    "correlations": _correlations,
    "c2st": _two_sample,
}

ABOUT: Mapping[str, str] = {
    "fd": "Fréchet distance (with Inception features: fid@inception)",
    "fd-infinity": "Fréchet distance extrapolated to infinitely many samples",
    "kd": "kernel distance, unbiased",
    "mind": "3 d times the squared sliced Wasserstein distance: for small counts",
    "prdc": "precision, recall, density, coverage, and the clipped four",
    "sw": "sliced Wasserstein distance",
    "w": f"exact Wasserstein distance of {EXACT} points at most",
    "mmd": "mean discrepancy under a Gaussian kernel",
    "columns": "distance of each column of a table",
    "correlations": "difference of the correlations of a table's columns",
    "c2st": "accuracy of a classifier that tells samples from data",
    "accuracy": "share of samples that a judge reads as the class that was asked for",
    "memorisation": "share of samples nearer to the training data than held-out data are",
    "bpd": "bits/dim of the data under the model, by its bound and by the flow",
    "is": "inception score, of features with ImageNet's classes",
    "psnr": "of restorations, row by row against the data, in dB",
    "ssim": "structural similarity, row by row against the data",
    "lpips": "perceptual distance, row by row against the data",
}
PAIRED = ("psnr", "ssim", "lpips")  # figures of restorations: sample i is held against row i of the data


def default_metrics(spec: DataSpec, *, has_labels: bool, few: bool) -> list[str]:
    """What is measured where nothing is asked for, by the form of the data.

    Args:
        spec: of the data.
        has_labels: whether samples and data have classes.
        few: whether the samples are too few for a Fréchet distance.
    """
    if spec.columns:
        return ["columns", "correlations", "c2st", "sw"]
    if len(spec.shape) == 1:
        return ["sw", "w", "mmd"]
    return ["mind" if few else "fd", "kd", "prdc", *(["accuracy"] if has_labels else []), "memorisation"]


def name_of(measure: str, features: str) -> str:
    """The name of a figure, which says its features; `fid` is that of Inception alone."""
    if features.startswith("inception"):
        measure = {"fd": "fid", "fd_infinity": "fid_infinity", "kd": "kid"}.get(measure, measure)
    return f"{measure}@{features}"


def check_metrics(names: Sequence[str]) -> list[str]:
    """The names, where all are known.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if name.startswith("fid"):
            raise ValueError('a Fréchet distance is called "fd"; it is reported as fid@… where --features is inception:PATH.')
        if name not in ABOUT:
            raise ValueError(unknown(name, list(ABOUT), "metric"))
    if not names:
        raise ValueError(f"there must be a metric at least; the metrics are {', '.join(ABOUT)}.")
    return list(dict.fromkeys(names))
