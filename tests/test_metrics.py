"""Distances of samples: closed forms, float64 replicas, and laws whose figures are known."""

import math
from itertools import permutations

import numpy as np
import pytest

from sfumato.metrics import (
    GaussianSums,
    classifier_two_sample,
    column_distances,
    correlation_difference,
    exact_wasserstein,
    frechet_distance,
    frechet_infinity,
    inception_score,
    kernel_distance,
    mind,
    mmd,
    prdc,
    sliced_wasserstein,
)
from sfumato.metrics.kernel import unbiased_mmd
from sfumato.metrics.neighbours import kth_nearest, nearest
from sfumato.metrics.prdc import expected_coverage
from sfumato.metrics.transport import wasserstein_1d


def normal(*size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def sums(rows, batch=None):
    total = GaussianSums()
    for start in range(0, len(rows), batch or len(rows)):
        total.update(rows[start : start + (batch or len(rows))])
    return total


def with_moments(mean, covariance, count=400, seed=0):
    """Rows with exactly this mean and unbiased covariance."""
    rows = normal(count, len(mean), seed=seed)
    rows -= rows.mean(axis=0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    values, vectors = np.linalg.eigh(covariance)
    return rows @ (vectors * np.sqrt(values.clip(min=0))).T + mean


def test_frechet_distance_of_gaussians_along_the_same_axes():
    """Covariances that commute: |m_a - m_b|² + Σ (√λ_a - √λ_b)²."""
    axes = np.linalg.qr(normal(5, 5))[0]
    a, b = np.array([4.0, 1.0, 0.25, 9.0, 2.0]), np.array([1.0, 1.0, 4.0, 2.25, 0.5])
    step = np.array([1.0, -2.0, 0.0, 0.5, 0.0])
    first, second = with_moments(step, axes * a @ axes.T), with_moments(np.zeros(5), axes * b @ axes.T, seed=1)
    found = frechet_distance(sums(first), sums(second))
    assert found.mean_term == pytest.approx(5.25)
    assert found.value == pytest.approx(5.25 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-10)
    assert (found.rank_a, found.rank_b, found.notes) == (5, 5, ())


def test_frechet_distance_is_the_replica_at_full_rank():
    """Against tr (AB)^½ by the eigenvalues of the product, which needs full rank."""
    a, b = normal(500, 32) @ normal(32, 32, seed=2), normal(400, 32, seed=1) @ normal(32, 32, seed=3) + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    wanted = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(sums(a), sums(b)).value == pytest.approx(wanted, abs=1e-10 * (np.trace(cov_a) + np.trace(cov_b)))


def test_singular_covariances_are_exact_and_said():
    """Variances 4 and 9 along one line, 1 and 0 along another: nothing is added to any."""
    first = with_moments(np.zeros(3), np.diag([4.0, 1.0, 0.0]))
    second = with_moments(np.zeros(3), np.diag([9.0, 0.0, 0.0]), seed=1)
    found = frechet_distance(sums(first), sums(second))
    assert found.value == pytest.approx(1.0 + 1.0, rel=1e-9)
    assert (found.rank_a, found.rank_b) == (2, 1)
    assert "the first set has rank 2 of 3, as some features are constant" in found.notes[0]


def test_a_distance_in_a_subspace_is_that_of_its_coordinates():
    """Rows on a plane of 8 dimensions among 30: the full-rank replica in coordinates along the plane."""
    plane = np.linalg.qr(normal(30, 8, seed=4))[0].T
    a, b = normal(300, 8) @ normal(8, 8, seed=2), 0.2 + normal(200, 8, seed=1) @ normal(8, 8, seed=3)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    scale = np.trace(cov_a) + np.trace(cov_b)
    wanted = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + scale - 2 * np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    found = frechet_distance(sums(a @ plane), sums(b @ plane))
    assert found.value == pytest.approx(wanted, abs=1e-10 * scale)
    assert (found.rank_a, found.rank_b) == (8, 8)


def test_too_few_samples_for_the_rank_are_said():
    found = frechet_distance(sums(normal(10, 20)), sums(normal(100, 20, seed=1)))
    assert (found.rank_a, found.rank_b) == (9, 20)
    assert found.notes == (
        "the covariance of the first set has rank 9 of 20, as it has 10 samples; give at least 21: "
        "with fewer, the distance is mostly that of too few samples.",
    )


def test_equal_samples_have_a_distance_and_a_note():
    found = frechet_distance(sums(np.ones((5, 3))), sums(np.zeros((4, 3))))
    assert found.value == pytest.approx(3.0)
    assert "all of its 5 samples have the same features" in found.notes[0]


@pytest.mark.parametrize("batch", [1, 7, 256, 300])
def test_sums_are_the_same_to_the_bit_for_any_batch(batch):
    rows = 1e4 + normal(1000, 6)
    whole, parts = sums(rows), sums(rows, batch)
    assert np.array_equal(whole.mean, parts.mean)
    assert np.array_equal(whole.covariance, parts.covariance)


def test_sums_do_not_cancel_and_merge():
    rows = 1e8 + normal(1000, 4)
    merged, rest = sums(rows[:333]), sums(rows[333:])
    merged.merge(rest)
    assert merged.count == 1000
    np.testing.assert_allclose(merged.covariance, np.cov(rows, rowvar=False), atol=1e-7)
    again = GaussianSums.from_state(merged.state())
    again.update(rows[:5])
    merged.update(rows[:5])
    assert np.array_equal(again.covariance, merged.covariance)


def test_frechet_distance_at_infinite_count_has_no_bias():
    """Of samples of the reference's own law it is 0; the plain distance is far above its error."""
    reference = with_moments(np.zeros(20), np.eye(20), count=2000)
    samples = normal(1000, 20, seed=5)
    found, plain = frechet_infinity(samples, sums(reference), seed=1), frechet_distance(sums(samples), sums(reference)).value
    assert plain > 0.1
    assert abs(found.value) < min(0.5 * plain, 3 * found.error)
    assert found.slope > 0


def test_kernel_distance_of_few_samples_by_hand():
    """d = 1, k(x, y) = (xy + 1)³, a = {0, 1, 2}, b = {1, 3}: the sums over pairs, in full."""
    a, b = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0]])
    within_a = (1 + 1 + 27) * 2 / 6  # pairs 01, 02, 12
    within_b = 64
    between = (1 + 1 + 8 + 64 + 27 + 343) / 6
    assert unbiased_mmd(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_kernel_distance_has_no_bias_and_an_honest_error():
    """Equal laws: the mean over seeds is 0, and the spread over fresh samples is the error that one set tells."""
    found = [kernel_distance(normal(200, 8, seed=2 * i), normal(200, 8, seed=2 * i + 1), subsets=20, size=50) for i in range(30)]
    values, errors = np.array([each.value for each in found]), np.array([each.error for each in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(30)
    assert 0.5 < errors.mean() / values.std() < 2


def test_kernel_distance_of_shifted_laws():
    """E k for normals in one dimension: E (xy + 1)³ = 1 + 3 E xy + 3 E x²y² + E x³y³, of N(0, 1) and N(1, 1)."""
    zero, one = (1, 0, 1, 0), (1, 1, 2, 4)  # moments 0 to 3

    def expected(p, q):
        return sum(math.comb(3, i) * p[i] * q[i] for i in range(4))

    wanted = expected(zero, zero) + expected(one, one) - 2 * expected(zero, one)
    found = kernel_distance(normal(1000, 1), normal(1000, 1, seed=1) + 1, subsets=20, size=250)
    assert abs(found.value - wanted) < 4 * found.error
    assert found.error < wanted / 2


def test_prdc_of_points_on_a_line_by_hand():
    """Real at 0, 1, 2, 10 with k = 1: radii 1, 1, 1, 8. Fake at 0.5, 2.5, 20: radii 2, 2, 17.5."""
    real, fake = np.array([[0.0], [1.0], [2.0], [10.0]]), np.array([[0.5], [2.5], [20.0]])
    assert prdc(real, fake, 1) == {
        "precision": pytest.approx(2 / 3),  # 20 lies 10 from 10
        "recall": 1.0,  # 10 is within 17.5 of 20
        "density": pytest.approx((2 + 2) / 3),  # 0.5 in those of 0 and 1, 2.5 in those of 2 and 10
        "coverage": 1.0,
    }


def test_a_mixture_with_known_precision_and_recall():
    """Half of the samples fall on real mass and half on none; they reach three of the four clusters of the data."""
    centres = 100.0 * np.eye(6)
    real = np.concatenate([normal(250, 6, seed=i) + centres[i] for i in range(4)])
    fake = np.concatenate([*(normal(100, 6, seed=10 + i) + centres[i] for i in range(3)), normal(300, 6, seed=20) + centres[5]])
    found = prdc(real, fake, clip=True)
    assert found["precision"] == pytest.approx(0.5, abs=0.05)
    assert 0.65 < found["recall"] <= 0.75
    assert found["coverage"] == pytest.approx(0.75 * 0.87, abs=0.1)
    assert found["clipped_precision"] == pytest.approx(0.5, abs=0.05)
    assert found["clipped_recall"] == pytest.approx(0.75, abs=0.06)
    assert found["clipped_density"] == pytest.approx(0.5, abs=0.06)
    assert found["clipped_coverage"] == pytest.approx(0.5, abs=0.06)  # 300 of 600 samples are good


def test_equal_laws_have_clipped_figures_of_one():
    found = prdc(normal(1000, 4), normal(1000, 4, seed=1), clip=True)
    assert min(found[f"clipped_{name}"] for name in ("precision", "recall", "density")) > 0.95
    assert found["clipped_coverage"] == pytest.approx(1.0, abs=0.08)


def test_clipped_figures_withstand_one_per_cent_of_outliers():
    """Samples on a sphere where no data lie: outliers of the data reach over them, and lift precision and density alone."""
    real, fake = normal(1000, 4), normal(1000, 4, seed=1)
    fake *= 12 / np.linalg.norm(fake, axis=1, keepdims=True)
    real[:10] = 12 * real[:10] / np.linalg.norm(real[:10], axis=1, keepdims=True)
    clean, planted = prdc(real[10:], fake, clip=True), prdc(real, fake, clip=True)
    assert clean["precision"] == 0.0
    assert planted["precision"] > 0.3
    assert planted["clipped_precision"] < 0.01
    assert planted["clipped_density"] < 0.01
    assert planted["clipped_coverage"] < 0.02
    lifted = prdc(fake, real, clip=True)  # the same in the samples
    assert lifted["recall"] > 0.3
    assert lifted["clipped_recall"] < 0.01


def test_expected_coverage_is_that_of_draws():
    """One sample in a ball that holds the nearest of n - 1 others: 1 / n of all places; and a simulation of the law."""
    assert expected_coverage(1, 10, 1) == pytest.approx(1 / 10)
    drawn = [prdc(normal(200, 2, seed=i), normal(150, 2, seed=1000 + i), 3, clip=True)["clipped_coverage"] for i in range(20)]
    assert np.mean(drawn) == pytest.approx(1.0, abs=0.05)


def test_equal_rows_have_no_distance():
    """Far from the origin, where |x|² + |y|² - 2 x·y would leave rounding: no copy lies within a ball of no radius."""
    rows = np.repeat(30 + normal(10, 3), 6, axis=0)
    assert np.array_equal(kth_nearest(rows, 5), np.zeros(60))
    assert prdc(rows, rows) == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_neighbours_are_those_of_all_pairs(block):
    a, b = 5 + normal(40, 5), 5 + normal(60, 5, seed=1)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=2)
    distances, places = nearest(a, b, 3, block)
    assert np.array_equal(places, pairs.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(np.sqrt(distances), np.sort(pairs, axis=1)[:, :3], rtol=1e-12)
    own = np.linalg.norm(b[:, None] - b[None], axis=2)
    np.testing.assert_allclose(np.sqrt(kth_nearest(b, 4, block)), np.sort(own, axis=1)[:, 4], rtol=1e-9)


def test_wasserstein_of_a_shift_and_of_unequal_counts():
    x = normal(101, 3)
    np.testing.assert_allclose(wasserstein_1d(x, x + 2.0, 2), 4.0)
    a, b = np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [3.0]])
    # quantiles: 0, 0 until a third, 0, 0 until a half, 1, 0 until two thirds, 1, 3 after
    assert wasserstein_1d(a, b)[0] == pytest.approx(1 / 6 + 2 / 3)
    assert wasserstein_1d(np.repeat(a, 3, axis=0), np.repeat(b, 2, axis=0))[0] == pytest.approx(1 / 6 + 2 / 3)


def test_sliced_wasserstein_of_a_shift_in_d_dimensions():
    """E (direction · step)² = |step|² / d; MIND is 3 d times it."""
    x, step = normal(300, 8), np.array([3.0, 0, 0, 4.0, 0, 0, 0, 0])
    assert sliced_wasserstein(x, x + step, projections=4000) == pytest.approx(math.sqrt(25 / 8), rel=0.05)
    found = mind(x, x + step, projections=4000)
    assert abs(found.value - 75) < 4 * found.error


def test_exact_wasserstein_is_the_least_over_all_assignments():
    pytest.importorskip("scipy")
    a, b = normal(6, 2), normal(6, 2, seed=1) + 0.5
    cost = np.square(a[:, None] - b[None]).sum(axis=2)
    wanted = min(cost[range(6), order].mean() for order in permutations(range(6)))
    assert exact_wasserstein(a, b) == pytest.approx(math.sqrt(wanted))


def test_mmd_of_normals_with_a_gaussian_kernel():
    """E k(x, y) = (1 + 2 / w²)^(-½) exp(-m² / (2 (w² + 2))) in one dimension."""
    w, m = 1.5, 1.0
    scale = 1 / math.sqrt(1 + 2 / w**2)
    wanted = 2 * scale * (1 - math.exp(-(m**2) / (2 * (w**2 + 2))))
    found = np.mean([mmd(normal(800, 1, seed=2 * i), m + normal(800, 1, seed=2 * i + 1), bandwidth=w) for i in range(8)])
    assert found == pytest.approx(wanted, rel=0.1)
    assert mmd(normal(800, 1), normal(800, 1, seed=1), bandwidth=w) == pytest.approx(0, abs=0.01)


def test_columns_of_a_table():
    real = np.stack([np.tile([0.0, 2.0], 50), np.tile([0, 1, 2, 3], 25)], axis=1)
    fake = np.stack([np.tile([1.0, 3.0], 50), np.tile([0, 0, 0, 3], 25)], axis=1)
    height, kind = column_distances(real, fake, names=["height", "kind"], classes=[1])
    assert (height.name, height.kind, height.distance, height.largest_gap) == ("height", "number", pytest.approx(1.0), pytest.approx(0.5))
    assert (kind.name, kind.kind, kind.distance, kind.largest_gap) == ("kind", "class", pytest.approx(0.5), pytest.approx(0.5))


def test_correlation_difference_of_known_correlations():
    """Correlations 0.6, 0, 0 against none: √(0.36 / 3)."""
    tied = np.eye(3)
    tied[0, 1] = tied[1, 0] = 0.6
    real, fake = with_moments(np.zeros(3), tied), with_moments(np.ones(3), np.diag([4.0, 1.0, 9.0]), seed=1)
    assert correlation_difference(real, fake) == pytest.approx(0.6 / math.sqrt(3))
    assert correlation_difference(np.hstack([real, np.ones((400, 1))]), np.hstack([fake, fake[:, :1]])) == pytest.approx(0.6 / math.sqrt(3))


def test_a_classifier_tells_tables_apart_as_well_as_can_be():
    """N(0, 1) and N(2, 1) in one column: the best accuracy is Φ(1). Equal laws: one half."""
    real, fake = normal(800, 2), normal(800, 2, seed=1)
    same = classifier_two_sample(real, fake)
    assert abs(same.accuracy - 0.5) < 4 * same.error
    assert same.p_value > 1e-3
    fake[:, 1] += 2
    other = classifier_two_sample(real, fake)
    assert 0.76 < other.accuracy < 0.841 + 3 * other.error
    assert other.p_value < 1e-6
    assert other.count == 800


def test_inception_score_of_sure_and_unsure_classes():
    """As many samples of each of 4 classes: 4 where each is certain, 1 where none says anything."""
    sure = np.tile(np.eye(4), (50, 1))
    assert inception_score(sure, splits=1).value == pytest.approx(4.0)
    assert inception_score(np.full((200, 4), 0.25), splits=5) == (pytest.approx(1.0), pytest.approx(0.0))
    halves = np.tile([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], (50, 1))
    assert inception_score(halves, splits=1).value == pytest.approx(2.0)


BAD = np.ones((5, 2))
NAN = np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, 1.0]])
REFUSALS = {
    "NaN": (lambda: sums(NAN), r"features must be finite, got NaN or infinity in 1 of 3 rows \(first: row 1\)"),
    "not rows": (lambda: sums(np.ones((3, 2, 2))), r"must be \[n, d\], one row a sample, got shape \(3, 2, 2\)"),
    "other width": (lambda: (sums(BAD)).update(np.ones((1, 3))), "must have 2 numbers a sample as those before, got 3"),
    "one sample": (lambda: sums(BAD[:1]).covariance, "at least two samples, got 1"),
    "no samples": (lambda: GaussianSums().mean, "there are no samples"),
    "two widths": (lambda: frechet_distance(sums(BAD), sums(np.ones((5, 3)))), "got 2 and 3 of them"),
    "few for a kernel": (lambda: kernel_distance(BAD[:3], BAD), "must have at least 4 rows, got 3"),
    "few neighbours": (lambda: prdc(BAD, BAD), "must have at least 6 rows, got 5"),
    "unequal counts": (lambda: exact_wasserstein(BAD, BAD[:4]), "equally many points, got 5 and 4"),
    "no bandwidth": (lambda: mmd(BAD, BAD), "bandwidth of a kernel must be positive"),
    "constant columns": (lambda: correlation_difference(BAD, BAD), "two columns that vary in both sets, got 0 of 2"),
    "no probabilities": (lambda: inception_score(BAD, splits=1), "sum to 1 in each row"),
    "a line of two points": (lambda: frechet_infinity(normal(9, 2), sums(BAD), points=2), "at least 3 points"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_measured_is_refused(name):
    call, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=sentence):
        call()
