"""A cache of decoded data on disk, opened as memory maps.

It is in `$SFUMATO_CACHE`, by default `$XDG_CACHE_HOME/sfumato` or `~/.cache/sfumato`; with an empty SFUMATO_CACHE nothing is cached. Each
entry is a folder under `data/`: values.npy and labels.npy, the ranks of rows that splits computed, and record.json with the rest. Its name
is a hash of everything it depends on: every file's name, size and times, and the options. A changed file gives a new entry; if a new entry
takes the cache past 50 GB (`$SFUMATO_CACHE_GB`), the least recently used ones are removed. Everything may be deleted at any time.

An entry is written to a temporary folder and renamed, by one process at a time; others wait. Incomplete or changed entries are rebuilt.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.dataset import Dataset
from sfumato.data.files import NUMPY_DAMAGE
from sfumato.data.rows import Values
from sfumato.data.scaling import Scaling

_VERSION = 2  # version of the layout and of the decoding: raise it when either changes
_FULL_OR_CLOSED = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG}

Stamp = tuple[int, int, int]


def stamp(status: os.stat_result) -> Stamp:
    """Identifies the version of a file: its size and times. No program can set back the last of them."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def cached(build: Callable[[Path | None], Dataset], cache: Path | None, key: object, *, values: Path | None = None) -> Dataset:
    """The data set that `build` makes, from the cache if an earlier call with this key stored it.

    Args:
        build: gets a folder, where it may write its values as values.npy; None to make them in memory.
        cache: the folder of the cache; None for no cache.
        key: JSON types with everything that the data depend on.
        values: the .npy file that holds the data; the cache then stores only what was computed from them.

    Raises:
        ValueError: as `build`.
        OSError: the cache cannot be written.
    """
    if cache is None:
        return build(None)
    entry = cache / "data" / hashlib.sha256(json.dumps([_VERSION, key], sort_keys=True).encode()).hexdigest()[:32]
    found = _read(entry, values)
    if found is not None:
        return found
    try:
        with _only_builder(entry):
            found = _read(entry, values)  # another process may have written it meanwhile
            if found is None:
                _write(entry, build, values)
                _trim(entry)
                found = _read(entry, values)
    except OSError as error:
        if error.errno not in _FULL_OR_CLOSED:
            raise
        raise OSError(
            f"cannot keep decoded data in {cache}: {os.strerror(error.errno).lower()}; free disk space, or set SFUMATO_CACHE to another "
            "folder, or to nothing to decode the data each time."
        ) from None
    if found is None:
        raise OSError(f"{entry} cannot be read back after it was written; set SFUMATO_CACHE to a folder on another disk.")
    return found


def kept_array(
    compute: Callable[[], np.ndarray],
    cache: Path | None,
    kind: str,
    key: object,
    *,
    any_of: Callable[[bool], bool] = bool,
    writes: bool = True,
) -> np.ndarray:
    """The array that `compute` makes, memory-mapped from the cache where an earlier call with this key has left it.

    Args:
        compute: makes it; in every process, where several share the work.
        cache: the folder of the cache; None does without.
        kind: the folder in the cache that such arrays have for themselves.
        key: JSON types that say everything on which the array depends.
        any_of: whether something is so in any of several processes, all of which call this.
        writes: whether this process is the one that writes.
    """
    if cache is None:
        return compute()
    entry = cache / kind / hashlib.sha256(json.dumps([_VERSION, key], sort_keys=True).encode()).hexdigest()[:32]
    found = None
    with suppress(*NUMPY_DAMAGE):
        found = np.load(entry / "values.npy", mmap_mode="r", allow_pickle=False)
        os.utime(entry)
    if not any_of(found is None):
        assert found is not None
        return found
    array = compute()
    # The cache may be full or read-only: the next call can do without this array.
    with suppress(OSError):
        if writes:
            _write_array(entry, array)
    return array


def _write_array(entry: Path, array: np.ndarray) -> None:
    """Makes the entry aside and puts it in its place."""
    aside = entry.with_suffix(f".{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        np.save(aside / "values.npy", array)
        _fsync(aside / "values.npy")
        shutil.rmtree(entry, ignore_errors=True)
        aside.rename(entry)
        _trim(entry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class StoredMetadata:
    """The metadata in a cache entry (a `dataset.CachedMetadata`)."""

    of: tuple[Values, np.ndarray | None, tuple[str, ...] | None]
    fingerprint: str
    entry: Path

    def ranks(self, seed: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The stored ranks; otherwise computes them and stores them if the entry can be written."""
        path = self.entry / f"ranks-{seed}.npy"
        with suppress(*NUMPY_DAMAGE):
            ranks = np.load(path, allow_pickle=False)
            if ranks.dtype == np.uint64 and ranks.shape == self.of[0].shape[:1]:
                return ranks
        ranks = compute()
        # The cache may be full, read-only or deleted by now: the ranks are not essential.
        with suppress(OSError):
            aside = path.with_name(f"{path.name}.{os.getpid()}")
            with aside.open("wb") as file:
                np.save(file, ranks)
            aside.replace(path)
        return ranks


@contextmanager
def _only_builder(entry: Path) -> Iterator[None]:
    """Waits until no other process makes this entry. The lock file is kept: removing it would let two processes in."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(entry: Path, build: Callable[[Path | None], Dataset], values: Path | None) -> None:
    """Makes the entry in a temporary folder and renames it: all or nothing."""
    aside = entry.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
    aside.mkdir()
    try:
        dataset = build(aside)
        if values is None and not (aside / "values.npy").exists():
            np.save(aside / "values.npy", dataset.values)
        if dataset.labels is not None:
            np.save(aside / "labels.npy", dataset.labels)
        record = {
            "name": dataset.name,
            "shape": dataset.values.shape,
            "classes": dataset.classes,
            "captions": dataset.captions,
            "skipped": dataset.skipped,
            "scaling": dataset.scaling.to_json(),
            "measured": dataset.measured,
            "notes": dataset.notes,
            "fingerprint": dataset.fingerprint(),
            "probe": _probe(dataset),
        }
        (aside / "record.json").write_text(json.dumps(record), encoding="utf-8")
        for file in aside.iterdir():
            _fsync(file)
        shutil.rmtree(entry, ignore_errors=True)  # one that could not be read
        aside.rename(entry)
        _fsync(entry.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read(entry: Path, values: Path | None) -> Dataset | None:
    """The data set of an entry; None if there is none, or if it has changed since it was written."""
    try:
        record: dict[str, Any] = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        array = np.load(entry / "values.npy" if values is None else values, mmap_mode="r", allow_pickle=False)
        array = array.reshape(record["shape"])  # images of an [n, h, w] file gain a channel axis
        labels = np.load(entry / "labels.npy", allow_pickle=False) if record["classes"] else None
        captions = None if record["captions"] is None else tuple(record["captions"])
        dataset = Dataset(
            values=array,
            labels=labels,
            classes=tuple(record["classes"]),
            scaling=Scaling.from_json(record["scaling"]),
            name=record["name"],
            skipped=tuple(record["skipped"]),
            captions=captions,
            measured=record["measured"],
            notes=tuple(record["notes"]),
            metadata=StoredMetadata((array, labels, captions), record["fingerprint"], entry),
        )
        if _probe(dataset) != record["probe"]:
            return None
        with suppress(OSError):  # a cache that others share may be read-only
            os.utime(entry)
    except (*NUMPY_DAMAGE, KeyError, TypeError):
        return None
    return dataset


def _probe(dataset: Dataset) -> str:
    """The fingerprint of up to 64 evenly spaced rows with their labels: detects most damage and manual changes."""
    rows = np.linspace(0, len(dataset) - 1, min(64, len(dataset))).astype(np.int64)
    labels = None if dataset.labels is None else dataset.labels[rows]
    few = replace(dataset, values=np.array(dataset.values[rows]), labels=labels, captions=None)
    return few.fingerprint()


def _trim(newest: Path) -> None:
    """Removes the least recently used entries until the rest, with the newest, are within the limit."""
    entries = []
    for entry in newest.parent.iterdir():
        with suppress(FileNotFoundError):  # another process removes it
            if entry.is_dir() and not entry.suffix:
                entries.append((entry == newest, entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir()), entry))
    total = sum(size for *_, size, _ in entries)
    for is_newest, _, size, entry in sorted(entries):
        if is_newest or total <= _most_bytes():
            break
        shutil.rmtree(entry, ignore_errors=True)
        total -= size


def _most_bytes() -> float:
    """The limit of the whole cache."""
    text = os.environ.get("SFUMATO_CACHE_GB") or "50"
    try:
        return float(text) * 1e9
    except ValueError:
        raise ValueError(f"SFUMATO_CACHE_GB must be a number of gigabytes, got {text!r}.") from None


def _fsync(path: Path) -> None:
    """Waits until the file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
