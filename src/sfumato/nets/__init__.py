"""Networks: each maps (x of unit scale, log_snr [b], cond) to a tensor of x's size, a classifier to one number a class."""

from sfumato.nets.dit import DiT
from sfumato.nets.mlp import MLP
from sfumato.nets.patch_classifier import PatchClassifier
from sfumato.nets.patch_unet import PatchUNet
from sfumato.nets.unet import UNet

__all__ = ["MLP", "DiT", "PatchClassifier", "PatchUNet", "UNet"]
