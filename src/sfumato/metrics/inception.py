"""The published Inception network of FID (of 2015-12-05), from weights in a file, in the arithmetic of the original graph.

Images of any size are resized to 299×299 as TensorFlow 1 does: bilinear, sampled at i · old / new without half-pixel centres, and without a
filter against aliasing. The network is Inception v3 with the peculiarities of that graph: average pooling that leaves out the padding, and
one maximum pooling in the last block. Names of weights are those of the public PyTorch conversions (pt_inception-2015-12-05,
weights-inception-2015-12-05), which differ in no number.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PUBLISHED = "6726825d"  # the sha256 of the published file begins with this, as its name says
SIDE = 299
RESIZE = "bilinear as in TensorFlow 1 (no half-pixel centres, no antialiasing) to 299×299"
DIM = 2048

Weights = Mapping[str, Tensor]


def resize_like_tensorflow(x: Float[Tensor, "b c h w"], side: int = SIDE) -> Float[Tensor, "b c side side"]:
    """Bilinear at the places i · old / new, in float32."""

    def lerp(x: Tensor, dim: int) -> Tensor:
        size = x.shape[dim]
        places = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(size / side, dtype=torch.float32)
        low = places.long()
        share = (places - low).to(x).view(-1, *[1] * (x.ndim - 1 - dim))
        below, above = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=size - 1))
        return below + (above - below) * share

    return lerp(lerp(x, 3), 2)


def inception(w: Weights, values: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 2048"], Float[Tensor, "b 1008"]]:
    """Features of images with values in [0, 255], and the logits without their bias, as the published inception score takes them."""
    x = (resize_like_tensorflow(values) - 128) / 128
    for name, stride, padding in (("Conv2d_1a_3x3", 2, 0), ("Conv2d_2a_3x3", 1, 0), ("Conv2d_2b_3x3", 1, 1)):
        x = _unit(w, name, x, padding, stride)
    x = F.max_pool2d(x, 3, 2)
    x = _unit(w, "Conv2d_4a_3x3", _unit(w, "Conv2d_3b_1x1", x))
    x = F.max_pool2d(x, 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_35(w, name, x)
    x = _block_to_17(w, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _block_17(w, name, x)
    x = _block_to_8(w, "Mixed_7a", x)
    x = _block_8(w, "Mixed_7b", x, maximum=False)
    x = _block_8(w, "Mixed_7c", x, maximum=True)
    features = x.mean(dim=(2, 3))
    return features, features @ w["fc.weight"].T


def _unit(w: Weights, name: str, x: Tensor, padding: int | tuple[int, int] = 0, stride: int = 1) -> Tensor:
    """Convolution, batch normalisation, ReLU."""
    x = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
    mean, variance, scale, shift = (w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, mean, variance, scale, shift, eps=1e-3))


def _chain(w: Weights, block: str, x: Tensor, *units: tuple) -> Tensor:
    """Units one after another, each (name, padding, stride)."""
    for name, *rest in units:
        x = _unit(w, f"{block}.{name}", x, *rest)
    return x


def _pooled(w: Weights, block: str, x: Tensor, *, maximum: bool = False) -> Tensor:
    x = F.max_pool2d(x, 3, 1, 1) if maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return _unit(w, f"{block}.branch_pool", x)


def _block_35(w: Weights, block: str, x: Tensor) -> Tensor:
    fives = _chain(w, block, x, ("branch5x5_1",), ("branch5x5_2", 2))
    threes = _chain(w, block, x, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1))
    return torch.cat([_unit(w, f"{block}.branch1x1", x), fives, threes, _pooled(w, block, x)], dim=1)


def _block_to_17(w: Weights, block: str, x: Tensor) -> Tensor:
    threes = _chain(w, block, x, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 0, 2))
    return torch.cat([_unit(w, f"{block}.branch3x3", x, 0, 2), threes, F.max_pool2d(x, 3, 2)], dim=1)


def _block_17(w: Weights, block: str, x: Tensor) -> Tensor:
    wide, tall = (0, 3), (3, 0)
    sevens = _chain(w, block, x, ("branch7x7_1",), ("branch7x7_2", wide), ("branch7x7_3", tall))
    twice = (("branch7x7dbl_1",), *((f"branch7x7dbl_{i}", tall if i % 2 == 0 else wide) for i in range(2, 6)))
    return torch.cat([_unit(w, f"{block}.branch1x1", x), sevens, _chain(w, block, x, *twice), _pooled(w, block, x)], dim=1)


def _block_to_8(w: Weights, block: str, x: Tensor) -> Tensor:
    threes = _chain(w, block, x, ("branch3x3_1",), ("branch3x3_2", 0, 2))
    sevens = _chain(w, block, x, ("branch7x7x3_1",), ("branch7x7x3_2", (0, 3)), ("branch7x7x3_3", (3, 0)), ("branch7x7x3_4", 0, 2))
    return torch.cat([threes, sevens, F.max_pool2d(x, 3, 2)], dim=1)


def _block_8(w: Weights, block: str, x: Tensor, *, maximum: bool) -> Tensor:
    def split(x: Tensor, name: str) -> list[Tensor]:
        return [_unit(w, f"{block}.{name}a", x, (0, 1)), _unit(w, f"{block}.{name}b", x, (1, 0))]

    threes = split(_unit(w, f"{block}.branch3x3_1", x), "branch3x3_2")
    twice = split(_chain(w, block, x, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1)), "branch3x3dbl_3")
    return torch.cat([_unit(w, f"{block}.branch1x1", x), *threes, *twice, _pooled(w, block, x, maximum=maximum)], dim=1)
