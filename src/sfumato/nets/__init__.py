"""Networks: each maps (x of unit scale, log_snr [b], cond) to a tensor of x's size; a classifier returns one number a class.

Those of `autoencoder` take no level: an encoder maps data to the parameters of a latent's law, a decoder maps a latent to those of the
data's.
"""

from sfumato.nets.autoencoder import Fourier, FromVector, ImageDecoder, ImageEncoder, Ladder, Layout, PatchCritic, Perceptron, ToVector
from sfumato.nets.dit import DiT
from sfumato.nets.mlp import MLP
from sfumato.nets.patch_classifier import PatchClassifier
from sfumato.nets.patch_unet import PatchUNet
from sfumato.nets.unet import UNet, UNetLayout

__all__ = [
    "MLP",
    "DiT",
    "Fourier",
    "FromVector",
    "ImageDecoder",
    "ImageEncoder",
    "Ladder",
    "Layout",
    "PatchClassifier",
    "PatchCritic",
    "PatchUNet",
    "Perceptron",
    "ToVector",
    "UNet",
    "UNetLayout",
]
