"""The small network behind the features `grey28` and the judges: four convolutions over 2×2 blocks of pixels."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIDE = 28


class SmallCNN(nn.Module):
    """Features of grey 28×28 images, and one number a class of them."""

    def __init__(self, widths: tuple[int, int, int, int], features: int, classes: int, *, normalised: bool = False) -> None:
        """Builds the network.

        Args:
            widths: channels after each convolution.
            features: of an image.
            classes: how many.
            normalised: with batch normalisation, as it is trained; `folded` has none.
        """
        super().__init__()
        sizes = zip((4, *widths), widths, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=not normalised) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if normalised else nn.Identity() for b in widths)
        self.dense = nn.Linear(widths[-1] * 9, features)
        self.head = nn.Linear(features, classes)

    def features(self, x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b d"]:
        """Features of x in [-1, 1]."""
        maps = F.pixel_unshuffle((x + 0.428) / 0.706, 2)  # mean and standard deviation of Fashion-MNIST's pixels
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            maps = F.relu(norm(conv(maps)))
            if i == 1:
                maps = F.max_pool2d(maps, 2)
        maps = F.adaptive_avg_pool2d(F.max_pool2d(maps, 2, padding=1), 3)
        return F.gelu(self.dense(maps.flatten(1)))

    def forward(self, x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b k"]:
        """Logits of x in [-1, 1]."""
        return self.head(self.features(x))

    def folded(self) -> dict[str, Tensor]:
        """The weights in float16, batch normalisation folded into the convolutions; `from_weights` makes a network of them."""
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith(("convs", "norms"))}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            assert isinstance(conv, nn.Conv2d)
            if isinstance(norm, nn.BatchNorm2d):
                conv = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
            assert conv.bias is not None
            weights |= {f"convs.{i}.weight": conv.weight.detach(), f"convs.{i}.bias": conv.bias.detach()}
        return {name: value.to(torch.float16).contiguous() for name, value in weights.items()}

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> "SmallCNN":
        """A network of the sizes of `folded` weights, in float32, to be asked and not trained."""
        w = [len(weights[f"convs.{i}.bias"]) for i in range(4)]
        classes, features = weights["head.weight"].shape
        net = cls((w[0], w[1], w[2], w[3]), features, classes)
        net.load_state_dict({name: value.float() for name, value in weights.items()})
        return net.float().eval().requires_grad_(False)
