"""Averages of the weights over training, with a power-function profile.

The weight of step i in the average at step n grows as (i/n)^γ, so an average spans a fixed share of the run: it needs no warm-up, forgets
the initial weights immediately, and works after a hundred steps as well as after a million. Its `width` is the standard deviation of
that profile relative to the run's length. Karras et al. (2024), eqs. 123-127, arXiv:2312.02696.

Stored averages can be combined afterwards: a profile that ends at step n is close to a sum of profiles of other widths that end earlier,
and the same sum of the stored averages is close to the average with that profile.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.storage import name_of


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
        """Starts at the module's current weights."""
        self.width = width
        self.gamma = exponent(width)
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._pairs: tuple[nn.Module, list[tuple[Tensor, Tensor]]] | None = None

    @property
    def name(self) -> str:
        """The name of this average in a checkpoint."""
        return name_of(self.width)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Adds the weights after `step` steps (1, 2, …): average += (1 - (1 - 1/step)^(γ + 1)) (weights - average)."""
        share = 1 - (1 - 1 / step) ** (self.gamma + 1)
        for average, tensor in self._paired(module):
            if average.is_floating_point():
                average.lerp_(tensor.detach(), share)
            else:
                average.copy_(tensor)

    def _paired(self, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each average beside the module's tensor; found once, as `state_dict` takes long."""
        if self._pairs is not None and self._pairs[0] is module:
            return self._pairs[1]
        own: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        own.update(module.named_buffers(remove_duplicate=False))
        state: dict[str, Tensor] = module.state_dict()
        live = {**state, **own}
        pairs = [(self.tensors[name], live[name]) for name in state]
        if state.keys() <= own.keys():  # else some of it is made each time that it is asked for
            self._pairs = module, pairs
        return pairs

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads a saved average."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])


def coefficients(widths: Sequence[float], steps: Sequence[int], *, width: float, step: int) -> tuple[np.ndarray, float]:
    """The factors c_i for which Σ c_i average_i has another profile, and the misfit ‖Σ c_i p_i - p‖ / ‖p‖.

    The profile p(τ) = (γ + 1) τ^γ / n^(γ + 1) on [0, n] has the inner products ∫ p_a p_b dτ =
    (γ_a + 1)(γ_b + 1) / (γ_a + γ_b + 1) (m/n_a)^(γ_a + 1) (m/n_b)^(γ_b + 1) / m with m = min(n_a, n_b), so the best sum solves a linear
    system. Unlike in the paper, the coefficients are constrained to sum to one: constant weights are then their own average.

    Args:
        widths: of the stored averages, each in (0, 0.288).
        steps: the last step of each; no two averages share both width and step.
        width: of the wanted profile.
        step: its last step.

    Reference: Karras et al. (2024), section 3.2 and appendix C, arXiv:2312.02696
    """
    gammas, ends = np.array([*map(exponent, widths), exponent(width)]), np.array([*steps, step]) / step
    first, last = np.minimum.outer(ends, ends), np.add.outer(gammas, gammas) + 1
    reach = (first / ends) ** (gammas + 1)
    products = np.multiply.outer(gammas + 1, gammas + 1) / last * reach * reach.T / first
    among, wanted = products[:-1, :-1], products[:-1, -1]
    ones = np.ones((len(among), 1))
    system = np.block([[among, ones], [ones.T, np.zeros((1, 1))]])
    c = np.linalg.solve(system, np.append(wanted, 1.0))[:-1]
    squared = products[-1, -1] - 2 * c @ wanted + c @ among @ c
    return c, float(np.sqrt(max(0.0, squared) / products[-1, -1]))
