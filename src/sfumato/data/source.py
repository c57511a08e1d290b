"""Sources of examples, for every kind of model: a `Source` returns a `Batch` of rows, a `DataSpec` describes its examples.

`Dataset` (arrays in memory or on disk) is a `Source`. A `Stream` has no random access: it returns its batches in one order only. A `Draw`
is the randomness of one training step. It is a function of (seed, step, row in the batch), so the draws of an example depend neither on
the number of processes nor on the parts in which a batch goes through the network.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from sfumato.condition import Classes, Cond, ConditionSpec, drop, take, to
from sfumato.noise import seeded
from sfumato.runtime import moved

STEP, DROPOUT, NOISE = 1, 2, 3  # uses of a seed: draws of a whole batch, those inside a network, noise of blocks of rows
BLOCK = 64  # rows with one generator for their noise, so that a process draws little more than its share


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Args:
        x: float [b, *x], or int64 symbols.
        cond: the conditions of the examples, by name.
        mask: which entries exist, broadcast against x from the left, for examples of varying size; losses are means over these entries.
    """

    x: Shaped[Tensor, "b *x"]
    cond: Cond = field(default_factory=dict)
    mask: Bool[Tensor, "b *n"] | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.x)

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the examples."""
        return Batch(self.x[rows], take(self.cond, rows) or {}, None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device) -> "Batch":
        """The same examples on a device."""
        return Batch(moved(self.x, device), to(self.cond, device) or {}, None if self.mask is None else moved(self.mask, device))


@dataclass(frozen=True)
class Draw:
    """The randomness of one training step, and which rows of its batch are needed here.

    Args:
        seed: of the training.
        step: 1 is the first.
        count: rows of the whole batch.
        rows: the rows of the batch needed here; `draw[part]` selects a part of them.
        drop: probability to drop all conditions of an example together.
        drops: probability to drop a single condition, by name.
        flip: whether the source may mirror examples.
    """

    seed: int
    step: int
    count: int
    rows: slice
    drop: float = 0.0
    drops: Mapping[str, float] = field(default_factory=dict)
    flip: bool = False
    kept: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)  # shared by the parts of a step

    def __getitem__(self, part: slice) -> "Draw":
        """The draws of some of these rows."""
        start, stop, _ = part.indices(self.rows.stop - self.rows.start)
        return replace(self, rows=slice(self.rows.start + start, self.rows.start + stop))

    def whole(self, f: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """f(count, generator) for the whole batch, cut to the rows here: for draws that are stratified over a batch, such as times."""
        return f(self.count, self._after_coins())[self.rows]

    @property
    def flips(self) -> Bool[Tensor, "b"]:
        """A fair coin for each example: which ones a source mirrors, if `flip` allows it."""
        return self._coins[0][self.rows] < 0.5

    def dropped(self, cond: Cond) -> Cond:
        """The conditions with some dropped: all of an example together with probability `drop`, each separately with its own in `drops`."""
        if not cond:
            return cond
        cond = drop(cond, self._coins[1][self.rows] < self.drop) or {}
        for place, (name, chance) in enumerate(sorted(self.drops.items())):
            if name in cond and chance:
                coins = torch.rand(self.count, generator=seeded(self.seed, STEP, self.step, place))
                cond = drop(cond, coins[self.rows] < chance, [name]) or {}
        return cond

    def normal(self, x: Tensor, stream: int = 0) -> Tensor:
        """Standard normal noise like x, for the rows here; different streams are independent."""
        drawn = []
        for block in range(self.rows.start // BLOCK, -(-self.rows.stop // BLOCK)):
            first = block * BLOCK
            key = (stream, block, x.shape[1:], x.dtype)
            if key not in self.kept:
                size, number = (
                    (min(BLOCK, self.count - first), *x.shape[1:]),
                    (self.step, block) if stream == 0 else (self.step, block, stream),
                )
                self.kept[key] = torch.randn(size, generator=seeded(self.seed, NOISE, *number), dtype=x.dtype)
            drawn.append(self.kept[key][max(0, self.rows.start - first) : self.rows.stop - first])
        return moved(torch.cat(drawn) if drawn else torch.empty(0, *x.shape[1:], dtype=x.dtype), x.device)

    def generators(self) -> list[torch.Generator]:
        """One generator for each row here, for draws without a fixed shape, such as latents."""
        seeds = self.whole(lambda n, generator: torch.randint(2**32, (n,), generator=generator))
        return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]

    @property
    def _coins(self) -> Tensor:
        """Two uniform numbers for each row of the whole batch."""
        if "coins" not in self.kept:
            self._after_coins()
        return self.kept["coins"]

    def _after_coins(self) -> torch.Generator:
        """The generator of the whole batch after the coins were drawn from it."""
        generator = seeded(self.seed, STEP, self.step)
        self.kept["coins"] = torch.stack([torch.rand(self.count, generator=generator) for _ in range(2)])
        return generator


@runtime_checkable
class Codec(Protocol):
    """Converts values, as they are on disk and in sample files, to the x of a model and back."""

    @property
    def dtype(self) -> str:
        """Of the values."""
        ...

    def encode(self, values: Any, /) -> Tensor:
        """x of values."""
        ...

    def decode(self, x: Any, /) -> np.ndarray:
        """Values of x."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """JSON types only, for a manifest."""
        ...


CODECS: dict[str, Callable[[Mapping[str, Any]], Codec]] = {}  # kind to the function that reads its `to_json`; codecs register here


@dataclass(frozen=True)
class DataSpec:
    """All that a model needs to know about its data; stored in the manifest of a run.

    Args:
        shape: of one x; None for a size that varies.
        codec: between values and x.
        conditions: the specs of the conditions, by name.
        data_std: standard deviation of all entries of x; None if it was not measured or has no meaning.
        columns: names of the features of a table; () for other data.
        label: the heading of the labels in a file of samples.
    """

    shape: tuple[int | None, ...]
    codec: Codec
    conditions: Mapping[str, ConditionSpec] = field(default_factory=dict)
    data_std: float | None = None
    columns: tuple[str, ...] = ()
    label: str = "label"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, if all sizes are fixed.

        Raises:
            ValueError: a size varies.
        """
        if any(size is None for size in self.shape):
            raise ValueError(f"this kind of model needs examples of one size, got shape {self.shape}; crop or pad them.")
        return tuple(size for size in self.shape if size is not None)

    @property
    def std(self) -> float:
        """The standard deviation of all entries of x; 1 if it was not measured."""
        return 1.0 if self.data_std is None else self.data_std

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the condition `labels`; empty without this condition."""
        spec = self.conditions.get("labels")
        return spec.names if isinstance(spec, Classes) else ()

    @property
    def is_image(self) -> bool:
        """Whether an example is an image: (c, h, w), stored as integers."""
        return len(self.shape) == 3 and self.codec.dtype in ("uint8", "uint16")

    @property
    def is_bytes(self) -> bool:
        """Whether an example is an image of 8 bits, whose x lie on a grid in [-1, 1]."""
        return self.is_image and self.codec.dtype == "uint8"

    @property
    def has_picture(self) -> bool:
        """Whether samples can be drawn: images or points in the plane."""
        return self.is_image or self.shape == (2,)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "shape": list(self.shape),
            "codec": dict(self.codec.to_json()),
            "conditions": {name: spec.to_json() for name, spec in self.conditions.items()},
            "data_std": self.data_std,
            "columns": list(self.columns),
            "label": self.label,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "DataSpec":
        """From `to_json`, or from the `form` of runs of version 0.1."""
        shape = tuple(None if size is None else int(size) for size in record["shape"])
        if "codec" in record:
            codec, conditions = record["codec"], {name: ConditionSpec.from_json(spec) for name, spec in record["conditions"].items()}
        else:
            codec, classes = record["scaling"], tuple(map(str, record["classes"]))
            conditions = {"labels": Classes(classes)} if classes else {}
        kind = codec.get("kind", "scaling")
        if kind not in CODECS:
            raise ValueError(f'there is no codec of kind "{kind}"; import the module that defines it.')
        std, columns, label = record["data_std"], tuple(map(str, record.get("columns", ()))), str(record.get("label", "label"))
        return cls(shape, CODECS[kind](codec), conditions, None if std is None else float(std), columns, label)


@dataclass(frozen=True)
class Random:
    """Holds out a share of the rows, chosen by their content and the seed if the source supports it, else by row number and seed."""

    share: float
    seed: int = 0


@dataclass(frozen=True)
class Block:
    """Holds out the last share of rows that are ordered in time, and leaves out `gap` rows before them."""

    share: float
    gap: int = 0


@dataclass(frozen=True)
class Group:
    """Holds out whole groups: rows with the same value of one condition stay together."""

    name: str
    share: float
    seed: int = 0


Split = Random | Block | Group


class Source:
    """Examples with random access. A subclass needs `spec`, a length, `batch` and `fingerprint`; the rest follows."""

    @property
    def spec(self) -> DataSpec:
        """The spec of the examples."""
        raise NotImplementedError

    def __len__(self) -> int:
        """The number of examples."""
        raise NotImplementedError

    def batch(self, rows: np.ndarray, draw: Draw | None = None) -> Batch:
        """These rows, in this order; augmented if a draw is given, an example and its maps together."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Equal for equal examples, on every machine."""
        raise NotImplementedError

    name: str = ""  # for messages
    notes: tuple[str, ...] = ()  # notes for the user
    skipped: tuple[str, ...] = ()  # files that could not be read, each with the reason

    def scaled_like(self, spec: DataSpec) -> "Source":
        """The same examples with the codec of an existing run."""
        return self

    def split(self, how: Split) -> "tuple[Source, Source]":
        """The training examples and the held-out examples.

        Raises:
            ValueError: a share outside (0, 1), or one that leaves nothing on a side.
        """
        kept, held = self.split_rows(how)
        return Subset(self, kept), Subset(self, held)

    def split_rows(self, how: Split) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows held out, both ascending.

        Raises:
            ValueError: as `split`.
        """
        count = len(self)
        if not 0 < how.share < 1:
            raise ValueError(f"the share held out must lie between 0 and 1, got {how.share}.")
        many = round(how.share * count)
        if isinstance(how, Block):
            kept, held = np.arange(count - many - how.gap), np.arange(count - many, count)
        elif isinstance(how, Group):
            kept, held = self._groups(how)
        else:
            order = np.random.default_rng(how.seed).permutation(count)
            kept, held = np.sort(order[many:]), np.sort(order[:many])
        if not len(kept) or not len(held):
            raise ValueError(f"{self.name}: holding out {how.share:g} of {count} rows leaves none on one side; change training.held_out.")
        return kept, held

    def _groups(self, how: Group) -> tuple[np.ndarray, np.ndarray]:
        cond = self.batch(np.arange(len(self))).cond
        if how.name not in cond or cond[how.name].value.ndim != 1:
            raise ValueError(f"{self.name}: rows cannot be grouped by {how.name}; there are {', '.join(cond) or 'no conditions'}.")
        values = cond[how.name].value.numpy()
        names, counts = np.unique(values, return_counts=True)
        order = np.random.default_rng(how.seed).permutation(len(names))
        before = np.cumsum(counts[order]) - counts[order]
        held = np.isin(values, names[order[before < round(how.share * len(self))]])
        return np.flatnonzero(~held), np.flatnonzero(held)


class Subset(Source):
    """Some rows of a source."""

    def __init__(self, of: Source, rows: np.ndarray) -> None:
        """Keeps both."""
        self.of, self.rows, self.name = of, rows, of.name

    @property
    def spec(self) -> DataSpec:
        """That of the source."""
        return self.of.spec

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def batch(self, rows: np.ndarray, draw: Draw | None = None) -> Batch:
        """Rows of the subset."""
        return self.of.batch(self.rows[rows], draw)

    def scaled_like(self, spec: DataSpec) -> Source:
        """The same rows of the source with the codec of an existing run."""
        return Subset(self.of.scaled_like(spec), self.rows)

    def fingerprint(self) -> str:
        """Fingerprint of the source and the rows."""
        return hashlib.sha256(json.dumps([self.of.fingerprint(), self.rows.tolist()]).encode()).hexdigest()


class Stream:
    """Batches in one order, without random access. A resumed run starts at `start` and compares the batches with the earlier ones."""

    @property
    def spec(self) -> DataSpec:
        """The spec of the examples."""
        raise NotImplementedError

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches from number `start` on, 0 the first.

        Raises:
            ValueError: it cannot be replayed.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Equal for equal examples, as far as this can be known without reading them all."""
        raise NotImplementedError

    name: str = ""  # for messages
    notes: Sequence[str] = ()  # notes for the user
