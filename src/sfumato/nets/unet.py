"""The convolutional U-Net of DDPM and ADM, in one and two dimensions, for any size.

Ho et al. (2020), appendix B, arXiv:2006.11239; Dhariwal & Nichol (2021), section 3, arXiv:2105.05233. Halving rounds up and doubling
returns to the size of the skip it meets, so odd and non-square inputs need no padding.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.nets.layers import Condition, attend, zeroed


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions and a residual; the condition scales and shifts the second."""

    def __init__(self, inward: int, outward: int, condition: int, *, dims: int, dropout: float) -> None:
        """Builds the block."""
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        self.norm1 = nn.GroupNorm(_groups(inward), inward)
        self.conv1 = conv(inward, outward, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * outward)
        self.norm2 = nn.GroupNorm(_groups(outward), outward)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv(outward, outward, 3, padding=1))
        self.skip = nn.Identity() if inward == outward else conv(inward, outward, 1)

    def forward(self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b d *size"]:
        """x + f(x, condition)."""
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.modulation(condition).reshape(len(x), -1, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(self.dropout(nn.functional.silu(h)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, and a residual."""

    def __init__(self, channels: int, heads: int, *, dims: int) -> None:
        """Builds the block."""
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        self.heads = heads
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.outward = zeroed(conv(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """x + attention(x)."""
        b, c, n = len(x), x.shape[1], x[0, 0].numel()
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, n).transpose(3, 4).unbind(1)
        mixed = attend(q, k, v, scale=(c // self.heads) ** -0.5)
        return x + self.outward(mixed.transpose(2, 3).reshape(x.shape))


class Stage(nn.Module):
    """A residual block, then self-attention or nothing."""

    def __init__(self, block: ResBlock, attention: nn.Module) -> None:
        """Joins the two."""
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b d *size"]:
        """attention(block(x, condition))."""
        return self.attention(self.block(x, condition))


class UNet(nn.Module):
    """Residual blocks at each resolution going down and up, joined by skips, with self-attention where asked."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: Sequence[int] = (64, 128, 128),
        blocks: int = 2,
        attention: Sequence[bool] = (False, False, True),
        heads: int = 4,
        classes: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        """Builds the network.

        Args:
            shape: of one x: (c, length) or (c, height, width).
            channels: at each resolution, from the full one down by halves.
            blocks: residual blocks a resolution.
            attention: for each resolution, whether self-attention follows its blocks.
            heads: of the attention; must divide its channels.
            classes: 0 for no labels.
            dropout: inside the residual blocks, in [0, 1).
            out_channels: c where not given; 2c for a learned variance.

        Raises:
            ValueError: a shape that is not 1-D or 2-D with channels, lists of different lengths, heads that do not divide.
        """
        super().__init__()
        dims = len(shape) - 1
        if dims not in (1, 2):
            raise ValueError(f"UNet takes (c, length) or (c, height, width), got shape {shape}; for points use MLP.")
        if len(attention) != len(channels):
            raise ValueError(f"channels and attention need one entry a resolution, got {len(channels)} and {len(attention)}.")
        if any(c % heads for c, here in zip(channels, attention, strict=True) if here) or channels[-1] % heads:
            raise ValueError(f"{heads} heads do not divide the channels {tuple(channels)} where there is attention.")
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        width = 4 * channels[0]
        res = lambda inward, outward: ResBlock(inward, outward, width, dims=dims, dropout=dropout)  # noqa: E731
        attend_at = lambda i: SelfAttention(channels[i], heads, dims=dims) if attention[i] else nn.Identity()  # noqa: E731
        last = len(channels) - 1

        self.condition = Condition(width, classes)
        self.stem = conv(shape[0], channels[0], 3, padding=1)
        self.down, self.shrink, self.up, self.grow = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, now = [channels[0]], channels[0]
        for i, c in enumerate(channels):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(Stage(res(now, c), attend_at(i)))
                skips.append(now := c)
            self.down.append(stage)
            if i < last:
                self.shrink.append(conv(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList([Stage(res(now, now), SelfAttention(now, heads, dims=dims)), res(now, now)])
        for i, c in reversed(list(enumerate(channels))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(Stage(res(now + skips.pop(), c), attend_at(i)))
                now = c
            self.up.append(stage)
            if i > 0:
                self.grow.append(conv(c, c, 3, padding=1))
        self.norm = nn.GroupNorm(_groups(now), now)
        self.head = zeroed(conv(now, out_channels or shape[0], 3, padding=1))

    def hidden(self) -> Iterator[nn.Parameter]:
        """The convolutions between the stem and the head, for optimisers that treat them apart."""
        for part in (self.down, self.shrink, self.middle, self.up, self.grow):
            for name, weight in part.named_parameters():
                if weight.ndim > 2 and "modulation" not in name:
                    yield weight

    def forward(
        self, x: Float[Tensor, "b c *size"], log_snr: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b d *size"]:
        """Maps x to its size."""
        condition, h = self.condition(log_snr, cond), self.stem(x)
        skips = [h]
        for i, stage in enumerate(self.down):
            for block in cast(nn.ModuleList, stage):
                skips.append(h := block(h, condition))
            if i < len(self.shrink):
                skips.append(h := self.shrink[i](h))
        for block in self.middle:
            h = block(h, condition)
        for i, stage in enumerate(self.up):
            for block in cast(nn.ModuleList, stage):
                h = block(torch.cat([h, skips.pop()], dim=1), condition)
            if i < len(self.grow):
                h = self.grow[i](nn.functional.interpolate(h, size=skips[-1].shape[2:], mode="nearest-exact"))
        return self.head(nn.functional.silu(self.norm(h)))


def _groups(channels: int) -> int:
    """32 groups, or the most that divide the channels."""
    return next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
