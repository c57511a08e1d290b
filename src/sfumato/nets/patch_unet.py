"""A U-Net over small patches: convolutions at fine resolution, a few attention blocks at the coarsest.

Pixels are folded into channels first (Shi et al. 2016, arXiv:1609.05158, inverted), so no convolution runs at full resolution, where a
plain U-Net spends most of its time; and the 3×3 convolutions overlap, so there are no visible patch borders as in a transformer.
Everything is normalised over channels and stored channels-last, which is fast in bfloat16 on CPUs and GPUs.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import Classes, ConditionSpec, CondLike, Map, Numbers
from sfumato.kernels.norm import ModulatedSiLU
from sfumato.kernels.winograd import Conv3x3
from sfumato.nets.conditioner import Conditioner, accepted
from sfumato.nets.layers import attend, crop_like, pad_to_multiple, refuse_misfit, zeroed


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a feature map."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalises each position."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Two 3×3 convolutions and a residual; the condition scales and shifts between them."""

    def __init__(self, channels: int, condition: int) -> None:
        """Builds the block; it is the identity at first."""
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = Conv3x3(channels, channels)
        self.modulation = zeroed(nn.Linear(condition, 2 * channels))
        self.activate = ModulatedSiLU()
        self.second = zeroed(Conv3x3(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """x + f(x, condition)."""
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        return self.second(self.activate(self.first(self.norm(x)), scale, shift), plus=x)


class AttentionBlock(nn.Module):
    """Self-attention and a perceptron in parallel on one modulated norm: one input matrix, one output matrix (arXiv:2302.05442)."""

    def __init__(self, channels: int, heads: int, condition: int, *, expansion: int = 3) -> None:
        """Builds the block; it is the identity at first."""
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(condition, 2 * channels))
        self.widths = [3 * channels, expansion * channels]
        self.inward = nn.Linear(channels, sum(self.widths))
        self.outward = zeroed(nn.Linear(channels + expansion * channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """x + f(x, condition)."""
        b, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=2)
        qkv, wide = self.inward(torch.addcmul(shift, self.norm(tokens), 1 + scale)).split(self.widths, dim=2)
        q, k, v = qkv.reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Unit queries and keys bound the logits by the scale, so low precision cannot make them overflow.
        mixed = attend(nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1), v, scale=8.0)
        mixed = mixed.transpose(1, 2).reshape(b, h * w, c)
        tokens = tokens + self.outward(torch.cat([mixed, nn.functional.gelu(wide, approximate="tanh")], dim=2))
        return tokens.reshape(b, h, w, c).permute(0, 3, 1, 2)


class PatchUNet(nn.Module):
    """Folds pixels by `patch`, convolves and halves down to the coarsest resolution, works there, and returns with skips."""

    consumes = (Classes, Numbers, Map)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch: int = 2,
        widths: tuple[int, ...] = (64, 192),
        depth: int = 2,
        middle: str = "cac",
        heads: int = 6,
        conditions: Mapping[str, ConditionSpec] | None = None,
        out_channels: int | None = None,
    ) -> None:
        """Builds the network.

        Args:
            shape: of one x: (c, height, width).
            patch: side of the pixels folded into channels.
            widths: channels at each resolution, each half the one before; at least two.
            depth: convolution blocks at each resolution but the coarsest, on each side.
            middle: the blocks at the coarsest resolution in order: "c" for convolutions, "a" for attention.
            heads: of the attention; must divide the coarsest width.
            conditions: name to spec: classes, numbers and maps.
            out_channels: c by default; 2c for a learned variance.

        Raises:
            ValueError: a shape that is not an image's, a single width, heads that do not divide, other letters in middle, or a condition of
            another kind.
        """
        super().__init__()
        if len(shape) != 3:
            raise ValueError(
                f"PatchUNet takes images (c, height, width), got shape {shape}; for points use MLP, for signals UNet, for volumes DiT."
            )
        if not middle or set(middle) - {"c", "a"}:
            raise ValueError(f'middle must consist of "c" (convolutions) and "a" (attention), got "{middle}".')
        if len(widths) < 2:
            raise ValueError(f"PatchUNet needs at least two widths, one for each resolution, got {list(widths)}.")
        fine, coarse = widths[0], widths[-1]
        if coarse % heads:
            raise ValueError(f"{heads} heads do not divide the coarsest width {coarse}.")
        self.shape, self.patch, self.multiple = shape, patch, patch * 2 ** (len(widths) - 1)
        map_stem = lambda channels: nn.Conv2d(channels * patch**2, fine, 3, padding=1, bias=False)  # noqa: E731
        self.condition = Conditioner(coarse, accepted("PatchUNet", self.consumes, conditions), stem=map_stem)
        # One more input channel of ones: with zero padding, it shows a position how far the border is.
        self.stem = nn.Conv2d(shape[0] * patch**2 + 1, fine, 3, padding=1)
        self.encoder = nn.ModuleList(nn.ModuleList(ConvBlock(c, coarse) for _ in range(depth)) for c in widths[:-1])
        self.halve = nn.ModuleList(nn.Conv2d(4 * c, half, 1) for c, half in pairwise(widths))
        grid = [-(-n // self.multiple) for n in shape[1:]]
        self.places = nn.Parameter(0.02 * torch.randn(1, coarse, *grid))
        self.middle = nn.ModuleList(ConvBlock(coarse, coarse) if kind == "c" else AttentionBlock(coarse, heads, coarse) for kind in middle)
        self.widen = nn.ModuleList(nn.Conv2d(half, 4 * c, 1) for c, half in pairwise(widths))
        self.join = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in widths[:-1])
        self.decoder = nn.ModuleList(nn.ModuleList(ConvBlock(c, coarse) for _ in range(depth)) for c in widths[:-1])
        self.norm = ChannelNorm(fine)
        self.head = zeroed(nn.Conv2d(fine, (out_channels or shape[0]) * patch**2, 3, padding=1))

    def hidden(self) -> Iterator[nn.Parameter]:
        """The matrices between the stem and the head, for optimisers that treat them separately."""
        for part in (self.encoder, self.halve, self.middle, self.widen, self.join, self.decoder):
            for name, weight in part.named_parameters():
                if weight.ndim > 1 and "modulation" not in name:
                    yield weight

    def forward(self, x: Float[Tensor, "b c h w"], log_snr: Float[Tensor, "b"], cond: CondLike | None = None) -> Float[Tensor, "b d h w"]:
        """Maps x to its size."""
        refuse_misfit(x, self.shape)
        condition = self.condition(log_snr, cond)
        maps = self._folded(x)
        maps = torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1).contiguous(memory_format=torch.channels_last)
        maps, skips = self.stem(maps), []
        for stem, shown in self.condition.maps(x, cond):
            maps = maps + stem(self._folded(shown))
        for blocks, halve in zip(self.encoder, self.halve, strict=True):
            maps = through(blocks, maps, condition)
            skips.append(maps)
            maps = halve(_fold(maps))
        places = self.places
        if places.shape[2:] != maps.shape[2:]:
            places = nn.functional.interpolate(places, maps.shape[2:], mode="bilinear")
        maps = through(self.middle, maps + places, condition)
        for skip, widen, join, blocks in reversed(list(zip(skips, self.widen, self.join, self.decoder, strict=True))):
            maps = through(blocks, join(torch.cat([_unfold(widen(maps)), skip], dim=1)), condition)
        return crop_like(nn.functional.pixel_shuffle(self.head(nn.functional.silu(self.norm(maps))), self.patch), x)

    def _folded(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f fh fw"]:
        return nn.functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch)


def through(blocks: nn.Module, maps: Tensor, condition: Tensor) -> Tensor:
    """The feature maps after a list of blocks."""
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        maps = block(maps, condition)
    return maps


def _fold(maps: Tensor) -> Tensor:
    """[b, c, 2h, 2w] to [b, 4c, h, w], channels-last in one copy."""
    b, c, h, w = maps.shape
    parts = maps.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3)
    return parts.reshape(b, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)


def _unfold(maps: Tensor) -> Tensor:
    """The inverse of `_fold`."""
    b, c, h, w = maps.shape
    parts = maps.permute(0, 2, 3, 1).reshape(b, h, w, 2, 2, c // 4).transpose(2, 3)
    return parts.reshape(b, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)
