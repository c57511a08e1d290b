"""Training: the one trainer for every kind of model, and what it is made of."""

from sfumato.training.ema import Ema
from sfumato.training.posthoc import reconstruct_ema
from sfumato.training.trainer import Callbacks, Stopped, train

__all__ = ["Callbacks", "Ema", "Stopped", "reconstruct_ema", "train"]
