"""Arrays in NumPy's own files. The dtype decides, nothing is guessed from the range: uint8 is images, floats are tensors.

Floats in [0, 1] or [-1, 1] are tensors as any other: they are standardised and come back as floats, not as images.
"""

from pathlib import Path

import numpy as np

from sfumato.data.cache import cached, stamp
from sfumato.data.dataset import IMAGES, Dataset, Scaling
from sfumato.data.files import NUMPY_DAMAGE, refuse_beyond_memory

_MOST_CLASSES = 1_000_000


def npy(path: str | Path, labels: str | Path | None = None, *, classes: tuple[str, ...] = (), cache: Path | None = None) -> Dataset:
    """The data set of an .npy file, memory-mapped where its values can be used as they lie (uint8 or float32).

    Args:
        labels: an .npy file of integers [n].
        classes: names of the labels; "0", "1", ... if left out.
        cache: where its scale and fingerprint are kept, or the values where they have to be converted, so that the second opening reads
            nothing; None measures them each time, and converts in memory.

    Raises:
        ValueError: for a file that cannot be read, or an array that is neither images nor float tensors.
        OSError: the cache cannot be written.
    """
    files = [Path(path)] if labels is None else [Path(path), Path(labels)]
    arrays = [_load_one(file) for file in files]
    numbers = None if labels is None else np.array(arrays[1])
    key = ["npy", *([str(file.resolve()), stamp(file.stat())] for file in files), classes]
    stays = arrays[0].dtype in (np.uint8, np.float32)

    def build(into: Path | None) -> Dataset:
        return from_arrays(arrays[0], numbers, classes=classes, name=files[0].stem)

    return cached(build, cache, key, values=files[0] if stays else None)


def _load_one(path: Path) -> np.ndarray:
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays, expected one; load it with npz.")
    return array


def npz(path: str | Path, classes: tuple[str, ...] = ()) -> Dataset:
    """The data set of an .npz file: values and labels under arr_0 and arr_1, or values and labels, or the only array.

    Args:
        classes: names of the labels; "0", "1", ... if left out.

    Raises:
        ValueError: as `npy`, and for other names, or labels that do not fit.
    """
    arrays = _load(Path(path))
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path} holds a single array without a name, expected an .npz; load it with npy.")
    names = set(arrays)
    for values, labels in (("arr_0", "arr_1"), ("values", "labels")):
        if values in names:
            return from_arrays(arrays[values], arrays.get(labels), classes=classes, name=Path(path).stem)
    if len(names) != 1:
        raise ValueError(
            f"{path} must hold arr_0 (and arr_1), values (and labels), or one array, got {', '.join(sorted(names)) or 'none'}; "
            "save it with np.savez(path, values=..., labels=...)."
        )
    return from_arrays(arrays[names.pop()], classes=classes, name=Path(path).stem)


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
        raise ValueError(f"{path} is no file; give the path of an .npy or .npz file.") from None
    except NUMPY_DAMAGE as error:
        reason = "it holds Python objects or is no NumPy file" if "allow_pickle" in str(error) else str(error).rstrip(".")
        raise ValueError(f"cannot read {path} as NumPy data: {reason}; save it again with np.save or np.savez.") from None


def from_arrays(values: np.ndarray, labels: np.ndarray | None = None, *, classes: tuple[str, ...] = (), name: str = "array") -> Dataset:
    """The data set of arrays: uint8 [n, h, w] or [n, h, w, 1|3|4] is images, floats [n, ...] are standardised tensors.

    Args:
        labels: integers [n] of any width.
        classes: names of the labels; "0", "1", ... if left out.

    Raises:
        ValueError: for arrays of other kinds, and all that `Dataset` refuses.
    """
    shape = list(values.shape)
    if not (values.dtype == np.uint8 or np.issubdtype(values.dtype, np.floating)):
        raise ValueError(
            f"{name}: values must be uint8 (images) or floats (tensors), got {values.dtype} {shape}; "
            "convert them with .astype(np.uint8) or .astype(np.float32)."
        )
    numbers = None if labels is None else _class_numbers(labels, name)
    if numbers is not None and not classes and len(numbers):
        classes = tuple(map(str, range(int(numbers.max()) + 1)))
    if values.dtype == np.uint8:
        if values.ndim == 3:
            values = values[..., None]
        if values.ndim != 4 or values.shape[3] not in (1, 3, 4):
            raise ValueError(
                f"{name}: uint8 values must be images [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels, got {shape}; "
                "move the channels last, or convert numbers with .astype(np.float32)."
            )
        return Dataset(values=values, labels=numbers, classes=classes, scaling=IMAGES, name=name)
    if values.ndim < 2:
        raise ValueError(f"{name}: float values must be [n, ...] with at least one feature axis, got {shape}; try values[:, None].")
    if values.size == 0:
        raise ValueError(f"{name}: there must be data, got the empty shape {shape}.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    return Dataset(values=values, labels=numbers, classes=classes, scaling=Scaling.measure(values), name=name)


def _class_numbers(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64 [n]."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ValueError(f"{name}: labels must be integers [n], got {labels.dtype} {list(labels.shape)}; number the classes from 0.")
    if len(labels) and int(labels.max()) >= _MOST_CLASSES:
        raise ValueError(f"{name}: labels must be below {_MOST_CLASSES}, got {labels.max()}; renumber the classes from 0.")
    return labels.astype(np.int64, copy=False)
