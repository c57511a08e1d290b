"""One bound for every model with latents: VAE, hierarchical VAE, diffusion.

A model of latents z_1 … z_T (z_T the topmost) walks through them for a given x and tells at each what its encoder q and its prior p say
there. That `Trace` is all the bound needs:

    -log p(x) <= E_q[ -log p(x | z) + Σ_k log q(z_k | …) - log p(z_k | …) ]

Where q and p of a level are conditioned on the same draws (an encoder that walks downwards, as a ladder's or diffusion's does) the term is
a KL divergence, and known in closed form. In an encoder that walks upwards, q(z_1 | x) q(z_2 | z_1) … as in Luo (2022), eq. 26,
arXiv:2208.11970, it is one at the top alone: below, z_{k+1} was drawn from z_k, and the KL of q(z_k | z_{k-1}) from p(z_k | z_{k+1}) would
have another mean (the notes' and Luo's "consistency term", eq. 41, takes the one for the other; the ledger measures the difference).
There the ratio at the draw is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import probability
from sfumato.likelihood.bound import Bound
from sfumato.noise import Generator
from sfumato.process import Normal


@dataclass(frozen=True, slots=True)
class Visit:
    """A latent as a walk met it: the draw, and the encoder's and the prior's law there, given what each is conditioned on."""

    z: Float[Tensor, "b *z"]
    q: Normal
    p: Normal
    is_shared: bool = True  # whether both laws are conditioned on the same draws

    @property
    def log_ratio(self) -> Float[Tensor, "b"]:
        """log q(z) - log p(z), in nats."""
        return _sum(self.q.log_prob(self.z) - self.p.log_prob(self.z))

    @property
    def divergence(self) -> Float[Tensor, "b"]:
        """KL(q ‖ p) where both share their conditions, else the ratio at the draw, whose mean is the level's share of the bound; nats."""
        return _sum(self.q.kl(self.p)) if self.is_shared else self.log_ratio


@dataclass(frozen=True, slots=True)
class Trace:
    """A walk through all latents of some x: the visits, the topmost first, and log p(x | z) in nats."""

    visits: Sequence[Visit]
    log_likelihood: Float[Tensor, "b"]
    is_joint: bool = True  # whether the draws are one of q(z_1 … z_T | x), not each of its own

    @property
    def log_ratio(self) -> Float[Tensor, "b"]:
        """log p(x, z) - log q(z | x), in nats: its mean is the evidence lower bound."""
        return self.log_likelihood - torch.stack([visit.log_ratio for visit in self.visits]).sum(0)


@runtime_checkable
class Traces(Protocol):
    """A model that can be walked through."""

    def trace(self, x: Tensor, generator: Generator | None = None) -> Trace:
        """One walk through the latents of x, drawn from the encoder."""
        ...


@torch.no_grad()
def bound(model: Traces, x: Float[Tensor, "b *x"], *, draws: int = 1, generator: Generator | None = None) -> Bound:
    """The evidence lower bound of any model with latents, negated, in bits/dim, level by level.

    `prior` is the topmost level's divergence, `steps` those of the levels below it, from above, `decoder` is -log p(x | z): the parts of a
    diffusion model's bound, in their order. A VAE has no steps.

    Args:
        model: a `VAE`, a `LadderVAE`, or `as_hierarchical_vae` of a diffusion model.
        x: data.
        draws: walks to average over.
        generator: of the walks.

    Raises:
        ValueError: draws below 1.
    """
    _refuse_none(draws)
    walks = [model.trace(x, generator) for _ in range(draws)]
    levels = torch.stack([torch.stack([visit.divergence for visit in walk.visits], 1) for walk in walks]).mean(0)
    decoder = -torch.stack([walk.log_likelihood for walk in walks]).mean(0)
    scale = x[0].numel() * math.log(2)
    return Bound(levels[:, 0] / scale, levels[:, 1:] / scale, decoder / scale, torch.ones(levels.shape[1] - 1).to(levels))


@torch.no_grad()
def importance_bits(model: Traces, x: Float[Tensor, "b *x"], *, draws: int, generator: Generator | None = None) -> Float[Tensor, "b"]:
    """-log2 of the mean of p(x, z)/q(z | x) over the draws, in bits/dim: falls with their number towards -log2 p(x).

    Reference: Burda et al. (2016), eq. 8 and theorem 1, arXiv:1509.00519.

    Raises:
        ValueError: draws below 1, or a model whose walks jump.
    """
    _refuse_none(draws)
    ratios = torch.stack([_of_a_chain(model.trace(x, generator)).log_ratio for _ in range(draws)])
    return -probability.importance_bound(ratios, torch.zeros_like(ratios)) / (x[0].numel() * math.log(2))


def loss(trace: Trace, dims: int, *, beta: float = 1.0, free_nats: float = 0.0) -> Float[Tensor, "b"]:
    """-log p(x | z) + beta Σ_k max(KL_k, free_nats), in bits/dim: what a model with latents is trained on.

    Args:
        trace: of a batch.
        dims: how many entries x has.
        beta: weight of the divergences; 1 is the bound, and warming up from 0 keeps the decoder from learning to do without z. Higgins et
            al. (2017); Bowman et al. (2016), section 3.1, arXiv:1511.06349.
        free_nats: what each level may cost, on the mean of these examples, before it is charged. Kingma et al. (2016), eq. 15,
            arXiv:1606.04934.
    """
    cost = -trace.log_likelihood
    for visit in trace.visits:
        divergence = visit.divergence
        cost = cost + beta * (divergence if float(divergence.mean().detach()) > free_nats else torch.full_like(divergence, free_nats))
    return cost / (dims * math.log(2))


@dataclass(frozen=True, slots=True)
class LevelUse:
    """How much a latent is used.

    Args:
        level: 1 is the one next to x.
        nats: its mean share of the bound.
        units: its entries.
        active: entries whose posterior mean follows x: of the expected mean's variance over x above `ACTIVE` times the prior's.
    """

    level: int
    nats: float
    units: int
    active: int

    @property
    def is_collapsed(self) -> bool:
        """Whether no entry follows x: what the encoder says is what the prior knew."""
        return self.active == 0

    def __str__(self) -> str:
        """One sentence."""
        if self.is_collapsed:
            return (
                f"level {self.level} has collapsed: {self.nats:.3g} nats, none of its {self.units} entries follows x; "
                "lengthen the warm-up, grant free nats, or lower beta."
            )
        return f"level {self.level}: {self.nats:.4g} nats, {self.active} of {self.units} entries active."


ACTIVE = 0.01  # of the prior's variance: Burda et al. (2016), section 5.2, take 1e-2 under a prior of unit variance


@torch.no_grad()
def level_use(model: Traces, x: Float[Tensor, "b *x"], *, draws: int = 4, generator: Generator | None = None) -> list[LevelUse]:
    """How much of each latent is used on these data, z_1 first, and which have collapsed.

    An entry is active where the mean that its encoder gives moves away from the prior's with x: the variance over x of the mean
    difference of the two (over the draws of the other levels), against the prior's variance. Burda et al. (2016), section 5.2.
    """
    _refuse_none(draws)
    walks = [model.trace(x, generator) for _ in range(draws)]
    found = []
    for k in range(len(walks[0].visits)):
        visits = [walk.visits[k] for walk in walks]
        apart = torch.stack([visit.q.mean - visit.p.mean for visit in visits]).mean(0)
        spread = torch.stack([visit.p.log_variance.expand_as(apart).exp() for visit in visits]).mean((0, 1))
        # The draws of other levels move the difference, too: without them it would have this variance over x.
        noise = torch.stack([visit.q.mean - visit.p.mean for visit in visits]).var(0).mean(0) / draws if draws > 1 else 0.0
        active = (apart.var(0) - noise) > ACTIVE * spread
        nats = torch.stack([visit.divergence for visit in visits]).mean()
        found.append(LevelUse(len(walks[0].visits) - k, float(nats), apart[0].numel(), int(active.sum())))
    return found[::-1]


def _sum(entries: Tensor) -> Float[Tensor, "b"]:
    return entries.flatten(1).sum(1)


def _of_a_chain(walk: Trace) -> Trace:
    if not walk.is_joint:
        raise ValueError("an importance bound needs a walk along the chain; make the model with jumps=False.")
    return walk


def _refuse_none(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
