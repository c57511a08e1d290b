"""Shift-tolerant LPIPS and its trunks, from the package stlpips-pytorch (BSD-2): VGG16 and AlexNet whose strides come after a blur.

Ghildyal & Liu (2022), arXiv:2207.13686. The distance is that of Zhang et al. (2018), eq. 1, arXiv:1801.03924.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PACKAGE = "stlpips-pytorch"
FILES = {name: f"stlpips_pytorch/weights/vST0.0/{name}_shift_tolerant.pth" for name in ("vgg", "alex")}
DIMS = {"vgg": 512, "alex": 256}
LEAST = 16  # side of the smallest images whose every layer can be padded
_VGG = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))  # numbers of the convolutions of each slice

Weights = Mapping[str, Tensor]


def trunk(w: Weights, x: Float[Tensor, "b 3 h w"]) -> Iterator[Float[Tensor, "b c _h _w"]]:
    """The maps after each of the five slices, of images in [-1, 1]."""
    x = (x - w["scaling_layer.shift"]) / w["scaling_layer.scale"]
    return _vgg(w, x) if "net.slice1.2.weight" in w else _alex(w, x)


def _vgg(w: Weights, x: Tensor) -> Iterator[Tensor]:
    for i, places in enumerate(_VGG, 1):
        if i > 1:
            x = _blurred(F.max_pool2d(x, 2, 1))
        for place in places:
            x = F.relu(_conv(w, i, place, x, 1))
        yield x


def _alex(w: Weights, x: Tensor) -> Iterator[Tensor]:
    x = F.relu(_blurred(_conv(w, 1, 0, x, 2)))
    yield x
    for i, place, padding in ((2, 5, 2), (3, 9, 1)):
        x = F.relu(_conv(w, i, place, _blurred(F.max_pool2d(x, 3, 1)), padding))
        yield x
    for i, place in ((4, 11), (5, 13)):
        x = F.relu(_conv(w, i, place, x, 1))
        yield x


def _conv(w: Weights, part: int, place: int, x: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, w[f"net.slice{part}.{place}.weight"], w[f"net.slice{part}.{place}.bias"], padding=padding)


def _blurred(x: Tensor) -> Tensor:
    """Every second position of x under the weights [1, 2, 1] / 4 along both axes, two more positions reflected on each side."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (line[:, None] * line)[None, None].expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def features(w: Weights, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """The means over positions of the last slice's maps."""
    *_, last = trunk(w, x)
    return last.mean(dim=(2, 3))


def distance(w: Weights, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Σ over slices of the mean over positions of Σ over channels of weight · (difference of maps of unit length)²."""

    def unit(maps: Tensor) -> Tensor:
        return maps / (maps.norm(dim=1, keepdim=True) + 1e-10)

    slices = zip(trunk(w, a), trunk(w, b), strict=True)
    terms = [F.conv2d((unit(p) - unit(q)).square(), w[f"lin{i}.model.1.weight"]).mean(dim=(1, 2, 3)) for i, (p, q) in enumerate(slices)]
    return torch.stack(terms).sum(dim=0)
