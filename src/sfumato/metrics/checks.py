"""What every metric asks of the features that it is given."""

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike


def matrix(values: ArrayLike, what: str, *, least: int = 1) -> Float64[np.ndarray, "n d"]:
    """The values as float64, one row a sample.

    Raises:
        ValueError: not [n, d], fewer than `least` rows, or values that are not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"{what} must be [n, d], one row a sample, got shape {rows.shape}; flatten each sample.")
    if len(rows) < least:
        raise ValueError(f"{what} must have at least {least} rows, got {len(rows)}; give more samples.")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"{what} must be finite, got NaN or infinity in {np.sum(~finite)} of {len(rows)} rows (first: row {first}).")
    return rows


def pair(a: ArrayLike, b: ArrayLike, *, least: int = 1) -> tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]]:
    """Two sets of samples as float64 of one width.

    Raises:
        ValueError: as `matrix`, or two widths.
    """
    first, second = matrix(a, "the first set", least=least), matrix(b, "the second set", least=least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both sets must have the same features, got {first.shape[1]} and {second.shape[1]} of them a sample.")
    return first, second
