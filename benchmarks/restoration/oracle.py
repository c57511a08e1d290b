"""The problem of the table: digits as a mixture of Gaussians, of which every posterior is a closed form.

Ten components of full covariance are fitted to scikit-learn's digits (64 dimensions, in [-1, 1]). Three operators (a hidden box of 24
pixels, pooling by 2, a circular Gaussian blur) at two noise levels are six cells of five observations each, y of a draw of the mixture.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as Fit

import sfumato as sf
from sfumato import restoration

DRAWS, SHAPE, NOISES, OBSERVATIONS = 512, (1, 8, 8), (0.05, 0.3), 5


def mixture() -> sf.GaussianMixture:
    fit = Fit(10, covariance_type="full", reg_covar=2e-3, random_state=0, max_iter=60).fit(load_digits().data / 8 - 1)
    covariances = torch.tensor(fit.covariances_)
    weights = torch.tensor(fit.weights_)
    return sf.GaussianMixture(weights / weights.sum(), torch.tensor(fit.means_), (covariances + covariances.mT) / 2)


def operators() -> dict[str, restoration.Operator]:
    mask = torch.ones(8, 8)
    mask[2:6, 2:8] = 0
    line = torch.exp(-torch.arange(-2, 3, dtype=torch.float64).square() / 2)
    kernel = line[:, None] * line
    return {
        "inpainting": restoration.Mask(mask, shape=SHAPE),
        "pooling": restoration.AveragePool(2),
        "blur": restoration.Blur(kernel / kernel.sum(), padding="circular"),
    }


@dataclass(frozen=True)
class Problem:
    """One observation, and what draws of its posterior are measured against."""

    oracle: sf.GaussianMixture
    operator: restoration.Operator
    noise_std: float
    seed: int

    @cached_property
    def y(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(100 + self.seed)
        x0 = self.oracle.sample(1, generator)[0].reshape(1, *SHAPE)
        clean = self.operator.forward(x0)
        return clean + self.noise_std * torch.randn(clean.shape, generator=generator, dtype=torch.float64)

    @cached_property
    def posterior(self) -> sf.GaussianMixture:
        return self.oracle.given(self.operator.at(SHAPE).matrix, self.y.flatten(), self.noise_std)

    @cached_property
    def truth(self) -> torch.Tensor:
        return self.posterior.sample(12 * DRAWS, torch.Generator().manual_seed(7))[0]

    @cached_property
    def floor(self) -> float:
        parts = self.truth.split(DRAWS)
        return float(np.mean([sliced(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]))

    def score(self, x: torch.Tensor) -> dict[str, float]:
        """Sliced W2 over that of two sets of true draws; coverage of the 50 and 90% intervals of 64 projections; the spread's ratio."""
        x = x.reshape(len(x), -1).double()
        distance = float(np.mean([sliced(x[:DRAWS], part) for part in self.truth.split(DRAWS)[:4]])) / self.floor
        along, true = x @ projections()[:, :64], self.truth @ projections()[:, :64]
        covered = {}
        for level in (0.5, 0.9):
            low, high = along.quantile((1 - level) / 2, 0), along.quantile((1 + level) / 2, 0)
            covered[level] = float(((true >= low) & (true <= high)).double().mean())
        spread = float((x.var(0).sum() / self.posterior.covariance.trace()).sqrt())
        return {"sliced": distance, "cover_50": covered[0.5], "cover_90": covered[0.9], "spread": spread}


_PROJECTIONS = torch.nn.functional.normalize(torch.randn(64, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=0)


def projections() -> torch.Tensor:
    return _PROJECTIONS


def sliced(a: torch.Tensor, b: torch.Tensor) -> float:
    p = projections()
    return float(((a @ p).sort(0).values - (b @ p).sort(0).values).square().mean().sqrt())
