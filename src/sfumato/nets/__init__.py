"""Networks: each maps (x of unit scale, log_snr [b], cond) to a tensor of x's size."""

from sfumato.nets.dit import DiT
from sfumato.nets.mlp import MLP
from sfumato.nets.patch_unet import PatchUNet
from sfumato.nets.unet import UNet

__all__ = ["MLP", "DiT", "PatchUNet", "UNet"]
