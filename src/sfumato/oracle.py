"""Data whose every diffusion quantity is a closed form: each oracle is an exact `Predictor`.

What a perfect network would say, what the density of x_t is, what a sampler must converge to: tests, the ledger and the doctor hold the
rest of the library against these.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.denoiser import Cond
from sfumato.noise import normal_like
from sfumato.prediction import Prediction
from sfumato.schedule import Level


class GaussianMixture:
    """A mixture of Gaussians with full covariances, noised by any level.

    Component j of x_t is N(alpha m_j, alpha² C_j + sigma² I), so densities, posteriors and scores are exact. Kept in the eigenbasis of each
    C_j in float64 and mixed by logsumexp, it is stable from one end of a schedule to the other.

    With cond = {"labels": [b]}, row i is conditioned on component labels[i] (-1: on none).
    """

    def __init__(self, weights: Float[Tensor, "k"], means: Float[Tensor, "k d"], covariances: Float[Tensor, "k d1 d2"]) -> None:
        """Builds the mixture.

        Args:
            weights: probabilities, positive and summing to 1.
            means: one row a component.
            covariances: symmetric, positive semi-definite.

        Raises:
            ValueError: weights that are no probabilities, shapes that disagree, covariances that are not symmetric positive semi-definite.
        """
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        k, d = means.shape
        if weights.shape != (k,) or covariances.shape != (k, d, d):
            raise ValueError(
                f"weights [k], means [k, d] and covariances [k, d, d] must agree, "
                f"got {tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}."
            )
        if not bool((weights > 0).all()) or abs(weights.sum().item() - 1) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {weights.tolist()}.")
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("covariances must be symmetric; symmetrise them with (c + c.mT) / 2.")
        self.weights = weights
        self.means = means
        self.variances, self.axes = torch.linalg.eigh(covariances)
        if self.variances.min() < -1e-9 * self.variances.max().clamp(min=1):
            raise ValueError(f"covariances must be positive semi-definite, the least eigenvalue is {self.variances.min().item():.3g}.")
        self.variances = self.variances.clamp(min=0)

    def __call__(self, x_t: Float[Tensor, "b *x"], level: Level, cond: Cond | None = None) -> Prediction:
        """The exact posterior means E[x0 | x_t] and E[eps | x_t]."""
        alpha, sigma, x = self._flat(x_t, level)
        along, variance, log_joint = self._components(alpha, sigma, x)
        share = self._restrict(log_joint, cond).softmax(1)
        x0 = self.means + self._rotate(alpha[:, None] * self.variances / variance * along)
        eps = self._rotate(sigma[:, None] / variance * along)
        mix = lambda parts: torch.einsum("bk,bkd->bd", share, parts).reshape(x_t.shape).to(x_t)  # noqa: E731
        return Prediction(mix(x0), mix(eps))

    def log_prob(self, x_t: Float[Tensor, "b *x"], level: Level, cond: Cond | None = None) -> Float[Tensor, "b"]:
        """log p(x_t) of the noised mixture (given the component, where cond names one), in nats."""
        alpha, sigma, x = self._flat(x_t, level)
        *_, log_joint = self._components(alpha, sigma, x)
        return (
            self._restrict(log_joint, cond).logsumexp(1) - self._restrict(self.weights.log().expand_as(log_joint), cond).logsumexp(1)
        ).to(x_t)

    def log_class(self, x_t: Float[Tensor, "b *x"], level: Level) -> Float[Tensor, "b k"]:
        """log p(component | x_t), in nats: the exact noise-conditioned classifier."""
        alpha, sigma, x = self._flat(x_t, level)
        *_, log_joint = self._components(alpha, sigma, x)
        return log_joint.log_softmax(1).to(x_t)

    def sample(
        self, n: int, generator: torch.Generator | None = None, labels: Int[Tensor, "n"] | None = None
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]:
        """n draws of x0 with the component each came from; of the given components where `labels` are passed."""
        if labels is None:
            labels = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = normal_like(torch.empty(n, self.means.shape[1], dtype=torch.float64), generator)
        x0 = self.means[labels] + noise * self.variances[labels].sqrt()
        for j, axes in enumerate(self.axes):
            mine = labels == j
            x0[mine] = self.means[j] + (x0[mine] - self.means[j]) @ axes.T
        return x0, labels

    def _flat(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """alpha [b or 1, 1], sigma [b or 1, 1] and x [b, d] in float64."""
        x = x_t.reshape(len(x_t), -1).to(self.means)
        if x.shape[1] != self.means.shape[1]:
            raise ValueError(f"the mixture has {self.means.shape[1]} dimensions, got x_t of shape {tuple(x_t.shape)}.")
        return level.alpha.to(self.means).reshape(-1, 1), level.sigma.to(self.means).reshape(-1, 1), x

    def _components(self, alpha: Tensor, sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In each component's eigenbasis: x - alpha m [b, k, d], its variance [b, k, d], and log p(x, component) [b, k]."""
        centred = x[:, None] - alpha[:, None] * self.means
        along = torch.einsum("kij,bki->bkj", self.axes, centred)
        variance = alpha[:, None].square() * self.variances + sigma[:, None].square()
        variance = variance.clamp(min=1e-200)  # a point without noise: x0 is the point
        log_joint = self.weights.log() - 0.5 * (along.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)
        return along, variance, log_joint

    def _rotate(self, along: Tensor) -> Tensor:
        return torch.einsum("kij,bkj->bki", self.axes, along)

    def _restrict(self, log_joint: Tensor, cond: Cond | None) -> Tensor:
        if cond is None:
            return log_joint
        labels = cond["labels"].to(log_joint.device)[:, None]
        if bool((labels >= log_joint.shape[1]).any()):
            raise ValueError(f"labels must be below {log_joint.shape[1]}, the number of components (or -1 for none), got {labels.max()}.")
        others = (labels >= 0) & (labels != torch.arange(log_joint.shape[1], device=log_joint.device))
        return log_joint.masked_fill(others, -math.inf)
