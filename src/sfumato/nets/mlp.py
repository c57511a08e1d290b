"""A residual perceptron for points and vectors."""

import math
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import Classes, ConditionSpec, CondLike, Numbers
from sfumato.nets.conditioner import Conditioner, accepted
from sfumato.nets.layers import refuse_misfit, zeroed


class MLP(nn.Module):
    """Residual layers, each scaled and shifted by the condition, over the entries of x and sines of random projections of them.

    The projections (Tancik et al. 2020, arXiv:2006.10739) let a small network represent the sharp edges of point sets.
    """

    consumes = (Classes, Numbers)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 256,
        depth: int = 4,
        conditions: Mapping[str, ConditionSpec] | None = None,
        waves: int = 64,
        out_channels: int | None = None,
    ) -> None:
        """Builds the network.

        Args:
            shape: of one x, without the batch.
            width: of the hidden layers.
            depth: residual layers.
            conditions: name to spec: classes and numbers.
            waves: number of random projections; 0 for none.
            out_channels: shape[0] by default; twice that for a learned variance.

        Raises:
            ValueError: a condition of another kind.
        """
        super().__init__()
        size, self.shape = math.prod(shape), shape
        self.out_shape = (out_channels or shape[0], *shape[1:])
        self.condition = Conditioner(width, accepted("MLP", self.consumes, conditions))
        self.projection = nn.Buffer(torch.randn(size, waves))
        self.inward = nn.Linear(size + 2 * waves, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.modulations = nn.ModuleList(zeroed(nn.Linear(width, 2 * width)) for _ in range(depth))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(depth))
        self.outward = zeroed(nn.Linear(width, math.prod(self.out_shape)))

    def hidden(self) -> Iterator[nn.Parameter]:
        """The matrices between the first layer and the last, for optimisers that treat them separately."""
        return (weight for layer in chain(self.first, self.second) for weight in layer.parameters() if weight.ndim == 2)

    def forward(self, x: Float[Tensor, "b *shape"], log_snr: Float[Tensor, "b"], cond: CondLike | None = None) -> Float[Tensor, "b *out"]:
        """Maps x to its size, with out_channels."""
        refuse_misfit(x, self.shape, exactly=True)
        condition, flat = self.condition(log_snr, cond), x.flatten(1)
        angles = flat.to(self.projection.dtype) @ self.projection
        h = self.inward(torch.cat([flat, angles.sin().to(flat.dtype), angles.cos().to(flat.dtype)], dim=1))
        for norm, modulation, first, second in zip(self.norms, self.modulations, self.first, self.second, strict=True):
            scale, shift = modulation(condition).chunk(2, dim=1)
            h = h + second(nn.functional.silu(first(torch.addcmul(shift, norm(h), 1 + scale))))
        return self.outward(h).reshape(len(x), *self.out_shape)
