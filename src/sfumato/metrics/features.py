"""Features: what a set of samples is turned into before it is measured. A figure is named after them, as in `fd@grey28`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Shaped


@runtime_checkable
class Features(Protocol):
    """A function from samples to rows of numbers, with what a manifest says of it."""

    @property
    def name(self) -> str:
        """As in the name of a figure."""
        ...

    @property
    def sha256(self) -> str:
        """Of what the numbers depend on: weights, and the name and arithmetic where there are none."""
        ...

    @property
    def dim(self) -> int:
        """Numbers a sample; 0 where it depends on the samples."""
        ...

    @property
    def resize(self) -> str:
        """Which filter images are resized with, in words; "none" where they are not."""
        ...

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float[np.ndarray, "n d"]:
        """Features of uint8 images [n, h, w, c], or of x0 [n, *x] in [-1, 1] (images [n, c, h, w]).

        Raises:
            ValueError: values that are not finite or out of range, or channels or sizes that these features cannot take.
        """
        ...


@dataclass(frozen=True)
class Pixels:
    """x0 in [-1, 1], flattened in the order of x (channels first)."""

    name: str = "pixels"
    sha256: str = hashlib.sha256(b"pixels: x0 in [-1, 1], flattened, channels first").hexdigest()
    dim: int = 0
    resize: str = "none"

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float64[np.ndarray, "n d"]:
        """The numbers of each sample, in float64."""
        return as_x0(images).reshape(len(images), -1)


@dataclass(frozen=True)
class Own:
    """A function of the user's, which is given the samples as they are.

    Args:
        function: samples to rows of numbers.
        name: as in the name of a figure.
        sha256: of its weights; the name's, where the user gave none.
    """

    function: Callable[[np.ndarray], np.ndarray]
    name: str
    sha256: str
    dim: int = 0
    resize: str = "as the function does"

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float[np.ndarray, "n d"]:
        """What the function says.

        Raises:
            ValueError: not one row of numbers a sample.
        """
        rows = np.asarray(self.function(images))
        if rows.ndim != 2 or len(rows) != len(images) or not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(f"{self.name} must give floats [{len(images)}, d], got {rows.dtype} of shape {rows.shape}.")
        return rows


def as_x0(images: np.ndarray) -> Float64[np.ndarray, "n *x"]:
    """Samples as x0: bytes [n, h, w, c] become [n, c, h, w] in [-1, 1], byte 0 at -1 and 255 at 1; floats are x0 already.

    Raises:
        ValueError: values that are not finite, bytes that are no images, or another type.
    """
    if images.dtype == np.uint8:
        if images.ndim != 4:
            raise ValueError(f"bytes must be images [n, h, w, c], got shape {images.shape}.")
        return np.moveaxis(images, 3, 1) / 127.5 - 1
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"samples must be bytes [n, h, w, c] or floats in [-1, 1], got {images.dtype}.")
    if not np.isfinite(images).all():
        bad = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
        raise ValueError(f"samples must be finite, got NaN or infinity in {bad.sum()} of {len(images)} (first: {int(bad.argmax())}).")
    return images.astype(np.float64)


def load_features(
    name: str | Path | Callable[[np.ndarray], np.ndarray], *, sha256: str | None = None, own_name: str = "own", resize_to: int | None = None
) -> Features:
    """The features of a name: "pixels", "grey28", "efficientnet-lite0", "stlpips-vgg", "stlpips-alex", "inception:PATH", or a callable.

    Args:
        name: which, or a function of the samples that is given them as they are.
        sha256: what it must be; of a callable, the hash of its weights, if it has any.
        own_name: the name of a callable.
        resize_to: the side that images are resized to before the network sees them; by default the features' own.

    Raises:
        ValueError: an unknown name, a package or file that is missing, or another sha256.
    """
    if callable(name):
        return Own(name, own_name, sha256 or hashlib.sha256(own_name.encode()).hexdigest())
    if name != "pixels":
        raise ValueError(f'there are no features "{name}"; there are pixels, or a function.')
    found = Pixels()
    if sha256 is not None and sha256 != found.sha256:
        raise ValueError(f"{name} must have sha256 {sha256[:16]}…, got {found.sha256[:16]}…; figures of other features cannot be compared.")
    return found
