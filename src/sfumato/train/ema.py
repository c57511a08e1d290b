"""Averages of the weights over training, with the profile of a power function.

The weight of step i in the average at step n grows as (i/n)^γ, so an average is as wide as a fixed share of the run so far: it needs no
warm-up, forgets the initial weights at once, and is as usable after a hundred steps as after a million. Its `width` is the standard
deviation of that profile relative to the run's length. Karras et al. (2024), eqs. 123-127, arXiv:2312.02696.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def exponent(width: float) -> float:
    """The γ whose profile has this relative standard deviation: width² = (γ + 1) / ((γ + 2)² (γ + 3)).

    Raises:
        ValueError: a width outside (0, 0.288), where γ would not be positive.
    """
    if not 0 < width < 0.288:
        raise ValueError(f"an EMA width must lie in (0, 0.288), got {width}; 0.1 averages over about the last third of the run.")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


class Ema:
    """A power-function average of a module's floating-point parameters and buffers, in float32."""

    def __init__(self, module: nn.Module, width: float) -> None:
        """Begins at the module's present weights."""
        self.width = width
        self.gamma = exponent(width)
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @property
    def name(self) -> str:
        """What the profile is called in a checkpoint."""
        return f"ema-{self.width:.3f}"

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after `step` steps (1, 2, …): average += (1 - (1 - 1/step)^(γ + 1)) (weights - average)."""
        share = 1 - (1 - 1 / step) ** (self.gamma + 1)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a saved average."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
