"""Methods that are a `Step` of the sampling loop: each draw is a walk of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike, cat
from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.restoration.moments import Covariance, covariance_of
from sfumato.restoration.observed import Draws, Observed, OnStep, spread_levels
from sfumato.sampling.loop import Step, sample
from sfumato.schedule import Level


class Walked(ABC):
    """Draws that do not know of each other: row i depends on its own observation and generator alone."""

    def levels(self, steps: int = 40) -> list[Level]:
        """`spread_levels`."""
        return spread_levels(steps)

    @abstractmethod
    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """The move from one level to the next, given these observations; `covariance` is the predictor's own Cov[x0 | x_t]."""

    def begin(self, observed: Observed, noise: Float[Tensor, "n *x"], level: Level) -> Float[Tensor, "n *x"]:
        """x at the first level, of standard normal noise."""
        return level.sigma * noise

    def __call__(
        self,
        predict: Predictor,
        observed: Observed,
        levels: Sequence[Level],
        count: int,
        cond: CondLike | None,
        generator: Generator | None,
        on_step: OnStep | None,
    ) -> Draws:
        """`count` draws for each observation."""
        every, b = observed.repeat(count), len(observed.y)
        noise = normal_like(every.y.new_empty(len(every.y), *observed.linear.shape), generator)
        conds = None if cond is None else cat(*[cond] * count)
        x = sample(
            predict,
            self.begin(every, noise, levels[0]),
            levels,
            self.step(every, covariance_of(predict, conds)),
            conds,
            generator=generator,
            on_step=on_step,
        )
        return Draws(x.reshape(count, b, *observed.linear.shape))
