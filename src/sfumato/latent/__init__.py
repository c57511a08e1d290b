"""Models with latents: variational autoencoders, hierarchies of them, diffusion as one of those, and diffusion in a latent space.

`vdm`, `autoencoder` and `diffusion` are modules of their own: each has a loss and a bound of its own.
"""

from sfumato.latent import autoencoder, diffusion, vdm
from sfumato.latent.autoencoder import Autoencoder, load_diffusers
from sfumato.latent.bound import LevelUse, Trace, Traces, Visit, bound, importance_bits, level_use, loss
from sfumato.latent.chain import DiffusionVAE, as_hierarchical_vae
from sfumato.latent.hierarchical import LadderVAE
from sfumato.latent.likelihood import Bernoulli, DiscretisedLogistic, Gaussian, Likelihood
from sfumato.latent.vae import VAE, LatentModel, as_normal, interpolate, plane, reconstruct, sample
from sfumato.latent.vdm import VDM

__all__ = [
    "VAE",
    "VDM",
    "Autoencoder",
    "Bernoulli",
    "DiffusionVAE",
    "DiscretisedLogistic",
    "Gaussian",
    "LadderVAE",
    "LatentModel",
    "LevelUse",
    "Likelihood",
    "Trace",
    "Traces",
    "Visit",
    "as_hierarchical_vae",
    "as_normal",
    "autoencoder",
    "bound",
    "diffusion",
    "importance_bits",
    "interpolate",
    "level_use",
    "load_diffusers",
    "loss",
    "plane",
    "reconstruct",
    "sample",
    "vdm",
]
