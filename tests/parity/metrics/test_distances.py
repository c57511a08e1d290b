"""Our distances beside those of torch-fidelity, clean-fid and prdc, on the same features."""

import numpy as np
import pytest
import torch

from sfumato.metrics import GaussianSums, frechet_distance, inception_score, prdc
from sfumato.metrics.kernel import unbiased_mmd


def features(count, dim, *, rank=None, seed=0):
    """Correlated, skewed, at least 0, as those of a ReLU; of less than full rank where asked."""
    generator = np.random.default_rng(seed)
    inside = rank or dim
    mix = np.random.default_rng(7).normal(size=(inside, dim)) / np.sqrt(inside) * np.linspace(0.2, 2.0, dim)
    rows = generator.normal(0.1 * seed, 1, size=(count, inside)) @ mix
    return np.maximum(rows, 0) if rank is None else rows


def sums(rows):
    total = GaussianSums()
    total.update(rows)
    return total


SETS = {
    "full rank": (features(3000, 64), features(2500, 64, seed=1)),
    "wide": (features(600, 200), features(700, 200, seed=1)),
    "fewer samples than features": (features(100, 150), features(120, 150, seed=1)),
    "features that follow from others": (features(2000, 64, rank=20), features(2000, 64, rank=20, seed=1)),
}
TOLERANCE = dict.fromkeys(SETS, 1e-8) | {
    # Theirs take square roots of eigenvalues that are zero but for rounding; ours is held to 1e-10 in tests/test_metrics.py.
    "features that follow from others": 1e-6
}
every_set = pytest.mark.parametrize("name", SETS)


def bound(a, b, share):
    return share * (np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)))


@every_set
def test_frechet_distance_is_that_of_torch_fidelity(name):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = SETS[name]
    theirs = [metric_fid.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (a, b)]
    wanted = metric_fid.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert wanted > 0.01
    assert frechet_distance(sums(a), sums(b)).value == pytest.approx(wanted, abs=bound(a, b, TOLERANCE[name]))


@every_set
def test_frechet_distance_is_that_of_clean_fid(name):
    fid = pytest.importorskip("cleanfid.fid")
    a, b = SETS[name]
    wanted = fid.frechet_distance(*(part for rows in (a, b) for part in (rows.mean(axis=0), np.cov(rows, rowvar=False))))
    assert frechet_distance(sums(a), sums(b)).value == pytest.approx(wanted, abs=bound(a, b, TOLERANCE[name]))


def test_kernel_distance_is_that_of_torch_fidelity():
    """One subset of all samples, so that no drawing is in it."""
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = (rows[:1000] for rows in SETS["full rank"])
    theirs = metric_kid.kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=1000, verbose=False)
    wanted = theirs["kernel_inception_distance_mean"]
    assert abs(wanted) > 1e-3
    assert unbiased_mmd(a, b) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(("dim", "k"), [(2, 5), (16, 3), (64, 5)])
def test_prdc_is_that_of_the_package_prdc(dim, k):
    theirs = pytest.importorskip("prdc")
    a, b = features(800, dim), features(700, dim, seed=1) * 0.8
    wanted = theirs.compute_prdc(a, b, k)
    assert 0 < wanted["recall"] < 1
    assert prdc(a, b, k, block=97) == {name: float(value) for name, value in wanted.items()}


def test_inception_score_is_that_of_torch_fidelity():
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * torch.randn(500, 1008, dtype=torch.float64)
    wanted = metric_isc.isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert wanted > 2
    assert inception_score(logits.softmax(dim=1).numpy(), splits=1).value == pytest.approx(wanted, rel=1e-10)
