"""Lower orders at the end of a run."""

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.sampling.loop import Step
from sfumato.schedule import Level


@dataclass(frozen=True)
class LowerOrderFinal:
    """A method of at most first order in the last step of a run, second in the one before, and so on: diffusers' `lower_order_final`.

    `step` is any method with an `order`: Multistep, UniPC, AdamsBashforth, Adams. The sampling loop (`sample`, `progressive`, `invert`)
    counts the steps; called directly, this is `step`. If a run ends at the data, its last step is of first order anyway.
    """

    step: Any

    def __post_init__(self) -> None:
        """Refuses methods without an order."""
        if not isinstance(getattr(self.step, "order", None), int):
            raise ValueError(f"only a method with an order can be lowered, got {self.step!r}; use Multistep, UniPC or Adams.")

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: Any, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Any]:
        """One step of the method."""
        return self.step(predict, x, t, s, memory, generator)

    def before_end(self, remaining: int) -> Step:
        """The method for a step after which `remaining` - 1 follow."""
        return replace(self.step, order=min(self.step.order, remaining))
