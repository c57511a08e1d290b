"""Basics of the derivations: tables of probabilities, joint Gaussians, and the evidence lower bound.

A table is a tensor of probabilities whose axes are the variables: table[i, j] = p(x = i, y = j). `Joint` is the Gaussian counterpart: a
mean vector and a covariance matrix, with variables known by their index. Both support the same operations, exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def marginal(table: Float[Tensor, "*axes"], keep: Sequence[int]) -> Float[Tensor, "*kept"]:
    """p(kept) = Σ over the other axes; the kept axes stay in the order of the table."""
    return table.sum([axis for axis in range(table.ndim) if axis not in set(keep)]) if len(set(keep)) < table.ndim else table


def conditional(table: Float[Tensor, "*axes"], given: Sequence[int]) -> Float[Tensor, "*axes"]:
    """p(rest | given) = p(all) / p(given), in the shape of the table.

    Raises:
        ValueError: a condition of probability zero.
    """
    others = [axis for axis in range(table.ndim) if axis not in set(given)]
    evidence = table.sum(others, keepdim=True)
    if bool((evidence == 0).any()):
        raise ValueError("a condition of probability zero has no conditional; remove the values that never occur.")
    return table / evidence


def bayes(likelihood: Float[Tensor, "z x"], prior: Float[Tensor, "z"]) -> tuple[Float[Tensor, "z x"], Float[Tensor, "x"]]:
    """p(z | x) = p(x | z) p(z) / p(x), and the evidence p(x) = Σ_z p(x | z) p(z)."""
    joint = likelihood * prior[:, None]
    return conditional(joint, [1]), marginal(joint, [1])


def entropy(p: Float[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """H(p) = -Σ p log p, in nats."""
    return -torch.special.xlogy(p, p).sum()


def cross_entropy(p: Float[Tensor, "*axes"], q: Float[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """H_p(q) = -Σ p log q, in nats: the mean code length of samples of p under a code for q."""
    return -torch.special.xlogy(p, q).sum()


def kl(p: Float[Tensor, "*axes"], q: Float[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """KL(p ‖ q) = Σ p log(p/q), in nats; +inf if q is 0 where p is not."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()


def elbo(log_joint: Float[Tensor, "k *b"], log_q: Float[Tensor, "k *b"]) -> Float[Tensor, "*b"]:
    """The Monte Carlo evidence lower bound E_q[log p(x, z) - log q(z | x)] from k draws of z ~ q(z | x), in nats.

    Reference: Kingma & Welling (2014), eq. 5, arXiv:1312.6114.
    """
    return (log_joint - log_q).mean(0)


def importance_bound(log_joint: Float[Tensor, "k *b"], log_q: Float[Tensor, "k *b"]) -> Float[Tensor, "*b"]:
    """log of the mean of p(x, z)/q(z | x) over k draws: above `elbo`, in expectation below log p(x), and increasing with k, in nats.

    Reference: Burda et al. (2016), eq. 8, arXiv:1509.00519.
    """
    return (log_joint - log_q).logsumexp(0) - math.log(len(log_joint))


@dataclass(frozen=True)
class Joint:
    """A Gaussian over d variables, N(mean, covariance)."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]

    def marginal(self, keep: Sequence[int]) -> "Joint":
        """p(kept): the rows and columns of the kept variables, in the order given."""
        rows = list(keep)
        return Joint(self.mean[rows], self.covariance[rows][:, rows])

    def given(self, which: Sequence[int], value: Float[Tensor, "k"]) -> "Joint":
        """p(rest | x_which = value): the regression of the rest on the given variables. Bishop (2006), eqs. 2.81 and 2.82."""
        known, rest = list(which), [i for i in range(len(self.mean)) if i not in set(which)]
        gain = torch.linalg.solve(self.covariance[known][:, known], self.covariance[known][:, rest]).T
        mean = self.mean[rest] + gain @ (value - self.mean[known])
        return Joint(mean, self.covariance[rest][:, rest] - gain @ self.covariance[known][:, rest])

    def then(self, matrix: Float[Tensor, "e d"], offset: Float[Tensor, "e"], noise: Float[Tensor, "e e"]) -> "Joint":
        """The joint law of x and y = matrix x + offset + N(0, noise), with y's variables last."""
        cross = self.covariance @ matrix.T
        rows = [torch.cat([self.covariance, cross], 1), torch.cat([cross.T, matrix @ cross + noise], 1)]
        return Joint(torch.cat([self.mean, matrix @ self.mean + offset]), torch.cat(rows))

    def log_prob(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """Log-density, in nats."""
        factor = torch.linalg.cholesky(self.covariance)
        whitened = torch.linalg.solve_triangular(factor, (x - self.mean)[..., None], upper=False)[..., 0]
        return -0.5 * (whitened.square().sum(-1) + len(self.mean) * math.log(2 * math.pi)) - factor.diagonal().log().sum()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """n draws: mean + L eps, L L' = covariance."""
        eps = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + eps @ torch.linalg.cholesky(self.covariance).T

    def entropy(self) -> Float[Tensor, ""]:
        """½ log det(2πe covariance), in nats."""
        return 0.5 * (torch.logdet(self.covariance) + len(self.mean) * (1 + math.log(2 * math.pi)))

    def kl(self, other: "Joint") -> Float[Tensor, ""]:
        """KL(self ‖ other), in nats."""
        apart = other.mean - self.mean
        spread = torch.linalg.solve(other.covariance, torch.cat([self.covariance, apart[:, None]], 1))
        trace, distance = spread[:, :-1].diagonal().sum(), apart @ spread[:, -1]
        return 0.5 * (trace + distance - len(self.mean) + torch.logdet(other.covariance) - torch.logdet(self.covariance))
