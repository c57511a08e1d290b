"""Methods that go coordinate by coordinate in the basis of V, H = U S Vᵀ: DDRM, DDNM+ and RePaint.

They are written for x_t / alpha_t = x0 + a eps with a = sigma/alpha, so they hold under every scaling. `y_bar` is Uᵀ y / s, an observation
of a coordinate of Vᵀ x0 with noise of standard deviation noise_std / s.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.restoration.moments import Covariance
from sfumato.restoration.observed import Observed, ratio
from sfumato.restoration.operators import SVD
from sfumato.restoration.walked import Walked
from sfumato.sampling.loop import Step
from sfumato.schedule import Level


@dataclass(frozen=True)
class Spectrum:
    """The observation in the basis of V.

    Args:
        svd: of the operator.
        seen: which coordinates y says something of.
        y_bar: Uᵀ y / s, 0 where it says nothing.
        noise: noise_std / s, infinite where it says nothing.
    """

    svd: SVD
    seen: Tensor
    y_bar: Float[Tensor, "n d"]
    noise: Float[Tensor, "n d"]

    @classmethod
    def of(cls, observed: Observed) -> "Spectrum":
        """Of these observations.

        Raises:
            ValueError: an operator without a cheap SVD.
        """
        svd, y = observed.svd, observed.y
        seen, s = svd.seen.to(y.device), svd.singular.to(y)
        divisor = torch.where(seen, s, 1)
        y_bar = torch.where(seen, svd.to_u(y) / divisor, 0)
        return cls(svd, seen, y_bar, torch.where(seen, observed.noise_std / divisor, math.inf))

    def to_v(self, x: Float[Tensor, "n *x"]) -> Float[Tensor, "n d"]:
        """Vᵀ x."""
        return self.svd.to_v(x.flatten(1))

    def noise_like(self, x: Float[Tensor, "n *x"], generator: Generator | None) -> Float[Tensor, "n d"]:
        """Standard normal noise; one draw is one in every basis."""
        return normal_like(x, generator).flatten(1)


@dataclass(frozen=True)
class DDRM(Walked):
    """Denoising diffusion restoration models. Kawar et al. (2022), eqs. 6 to 8, arXiv:2201.11793.

    No posterior sampler, even with an exact predictor: x0_hat is taken for x0. Needs an SVD.

    Args:
        eta: noise of the coordinates that y does not see, or sees through more noise than the level has.
        eta_b: how much of y the others take, 1 for all of it.

    Raises:
        ValueError: options outside [0, 1].
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        """Refuses options out of range."""
        for name, value in (("eta", self.eta), ("eta_b", self.eta_b)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}; the paper has 0.85 and 1.")

    def begin(self, observed: Observed, noise: Float[Tensor, "n *x"], level: Level) -> Float[Tensor, "n *x"]:
        """Eq. 6: around y_bar where it is seen well enough, around 0 elsewhere."""
        spectrum, a = Spectrum.of(observed), ratio(level)
        spread = (a**2 - spectrum.noise.clamp(max=a).square()).clamp(min=0).sqrt()
        near = spectrum.noise <= a
        c = torch.where(near, spectrum.y_bar + spread * noise.flatten(1), a * noise.flatten(1))
        return level.alpha * spectrum.svd.from_v(c).reshape(noise.shape)

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """Eqs. 7 and 8."""
        spectrum, eta, eta_b = Spectrum.of(observed), self.eta, self.eta_b
        seen, y_bar = spectrum.seen, spectrum.y_bar
        finite = torch.where(seen, spectrum.noise, 1)

        def step(
            predict: Predictor, x: Float[Tensor, "n *x"], t: Level, s: Level, memory: None, generator: Generator | None
        ) -> tuple[Float[Tensor, "n *x"], None]:
            a, b = ratio(t), ratio(s)
            x0, c, z = spectrum.to_v(predict(x, t).x0), spectrum.to_v(x / t.alpha), spectrum.noise_like(x, generator)
            kept = math.sqrt(1 - eta**2) * b
            unseen = x0 + kept * (c - x0) / a + eta * b * z
            noisier = x0 + kept * (y_bar - x0) / finite.clamp(min=1e-30) + eta * b * z
            clearer = (1 - eta_b) * x0 + eta_b * y_bar + (b * b - (eta_b * finite).square()).clamp(min=0).sqrt() * z
            c = torch.where(~seen, unseen, torch.where(spectrum.noise > b, noisier, clearer))
            return s.alpha * spectrum.svd.from_v(c).reshape(x.shape), None

        return step


@dataclass(frozen=True)
class DDNM(Walked):
    """DDNM+: x0_hat with the range of Hᵀ taken from y, as far as the noise allows, and DDPM's posterior with the rest of its noise.

    Needs an SVD. Wang et al. (2023), eqs. 17 to 19 and appendix I, arXiv:2212.00490.
    """

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """One step of alg. 2 without time travel."""
        spectrum = Spectrum.of(observed)
        seen, noise = spectrum.seen, torch.where(spectrum.seen, spectrum.noise, 0)

        def step(
            predict: Predictor, x: Float[Tensor, "n *x"], t: Level, s: Level, memory: None, generator: Generator | None
        ) -> tuple[Float[Tensor, "n *x"], None]:
            a, b = ratio(t), ratio(s)
            weight = 1 - (b / a) ** 2  # of x0 in the mean of q(x_s | x_t, x0)
            spread = b * math.sqrt(weight)
            x0, c, z = spectrum.to_v(predict(x, t).x0), spectrum.to_v(x / t.alpha), spectrum.noise_like(x, generator)
            brought = weight * noise
            share = torch.where(brought <= spread, 1, spread / brought.clamp(min=1e-30))
            x0 = torch.where(seen, x0 + share * (spectrum.y_bar - x0), x0)
            rest = (spread**2 - (share * brought).square()).clamp(min=0).sqrt()
            return s.alpha * spectrum.svd.from_v(c + weight * (x0 - c) + rest * z).reshape(x.shape), None

        return step


@dataclass(frozen=True)
class RePaint(Walked):
    """What is seen is y at the level's noise, what is not is the model's, and each step is made `resamplings` times over. Needs an SVD.

    Written for masks; for other operators the same in the coordinates of V. Coordinates that y shows through more noise than a level has
    are the model's. Lugmayr et al. (2022), alg. 1 (jump length 1), arXiv:2201.09865.

    Raises:
        ValueError: resamplings below 1.
    """

    resamplings: int = 10

    def __post_init__(self) -> None:
        """Refuses no resampling at all."""
        if self.resamplings < 1:
            raise ValueError(f"resamplings must be at least 1, got {self.resamplings}; the paper has 10.")

    def step(self, observed: Observed, covariance: Covariance | None) -> Step:
        """Down and up again, and down."""
        spectrum = Spectrum.of(observed)

        def step(
            predict: Predictor, x: Float[Tensor, "n *x"], t: Level, s: Level, memory: None, generator: Generator | None
        ) -> tuple[Float[Tensor, "n *x"], None]:
            a, b = ratio(t), ratio(s)
            weight = 1 - (b / a) ** 2
            known = spectrum.noise <= b
            spread = (b * b - torch.where(known, spectrum.noise, b).square()).clamp(min=0).sqrt()
            c, times = spectrum.to_v(x / t.alpha), self.resamplings if b > 0 else 1
            for i in range(times):
                now = t.alpha * spectrum.svd.from_v(c).reshape(x.shape)
                x0 = spectrum.to_v(predict(now, t).x0)
                z, y = spectrum.noise_like(x, generator), spectrum.noise_like(x, generator)
                c = torch.where(known, spectrum.y_bar + spread * y, c + weight * (x0 - c) + b * math.sqrt(weight) * z)
                if i < times - 1:
                    c = c + math.sqrt(a * a - b * b) * spectrum.noise_like(x, generator)
            return s.alpha * spectrum.svd.from_v(c).reshape(x.shape), None

        return step
