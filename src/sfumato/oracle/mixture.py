"""Gaussians and their mixtures, noised to any level and conditioned on a component or on a linear observation."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.condition import CondLike, class_of, refuse_cond
from sfumato.denoiser import refuse_array
from sfumato.noise import normal_like
from sfumato.prediction import Prediction
from sfumato.schedule import Level

LEAST_VARIANCE = 1e-200  # stands for zero variance, so that nothing is divided by zero


class GaussianMixture:
    """A mixture of Gaussians with full or diagonal covariances, noised to any level.

    Component j of x_t is N(alpha m_j, alpha² C_j + sigma² I), so densities, posteriors and scores are exact. The eigenbasis of each C_j in
    float64 and logsumexp keep it stable from one end of a schedule to the other.

    With cond = {"labels": [b]}, row i is conditioned on component labels[i] (-1: unconditional).
    """

    def __init__(
        self,
        weights: Float[Tensor, "k"],
        means: Float[Tensor, "k d"],
        covariances: Float[Tensor, "k d1 d2"] | Float[Tensor, "k d"],
    ) -> None:
        """Builds the mixture.

        Args:
            weights: probabilities, positive, with sum 1.
            means: one row a component.
            covariances: symmetric, positive semi-definite; or the diagonals of diagonal ones, which scale to any number of dimensions.

        Raises:
            ValueError: weights that are not probabilities, shapes that disagree, covariances that are not symmetric positive semi-definite.
        """
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        k, d = means.shape
        if weights.shape != (k,) or covariances.shape not in ((k, d, d), (k, d)):
            raise ValueError(
                f"weights [k], means [k, d] and covariances [k, d, d] or [k, d] must agree, "
                f"got {tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}."
            )
        if not bool((weights > 0).all()) or abs(weights.sum().item() - 1) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {weights.tolist()}.")
        self.log_weights = weights.log()
        self.means = means
        if covariances.ndim == 2:
            self.variances, self._axes = covariances, None
        else:
            if not torch.allclose(covariances, covariances.mT):
                raise ValueError("covariances must be symmetric; symmetrise them with (c + c.mT) / 2.")
            self.variances, self._axes = torch.linalg.eigh(covariances)
        if self.variances.min() < -1e-9 * self.variances.max().clamp(min=1):
            raise ValueError(f"covariances must be positive semi-definite; the smallest eigenvalue is {self.variances.min().item():.3g}.")
        self.variances = self.variances.clamp(min=0)

    @property
    def weights(self) -> Float[Tensor, "k"]:
        """The probabilities of the components."""
        return self.log_weights.exp()

    @property
    def axes(self) -> Float[Tensor, "k d d"]:
        """The eigenbasis of each covariance, one axis a column; `variances` [k, d] are the eigenvalues."""
        k, d = self.means.shape
        return torch.eye(d).to(self.means).expand(k, d, d) if self._axes is None else self._axes

    @property
    def covariances(self) -> Float[Tensor, "k d d"]:
        """The full covariance of each component."""
        return self.axes @ torch.diag_embed(self.variances) @ self.axes.mT

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """E[x0]."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Cov[x0]: within the components and between them."""
        apart = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances + apart[:, :, None] * apart[:, None])

    def __call__(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        """The exact posterior means E[x0 | x_t] and E[eps | x_t]."""
        alpha, sigma, x = self._flat(x_t, level)
        along, variance, log_joint = self._components(alpha, sigma, x)
        share = self._restrict(log_joint, cond).softmax(1)
        x0 = self.means + self._rotate(alpha[:, None] * self.variances / variance * along)
        eps = self._rotate(sigma[:, None] / variance * along)
        mix = lambda parts: torch.einsum("bk,bkd->bd", share, parts).reshape(x_t.shape).to(x_t)  # noqa: E731
        return Prediction(mix(x0), mix(eps))

    def covariance_given(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Float[Tensor, "b d d2"]:
        """Cov[x0 | x_t], of the entries of x0 in one row: within the components and between them."""
        alpha, sigma, x = self._flat(x_t, level)
        along, variance, log_joint = self._components(alpha, sigma, x)
        share = self._restrict(log_joint, cond).softmax(1)
        means = self.means + self._rotate(alpha[:, None] * self.variances / variance * along)
        within = self.variances * sigma[:, None].square() / variance
        if len(within) == 1 or len(sigma) == 1:  # one level: the components' covariances are those of all rows
            parts = torch.einsum("kij,kj,klj->kil", self.axes, within[0], self.axes)
            inside = torch.einsum("bk,kil->bil", share, parts)
        else:
            inside = torch.einsum("bk,kij,bkj,klj->bil", share, self.axes, within, self.axes)
        apart = means - torch.einsum("bk,bkd->bd", share, means)[:, None]
        return (inside + torch.einsum("bk,bki,bkl->bil", share, apart, apart)).to(x_t)

    def log_prob(self, x_t: Float[Tensor, "b *x"], level: Level | None = None, cond: CondLike | None = None) -> Float[Tensor, "b"]:
        """log p(x_t) of the noised mixture (of the data if no level is given; of one component if cond names it), in nats."""
        alpha, sigma, x = self._flat(x_t, level or data_level())
        *_, log_joint = self._components(alpha, sigma, x)
        log_share = self._restrict(self.log_weights.expand_as(log_joint), cond).logsumexp(1)
        return (self._restrict(log_joint, cond).logsumexp(1) - log_share).to(x_t)

    def log_class(self, x_t: Float[Tensor, "b *x"], level: Level) -> Float[Tensor, "b k"]:
        """log p(component | x_t), in nats: the exact noise-conditioned classifier."""
        alpha, sigma, x = self._flat(x_t, level)
        *_, log_joint = self._components(alpha, sigma, x)
        return log_joint.log_softmax(1).to(x_t)

    def sample(
        self, n: int, generator: torch.Generator | None = None, labels: Int[Tensor, "n"] | None = None
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]:
        """n draws of x0 with the component of each; from the given components if `labels` are passed."""
        if labels is None:
            labels = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        refuse_cond({"labels": labels}, n)
        noise = normal_like(torch.empty(n, self.means.shape[1], dtype=torch.float64), generator)
        spread = noise * self.variances[labels].sqrt()
        for j, axes in enumerate([] if self._axes is None else self._axes):
            mine = labels == j
            spread[mine] = spread[mine] @ axes.T
        return self.means[labels] + spread, labels

    def observed(self, matrix: Float[Tensor, "m d"], noise_std: float | Float[Tensor, "m"]) -> "GaussianMixture":
        """The law of y = matrix x0 + noise_std n, n ~ N(0, I): a mixture with the same weights."""
        matrix = torch.as_tensor(matrix).to(self.means)
        noise = torch.as_tensor(noise_std).to(matrix).square().expand(len(matrix)).diag()
        return self._with(self.log_weights, self.means @ matrix.T, _symmetric(matrix @ self.covariances @ matrix.T + noise))

    def given(self, matrix: Float[Tensor, "m d"], y: Float[Tensor, "m"], noise_std: float | Float[Tensor, "m"]) -> "GaussianMixture":
        """The law of x0 given y = matrix x0 + noise_std n, n ~ N(0, I): a mixture. Bishop (2006), eqs. 2.116 and 2.117.

        `given(alpha I, x_t, sigma)` is the posterior p(x0 | x_t); its `mean` is the x0 of the prediction.

        Raises:
            ValueError: a noise-free observation of a direction without variance.
        """
        law = self.observed(matrix, noise_std)
        matrix, y = torch.as_tensor(matrix).to(self.means), torch.as_tensor(y).to(self.means)
        if bool((law.variances.amin(1) <= 1e-14 * law.variances.amax(1)).any()):
            raise ValueError("the observation has no density under some component; use noise_std > 0, or independent rows.")
        covariances = self.covariances
        gain = torch.linalg.solve(law.covariances, matrix @ covariances).mT
        kept = torch.eye(matrix.shape[1]).to(matrix) - gain @ matrix
        noise = torch.as_tensor(noise_std).to(matrix).square().expand(len(matrix))
        means = self.means + torch.einsum("kdm,km->kd", gain, y - law.means)
        return self._with(law.log_class(y[None], data_level())[0], means, _symmetric(kept @ covariances @ kept.mT + gain * noise @ gain.mT))

    def _with(self, log_weights: Tensor, means: Tensor, covariances: Tensor) -> "GaussianMixture":
        """The mixture with weights given as logarithms, so that none underflows to zero."""
        mixture = GaussianMixture(torch.full_like(log_weights, 1 / len(log_weights)), means, covariances)
        mixture.log_weights = log_weights
        return mixture

    def _flat(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """alpha [b or 1, 1], sigma [b or 1, 1] and x [b, d] in float64."""
        refuse_array(x_t)
        x = x_t.reshape(len(x_t), math.prod(x_t.shape[1:])).to(self.means)  # also for zero rows
        if x.shape[1] != self.means.shape[1]:
            raise ValueError(f"the mixture has {self.means.shape[1]} dimensions, got x_t of shape {tuple(x_t.shape)}.")
        return level.alpha.to(self.means).reshape(-1, 1), level.sigma.to(self.means).reshape(-1, 1), x

    def _components(self, alpha: Tensor, sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In each component's eigenbasis: x - alpha m [b, k, d], its variance [b, k, d], and log p(x, component) [b, k]."""
        centred = x[:, None] - alpha[:, None] * self.means
        along = centred if self._axes is None else torch.einsum("kij,bki->bkj", self._axes, centred)
        variance = (alpha[:, None].square() * self.variances + sigma[:, None].square()).clamp(min=LEAST_VARIANCE)
        log_joint = self.log_weights - 0.5 * (along.square() / variance + variance.log() + math.log(2 * math.pi)).sum(2)
        return along, variance, log_joint

    def _rotate(self, along: Tensor) -> Tensor:
        return along if self._axes is None else torch.einsum("kij,bkj->bki", self._axes, along)

    def _restrict(self, log_joint: Tensor, cond: CondLike | None) -> Tensor:
        if (labels := class_of(cond, "a mixture")) is None:
            return log_joint
        refuse_cond(cond, len(log_joint))
        labels = labels.to(log_joint.device)[:, None]
        if bool((labels >= log_joint.shape[1]).any()):
            raise ValueError(f"labels must be below {log_joint.shape[1]}, the number of components (or -1: none), got {labels.max()}.")
        others = (labels >= 0) & (labels != torch.arange(log_joint.shape[1], device=log_joint.device))
        return log_joint.masked_fill(others, -math.inf)


def Gaussian(mean: Float[Tensor, "*d"], covariance: Float[Tensor, "*c"] | float) -> GaussianMixture:  # noqa: N802
    """N(mean, covariance) as a mixture of one; the covariance is a matrix, a diagonal, or one variance for all dimensions."""
    mean, covariance = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(covariance, dtype=torch.float64)
    if mean.ndim != 1:
        raise ValueError(f"the mean of a Gaussian is a vector [d], got shape {tuple(mean.shape)}.")
    covariance = covariance.expand(len(mean)) if covariance.ndim == 0 else covariance
    return GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])


def data_level() -> Level:
    """alpha = 1, sigma = 0: x_t is the data."""
    return Level(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def _symmetric(covariances: Tensor) -> Tensor:
    return (covariances + covariances.mT) / 2
