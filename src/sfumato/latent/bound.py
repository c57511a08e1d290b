"""One bound for every model with latents: VAE, hierarchical VAE, diffusion.

A model with latents z_1 … z_T (z_T the topmost) draws them for a given x and records, for each, the laws of its encoder q and its prior p.
The bound needs no more than this `Trace`:

    -log p(x) <= E_q[ -log p(x | z) + Σ_k log q(z_k | …) - log p(z_k | …) ]

If q and p of a level are conditioned on the same draws (an encoder that runs downwards, as a ladder's or diffusion's does), the term is a
KL divergence with a closed form. For an encoder that runs upwards, q(z_1 | x) q(z_2 | z_1) … as in Luo (2022), eq. 26, arXiv:2208.11970,
this holds for the topmost latent only: below it, z_{k+1} was drawn given z_k, and the KL of q(z_k | z_{k-1}) from p(z_k | z_{k+1}) has
another mean (the "consistency term" of the notes and of Luo, eq. 41, confuses the two; the ledger measures the difference). There the
log-ratio at the draw is used.
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
class LatentDraw:
    """A draw of one latent, with the encoder's and the prior's law that it was drawn under."""

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
        """KL(q ‖ p) if both have the same conditions, else the log-ratio at the draw, whose mean is the level's part of the bound; nats."""
        return _sum(self.q.kl(self.p)) if self.is_shared else self.log_ratio


@dataclass(frozen=True, slots=True)
class Trace:
    """Draws of all latents of some x, topmost first, and log p(x | z) in nats."""

    latents: Sequence[LatentDraw]
    log_likelihood: Float[Tensor, "b"]
    is_joint: bool = True  # whether the latents are one joint draw of q(z_1 … z_T | x), not drawn independently

    @property
    def log_ratio(self) -> Float[Tensor, "b"]:
        """log p(x, z) - log q(z | x), in nats: its mean is the evidence lower bound."""
        return self.log_likelihood - torch.stack([latent.log_ratio for latent in self.latents]).sum(0)


@runtime_checkable
class HasTrace(Protocol):
    """A model with latents that returns a `Trace`."""

    def trace(self, x: Tensor, generator: Generator | None = None) -> Trace:
        """Draws all latents of x from the encoder."""
        ...


@torch.no_grad()
def bound(model: HasTrace, x: Float[Tensor, "b *x"], *, draws: int = 1, generator: Generator | None = None) -> Bound:
    """The negative evidence lower bound of any model with latents, in bits/dim, level by level.

    `prior` is the divergence of the topmost level, `steps` those of the levels below it, from the top down, `decoder` is -log p(x | z): the
    same parts, in the same order, as the bound of a diffusion model. A VAE has no steps.

    Args:
        model: a `VAE`, a `LadderVAE`, or `as_hierarchical_vae` of a diffusion model.
        x: data.
        draws: number of traces to average over.
        generator: for the traces.

    Raises:
        ValueError: draws below 1.
    """
    _refuse_none(draws)
    walks = [model.trace(x, generator) for _ in range(draws)]
    levels = torch.stack([torch.stack([latent.divergence for latent in walk.latents], 1) for walk in walks]).mean(0)
    decoder = -torch.stack([walk.log_likelihood for walk in walks]).mean(0)
    scale = x[0].numel() * math.log(2)
    return Bound(levels[:, 0] / scale, levels[:, 1:] / scale, decoder / scale, torch.ones(levels.shape[1] - 1).to(levels))


@torch.no_grad()
def importance_bits(model: HasTrace, x: Float[Tensor, "b *x"], *, draws: int, generator: Generator | None = None) -> Float[Tensor, "b"]:
    """-log2 of the mean of p(x, z)/q(z | x) over the draws, in bits/dim: decreases with their number towards -log2 p(x).

    Reference: Burda et al. (2016), eq. 8 and theorem 1, arXiv:1509.00519.

    Raises:
        ValueError: draws below 1, or a model with jumps=True.
    """
    _refuse_none(draws)
    ratios = torch.stack([_of_a_chain(model.trace(x, generator)).log_ratio for _ in range(draws)])
    return -probability.importance_bound(ratios, torch.zeros_like(ratios)) / (x[0].numel() * math.log(2))


def loss(trace: Trace, dims: int, *, beta: float = 1.0, free_nats: float = 0.0) -> Float[Tensor, "b"]:
    """-log p(x | z) + beta Σ_k max(KL_k, free_nats), in bits/dim: the training loss of a model with latents.

    Args:
        trace: of a batch.
        dims: number of entries of x.
        beta: weight of the divergences; 1 gives the bound. Warming it up from 0 prevents the decoder from learning to ignore z. Higgins et
            al. (2017); Bowman et al. (2016), section 3.1, arXiv:1511.06349.
        free_nats: KL of each level, averaged over these examples, that is not penalised; with 0 each KL is penalised as it is, also where
            its estimate from one draw is negative. Kingma et al. (2016), eq. 15, arXiv:1606.04934.
    """
    cost = -trace.log_likelihood
    for latent in trace.latents:
        divergence = latent.divergence
        if free_nats:
            divergence = torch.where(divergence.detach().mean() > free_nats, divergence, free_nats)
        cost = cost + beta * divergence
    return cost / (dims * math.log(2))


@dataclass(frozen=True, slots=True)
class LevelUse:
    """How much a latent is used.

    Args:
        level: 1 is the one next to x.
        nats: its mean part of the bound.
        units: number of its entries.
        active: entries whose posterior mean depends on x: its variance over x exceeds `ACTIVE` times the prior's variance.
    """

    level: int
    nats: float
    units: int
    active: int

    @property
    def is_collapsed(self) -> bool:
        """Whether no entry depends on x (posterior collapse)."""
        return self.active == 0

    def __str__(self) -> str:
        """One sentence."""
        if self.is_collapsed:
            return (
                f"level {self.level} has collapsed: {self.nats:.3g} nats, none of its {self.units} entries depends on x; "
                "lengthen the warm-up, raise free_nats, or lower beta."
            )
        return f"level {self.level}: {self.nats:.4g} nats, {self.active} of {self.units} entries active."


ACTIVE = 0.01  # share of the prior's variance: Burda et al. (2016), section 5.2, take 1e-2 under a prior of unit variance


@torch.no_grad()
def level_use(model: HasTrace, x: Float[Tensor, "b *x"], *, draws: int = 4, generator: Generator | None = None) -> list[LevelUse]:
    """How much of each latent is used on these data, z_1 first, and which have collapsed.

    An entry is active if its posterior mean moves away from the prior's as x varies: the variance over x of the difference of the means
    (averaged over draws of the other levels), relative to the prior's variance. Burda et al. (2016), section 5.2.
    """
    _refuse_none(draws)
    walks = [model.trace(x, generator) for _ in range(draws)]
    found = []
    for k in range(len(walks[0].latents)):
        latents = [walk.latents[k] for walk in walks]
        apart = torch.stack([latent.q.mean - latent.p.mean for latent in latents]).mean(0)
        spread = torch.stack([latent.p.log_variance.expand_as(apart).exp() for latent in latents]).mean((0, 1))
        # Draws of the other levels also move the difference; this is the variance over x that they cause alone.
        noise = torch.stack([latent.q.mean - latent.p.mean for latent in latents]).var(0).mean(0) / draws if draws > 1 else 0.0
        active = (apart.var(0) - noise) > ACTIVE * spread
        nats = torch.stack([latent.divergence for latent in latents]).mean()
        found.append(LevelUse(len(walks[0].latents) - k, float(nats), apart[0].numel(), int(active.sum())))
    return found[::-1]


def _sum(entries: Tensor) -> Float[Tensor, "b"]:
    return entries.flatten(1).sum(1)


def _of_a_chain(walk: Trace) -> Trace:
    if not walk.is_joint:
        raise ValueError("an importance bound needs joint draws along the chain; make the model with jumps=False.")
    return walk


def _refuse_none(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
