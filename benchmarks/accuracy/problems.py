"""The two mixtures, the chain, the noise and the reference endpoints for all samplers."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import sfumato as sf

CHAIN = sf.Discrete.linear(1000)
FIRST, LAST = CHAIN.level(1 / 1000), CHAIN.level(1.0)


@dataclass(frozen=True)
class Problem:
    """A mixture and the noise that all samplers start from: x_T = sigma_T · noise at the chain's last level."""

    name: str
    mixture: sf.GaussianMixture
    points: int
    seed: int = 1

    @cached_property
    def start(self) -> Tensor:
        """x_T, the same for all."""
        generator = torch.Generator().manual_seed(self.seed)
        return LAST.sigma * torch.randn(self.points, self.mixture.means.shape[1], generator=generator, dtype=torch.float64)

    @cached_property
    def at_first(self) -> Tensor:
        """The flow ODE's solution at the chain's first level, sigma = 0.01: Heun with 2000 steps uniform in log-SNR."""
        times = CHAIN.time(torch.linspace(float(LAST.log_snr), float(FIRST.log_snr), 2001, dtype=torch.float64))
        return sf.sample(self.mixture, self.start, [CHAIN.level(t) for t in times], sf.steps.Heun())

    @cached_property
    def at_data(self) -> Tensor:
        """x0 at that solution: the endpoint of a step to sigma = 0 from the first level."""
        return self.mixture(self.at_first, FIRST).x0

    def error(self, x: Tensor, *, at_data: bool) -> float:
        """Median over the points of the distance (root mean square over coordinates) to the truth at the level where the sampler ended."""
        return float((x - (self.at_data if at_data else self.at_first)).square().mean(1).sqrt().median())


def ring(spread: float = 0.07) -> sf.GaussianMixture:
    """Eight narrow round Gaussians of unequal weight on a circle, unit variance a coordinate."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4 + 0.2
    weights = torch.tensor([1, 2, 3, 1, 2, 1, 3, 2], dtype=torch.float64)
    means = 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return sf.GaussianMixture(weights / weights.sum(), means, spread**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2))


def sheets(dim: int = 64, components: int = 10, rank: int = 8, thickness: float = 0.05, seed: int = 0) -> sf.GaussianMixture:
    """Gaussians that are wide along `rank` random directions each and thin in all others; unit variance a coordinate on average."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
    axes = torch.linalg.qr(draw(components, dim, rank)).Q
    lengths = torch.linspace(1.8, 0.3, rank, dtype=torch.float64)
    covariances = axes @ torch.diag(lengths.square()) @ axes.mT + thickness**2 * torch.eye(dim, dtype=torch.float64)
    means = draw(components, dim) * (1 - covariances.diagonal(dim1=1, dim2=2).mean()).sqrt()
    return sf.GaussianMixture(weights / weights.sum(), means, (covariances + covariances.mT) / 2)


PROBLEMS = [Problem("2-D", ring(), 256), Problem("64-D", sheets(), 128)]
