"""Images in a folder or a .zip of one: the class of an image is the name of the folder that it lies in.

So `root/cat/1.png` and `root/train/cat/1.png` are both of class "cat"; images that all lie in folders of one name have no labels.
"""

import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato.data.dataset import IMAGES, Dataset

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Named, as Pillow would otherwise try every format it knows, PostScript with its interpreter among them.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# What Pillow's decoders are known to raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile, IndexError, KeyError, TypeError,
    OverflowError, RuntimeError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class _Source:
    """Names of the images, sorted, and how to read the bytes of one."""

    names: list[PurePosixPath]
    read: Callable[[PurePosixPath], bytes]


def folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    labels: bool = True,
    limit_broken: int | None = None,
) -> Dataset:
    """The PNG, JPEG, WebP, BMP, GIF (first frame) and TIFF images under a folder, or in a .zip, which is read in place.

    Images are turned as their EXIF tag says, transparency is laid on white, 16-bit grey is scaled to 8 bits, colour profiles are
    ignored. Files are taken in the order of their names; hidden ones and those of other types are left out.

    Args:
        size: pixels, (height, width) or the side of a square: the image is scaled, with antialiasing, until it just covers the
            size, and its centre is cut out. None: all images must have one size.
        channels: 1 (grey) or 3 (RGB). None: grey if all images are grey, else RGB.
        labels: False to ignore the names of the subfolders.
        limit_broken: how many unreadable images are left out, and named in `Dataset.skipped`, before it is an error; by default
            a hundredth of the files, at least 1.

    Raises:
        ValueError: for a missing or empty folder, too many broken images, images of several sizes without `size`, images beside
            class folders, and options out of range.
    """
    if channels not in (1, 3, None):
        raise ValueError(f"channels must be 1 (grey), 3 (RGB) or None (as the images are), got {channels}.")
    wanted = (size, size) if isinstance(size, int) else size
    if wanted is not None and min(wanted) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}.")
    if limit_broken is not None and limit_broken < 0:
        raise ValueError(f"limit_broken must be 0 or more files, got {limit_broken}.")
    with _open(Path(path)) as source:
        if not source.names:
            raise ValueError(f"{path} must hold images ({', '.join(sorted(_SUFFIXES))}), got none; check the path.")
        has_labels = labels and _has_classes(source.names, path)
        limit = max(1, len(source.names) // 100) if limit_broken is None else limit_broken
        names, images, skipped = _read_all(source, wanted, channels, limit, path)
    values = _stack(images, 1 if all(image.ndim == 2 for image in images) else 3)
    classes = tuple(sorted({name.parent.name for name in names})) if has_labels else ()
    numbers = _class_numbers(names, classes) if has_labels else None
    return Dataset(values=values, labels=numbers, classes=classes, scaling=IMAGES, name=Path(path).resolve().stem, skipped=tuple(skipped))


def _class_numbers(names: list[PurePosixPath], classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """The place of each image's folder among the classes."""
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name.parent.name] for name in names], dtype=np.int64)


def _stack(images: list[np.ndarray], channels: int) -> UInt8[np.ndarray, "n h w c"]:
    """One array of all images; empties the list on the way, so that the images are not held twice."""
    values = np.empty((len(images), *images[0].shape[:2], channels), dtype=np.uint8)
    for i in reversed(range(len(values))):
        image = images.pop()
        values[i] = image[..., None] if image.ndim == 2 else image
    return values


def _read_all(
    source: _Source, size: tuple[int, int] | None, channels: int | None, limit: int, path: str | Path
) -> tuple[list[PurePosixPath], list[np.ndarray], list[str]]:
    """Names and pixels of the images that can be read, and why the others cannot."""
    names: list[PurePosixPath] = []
    images: list[np.ndarray] = []
    skipped: list[str] = []
    for name in source.names:
        try:
            picture = _decode(source, name)
        except _BrokenImageError as broken:
            skipped.append(f"{name}: {broken}")
            if len(skipped) > limit:
                raise ValueError(
                    f"{path}: at most {limit} broken images are left out, got more: {_some(skipped)}; "
                    "repair or remove them, or raise limit_broken."
                ) from None
            continue
        if channels is not None:
            picture = picture.convert("L" if channels == 1 else "RGB")
        image = np.array(picture if size is None else _cover(picture, size))
        if images and image.shape[:2] != images[0].shape[:2]:
            (h, w), (other_h, other_w) = images[0].shape[:2], image.shape[:2]
            raise ValueError(
                f"{path}: images must have one size, got {w}×{h} in {names[0]} and {other_w}×{other_h} in {name}; "
                "set size to scale and crop them all."
            )
        names.append(name)
        images.append(image)
    if not images:
        raise ValueError(f"{path}: none of its {len(skipped)} images can be read: {_some(skipped)}; repair or replace them.")
    return names, images, skipped


def _some(lines: list[str], most: int = 5) -> str:
    """The first few lines, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def _has_classes(names: list[PurePosixPath], path: str | Path) -> bool:
    """Whether the folders tell images apart."""
    folders = {name.parent for name in names}
    inner = {folder: ancestor for folder in folders for ancestor in folder.parents if ancestor in folders}
    if inner:
        below, above = min(inner.items())
        raise ValueError(
            f"{path}: images must lie either in class folders or in one folder, got some in {above} and some in {below} below it; "
            "move them, or set labels=False."
        )
    return len({folder.name for folder in folders}) > 1


class _BrokenImageError(Exception):
    """Why an image cannot be read."""


def _decode(source: _Source, name: PurePosixPath) -> Image.Image:
    """The image, upright, opaque and in mode L or RGB."""
    try:
        data = source.read(name)
        with warnings.catch_warnings():
            # Pillow warns of images past its pixel limit and refuses them past twice that: both are refused here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                image.load()
                return _plain(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        # Pillow's own sentence ends in the address of a buffer, which differs from run to run.
        reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error).strip(".")
        raise _BrokenImageError(reason or type(error).__name__) from None


def _plain(image: Image.Image) -> Image.Image:
    """Mode L or RGB of any mode, on white where it is transparent."""
    if image.mode.startswith("I"):
        return _grey_of_16_bits(image)
    if image.mode == "F":
        raise ValueError("pixels of 32-bit floats have no agreed range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        opaque = image.convert("RGB")
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA"):
        # GIF and palette PNG have no grey mode, so the colours themselves must tell.
        pixels = np.asarray(opaque)
        is_grey = bool((pixels == pixels[..., :1]).all())
    return opaque.convert("L") if is_grey else opaque


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """0 ... 65535 scaled to 0 ... 255; Pillow's own conversion would clip."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"grey levels must be 0 to 65535, got {pixels.min()} to {pixels.max()}")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of the image at (height, width), scaled until it just covers it."""
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _is_image(name: PurePosixPath) -> bool:
    """Whether the name is that of a visible image file."""
    return name.suffix.lower() in _SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in name.parts if part != "..")


@contextmanager
def _open(path: Path) -> Iterator[_Source]:
    """The images of a folder or of a .zip."""
    if path.is_dir():
        yield _Source(sorted(filter(_is_image, _walk(path))), lambda name: _read_file(path / name))
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            archive = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise ValueError(f"cannot read {path} as a .zip: {error}; get it again.") from None
        with archive:
            members = {PurePosixPath(info.filename): info for info in archive.infolist() if not info.filename.endswith("/")}
            yield _Source(sorted(filter(_is_image, members)), lambda name: _read_member(archive, members[name]))
    elif path.exists():
        raise ValueError(f"{path} must be a folder or a .zip of images, got another file.")
    else:
        raise ValueError(f"{path} must be a folder or a .zip of images, got no such path; check the spelling.")


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """Files under the folder by their relative names; links to folders are followed, but none twice."""
    seen = set()
    for where, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        yield from (PurePosixPath((Path(where) / file).relative_to(root).as_posix()) for file in files)


def _refuse(error: OSError) -> None:
    """Stops where os.walk would leave a folder out in silence."""
    raise ValueError(f"cannot read {error.filename}: {error.strerror}; change its permissions or move it away.")


def _read_file(path: Path) -> bytes:
    """The bytes of an image file."""
    _check_bytes(path.stat().st_size)
    return path.read_bytes()


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of an image in an archive; nothing is ever written to the disk."""
    name = PurePosixPath(info.filename)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError("its name points outside the archive")
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    _check_bytes(info.file_size)
    return archive.read(info)


def _check_bytes(count: int) -> None:
    """Refuses a file that would fill the memory before Pillow sees its header."""
    if count > _MOST_BYTES:
        raise ValueError(f"an image file may have {_MOST_BYTES} bytes, got {count}")
