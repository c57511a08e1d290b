"""The affine map between stored values and the x0 of a model: x0 = (value - shift) / scale.

This is the only place where values become x0 (`Scaling.encode`) and x0 becomes values (`Scaling.decode`). Values are those on disk and in
sample files: uint8 or uint16 images [n, h, w, c], or float32 or float64 arrays [n, ...]. x0 is float32 with channels on axis 1,
[n, c, h, w] for images. Except for bytes, the map is computed in float64, so that data far from zero (time stamps) keep their precision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from sfumato.data.rows import Values, check_finite, chunks
from sfumato.data.source import CODECS

DType = Literal["uint8", "uint16", "float32", "float64"]
Channels = Literal["first", "last"]
Standard = Literal["channel", "all"]  # one mean and std for each channel, or for all entries together
_DTYPES, _CHANNELS = get_args(DType), get_args(Channels)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """x0 = (value - shift) / scale.

    A tuple has one number for each channel (axis 1 of x0); a float is for all.
    With shift = scale = 127.5 the grey levels 0 ... 255 become [-1, 1].

    Args:
        dtype: of the values, on disk and in sample files.
        channels: the axis of the values with the channels: "first" (axis 1, the default for floats) or "last" (always for images). It
            becomes
        axis 1 of x0.

    Raises:
        ValueError: for a scale that is not positive, anything not finite, tuples of two lengths, or another dtype.
    """

    shift: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    dtype: DType
    channels: Channels | None = None

    def __post_init__(self) -> None:
        """Checks that the map can be inverted."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"the dtype of a Scaling must be {_listed(_DTYPES)}, got {self.dtype!r}.")
        object.__setattr__(self, "channels", self.channels or ("last" if self.is_integer else "first"))
        if self.channels not in _CHANNELS or (self.is_integer and self.channels == "first"):
            raise ValueError(f"the channels of a Scaling must be 'first' or 'last', 'last' for images, got {self.channels!r}.")
        shifts, scales = _numbers(self.shift), _numbers(self.scale)
        if not shifts or not all(math.isfinite(number) for number in shifts):
            raise ValueError(f"the shift of a Scaling must be finite numbers, got {self.shift!r}.")
        if not scales or not all(math.isfinite(number) and number > 0 for number in scales):
            raise ValueError(f"the scale of a Scaling must be positive finite numbers, got {self.scale!r}.")
        if isinstance(self.shift, tuple) and isinstance(self.scale, tuple) and len(shifts) != len(scales):
            raise ValueError(f"a Scaling needs as many shifts as scales, got {len(shifts)} and {len(scales)}; give one for each channel.")

    @property
    def is_integer(self) -> bool:
        """Whether the values are images of 8 or 16 bits, which samples are rounded to."""
        return self.dtype.startswith("uint")

    @classmethod
    def measure(cls, values: Values, *, by: Standard = "channel", channels: Channels | None = None) -> "Scaling":
        """The Scaling with which these values have mean 0 and variance 1.

        A constant channel gets scale 1. Reads the data twice, in pieces, and computes in float64.

        Args:
            values: floats [n, ...], or uint16 images [n, h, w, c].
            by: one mean and std for each channel (a column of a table is one), or for all entries together.
            channels: as in `Scaling`.

        Raises:
            ValueError: for values that are empty, of another kind, not finite, or too large for their squares.
        """
        is_float = np.issubdtype(values.dtype, np.floating)
        if values.size == 0 or values.ndim < 2 or not (is_float or values.dtype == np.uint16):
            raise ValueError(
                f"a Scaling can be measured on non-empty float values [n, ...] or 16-bit images, got {values.dtype} {list(values.shape)}."
            )
        dtype: DType = "uint16" if not is_float else "float32" if values.dtype.itemsize <= 4 else "float64"
        axis = -1 if (channels or ("first" if is_float else "last")) == "last" else 1
        axes = tuple(i for i in range(values.ndim) if i != axis % values.ndim) if by == "channel" else tuple(range(values.ndim))
        count = math.prod(values.shape[i] for i in axes)
        total, low, high = np.zeros(()), np.full((), np.inf), np.full((), -np.inf)
        for chunk in chunks(values):
            total = total + chunk.sum(axis=axes, dtype=np.float64)
            low, high = np.minimum(low, chunk.min(axis=axes)), np.maximum(high, chunk.max(axis=axes))
        if not np.isfinite(total).all():
            check_finite(values)
        # Rounding would give a constant a tiny spread, and dividing by that would scale it to order 1.
        is_constant = low == high
        mean = np.where(is_constant, low, total / count)
        along = mean.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]) if by == "channel" else mean
        with np.errstate(over="ignore"):
            squares = np.asarray(sum(np.square(chunk.astype(np.float64) - along).sum(axis=axes) for chunk in chunks(values)))
        spread = np.where(is_constant, 1.0, np.sqrt(squares / count))
        if not (np.isfinite(mean).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise ValueError(
                f"the values reach from {low.min():.3g} to {high.max():.3g}, whose squares overflow; change their unit before saving."
            )
        if by == "channel":
            return cls(shift=tuple(map(float, mean)), scale=tuple(map(float, spread)), dtype=dtype, channels=channels)
        return cls(shift=float(mean), scale=float(spread), dtype=dtype, channels=channels)

    def encode(self, values: Shaped[np.ndarray, "n *value"]) -> Float32[Tensor, "n *x"]:
        """x0 of values: images [n, h, w, c] (and other values with channels last) become [n, c, h, w]. Always a copy.

        Raises:
            ValueError: for values of another kind or number of channels than this Scaling is for.
        """
        if self.is_integer:
            if values.dtype != self.dtype or values.ndim != 4:
                raise ValueError(
                    f"this Scaling encodes {self.dtype} images [n, h, w, c], got {values.dtype} {list(values.shape)}; convert them first."
                )
        elif not np.issubdtype(values.dtype, np.floating) or values.ndim < 2:
            raise ValueError(f"this Scaling encodes floats [n, ...], got {values.dtype} {list(values.shape)}; convert them first.")
        exact = np.float32 if self.dtype == "uint8" else np.float64  # bytes and half integers are exact in float32
        x0 = np.array(np.moveaxis(values, -1, 1) if self.channels == "last" else values, dtype=exact, order="C")
        x0 -= self._along_axis_1(self.shift, x0.shape)
        x0 /= self._along_axis_1(self.scale, x0.shape)
        return torch.from_numpy(x0.astype(np.float32, copy=False))

    def decode(self, x0: Float[Tensor, "n *x"]) -> Shaped[np.ndarray, "n *value"]:
        """The values of x0, the inverse of `encode`, computed in float64: rounded and clamped to the grey levels of images.

        Raises:
            ValueError: for x0 of the wrong shape, or NaN where grey levels are needed.
        """
        values = x0.detach().to("cpu", torch.float64).numpy()
        if values.ndim < 2 or (self.is_integer and values.ndim != 4):
            wanted = "[n, c, h, w]" if self.is_integer else "[n, ...]"
            raise ValueError(f"this Scaling decodes {wanted}, got x0 of shape {list(values.shape)}.")
        values = values * self._along_axis_1(self.scale, values.shape) + self._along_axis_1(self.shift, values.shape)
        if self.is_integer:
            if np.isnan(values).any():
                bad = int(np.isnan(values.reshape(len(values), -1)).any(axis=1).sum())
                raise ValueError(
                    f"NaN has no grey level, got {bad} of {len(values)} images with NaN; the model or the sampler has diverged."
                )
            values = values.round().clip(0, np.iinfo(self.dtype).max)
        values = values.astype(self.dtype)
        return np.ascontiguousarray(np.moveaxis(values, 1, -1)) if self.channels == "last" else values

    def to_json(self) -> dict[str, float | list[float] | str]:
        """JSON types only, for a manifest; `from_json` reads it back exactly."""
        shift = list(self.shift) if isinstance(self.shift, tuple) else self.shift
        scale = list(self.scale) if isinstance(self.scale, tuple) else self.scale
        return {"shift": shift, "scale": scale, "dtype": self.dtype, "channels": str(self.channels)}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "Scaling":
        """The Scaling that `to_json` wrote; earlier versions wrote no channels.

        Raises:
            ValueError: for missing or unknown fields, or fields of another type.
        """
        if set(record) - {"channels"} != {"shift", "scale", "dtype"}:
            raise ValueError(f"a Scaling has the fields shift, scale and dtype, got {', '.join(sorted(record)) or 'none'}.")
        dtype = next((known for known in _DTYPES if known == record["dtype"]), None)
        channels = next((known for known in _CHANNELS if known == record.get("channels")), None)
        if dtype is None:
            raise ValueError(f"the dtype of a Scaling must be {_listed(_DTYPES)}, got {record['dtype']!r}.")
        if channels is None and record.get("channels") is not None:
            raise ValueError(f"the channels of a Scaling must be 'first' or 'last', got {record['channels']!r}.")
        return cls(shift=_from_json(record["shift"]), scale=_from_json(record["scale"]), dtype=dtype, channels=channels)

    def _along_axis_1(self, number: float | tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray | float:
        """The number or numbers, shaped to broadcast along axis 1 of x0."""
        if not isinstance(number, tuple):
            return number
        if len(number) not in (1, shape[1]):
            raise ValueError(f"this Scaling is for {len(number)} channels or features, got {shape[1]} in x0 of shape {list(shape)}.")
        return np.asarray(number).reshape(1, -1, *[1] * (len(shape) - 2))


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"


def _numbers(number: float | tuple[float, ...]) -> tuple[float, ...]:
    """One or several numbers as a tuple."""
    return number if isinstance(number, tuple) else (number,)


def _from_json(number: object) -> float | tuple[float, ...]:
    """A float from a JSON number, a tuple from a JSON list."""
    if isinstance(number, list | tuple):
        return tuple(_from_json_number(item) for item in number)
    return _from_json_number(number)


def _from_json_number(number: object) -> float:
    """A float from one JSON number; true and false are refused."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"shift and scale of a Scaling must be numbers or lists of numbers, got {number!r}.")
    return float(number)


IMAGES = Scaling(shift=127.5, scale=127.5, dtype="uint8")

CODECS["scaling"] = Scaling.from_json
