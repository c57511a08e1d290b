"""How far examples lie from each other: on images, of small copies."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SIDE = 16  # images are averaged down to this side at most: what stays is what a glance would compare
WIDTH = 512  # other data of more numbers are projected to so many


def features(x0: Float[Tensor, "n *x"]) -> Float[Tensor, "n d"]:
    """A short description of each example in which distances mean likeness."""
    if x0.ndim == 4 and max(x0.shape[2:]) > SIDE:
        x0 = nn.functional.adaptive_avg_pool2d(x0, (min(SIDE, x0.shape[2]), min(SIDE, x0.shape[3])))
    flat = x0.flatten(1)
    if x0.ndim != 4 and flat.shape[1] > WIDTH:
        flat = flat @ torch.randn(flat.shape[1], WIDTH, generator=torch.Generator().manual_seed(0), dtype=flat.dtype) / WIDTH**0.5
    return flat


def nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"] | None = None) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Distance to, and row of, the nearest of b for each of a; of the others of a where there is no b."""
    distances = torch.cdist(a, a if b is None else b)
    if b is None:
        distances.fill_diagonal_(torch.inf)
    found = distances.min(1)
    return found.values, found.indices
