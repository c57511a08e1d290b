"""The user's own data as a source: arrays, map-style torch data sets, iterables of batches."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.condition import Classes, Condition, ConditionSpec, Map, Numbers
from sfumato.data.arrays import from_arrays
from sfumato.data.scaling import Scaling
from sfumato.data.source import Batch, DataSpec, Draw, Source, Stream
from sfumato.noise import seeded

PLAIN = Scaling(shift=0.0, scale=1.0, dtype="float32")  # x as it is


def as_source(given: Any) -> Source | Stream:
    """Converts data in any supported form to a source or a stream.

    Args:
        given: a `Source` or `Stream`; an array or tensor [n, …]; a pair of arrays (values, labels); a map-style torch `Dataset`, whose
            items are x, (x, label) or {"x": …, name: condition}; an iterable of batches of these forms.

    Raises:
        ValueError: anything else, or an iterator, which can be read only once.
    """
    if isinstance(given, Source | Stream):
        return given
    if isinstance(given, np.ndarray | Tensor):
        return from_arrays(given)
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(each, np.ndarray | Tensor) for each in given):
        return from_arrays(*given)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return TorchSource(given)
    if isinstance(given, Iterator):
        raise ValueError(
            "an iterator can be read only once, so a resumed run could not replay it; pass an iterable, whose iter() starts again."
        )
    if isinstance(given, Iterable):
        return IterableStream(given)
    raise ValueError(f"data must be a Source, arrays, a torch Dataset or an iterable of batches, got {type(given).__name__}.")


class TorchSource(Source):
    """A map-style torch data set. Randomness in an item is seeded by (seed, epoch, row), so that a run can be repeated."""

    def __init__(self, items: Any, spec: DataSpec | None = None) -> None:
        """Looks at a few items to determine their spec.

        Args:
            items: with `len` and integer indices.
            spec: of the items, if known.

        Raises:
            ValueError: no items, or items of another form.
        """
        if not len(items):
            raise ValueError("a torch Dataset must contain items, got an empty one.")
        self.items, self.name = items, type(items).__name__
        some = [
            _fields(_item(items, row, 0, 0)) for row in np.unique(np.linspace(0, len(items) - 1, min(64, len(items))).astype(int)).tolist()
        ]
        self._spec = spec or DataSpec(
            tuple(some[0]["x"].shape), PLAIN, _specs({name: [item[name] for item in some] for name in some[0]}, items)
        )

    @property
    def spec(self) -> DataSpec:
        """The spec of the items."""
        return self._spec

    def __len__(self) -> int:
        """The number of items."""
        return len(self.items)

    def batch(self, rows: np.ndarray, draw: Draw | None = None) -> Batch:
        """Items, stacked."""
        seed, position = (0, 0) if draw is None else (draw.seed, (draw.step - 1) * draw.count + draw.rows.start)
        epochs = [(position + i) // len(self) for i in range(len(rows))]
        found = [_fields(_item(self.items, int(row), seed, epoch)) for row, epoch in zip(rows, epochs, strict=True)]
        return _batch({name: torch.stack([item[name] for item in found]) for name in found[0]}, self.spec)

    def fingerprint(self) -> str:
        """Fingerprint of the number of items and up to 64 of them."""
        digest = hashlib.sha256(str(len(self)).encode())
        for row in np.unique(np.linspace(0, len(self) - 1, 64).astype(int)).tolist():
            for name, value in sorted(_fields(_item(self.items, int(row), 0, 0)).items()):
                digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()


class IterableStream(Stream):
    """An iterable of batches. A resumed run replays it from the start and compares its batches with the earlier ones."""

    def __init__(self, batches: Iterable[Any], spec: DataSpec | None = None) -> None:
        """Looks at the first batch.

        Raises:
            ValueError: no batches, or batches of another form.
        """
        self.iterable, self.name = batches, type(batches).__name__
        first = next(iter(batches), None)
        if first is None:
            raise ValueError("an iterable of batches must return at least one, got none.")
        fields = _fields(first)
        self._first = _digest(fields)
        self._spec = spec or DataSpec(
            tuple(fields["x"].shape[1:]), PLAIN, _specs({name: list(value) for name, value in fields.items()}, None)
        )

    @property
    def spec(self) -> DataSpec:
        """The spec of the examples."""
        return self._spec

    def fingerprint(self) -> str:
        """Fingerprint of the first batch."""
        return self._first

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches from number `start` on; earlier ones are read and discarded. The iterable is restarted when it ends.

        Raises:
            ValueError: its first batch has changed.
        """
        number = 0
        while True:
            before = number
            for i, given in enumerate(self.iterable):
                fields = _fields(given)
                if i == 0 and _digest(fields) != self._first and start:
                    raise ValueError(
                        f"{self.name} does not replay: its first batch differs from the first batch of the run; "
                        "seed its shuffling, or pass a Source."
                    )
                if number >= start:
                    yield _batch(fields, self.spec)
                number += 1
            if number == before:
                return


def _item(items: Any, row: int, seed: int, epoch: int) -> Any:
    """An item, with the global generators of torch, numpy and Python seeded for this item."""
    import random

    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        number = seeded(seed, epoch, row).initial_seed()
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        random.seed(number)
        try:
            return items[row]
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _fields(item: Any) -> dict[str, Tensor]:
    """An item or batch as tensors by name: x, and conditions.

    Raises:
        ValueError: another form.
    """
    if isinstance(item, Mapping):
        if "x" not in item:
            raise ValueError(f'an item that is a mapping needs "x", got {", ".join(map(str, item))}.')
        fields = dict(item)
    elif isinstance(item, tuple | list):
        if len(item) > 2:
            raise ValueError(f"an item must be x, (x, label) or a mapping with x and conditions, got {len(item)} values.")
        fields = dict(zip(("x", "labels"), item, strict=False))
    else:
        fields = {"x": item}
    tensors = {name: torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value) for name, value in fields.items()}
    x = tensors["x"]
    return {**tensors, "x": x.float() if x.is_floating_point() else x}


def _specs(values: Mapping[str, Sequence[Tensor]], items: Any) -> dict[str, ConditionSpec]:
    """The specs of conditions, from some of their values, one entry an example."""
    specs: dict[str, ConditionSpec] = {}
    for name, some in values.items():
        if name == "x":
            continue
        if not some[0].is_floating_point() and some[0].ndim == 0:
            specs[name] = Classes(_class_names(name, items))
        elif some[0].ndim <= 1:
            every = torch.stack([value.reshape(-1).float() for value in some])
            scale = tuple(spread if spread > 0 else 1.0 for spread in every.std(0, correction=0).tolist())
            specs[name] = Numbers(every.shape[1], shift=tuple(every.mean(0).tolist()), scale=scale)
        else:
            specs[name] = Map(some[0].shape[0])
    return specs


def _class_names(name: str, items: Any) -> tuple[str, ...]:
    """Names of the classes of a data set: its `classes`, or numbers up to the largest, for which all items are read.

    Raises:
        ValueError: a stream, whose classes cannot be counted.
    """
    if items is None:
        raise ValueError(f'the number of classes of "{name}" is unknown; pass sf.data.IterableStream a spec with their names.')
    if (known := getattr(items, "classes", None)) is not None:
        return tuple(map(str, known))
    labels = getattr(items, "targets", None)
    if labels is None:
        labels = [int(_fields(_item(items, row, 0, 0))[name]) for row in range(len(items))]
    return tuple(map(str, range(int(np.asarray(labels).max()) + 1)))


def _batch(fields: Mapping[str, Tensor], spec: DataSpec) -> Batch:
    cond = {}
    for name, condition in spec.conditions.items():
        value = fields[name]
        if isinstance(condition, Numbers):
            value = value.float().reshape(len(value), -1)
        elif isinstance(condition, Classes):
            value = value.long()
        given = value >= 0 if isinstance(condition, Classes) else torch.ones(len(value), dtype=torch.bool)
        cond[name] = Condition(value, given)
    return Batch(fields["x"], cond)


def _digest(fields: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(fields.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
