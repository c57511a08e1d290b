"""The diffusion transformer: patches as tokens. Peebles & Xie (2023), section 3, arXiv:2212.09748."""

from collections.abc import Iterator, Mapping
from itertools import chain, product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import Classes, ConditionSpec, CondLike, Map, Numbers
from sfumato.nets.conditioner import Conditioner, accepted
from sfumato.nets.layers import attend, crop_like, pad_to_multiple, refuse_misfit, zeroed


class Block(nn.Module):
    """Attention and a perceptron, each normalised, scaled, shifted and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        """Builds the block; it is the identity at first."""
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, tokens: Float[Tensor, "b n w"], condition: Float[Tensor, "b w"]) -> Float[Tensor, "b n w"]:
        """Tokens to tokens."""
        b, n, w = tokens.shape
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        h = torch.addcmul(shift1, self.norm(tokens), 1 + scale1)
        q, k, v = self.qkv(h).reshape(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, scale=(w // self.heads) ** -0.5).transpose(1, 2).reshape(b, n, w)
        tokens = torch.addcmul(tokens, gate1, self.mix(mixed))
        h = torch.addcmul(shift2, self.norm(tokens), 1 + scale2)
        return torch.addcmul(tokens, gate2, self.narrow(nn.functional.gelu(self.widen(h), approximate="tanh")))


class DiT(nn.Module):
    """A transformer over patches of a signal, an image or a volume; sizes that are not multiples of the patch are padded and cropped."""

    consumes = (Classes, Numbers, Map)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch: int = 4,
        width: int = 192,
        depth: int = 8,
        heads: int = 6,
        conditions: Mapping[str, ConditionSpec] | None = None,
        out_channels: int | None = None,
    ) -> None:
        """Builds the network.

        Args:
            shape: of one x: (c, *size), with at least one spatial axis.
            patch: side of a patch.
            width: of a token; a multiple of `heads`.
            depth: transformer blocks.
            heads: of the attention.
            conditions: name to spec: classes, numbers and maps.
            out_channels: c by default; 2c for a learned variance.

        Raises:
            ValueError: a shape without spatial axes, a width that is not a multiple of the heads, or a condition of another kind.
        """
        super().__init__()
        dims = len(shape) - 1
        if dims < 1:
            raise ValueError(f"DiT takes (c, *size) with at least one spatial axis, got shape {shape}; for points use MLP.")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}.")
        self.shape, self.patch = shape, patch
        self.out_channels = out_channels or shape[0]
        map_stem = lambda channels: nn.Linear(channels * patch**dims, width, bias=False)  # noqa: E731
        self.condition = Conditioner(width, accepted("DiT", self.consumes, conditions), stem=map_stem)
        self.inward = nn.Linear(shape[0] * patch**dims, width)
        self.places = nn.Linear(2 * dims * (width // (2 * dims)), width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.outward = zeroed(nn.Linear(width, self.out_channels * patch**dims))

    def hidden(self) -> Iterator[nn.Parameter]:
        """The matrices between the first layer and the last, for optimisers that treat them separately."""
        for name, weight in self.blocks.named_parameters():
            if weight.ndim == 2 and "modulation" not in name:
                yield weight

    def forward(
        self, x: Float[Tensor, "b c *size"], log_snr: Float[Tensor, "b"], cond: CondLike | None = None
    ) -> Float[Tensor, "b d *size"]:
        """Maps x to its size."""
        refuse_misfit(x, self.shape)
        condition, padded = self.condition(log_snr, cond), pad_to_multiple(x, self.patch)
        counts = [n // self.patch for n in padded.shape[2:]]
        tokens = self.inward(_to_tokens(padded, counts, self.patch)) + self.places(self._waves(counts, x.device))
        for stem, shown in self.condition.maps(x, cond):
            tokens = tokens + stem(_to_tokens(pad_to_multiple(shown, self.patch), counts, self.patch))
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=2)
        patches = self.outward(torch.addcmul(shift, self.norm(tokens), 1 + scale))
        return crop_like(_from_tokens(patches, counts, self.patch), x)

    def _waves(self, counts: list[int], device: torch.device) -> Tensor:
        """Sines and cosines of each patch's position, [n, features]: frequencies from half a turn over the axis to one in two patches."""
        half = self.places.in_features // (2 * len(counts))
        axes = []
        for n in counts:
            rates = torch.pi * torch.logspace(0, 1, half, base=max(n, 2), device=device) / n
            angles = torch.arange(n, device=device)[:, None] * rates
            axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))
        places = [torch.cat(rows) for rows in product(*axes)]
        return torch.stack(places).to(self.places.weight.dtype)


def _to_tokens(x: Tensor, counts: list[int], patch: int) -> Tensor:
    """[b, c, *size] to [b, n, c · patch^dims]."""
    b, dims = len(x), len(counts)
    cut = x.reshape(b, x.shape[1], *chain.from_iterable((n, patch) for n in counts))
    order = [0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2)]
    return cut.permute(order).flatten(1 + dims).flatten(1, dims)


def _from_tokens(tokens: Tensor, counts: list[int], patch: int) -> Tensor:
    """The inverse of `_to_tokens`."""
    b, dims = len(tokens), len(counts)
    cut = tokens.reshape(b, *counts, -1, *(patch,) * dims)
    order = [0, 1 + dims, *chain.from_iterable((1 + i, 2 + dims + i) for i in range(dims))]
    return cut.permute(order).reshape(b, -1, *(n * patch for n in counts))
