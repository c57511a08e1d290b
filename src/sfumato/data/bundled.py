"""Data that need no path: 10,000 Fashion-MNIST images in this package, and scikit-learn's digits."""

from importlib import resources

import numpy as np

from sfumato.data.dataset import Dataset
from sfumato.data.fashion import FASHION_CLASSES
from sfumato.data.scaling import IMAGES


def fashion_small() -> Dataset:
    """The first 10,000 training images of Fashion-MNIST with their labels; their licence is FASHION-MNIST-LICENSE in this folder."""
    with resources.files("sfumato.data").joinpath("fashion10k.npz").open("rb") as file, np.load(file) as arrays:
        values, labels = arrays["values"], arrays["labels"]
    return Dataset(values=values, labels=labels, classes=FASHION_CLASSES, scaling=IMAGES, name="fashion-small")


def digits() -> Dataset:
    """1,797 handwritten digits at 8×8, with 17 grey levels 0 ... 16 spread over 0 ... 255. Alpaydin & Kaynak (1998), UCI."""
    # scikit-learn takes half a second to load, which the other data should not pay.
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    values = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    classes = tuple(map(str, range(10)))
    return Dataset(values=values, labels=labels.astype(np.int64), classes=classes, scaling=IMAGES, name="digits")
