"""Nearest neighbours by Euclidean distance, in blocks: memory does not grow with the product of the counts."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

HELD = 1 << 24  # distances that are held at once


def distance_blocks(a: np.ndarray, b: np.ndarray, block: int | None = None) -> Iterator[tuple[slice, Float[np.ndarray, "rows m"]]]:
    """Squared distances of blocks of a's rows to all rows of b, as (rows of a, distances).

    (|x|² + |y|²) - 2 x·y, which is the same number for the same two rows whichever set they come from, so that ties stay ties. Rows are
    to lie about the origin, which leaves fewer digits to cancel. What rounding alone explains is 0, so that equal rows have no distance.
    """
    block = block or max(1, HELD // len(b))
    a_norms, b_norms = (np.einsum("ij,ij->i", rows, rows) for rows in (a, b))
    rounding = 4 * np.finfo(a.dtype).eps * np.sqrt(a.shape[1]) * (a_norms.max() + b_norms.max())
    for start in range(0, len(a), block):
        rows = slice(start, min(start + block, len(a)))
        squared = a[rows] @ b.T
        squared *= -2
        squared += a_norms[rows, None] + b_norms
        squared[squared <= rounding] = 0
        yield rows, squared


def kth_nearest(points: np.ndarray, k: int, block: int | None = None) -> Float64[np.ndarray, "n"]:
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


@torch.no_grad()
def nearest(
    a: np.ndarray, b: np.ndarray, k: int = 1, block: int | None = None
) -> tuple[Float64[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Squared distances of each row of a to its k nearest rows of b, ascending, and which rows these are.

    They are looked for in the type of a and b; the distances of those found are computed in float64, without cancellation.

    Raises:
        ValueError: fewer than k rows in b.
    """
    if not 1 <= k <= len(b):
        raise ValueError(f"the k nearest of {len(b)} rows need k from 1 to {len(b)}, got {k}.")
    centre = b.mean(axis=0, dtype=np.float64).astype(b.dtype)
    left, right = torch.from_numpy(a - centre), torch.from_numpy(b - centre)
    norms = right.square().sum(dim=1)
    distances, places = np.empty((len(a), k)), np.empty((len(a), k), dtype=np.int64)
    step = block or max(1, HELD // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        found = torch.addmm(norms, left[rows], right.T, alpha=-2).topk(k, dim=1, largest=False).indices
        exact = (left[rows, None] - right[found]).double().square().sum(dim=2)
        order = exact.argsort(dim=1, stable=True)
        distances[rows], places[rows] = exact.gather(1, order).numpy(), found.gather(1, order).numpy()
    return distances, places
