"""The variational bound on the likelihood of data, term by term.

    -log p(x0) <= L_T + Σ L_{t-1} + L_0  =  KL(q(x_T|x0) ‖ N(0, I)) + Σ KL(q(x_s|x_t, x0) ‖ p(x_s|x_t)) - log p(x0|x_1)

over the chain of the given levels, full or respaced. Ho et al. (2020), eq. 5, arXiv:2006.11239.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import CondLike, Predictor
from sfumato.deprecated import old_keywords
from sfumato.noise import Generator, normal_like
from sfumato.prediction import Prediction
from sfumato.process import Normal, marginal, posterior, posterior_log_variance, reverse
from sfumato.schedule import Level


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound of each example in bits/dim, with one draw of x_t at every level, or at a sample of the levels.

    `steps` has one column for each term evaluated; `weights` is the number of terms of the chain that each represents.
    """

    prior: Float[Tensor, "b"]
    steps: Float[Tensor, "b t"]
    decoder: Float[Tensor, "b"]
    weights: Float[Tensor, "t"]

    @property
    def total(self) -> Float[Tensor, "b"]:
        """prior + Σ weights · steps + decoder."""
        return self.prior + self.steps @ self.weights + self.decoder

    @property
    def standard_error(self) -> float:
        """Of the mean of `total` over the examples; inf for a single example."""
        return float(standard_error(self.total))

    @property
    def standard_errors(self) -> dict[str, Tensor]:
        """Of the mean over the examples of each part: prior [], steps [t], decoder []; inf for a single example."""
        return {name: standard_error(getattr(self, name)) for name in ("prior", "steps", "decoder")}


def standard_error(values: Float[Tensor, "b *x"]) -> Float[Tensor, "*x"]:
    """Of the mean over the first axis; inf if its length is below two."""
    return values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values.sum(0), math.inf)


def prior_bits(x0: Float[Tensor, "b *x"], level: Level) -> Float[Tensor, "b"]:
    """L_T = KL(q(x_T | x0) ‖ N(0, alpha² + sigma²)), in bits/dim; under VP scales the prior is the standard normal."""
    standard = Normal(torch.zeros_like(x0), (level.alpha.square() + level.sigma.square()).log())
    return _bits(marginal(x0, level).kl(standard))


@old_keywords(width="bin_width")
def term_bits(
    prediction: Prediction,
    x0: Float[Tensor, "b *x"],
    x_t: Float[Tensor, "b *x"],
    t: Level,
    s: Level,
    *,
    variance: str | Tensor = "small",
    last_log_variance: Tensor | None = None,
    bin_width: float = 2 / 255,
) -> Float[Tensor, "b"]:
    """L_{t-1} = KL(q(x_s | x_t, x0) ‖ p(x_s | x_t)), or the decoder's -log p(x0 | x_t) in rows where s is the data, in bits/dim."""
    model = reverse(prediction, x_t, t, s, variance=variance, last_log_variance=last_log_variance)
    is_last = s.sigma == 0
    is_seen = is_last.device.type == "cpu" and not torch.compiler.is_compiling()  # else both are computed, as a look would wait
    if is_seen and bool(is_last.all()):
        return -_bits(model.binned_log_prob(x0, bin_width=bin_width))
    divergence = posterior(x0, x_t, t, s).kl(model)
    if is_seen and not bool(is_last.any()):
        return _bits(divergence)
    return _bits(torch.where(is_last, -model.binned_log_prob(x0, bin_width=bin_width), divergence))


@old_keywords(width="bin_width")
@torch.no_grad()
def vlb(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    levels: Sequence[Level],
    cond: CondLike | None = None,
    *,
    variance: str = "small",
    bin_width: float = 2 / 255,
    terms: int | None = None,
    generator: Generator | None = None,
    choice: torch.Generator | None = None,
) -> Bound:
    """The variational bound for data of evenly spaced values in [-1, 1], along a chain of levels that ends at the data.

    Args:
        predict: the model.
        x0: data on the grid of their values, scaled to [-1, 1].
        levels: from noise to Level(1, 0): those of a `Discrete`, made by `grid`: the full chain or a respaced one.
        cond: conditions, one row an example.
        variance: of the reverse steps: "small", "large" or "learned".
        bin_width: distance of neighbouring values: 2/255 for bytes, 2/16 for seventeen grey levels.
        terms: how many of the KL terms to evaluate, one drawn from each of as many equal stretches of the chain; all by default. The total
        stays unbiased; prior and decoder are always computed.
        generator: of the noise in x_t.
        choice: generator for the choice of terms.

    Raises:
        ValueError: fewer than three levels, a last level that is not the data, or more terms than the chain has.
    """
    if len(levels) < 3 or bool((levels[-1].sigma != 0).any()):
        raise ValueError(f"the bound needs at least two steps that end at the data (sigma = 0), got {len(levels)} levels; use a Discrete.")
    last = posterior_log_variance(levels[-3], levels[-2])
    kept, weights = _drawn(len(levels) - 2, terms, choice)

    def term(i: int) -> Tensor:
        t, s = levels[i], levels[i + 1]
        x_t = t.alpha * x0 + t.sigma * normal_like(x0, generator)
        return term_bits(predict(x_t, t, cond), x0, x_t, t, s, variance=variance, last_log_variance=last, bin_width=bin_width)

    steps = torch.stack([term(i) for i in kept], dim=1)
    return Bound(prior_bits(x0, levels[0]), steps, term(len(levels) - 2), weights.to(steps))


def _drawn(count: int, terms: int | None, choice: torch.Generator | None) -> tuple[list[int], Float[Tensor, "t"]]:
    """The terms to evaluate, one for each stretch of the chain, and how many each represents."""
    if terms is None:
        return list(range(count)), torch.ones(count, dtype=torch.float64)
    if not 1 <= terms <= count:
        raise ValueError(f"terms must lie in 1 … {count}, the KL terms of this chain, got {terms}.")
    edges = torch.linspace(0, count, terms + 1, dtype=torch.float64).round().long()
    sizes = edges.diff()
    place = (torch.rand(terms, generator=choice, dtype=torch.float64) * sizes).floor().long()
    return (edges[:-1] + place).tolist(), sizes.double()


def _bits(nats: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
    return nats.flatten(1).mean(1) / math.log(2)
