"""Models of other libraries as ours, and ours as theirs: the same network, to the bit of its weights.

A network here takes the log-SNR; theirs take the number of a step of their chain. So a converted network has `TimestepSinusoids` (or `LearnedTimesteps`) of its
chain's log-SNRs for features: it finds the step that it is at by itself, and may be asked between two of them.
"""

from sfumato.convert.diffusers import load_diffusers, save_diffusers
from sfumato.convert.openai import load_openai, openai_weights

__all__ = ["load_diffusers", "load_openai", "openai_weights", "save_diffusers"]
