"""Distances between examples; for images, between downscaled copies."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SIDE = 16  # images are averaged down to at most this side, which keeps what is visible at a glance
WIDTH = 512  # other data with more numbers are projected to this many


def features(x0: Float[Tensor, "n *x"]) -> Float[Tensor, "n d"]:
    """A short vector for each example; distances between vectors measure similarity."""
    if x0.ndim == 4 and max(x0.shape[2:]) > SIDE:
        x0 = nn.functional.adaptive_avg_pool2d(x0, (min(SIDE, x0.shape[2]), min(SIDE, x0.shape[3])))
    flat = x0.flatten(1)
    if x0.ndim != 4 and flat.shape[1] > WIDTH:
        flat = flat @ torch.randn(flat.shape[1], WIDTH, generator=torch.Generator().manual_seed(0), dtype=flat.dtype) / WIDTH**0.5
    return flat


def nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"] | None = None) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Distance to, and row of, the nearest b for each a; of the other a's if there is no b."""
    distances = torch.cdist(a, a if b is None else b)
    if b is None:
        distances.fill_diagonal_(torch.inf)
    found = distances.min(1)
    return found.values, found.indices
