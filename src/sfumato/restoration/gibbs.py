"""Split Gibbs sampling: x given y near z, and z given x by the diffusion model, in turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.condition import CondLike, cat
from sfumato.denoiser import Predictor
from sfumato.noise import Generator
from sfumato.restoration.observed import Draws, Observed, OnStep, at_ratios, geometric, ratio
from sfumato.restoration.spectral import Spectrum
from sfumato.sampling import steps
from sfumato.sampling.loop import sample
from sfumato.schedule import Level


@dataclass(frozen=True)
class SplitGibbs:
    """Alternates x ~ p(y | x) N(x; z, rho²) and z ~ p(z) N(x; z, rho²), with rho = sigma/alpha of each level in turn.

    The second is a walk of `inner` ancestral steps from that level to the data, so a round costs `inner` evaluations.
    At one rho it leaves p(z) p(y | z) unchanged in the coordinates of V where s rho < noise_std (x's likelihood there has the noise
    noise_std² - s² rho²); in the others the likelihood is wider by s² rho². The last level is repeated `tail` times. Needs an SVD.

    Args:
        inner: steps of each walk.
        tail: rounds at the last level.

    Raises:
        ValueError: inner below 1, or tail below 0.

    Reference: Vono et al. (2019), arXiv:1804.05809; Wu et al. (2024), alg. 1, arXiv:2405.18782.
    """

    inner: int = 10
    tail: int = 4

    def __post_init__(self) -> None:
        """Refuses options out of range."""
        if self.inner < 1 or self.tail < 0:
            raise ValueError(f"inner must be at least 1 and tail at least 0, got {self.inner} and {self.tail}.")

    def levels(self, steps: int = 200) -> list[Level]:
        """rho from 10 to 0.02, in as many rounds as there are walks of `inner` in so many evaluations, less the tail."""
        rounds = steps // self.inner - self.tail
        if rounds < 2:
            raise ValueError(f"{steps} evaluations are too few for two rounds of {self.inner} and a tail of {self.tail}; take more.")
        return at_ratios(geometric(10.0, 0.02, rounds))

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
        """`count` draws for each observation; the level without noise is passed over."""
        every, b = observed.repeat(count), len(observed.y)
        spectrum, conds = Spectrum.of(every), None if cond is None else cat(*[cond] * count)
        shape = observed.linear.shape
        noisy = [level for level in levels if ratio(level) > 0]
        z = every.y.new_zeros(len(every.y), *shape)
        for i, level in enumerate([*noisy, *noisy[-1:] * self.tail]):
            x = self.near(z, ratio(level), spectrum, generator)
            z = self.denoised(predict, x, ratio(level), conds, generator)
            if on_step is not None:
                on_step(i, z)
        return Draws(z.reshape(count, b, *shape))

    def near(self, z: Tensor, rho: float, spectrum: Spectrum, generator: Generator | None) -> Tensor:
        """x ~ N(x; z, rho²) p(y | x), coordinate by coordinate."""
        seen = spectrum.seen
        noise = torch.where(seen, spectrum.noise, 1).square()
        noise = torch.where(noise > rho**2, noise - rho**2, noise)
        gain = torch.where(seen, rho**2 / (rho**2 + noise), 0)  # 1 where y has no noise
        c = spectrum.to_v(z)
        mean, variance = c + gain * (spectrum.y_bar - c), rho**2 * (1 - gain)
        return spectrum.svd.from_v(mean + variance.sqrt() * spectrum.noise_like(z, generator)).reshape(z.shape)

    def denoised(self, predict: Predictor, x: Tensor, rho: float, cond: CondLike | None, generator: Generator | None) -> Tensor:
        """z ~ p(z | x = z + rho n), by the reverse chain."""
        walk = at_ratios(geometric(rho, min(rho / 2, max(rho / 30, 0.01)), self.inner))
        return sample(predict, walk[0].alpha * x, walk, steps.Ancestral(), cond, generator=generator)
