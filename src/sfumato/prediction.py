"""What a network says about x_t, in every parameterisation at once.

Given x_t = alpha x0 + sigma eps, a network's output y = a x0 + b eps is a second equation in the same two unknowns. A `Target` is the pair
(a, b) as a function of the level, and `Prediction.solve` solves the two equations; so a new parameterisation is one function of two lines.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.schedule import Discrete, Level

Coefficient = Tensor | float
Target = Callable[[Level], tuple[Coefficient, Coefficient]]


def x0_target(level: Level) -> tuple[Coefficient, Coefficient]:
    """y = x0."""
    return 1.0, 0.0


def eps_target(level: Level) -> tuple[Coefficient, Coefficient]:
    """y = eps. Ho et al. (2020), eq. 11, arXiv:2006.11239."""
    return 0.0, 1.0


def v_target(level: Level) -> tuple[Coefficient, Coefficient]:
    """y = v = (alpha eps - sigma x0) / hypot(alpha, sigma), at unit scale whatever the scales. Salimans & Ho (2022), arXiv:2202.00512."""
    r = torch.hypot(level.alpha, level.sigma)
    return -level.sigma / r, level.alpha / r


def score_target(level: Level) -> tuple[Coefficient, Coefficient]:
    """y = ∇ log q(x_t | x0) = -eps / sigma. Song & Ermon (2019), eq. 5, arXiv:1907.05600."""
    return 0.0, -1 / level.sigma


def flow_target(level: Level) -> tuple[Coefficient, Coefficient]:
    """y = eps - x0, the velocity of the straight line from data to noise. Liu et al. (2023), eq. 1, arXiv:2209.03003."""
    return -1.0, 1.0


def previous_target(level: Level, *, chain: Discrete) -> tuple[Coefficient, Coefficient]:
    """y = μ̃, the mean of q(x_s | x_t, x0) one step down the chain. Ho et al. (2020), section 3.2, arXiv:2006.11239.

    With μ̃ = c_t x_t + c_0 x0 (eq. 7) and x_t = alpha x0 + sigma eps, a = c_t alpha + c_0 and b = c_t sigma. The level must be one of the
    chain's; `partial(previous_target, chain=chain)` is the `Target`.
    """
    before = chain.below(level)
    keep = level.alpha / before.alpha * (before.sigma / level.sigma).square()
    return keep * level.alpha - before.alpha * torch.expm1(level.log_snr - before.log_snr), keep * level.sigma


def edm_target(level: Level, *, data_std: float = 0.5) -> tuple[Coefficient, Coefficient]:
    """The F of EDM's preconditioning: x0 = c_skip x_t + c_out y, y of unit variance for data of std `data_std`.

    Reference: Karras et al. (2022), eq. 7 and table 1, arXiv:2206.00364.
    """
    r = torch.hypot(level.alpha * data_std, level.sigma)
    return level.sigma / (data_std * r), -data_std * level.alpha / r


@dataclass(frozen=True, slots=True)
class Prediction:
    """The two halves of x_t = alpha x0 + sigma eps as a predictor sees them.

    `variance_fraction` is there for networks with a learned variance: the place in [0, 1] between log β̃ and log β of the step being made
    (Nichol & Dhariwal 2021, eq. 15).
    """

    x0: Float[Tensor, "*x"]
    eps: Float[Tensor, "*x"]
    variance_fraction: Float[Tensor, "*x"] | None = None

    @classmethod
    def solve(
        cls,
        y: Float[Tensor, "*x"],
        x_t: Float[Tensor, "*x"],
        level: Level,
        target: Target,
        variance_fraction: Float[Tensor, "*x"] | None = None,
    ) -> "Prediction":
        """Solves x_t = alpha x0 + sigma eps, y = a x0 + b eps for (x0, eps).

        Raises:
            ValueError: the two equations are one: eps or score without signal (alpha = 0), x0 without noise (sigma = 0). A level on another
                device than the CPU is not looked at, as that would wait for the device; its rows are then infinite or NaN.
        """
        a, b = target(level)
        det = level.alpha * b - level.sigma * a
        if det.device.type == "cpu" and not torch.compiler.is_compiling() and bool((det == 0).any()):
            raise ValueError("this target does not tell x0 from eps at a level without signal (or without noise); take v_target.")
        x0 = (b / det) * x_t - (level.sigma / det) * y
        eps = (level.alpha / det) * y - (a / det) * x_t
        return cls(x0, eps, variance_fraction)

    @classmethod
    def from_x0(
        cls, x0: Float[Tensor, "*x"], x_t: Float[Tensor, "*x"], level: Level, variance_fraction: Float[Tensor, "*x"] | None = None
    ) -> "Prediction":
        """The prediction with this x0 and the eps that x_t then implies."""
        return cls(x0, (x_t - level.alpha * x0) / level.sigma, variance_fraction)

    def score(self, level: Level) -> Float[Tensor, "*x"]:
        """∇ log p(x_t) = -eps / sigma."""
        return -self.eps / level.sigma

    def v(self, level: Level) -> Float[Tensor, "*x"]:
        """(alpha eps - sigma x0) / hypot(alpha, sigma)."""
        a, b = v_target(level)
        return a * self.x0 + b * self.eps
