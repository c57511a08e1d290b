"""Kinds of model, one file each. Importing a file registers its kind in `sfumato.task.KINDS`."""

from sfumato.tasks.autoencoder import AutoencoderTask
from sfumato.tasks.classifier import ClassifierTask
from sfumato.tasks.diffusion import Diffusion
from sfumato.tasks.latent_diffusion import LatentDiffusion
from sfumato.tasks.upscale import Regression, Upscale
from sfumato.tasks.vae import VAETask
from sfumato.tasks.vdm import VDMTask

__all__ = ["AutoencoderTask", "ClassifierTask", "Diffusion", "LatentDiffusion", "Regression", "Upscale", "VAETask", "VDMTask"]
