"""How near restored images are to the true ones, image by image.

Images are bytes [n, h, w, c], whose range is 255, or floats [n, c, h, w], which are x0 in [-1, 1] where no other range is given.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Float64
from torch import Tensor

from sfumato.metrics import stlpips
from sfumato.metrics.features import CHUNK, as_x0, stlpips_weights
from sfumato.runtime import compute_device

RANGE = 2.0  # of x0, and of bytes as x0


def psnr(restored: np.ndarray, truth: np.ndarray, *, data_range: float = RANGE) -> Float64[np.ndarray, "n"]:
    """10 log10(range² / mean squared error) of each image, in dB; infinite where it is the true one.

    Args:
        restored: n images.
        truth: the true ones.
        data_range: from the least to the greatest value of floats, which lie about 0.

    Raises:
        ValueError: sets of other shapes or types, or values that are not finite.
    """
    x, y = _images(restored, truth)
    error = np.square(x - y).reshape(len(x), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / error)


def ssim(restored: np.ndarray, truth: np.ndarray, *, data_range: float = RANGE) -> Float64[np.ndarray, "n"]:
    """The structural similarity of each image: the mean over windows and channels, 1 where it is the true one.

    Windows are 11×11 Gaussian with a standard deviation of 1.5, whole ones only; K = (0.01, 0.03).

    Args:
        restored: n images.
        truth: the true ones.
        data_range: as of `psnr`.

    Raises:
        ValueError: as `psnr`, or images smaller than a window.

    Reference:
        Wang et al. (2004), eq. 13 and section III.C, doi:10.1109/TIP.2003.819861
    """
    x, y = _images(restored, truth)
    if min(x.shape[2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11×11, the size of its windows, got {x.shape[2]}×{x.shape[3]}.")
    weights = torch.exp(-torch.arange(-5, 6, dtype=torch.float64).square() / (2 * 1.5**2))
    weights /= weights.sum()

    def local(values: Tensor) -> Tensor:
        planes = values.reshape(-1, 1, *values.shape[2:])
        return F.conv2d(F.conv2d(planes, weights.view(1, 1, 11, 1)), weights.view(1, 1, 1, 11))

    def of_chunk(a: Tensor, b: Tensor) -> Tensor:
        mean_a, mean_b = local(a), local(b)
        var_a, var_b, shared = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        windows = (2 * mean_a * mean_b + c1) * (2 * shared + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        return windows.reshape(len(a), -1).mean(dim=1)

    least = data_range / 2  # luminance compares means of values from 0 on
    return _by_chunks(of_chunk, x + least, y + least)


def lpips(restored: np.ndarray, truth: np.ndarray, *, net: str = "stlpips-alex") -> Float32[np.ndarray, "n"]:
    """The learned perceptual distance of each image from the true one, with the shift-tolerant weights of `net`; 0 where they are equal.

    A grey image is seen as three equal channels.

    Args:
        restored: n images.
        truth: the true ones.
        net: "stlpips-alex" or "stlpips-vgg".

    Raises:
        ValueError: as `psnr`, images smaller than 16×16 or of another number of channels, or a package that is missing.

    Reference:
        Ghildyal & Liu (2022), arXiv:2207.13686
    """
    x, y = _images(restored, truth)
    if x.shape[1] not in (1, 3) or min(x.shape[2:]) < stlpips.LEAST:
        raise ValueError(f"LPIPS takes images of one or three channels and at least {stlpips.LEAST}×{stlpips.LEAST}, got {x.shape[1:]}.")
    device = compute_device()
    weights = stlpips_weights(net, device)

    def of_chunk(a: Tensor, b: Tensor) -> Tensor:
        first, second = (part.to(device, torch.float32).expand(-1, 3, -1, -1) for part in (a, b))
        return stlpips.distance(weights, first, second).cpu()

    return _by_chunks(of_chunk, x, y)


def _images(restored: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as x0, [n, c, h, w]."""
    if restored.shape != truth.shape or restored.dtype != truth.dtype:
        raise ValueError(f"both sets must be of one shape and type, got {restored.dtype} {restored.shape} and {truth.dtype} {truth.shape}.")
    x, y = as_x0(restored), as_x0(truth)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"images are [n, h, w, c] bytes or x0 [n, c, h, w], got shape {restored.shape}.")
    return x, y


@torch.no_grad()
def _by_chunks(f: Callable[[Tensor, Tensor], Tensor], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    parts = [(torch.from_numpy(x[i : i + CHUNK]), torch.from_numpy(y[i : i + CHUNK])) for i in range(0, len(x), CHUNK)]
    return torch.cat([f(*part) for part in parts]).numpy()
