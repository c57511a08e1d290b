"""Loads models of other libraries and exports ours to them. Weights are equal to the bit.

Our networks take the log-SNR; theirs take the index of a step of their chain. So a converted network has `TimestepSinusoids` (or
`LearnedTimesteps`) as its features: they turn a log-SNR into the step index of its chain, fractional between two steps.
"""

from sfumato.convert.diffusers import load_diffusers, save_diffusers
from sfumato.convert.openai import load_openai, openai_weights

__all__ = ["load_diffusers", "load_openai", "openai_weights", "save_diffusers"]
