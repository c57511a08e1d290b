"""Latent diffusion as one model of images: a bound on -log p(x) through both of its stages.

    -log p(x) <= E_q[-log p(x | z)] + E_q[log q(z | x)] + E_q[-log p(z)],       z ~ q(z | x)

p(x | z) is a discretised logistic around the autoencoder's decoded image; q is its encoder; and -log p(z), for a continuous z, has the
bound of variational diffusion, whose last term is the density of z around z_0:

    -log p(z) <= KL(q(z_1 | z) ‖ N(0, I)) + ½ E_t[-dλ/dt |eps_hat - eps|²] - E log N(z; z_0/alpha_0, sigma_0²/alpha_0²)

Vahdat et al. (2021), section 3, arXiv:2106.05931.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import loss
from sfumato.denoiser import CondLike, Predictor
from sfumato.deprecated import old_keywords
from sfumato.latent.autoencoder import Autoencoder, float_of
from sfumato.latent.likelihood import DiscretisedLogistic
from sfumato.likelihood.bound import prior_bits, standard_error
from sfumato.noise import Generator, normal_like
from sfumato.process import Normal
from sfumato.schedule import Schedule, finite_ends


@dataclass(frozen=True, slots=True)
class LatentBound:
    """An upper bound on the bits/dim of each image: pixels given the latent, plus the latent."""

    reconstruction: Float[Tensor, "b"]
    latent: Float[Tensor, "b"]

    @property
    def total(self) -> Float[Tensor, "b"]:
        """Both."""
        return self.reconstruction + self.latent

    @property
    def standard_error(self) -> float:
        """Of the mean of `total` over the examples; inf for a single one."""
        return float(standard_error(self.total))


@old_keywords(width="bin_width")
@torch.no_grad()
def bound(
    autoencoder: Autoencoder,
    predict: Predictor,
    schedule: Schedule,
    x: Float[Tensor, "b c h w"],
    cond: CondLike | None = None,
    *,
    residual: float,
    draws: int = 8,
    bin_width: float = 2 / 255,
    generator: Generator | None = None,
    times: torch.Generator | None = None,
) -> LatentBound:
    """The bound through both stages, in bits/dim of x.

    Args:
        autoencoder: the first stage.
        predict: the second stage, on latents at unit scale.
        schedule: of the second stage.
        x: images on the grid of their values, in [-1, 1].
        cond: conditions, one row an example.
        residual: mean absolute reconstruction error, which sets the scale of the logistic: `Measured.residual`.
        draws: diffusion times for each example, one from each of as many equal stretches.
        bin_width: distance of neighbouring values of x.
        generator: for latent and noise.
        times: generator for the times.

    Raises:
        ValueError: draws below 1, or a residual that is not positive.
    """
    if not 0 < residual < math.inf:
        raise ValueError(f"the residual must be positive, got {residual}.")
    scale, raw = float_of(autoencoder.scaling.scale), autoencoder.posterior(x)
    law = Normal((raw.mean - float_of(autoencoder.scaling.shift)) / scale, raw.log_variance - 2 * math.log(scale))
    z = law.sample(generator)
    image = autoencoder.decode(z, x.shape[2:])
    log_scale = torch.full_like(image, math.log(residual / (2 * math.log(2))))  # the mean absolute deviation of a logistic is 2 ln 2 scales
    pixels = -DiscretisedLogistic(bin_width=bin_width).log_prob(torch.cat([image, log_scale], 1), x)
    latent = density_bits(predict, z, schedule, cond, draws=draws, generator=generator, times=times) * z[0].numel() * math.log(2)
    given = law.log_prob(z).flatten(1).sum(1)
    return LatentBound(*(nats / (x[0].numel() * math.log(2)) for nats in (pixels, latent + given)))


@torch.no_grad()
def density_bits(
    predict: Predictor,
    z: Float[Tensor, "b *z"],
    schedule: Schedule,
    cond: CondLike | None = None,
    *,
    draws: int = 8,
    generator: Generator | None = None,
    times: torch.Generator | None = None,
) -> Float[Tensor, "b"]:
    """An upper bound on -log2 p(z), a density, over the entries of z, by the bound of variational diffusion for T → ∞.

    It can be negative, since densities can exceed one. Arguments as for `bound`.

    Raises:
        ValueError: draws below 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    first, last = (schedule.time(end.detach()) for end in finite_ends(schedule))
    clean, bits = schedule.level(first), prior_bits(z, schedule.level(last).to(z))
    share = float(last - first)
    for i in range(draws):
        t = first + share * (i + torch.rand(len(z), generator=times, dtype=torch.float64)) / draws
        bits = bits + share * loss.vdm(predict, z, normal_like(z, generator), t, schedule, cond).detach() / draws
    entropy = 0.5 * (1 + math.log(2 * math.pi) + 2 * float(clean.sigma.log() - clean.alpha.log()))
    return bits + entropy / math.log(2)
