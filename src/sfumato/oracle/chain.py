"""The linear-Gaussian latent chain: a hierarchical model whose evidence, posterior and bound have closed forms.

    z_T ~ N(0, I),   z_k ~ N(A_k z_{k+1} + b_k, C_k) for k = T-1 … 0,   x = z_0

Everything in it is jointly Gaussian, so every quantity that a variational autoencoder (one latent, T = 1) or a hierarchical one (several)
estimates is known exactly, for any Gaussian affine encoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import CondLike
from sfumato.noise import normal_like
from sfumato.oracle.mixture import Gaussian, GaussianMixture
from sfumato.prediction import Prediction
from sfumato.schedule import Level


@dataclass(frozen=True)
class Affine:
    """A conditional law p(u | v) = N(matrix v + offset, covariance), in float64.

    Raises:
        ValueError: shapes that disagree, or a covariance that is not symmetric positive definite.
    """

    matrix: Float[Tensor, "m n"]
    offset: Float[Tensor, "k"]
    covariance: Float[Tensor, "d d2"]

    def __post_init__(self) -> None:
        """Checks the law and converts it to float64."""
        for name in ("matrix", "offset", "covariance"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        m = len(self.offset)
        if self.matrix.ndim != 2 or len(self.matrix) != m or self.covariance.shape != (m, m):
            raise ValueError(
                f"matrix [m, n], offset [m] and covariance [m, m] must agree, "
                f"got {tuple(self.matrix.shape)}, {tuple(self.offset.shape)} and {tuple(self.covariance.shape)}."
            )
        if not torch.allclose(self.covariance, self.covariance.mT) or int(torch.linalg.cholesky_ex(self.covariance).info):
            raise ValueError("the covariance of an affine law must be symmetric positive definite.")

    def mean(self, v: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """matrix v + offset."""
        return v.to(self.matrix) @ self.matrix.T + self.offset

    def log_prob(self, u: Float[Tensor, "b m"], v: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """log p(u | v), in nats."""
        return _log_normal(u.to(self.matrix) - self.mean(v), self.covariance)

    def sample(self, v: Float[Tensor, "b n"], generator: torch.Generator | None = None) -> Float[Tensor, "b m"]:
        """A draw of u for each v."""
        mean = self.mean(v)
        return mean + normal_like(mean, generator) @ torch.linalg.cholesky(self.covariance).T

    def entropy(self) -> Float[Tensor, ""]:
        """The differential entropy of u given any v, in nats."""
        return 0.5 * torch.logdet(2 * math.pi * math.e * self.covariance)


def joined(laws: Sequence[Affine]) -> Affine:
    """The joint law of all variables of a Markov chain, in order, given its start.

    Stacked, the variables solve v = B v + r + n with B on the first block below the diagonal, so v = (I - B)^-1 (r + n).

    Raises:
        ValueError: a law whose input size is not the output size of the one before.
    """
    sizes = [len(law.offset) for law in laws]
    if any(law.matrix.shape[1] != size for size, law in zip(sizes, laws[1:], strict=False)):
        raise ValueError(f"each law must take the size that the previous one returns, got {[tuple(law.matrix.shape) for law in laws]}.")
    spread = torch.block_diag(*[law.covariance for law in laws])
    system = torch.eye(sum(sizes), dtype=torch.float64)
    for i, law in enumerate(laws[1:], start=1):
        here, before = sum(sizes[:i]), sum(sizes[: i - 1])
        system[here : here + sizes[i], before:here] -= law.matrix
    inverse = torch.linalg.inv(system)
    covariance = inverse @ spread @ inverse.T
    return Affine(
        inverse[:, : sizes[0]] @ laws[0].matrix, inverse @ torch.cat([law.offset for law in laws]), (covariance + covariance.T) / 2
    )


class LinearGaussianChain:
    """The chain z_T → … → z_1 → x, and a `Predictor` of its x.

    Stacked latents are z = (z_1, …, z_T), one example a row.
    """

    def __init__(self, links: Sequence[Affine]) -> None:
        """Takes links[k] = p(z_k | z_{k+1}), k = 0 … T-1, with z_0 = x.

        Raises:
            ValueError: no links, or neighbours whose sizes disagree.
        """
        if not links:
            raise ValueError("a latent chain needs at least one link, p(x | z_1).")
        self.links = tuple(links)
        top = links[-1].matrix.shape[1]
        prior = Affine(torch.zeros(top, 0), torch.zeros(top), torch.eye(top))
        downwards = joined([prior, *reversed(self.links)])
        self.sizes = [*(len(link.offset) for link in links), top]
        order = torch.cat([*reversed(torch.arange(sum(self.sizes)).split(self.sizes[::-1]))])
        self._mean, self._covariance = downwards.offset[order], downwards.covariance[order][:, order]

    @cached_property
    def evidence(self) -> GaussianMixture:
        """The law of x, a Gaussian."""
        n = self.sizes[0]
        return Gaussian(self._mean[:n], self._covariance[:n, :n])

    @cached_property
    def posterior(self) -> Affine:
        """p(z_1, …, z_T | x), jointly: affine in x. Bishop (2006), eqs. 2.81 and 2.82."""
        n = self.sizes[0]
        gain = torch.linalg.solve(self._covariance[:n, :n], self._covariance[:n, n:]).T
        covariance = self._covariance[n:, n:] - gain @ self._covariance[:n, n:]
        return Affine(gain, self._mean[n:] - gain @ self._mean[:n], (covariance + covariance.T) / 2)

    def __call__(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        """The exact posterior means E[x | x_t] and E[eps | x_t]."""
        return self.evidence(x_t, level, cond)

    def log_prob(self, x_t: Float[Tensor, "b *x"], level: Level | None = None, cond: CondLike | None = None) -> Float[Tensor, "b"]:
        """log p(x_t), in nats; without a level the evidence log p(x)."""
        return self.evidence.log_prob(x_t, level, cond)

    def log_joint(self, x: Float[Tensor, "b d"], z: Float[Tensor, "b latent"]) -> Float[Tensor, "b"]:
        """log p(x, z_1, …, z_T) = log p(z_T) + Σ log p(z_k | z_{k+1}), in nats."""
        visits = [x, *z.split(self.sizes[1:], dim=1)]
        top = -0.5 * (visits[-1].square() + math.log(2 * math.pi)).sum(1)
        return top + sum(link.log_prob(visits[k], visits[k + 1]) for k, link in enumerate(self.links))

    def elbo(self, x: Float[Tensor, "b d"], encoder: Affine | Sequence[Affine]) -> Float[Tensor, "b"]:
        """E_q[log p(x, z) - log q(z | x)] of an encoder q, exactly, in nats.

        E_q[log N(v; m, C)] of a Gaussian v is log N(E v; m, C) - tr(C^-1 Cov v) / 2; in v = (x, z) only z varies.

        Args:
            x: data.
            encoder: the joint law of (z_1, …, z_T) given x, or the laws q(z_1 | x), q(z_2 | z_1), … of a bottom-up chain.

        Raises:
            ValueError: an encoder whose sizes do not match the chain's.
        """
        encoder = encoder if isinstance(encoder, Affine) else joined(encoder)
        n = self.sizes[0]
        if encoder.matrix.shape != (sum(self.sizes) - n, n):
            raise ValueError(f"the encoder must map x [{n}] to latents {self.sizes[1:]}, got a matrix of {tuple(encoder.matrix.shape)}.")
        at_mean = _log_normal(torch.cat([x.to(self._mean), encoder.mean(x)], 1) - self._mean, self._covariance)
        varying = torch.block_diag(torch.zeros(n, n, dtype=torch.float64), encoder.covariance)
        spread = torch.linalg.solve(self._covariance, varying).trace()
        return at_mean - spread / 2 + encoder.entropy()

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n latent"]]:
        """n draws of x, with the stacked latents of each."""
        visits = [normal_like(torch.empty(n, self.sizes[-1], dtype=torch.float64), generator)]
        for link in reversed(self.links):
            visits.insert(0, link.sample(visits[0], generator))
        return visits[0], torch.cat(visits[1:], 1)


def _log_normal(centred: Float[Tensor, "b d"], covariance: Float[Tensor, "d d"]) -> Float[Tensor, "b"]:
    """log N(centred; 0, covariance), in nats."""
    lower = torch.linalg.cholesky(covariance)
    scores = torch.linalg.solve_triangular(lower, centred.T, upper=False)
    return -0.5 * (scores.square().sum(0) + len(covariance) * math.log(2 * math.pi)) - lower.diagonal().log().sum()
