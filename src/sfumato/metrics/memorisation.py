"""Whether samples are copies of the training data: how near they lie to it, beside how near held-out data lie to it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from sfumato.metrics.neighbours import BLOCK


@dataclass(frozen=True)
class Memorisation:
    """How near samples lie to the training data.

    Args:
        share: of the samples that are nearer to the training data than all but one in a hundred of held-out data, by their ratio.
        expected: the same share of held-out data, one in a hundred.
        error: the standard error of `share` less `expected` if samples were as held-out data.
        copies: an estimate of the share of copies, (share - expected) / (1 - expected), at least 0.
        has_copies: whether `share` is more than chance explains.
        ratios: of each sample, the distance to its nearest training example over that example's own distance to its nearest other one.
        held_out_ratios: the same of held-out data.
        pairs: samples and their nearest training examples, [k, 2], the smallest ratios first.
    """

    share: float
    expected: float
    error: float
    copies: float
    has_copies: bool
    ratios: Float64[np.ndarray, "n"]
    held_out_ratios: Float64[np.ndarray, "m"]
    pairs: Int64[np.ndarray, "k 2"]


def memorisation(samples: ArrayLike, training: ArrayLike, held_out: ArrayLike, *, pairs: int = 16, block: int = BLOCK) -> Memorisation:
    """Compares nearest-neighbour distance ratios of samples with those of held-out data.

    Raises:
        ValueError: sets that do not fit, or fewer than 100 held-out examples.
    """
    raise NotImplementedError
