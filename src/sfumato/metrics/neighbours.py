"""Nearest neighbours by Euclidean distance, in blocks: memory does not grow with the product of the counts."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64

BLOCK = 1024  # rows of the first set whose distances to all of the second are held at once


def distance_blocks(a: np.ndarray, b: np.ndarray, block: int = BLOCK) -> Iterator[tuple[slice, Float64[np.ndarray, "block m"]]]:
    """Squared distances of blocks of a's rows to all rows of b, as (rows of a, distances).

    |x|² + |y|² - 2 x·y after b's mean is taken from both, which leaves fewer digits to cancel.
    """
    centre = b.mean(axis=0)
    b = b - centre
    b_norms = np.einsum("ij,ij->i", b, b)
    for start in range(0, len(a), block):
        rows = slice(start, min(start + block, len(a)))
        part = a[rows] - centre
        squared = part @ b.T
        squared *= -2
        squared += b_norms
        squared += np.einsum("ij,ij->i", part, part)[:, None]
        yield rows, np.maximum(squared, 0, out=squared)


def kth_nearest(points: np.ndarray, k: int, block: int = BLOCK) -> Float64[np.ndarray, "n"]:
    """The squared distance of each point to the k-th nearest of the others.

    Raises:
        ValueError: not more than k points.
    """
    if not 1 <= k < len(points):
        raise ValueError(f"the k-th nearest of the others needs k from 1 to {len(points) - 1}, got {k}; give more samples or a smaller k.")
    radii = np.empty(len(points))
    for rows, squared in distance_blocks(points, points, block):
        squared[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = 0  # itself: the least of all, whatever the rounding
        radii[rows] = np.partition(squared, k, axis=1)[:, k]
    return radii


def nearest(a: np.ndarray, b: np.ndarray, k: int = 1, block: int = BLOCK) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Squared distances of each row of a to its k nearest rows of b, ascending, and which rows these are.

    Raises:
        ValueError: fewer than k rows in b.
    """
    if not 1 <= k <= len(b):
        raise ValueError(f"k nearest of {len(b)} rows needs k from 1 to {len(b)}, got {k}.")
    distances, places = np.empty((len(a), k)), np.empty((len(a), k), dtype=np.int64)
    for rows, squared in distance_blocks(a, b, block):
        found = np.argpartition(squared, k - 1, axis=1)[:, :k] if k > 1 else squared.argmin(axis=1)[:, None]
        values = np.take_along_axis(squared, found, axis=1)
        order = values.argsort(axis=1, kind="stable")
        distances[rows], places[rows] = np.take_along_axis(values, order, axis=1), np.take_along_axis(found, order, axis=1)
    return distances, places
