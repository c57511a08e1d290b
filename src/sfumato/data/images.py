"""Decodes untrusted image files into one array: one shape for all; broken ones are listed.

Images are rotated as their EXIF tag says; colour profiles are ignored. Of an animation the first frame is used. Grey images and PNGs of
16 bits a channel keep 16 bits, and other images with them are then scaled to 16 bits, too. Only Pillow's decoders of the formats below
read the bytes, and no file of more than 256 MiB or 89 million pixels is read.
"""

import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Shaped, UInt16
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Listed, because Pillow would otherwise try every format it knows, including PostScript with its interpreter.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# What Pillow's decoders are known to raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, BadZipFile, IndexError, KeyError, TypeError,
    OverflowError, RuntimeError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The form that every image is converted to.

    Args:
        size: pixels, (height, width) or the side of a square. None: all images must have the same size.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA). None: grey if all images are grey, else RGB; transparency is put on white.
        fit: how an image of another aspect ratio gets the size, antialiased: "crop" scales it to cover the size and cuts out the centre,
        "pad" scales it to fit inside and fills with white (transparent in RGBA), "stretch" scales each side by its own factor.

    Raises:
        ValueError: for options out of range, or a fit without a size.
    """

    size: int | tuple[int, int] | None = None
    channels: int | None = None
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        """Checks the options."""
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

    def paint(self, data: bytes) -> Shaped[np.ndarray, "h w *c"]:
        """The pixels of an image file, uint8 or uint16: [h, w] if it is grey and no other channels are asked for, else [h, w, c].

        Raises:
            BrokenImageError: for bytes that cannot be read as an image.
        """
        try:
            with warnings.catch_warnings():
                # Pillow warns about images beyond its pixel limit and refuses them beyond twice the limit: here both are refused.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with _opened(data) as image:
                    deep = _deep_pixels(image, data)
                    if deep is not None:
                        return self._paint_deep(deep)
                    image.load()
                    picture = self._in_channels(ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise BrokenImageError(_reason(error)) from None
        return np.array(picture if self.size is None else self._fitted(picture, *self._height_width(self.size)))

    def _paint_deep(self, pixels: UInt16[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "height width *d"]:
        """As `paint`, in floats, because Pillow has no 16-bit colours."""
        colour, alpha = pixels.astype(np.float64), np.full((*pixels.shape[:2], 1), 65535.0)
        if pixels.shape[2] in (2, 4):
            colour, alpha = colour[..., :-1], colour[..., -1:]
        if self.channels == 4:
            colour = np.concatenate([np.broadcast_to(colour, (*colour.shape[:2], 3)), alpha], axis=2)
        else:
            colour = 65535 + (colour - 65535) * alpha / 65535
        if self.channels == 1 and colour.shape[2] == 3:
            colour = colour @ np.array([[0.299], [0.587], [0.114]])
        if self.channels == 3:
            colour = np.broadcast_to(colour, (*colour.shape[:2], 3))
        if self.size is not None:
            size = self._height_width(self.size)
            blanks = [65535.0] * 3 + [0.0]
            layers = [Image.fromarray(colour[..., i].astype(np.float32)) for i in range(colour.shape[2])]
            colour = np.stack([np.asarray(self._fitted(layer, *size, blanks[i])) for i, layer in enumerate(layers)], axis=2)
        levels = colour.round().clip(0, 65535).astype(np.uint16)
        return levels[..., 0] if levels.shape[2] == 1 else levels

    def _in_channels(self, image: Image.Image) -> Image.Image:
        """Converts any mode to L, RGB or RGBA."""
        if image.mode == "F":
            raise ValueError("pixels of 32-bit floats have no standard range")
        if self.channels == 4:
            return image.convert("RGBA")
        opaque = _on_white(image)
        return opaque if self.channels is None else opaque.convert("L" if self.channels == 1 else "RGB")

    def _fitted(self, image: Image.Image, height: int, width: int, blank: Any = None) -> Image.Image:
        """The image at this size; uncovered parts are white by default."""
        if image.size == (width, height):
            return image
        if self.fit == "pad":
            scale = min(width / image.width, height / image.height)
            inner = max(1, round(scale * image.width)), max(1, round(scale * image.height))
            blank = blank if blank is not None else (255, 255, 255, 0) if image.mode == "RGBA" else "white"
            canvas = Image.new(image.mode, (width, height), blank)
            canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), ((width - inner[0]) // 2, (height - inner[1]) // 2))
            return canvas
        box = (0.0, 0.0, float(image.width), float(image.height))
        if self.fit == "crop":
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


class BrokenImageError(Exception):
    """The reason why an image cannot be read."""


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an image file, rotated as its EXIF tag says; its pixels are not decoded.

    Raises:
        BrokenImageError: for bytes that cannot be read as an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(data) as image:
                is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                width, height = image.size
                return (width, height) if is_turned else (height, width)
    except _DAMAGE as error:
        raise BrokenImageError(_reason(error)) from None


def _reason(error: Exception) -> str:
    # Pillow's own message ends in the address of a buffer, which differs from run to run.
    reason = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else str(error).strip(".")
    return reason or type(error).__name__


def _on_white(image: Image.Image) -> Image.Image:
    """Mode L or RGB, on white if it is transparent; grey if all its colours are."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        opaque = image.convert("RGB")
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA"):
        # GIF and palette PNG have no grey mode, so the colours decide.
        pixels = np.asarray(opaque)
        is_grey = bool((pixels == pixels[..., :1]).all())
    return opaque.convert("L") if is_grey else opaque


def _opened(data: bytes) -> ImageFile.ImageFile:
    image = Image.open(BytesIO(data), formats=_FORMATS)
    assert isinstance(image, ImageFile.ImageFile)
    return image


def _deep_pixels(image: ImageFile.ImageFile, data: bytes) -> UInt16[np.ndarray, "h w c"] | None:
    """The pixels of an image of 16 bits a channel, rotated as its EXIF tag says; None for other images."""
    if image.mode.startswith("I"):
        grey = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey levels must be 0 to 65535, got {grey.min()} to {grey.max()}")
        return grey[..., None].astype(np.uint16)
    layout = image.tile[0][3] if image.format == "PNG" and image.tile else None
    if layout not in ("LA;16B", "RGB;16B", "RGBA;16B") or "transparency" in image.info:
        return None
    # Pillow keeps the high byte of each channel; reading with the other byte order gives the low one.
    if layout == "LA;16B":  # four bytes a pixel
        both = _bytes_as(data, "RGBA")
        high, low = both[..., 0::2], both[..., 1::2]
    else:
        high, low = _bytes_as(data, layout), _bytes_as(data, layout.replace("16B", "16L"))
    return high.astype(np.uint16) * 256 + low


def _bytes_as(data: bytes, layout: str) -> np.ndarray:
    """Pillow's result for the pixels of a PNG with this byte layout."""
    with _opened(data) as image:
        image.tile = [image.tile[0]._replace(args=layout)]
        return np.asarray(ImageOps.exif_transpose(image))


@dataclass(frozen=True)
class Picture:
    """An image to be read: its name for messages, and its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Gathered:
    """The images that could be read, their indices among all, and why the others could not."""

    values: np.ndarray
    kept: list[int]
    skipped: tuple[str, ...]


def gather(pictures: Iterable[Picture], canvas: Canvas, *, limit: int, source: str, into: BufferedIOBase | None = None) -> Gathered:
    """All images in one array [n, h, w, c], written to `into` as .npy while they are read, or held in memory; uint8, or uint16 if one is.

    Args:
        limit: how many broken images are left out before it is an error.
        source: the name of all of them in errors.

    Raises:
        ValueError: for too many broken images, no image at all, or images of several sizes if the canvas has none.
    """
    rows, kept, skipped, first = _Rows(BytesIO() if into is None else into), [], [], ""
    for number, picture in enumerate(pictures):
        try:
            image = canvas.paint(_bytes(picture))
        except BrokenImageError as broken:
            skipped.append(f"{picture.name}: {broken}")
            if len(skipped) > limit:
                raise ValueError(
                    f"{source}: more than {limit} images are broken: {_some(skipped)}; repair or remove them, or raise limit_broken."
                ) from None
            continue
        if kept and image.shape[:2] != rows.size:
            (h, w), (other_h, other_w) = rows.size, image.shape[:2]
            raise ValueError(
                f"{source}: images must have one size, got {h}×{w} (height × width) in {first} and {other_h}×{other_w} in {picture.name}; "
                "set size to bring them all to one size."
            )
        first = first or picture.name
        rows.append(image)
        kept.append(number)
    if not kept:
        raise ValueError(f"{source}: none of its {len(skipped)} images can be read: {_some(skipped)}; repair or replace them.")
    return Gathered(rows.close(), kept, tuple(skipped))


def broken_limit(limit: int | None, count: int) -> int:
    """How many of `count` images may be broken: by default 1% of them, at least 1.

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
    """The first few lines, and the number of the others."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


class _Rows:
    """Images written one after another as .npy: with one 8-bit channel until the first that has more; then all are widened."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.count, self.size, self.channels, self.dtype, self.start = file, 0, (0, 0), 0, np.dtype(np.uint8), 0

    def append(self, image: np.ndarray) -> None:
        """Writes a row; all have the size of the first."""
        image = image[..., None] if image.ndim == 2 else image
        if not self.count:
            self.size, self.channels, self.dtype = image.shape[:2], image.shape[2], image.dtype
            self._write_header()
        if image.shape[2] > self.channels or image.dtype.itemsize > self.dtype.itemsize:
            self._widen(max(self.channels, image.shape[2]), max(self.dtype, image.dtype, key=lambda dtype: dtype.itemsize))
        self.file.write(_widened(image, self.channels, self.dtype).tobytes())
        self.count += 1

    def close(self) -> np.ndarray:
        """Completes the file; returns the rows as an array on it."""
        self._write_header()
        self.file.flush()
        shape = (self.count, *self.size, self.channels)
        if isinstance(self.file, BytesIO):
            return np.frombuffer(self.file.getbuffer(), self.dtype, offset=self.start).reshape(shape)
        return np.memmap(self.file, self.dtype, "r", self.start, shape)

    def _write_header(self) -> None:
        """NumPy reserves space for the number of rows, so the header keeps its length."""
        self.file.seek(0)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, *self.size, self.channels)}
        np.lib.format.write_array_header_1_0(self.file, header)
        assert self.start in (0, self.file.tell())
        self.start = self.file.tell()

    def _widen(self, channels: int, dtype: np.dtype[Any]) -> None:
        """Rewrites all rows so far, from the last to the first, so that each is read before it is overwritten."""
        before, after = (math.prod(self.size) * c * of.itemsize for c, of in ((self.channels, self.dtype), (channels, dtype)))
        for row in reversed(range(self.count)):
            self.file.seek(self.start + row * before)
            image = np.frombuffer(self.file.read(before), self.dtype).reshape(*self.size, self.channels)
            self.file.seek(self.start + row * after)
            self.file.write(_widened(image, channels, dtype).tobytes())
        self.channels, self.dtype = channels, dtype
        self.file.seek(0, 2)


def _widened(image: np.ndarray, channels: int, dtype: np.dtype[Any]) -> np.ndarray:
    """The image with its grey levels repeated in this many channels, and scaled to this many bits: 255 becomes 65535."""
    image = np.repeat(image, channels, axis=2) if image.shape[2] == 1 else image
    return image if image.dtype == dtype else image.astype(dtype) * dtype.type(257)
