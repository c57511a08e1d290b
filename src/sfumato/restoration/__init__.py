"""Restoration as posterior sampling: operators that damage, methods that draw x0 given y = H x0 + noise.

`restore(predict, y, operator, noise_std)` draws with any model that predicts x0, trained on clean data alone.
"""

from sfumato.restoration.estimate import estimate_noise
from sfumato.restoration.gibbs import SplitGibbs
from sfumato.restoration.guided import DPS, DiffPIR, PiGDM
from sfumato.restoration.matching import MomentMatching
from sfumato.restoration.observed import Draws, Method, Observed, default_levels
from sfumato.restoration.operators import (
    SVD,
    AveragePool,
    Bicubic,
    Blur,
    Composed,
    Function,
    Gaussian,
    Grey,
    Hadamard,
    Identity,
    Linear,
    Mask,
    Matrix,
    Operator,
)
from sfumato.restoration.restore import Restored, draw, observe, restore
from sfumato.restoration.smc import TwistedSMC
from sfumato.restoration.spectral import DDNM, DDRM, RePaint

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "SVD",
    "AveragePool",
    "Bicubic",
    "Blur",
    "Composed",
    "DiffPIR",
    "Draws",
    "Function",
    "Gaussian",
    "Grey",
    "Hadamard",
    "Identity",
    "Linear",
    "Mask",
    "Matrix",
    "Method",
    "MomentMatching",
    "Observed",
    "Operator",
    "PiGDM",
    "RePaint",
    "Restored",
    "SplitGibbs",
    "TwistedSMC",
    "default_levels",
    "draw",
    "estimate_noise",
    "observe",
    "restore",
]
