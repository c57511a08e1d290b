"""Which features figures are of: those that are asked for, or by the form of the data."""

import math
from typing import Any

from sfumato.data.source import DataSpec
from sfumato.metrics.features import Features, load_features


def features_for(given: Any, spec: DataSpec) -> list[Features]:
    """The features that are asked for; by the form of the data where none are.

    Raises:
        ValueError: unknown ones, or ones that are not for such data.
    """
    several = list(given) if isinstance(given, list | tuple) else [given]
    if len(spec.shape) != 3:
        wrong = [each for each in several if isinstance(each, str) and each != "pixels"]
        if wrong:
            raise ValueError(f"{wrong[0]} are features of images, but the data are of shape {list(spec.shape)}; leave --features out.")
        own: list[Any] = [each for each in several if callable(each)]
        return [load_features(each) for each in own] or [load_features("pixels")]
    return [load_features(default_features(spec) if each is None else each) for each in several]


def default_features(spec: DataSpec) -> str:
    """Small images are compared as they are, grey ones of 28×28 by a network for these, others by one of ImageNet."""
    if len(spec.shape) != 3 or math.prod(spec.sizes) <= 256:
        return "pixels"
    return "grey28" if spec.sizes == (1, 28, 28) else "efficientnet-lite0"
