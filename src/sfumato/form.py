"""The form of data: all that a model needs to know of what it was trained on."""

from dataclasses import dataclass
from typing import Any

from sfumato.data import Scaling


@dataclass(frozen=True)
class Form:
    """What the data of a run look like: all that a model needs to know of them, kept in its manifest."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    scaling: Scaling
    data_std: float

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "shape": list(self.shape),
            "classes": list(self.classes),
            "scaling": self.scaling.to_json(),
            "data_std": self.data_std,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Form":
        """From `to_json`."""
        shape, classes = tuple(map(int, record["shape"])), tuple(map(str, record["classes"]))
        return cls(shape, classes, Scaling.from_json(record["scaling"]), float(record["data_std"]))

    @property
    def has_picture(self) -> bool:
        """Whether samples can be drawn: images, and points in the plane."""
        return self.is_image or self.shape == (2,)

    @property
    def is_image(self) -> bool:
        """Whether a sample is an image of bytes."""
        return len(self.shape) == 3 and self.scaling.dtype == "uint8"
