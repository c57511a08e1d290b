"""Rows of an array that stays on disk, and passes over data larger than the memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an array, read when they are needed, so that a memory-mapped file stays on the disk.

    Supports indices, slices and integer arrays along the first axis; NumPy's functions accept it as an array, and then read all of it.


    Args:
        of: the array.
        rows: int64 [n], which of its rows.
    """

    of: np.ndarray
    rows: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return (len(self.rows), *self.of.shape[1:])

    @property
    def ndim(self) -> int:
        """Axes, the rows among them."""
        return self.of.ndim

    @property
    def size(self) -> int:
        """The number of entries."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, which: Any) -> np.ndarray:
        """A copy of these rows."""
        return np.asarray(self.of[self.rows[which]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, read into memory."""
        return np.asarray(self[:], dtype=dtype)


Values = np.ndarray | Rows


def is_mapped(values: Values) -> bool:
    """Whether the values are in a memory-mapped file."""
    array: Any = values.of if isinstance(values, Rows) else values
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def take(values: Values, rows: np.ndarray | slice) -> Values:
    """These rows: in memory if the values are, a view if the rows are a slice, else read from their file when needed."""
    if isinstance(values, Rows):
        return Rows(values.of, values.rows[rows])
    if isinstance(rows, np.ndarray) and is_mapped(values):
        return Rows(values, rows)
    return values[rows]


def chunks(values: Values) -> Iterator[np.ndarray]:
    """Consecutive rows of about 16 MiB, little-endian, so that a memory-mapped file is never read whole."""
    rows = max(1, _CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield np.ascontiguousarray(values[start : start + rows], dtype=values.dtype.newbyteorder("<"))


def check_finite(values: Values) -> None:
    """Refuses NaN and infinities.

    Raises:
        ValueError: with the number of such rows, and the first of them.
    """
    start, count, first = 0, 0, -1
    for chunk in chunks(values):
        bad = ~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1)
        if bad.any():
            first = start + int(bad.argmax()) if first < 0 else first
            count += int(bad.sum())
        start += len(chunk)
    if count:
        raise ValueError(
            f"data must be finite, got {count} rows with NaN or infinity from row {first} on; "
            "fill or remove them, or leave out rows with NaN with data.missing=drop."
        )
