"""python -m pytest benchmarks/quality/test_score.py"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import classifier
import score


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


@pytest.mark.parametrize(("mean", "deviation"), [((0.0, 3.0), (1.0, 1.0)), ((2.0, 2.0), (0.5, 4.0)), ((-1.0, 1.5), (2.0, 0.0))])
def test_frechet_in_one_dimension(mean, deviation):
    """(m - m')² + (s - s')²."""
    (a, b), (s, r) = mean, deviation
    got = score.frechet(np.array([a]), np.array([[s**2]]), np.array([b]), np.array([[r**2]]))
    assert got == pytest.approx((a - b) ** 2 + (s - r) ** 2, abs=1e-12)


def test_frechet_of_commuting_covariances(rng):
    """With common eigenvectors: |m - m'|² + Σ (√λ - √λ')²; some λ are zero, as of features that never fire."""
    basis, (m, n) = rotation(rng, 32), rng.normal(size=(2, 32))
    p, q = rng.exponential(size=(2, 32))
    p[:5], q[3:8] = 0, 0
    got = score.frechet(m, basis * p @ basis.T, n, basis * q @ basis.T)
    assert got == pytest.approx(np.square(m - n).sum() + np.square(np.sqrt(p) - np.sqrt(q)).sum(), rel=1e-6)


def test_frechet_of_covariances_that_do_not_commute(rng):
    """In two dimensions tr (AB)^½ = √(tr AB + 2 √(det A det B))."""
    a, b = (x @ x.T for x in rng.normal(size=(2, 2, 2)))
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    assert score.frechet(np.zeros(2), a, np.zeros(2), b) == pytest.approx(np.trace(a) + np.trace(b) - 2 * cross)


def test_frechet_is_symmetric(rng):
    (m, n), (x, y) = rng.normal(size=(2, 16)), rng.normal(size=(2, 40, 16))
    a, b = np.cov(x.T), np.cov(y.T)
    assert score.frechet(m, a, n, b) == pytest.approx(score.frechet(n, b, m, a))


def test_kernel_distance_in_expectation():
    """Of x ~ N(0, 1) and y ~ N(1, 1) under (xy + 1)³: E k(x, x') = 4, E k(y, y') = 32, E k(x, y) = 7, so the squared MMD is 22."""
    rng = np.random.default_rng(1)
    got = [score.kernel_distance(rng.normal(size=(500, 1)), rng.normal(1.0, size=(500, 1))) for _ in range(200)]
    assert np.mean(got) == pytest.approx(22, abs=4 * np.std(got) / np.sqrt(len(got)))


def test_features_do_not_depend_on_the_batch(rng):
    images, net = rng.integers(0, 256, size=(501, 28, 28, 1), dtype=np.uint8), classifier.load()
    features, labels = classifier.describe(net, images)
    alone, label = classifier.describe(net, images[500:])
    np.testing.assert_allclose(alone, features[500:], atol=1e-5)
    assert label == labels[500:]
    assert features.shape == (501, classifier.FEATURES)


def test_samples_of_another_shape_are_refused(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((3, 28, 28), np.uint8), arr_1=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"uint8 \[3, 28, 28, 1\], got uint8 \[3, 28, 28\]"):
        score.samples(tmp_path / "samples.npz")
