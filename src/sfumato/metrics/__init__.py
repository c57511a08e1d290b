"""Figures of samples: pure functions of features, and the features themselves."""

from sfumato.metrics.features import Features, load_features
from sfumato.metrics.frechet import Extrapolated, Frechet, GaussianSums, frechet_distance, frechet_infinity
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.judges import Judge, load_judge
from sfumato.metrics.kernel import Estimate, kernel_distance
from sfumato.metrics.memorisation import Memorisation, memorisation
from sfumato.metrics.prdc import prdc
from sfumato.metrics.restored import lpips, psnr, ssim
from sfumato.metrics.tables import Column, TwoSample, classifier_two_sample, column_distances, correlation_difference
from sfumato.metrics.transport import exact_wasserstein, mind, mmd, sliced_wasserstein

__all__ = [
    "Column",
    "Estimate",
    "Extrapolated",
    "Features",
    "Frechet",
    "GaussianSums",
    "Judge",
    "Memorisation",
    "TwoSample",
    "classifier_two_sample",
    "column_distances",
    "correlation_difference",
    "exact_wasserstein",
    "frechet_distance",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
    "load_features",
    "load_judge",
    "lpips",
    "memorisation",
    "mind",
    "mmd",
    "prdc",
    "psnr",
    "sliced_wasserstein",
    "ssim",
]
