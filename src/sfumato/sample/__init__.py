"""Sampling: the loop, the spacings of levels, the methods. `sfumato.sample(...)` is the loop itself."""

from sfumato.sample import spacing, steps
from sfumato.sample.flow import Flowed, flow
from sfumato.sample.loop import Moment, Step, progressive, sample
from sfumato.sample.path import encode_decode, interpolate, invert, slerp
from sfumato.sample.spacing import Spacing, grid

__all__ = [
    "Flowed",
    "Moment",
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
