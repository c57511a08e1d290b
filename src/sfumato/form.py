"""The form of data: all that a model needs to know of what it was trained on."""

from dataclasses import dataclass
from typing import Any

from sfumato.data import Dataset, Scaling


@dataclass(frozen=True)
class Form:
    """What the data of a run look like: all that a model needs to know of them, kept in its manifest.

    Args:
        shape: of one x0.
        classes: names of the labels.
        scaling: between values and x0.
        data_std: standard deviation of all entries of x0.
        columns: names of the features of a table; () for other data.
        label: the name of a table's column of labels.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    scaling: Scaling
    data_std: float
    columns: tuple[str, ...] = ()
    label: str = "label"

    @classmethod
    def of(cls, dataset: Dataset, data_std: float) -> "Form":
        """Of a data set."""
        return cls(dataset.shape, dataset.classes, dataset.scaling, data_std, dataset.columns, dataset.label)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "shape": list(self.shape),
            "classes": list(self.classes),
            "scaling": self.scaling.to_json(),
            "data_std": self.data_std,
            "columns": list(self.columns),
            "label": self.label,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Form":
        """From `to_json`; earlier versions wrote no columns."""
        shape, classes = tuple(map(int, record["shape"])), tuple(map(str, record["classes"]))
        columns, label = tuple(map(str, record.get("columns", ()))), str(record.get("label", "label"))
        return cls(shape, classes, Scaling.from_json(record["scaling"]), float(record["data_std"]), columns, label)

    @property
    def has_picture(self) -> bool:
        """Whether samples can be drawn: images, and points in the plane."""
        return self.is_image or self.shape == (2,)

    @property
    def is_image(self) -> bool:
        """Whether a sample is an image, of 8 or 16 bits."""
        return len(self.shape) == 3 and self.scaling.is_integer

    @property
    def is_bytes(self) -> bool:
        """Whether it is an image of 8 bits, whose x0 lie on a grid in [-1, 1]."""
        return self.is_image and self.scaling.dtype == "uint8"
