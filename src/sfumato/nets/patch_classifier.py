"""The downward half of `PatchUNet` with a class output."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import CondLike
from sfumato.nets.conditioner import Conditioner
from sfumato.nets.layers import pad_to_multiple
from sfumato.nets.patch_unet import ChannelNorm, ConvBlock, through


class PatchClassifier(nn.Module):
    """Folds pixels by `patch`, convolves, halves the resolution between the widths, and averages over positions before the output.

    Smooth in x throughout, because guidance uses its gradient.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, *, patch: int = 1, widths: tuple[int, ...] = (32, 64, 128), depth: int = 1
    ) -> None:
        """Builds the network.

        Args:
            shape: of one x: (c, height, width).
            classes: number of classes.
            patch: side of the pixels folded into channels.
            widths: channels at each resolution, each half the one before.
            depth: convolution blocks at each resolution.

        Raises:
            ValueError: a shape that is not an image's.
        """
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"PatchClassifier takes images (c, height, width), got shape {shape}; for points use MLP.")
        self.patch, self.multiple = patch, patch * 2 ** (len(widths) - 1)
        self.condition = Conditioner(widths[-1])
        # One more input channel of ones: with zero padding, it shows a position how far the border is.
        self.stem = nn.Conv2d(shape[0] * patch**2 + 1, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(nn.ModuleList(ConvBlock(width, widths[-1]) for _ in range(depth)) for width in widths)
        self.halve = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(widths))
        self.norm = ChannelNorm(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "b c h w"], log_snr: Float[Tensor, "b"], cond: CondLike | None = None) -> Float[Tensor, "b k"]:
        """One number for each class."""
        condition = self.condition(log_snr, cond)
        maps = nn.functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch)
        maps = self.stem(torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1))
        for i, blocks in enumerate(self.stages):
            if i:
                maps = self.halve[i - 1](nn.functional.pixel_unshuffle(maps, 2))
            maps = through(blocks, maps, condition)
        return self.head(nn.functional.silu(self.norm(maps)).mean(dim=(2, 3)))
