"""Randomness: always from a generator that the caller passes.

A generator is one `torch.Generator` for a whole batch, or a sequence with one for each row. With one for each row, seeded by
`row_generators`, the noise of sample i depends on (seed, i) only, however samples are divided into batches or processes.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.runtime import moved

Generator = torch.Generator | Sequence[torch.Generator]


def seeded(*key: int) -> torch.Generator:
    """A CPU generator for the given key of non-negative integers.

    A generator uses only 32 bits of a seed, so keys are not simply hashed to one: keys that differ only in their last entry (below 2³²)
    never share a stream.
    """
    *first, last = key
    mixed = (_hashed(*first) + last) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # an invertible mix (Appleby's finaliser): distinct inputs stay distinct
        mixed = (mixed ^ (mixed >> shift)) * factor & 0xFFFFFFFF
    return torch.Generator().manual_seed(mixed ^ (mixed >> 16))


@lru_cache(maxsize=4096)
def _hashed(*first: int) -> int:
    """A 32-bit hash of all of a key but its last entry."""
    words = [len(first) + 1, *(word for part in first for word in (part & 0xFFFFFFFF, part >> 32))]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def row_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One generator for each sample, seeded by (seed, index)."""
    return [seeded(seed, index) for index in indices]


def normal_like(x: Float[Tensor, "*x"], generator: Generator | None) -> Float[Tensor, "*x"]:
    """Standard normal noise of the shape, dtype and device of x.

    Drawn on the generator's device (the CPU, for those of this module), so a seed gives the same noise on every device.

    Raises:
        ValueError: neither one generator nor one for each row.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = x.device if generator is None else generator.device
        return moved(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device), x.device)
    if len(generator) != len(x):
        raise ValueError(f"got {len(generator)} generators for {len(x)} rows; pass one generator, or one for each row.")
    rows = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=g.device) for g in generator]
    return moved(torch.stack(rows), x.device)
