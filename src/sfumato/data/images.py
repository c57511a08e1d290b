"""Image files to one array: decoding what nobody has checked, one shape for all, the broken ones named.

Images are turned as their EXIF tag says; 16 bits a channel become 8; colour profiles are ignored. Of an animation the first frame counts.
Nothing but Pillow's decoders of the formats below sees the bytes, and they see no file of more than 256 MiB or 89 million pixels.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Named, as Pillow would otherwise try every format it knows, PostScript with its interpreter among them.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# What Pillow's decoders are known to raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, BadZipFile, IndexError, KeyError, TypeError,
    OverflowError, RuntimeError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What every image is made into.

    Args:
        size: pixels, (height, width) or the side of a square. None: all images must have one size.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA). None: grey if all images are grey, else RGB; transparency is laid on white.
        fit: how an image of another aspect comes to the size, antialiased: "crop" scales it until it just covers the size and cuts out
            the centre, "pad" until it just fits inside and lays it on white (transparent in RGBA), "stretch" by two factors.

    Raises:
        ValueError: for options out of range, or a fit without a size.
    """

    size: int | tuple[int, int] | None = None
    channels: int | None = None
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        """Refuses what no image could be made into."""
        if self.channels not in (1, 3, 4, None):
            raise ValueError(f"channels must be 1 (grey), 3 (RGB), 4 (RGBA) or None (as the images are), got {self.channels}.")
        if self.size is not None and min(self._height_width(self.size)) < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}.")
        if self.fit not in ("crop", "pad", "stretch"):
            raise ValueError(f"fit must be crop, pad or stretch, got {self.fit!r}.")
        if self.size is None and self.fit != "crop":
            raise ValueError(f"fit={self.fit} needs a size to fit the images to; set size.")

    @staticmethod
    def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
        return (size, size) if isinstance(size, int) else size

    def paint(self, data: bytes) -> UInt8[np.ndarray, "h w *c"]:
        """The pixels of an image file: [h, w] where it is grey and no other channels are asked for, else [h, w, c].

        Raises:
            BrokenImageError: for bytes that cannot be read as an image.
        """
        try:
            with warnings.catch_warnings():
                # Pillow warns of images past its pixel limit and refuses them past twice that: both are refused here.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(BytesIO(data), formats=_FORMATS) as image:
                    image.load()
                    picture = self._in_channels(ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise BrokenImageError(_reason(error)) from None
        return np.array(picture if self.size is None else self._fitted(picture, *self._height_width(self.size)))

    def _in_channels(self, image: Image.Image) -> Image.Image:
        """Mode L, RGB or RGBA of any mode."""
        if image.mode.startswith("I"):
            image = _grey_of_16_bits(image)
        if image.mode == "F":
            raise ValueError("pixels of 32-bit floats have no agreed range")
        if self.channels == 4:
            return image.convert("RGBA")
        opaque = _on_white(image)
        return opaque if self.channels is None else opaque.convert("L" if self.channels == 1 else "RGB")

    def _fitted(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """The image at this size."""
        if image.size == (width, height):
            return image
        if self.fit == "pad":
            scale = min(width / image.width, height / image.height)
            inner = max(1, round(scale * image.width)), max(1, round(scale * image.height))
            canvas = Image.new(image.mode, (width, height), (255, 255, 255, 0) if image.mode == "RGBA" else "white")
            canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), ((width - inner[0]) // 2, (height - inner[1]) // 2))
            return canvas
        box = (0.0, 0.0, float(image.width), float(image.height))
        if self.fit == "crop":
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


class BrokenImageError(Exception):
    """Why an image cannot be read."""


def _reason(error: Exception) -> str:
    # Pillow's own sentence ends in the address of a buffer, which differs from run to run.
    reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error).strip(".")
    return reason or type(error).__name__


def _on_white(image: Image.Image) -> Image.Image:
    """Mode L or RGB, on white where it is transparent; grey where all its colours are."""
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


@dataclass(frozen=True)
class Picture:
    """An image to be read: what to call it in a sentence, and its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Gathered:
    """The images that could be read, which of all they were, and why the others could not."""

    values: np.ndarray
    kept: list[int]
    skipped: tuple[str, ...]


def gather(pictures: Iterable[Picture], canvas: Canvas, *, limit: int, source: str, into: BufferedIOBase | None = None) -> Gathered:
    """All images in one uint8 array [n, h, w, c], written to `into` as .npy while they are read, or held in memory.

    Args:
        limit: how many broken images are left out before it is an error.
        source: what to call all of them in an error.

    Raises:
        ValueError: for too many broken images, none at all, or images of several sizes where the canvas has none.
    """
    rows, kept, skipped, first = _Rows(BytesIO() if into is None else into), [], [], ""
    for number, picture in enumerate(pictures):
        try:
            image = canvas.paint(_bytes(picture))
        except BrokenImageError as broken:
            skipped.append(f"{picture.name}: {broken}")
            if len(skipped) > limit:
                raise ValueError(
                    f"{source}: at most {limit} broken images are left out, got more: {_some(skipped)}; "
                    "repair or remove them, or raise limit_broken."
                ) from None
            continue
        if kept and image.shape[:2] != rows.size:
            (h, w), (other_h, other_w) = rows.size, image.shape[:2]
            raise ValueError(
                f"{source}: images must have one size, got {w}×{h} in {first} and {other_w}×{other_h} in {picture.name}; "
                "set size to fit them all to one."
            )
        first = first or picture.name
        rows.append(image)
        kept.append(number)
    if not kept:
        raise ValueError(f"{source}: none of its {len(skipped)} images can be read: {_some(skipped)}; repair or replace them.")
    return Gathered(rows.close(), kept, tuple(skipped))


def broken_limit(limit: int | None, count: int) -> int:
    """How many of `count` images may be broken: by default a hundredth of them, at least 1.

    Raises:
        ValueError: for a negative limit.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit_broken must be 0 or more files, got {limit}.")
    return max(1, count // 100) if limit is None else limit


def _bytes(picture: Picture) -> bytes:
    try:
        return picture.read()
    except _DAMAGE as error:
        raise BrokenImageError(_reason(error)) from None


def _some(lines: list[str], most: int = 5) -> str:
    """The first few lines, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


class _Rows:
    """Images written one behind the other as .npy: with one channel until the first that has more, whose channels all then get."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.count, self.size, self.channels, self.start = file, 0, (0, 0), 0, 0

    def append(self, image: np.ndarray) -> None:
        """Writes a row; all have the size of the first."""
        channels = 1 if image.ndim == 2 else image.shape[2]
        if not self.count:
            self.size, self.channels = image.shape[:2], channels
            self._write_header()
        if channels > self.channels:
            self._widen(channels)
        elif channels < self.channels:
            image = np.repeat(image[..., None], self.channels, axis=2)
        self.file.write(image.tobytes())
        self.count += 1

    def close(self) -> np.ndarray:
        """Completes the file; the rows as an array on it."""
        self._write_header()
        self.file.flush()
        shape = (self.count, *self.size, self.channels)
        if isinstance(self.file, BytesIO):
            return np.frombuffer(self.file.getbuffer(), np.uint8, offset=self.start).reshape(shape)
        return np.memmap(self.file, np.uint8, "r", self.start, shape)

    def _write_header(self) -> None:
        """NumPy leaves room for the number of rows to grow, so the header keeps its length."""
        self.file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.size, self.channels)}
        np.lib.format.write_array_header_1_0(self.file, header)
        assert self.start in (0, self.file.tell())
        self.start = self.file.tell()

    def _widen(self, channels: int) -> None:
        """Repeats the grey levels of all rows so far, from the last to the first, which are then read before they are written over."""
        pixels = self.size[0] * self.size[1]
        for row in reversed(range(self.count)):
            self.file.seek(self.start + row * pixels)
            grey = np.frombuffer(self.file.read(pixels), np.uint8)
            self.file.seek(self.start + row * pixels * channels)
            self.file.write(np.repeat(grey, channels).tobytes())
        self.channels = channels
        self.file.seek(0, 2)
