"""Data that need no path, as they lie in this package: 10,000 Fashion-MNIST images, and 1,797 digits."""

from importlib import resources

import numpy as np

from sfumato.data.dataset import Dataset
from sfumato.data.fashion import FASHION_CLASSES
from sfumato.data.scaling import IMAGES


def fashion_small() -> Dataset:
    """The first 10,000 training images of Fashion-MNIST with their labels; their licence is FASHION-MNIST-LICENSE in this folder."""
    values, labels = _read("fashion10k.npz")
    return Dataset(values=values, labels=labels, classes=FASHION_CLASSES, scaling=IMAGES, name="fashion-small")


def digits() -> Dataset:
    """1,797 handwritten digits at 8×8, with 17 grey levels 0 ... 16 spread over 0 ... 255, in scikit-learn's order.

    The test set of the UCI optical digits, Alpaydin & Kaynak (1998), doi:10.24432/C50P49; the licence is DIGITS-LICENSE in this folder.
    """
    levels, labels = _read("digits.npz")
    values = np.round(levels[..., None] * (255 / 16)).astype(np.uint8)
    return Dataset(values=values, labels=labels.astype(np.int64), classes=tuple("0123456789"), scaling=IMAGES, name="digits")


def _read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of a file in this folder."""
    with resources.files("sfumato.data").joinpath(name).open("rb") as file, np.load(file) as arrays:
        return arrays["values"], arrays["labels"]
