"""Image files on the disk, before a loader converts them: their sizes, their transparency."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from sfumato.data.files import MOST_BYTES, read_whole
from sfumato.data.images import SUFFIXES

MOST = 500  # files opened: enough to know shares to a few percent
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One image file.

    Args:
        is_transparent: whether some of its pixels are transparent.
    """

    name: str
    width: int
    height: int
    is_transparent: bool


def pictures(path: Path) -> Sequence[Picture]:
    """Up to `MOST` images of a folder or a .zip, evenly spaced over their names; broken ones are left to the loader."""
    return [found for name, content in _contents(path) if (found := _look(name, content)) is not None]


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        yield from ((str(file.relative_to(path)), read_whole(file)) for file in _evenly(files) if file.stat().st_size < MOST_BYTES)
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [
                info for info in archive.infolist() if Path(info.filename).suffix.lower() in SUFFIXES and info.file_size < MOST_BYTES
            ]
            yield from ((info.filename, archive.read(info)) for info in _evenly(members))


def _evenly(things: Sequence[T]) -> Sequence[T]:
    return [things[i * len(things) // MOST] for i in range(MOST)] if len(things) > MOST else things


def _look(name: str, content: bytes) -> Picture | None:
    try:
        with Image.open(BytesIO(content)) as image:
            transparent = image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())
            return Picture(name, image.width, image.height, transparent)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
