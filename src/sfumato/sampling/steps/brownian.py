"""The noise of a reverse SDE as one path a row, the same at whichever levels it is read.

In half log-SNR λ, and in units of sigma, the noise that Langevin dynamics keep adding is a stationary Ornstein-Uhlenbeck process N with
N(λ) ~ N(0, 1) and Cov(N(λ), N(λ')) = exp(-|λ - λ'|): exp(λ) N is Brownian motion run by the clock exp(2λ), the SNR. A step from λ_t to λ_s
adds N(λ_s) - exp(-h) N(λ_t), of variance 1 - exp(-2h), h = λ_s - λ_t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.noise import Generator, seeded
from sfumato.runtime import moved

_DEPTH = 20  # halvings: the last cell is at most 6e-5 long in λ for log-SNRs within 15 nats, and is bridged without a draw
_WIDTH = 8.0  # in λ: p = λ / (_WIDTH + |λ|) takes the line to (-1, 1), which is halved


@runtime_checkable
class Path(Protocol):
    """N at any half log-SNR."""

    def at(self, half: float) -> Tensor:
        """N there: the same whenever it is asked for."""
        ...


@dataclass(frozen=True)
class BrownianPath:
    """N by halving: at each cell's middle a draw from the bridge between its ends, seeded by the row's seed and the cell.

    So what is read at one level does not depend on which others are. Where a batch has one generator, it has one seed and its rows are
    drawn together. Kloeden & Platen (1992), section 1.8, for the bridge; Li et al. (2020), alg. 3, arXiv:2001.01328, for the tree.
    """

    seeds: Sequence[int]
    like: Tensor
    _read: dict[float, Tensor] = field(default_factory=dict)  # the last three, as a step begins where the one before ended

    @classmethod
    def draw(cls, like: Float[Tensor, "b *x"], generator: Generator | None) -> "BrownianPath":
        """A path for each row of `like`: one number is taken from each generator.

        Raises:
            ValueError: as many generators as rows are needed, or exactly one.
        """
        each = [generator] if generator is None or isinstance(generator, torch.Generator) else generator
        if each is generator and len(each) != len(like):
            raise ValueError(f"got {len(each)} generators for {len(like)} rows; pass one generator, or one a row.")
        device = lambda g: "cpu" if g is None else g.device  # noqa: E731
        return cls([int(torch.randint(2**62, (), generator=g, device=device(g))) for g in each], like)

    def at(self, half: float) -> Float[Tensor, "b *x"]:
        """N at this half log-SNR, -inf and inf included."""
        if half not in self._read:
            while len(self._read) > 2:
                self._read.pop(next(iter(self._read)))
            self._read[half] = self._descend(half)
        return self._read[half]

    def _descend(self, half: float) -> Tensor:
        place = math.copysign(1.0, half) if math.isinf(half) else half / (_WIDTH + abs(half))
        low, high, cell = -1.0, 1.0, 1
        at_low = at_high = torch.zeros(self.like.shape, dtype=self.like.dtype)
        for _ in range(_DEPTH):
            middle = (low + high) / 2
            mean, deviation = _bridge(at_low, at_high, _half(low), _half(middle), _half(high))
            value = mean + deviation * self._normal(cell)
            if place < middle:
                high, at_high, cell = middle, value, 2 * cell
            else:
                low, at_low, cell = middle, value, 2 * cell + 1
        inside = min(max(place, low), high)
        return moved(_bridge(at_low, at_high, _half(low), _half(inside), _half(high))[0], self.like.device)

    def _normal(self, cell: int) -> Tensor:
        if len(self.seeds) == 1:
            return torch.randn(self.like.shape, generator=seeded(self.seeds[0], cell), dtype=self.like.dtype)
        return torch.stack([torch.randn(self.like.shape[1:], generator=seeded(s, cell), dtype=self.like.dtype) for s in self.seeds])


Lengths = float | np.ndarray  # in half log-SNR


def bridge(h: Lengths, rest: Lengths) -> tuple[Lengths, Lengths, Lengths]:
    """N(λ) given N(λ - h) and N(λ + rest): two weights of its mean, its deviation. Not both lengths are 0; inf: nothing is known."""
    from_low, from_high, both = -np.expm1(-2 * h), -np.expm1(-2 * rest), -np.expm1(-2 * (h + rest))
    return np.exp(-h) * from_high / both, np.exp(-rest) * from_low / both, np.sqrt(from_low * from_high / both)


def _bridge(at_low: Tensor, at_high: Tensor, low: float, middle: float, high: float) -> tuple[Tensor, float]:
    if middle in (low, high):
        return (at_low if middle == low else at_high), 0.0
    from_low, from_high, deviation = (float(each) for each in bridge(middle - low, high - middle))
    return from_low * at_low + from_high * at_high, deviation


def _half(place: float) -> float:
    return math.copysign(math.inf, place) if abs(place) == 1 else _WIDTH * place / (1 - abs(place))
