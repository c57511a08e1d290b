"""Points in the plane whose distribution is known: each function *is* the distribution, so another seed gives fresh data.

The functions return raw coordinates; `toy` adds a Scaling of fixed constants (mean and standard deviation of the distribution,
to four digits), which depends neither on n nor on the seed. The swiss roll and the S curve are scikit-learn's to the bit; its moons and
circles lie at equal angles, which no independent sample does, so these two are our own.
"""

import csv
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from sfumato.data.dataset import Dataset
from sfumato.data.scaling import Scaling


def _check(n: int, seed: int) -> None:
    """Refuses what the generators would refuse in their own words."""
    if n < 1:
        raise ValueError(f"a toy needs n of at least 1 point, got {n}.")
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"the seed of a toy must be 0 to 2**32 - 1, got {seed}.")


def swiss_roll(n: int, seed: int, *, noise: float = 0.5) -> Float32[np.ndarray, "n 2"]:
    """r = φ + noise with φ uniform in [1.5π, 4.5π]: the roll seen from its side, scikit-learn's coordinates 0 and 2 of the same seed."""
    _check(n, seed)
    generator = np.random.RandomState(seed)
    phi = 1.5 * np.pi * (1 + 2 * generator.uniform(size=n))
    generator.uniform(size=n)  # the coordinate along the roll, which is not seen
    points = np.stack([phi * np.cos(phi), phi * np.sin(phi)]) + (noise * generator.standard_normal((3, n)))[[0, 2]]
    return points.T.astype(np.float32)


def s_curve(n: int, seed: int, *, noise: float = 0.05) -> Float32[np.ndarray, "n 2"]:
    """(sin u, sign(u) (cos u - 1)) + noise with u uniform in [-1.5π, 1.5π]: scikit-learn's coordinates 0 and 2 of the same seed."""
    _check(n, seed)
    generator = np.random.RandomState(seed)
    u = 3 * np.pi * (generator.uniform(size=n) - 0.5)
    generator.uniform(size=n)  # the coordinate across the curve, which is not seen
    points = np.stack([np.sin(u), np.sign(u) * (np.cos(u) - 1)]) + (noise * generator.standard_normal((3, n)))[[0, 2]]
    return points.T.astype(np.float32)


def moons(n: int, seed: int, *, noise: float = 0.05) -> Float32[np.ndarray, "n 2"]:
    """Two interleaved half circles of radius 1, around (0, 0) and (1, 0.5), plus noise; either moon and any angle equally likely."""
    _check(n, seed)
    rng = np.random.default_rng(seed)
    lower, angle = rng.integers(0, 2, n), np.pi * rng.random(n)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(lower[:, None], [1.0, 0.5] - upper, upper)
    return (points + noise * rng.standard_normal((n, 2))).astype(np.float32)


def circles(n: int, seed: int, *, noise: float = 0.03) -> Float32[np.ndarray, "n 2"]:
    """Two circles of radius 1 and 1/2 around the origin, plus noise; either circle and any angle equally likely."""
    _check(n, seed)
    rng = np.random.default_rng(seed)
    radius, angle = rng.choice([1.0, 0.5], n), 2 * np.pi * rng.random(n)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (points + noise * rng.standard_normal((n, 2))).astype(np.float32)


def checkerboard(n: int, seed: int) -> Float32[np.ndarray, "n 2"]:
    """Uniform over the cells of [-4, 4]² with side 2 for which column + row is even."""
    _check(n, seed)
    generator = np.random.default_rng(seed)
    column = generator.integers(0, 4, n)
    row = 2 * generator.integers(0, 2, n) + column % 2
    corner = 2 * np.stack([column, row], axis=1) - 4
    # A point rounded up to the far edge would lie in the wrong cell, so the draw is made in float32's own grid.
    return (corner + 2 * generator.random((n, 2), dtype=np.float32) * np.float32(1 - 2**-20)).astype(np.float32)


def pinwheel(n: int, seed: int, *, arms: int = 5) -> Float32[np.ndarray, "n 2"]:
    """Arms of radius N(1, 0.3²) and width 0.05, each turned by 0.25 eʳ, at twice the size. Johnson et al. (2016), arXiv:1603.06277."""
    _check(n, seed)
    generator = np.random.default_rng(seed)
    along, across = generator.normal([1.0, 0.0], [0.3, 0.05], (n, 2)).T
    angle = 2 * np.pi * generator.integers(0, arms, n) / arms + 0.25 * np.exp(along)
    turned = [along * np.cos(angle) - across * np.sin(angle), along * np.sin(angle) + across * np.cos(angle)]
    return (2 * np.stack(turned, axis=1)).astype(np.float32)


def gaussian_rings(n: int, seed: int, *, noise: float = 0.08) -> Float32[np.ndarray, "n 2"]:
    """Rings of radius 1, 2 and 3 with a third of the points each; radius N(r, noise²), angle uniform."""
    _check(n, seed)
    generator = np.random.default_rng(seed)
    radius = generator.integers(1, 4, n) + noise * generator.standard_normal(n)
    angle = generator.uniform(0, 2 * np.pi, n)
    return (radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def eight_gaussians(n: int, seed: int, *, noise: float = 0.5) -> Float32[np.ndarray, "n 2"]:
    """Eight equal Gaussians of standard deviation `noise` on a circle of radius 4, the first at angle 0."""
    _check(n, seed)
    generator = np.random.default_rng(seed)
    angle = np.pi / 4 * generator.integers(0, 8, n)
    centre = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (centre + noise * generator.standard_normal((n, 2))).astype(np.float32)


TOYS: Mapping[str, Callable[[int, int], np.ndarray]] = {
    "swiss-roll": swiss_roll,
    "s-curve": s_curve,
    "moons": moons,
    "circles": circles,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "gaussian-rings": gaussian_rings,
    "eight-gaussians": eight_gaussians,
}

_MEAN_AND_SPREAD: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "swiss-roll": ((2.0, 0.2122), (6.6419, 6.9692)),
    "s-curve": ((0.0, 0.0), (0.7089, 1.3882)),
    "moons": ((0.5, 0.25), (0.8675, 0.4967)),
    "circles": ((0.0, 0.0), (0.5598, 0.5598)),
    "checkerboard": ((0.0, 0.0), (2.3094, 2.3094)),
    "pinwheel": ((0.0, 0.0), (1.4782, 1.4782)),
    "gaussian-rings": ((0.0, 0.0), (1.5286, 1.5286)),
    "eight-gaussians": ((0.0, 0.0), (2.8723, 2.8723)),
}


def toy(name: str, n: int, seed: int) -> Dataset:
    """n points of a toy by its name in TOYS, without labels.

    Raises:
        ValueError: for an unknown name, n < 1 or a seed outside 0 ... 2³² - 1.
    """
    if name not in TOYS:
        raise ValueError(f"unknown toy {name!r}; {_nearest(name, TOYS)}")
    shift, scale = _MEAN_AND_SPREAD[name]
    scaling = Scaling(shift=shift, scale=scale, dtype="float32")
    return Dataset(values=TOYS[name](n, seed), labels=None, classes=(), scaling=scaling, name=name)


def datasaurus(path: str | Path, shape_name: str, n: int | None = None, seed: int = 0, *, jitter: float = 1.0) -> Dataset:
    """A shape of the Datasaurus Dozen: its own 142 points, or n draws of them with replacement and Gaussian jitter.

    The Scaling is measured on the points of the file, whatever n.

    Args:
        path: a tab-separated file with the columns dataset, x and y; jitter is in its units (the shapes span about 0 ... 100).

    Raises:
        ValueError: for a file of another form, an unknown shape, n < 1 or a negative jitter.
    Reference: Matejka & Fitzmaurice (2017), Same Stats, Different Graphs, doi:10.1145/3025453.3025912
    """
    shapes = _read_shapes(Path(path))
    if shape_name not in shapes:
        raise ValueError(f"unknown shape {shape_name!r} in {path}; {_nearest(shape_name, shapes)}")
    points = np.array(shapes[shape_name], dtype=np.float32)
    scaling = Scaling.measure(points)
    if n is not None:
        _check(n, seed)
        if jitter < 0:
            raise ValueError(f"the jitter must be 0 or more, got {jitter}.")
        generator = np.random.default_rng(seed)
        drawn = points[generator.integers(0, len(points), n)]
        points = (drawn + jitter * generator.standard_normal(drawn.shape)).astype(np.float32)
    return Dataset(values=points, labels=None, classes=(), scaling=scaling, name=f"datasaurus-{shape_name}")


def _read_shapes(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Points by shape, in the order of the file."""
    shapes: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t")
            header = next(rows, [])
            if header != ["dataset", "x", "y"]:
                raise ValueError(
                    f"{path} must be tab-separated with the columns dataset, x and y, got {', '.join(header) or 'no columns'}."
                )
            for number, row in enumerate(rows, start=2):
                if row:
                    shape, point = _read_point(row, f"{path}, line {number}")
                    shapes.setdefault(shape, []).append(point)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give the path of a Datasaurus TSV file.") from None
    return shapes


def _read_point(row: list[str], where: str) -> tuple[str, tuple[float, float]]:
    """Shape and point of one line."""
    try:
        shape, x, y = row
        return shape, (float(x), float(y))
    except ValueError:
        raise ValueError(f"{where}: expected a shape and two numbers, got {row!r}.") from None


def _nearest(name: str, names: Mapping[str, object]) -> str:
    """What to try instead of an unknown name."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    known = f"known are {', '.join(names) or 'none'}."
    return f"did you mean {near[0]!r}? {known}" if near else known
