"""Sampling: the loop, the spacings of levels, the methods. `sfumato.sample(...)` is the loop itself."""

from sfumato.sample import spacing, steps
from sfumato.sample.loop import Step, sample
from sfumato.sample.spacing import Spacing, grid

__all__ = ["Spacing", "Step", "grid", "sample", "spacing", "steps"]
