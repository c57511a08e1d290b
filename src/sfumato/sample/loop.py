"""The sampling loop: once, for every method."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Cond, Predictor
from sfumato.noise import Generator
from sfumato.schedule import Level


@runtime_checkable
class Step(Protocol):
    """One move from level t to the cleaner level s."""

    def __call__(
        self, predict: Predictor, x: Tensor, t: Level, s: Level, memory: Any, generator: Generator | None
    ) -> tuple[Tensor, Any]:  # a method's memory is its own: None at first, then whatever it returned
        """Returns x at level s, and what the method wants to remember of this step."""
        ...


@torch.no_grad()
def sample(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    levels: Sequence[Level],
    step: Step,
    cond: Cond | None = None,
    *,
    generator: Generator | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "b *x"]:
    """Carries x from levels[0] to levels[-1].

    Args:
        predict: a denoiser, an oracle, or either wrapped by `guide`.
        x: standard normal noise times levels[0].sigma, as `noise.normal_like` draws it.
        levels: from noise to data, as `grid` makes them.
        step: the method.
        cond: conditions with one row an example.
        generator: noise for stochastic steps; one, or one a row.
        on_step: called after each step with its index and x.

    Raises:
        ValueError: fewer than two levels.
    """
    if len(levels) < 2:
        raise ValueError(f"sample needs at least two levels, got {len(levels)}; build them with grid(schedule, steps).")
    conditioned, memory = partial(predict, cond=cond), None
    for i, (t, s) in enumerate(pairwise(levels)):
        x, memory = step(conditioned, x, t, s, memory, generator)
        if on_step is not None:
            on_step(i, x)
    return x
