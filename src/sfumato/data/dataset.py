"""One data set type, and the affine map between the values that people keep and the x0 that a model sees.

x0 = (value - shift) / scale. Values are what lies on disk and in sample files: uint8 images [n, h, w, c] or float32 tensors [n, ...].
x0 is float32 with channels first, [n, c, h, w] for images; its axis 1 is the channel or feature axis that a tuple of shifts follows.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Integer, Shaped, UInt64
from torch import Tensor

_CHUNK_BYTES = 1 << 24


def _chunks(values: Shaped[np.ndarray, "n *x"]) -> Iterator[Shaped[np.ndarray, "m *x"]]:
    """Consecutive rows of about 16 MiB, little-endian, so that a memory-mapped file is never read whole."""
    rows = max(1, _CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield np.ascontiguousarray(values[start : start + rows], dtype=values.dtype.newbyteorder("<"))


def _check_finite(values: Shaped[np.ndarray, "n *x"]) -> None:
    """Names the first row with a NaN or an infinity."""
    start = 0
    for chunk in _chunks(values):
        bad = ~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"data must be finite, got {int(bad.sum())} rows with NaN or infinity from row {start + int(bad.argmax())} on; "
                "remove or fill them."
            )
        start += len(chunk)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """x0 = (value - shift) / scale.

    A tuple holds one number for each channel (images) or feature (axis 1 of float data); a float holds for all.
    With shift = scale = 127.5 the grey levels 0 ... 255 become [-1, 1].

    Args:
        dtype: of the values, on disk and in sample files.

    Raises:
        ValueError: for a scale that is not positive, anything not finite, tuples of two lengths, or another dtype.
    """

    shift: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    dtype: Literal["uint8", "float32"]

    def __post_init__(self) -> None:
        """Refuses what could not be inverted."""
        if self.dtype not in ("uint8", "float32"):
            raise ValueError(f"the dtype of a Scaling must be 'uint8' or 'float32', got {self.dtype!r}.")
        shifts, scales = _numbers(self.shift), _numbers(self.scale)
        if not shifts or not all(math.isfinite(number) for number in shifts):
            raise ValueError(f"the shift of a Scaling must be finite numbers, got {self.shift!r}.")
        if not scales or not all(math.isfinite(number) and number > 0 for number in scales):
            raise ValueError(f"the scale of a Scaling must be positive finite numbers, got {self.scale!r}.")
        if isinstance(self.shift, tuple) and isinstance(self.scale, tuple) and len(shifts) != len(scales):
            raise ValueError(f"a Scaling needs as many shifts as scales, got {len(shifts)} and {len(scales)}; give one for each channel.")

    @classmethod
    def measure(cls, values: Shaped[np.ndarray, "n *x"]) -> "Scaling":
        """The Scaling under which these float values have mean 0 and variance 1.

        [n, features] is measured feature by feature; with more axes one mean and one variance hold for all, so that the
        shape of an image or of a series is kept. A constant feature gets scale 1. Reads the data twice, in pieces.

        Raises:
            ValueError: for values that are empty, not floats or not finite.
        """
        if values.size == 0 or values.ndim < 2 or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"a Scaling can be measured on non-empty float values [n, ...], got {values.dtype} {list(values.shape)}.")
        _check_finite(values)
        axes = 0 if values.ndim == 2 else tuple(range(values.ndim))
        count = len(values) if values.ndim == 2 else values.size
        mean = np.asarray(sum(chunk.sum(axis=axes, dtype=np.float64) for chunk in _chunks(values)) / count)
        squares = sum(np.square(chunk.astype(np.float64) - mean).sum(axis=axes) for chunk in _chunks(values))
        spread = np.sqrt(squares / count)
        # A constant column has a spread of rounding errors only: dividing by those would blow them up to order 1.
        spread = np.where(spread > 1e-7 * np.abs(mean), spread, 1.0)
        if values.ndim == 2:
            return cls(shift=tuple(map(float, mean)), scale=tuple(map(float, spread)), dtype="float32")
        return cls(shift=float(mean), scale=float(spread), dtype="float32")

    def encode(self, values: Shaped[np.ndarray, "n *value"]) -> Float32[Tensor, "n *x"]:
        """x0 of values: uint8 [n, h, w, c] gives [n, c, h, w]; floats [n, ...] keep their shape. Always a copy.

        Raises:
            ValueError: for values of another kind or number of channels than this Scaling is for.
        """
        if self.dtype == "uint8":
            if values.dtype != np.uint8 or values.ndim != 4:
                raise ValueError(
                    f"this Scaling encodes uint8 images [n, h, w, c], got {values.dtype} {list(values.shape)}; convert them first."
                )
            x0 = np.array(np.moveaxis(values, -1, 1), dtype=np.float32, order="C")
        else:
            if not np.issubdtype(values.dtype, np.floating) or values.ndim < 2:
                raise ValueError(f"this Scaling encodes floats [n, ...], got {values.dtype} {list(values.shape)}; convert them first.")
            # float64 keeps the digits of data far from zero, such as years or prices, until the shift has gone.
            x0 = np.array(values, dtype=np.float64, order="C")
        x0 -= self._along_axis_1(self.shift, x0.shape)
        x0 /= self._along_axis_1(self.scale, x0.shape)
        return torch.from_numpy(x0.astype(np.float32, copy=False))

    def decode(self, x0: Float[Tensor, "n *x"]) -> Shaped[np.ndarray, "n *value"]:
        """The values of x0, the inverse of `encode`: rounded and clamped to 0 ... 255 for uint8.

        Raises:
            ValueError: for x0 of the wrong shape, or NaN where grey levels are wanted.
        """
        values = x0.detach().to("cpu", torch.float64).numpy()
        if values.ndim < 2 or (self.dtype == "uint8" and values.ndim != 4):
            wanted = "[n, c, h, w]" if self.dtype == "uint8" else "[n, ...]"
            raise ValueError(f"this Scaling decodes {wanted}, got x0 of shape {list(values.shape)}.")
        values = values * self._along_axis_1(self.scale, values.shape) + self._along_axis_1(self.shift, values.shape)
        if self.dtype == "float32":
            return values.astype(np.float32)
        if np.isnan(values).any():
            bad = int(np.isnan(values.reshape(len(values), -1)).any(axis=1).sum())
            raise ValueError(f"NaN has no grey level, got {bad} of {len(values)} images with NaN; the model or the sampler has diverged.")
        return np.ascontiguousarray(np.moveaxis(values.round().clip(0, 255).astype(np.uint8), 1, -1))

    def to_json(self) -> dict[str, float | list[float] | str]:
        """JSON types only, for a manifest; `from_json` reads it back exactly."""
        shift = list(self.shift) if isinstance(self.shift, tuple) else self.shift
        scale = list(self.scale) if isinstance(self.scale, tuple) else self.scale
        return {"shift": shift, "scale": scale, "dtype": self.dtype}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "Scaling":
        """The Scaling that `to_json` wrote.

        Raises:
            ValueError: for missing or unknown fields, or fields of another type.
        """
        if set(record) != {"shift", "scale", "dtype"}:
            raise ValueError(f"a Scaling has the fields shift, scale and dtype, got {', '.join(sorted(record)) or 'none'}.")
        dtype = record["dtype"]
        if not isinstance(dtype, str) or dtype not in ("uint8", "float32"):
            raise ValueError(f"the dtype of a Scaling must be 'uint8' or 'float32', got {dtype!r}.")
        return cls(shift=_from_json(record["shift"]), scale=_from_json(record["scale"]), dtype=dtype)

    def _along_axis_1(self, number: float | tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray | float:
        """The number or numbers, shaped to broadcast along axis 1 of x0."""
        if not isinstance(number, tuple):
            return number
        if len(number) not in (1, shape[1]):
            raise ValueError(f"this Scaling is for {len(number)} channels or features, got {shape[1]} in x0 of shape {list(shape)}.")
        return np.asarray(number).reshape(1, -1, *[1] * (len(shape) - 2))


def _numbers(number: float | tuple[float, ...]) -> tuple[float, ...]:
    """One or several numbers as a tuple."""
    return number if isinstance(number, tuple) else (number,)


def _from_json(number: object) -> float | tuple[float, ...]:
    """A float of a JSON number, a tuple of a JSON list."""
    if isinstance(number, list | tuple):
        return tuple(_from_json_number(item) for item in number)
    return _from_json_number(number)


def _from_json_number(number: object) -> float:
    """A float of one JSON number; true and false are none."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"shift and scale of a Scaling must be numbers or lists of numbers, got {number!r}.")
    return float(number)


IMAGES = Scaling(shift=127.5, scale=127.5, dtype="uint8")


@runtime_checkable
class Known(Protocol):
    """What an earlier reading of these very values, labels and captions found, so that they need not be read again (`data.cache`)."""

    @property
    def of(self) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None]:
        """The values, labels and captions that it is about; the values are finite."""
        ...

    @property
    def fingerprint(self) -> str:
        """`Dataset.fingerprint` of them."""
        ...

    def ranks(self, seed: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """`Dataset.split_indices`' ranks of the rows, computed where they are not known yet."""
        ...


# Arrays have no single truth value, so data sets compare by identity; compare fingerprints for content.
@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Values with their labels and their Scaling.

    Args:
        values: uint8 [n, h, w, c] images with 1, 3 or 4 channels, or float32 [n, ...]; an np.memmap stays on disk.
        labels: int64 [n].
        classes: names of the labels 0, 1, ...; () where there are no labels.
        skipped: files that could not be read, each with the reason.
        captions: one text for each row.
        known: what the cache knows; dropped where it is about other values, labels or captions than these.

    Raises:
        ValueError: for empty or non-finite data, other types or shapes, and labels or captions that do not fit values or classes.
    """

    # No shapes here: they would be checked before __post_init__ can say in a sentence what is wrong with a user's arrays.
    values: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    scaling: Scaling
    name: str
    skipped: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    known: Known | None = None

    def __post_init__(self) -> None:
        """Refuses what no model could be trained on."""
        if self.known is not None and any(a is not b for a, b in zip(self.known.of, self._content, strict=True)):
            object.__setattr__(self, "known", None)
        self._check_values()
        self._check_labels()
        if self.captions is not None and len(self.captions) != len(self.values):
            raise ValueError(
                f"{self.name}: there must be one caption for each of {len(self.values)} values, got {len(self.captions)} captions."
            )

    def _check_values(self) -> None:
        values, shape = self.values, list(self.values.shape)
        if values.dtype not in (np.uint8, np.float32):
            raise ValueError(f"{self.name}: values must be uint8 (images) or float32, got {values.dtype}; convert them with values.astype.")
        if values.dtype != self.scaling.dtype:
            raise ValueError(f"{self.name}: values are {values.dtype}, but the Scaling is for {self.scaling.dtype}; give one that fits.")
        if values.dtype == np.uint8 and (values.ndim != 4 or shape[3] not in (1, 3, 4)):
            raise ValueError(
                f"{self.name}: images must be [n, h, w, c] with 1, 3 or 4 channels, got {shape}; add or move the channel axis."
            )
        if values.ndim < 2:
            raise ValueError(f"{self.name}: values must be [n, ...] with at least one feature axis, got {shape}; try values[:, None].")
        if values.size == 0:
            raise ValueError(f"{self.name}: there must be data, got the empty shape {shape}.")
        channels = shape[3] if self.is_image else shape[1]
        for number in (self.scaling.shift, self.scaling.scale):
            if isinstance(number, tuple) and len(number) not in (1, channels):
                raise ValueError(f"{self.name}: the Scaling is for {len(number)} channels or features, got {channels} in {shape}.")
        if not self.is_image and self.known is None:
            _check_finite(values)

    def _check_labels(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: class names must differ, got {', '.join(self.classes)}.")
        if self.labels is None:
            if self.classes:
                raise ValueError(f"{self.name}: got {len(self.classes)} class names but no labels; leave classes=() or give labels.")
            return
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise ValueError(f"{self.name}: labels must be int64 [n], got {self.labels.dtype} {list(self.labels.shape)}.")
        if len(self.labels) != len(self.values):
            raise ValueError(f"{self.name}: there must be one label for each of {len(self.values)} values, got {len(self.labels)} labels.")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"{self.name}: labels must be 0 to {len(self.classes) - 1} for {len(self.classes)} classes, got {low} to {high}; "
                "renumber them or name every class."
            )

    @property
    def _content(self) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None]:
        return self.values, self.labels, self.captions

    @property
    def is_image(self) -> bool:
        """Whether the values are uint8 images."""
        return self.values.dtype == np.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x0: (c, h, w) for images."""
        shape = tuple(map(int, self.values.shape[1:]))
        return (shape[2], shape[0], shape[1]) if self.is_image else shape

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.values)

    def batch(self, indices: np.ndarray | Tensor) -> tuple[Float32[Tensor, "b *x"], Int64[Tensor, " b"] | None]:
        """x0 and labels of these rows, in this order; repeated rows are allowed.

        Raises:
            ValueError: for indices that are not integers [b] in 0 ... n - 1.
        """
        rows = indices.detach().cpu().numpy() if isinstance(indices, Tensor) else indices
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(f"a batch needs integer indices [b], got {rows.dtype} {list(rows.shape)}.")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"a batch of {self.name} needs indices 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}.")
        x0 = self.scaling.encode(self.values[rows])
        return x0, None if self.labels is None else torch.from_numpy(self.labels[rows])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, type, values, labels and captions, whatever the memory layout; reads the data once, in pieces."""
        if self.known is not None:
            return self.known.fingerprint
        labels = "none" if self.labels is None else "int64"
        digest = hashlib.sha256(json.dumps([str(self.values.dtype), list(self.values.shape), labels]).encode())
        for chunk in _chunks(self.values):
            digest.update(chunk.data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        if self.captions is not None:
            digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()

    def split_indices(self, held_out: float, seed: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " m"]]:
        """Rows to train on and rows held out, both ascending; for data too large to copy.

        Rows are ranked by a hash of their own content and the seed, labels aside, and the first held_out · n are held out.
        So the choice depends neither on the order of the rows nor on the machine, and exact copies fall on one side.

        Args:
            held_out: the share held out, in (0, 1); at least one row is left on each side.

        Raises:
            ValueError: for a share outside (0, 1), a seed outside 0 ... 2⁶⁴ - 1, or fewer than two different rows.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"the share held out must lie between 0 and 1, got {held_out}.")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"a seed must be 0 to 2**64 - 1, got {seed}.")
        ranks = self._ranks(seed) if self.known is None else self.known.ranks(seed, lambda: self._ranks(seed))
        ordered = np.sort(ranks)
        starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        if not len(starts):
            raise ValueError(f"{self.name}: a split needs at least two different rows, got {len(self)} row(s), all alike.")
        cut = starts[np.abs(starts - round(held_out * len(self))).argmin()]
        is_held_out = ranks < ordered[cut]
        return np.flatnonzero(~is_held_out).astype(np.int64), np.flatnonzero(is_held_out).astype(np.int64)

    def _ranks(self, seed: int) -> UInt64[np.ndarray, " n"]:
        """A hash of each row and the seed."""
        key = seed.to_bytes(8, "little")
        hashes = (
            int.from_bytes(hashlib.blake2b(row.data, digest_size=8, key=key).digest(), "little")
            for chunk in _chunks(self.values)
            for row in chunk
        )
        return np.fromiter(hashes, dtype=np.uint64, count=len(self))

    def split(self, held_out: float, seed: int) -> tuple["Dataset", "Dataset"]:
        """The data to train on and the data held out, by `split_indices`. Both are copies in memory.

        Raises:
            ValueError: as `split_indices`.
        """
        kept, held = self.split_indices(held_out, seed)
        return self._rows(kept, f"{self.name}[train]"), self._rows(held, f"{self.name}[held out]")

    def _rows(self, rows: Integer[np.ndarray, " b"], name: str) -> "Dataset":
        labels = None if self.labels is None else self.labels[rows]
        captions = None if self.captions is None else tuple(self.captions[row] for row in rows)
        return replace(self, values=np.asarray(self.values[rows]), labels=labels, captions=captions, name=name)
