"""Methods that correct the prediction towards y: PiGDM, DPS and DiffPIR."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike
from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.prediction import Prediction
from sfumato.process import reverse
from sfumato.restoration.moments import Covariance, Isotropic
from sfumato.restoration.observed import Observed, differentiable, ratio, spread_levels
from sfumato.restoration.walked import Walked
from sfumato.sampling import steps
from sfumato.sampling.loop import Step
from sfumato.schedule import Level


@dataclass(frozen=True)
class PiGDM(Walked):
    """Pseudoinverse guidance: the score of y by N(x0_hat, r² I) for x0 given x_t, through the network's Jacobian; then any step.

    Args:
        data_std: standard deviation s of the data, r² = s² a² / (s² + a²) with a = sigma/alpha; the paper's r² is that of s = 1.
        move: the step that is made with the corrected prediction.

    Raises:
        ValueError: data_std that is not positive.

    Reference: Song et al. (2023), eqs. 7 to 9, ICLR.
    """

    data_std: float = 1.0
    move: Step = field(default_factory=lambda: steps.DDIM(eta=1.0))

    def __post_init__(self) -> None:
        """Refuses data without spread."""
        if not 0 < self.data_std < math.inf:
            raise ValueError(f"data_std must be positive, got {self.data_std}; measure it over the whole data set.")

    def predictor(self, predict: Predictor, observed: Observed) -> Predictor:
        """E[x0 | x_t, y] under that approximation: exact for isotropic Gaussian data."""

        def guided(x_t: Float[Tensor, "n *x"], level: Level, cond: CondLike | None = None) -> Prediction:
            prediction, pull = differentiable(predict, x_t, level, cond)
            a2, v = ratio(level) ** 2, self.data_std**2
            moments = Isotropic(v * a2 / (v + a2), observed)
            inward = observed.linear.adjoint(moments.solve(observed.residual(prediction.x0)))
            x0 = prediction.x0 + float(level.sigma) ** 2 / float(level.alpha) * pull(inward)
            return Prediction.from_x0(x0, x_t, level)

        return guided

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """The step of a guided prediction."""
        return lambda predict, x, t, s, memory, generator: self.move(self.predictor(predict, observed), x, t, s, memory, generator)


@dataclass(frozen=True)
class DPS(Walked):
    """Diffusion posterior sampling: an ancestral step, then x_s less zeta ∇ |y - H x0_hat| at unit scale.

    Made for a thousand steps; the noise's size enters through zeta alone. Chung et al. (2023), alg. 1 with the step size of its appendix D,
    arXiv:2209.14687.

    Raises:
        ValueError: zeta that is not positive.
    """

    zeta: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a step against y."""
        if not 0 < self.zeta < math.inf:
            raise ValueError(f"zeta must be positive, got {self.zeta}; the paper has 0.1 to 1.")

    def levels(self, steps: int = 1000) -> list[Level]:
        """`spread_levels`."""
        return spread_levels(steps)

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """Ancestral, then towards y."""

        def step(
            predict: Predictor, x: Float[Tensor, "n *x"], t: Level, s: Level, memory: None, generator: Generator | None
        ) -> tuple[Float[Tensor, "n *x"], None]:
            prediction, pull = differentiable(predict, x, t)
            r = observed.residual(prediction.x0)
            unit = r / r.norm(dim=1, keepdim=True).clamp(min=1e-12)
            rise = -torch.hypot(t.alpha, t.sigma) * pull(observed.linear.adjoint(unit))  # by x_t at alpha² + sigma² = 1
            model = reverse(prediction, x, t, s)
            x_s = model.sample(generator) if ratio(s) > 0 else model.mean
            return x_s - self.zeta * torch.hypot(s.alpha, s.sigma) * rise, None

        return step


@dataclass(frozen=True)
class DiffPIR(Walked):
    """Plug-and-play: x0_hat brought towards y by a proximal step, then noised again. Zhu et al. (2023), alg. 1, arXiv:2305.08995.

    Args:
        weight: λ; the proximal step minimises |y - H x|² + λ noise_std² (alpha/sigma)² |x - x0_hat|².
        zeta: the share of fresh noise.

    Raises:
        ValueError: a weight that is not positive, or zeta outside [0, 1].
    """

    weight: float = 7.0
    zeta: float = 0.5

    def __post_init__(self) -> None:
        """Refuses options out of range."""
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be positive, got {self.weight}; the paper has 1 to 25.")
        if not 0 <= self.zeta <= 1:
            raise ValueError(f"zeta must lie in [0, 1], got {self.zeta}.")

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """Denoise, towards y, noise again."""

        def step(
            predict: Predictor, x: Float[Tensor, "n *x"], t: Level, s: Level, memory: None, generator: Generator | None
        ) -> tuple[Float[Tensor, "n *x"], None]:
            x0 = predict(x, t).x0
            noise = self.weight * observed.variance / ratio(t) ** 2
            inward = observed.linear.adjoint(observed.linear.solve(observed.residual(x0), 1.0, noise))
            x0 = x0 + inward.reshape(x.shape)
            eps = math.sqrt(1 - self.zeta) * Prediction.from_x0(x0, x, t).eps + math.sqrt(self.zeta) * normal_like(x, generator)
            return s.alpha * x0 + s.sigma * eps, None

        return step
