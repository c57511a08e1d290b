"""Methods at a single level: Langevin dynamics, annealed over levels, and as a corrector."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.sampling.loop import Step
from sfumato.sampling.steps.chain import DDIM, Ancestral
from sfumato.schedule import Level


def langevin(
    score: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b *x"],
    *,
    step_size: float | Tensor,
    steps: int,
    generator: Generator | None = None,
) -> Float[Tensor, "b *x"]:
    """x + step_size · score(x) + sqrt(2 step_size) z, `steps` times: unadjusted Langevin dynamics, which converge to the law of that score.

    The stationary law has an error of O(step_size): on N(0, c) its variance is c / (1 - step_size / (2 c)).

    Raises:
        ValueError: step_size that is not positive, or steps below 1.

    Reference: Song & Ermon (2019), eq. 4 with step_size = ε/2, arXiv:1907.05600.
    """
    if not bool((step_size > 0) if isinstance(step_size, float | int) else (step_size > 0).all()):
        raise ValueError(f"step_size must be positive, got {step_size}.")
    _refuse_steps(steps)
    spread = (2 * step_size) ** 0.5
    for _ in range(steps):
        x = x + step_size * score(x) + spread * normal_like(x, generator)
    return x


@runtime_checkable
class Corrector(Protocol):
    """Moves x closer to the law of its level, without changing the level."""

    def correct(self, predict: Predictor, x: Tensor, level: Level, generator: Generator | None) -> Tensor:
        """Returns x at the same level."""
        ...


@dataclass(frozen=True)
class Langevin:
    """Annealed Langevin dynamics: x / alpha is kept from t to s, then `steps` Langevin steps of size step_size · sigma_s² are made at s.

    The default step_size is NCSN's (ε / sigma_L² = 0.2, half of which is ours); the signal-to-noise ratio r of Song et al. (2021), alg. 4,
    gives step_size = 2 r². As a corrector it only makes the Langevin steps. From a level without signal, or to one without noise, the step
    is DDIM's.

    Reference: Song & Ermon (2019), alg. 1, arXiv:1907.05600.
    """

    steps: int = 100
    step_size: float = 0.1

    def __post_init__(self) -> None:
        """Checks the options."""
        _refuse_steps(self.steps)
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive, in units of sigma², got {self.step_size}; NCSN uses 0.1.")

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: None, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], None]:
        """One level of the annealing."""
        if not bool(t.alpha.all()) or not bool(s.sigma.all()):
            x, _ = DDIM()(predict, x, t, s, None, generator)
        else:
            x = s.alpha / t.alpha * x
        return self.correct(predict, x, s, generator), None

    def correct(self, predict: Predictor, x: Float[Tensor, "b *x"], level: Level, generator: Generator | None) -> Float[Tensor, "b *x"]:
        """The Langevin steps at this level; none if it has no noise."""
        if not bool(level.sigma.all()):
            return x
        score = lambda x: predict(x, level).score(level)  # noqa: E731
        return langevin(score, x, step_size=self.step_size * level.sigma.square(), steps=self.steps, generator=generator)


@dataclass(frozen=True)
class PredictorCorrector:
    """A step to s, then a correction at s. Song et al. (2021), alg. 1, arXiv:2011.13456.

    The corrector's default is one Langevin step at their signal-to-noise ratio of 0.16.
    """

    predictor: Step = field(default_factory=Ancestral)
    corrector: Corrector = field(default_factory=lambda: Langevin(steps=1, step_size=2 * 0.16**2))

    def __call__(
        self, predict: Predictor, x: Float[Tensor, "b *x"], t: Level, s: Level, memory: Any, generator: Generator | None
    ) -> tuple[Float[Tensor, "b *x"], Any]:
        """One step of the predictor and its correction."""
        x, memory = self.predictor(predict, x, t, s, memory, generator)
        return self.corrector.correct(predict, x, s, generator), memory


def _refuse_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"Langevin dynamics need at least 1 step, got {steps}.")
