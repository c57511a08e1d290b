"""The sampling loop: once, for every method, downwards (`sample`, `progressive`) and upwards (`path.invert`)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import refuse_cond
from sfumato.denoiser import CondLike, Predictor, refuse_array
from sfumato.noise import Generator
from sfumato.prediction import Prediction
from sfumato.schedule import Level


@runtime_checkable
class Step(Protocol):
    """One move from level t to the cleaner level s."""

    def __call__(
        self, predict: Predictor, x: Tensor, t: Level, s: Level, memory: Any, generator: Generator | None
    ) -> tuple[Tensor, Any]:  # a method's memory is its own: None at first, then whatever it returned
        """Returns x at level s, and what the method wants to remember of this step."""
        ...


@runtime_checkable
class Ending(Protocol):
    """A method that is another one near the end of a walk."""

    def before_end(self, remaining: int) -> Step:
        """The method for a step that is one of `remaining` still to be made."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingState:
    """A level of a sampling run, x at it, and the x0 predicted from x (at the last level, where nothing is predicted: x itself)."""

    level: Level
    x: Float[Tensor, "b *x"]
    x0: Float[Tensor, "b *x"]


@torch.no_grad()
def sample(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    levels: Sequence[Level],
    step: Step,
    cond: CondLike | None = None,
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
        ValueError: fewer than two levels, levels that do not fall from noise to data, a predictor that returns another shape than x has,
            an x that is not finite or no tensor of floats, conditions that do not have one row an example, or a step that is none.
    """
    refuse_levels(levels)
    x_s = x
    for i, (_, x_s) in enumerate(walk(predict, x, levels, step, cond, generator)):
        if on_step is not None:
            on_step(i, x_s)
    return x_s


@torch.no_grad()
def progressive(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    levels: Sequence[Level],
    step: Step,
    cond: CondLike | None = None,
    *,
    generator: Generator | None = None,
) -> Iterator[SamplingState]:
    """Runs `sample` and yields, at each level, x and the x0 predicted from it.

    Reference: Ho et al. (2020), section 4.3, arXiv:2006.11239.
    """
    refuse_levels(levels)
    for level, (first, x_s) in zip(levels, walk(predict, x, levels, step, cond, generator), strict=False):
        yield SamplingState(level, x, first.x0)
        x = x_s
    yield SamplingState(levels[-1], x, x)


def walk(
    predict: Predictor, x: Tensor, levels: Sequence[Level], step: Step, cond: CondLike | None, generator: Generator | None
) -> Iterator[tuple[Prediction, Tensor]]:
    """After each step: the first prediction that it asked for, and the x that it led to. Gradients are as the caller set them.

    Whether each x was finite is looked at once, after the last step, so that no step waits for the device.

    Raises:
        ValueError: a predictor that returns another shape than x has, or, after the last step, an x that was not finite.
    """
    _refuse_no_step(step)
    refuse_array(x)
    refuse_cond(cond, len(x))
    asked, memory, steps, sums = _Asked(predict, cond), None, len(levels) - 1, []
    for i, (t, s) in enumerate(pairwise(levels)):
        asked.place, asked.first = (i, steps, t), None
        method = step.before_end(steps - i) if isinstance(step, Ending) else step
        x, memory = method(asked, x, t, s, memory, generator)
        sums.append(x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)))
        assert asked.first is not None
        yield asked.first, x
    for i, total in enumerate(torch.stack(sums).cpu().tolist() if sums else ()):
        if not math.isfinite(total):
            asked.place = (i, steps, levels[i])
            raise ValueError(
                f"x is not finite after {asked.where}: the predictor returned NaN or infinity there, or the step is unstable; "
                "look at what it predicts at that level, or take more steps."
            )


def refuse_levels(levels: Sequence[Level]) -> None:
    """Refuses levels that do not go from noise to data, each cleaner than the one before."""
    if len(levels) < 2:
        raise ValueError(f"sample needs at least two levels, got {len(levels)}; build them with grid(schedule, steps).")
    alpha = torch.stack(torch.broadcast_tensors(*(level.alpha for level in levels)))
    sigma = torch.stack(torch.broadcast_tensors(*(level.sigma for level in levels)))
    falls = (sigma[1:] * alpha[:-1] < sigma[:-1] * alpha[1:]).reshape(len(levels) - 1, -1).all(1)
    if not bool(falls.all()):
        i = int(falls.logical_not().nonzero()[0])
        raise ValueError(
            f"each level must be cleaner than the one before, but level {i + 1} is not (log-SNR {_nats(levels[i])}, then "
            f"{_nats(levels[i + 1])}); build them with grid(schedule, steps), and walk from data to noise with invert."
        )


def _refuse_no_step(step: Step) -> None:
    """Refuses a method's class, and what cannot be called."""
    if isinstance(step, type):
        raise ValueError(f"a step is an instance of a method, got the class {step.__name__}; write {step.__name__}().")
    if not callable(step):
        raise ValueError(f"a step is a method such as sf.steps.DDIM(), got {step!r}.")


@dataclass(slots=True)
class _Asked:
    """A predictor with its condition, for one walk: it knows where the walk is, and keeps what a step asked first."""

    predict: Predictor
    cond: CondLike | None
    place: tuple[int, int, Level] | None = None
    first: Prediction | None = None

    def __call__(self, x_t: Tensor, level: Level, cond: CondLike | None = None) -> Prediction:
        prediction = self.predict(x_t, level, self.cond)
        if prediction.x0.shape != x_t.shape or prediction.eps.shape != x_t.shape:
            raise ValueError(
                f"the predictor returned x0 of shape {tuple(prediction.x0.shape)} and eps of shape {tuple(prediction.eps.shape)} "
                f"in {self.where}; both must have the shape of x_t, {tuple(x_t.shape)}."
            )
        if self.first is None:
            self.first = prediction
        return prediction

    @property
    def where(self) -> str:
        assert self.place is not None
        i, steps, level = self.place
        return f"step {i + 1} of {steps}, from log-SNR {_nats(level)}"


def _nats(level: Level) -> str:
    return f"{level.log_snr.mean().item():.4g}"
