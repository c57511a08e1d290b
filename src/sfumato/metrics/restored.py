"""How near restored images are to the true ones, image by image."""

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike


def psnr(restored: ArrayLike, truth: ArrayLike, *, data_range: float | None = None) -> Float64[np.ndarray, "n"]:
    """10 log10(range² / mean squared error) of each image, in dB."""
    raise NotImplementedError


def ssim(restored: ArrayLike, truth: ArrayLike, *, data_range: float | None = None) -> Float64[np.ndarray, "n"]:
    """The structural similarity of each image."""
    raise NotImplementedError


def lpips(restored: ArrayLike, truth: ArrayLike, *, net: str = "stlpips-alex") -> Float64[np.ndarray, "n"]:
    """The learned perceptual distance of each pair of images."""
    raise NotImplementedError
