"""What is known of x0 (an operator, y, the noise in it), and what every method shares."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike
from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.prediction import Prediction
from sfumato.restoration.operators import SVD, Linear
from sfumato.schedule import Level, vp_scales

OnStep = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Observed:
    """y = H x0 + noise_std n, one observation a row.

    Args:
        linear: H at the shape of x.
        y: flat.
        noise_std: one a row.
    """

    linear: Linear
    y: Float[Tensor, "n m"]
    noise_std: Float[Tensor, "n 1"]

    @property
    def variance(self) -> Float[Tensor, "n 1"]:
        """Of the noise."""
        return self.noise_std.square()

    @property
    def svd(self) -> SVD:
        """H = U S Vᵀ.

        Raises:
            ValueError: an operator without a cheap one.
        """
        if (svd := self.linear.svd) is None:
            raise ValueError(
                "this method needs the operator's singular value decomposition, which is not cheap for this operator at this size; "
                "take MomentMatching, PiGDM, DPS or DiffPIR."
            )
        return svd

    def repeat(self, count: int) -> "Observed":
        """The same observations `count` times over, one whole set after another."""
        return Observed(self.linear, self.y.repeat(count, 1), self.noise_std.repeat(count, 1))

    def rows(self, part: slice) -> "Observed":
        """Some of them."""
        return Observed(self.linear, self.y[part], self.noise_std[part])

    def residual(self, x: Float[Tensor, "n *x"]) -> Float[Tensor, "n m"]:
        """y - H x."""
        return self.y - self.linear.forward(x.flatten(1))

    def chi_squared(self, x: Float[Tensor, "n *x"]) -> Float[Tensor, "n"]:
        """|y - H x|² / (m noise_std²): 1 in the mean, over draws and observations, for draws of the true posterior."""
        return (self.residual(x).double() / self.noise_std.double()).square().mean(1)


@dataclass(frozen=True)
class Draws:
    """What a method returns.

    Args:
        x: [count, b, *x].
        ess: the effective sample size of the weighted particles at each level, one row an observation; of particle methods.
        log_evidence: an unbiased estimate's logarithm: log p(y) in nats; of particle methods.
    """

    x: Float[Tensor, "count b *x"]
    ess: Float[Tensor, "b steps"] | None = None
    log_evidence: Float[Tensor, "b"] | None = None


@runtime_checkable
class Method(Protocol):
    """A way to draw x0 given y."""

    def levels(self, steps: int = 40) -> list[Level]:
        """The levels that it visits unless told otherwise, for so many evaluations of the predictor a draw."""
        ...

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
        """`count` draws for each observation; the generator is one, or one a row of [count · b]."""
        ...


def ratio(level: Level) -> float:
    """sigma/alpha: the noise on x_t / alpha = x0 + (sigma/alpha) eps."""
    return float(level.sigma) / float(level.alpha)


def at_ratios(ratios: Sequence[float]) -> list[Level]:
    """Variance-preserving levels with these sigma/alpha, and the data."""
    log_snr = torch.tensor([-2 * math.log(each) for each in ratios], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    return [*(Level(*vp_scales(each)) for each in log_snr), Level(one, 0 * one)]


def default_levels(steps: int = 40) -> list[Level]:
    """Levels of moment matching: two in the noise, most between sigma/alpha of 1.5 and 0.15, the rest to 0.02; the data.

    Variance preserving; a predictor takes them whatever schedule it was trained under.

    Raises:
        ValueError: fewer than 4 steps.
    """
    if steps < 4:
        raise ValueError(f"restoration takes at least 4 steps, got {steps}.")
    late = max(1, steps // 6)
    return at_ratios([10.0, 3.5, *geometric(1.5, 0.15, steps - 2 - late), *geometric(0.1, 0.02, late)])


def spread_levels(steps: int = 40) -> list[Level]:
    """Levels from sigma/alpha of 80 to 0.02, denser near the data, and the data. Karras et al. (2022), eq. 5, arXiv:2206.00364.

    Raises:
        ValueError: fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"restoration takes at least 2 steps, got {steps}.")
    high, low = 80 ** (1 / 7), 0.02 ** (1 / 7)
    return at_ratios([(high + (low - high) * i / (steps - 1)) ** 7 for i in range(steps)])


def geometric(start: float, stop: float, count: int) -> list[float]:
    """`count` numbers from start to stop with one quotient."""
    return [start] if count == 1 else [start * (stop / start) ** (i / (count - 1)) for i in range(count)]


def differentiable(
    predict: Predictor, x: Tensor, level: Level, cond: CondLike | None = None
) -> tuple[Prediction, Callable[[Tensor], Tensor]]:
    """The prediction at x_t, and v ↦ Jᵀ v with J = ∂x0/∂x_t, by automatic differentiation.

    Raises:
        ValueError: a predictor that cannot be differentiated.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        prediction = predict(leaf, level, cond)
    x0 = prediction.x0
    if not x0.requires_grad:
        raise ValueError("the predictor cannot be differentiated in x_t, as this method needs; take DDRM, DDNM, DiffPIR or RePaint.")

    def pull(v: Tensor) -> Tensor:
        return torch.autograd.grad(x0, leaf, v.reshape(x0.shape).to(x0), retain_graph=True)[0]

    return Prediction(x0.detach(), prediction.eps.detach()), pull
