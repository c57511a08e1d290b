"""N(x0_hat, C) for x0 given x_t, and what it says of x0 once y is known, in three sizes.

By Tweedie's formula Cov[x0 | x_t] = (sigma²/alpha) ∂x0_hat/∂x_t. `Full` holds C as a matrix, `Krylov` knows only its products with vectors
(one backward pass of the network each), `Isotropic` is C = r² I.

Reference: Boys et al. (2023), eqs. 8 and 12, arXiv:2310.06721; Rozet et al. (2024), section 4, arXiv:2405.13712.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike
from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.restoration.observed import Observed
from sfumato.restoration.operators import conjugate_gradients
from sfumato.schedule import Level

_LOG_2_PI = math.log(2 * math.pi)


Covariance = Callable[[Tensor, Level], Tensor]  # (x_t, level) to Cov[x0 | x_t], [n, d, d]


@runtime_checkable
class KnowsCovariance(Protocol):
    """A predictor that has Cov[x0 | x_t] in closed form, as `GaussianMixture`."""

    def covariance_given(self, x_t: Tensor, level: Level, cond: CondLike | None = None) -> Tensor:
        """Cov[x0 | x_t], [n, d, d]."""
        ...


def covariance_of(predict: Predictor, cond: CondLike | None) -> Covariance | None:
    """Cov[x0 | x_t] of a predictor that has it in closed form; None of others."""
    return partial(predict.covariance_given, cond=cond) if isinstance(predict, KnowsCovariance) else None


class Full:
    """C as a matrix [n, d, d], in float64."""

    def __init__(self, covariance: Float[Tensor, "n d d2"], observed: Observed) -> None:
        """Factors C and H C Hᵀ + noise_std² I."""
        self.covariance, self.observed = covariance.double(), observed
        self.h = observed.linear.matrix.to(covariance.device)
        self.across = self.covariance @ self.h.mT
        self.system = self.h @ self.across + observed.variance.double()[:, :, None] * torch.eye(len(self.h)).to(self.h)
        self.factor = _cholesky(self.system)

    def gain(self, r: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """C Hᵀ (H C Hᵀ + noise_std² I)⁻¹ r: how far r = y - H x0_hat moves the mean of x0."""
        return (self.across @ torch.cholesky_solve(r.double()[..., None], self.factor))[..., 0].to(r)

    def draw(self, like: Float[Tensor, "n d"], generator: Generator | None) -> Float[Tensor, "n d"]:
        """A draw of N(0, C)."""
        return (_cholesky(self.covariance) @ normal_like(like, generator).double()[..., None])[..., 0].to(like)

    def log_likelihood(self, r: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
        """log N(r; 0, H C Hᵀ + noise_std² I), in nats."""
        return _log_normal(r.double(), self.factor)

    def rows(self, rows: Tensor) -> "Full":
        """Those of some rows, which all have one y."""
        chosen = object.__new__(Full)
        chosen.covariance, chosen.observed, chosen.h = self.covariance[rows], self.observed, self.h
        chosen.across, chosen.system, chosen.factor = self.across[rows], self.system[rows], self.factor[rows]
        return chosen

    def log_likelihood_given(
        self, r: Float[Tensor, "n m"], weight: float, variance: float, move: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n"]:
        """log N(y | …) once x_s is known too, in nats: x_s = … + weight x0 + sqrt(variance) n, which lies `move` from its mean.

        r = y - H x0_hat is what it is without x_s.
        """
        total = _cholesky(weight**2 * self.covariance + variance * torch.eye(self.covariance.shape[1]).to(self.h))
        through = torch.cholesky_solve(self.across, total)  # (weight² C + variance I)⁻¹ C Hᵀ
        shift = weight * (through.mT @ move.double()[..., None])[..., 0]
        system = self.system - weight**2 * self.across.mT @ through
        return _log_normal(r.double() - shift, _cholesky(system))


class Krylov:
    """C known by its products with vectors: conjugate gradients for the gain, Lanczos's for draws, `iterations` products each at most."""

    def __init__(self, multiply: Callable[[Tensor], Tensor], observed: Observed, iterations: int) -> None:
        """Takes v ↦ C v on flat rows."""
        self.multiply, self.observed, self.iterations = multiply, observed, iterations

    def gain(self, r: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """C Hᵀ (H C Hᵀ + noise_std² I)⁻¹ r."""
        linear, noise = self.observed.linear, self.observed.variance
        system = lambda v: linear.forward(self.multiply(linear.adjoint(v))) + noise * v  # noqa: E731
        return self.multiply(linear.adjoint(conjugate_gradients(system, r, most=self.iterations, tolerance=1e-3)))

    def draw(self, like: Float[Tensor, "n d"], generator: Generator | None) -> Float[Tensor, "n d"]:
        """A draw of N(0, C): C^(1/2) z in the Krylov space of z."""
        return square_root(self.multiply, normal_like(like, generator), self.iterations)


class Isotropic:
    """C = r² I, one r² for all rows."""

    def __init__(self, variance: float, observed: Observed) -> None:
        """Takes r²."""
        self.variance, self.observed = variance, observed

    def solve(self, r: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """(r² H Hᵀ + noise_std² I)⁻¹ r."""
        return self.observed.linear.solve(r, self.variance, self.observed.variance)

    def gain(self, r: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """r² Hᵀ (r² H Hᵀ + noise_std² I)⁻¹ r."""
        return self.variance * self.observed.linear.adjoint(self.solve(r))

    def draw(self, like: Float[Tensor, "n d"], generator: Generator | None) -> Float[Tensor, "n d"]:
        """A draw of N(0, r² I)."""
        return math.sqrt(self.variance) * normal_like(like, generator)

    def rows(self, rows: Tensor) -> "Isotropic":
        """Those of some rows, which all have one y."""
        return self

    def log_likelihood(self, r: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
        """log N(r; 0, r² H Hᵀ + noise_std² I), in nats."""
        square = (r.double() * self.solve(r).double()).sum(1)
        logs = self.observed.linear.log_determinant(self.variance, self.observed.variance.double().cpu()).to(square)
        return -0.5 * (square + logs + r.shape[1] * _LOG_2_PI)


Moments = Full | Krylov | Isotropic


def posterior_draw(moments: Moments, x0: Float[Tensor, "n d"], generator: Generator | None) -> Float[Tensor, "n d"]:
    """A draw of x0 ~ N(x0_hat, C) given y: a draw of the two together, moved to the y that was seen. Matheron's rule."""
    observed = moments.observed
    x = x0 + moments.draw(x0, generator)
    r = observed.residual(x) - observed.noise_std * normal_like(observed.y, generator)
    return x + moments.gain(r)


def square_root(multiply: Callable[[Tensor], Tensor], z: Float[Tensor, "n d"], iterations: int) -> Float[Tensor, "n d"]:
    """C^(1/2) z for a symmetric positive semi-definite C, in the Krylov space of z by Lanczos's method. Chow & Saad (2014), section 2."""
    length = z.norm(dim=1, keepdim=True)
    basis, diagonal, beside = [z / length], [], []
    for i in range(min(iterations, z.shape[1])):
        v = multiply(basis[i])
        diagonal.append((v * basis[i]).sum(1))
        for _ in range(2):  # orthogonal to rounding
            for each in basis:
                v = v - (v * each).sum(1, keepdim=True) * each
        size = v.norm(dim=1, keepdim=True)
        beside.append(size[:, 0])
        basis.append(torch.where(size > 1e-6 * length.new_tensor(1.0), v / size.clamp(min=1e-30), 0))
    t = torch.diag_embed(torch.stack(diagonal, 1))
    if len(diagonal) > 1:
        off = torch.stack(beside[:-1], 1)
        t = t + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(t.double().cpu())
    weights = (vectors * values.clamp(min=0).sqrt()[:, None] @ vectors[:, 0, :, None])[..., 0].to(z)
    return length * torch.einsum("nk,knd->nd", weights, torch.stack(basis[:-1]))


def _log_normal(r: Float[Tensor, "n m"], factor: Float[Tensor, "n m m"]) -> Float[Tensor, "n"]:
    """log N(r; 0, factor factorᵀ), in nats."""
    white = torch.linalg.solve_triangular(factor, r[..., None], upper=False)
    return -0.5 * (white.square().sum((1, 2)) + r.shape[1] * _LOG_2_PI) - factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _cholesky(matrix: Float[Tensor, "n d d2"]) -> Float[Tensor, "n d d2"]:
    """The Cholesky factor of a positive semi-definite matrix, with the least jitter that makes it definite."""
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-300)[:, None, None]
    eye = torch.eye(matrix.shape[-1]).to(matrix)
    return torch.linalg.cholesky(matrix + 1e-10 * size * eye)
