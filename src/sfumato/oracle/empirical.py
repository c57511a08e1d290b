"""A finite set of points: their empirical distribution and its exact predictor, that of a network that has memorised them."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.condition import CondLike, class_of, refuse_cond
from sfumato.denoiser import refuse_array
from sfumato.oracle.mixture import LEAST_VARIANCE
from sfumato.prediction import Prediction
from sfumato.schedule import Level

_CHUNK_NUMBERS = 1 << 22


class EmpiricalDistribution:
    """The empirical distribution of n points of any shape, noised by any level: Σ w_i N(alpha x_i, sigma² I).

    Its predictor is what denoising score matching on a training set converges to: E[x0 | x_t] = Σ softmax_i(log w_i - |x_t - alpha x_i|²
    / 2 sigma²) x_i. Distances are computed from differences, in float64, so nothing cancels at small sigma; points are processed in chunks,
    and the largest tensor has b × n numbers. Karras et al. (2022), eq. 57, arXiv:2206.00364.

    With cond = {"labels": [b]}, row i is conditioned on the points of class labels[i] (-1: unconditional).
    """

    def __init__(
        self, x: Float[Tensor, "n *x"], labels: Int[Tensor, "m"] | None = None, *, weights: Float[Tensor, "k"] | None = None
    ) -> None:
        """Keeps the points.

        Args:
            x: the points; their dtype is kept.
            labels: the class of each, 0, 1, …
            weights: probabilities, positive, with sum 1; uniform by default.

        Raises:
            ValueError: no points, labels or weights of another length, weights that are not probabilities.
        """
        if not len(x) or (labels is not None and (labels.shape != (len(x),) or bool((labels < 0).any()))):
            raise ValueError(
                f"points need at least one row, and labels (from 0) one a row, got {tuple(x.shape)} and "
                f"{'no labels' if labels is None else tuple(labels.shape)}."
            )
        if weights is None:
            weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
        if weights.shape != (len(x),) or not bool((weights > 0).all()) or abs(weights.sum().item() - 1) > 1e-6:
            raise ValueError(
                f"weights must be positive, one for each point, and sum to 1, got {tuple(weights.shape)} with sum {weights.sum():.6g}."
            )
        self.x, self.labels, self.log_weights = x, labels, weights.double().log()

    def __call__(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        """The exact posterior means E[x0 | x_t] and E[eps | x_t]."""
        alpha, variance, x = self._flat(x_t, level)
        share = self._restrict(self._log_joint(alpha, variance, x), cond).softmax(1)
        x0 = torch.zeros_like(x)
        for rows, piece in self._pieces():
            x0 = x0 + share[:, rows] @ piece
        eps = (x - alpha * x0) / variance.sqrt()
        return Prediction(x0.reshape(x_t.shape).to(x_t), eps.reshape(x_t.shape).to(x_t))

    def log_prob(self, x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Float[Tensor, "b"]:
        """log p(x_t) of the noised points (given the class that cond names), in nats."""
        log_joint = self._log_joint(*self._flat(x_t, level))
        log_share = self._restrict(self.log_weights.expand_as(log_joint), cond).logsumexp(1)
        return (self._restrict(log_joint, cond).logsumexp(1) - log_share).to(x_t)

    def log_class(self, x_t: Float[Tensor, "b *x"], level: Level) -> Float[Tensor, "b k"]:
        """log p(class | x_t), in nats: the exact noise-conditioned classifier."""
        log_joint, labels = self._log_joint(*self._flat(x_t, level)), self._labels()
        classes = [log_joint[:, labels == j].logsumexp(1) for j in range(int(labels.max()) + 1)]
        return torch.stack(classes, 1).log_softmax(1).to(x_t)

    def sample(
        self, n: int, generator: torch.Generator | None = None, labels: Int[Tensor, "n"] | None = None
    ) -> tuple[Float[Tensor, "n *x"], Int[Tensor, "n"] | None]:
        """n draws from the points, with the class of each if there are classes; from the given classes if `labels` are passed."""
        log_weights = self.log_weights.expand(n, -1)
        shares = self._restrict(log_weights, None if labels is None else {"labels": labels}).softmax(1)
        index = torch.multinomial(shares, 1, generator=generator)[:, 0]
        return self.x[index], None if self.labels is None else self.labels[index]

    def given(self, matrix: Float[Tensor, "m d"], y: Float[Tensor, "m"], noise_std: float | Float[Tensor, "m"]) -> "EmpiricalDistribution":
        """The points reweighted by the likelihood of y = matrix x0 + noise_std n, n ~ N(0, I), x0 flattened.

        Raises:
            ValueError: noise_std that is not positive: then possibly no point explains y.
        """
        matrix, y = (torch.as_tensor(v, dtype=torch.float64, device=self.x.device) for v in (matrix, y))
        noise_std = torch.as_tensor(noise_std, dtype=torch.float64, device=self.x.device)
        if not bool((noise_std > 0).all()):
            raise ValueError(f"noise_std must be positive, got {noise_std.min():.3g}.")
        misfit = torch.cat([((y - piece @ matrix.T) / noise_std).square().sum(1) for _, piece in self._pieces()])
        points = EmpiricalDistribution(self.x, self.labels)
        points.log_weights = (self.log_weights - misfit / 2).log_softmax(0)
        return points

    def _flat(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """alpha and sigma² [b or 1, 1] and x [b, d] in float64."""
        refuse_array(x_t)
        if x_t.shape[1:] != self.x.shape[1:]:
            raise ValueError(f"the points have shape {tuple(self.x.shape[1:])}, got x_t of shape {tuple(x_t.shape)}.")
        like = self.log_weights
        alpha, sigma = level.alpha.to(like).reshape(-1, 1), level.sigma.to(like).reshape(-1, 1)
        return alpha, sigma.square().clamp(min=LEAST_VARIANCE), x_t.to(like).flatten(1)

    def _log_joint(self, alpha: Tensor, variance: Tensor, x: Tensor) -> Float[Tensor, "b n"]:
        """log p(x_t, point), in nats."""
        alpha = alpha.clamp(min=1e-100)
        pieces = [torch.cdist(x / alpha, piece, compute_mode="donot_use_mm_for_euclid_dist") for _, piece in self._pieces()]
        misfit = (torch.cat(pieces, 1) * alpha).square() / variance
        return self.log_weights - 0.5 * (misfit + x.shape[1] * (variance.log() + math.log(2 * math.pi)))

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """The points, flattened and in float64, in chunks of rows."""
        rows = max(1, _CHUNK_NUMBERS // max(1, self.x[0].numel()))
        for start in range(0, len(self.x), rows):
            chunk = slice(start, start + rows)
            yield chunk, self.x[chunk].to(self.log_weights).flatten(1)

    def _labels(self) -> Tensor:
        if self.labels is None:
            raise ValueError("these points have no classes; pass labels to EmpiricalDistribution.")
        return self.labels

    def _restrict(self, log_joint: Tensor, cond: CondLike | None) -> Tensor:
        if (labels := class_of(cond, "a set of points")) is None:
            return log_joint
        refuse_cond(cond, len(log_joint))
        mine, labels = self._labels(), labels.to(self.x.device)
        if not bool(torch.isin(labels, mine).logical_or(labels < 0).all()):
            raise ValueError(f"every label must be the class of some point (or -1 for unconditional), got {labels.tolist()}.")
        return log_joint.masked_fill((labels[:, None] >= 0) & (labels[:, None] != mine), -math.inf)
