"""Models with latents: variational autoencoders, hierarchical ones, diffusion as one of those, and diffusion in a latent space.

`vdm`, `autoencoder` and `diffusion` are separate modules: each has its own loss and bound.
"""

from sfumato.deprecated import old_names
from sfumato.latent import autoencoder, diffusion, vdm
from sfumato.latent.autoencoder import Autoencoder, load_diffusers
from sfumato.latent.bound import HasTrace, LatentDraw, LevelUse, Trace, bound, importance_bits, level_use, loss
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
    "HasTrace",
    "LadderVAE",
    "LatentDraw",
    "LatentModel",
    "LevelUse",
    "Likelihood",
    "Trace",
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

__getattr__ = old_names(__name__, Traces="HasTrace", Visit="LatentDraw")
