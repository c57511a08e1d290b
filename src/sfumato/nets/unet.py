"""The convolutional U-Net of DDPM and ADM, in one and two dimensions, for any size.

Ho et al. (2020), appendix B, arXiv:2006.11239; Dhariwal & Nichol (2021), section 3, arXiv:2105.05233. Halving rounds up and doubling
returns to the size of its skip, so odd and non-square inputs need no padding. With the right `UNetLayout` it is diffusers'
`UNet2DModel` and OpenAI's `UNetModel`: `sfumato.convert` converts weights both ways.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import Classes, ConditionSpec, CondLike, Map, Numbers
from sfumato.kernels.norm import GroupNorm
from sfumato.nets.conditioner import Conditioner, accepted
from sfumato.nets.layers import Features, LogSNRFourier, attend, conv3, refuse_misfit, zeroed


@dataclass(frozen=True, kw_only=True)
class UNetLayout:
    """The architecture of a `UNet`. Lists have one entry for each resolution, from full resolution down by halves.

    Args:
        channels: at each resolution.
        blocks: residual blocks for each resolution on the way down; one more on the way up.
        attention: whether self-attention follows the blocks of a resolution.
        attention_up: the same on the way up, if it differs.
        middle: one entry for each residual block at the lowest resolution: whether attention follows it.
        heads: of the attention; must divide its channels.
        head_width: channels of a head; then the number of heads follows.
        groups: of each normalisation; if they do not divide the channels, the largest smaller number that does.
        middle_groups: of the middle's attention, if they differ; 0 for no normalisation.
        eps: of the normalisations.
        scales: the condition scales and shifts the second normalisation; false adds it before (a group of one channel removes it again).
        resample: "conv" is a strided convolution, and one after doubling; "pool" averages and repeats, "block" does so in a residual block.
        pads_end: pad the strided convolution at the end only, as in TensorFlow, instead of around (for even sizes).
        width: of the condition vector; four times the first channels by default.
        dropout: inside the residual blocks, in [0, 1).

    Raises:
        ValueError: lists of different lengths, heads that do not divide the channels.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    blocks: int = 2
    attention: tuple[bool, ...] = (False, False, True)
    attention_up: tuple[bool, ...] | None = None
    middle: tuple[bool, ...] = (True, False)
    heads: int = 4
    head_width: int | None = None
    groups: int = 32
    middle_groups: int | None = None
    eps: float = 1e-5
    scales: bool = True
    resample: str = "conv"
    pads_end: bool = False
    width: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the layout."""
        if not self.channels or self.blocks < 1:
            raise ValueError(f"a U-Net needs at least one resolution with one block, got {self.channels} and {self.blocks}.")
        if self.resample not in ("conv", "pool", "block"):
            raise ValueError(f'resample must be "conv", "pool" or "block", got "{self.resample}".')
        for here in (self.attention, self.attention_up):
            if here is not None and len(here) != len(self.channels):
                raise ValueError(f"channels and attention need one entry for each resolution, got {len(self.channels)} and {len(here)}.")
        for channels in sorted(self.attended()):
            if channels % (self.head_width or self.heads):
                heads = f"heads of {self.head_width} channels" if self.head_width else f"{self.heads} heads"
                raise ValueError(f"{heads} do not divide the channels {self.channels} at a resolution with attention.")

    @property
    def attention_on_the_way_up(self) -> tuple[bool, ...]:
        """Whether self-attention follows the blocks of a resolution on the way up."""
        return self.attention if self.attention_up is None else self.attention_up

    def attended(self) -> set[int]:
        """The channel numbers of layers with attention."""
        either = zip(self.channels, self.attention, self.attention_on_the_way_up, strict=True)
        return {c for c, down, up in either if down or up} | ({self.channels[-1]} if any(self.middle) else set())

    def heads_of(self, channels: int) -> int:
        """Number of heads for this many channels."""
        return channels // self.head_width if self.head_width else self.heads

    def norm(self, channels: int, groups: int | None = None) -> GroupNorm:
        """The normalisation for this many channels, in at most this many groups."""
        most = min(groups or self.groups, channels)
        return GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels, self.eps)


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions and a residual; the condition enters between them."""

    def __init__(self, inward: int, outward: int, condition: int, layout: UNetLayout, *, dims: int) -> None:
        """Builds the block."""
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        self.scales = layout.scales
        self.norm1 = layout.norm(inward)
        self.conv1 = conv3(inward, outward, dims)
        self.modulation = nn.Linear(condition, 2 * outward if self.scales else outward)
        self.norm2 = layout.norm(outward)
        self.dropout = nn.Dropout(layout.dropout)
        self.conv2 = zeroed(conv3(outward, outward, dims))
        self.skip = nn.Identity() if inward == outward else conv(inward, outward, 1)

    def forward(
        self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"], resize: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Float[Tensor, "b d *sized"]:
        """resize(x) + f(x, condition); f resizes before its first convolution."""
        h, modulation = self.conv1(resize(self.norm1(x, activates=True))), self.modulation(condition)
        if self.scales:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.norm2(h, scale=scale, shift=shift, activates=True)
        else:
            h = self.norm2(h, offset=modulation, activates=True)
        return self.conv2(self.dropout(h), plus=self.skip(resize(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, and a residual."""

    def __init__(self, channels: int, layout: UNetLayout, *, dims: int, groups: int | None = None) -> None:
        """Builds the block; with 0 groups it has no normalisation."""
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        self.heads = layout.heads_of(channels)
        self.norm = nn.Identity() if groups == 0 else layout.norm(channels, groups)
        self.qkv = conv(channels, 3 * channels, 1)
        self.outward = zeroed(conv(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """x + attention(x)."""
        b, c, n = len(x), x.shape[1], x[0, 0].numel()
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, n).transpose(3, 4).unbind(1)
        mixed = attend(q, k, v, scale=(c // self.heads) ** -0.5)
        return x + self.outward(mixed.transpose(2, 3).reshape(x.shape))


class Stage(nn.Module):
    """A residual block, optionally followed by self-attention."""

    def __init__(self, block: ResBlock, attention: nn.Module) -> None:
        """Combines the two."""
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b d *size"]:
        """attention(block(x, condition))."""
        return self.attention(self.block(x, condition))


class Downsample(nn.Module):
    """Halves the resolution, rounded up."""

    def __init__(self, channels: int, condition: int, layout: UNetLayout, *, dims: int) -> None:
        """Builds the kind that `layout.resample` names."""
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        self.pads_end = layout.pads_end
        self.conv = conv(channels, channels, 3, stride=2, padding=0 if self.pads_end else 1) if layout.resample == "conv" else None
        self.block = ResBlock(channels, channels, condition, layout, dims=dims) if layout.resample == "block" else None

    def forward(self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c *half"]:
        """The smaller feature map."""
        if self.conv is not None:
            return self.conv(nn.functional.pad(x, [p for n in reversed(x.shape[2:]) for p in (n % 2, 1)]) if self.pads_end else x)
        return _halved(x) if self.block is None else self.block(x, condition, _halved)


class Upsample(nn.Module):
    """Doubles the resolution."""

    def __init__(self, channels: int, condition: int, layout: UNetLayout, *, dims: int) -> None:
        """Builds the kind that `layout.resample` names."""
        super().__init__()
        self.conv = conv3(channels, channels, dims) if layout.resample == "conv" else None
        self.block = ResBlock(channels, channels, condition, layout, dims=dims) if layout.resample == "block" else None

    def forward(self, x: Float[Tensor, "b c *size"], condition: Float[Tensor, "b e"], size: torch.Size) -> Float[Tensor, "b c *double"]:
        """The feature map of this size."""
        grown = partial(nn.functional.interpolate, size=size, mode="nearest-exact")
        if self.block is not None:
            return self.block(x, condition, grown)
        return grown(x) if self.conv is None else self.conv(grown(x))


class UNet(nn.Module):
    """Residual blocks at each resolution going down and up, joined by skips, with self-attention where asked."""

    consumes = (Classes, Numbers, Map)

    def __init__(
        self,
        shape: tuple[int, ...],
        layout: UNetLayout | None = None,
        *,
        conditions: Mapping[str, ConditionSpec] | None = None,
        out_channels: int | None = None,
        features: Features | None = None,
        given: bool = False,
    ) -> None:
        """Builds the network.

        Args:
            shape: of one x: (c, length) or (c, height, width).
            layout: its architecture.
            conditions: name to spec: classes, numbers and maps.
            out_channels: c by default; 2c for a learned variance.
            features: of the log-SNR; by default `LogSNRFourier`, as many as the first channels.
            given: every example must come with its class.

        Raises:
            ValueError: a shape that is not 1-D or 2-D with channels, a condition of another kind.
        """
        super().__init__()
        dims = len(shape) - 1
        if dims not in (1, 2):
            raise ValueError(f"UNet takes (c, length) or (c, height, width), got shape {shape}; for points use MLP, for volumes DiT.")
        self.shape, self.layout = shape, (layout := layout or UNetLayout())
        channels, conv = layout.channels, (nn.Conv1d, nn.Conv2d)[dims - 1]
        width = layout.width or 4 * channels[0]
        res = lambda inward, outward: ResBlock(inward, outward, width, layout, dims=dims)  # noqa: E731
        attend_on = lambda c, here, groups=None: SelfAttention(c, layout, dims=dims, groups=groups) if here else nn.Identity()  # noqa: E731

        self.condition = Conditioner(
            width,
            accepted("UNet", self.consumes, conditions),
            features or LogSNRFourier(channels[0]),
            given=given,
            stem=lambda mapped: conv(mapped, channels[0], 3, padding=1, bias=False),
        )
        self.stem = conv(shape[0], channels[0], 3, padding=1)
        self.down, self.shrink, self.up, self.grow = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, now = [channels[0]], channels[0]
        for i, (c, here) in enumerate(zip(channels, layout.attention, strict=True)):
            stage = nn.ModuleList()
            for _ in range(layout.blocks):
                stage.append(Stage(res(now, c), attend_on(c, here)))
                skips.append(now := c)
            self.down.append(stage)
            if i < len(channels) - 1:
                self.shrink.append(Downsample(c, width, layout, dims=dims))
                skips.append(c)
        self.middle = nn.ModuleList(Stage(res(now, now), attend_on(now, here, layout.middle_groups)) for here in layout.middle)
        for i, (c, here) in reversed(list(enumerate(zip(channels, layout.attention_on_the_way_up, strict=True)))):
            stage = nn.ModuleList()
            for _ in range(layout.blocks + 1):
                stage.append(Stage(res(now + skips.pop(), c), attend_on(c, here)))
                now = c
            self.up.append(stage)
            if i > 0:
                self.grow.append(Upsample(c, width, layout, dims=dims))
        self.norm = layout.norm(now)
        self.head = zeroed(conv(now, out_channels or shape[0], 3, padding=1))

    def hidden(self) -> Iterator[nn.Parameter]:
        """The convolutions between the stem and the head, for optimisers that treat them separately."""
        for part in (self.down, self.shrink, self.middle, self.up, self.grow):
            for weight in part.parameters():
                if weight.ndim > 2:
                    yield weight

    def forward(
        self, x: Float[Tensor, "b c *size"], log_snr: Float[Tensor, "b"], cond: CondLike | None = None
    ) -> Float[Tensor, "b d *size"]:
        """Maps x to its size."""
        refuse_misfit(x, self.shape)
        condition, h = self.condition(log_snr, cond), self.stem(x)
        for stem, shown in self.condition.maps(x, cond):
            h = h + stem(shown)
        skips = [h]
        for i, stage in enumerate(self.down):
            for block in cast(nn.ModuleList, stage):
                skips.append(h := block(h, condition))
            if i < len(self.shrink):
                skips.append(h := self.shrink[i](h, condition))
        for block in self.middle:
            h = block(h, condition)
        for i, stage in enumerate(self.up):
            for block in cast(nn.ModuleList, stage):
                h = block(torch.cat([h, skips.pop()], dim=1), condition)
            if i < len(self.grow):
                h = self.grow[i](h, condition, skips[-1].shape[2:])
        return self.head(self.norm(h, activates=True))


def _halved(x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *half"]:
    """The mean of each two (or two by two) entries; of fewer at an odd end."""
    return (nn.functional.avg_pool1d, nn.functional.avg_pool2d)[x.ndim - 3](x, 2, ceil_mode=True)
