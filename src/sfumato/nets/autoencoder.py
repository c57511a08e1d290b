"""Encoders and decoders: perceptrons for vectors, convolutions for images of any size, and a ladder of latents.

`ImageEncoder` and `ImageDecoder` are the architecture of latent diffusion's autoencoder (Rombach et al. 2022, appendix E,
arXiv:2112.10752), so its public weights fit; with `patch` > 1 pixels are first folded into channels, which avoids full resolution and is
faster on a CPU. Images whose sides are not multiples of `factor` are padded at their ends, and cropped after decoding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import CondLike
from sfumato.kernels.norm import GroupNorm
from sfumato.kernels.winograd import Conv3x3
from sfumato.nets.layers import attend, pad_to_multiple, zeroed


class Perceptron(nn.Module):
    """Residual layers between two linear ones, over all entries of x together; with depth 0 a single affine map."""

    def __init__(self, inward: tuple[int, ...], outward: tuple[int, ...], *, width: int = 256, depth: int = 2) -> None:
        """Builds the network.

        Args:
            inward: shape of one input.
            outward: shape of one output.
            width: of the hidden layers.
            depth: number of hidden layers.
        """
        super().__init__()
        self.inward_shape, self.outward_shape = inward, outward
        ends = (math.prod(inward), math.prod(outward))
        self.inward = nn.Linear(ends[0], width) if depth else nn.Identity()
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.outward = nn.Linear(width if depth else ends[0], ends[1])

    def hidden(self) -> Iterator[nn.Parameter]:
        """The matrices between the first layer and the last, for optimisers that treat them separately."""
        return (weight for part in (self.first, self.second) for weight in part.parameters() if weight.ndim == 2)

    def forward(self, x: Float[Tensor, "b *inward"]) -> Float[Tensor, "b *outward"]:
        """Maps each row."""
        refuse_shape(x, self.inward_shape)
        h = self.inward(x.flatten(1))
        for norm, first, second in zip(self.norms, self.first, self.second, strict=True):
            h = h + second(nn.functional.silu(first(norm(h))))
        return self.outward(h).reshape(len(x), *self.outward_shape)


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions and a residual."""

    def __init__(self, inward: int, outward: int, groups: int, dropout: float = 0.0) -> None:
        """Builds the block."""
        super().__init__()
        self.norm1 = GroupNorm(groups, inward, eps=1e-6)
        self.conv1 = Conv3x3(inward, outward)
        self.norm2 = GroupNorm(groups, outward, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(Conv3x3(outward, outward))
        self.skip = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """x + f(x)."""
        h = self.norm2(self.conv1(self.norm1(x, activates=True)), activates=True)
        return self.conv2(self.dropout(h), plus=self.skip(x))


class Attention(nn.Module):
    """Self-attention of one head over all positions, and a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        """Builds the block."""
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v = nn.Linear(channels, channels), nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.outward = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """x + attention(x)."""
        tokens = self.norm(x).flatten(2).mT
        q, k, v = (part(tokens)[:, None] for part in (self.q, self.k, self.v))
        mixed = attend(q, k, v, scale=x.shape[1] ** -0.5)[:, 0]
        return x + self.outward(mixed).mT.reshape(x.shape)


class Downsample(nn.Conv2d):
    """Half the resolution: a 3×3 convolution of stride 2, padded at the ends only."""

    def __init__(self, channels: int) -> None:
        """Builds the layer."""
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Maps to half the size."""
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


class Upsample(Conv3x3):
    """Twice the resolution: each position repeated, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        """Builds the layer."""
        super().__init__(channels, channels)

    def forward(self, input: Float[Tensor, "b c h w"], plus: Float[Tensor, "b c h2 w2"] | None = None) -> Float[Tensor, "b c h2 w2"]:
        """Maps to twice the size, and adds `plus`."""
        return super().forward(nn.functional.interpolate(input, scale_factor=2.0, mode="nearest"), plus)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Options common to an `ImageEncoder` and its `ImageDecoder`.

    Args:
        widths: channels at each resolution, from the finest to the coarsest, each half the one before.
        depth: residual blocks for each resolution (one more in the decoder).
        patch: side of the pixels folded into channels.
        groups: of the normalisation; must divide every width.
        attention: self-attention at the coarsest resolution.
        mixes: a 1×1 convolution next to the latent, on both sides.
        dropout: inside the residual blocks, in [0, 1).

    Raises:
        ValueError: no width, or groups that do not divide one.
    """

    widths: tuple[int, ...] = (64, 128)
    depth: int = 1
    patch: int = 2
    groups: int = 8
    attention: bool = True
    mixes: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the groups."""
        if not self.widths or any(width % self.groups for width in self.widths):
            raise ValueError(f"an autoencoder's widths must be multiples of its {self.groups} groups, got {self.widths}.")

    @property
    def factor(self) -> int:
        """Pixels along a side for one position of the latent."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def size(self, sides: Sequence[int]) -> tuple[int, ...]:
        """The latent's sides for an image of these sides."""
        return tuple(-(-n // self.factor) for n in sides)

    def block(self, inward: int, outward: int) -> ResBlock:
        """One residual block."""
        return ResBlock(inward, outward, self.groups, self.dropout)

    def middle(self) -> nn.ModuleList:
        """The blocks at the coarsest resolution."""
        width = self.widths[-1]
        attention = Attention(width, self.groups) if self.attention else nn.Identity()
        return nn.ModuleList([self.block(width, width), attention, self.block(width, width)])


class Stage(nn.Module):
    """Residual blocks at one resolution, then optionally a change of resolution."""

    def __init__(self, inward: int, outward: int, depth: int, layout: Layout, scale: nn.Module) -> None:
        """Builds the stage."""
        super().__init__()
        self.blocks = nn.ModuleList(layout.block(inward if i == 0 else outward, outward) for i in range(depth))
        self.scale = scale

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Maps x."""
        for block in self.blocks:
            x = block(x)
        return self.scale(x)


class ImageEncoder(nn.Module):
    """Maps an image [c, h, w] to feature maps at 1/factor of its size."""

    def __init__(self, channels: int, outward: int, layout: Layout = Layout()) -> None:
        """Builds the network: `channels` in, `outward` out."""
        super().__init__()
        self.layout, self.channels = layout, channels
        ahead = [*layout.widths[1:], 0]
        before = [layout.widths[0], *layout.widths[:-1]]
        self.inward = nn.Conv2d(channels * layout.patch**2, layout.widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(last, width, layout.depth, layout, Downsample(width) if after else nn.Identity())
            for last, width, after in zip(before, layout.widths, ahead, strict=True)
        )
        self.middle = layout.middle()
        self.norm = GroupNorm(layout.groups, layout.widths[-1], eps=1e-6)
        self.outward = nn.Conv2d(layout.widths[-1], outward, 3, padding=1)
        self.mix = nn.Conv2d(outward, outward, 1) if layout.mixes else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Maps x.

        Raises:
            ValueError: x with other channels.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"this encoder takes images [b, {self.channels}, h, w], got {tuple(x.shape)}.")
        h = self.inward(nn.functional.pixel_unshuffle(pad_to_multiple(x, self.layout.factor), self.layout.patch))
        for part in (*self.stages, *self.middle):
            h = part(h)
        return self.mix(self.outward(self.norm(h, activates=True)))


class ImageDecoder(nn.Module):
    """Maps a latent to an image `factor` times as large."""

    def __init__(self, inward: int, channels: int, layout: Layout = Layout()) -> None:
        """Builds the network: `inward` channels in, `channels` out."""
        super().__init__()
        self.layout, self.channels = layout, inward
        widths = layout.widths[::-1]
        before = [widths[0], *widths[:-1]]
        ahead = [*widths[1:], 0]
        self.mix = nn.Conv2d(inward, inward, 1) if layout.mixes else nn.Identity()
        self.inward = nn.Conv2d(inward, widths[0], 3, padding=1)
        self.middle = layout.middle()
        self.stages = nn.ModuleList(
            Stage(last, width, layout.depth + 1, layout, Upsample(width) if after else nn.Identity())
            for last, width, after in zip(before, widths, ahead, strict=True)
        )
        self.norm = GroupNorm(layout.groups, widths[-1], eps=1e-6)
        self.outward = nn.Conv2d(widths[-1], channels * layout.patch**2, 3, padding=1)

    def forward(self, z: Float[Tensor, "b d h2 w2"]) -> Float[Tensor, "b c h w"]:
        """Maps z.

        Raises:
            ValueError: z with other channels.
        """
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"this decoder takes latents [b, {self.channels}, h, w], got {tuple(z.shape)}.")
        h = self.inward(self.mix(z))
        for part in (*self.middle, *self.stages):
            h = part(h)
        return nn.functional.pixel_shuffle(self.outward(self.norm(h, activates=True)), self.layout.patch)


class ToVector(nn.Module):
    """An image encoder that returns a vector."""

    def __init__(self, shape: tuple[int, int, int], outward: int, layout: Layout = Layout(), *, channels: int = 16) -> None:
        """Builds it for images of this shape; `channels` feature maps are flattened into the last linear layer."""
        super().__init__()
        self.shape = shape
        self.trunk = ImageEncoder(shape[0], channels, layout)
        self.outward = nn.Linear(channels * math.prod(layout.size(shape[1:])), outward)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """One vector for each image."""
        refuse_shape(x, self.shape)
        return self.outward(self.trunk(x).flatten(1))


class FromVector(nn.Module):
    """An image decoder that starts from a vector."""

    def __init__(
        self, inward: int, shape: tuple[int, int, int], channels_out: int, layout: Layout = Layout(), *, channels: int = 16
    ) -> None:
        """Builds it: from a vector of `inward` entries to `channels_out` channels with the sides of `shape`."""
        super().__init__()
        self.size, self.sides, self.vector = (channels, *layout.size(shape[1:])), shape[1:], inward
        self.inward = nn.Linear(inward, math.prod(self.size))
        self.trunk = ImageDecoder(channels, channels_out, layout)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """One image for each vector."""
        refuse_shape(z, (self.vector,))
        image = self.trunk(self.inward(z).reshape(len(z), *self.size))
        return image[..., : self.sides[0], : self.sides[1]]


class Ladder(nn.Module):
    """The two directions of a ladder: features of x from the bottom up, and a stream from the top down that latents are added to.

    `levels` lists the latents from the bottom, each (halvings, channels): its resolution, counted in halvings after the patch, and its
    channels. Sønderby et al. (2016), arXiv:1602.02282; Kingma et al. (2016), section 4 and appendix, arXiv:1606.04934.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels_out: int,
        *,
        levels: Sequence[tuple[int, int]],
        width: int = 64,
        patch: int = 2,
        depth: int = 1,
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        """Builds the network.

        Args:
            shape: of one image.
            channels_out: channels of the output for x.
            levels: of the latents, from the bottom.
            width: channels in both directions.
            patch: side of the pixels folded into channels.
            depth: residual blocks for each latent, in each direction.
            groups: of the normalisation; must divide the width.
            dropout: inside the residual blocks, in [0, 1).

        Raises:
            ValueError: no latent, or one that is finer than the one below it.
        """
        super().__init__()
        halvings = [halving for halving, _ in levels]
        if not levels or halvings != sorted(halvings) or halvings[0] < 0 or width % groups:
            raise ValueError(
                f"a ladder needs latents of which none is finer than the one below, and a width that its {groups} groups divide; "
                f"got halvings {halvings} and width {width}."
            )
        self.shape, self.levels, self.patch = shape, tuple(levels), patch
        self.multiple = patch * 2 ** halvings[-1]
        stack = lambda: nn.Sequential(*(ResBlock(width, width, groups, dropout) for _ in range(depth)))  # noqa: E731
        self.inward = nn.Conv2d(shape[0] * patch**2, width, 3, padding=1)
        steps = [now - before for before, now in zip([0, *halvings], halvings, strict=False)]
        self.halve = nn.ModuleList(nn.Sequential(*(Downsample(width) for _ in range(step))) for step in steps)
        self.up = nn.ModuleList(stack() for _ in levels)
        self.top = nn.Parameter(torch.zeros(1, width, *self.latent_shape(len(levels) - 1)[1:]))
        self.prior = nn.ModuleList(zeroed(nn.Conv2d(width, 2 * c, 3, padding=1)) for _, c in levels)
        self.posterior = nn.ModuleList(
            nn.Sequential(ResBlock(2 * width, width, groups, dropout), nn.SiLU(), zeroed(nn.Conv2d(width, 2 * c, 3, padding=1)))
            for _, c in levels
        )
        self.join = nn.ModuleList(nn.Conv2d(c, width, 1) for _, c in levels)
        self.down = nn.ModuleList(stack() for _ in levels)
        self.enlarge = nn.ModuleList(nn.Sequential(*(Upsample(width) for _ in range(step))) for step in steps)
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.outward = nn.Conv2d(width, channels_out * patch**2, 3, padding=1)

    def latent_shape(self, k: int) -> tuple[int, int, int]:
        """Shape of latent k, counted from the bottom."""
        halving, channels = self.levels[k]
        h, w = (-(-n // self.multiple) * self.multiple // self.patch // 2**halving for n in self.shape[1:])
        return channels, h, w

    def features(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The features of x for each latent, from the bottom."""
        refuse_shape(x, self.shape)
        h, found = self.inward(nn.functional.pixel_unshuffle(pad_to_multiple(x, self.multiple), self.patch)), []
        for halve, up in zip(self.halve, self.up, strict=True):
            found.append(h := up(halve(h)))
        return found

    def top_stream(self, count: int) -> Float[Tensor, "b width h w"]:
        """The stream above the topmost latent."""
        return self.top.expand(count, *self.top.shape[1:])

    def below(self, k: int, stream: Tensor, z: Tensor) -> Tensor:
        """The stream below latent k, at the resolution of the next.

        Raises:
            ValueError: z of another shape than latent k has.
        """
        refuse_shape(z, self.latent_shape(k))
        return self.enlarge[k](self.down[k](stream + self.join[k](z)))

    def output(self, stream: Tensor) -> Float[Tensor, "b c h w"]:
        """The output for x, from the stream below the last latent."""
        image = nn.functional.pixel_shuffle(self.outward(self.norm(stream, activates=True)), self.patch)
        return image[..., : self.shape[1], : self.shape[2]]


class PatchCritic(nn.Module):
    """Discriminates real from reconstructed patches: one number a position, positive for real. Isola et al. (2017), arXiv:1611.07004."""

    def __init__(self, channels: int, *, width: int = 32, depth: int = 2, groups: int = 8) -> None:
        """Builds it with `depth` halvings; the width doubles with each."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(depth - 1):
            now = width * 2**i
            layers += [nn.Conv2d(now, 2 * now, 4, stride=2, padding=1), nn.GroupNorm(groups, 2 * now), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * 2 ** (depth - 1), 1, 3, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """One number a position."""
        return self.layers(x)


class Fourier(nn.Module):
    """A network that also gets sin and cos of 2^n pi x for each n of `powers`, so that it can distinguish neighbouring grey levels.

    Kingma et al. (2021), appendix C, arXiv:2107.00630.
    """

    def __init__(self, net: nn.Module, powers: Sequence[int]) -> None:
        """Wraps a network whose input has 1 + 2 len(powers) times the channels of x."""
        super().__init__()
        self.net = net
        self.powers = tuple(powers)

    def hidden(self) -> Iterator[nn.Parameter]:
        """Those of the wrapped network."""
        return self.net.hidden()  # pyright: ignore[reportCallIssue] - Optimizer asks only networks that have it

    def forward(self, x: Float[Tensor, "b *x"], log_snr: Float[Tensor, "b"], cond: CondLike | None = None) -> Tensor:
        """net([x, sin, cos])."""
        angles = [2.0**n * math.pi * x for n in self.powers]
        return self.net(torch.cat([x, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)], dim=1), log_snr, cond)


def refuse_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses inputs of another shape than the network's."""
    if tuple(x.shape[1:]) != tuple(shape):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"this network takes [b, {wanted}], got {tuple(x.shape)}; the latent or the data do not fit it.")
