"""One data set type: values with their labels, and the `Scaling` between the values and the x0 that a model sees."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor

from sfumato.condition import Classes, Condition, ConditionSpec, Map, Numbers
from sfumato.data.rows import Values, check_finite, chunks, take
from sfumato.data.scaling import IMAGES, Scaling, Standard
from sfumato.data.source import Batch, DataSpec, Draw, Group, Random, Source, Split

HeldOutBy = Literal["random", "block"]
_DTYPES = (np.uint8, np.uint16, np.float32, np.float64)


@runtime_checkable
class CachedMetadata(Protocol):
    """Fingerprint and split ranks that were computed earlier for these values, labels and captions (`data.cache`)."""

    @property
    def of(self) -> tuple[Values, np.ndarray | None, tuple[str, ...] | None]:
        """The values, labels and captions that it describes; the values are finite."""
        ...

    @property
    def fingerprint(self) -> str:
        """`Dataset.fingerprint` of them."""
        ...

    def ranks(self, seed: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The ranks of the rows for `Dataset.split_indices`, computed if they are not stored yet."""
        ...


# Arrays have no single truth value, so data sets compare by identity; compare fingerprints for content.
@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Source):
    """Values with their labels and other conditions, and their Scaling: a `Source` of arrays.

    Args:
        values: uint8 or uint16 [n, h, w, c] images with 1, 3 or 4 channels, or float32 or float64 [n, ...]; an np.memmap stays on disk.
        labels: int64 [n].
        classes: names of the labels 0, 1, ...; () if there are no labels.
        skipped: files that could not be read, each with the reason.
        captions: one text for each row.
        columns: names of the features of a table; () for other data.
        label: the name of a table's column of labels.
        measured: how the Scaling was measured on these values, so that `split` can measure it on its training rows; None if it is fixed.
        notes: notes on how the data were read, for the user.
        conditions: other information on each row, by name: an array with one row each, and its spec. A map is an array of image values
        [n, h, w, c], or of floats [n, c, …].
        metadata: what the cache stores about the data; dropped if it describes other values, labels or captions than these.

    Raises:
        ValueError: for empty or non-finite data, other types or shapes, and labels or captions that do not fit values or classes.
    """

    # No shapes here: they would be checked before __post_init__ can give a clear message on a user's arrays.
    values: Values
    labels: np.ndarray | None
    classes: tuple[str, ...]
    scaling: Scaling
    name: str = "data"
    skipped: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    columns: tuple[str, ...] = ()
    label: str = "label"
    measured: Standard | None = None
    notes: tuple[str, ...] = ()
    conditions: Mapping[str, tuple[Values, ConditionSpec]] = field(default_factory=dict)
    metadata: CachedMetadata | None = None

    def __post_init__(self) -> None:
        """Refuses data that cannot be used for training."""
        if self.metadata is not None and any(a is not b for a, b in zip(self.metadata.of, self._content, strict=True)):
            object.__setattr__(self, "metadata", None)
        self._check_values()
        self._check_labels()
        for name, (array, spec) in self.conditions.items():
            if len(array) != len(self.values) or name == "labels":
                raise ValueError(f'{self.name}: the condition "{name}" must have one row a value and another name, got {len(array)}.')
            rows = array if isinstance(spec, Classes | Numbers) else array[:1]
            spec.check(_condition(rows, spec), f"the condition {name} of {self.name}")
        if self.captions is not None and len(self.captions) != len(self.values):
            raise ValueError(
                f"{self.name}: there must be one caption for each of {len(self.values)} values, got {len(self.captions)} captions."
            )

    def _check_values(self) -> None:
        values, shape = self.values, list(self.values.shape)
        if values.dtype not in _DTYPES:
            raise ValueError(
                f"{self.name}: values must be uint8 or uint16 (images), float32 or float64, got {values.dtype}; "
                "convert them with values.astype."
            )
        if self.scaling.dtype != values.dtype and (self.is_image or self.scaling.is_integer):
            raise ValueError(f"{self.name}: values are {values.dtype}, but the Scaling is for {self.scaling.dtype}; give one that fits.")
        if self.is_image and (values.ndim != 4 or shape[3] not in (1, 3, 4)):
            raise ValueError(
                f"{self.name}: images must be [n, h, w, c] with 1, 3 or 4 channels, got {shape}; add or move the channel axis."
            )
        if values.ndim < 2:
            raise ValueError(f"{self.name}: values must be [n, ...] with at least one feature axis, got {shape}; try values[:, None].")
        if values.size == 0:
            raise ValueError(f"{self.name}: there must be data, got the empty shape {shape}.")
        for number in (self.scaling.shift, self.scaling.scale):
            if isinstance(number, tuple) and len(number) not in (1, self.shape[0]):
                raise ValueError(f"{self.name}: the Scaling is for {len(number)} channels or features, got {self.shape[0]} in {shape}.")
        if (self.columns and values.ndim != 2) or len(self.columns) not in (0, shape[1]):
            raise ValueError(f"{self.name}: there must be one name for each column, got {len(self.columns)} for values {shape}.")
        if not self.is_image and self.metadata is None:
            check_finite(values)

    def _check_labels(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: class names must differ, got {', '.join(self.classes)}.")
        if self.labels is None:
            if self.classes:
                raise ValueError(f"{self.name}: got {len(self.classes)} class names but no labels; set classes=() or pass labels.")
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
    def _content(self) -> tuple[Values, np.ndarray | None, tuple[str, ...] | None]:
        return self.values, self.labels, self.captions

    @property
    def is_image(self) -> bool:
        """Whether the values are images, of 8 or 16 bits."""
        return np.issubdtype(self.values.dtype, np.integer)

    @property
    def is_bytes(self) -> bool:
        """Whether they are images of 8 bits."""
        return self.values.dtype == np.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x0: (c, h, w) for images."""
        shape = tuple(map(int, self.values.shape[1:]))
        return (shape[-1], *shape[:-1]) if self.scaling.channels == "last" else shape

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.values)

    @property
    def spec(self) -> DataSpec:
        """The spec of the examples, with the number of examples of each class."""
        conditions: dict[str, ConditionSpec] = {}
        if self.labels is not None:
            conditions["labels"] = Classes(self.classes, tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist()))
        conditions |= {name: spec for name, (_, spec) in self.conditions.items()}
        return DataSpec(self.shape, self.scaling, conditions, columns=self.columns, label=self.label)

    def batch(self, rows: np.ndarray | Tensor, draw: Draw | None = None) -> Batch:
        """x0 and conditions of these rows, in this order; repeated rows are allowed. A draw may mirror images, and their maps with them.

        Raises:
            ValueError: for indices that are not integers [b] in 0 ... n - 1.
        """
        rows = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(f"a batch needs integer indices [b], got {rows.dtype} {list(rows.shape)}.")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"a batch of {self.name} needs indices 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}.")
        x = self.scaling.encode(self.values[rows])
        cond = {} if self.labels is None else {"labels": _condition(self.labels[rows], Classes(self.classes))}
        cond |= {name: _condition(array[rows], spec) for name, (array, spec) in self.conditions.items()}
        if draw is not None and draw.flip and self.is_image:
            flips = draw.flips
            x = _mirrored(x, flips)
            maps = {name: cond[name] for name, (_, spec) in self.conditions.items() if isinstance(spec, Map)}
            cond |= {name: replace(one, value=_mirrored(one.value, flips)) for name, one in maps.items()}
        return Batch(x, cond)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, type, values, labels and captions, whatever the memory layout; reads the data once, in pieces."""
        mine = _fingerprint(*self._content) if self.metadata is None else self.metadata.fingerprint
        if not self.conditions:
            return mine
        digest = hashlib.sha256(mine.encode())
        for name, (array, spec) in sorted(self.conditions.items()):
            digest.update(f"{name} {spec.fingerprint()} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def scaled_like(self, spec: DataSpec) -> "Dataset":
        """The same values with the Scaling of an existing run."""
        return self.scaled(spec.codec) if isinstance(spec.codec, Scaling) and spec.codec != self.scaling else self

    def scaled(self, scaling: Scaling) -> "Dataset":
        """The same values with another Scaling, such as that of an existing run; it is no longer measured."""
        return replace(self, scaling=scaling, measured=None)

    def split_indices(
        self, held_out: float, seed: int, *, by: HeldOutBy = "random"
    ) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " m"]]:
        """Training rows and held-out rows, both ascending.

        "random": rows are ranked by a hash of their values and the seed, without labels, and the first held_out · n are held out. So the
        choice depends neither on the order of the rows nor on the machine, and exact copies stay together.
        "block": the last held_out · n rows are held out, for rows ordered in time.

        Args:
            held_out: the share held out, in (0, 1); at least one row is left on each side.
            seed: of the random choice.
            by: how they are chosen.

        Raises:
            ValueError: for a share outside (0, 1), a seed outside 0 ... 2⁶⁴ - 1, or fewer than two different rows.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"the share held out must lie between 0 and 1, got {held_out}.")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"a seed must be 0 to 2**64 - 1, got {seed}.")
        if by == "block":
            if len(self) < 2:
                raise ValueError(f"{self.name}: a split needs at least two rows, got {len(self)}.")
            cut = len(self) - min(max(1, round(held_out * len(self))), len(self) - 1)
            return np.arange(cut), np.arange(cut, len(self))
        ranks = self._ranks(seed) if self.metadata is None else self.metadata.ranks(seed, lambda: self._ranks(seed))
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
            for chunk in chunks(self.values)
            for row in chunk
        )
        return np.fromiter(hashes, dtype=np.uint64, count=len(self))

    def split(self, how: Split | float, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """The training data and the held-out data. Rows of a memory-mapped file stay there.

        A measured Scaling is measured again on the training rows, and used for both.

        Args:
            how: `Random` (a share of the rows by their values; a number means this), `Block` or `Group`.
            seed: for a share that is given as a number.

        Raises:
            ValueError: as `split_indices`.
        """
        how = Random(how, seed) if isinstance(how, float | int) else how
        kept, held = self.split_rows(how)
        scaling = self.scaling if self.measured is None else self._measured_on(kept)
        return self._rows(kept, f"{self.name}[train]", scaling), self._rows(held, f"{self.name}[held out]", scaling)

    def split_rows(self, how: Split) -> tuple[np.ndarray, np.ndarray]:
        """Training rows and held-out rows, both ascending: for `Random` and `Block`, those of `split_indices`.

        Raises:
            ValueError: as `split_indices`; a gap of a `Block` that leaves nothing to train on.
        """
        if isinstance(how, Group):
            return super().split_rows(how)
        if isinstance(how, Random):
            return self.split_indices(how.share, how.seed)
        kept, held = self.split_indices(how.share, 0, by="block")
        if how.gap >= len(kept):
            raise ValueError(f"{self.name}: a gap of {how.gap} rows leaves none of {len(kept)} to train on; use a smaller one.")
        return kept[: len(kept) - how.gap], held

    def _measured_on(self, rows: np.ndarray) -> Scaling:
        assert self.measured is not None
        return Scaling.measure(take(self.values, _as_slice(rows)), by=self.measured, channels=self.scaling.channels)

    def _rows(self, rows: np.ndarray, name: str, scaling: Scaling) -> "Dataset":
        values, labels = take(self.values, _as_slice(rows)), None if self.labels is None else self.labels[rows]
        captions = None if self.captions is None else tuple(self.captions[row] for row in rows)
        metadata = _SubsetMetadata((values, labels, captions))
        conditions = {name: (take(array, _as_slice(rows)), spec) for name, (array, spec) in self.conditions.items()}
        return replace(
            self, values=values, labels=labels, captions=captions, name=name, scaling=scaling, conditions=conditions, metadata=metadata
        )


def _condition(rows: Values, spec: ConditionSpec) -> Condition:
    """Rows of a condition as the model gets them."""
    array = np.asarray(rows)
    if isinstance(spec, Classes):
        value = torch.from_numpy(array.astype(np.int64))
        return Condition(value, value >= 0)
    if isinstance(spec, Map) and np.issubdtype(array.dtype, np.integer):
        value = torch.from_numpy((np.moveaxis(array, -1, 1).astype(np.float32) - spec.shift) / spec.scale)
    else:
        value = torch.from_numpy(np.array(array))
        value = value.float() if value.is_floating_point() else value
    given = ~value.flatten(1).isnan().any(1) if value.is_floating_point() else torch.ones(len(value), dtype=torch.bool)
    return Condition(value, given)


def _mirrored(x: Tensor, flips: Tensor) -> Tensor:
    return torch.where(flips.reshape(-1, *(1,) * (x.ndim - 1)), x.flip(-1), x)


def of_images(
    values: Values,
    *,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    name: str,
    by: Standard = "channel",
    skipped: tuple[str, ...] = (),
    **more: Any,
) -> Dataset:
    """Images [n, h, w, c] as a data set: bytes are scaled to [-1, 1]; 16-bit images, which often use a part of the range, are standardised.

    Args:
        labels: as `Dataset` takes them, like the rest.
        classes: as above.
        name: as above.
        by: how 16-bit images are standardised, as in `Scaling.measure`.
        skipped: files that could not be read; `notes` mentions them.
        more: as `Dataset` takes it.

    Raises:
        ValueError: as `Dataset`.
    """
    if skipped:
        note = f"Left out {len(skipped)} files that could not be read: {', '.join(skipped[:5])}."
        more |= {"skipped": skipped, "notes": (note, *more.get("notes", ()))}
    if values.dtype == np.uint8:
        return Dataset(values=values, labels=labels, classes=classes, name=name, scaling=IMAGES, **more)
    scaling = Scaling.measure(values, by=by)
    return Dataset(values=values, labels=labels, classes=classes, name=name, scaling=scaling, measured=by, **more)


@dataclass(frozen=True, eq=False)
class _SubsetMetadata:
    """Metadata of some rows of a checked data set: their values are finite, the rest is computed when asked for."""

    of: tuple[Values, np.ndarray | None, tuple[str, ...] | None]

    @property
    def fingerprint(self) -> str:
        """Of these rows."""
        return _fingerprint(*self.of)

    def ranks(self, seed: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Computed each time."""
        return compute()


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """Consecutive ascending rows as a slice, which needs no copy."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return slice(start, stop) if stop - start == len(rows) else rows


def _fingerprint(values: Values, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> str:
    """See `Dataset.fingerprint`."""
    kind = "none" if labels is None else "int64"
    digest = hashlib.sha256(json.dumps([str(values.dtype), list(values.shape), kind]).encode())
    for chunk in chunks(values):
        digest.update(chunk.data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    if captions is not None:
        digest.update(json.dumps(captions).encode())
    return digest.hexdigest()
