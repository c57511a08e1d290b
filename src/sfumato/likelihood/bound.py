"""How probable a model finds data: the variational bound, term by term.

    -log p(x0) <= L_T + Σ L_{t-1} + L_0  =  KL(q(x_T|x0) ‖ N(0, I)) + Σ KL(q(x_s|x_t, x0) ‖ p(x_s|x_t)) - log p(x0|x_1)

over the chain that the given levels make: the whole one, or any respaced one. Ho et al. (2020), eq. 5, arXiv:2006.11239.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Cond, Predictor
from sfumato.noise import Generator, normal_like
from sfumato.prediction import Prediction
from sfumato.process import Normal, marginal, posterior, posterior_log_variance, reverse
from sfumato.schedule import Level


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound of each example in bits/dim: one draw of x_t a level."""

    prior: Float[Tensor, "b"]
    steps: Float[Tensor, "b t"]
    decoder: Float[Tensor, "b"]

    @property
    def total(self) -> Float[Tensor, "b"]:
        """prior + Σ steps + decoder."""
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def standard_error(self) -> float:
        """Of the mean of `total` over the examples."""
        return float(self.total.std() / math.sqrt(len(self.total)))


def prior_bits(x0: Float[Tensor, "b *x"], level: Level) -> Float[Tensor, "b"]:
    """L_T = KL(q(x_T | x0) ‖ N(0, alpha² + sigma²)), in bits/dim; under VP scales the prior is the standard normal."""
    standard = Normal(torch.zeros_like(x0), (level.alpha.square() + level.sigma.square()).log())
    return _bits(marginal(x0, level).kl(standard))


def term_bits(
    prediction: Prediction,
    x0: Float[Tensor, "b *x"],
    x_t: Float[Tensor, "b *x"],
    t: Level,
    s: Level,
    *,
    variance: str = "small",
    last_log_variance: Tensor | None = None,
) -> Float[Tensor, "b"]:
    """L_{t-1} = KL(q(x_s | x_t, x0) ‖ p(x_s | x_t)), or the decoder's -log p(x0 | x_t) where s is the data, in bits/dim."""
    model = reverse(prediction, x_t, t, s, variance=variance, last_log_variance=last_log_variance)
    if bool((s.sigma == 0).all()):
        return -_bits(model.binned_log_prob(x0))
    return _bits(posterior(x0, x_t, t, s).kl(model))


@torch.no_grad()
def vlb(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    levels: Sequence[Level],
    cond: Cond | None = None,
    *,
    variance: str = "small",
    generator: Generator | None = None,
) -> Bound:
    """The variational bound on 8-bit data in [-1, 1], along a chain of levels that ends at the data.

    Args:
        predict: the model.
        x0: data on the 8-bit grid, scaled to [-1, 1].
        levels: from noise to Level(1, 0), as `grid` makes them of a `Discrete`.
        cond: conditions, one row an example.
        variance: of the reverse steps: "small", "large" or "learned".
        generator: of the noise in x_t.

    Raises:
        ValueError: fewer than three levels, or a last one that is not the data.
    """
    if len(levels) < 3 or bool((levels[-1].sigma != 0).any()):
        raise ValueError(f"the bound needs at least two steps that end at the data (sigma = 0), got {len(levels)} levels; use a Discrete.")
    last = posterior_log_variance(levels[-3], levels[-2])
    terms = []
    for t, s in pairwise(levels):
        x_t = t.alpha * x0 + t.sigma * normal_like(x0, generator)
        terms.append(term_bits(predict(x_t, t, cond), x0, x_t, t, s, variance=variance, last_log_variance=last))
    return Bound(prior_bits(x0, levels[0]), torch.stack(terms[:-1], dim=1), terms[-1])


def _bits(nats: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
    return nats.flatten(1).mean(1) / math.log(2)
