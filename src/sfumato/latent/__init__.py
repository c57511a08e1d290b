"""Models with latents: variational autoencoders, hierarchies of them, and diffusion as one of those."""

from sfumato.latent.bound import LevelUse, Trace, Traces, Visit, bound, importance_bits, level_use, loss
from sfumato.latent.chain import DiffusionVAE, as_hierarchical_vae
from sfumato.latent.hierarchical import LadderVAE
from sfumato.latent.likelihood import Bernoulli, DiscretisedLogistic, Gaussian, Likelihood
from sfumato.latent.vae import VAE, LatentModel, as_normal, interpolate, plane, reconstruct, sample
from sfumato.latent.vdm import VDM

__all__ = [
    "VAE",
    "VDM",
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
    "bound",
    "importance_bits",
    "interpolate",
    "level_use",
    "loss",
    "plane",
    "reconstruct",
    "sample",
]
