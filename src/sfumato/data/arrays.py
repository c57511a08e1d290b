"""Arrays in NumPy's files. The dtype decides and the range does not: uint8 and uint16 are images, floats are tensors.

Floats in [0, 1] or [-1, 1] are tensors like any others: they are standardised, and samples are floats, not images.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sfumato.condition import Classes, ConditionSpec, Map, Numbers
from sfumato.data.cache import cached, stamp
from sfumato.data.dataset import Dataset, of_images
from sfumato.data.files import NUMPY_DAMAGE, refuse_beyond_memory
from sfumato.data.rows import Values, chunks
from sfumato.data.scaling import Channels, Scaling, Standard

Missing = Literal["refuse", "drop"]
CONDITION = "cond_"  # prefix of the names of conditions in an .npz
_MOST_CLASSES = 1_000_000


def npy(
    path: str | Path,
    labels: str | Path | None = None,
    *,
    classes: tuple[str, ...] = (),
    channels: Channels | None = None,
    scaling: Standard = "channel",
    dims: int | None = None,
    missing: Missing = "refuse",
    cache: Path | None = None,
) -> Dataset:
    """The data set of an .npy file, memory-mapped if its values need no conversion (uint8, uint16, float32 or float64).

    Args:
        labels: an .npy file of integers [n].
        classes: as `from_arrays` takes them, like channels, scaling, dims and missing.
        channels: as above.
        scaling: as above.
        dims: as above.
        missing: as above; "drop" keeps the remaining rows in memory, or in the cache.
        cache: stores the scale and fingerprint, and converted values, so that opening the file again reads nothing; None measures them each
        time, and converts in memory.

    Raises:
        ValueError: for a file that cannot be read, or an array that is neither images nor float tensors.
        OSError: the cache cannot be written.
    """
    files = [Path(path)] if labels is None else [Path(path), Path(labels)]
    arrays = [_load_one(file) for file in files]
    numbers = None if labels is None else np.array(arrays[1])
    key = ["npy", *([str(file.resolve()), stamp(file.stat())] for file in files), classes, channels, scaling, dims, missing]
    stays = arrays[0].dtype in (np.uint8, np.uint16, np.float32, np.float64) and missing != "drop"

    def build(into: Path | None) -> Dataset:
        name = files[0].stem
        return from_arrays(
            arrays[0], numbers, classes=classes, name=name, channels=channels, scaling=scaling, dims=dims, missing=missing
        )  # fmt: skip

    return cached(build, cache, key, values=files[0] if stays else None)


def _load_one(path: Path) -> np.ndarray:
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays, expected one; load it with npz.")
    return array


def npz(
    path: str | Path,
    classes: tuple[str, ...] = (),
    *,
    channels: Channels | None = None,
    scaling: Standard = "channel",
    dims: int | None = None,
    missing: Missing = "refuse",
) -> Dataset:
    """The data set of an .npz file: values and labels under arr_0 and arr_1, or values and labels, or the only array.

    Arrays `cond_NAME` are conditions, as `from_arrays` takes them, so a file of samples can be read as data.

    Args:
        classes: as `from_arrays` takes them, like channels, scaling, dims and missing.
        channels: as above.
        scaling: as above.
        dims: as above.
        missing: as above.

    Raises:
        ValueError: as `npy`, and for other names, or labels that do not fit.
    """
    arrays = _load(Path(path))
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path} holds a single array without a name, expected an .npz; load it with npy.")
    conditions = {name.removeprefix(CONDITION): array for name, array in arrays.items() if name.startswith(CONDITION)}
    names = {name for name in arrays if not name.startswith(CONDITION)}
    pairs = [("arr_0", "arr_1"), ("values", "labels"), *([(next(iter(names)), "")] if len(names) == 1 else [])]
    for values, labels in pairs:
        if values in names:
            name, numbers = Path(path).stem, arrays.get(labels)
            how: dict[str, Any] = {"channels": channels, "scaling": scaling, "dims": dims, "missing": missing}
            return from_arrays(arrays[values], numbers, classes=classes, name=name, conditions=conditions, **how)
    raise ValueError(
        f"{path} must hold arr_0 (and arr_1), values (and labels), or one array, got {', '.join(sorted(names)) or 'none'}; "
        "save it with np.savez(path, values=..., labels=...)."
    )


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """One array, memory-mapped, or the named arrays of an .npz. Never runs pickled code."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            refuse_beyond_memory(sum(info.file_size for info in loaded.zip.infolist()), path)
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise ValueError(f"{path} is not a file; give the path of an .npy or .npz file.") from None
    except NUMPY_DAMAGE as error:
        reason = "it holds Python objects or is not a NumPy file" if "allow_pickle" in str(error) else str(error).rstrip(".")
        raise ValueError(f"cannot read {path} as NumPy data: {reason}; save it again with np.save or np.savez.") from None


def from_arrays(
    values: Any,
    labels: Any = None,
    *,
    classes: tuple[str, ...] = (),
    name: str = "array",
    channels: Channels | None = None,
    scaling: Standard = "channel",
    dims: int | None = None,
    missing: Missing = "refuse",
    conditions: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set of NumPy arrays or torch tensors: uint8 or uint16 [n, h, w] or [n, h, w, 1|3|4] is images, floats [n, ...] are tensors.

    Floats and 16-bit images are standardised, in float64 whatever their type; float16 becomes float32.

    Args:
        labels: integers [n] of any width.
        classes: names of the labels; "0", "1", ... if left out.
        channels: the channel axis of floats: "first" (axis 1, the default) or "last".
        scaling: one mean and standard deviation for each channel (or column, of floats [n, features]), or for "all" entries together.
        dims: spatial axes of floats: 1 for signals, 3 for volumes; a channel axis is added if there is none.
        missing: "refuse" rows with NaN, or "drop" them.
        conditions: other information on each row, by name: integers [n] are classes (-1 for none), floats [n] or [n, k] numbers, uint8
        [n, h, w, c] or floats [n, c, …] maps; a row with NaN has none. A condition that no row has is left out, and `notes` say so.

    Raises:
        ValueError: for arrays of other kinds, and the errors of `Dataset`.
    """
    values, labels = _array(values, "values", name), None if labels is None else _array(labels, "labels", name)
    shape = list(values.shape)
    is_float = np.issubdtype(values.dtype, np.floating)
    if not (is_float or values.dtype.newbyteorder("=") in (np.uint8, np.uint16)):
        raise ValueError(
            f"{name}: values must be uint8 or uint16 (images) or floats (tensors), got {values.dtype} {shape}; "
            "convert them with .astype(np.uint8) or .astype(np.float32)."
        )
    numbers = None if labels is None else _class_numbers(labels, name)
    if numbers is not None and not classes and len(numbers):
        classes = tuple(map(str, range(int(numbers.max()) + 1)))
    known, notes = _conditions(conditions or {}, len(values), name)
    if not is_float:
        images = _images(values, numbers, classes, name, scaling, fits=channels != "first" and dims in (None, 2))
        return replace(images, conditions=known, notes=notes)
    if values.ndim < 2:
        raise ValueError(f"{name}: float values must be [n, ...] with at least one feature axis, got {shape}; try values[:, None].")
    if values.size == 0:
        raise ValueError(f"{name}: there must be data, got the empty shape {shape}.")
    values = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64, copy=False)  # in the machine's byte order
    values = _with_channels(values, dims, channels, name)
    notes += _notes(values, channels, name)
    if missing == "drop" and (numbers is None or len(numbers) == len(values)):
        is_missing = np.concatenate([np.isnan(chunk.reshape(len(chunk), -1)).any(axis=1) for chunk in chunks(values)])
        if is_missing.all():
            raise ValueError(f"{name}: all {len(values)} rows hold NaN, so none is left; fill them, or remove the columns with NaN.")
        if is_missing.any():
            values, numbers = values[~is_missing], None if numbers is None else numbers[~is_missing]
            known = {key: (array[~is_missing], spec) for key, (array, spec) in known.items()}
            notes += (f"{name}: left out {is_missing.sum()} of {len(is_missing)} rows with NaN (data.missing=drop).",)
    measured = Scaling.measure(values, by=scaling, channels=channels)
    return Dataset(
        values=values, labels=numbers, classes=classes, scaling=measured, name=name, measured=scaling, notes=notes, conditions=known
    )


def _conditions(given: Mapping[str, Any], count: int, name: str) -> tuple[dict[str, tuple[np.ndarray, ConditionSpec]], tuple[str, ...]]:
    """Arrays with their specs, and a sentence on each that is left out."""
    known, notes = {}, ()
    for key, value in given.items():
        array, what = _array(value, f"the condition {key}", name), f"{name}: the condition {key}"
        if array.ndim == 0 or len(array) != count:
            rows = "a single number" if array.ndim == 0 else f"{len(array)} rows"
            raise ValueError(f"{what} must have one row for each of {count} values, got {rows}.")
        array = array[:, None] if np.issubdtype(array.dtype, np.floating) and array.ndim == 1 else array
        is_float = np.issubdtype(array.dtype, np.floating)
        if is_float:
            array = array.astype(np.float32, copy=False)
            is_given = ~np.isnan(array.reshape(count, -1)).any(axis=1)
        elif np.issubdtype(array.dtype, np.integer) and array.ndim == 1:
            array = _class_numbers(array, name)
            if array.min(initial=0) < -1:
                raise ValueError(f"{what} must be classes, counted from 0 (or -1 for none), got {array.min()}.")
            is_given = array >= 0
        elif array.dtype == np.uint8 and array.ndim == 4:
            is_given = np.ones(count, dtype=bool)
        else:
            raise ValueError(
                f"{what} must be integers [n] (classes), floats [n] or [n, k] (numbers), uint8 [n, h, w, c] or floats [n, c, …] (maps), "
                f"got {array.dtype} {list(array.shape)}."
            )
        if not is_given.any():
            notes += (f"{what} is left out, because no row has one.",)
            continue
        if is_float and not np.isfinite(array[is_given]).all():
            raise ValueError(f"{what} must be finite where it is given, got infinity.")
        if array.ndim == 1:
            names = tuple(map(str, range(int(array.max()) + 1)))
            spec = Classes(names, tuple(np.bincount(array[is_given], minlength=len(names)).tolist()))
        elif array.ndim == 2:
            spec = Numbers.measured(array)
        else:
            spec = Map(array.shape[1] if is_float else array.shape[3])
        known[key] = array, spec
    return known, notes


def _images(
    values: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...], name: str, scaling: Standard, *, fits: bool
) -> Dataset:
    """The data set of an integer array; `fits` says whether it has the shape of images."""
    shape, values = list(values.shape), values[..., None] if values.ndim == 3 else values
    if not fits or values.ndim != 4 or values.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{name}: {values.dtype} values must be images [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels, got {shape}; "
            "move the channels last, or convert numbers with .astype(np.float32)."
        )
    if values.size == 0:
        raise ValueError(f"{name}: there must be data, got the empty shape {shape}.")
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return of_images(native, labels=labels, classes=classes, name=name, by=scaling)


def seem_last(values: Values) -> bool:
    """Whether an array has the shape of images or volumes with channels on the last axis, and on no other."""
    return values.ndim >= 4 and values.shape[-1] in (1, 3, 4) and values.shape[1] not in (1, 3, 4)


def _notes(values: np.ndarray, channels: Channels | None, name: str) -> tuple[str, ...]:
    if channels is not None or not seem_last(values):
        return ()
    return (
        f"{name}: floats {list(values.shape)} are read with {values.shape[1]} channels, on axis 1; if these are images with channels "
        "last, set data.channels=last.",
    )


def _with_channels(values: np.ndarray, dims: int | None, channels: Channels | None, name: str) -> np.ndarray:
    """Adds a channel axis to floats without one."""
    if dims is None or values.ndim == dims + 2:
        return values
    if values.ndim != dims + 1:
        space = ", ".join(("depth", "height", "width")[-dims:] if dims > 1 else ("length",))
        where = f"[n, {space}] or " + (f"[n, {space}, channels]" if channels == "last" else f"[n, channels, {space}]")
        raise ValueError(f"{name}: with data.dims={dims} values must be {where}, got {list(values.shape)}; reshape them.")
    return values[..., None] if channels == "last" else values[:, None]


def _array(values: Any, what: str, name: str) -> np.ndarray:
    """Converts an array or a tensor to a NumPy array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{name}: {what} must be a NumPy array or a torch tensor, got {type(values).__name__}; use np.asarray.")
    return values


def _class_numbers(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64 [n]."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ValueError(f"{name}: labels must be integers [n], got {labels.dtype} {list(labels.shape)}; number the classes from 0.")
    if len(labels) and int(labels.max()) >= _MOST_CLASSES:
        raise ValueError(f"{name}: labels must be below {_MOST_CLASSES}, got {labels.max()}; renumber the classes from 0.")
    return labels.astype(np.int64, copy=False)
