"""Samples as files that other programs read: CSV tables, and PNGs of 8 and 16 bits."""

import csv
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_csv(
    path: Path,
    values: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    columns: Sequence[str] = (),
    classes: Sequence[str] = (),
    label: str = "label",
    more: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes rows [n, d] below a line of names, as `table` reads them: comma-separated, each number with all its digits.

    Args:
        labels: int64 [n], written as the names of their classes, in a column after the numbers; an empty cell for -1.
        columns: the names; x1, x2, … by default.
        classes: names of the labels.
        label: the name of the labels' column.
        more: the cells of further columns, by name.

    Raises:
        ValueError: values that are not rows of numbers.
    """
    if values.ndim != 2:
        raise ValueError(f"a CSV holds rows of numbers, got samples of shape {list(values.shape[1:])}; use .npz.")
    named: dict[str, Sequence[str]] = {}
    if labels is not None:
        named[label] = [classes[int(number)] if number >= 0 else "" for number in labels]
    named |= more or {}
    names = [*(columns or [f"x{i + 1}" for i in range(values.shape[1])]), *named]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i, row in enumerate(values):
            # str of a float32 has only the digits of its precision; that of its float64 would have more.
            writer.writerow([*map(str, row), *(cells[i] for cells in named.values())])


def write_png(path: Path, value: np.ndarray) -> None:
    """An image [h, w, c] of 8 or 16 bits, with 1, 3 or 4 channels. Pillow cannot write 16-bit colours."""
    if value.dtype == np.uint8:
        Image.fromarray(value.squeeze(2) if value.shape[2] == 1 else value).save(path, format="PNG")
        return
    height, width, channels = value.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = np.ascontiguousarray(value, dtype=">u2").reshape(height, -1).view(np.uint8)
    pixels = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # each row starts with its filter type: none
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels.tobytes())), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
