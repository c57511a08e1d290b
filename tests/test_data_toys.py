import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_s_curve, make_swiss_roll

from sfumato.data import (
    TOYS,
    checkerboard,
    circles,
    datasaurus,
    eight_gaussians,
    gaussian_rings,
    moons,
    pinwheel,
    s_curve,
    swiss_roll,
    toy,
)

every_toy = pytest.mark.parametrize("name", TOYS)


def shared(name):
    folder = os.environ.get("SFUMATO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{name} is not here; set SFUMATO_TEST_DATA to its folder")
    return path


@every_toy
def test_seed_decides(name):
    np.testing.assert_array_equal(TOYS[name](50, 3), TOYS[name](50, 3))
    assert not np.array_equal(TOYS[name](50, 3), TOYS[name](50, 4))


@every_toy
def test_toy_is_standardised_whatever_n(name):
    assert toy(name, 10, 1).scaling == toy(name, 20, 2).scaling
    x0 = toy(name, 200_000, 5).batch(np.arange(200_000)).x.double()
    np.testing.assert_allclose(x0.mean(dim=0).numpy(), 0, atol=0.012)
    np.testing.assert_allclose(x0.std(dim=0).numpy(), 1, atol=0.012)


@every_toy
def test_one_point_is_enough(name):
    assert np.isfinite(toy(name, 1, 0).values).all()


def roll_residual(points):
    """Distance along the radius to the spiral r = φ, on its nearest turn."""
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    turns = angle[:, None] + 2 * np.pi * np.arange(4)
    return np.abs(radius[:, None] - turns).min(axis=1)


def test_swiss_roll_is_a_spiral():
    points = swiss_roll(5000, 0, noise=0.0).astype(np.float64)
    radius = np.hypot(*points.T)
    assert roll_residual(points).max() < 1e-5
    np.testing.assert_allclose([radius.min(), radius.mean(), radius.max()], np.pi * np.array([1.5, 3, 4.5]), rtol=0.02)
    # Perpendicular to the spiral the noise is almost radial: r' / r is small this far out.
    noisy = roll_residual(swiss_roll(20_000, 0).astype(np.float64))
    assert np.sqrt(np.mean(noisy**2)) == pytest.approx(0.5, rel=0.03)


def test_s_curve_is_two_arcs():
    x, y = s_curve(5000, 0, noise=0.0).astype(np.float64).T
    np.testing.assert_allclose(x**2 + (np.abs(y) - 1) ** 2, 1, atol=1e-5)
    assert (y > 0).mean() == pytest.approx(0.5, abs=0.03)
    # Each arc is three quarters of a circle; the last quarter would close the S to an 8.
    assert not ((y > 1e-3) & (y < 0.999) & (x > 1e-3)).any()
    assert not ((y < -1e-3) & (y > -0.999) & (x < -1e-3)).any()
    x, y = s_curve(20_000, 0).astype(np.float64).T
    assert np.std(np.hypot(x, np.abs(y) - 1) - 1) == pytest.approx(0.05, rel=0.05)


def test_moons_lie_on_half_circles():
    points = moons(2000, 0, noise=0.0).astype(np.float64)
    outer = (np.abs(np.hypot(*points.T) - 1) < 1e-6) & (points[:, 1] >= -1e-6)
    inner = (np.abs(np.hypot(*(points - [1, 0.5]).T) - 1) < 1e-6) & (points[:, 1] <= 0.5 + 1e-6)
    assert (outer | inner).all()
    assert outer.sum() == pytest.approx(1000, abs=100)  # either moon equally likely: 4.5 deviations
    noisy = moons(20_000, 0).astype(np.float64)
    residual = np.minimum(np.abs(np.hypot(*noisy.T) - 1), np.abs(np.hypot(*(noisy - [1, 0.5]).T) - 1))
    assert residual.max() < 6 * 0.05


def test_circles_have_two_radii():
    radius = np.hypot(*circles(20_000, 0).astype(np.float64).T)
    outer = radius > 0.75
    assert outer.mean() == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose([radius[outer].mean(), radius[~outer].mean()], [1, 0.5], atol=0.003)
    np.testing.assert_allclose([radius[outer].std(), radius[~outer].std()], 0.03, rtol=0.05)


def test_checkerboard_fills_the_right_cells_evenly():
    points = checkerboard(80_000, 0)
    column, row = ((points + 4) // 2).astype(int).T
    assert column.min() >= 0
    assert max(column.max(), row.max()) <= 3
    assert ((column + row) % 2 == 0).all()
    counts = np.bincount(4 * row + column, minlength=16)
    assert (counts > 0).sum() == 8
    np.testing.assert_allclose(counts[counts > 0], 10_000, atol=5 * np.sqrt(10_000))
    inside = (points.astype(np.float64) + 4) % 2
    np.testing.assert_allclose(inside.mean(axis=0), 1, atol=0.01)
    np.testing.assert_allclose(inside.var(axis=0), 4 / 12, atol=0.01)


def test_pinwheel_untwists_to_five_thin_arms():
    points = pinwheel(20_000, 0).astype(np.float64) / 2
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    untwisted = angle - 0.25 * np.exp(radius)
    arm = np.round(untwisted / (2 * np.pi / 5))
    across = radius * np.sin(untwisted - arm * 2 * np.pi / 5)
    assert np.median(np.abs(across)) == pytest.approx(0.6745 * 0.05, rel=0.05)
    np.testing.assert_allclose([radius.mean(), radius.std()], [1, 0.3], atol=0.01)
    np.testing.assert_allclose(np.bincount(arm.astype(int) % 5) / 20_000, 0.2, atol=0.015)


def test_rings_have_three_radii():
    radius = np.hypot(*gaussian_rings(30_000, 0).astype(np.float64).T)
    ring = np.round(radius)
    np.testing.assert_allclose(np.bincount(ring.astype(int)) / 30_000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.015)
    assert np.std(radius - ring) == pytest.approx(0.08, rel=0.03)


def test_eight_gaussians_have_their_centres_and_weights():
    points = eight_gaussians(40_000, 0).astype(np.float64)
    place = np.round(np.arctan2(points[:, 1], points[:, 0]) / (np.pi / 4)).astype(int) % 8
    centres = 4 * np.stack([np.cos(np.pi / 4 * place), np.sin(np.pi / 4 * place)], axis=1)
    np.testing.assert_allclose(np.bincount(place) / 40_000, 1 / 8, atol=0.01)
    np.testing.assert_allclose((points - centres).std(axis=0), 0.5, rtol=0.02)


@pytest.mark.parametrize(
    ("name", "n", "seed", "message"),
    [
        ("swiss-rol", 10, 0, "unknown toy 'swiss-rol'; did you mean 'swiss-roll'"),
        ("???", 10, 0, "known are swiss-roll, s-curve"),
        ("moons", 0, 0, "n of at least 1 point, got 0"),
        ("moons", 10, -1, "seed of a toy must be 0 to"),
        ("checkerboard", 10, 1 << 32, "seed of a toy must be 0 to"),
    ],
)
def test_toy_refuses(name, n, seed, message):
    with pytest.raises(ValueError, match=message):
        toy(name, n, seed)


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.tsv"
    path.write_text("dataset\tx\ty\nline\t0\t0\nline\t50\t50\nline\t100\t100\ndot\t5\t6\ndot\t5\t7\n")
    return path


def test_datasaurus_gives_the_points_of_one_shape(shapes):
    data = datasaurus(shapes, "line")
    np.testing.assert_array_equal(data.values, [[0, 0], [50, 50], [100, 100]])
    assert data.name == "datasaurus-line"


def test_datasaurus_draws_stay_near_the_points(shapes):
    data = datasaurus(shapes, "line", 3000, 1, jitter=0.5)
    nearest = np.round(data.values / 50) * 50
    np.testing.assert_array_equal(nearest[:, 0], nearest[:, 1])
    assert np.std(data.values - nearest) == pytest.approx(0.5, rel=0.05)
    np.testing.assert_allclose(np.unique(nearest[:, 0], return_counts=True)[1] / 3000, 1 / 3, atol=0.04)
    assert data.scaling == datasaurus(shapes, "line").scaling
    np.testing.assert_array_equal(data.values, datasaurus(shapes, "line", 3000, 1, jitter=0.5).values)


@pytest.mark.parametrize(
    ("text", "shape", "n", "message"),
    [
        ("dataset\tx\ty\nline\t0\t0\n", "lines", None, "unknown shape 'lines' .* did you mean 'line'"),
        ("dataset,x,y\nline,0,0\n", "line", None, "columns dataset, x and y, got dataset,x,y"),
        ("", "line", None, "got no columns"),
        ("dataset\tx\ty\nline\t0\n", "line", None, r"line 2: expected a shape and two numbers, got \['line', '0'\]"),
        ("dataset\tx\ty\nline\t0\tzero\n", "line", None, "line 2: expected"),
        ("dataset\tx\ty\nline\t0\tnan\n", "line", None, "must be finite"),
        ("dataset\tx\ty\nline\t0\t0\n", "line", 0, "at least 1 point"),
    ],
)
def test_datasaurus_refuses(tmp_path, text, shape, n, message):
    (tmp_path / "shapes.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        datasaurus(tmp_path / "shapes.tsv", shape, n)


def test_datasaurus_refuses_jitter_and_missing_file(shapes, tmp_path):
    with pytest.raises(ValueError, match="jitter must be 0 or more"):
        datasaurus(shapes, "line", 5, jitter=-1.0)
    with pytest.raises(ValueError, match=r"cannot read .*none.tsv: No such file"):
        datasaurus(tmp_path / "none.tsv", "line")


@pytest.mark.parametrize("shape", ["dino", "star", "wide_lines"])
def test_real_shapes_share_their_statistics(shape):
    data = datasaurus(shared("points/datasaurus.tsv"), shape)
    assert len(data) == 142
    np.testing.assert_allclose(data.values.mean(axis=0), [54.26, 47.83], atol=0.01)
    np.testing.assert_allclose(data.values.std(axis=0, ddof=1), [16.77, 26.94], atol=0.01)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize(("ours", "theirs", "noise"), [(swiss_roll, make_swiss_roll, 0.5), (s_curve, make_s_curve, 0.05)])
def test_rolls_and_curves_are_those_of_scikit_learn_to_the_bit(ours, theirs, noise, seed):
    """So that data, fingerprints and runs are those of versions that drew them from scikit-learn."""
    for n in (1, 1000):
        np.testing.assert_array_equal(ours(n, seed), theirs(n, noise=noise, random_state=seed)[0][:, [0, 2]].astype(np.float32))
