"""Sampling: the loop, the spacings of levels, the methods. `sfumato.sampling(...)` is the loop itself."""

from sfumato.sampling import spacing, steps
from sfumato.sampling.flow import FlowResult, flow
from sfumato.sampling.loop import SamplingState, Step, progressive, sample
from sfumato.sampling.path import encode_decode, interpolate, invert, slerp
from sfumato.sampling.spacing import Spacing, grid

__all__ = [
    "FlowResult",
    "SamplingState",
    "Spacing",
    "Step",
    "encode_decode",
    "flow",
    "grid",
    "interpolate",
    "invert",
    "progressive",
    "sample",
    "slerp",
    "spacing",
    "steps",
]
