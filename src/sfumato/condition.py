"""Conditions of examples, each under a name: a class, numbers, a map, a sequence, tokens.

Inside the library every condition is a `Condition`: values, and which rows have one. Public calls also take plain tensors and arrays,
which `as_cond` converts: a class of -1 means not given. A condition that is not given, or dropped, keeps its value, but nothing reads
it: it can be anything, even NaN.

A `ConditionSpec` describes the possible values. Networks are built for a mapping from name to spec.
"""

import hashlib
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, final

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from sfumato.runtime import moved


@dataclass(frozen=True)
class Condition:
    """One condition of b examples.

    Args:
        value: int64 [b] classes, [b, d] numbers, [b, c, *space] a map, [b, n, d] a sequence, int64 [b, n] tokens.
        given: which rows have a value; False also for dropped ones.
        mask: which positions of a sequence are used; None for all.
    """

    value: Shaped[Tensor, "b *rest"]
    given: Bool[Tensor, "rows"]
    mask: Bool[Tensor, "rows n"] | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.value)

    def __getitem__(self, rows: SupportsIndex | slice | Tensor) -> "Condition":
        """These rows: an index (one row stays a row), a slice, a mask, or a tensor of indices.

        Raises:
            IndexError: an index beyond the last row.
        """
        if isinstance(rows, SupportsIndex) and not isinstance(rows, Tensor):
            row = range(len(self))[rows]
            rows = slice(row, row + 1)
        return Condition(self.value[rows], self.given[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device | str) -> "Condition":
        """Moves it to this device."""
        there = torch.device(device)
        return Condition(moved(self.value, there), moved(self.given, there), None if self.mask is None else moved(self.mask, there))


torch.export.register_dataclass(Condition, serialized_type_name="sfumato.Condition")

Cond = Mapping[str, Condition]
CondLike = Mapping[str, Condition | Tensor | np.ndarray]  # what public calls take


def as_cond(given: CondLike | None) -> dict[str, Condition] | None:
    """Converts plain tensors and arrays to conditions; a `Condition` is returned as it is. Does not wait for a device.

    Integers [b] are classes, not given if negative. Anything else is given in every row.

    Raises:
        ValueError: a single number instead of one row an example, or (on a CPU) a class below -1.
    """
    return None if given is None else {name: _as_condition(name, value) for name, value in given.items()}


def drop(cond: CondLike | None, rows: Bool[Tensor, "b"] | bool = True, names: Collection[str] | None = None) -> dict[str, Condition] | None:
    """The conditions with the chosen rows (or all) marked as not given; their values are kept.

    Args:
        cond: the conditions.
        rows: which rows.
        names: which conditions; all by default.

    Raises:
        ValueError: a name that is not among the conditions.
    """
    if (cond := as_cond(cond)) is None:
        return None
    if names is not None:
        refuse_unknown(names, cond, "what is given")
    return {name: _dropped(one, rows) if names is None or name in names else one for name, one in cond.items()}


def take(cond: CondLike | None, rows: slice | Tensor) -> dict[str, Condition] | None:
    """The conditions of some rows: a slice, a mask, or a tensor of indices."""
    return None if (cond := as_cond(cond)) is None else {name: one[rows] for name, one in cond.items()}


def cat(*parts: CondLike) -> dict[str, Condition]:
    """Concatenates the rows of several sets of conditions.

    Raises:
        ValueError: sets with different names.
    """
    first, *others = every = [as_cond(part) or {} for part in parts]
    for other in others:
        if other.keys() != first.keys():
            raise ValueError(f"only conditions with the same names can be joined, got {sorted(first)} and {sorted(other)}.")
    return {name: _joined([one[name] for one in every]) for name in first}


def spread(cond: CondLike, count: int) -> dict[str, Condition]:
    """The conditions of `count` examples, from one row for all of them or one for each."""
    return {name: one if len(one) == count else one[torch.zeros(count, dtype=torch.long)] for name, one in (as_cond(cond) or {}).items()}


def class_of(cond: CondLike | None, what: str) -> Int[Tensor, "b"] | None:
    """The classes under "labels", -1 if not given; None without conditions.

    Raises:
        ValueError: conditions with other names.
    """
    if (cond := as_cond(cond)) is None:
        return None
    refuse_unknown(cond, ("labels",), what)
    return cond["labels"].value.where(cond["labels"].given, -1) if cond else None


def to(cond: CondLike | None, device: torch.device | str) -> dict[str, Condition] | None:
    """The conditions on this device."""
    return None if (cond := as_cond(cond)) is None else {name: one.to(device) for name, one in cond.items()}


def refuse_unknown(names: Collection[str], known: Collection[str], what: str) -> None:
    """Refuses unknown names of conditions.

    Raises:
        ValueError: names the first unknown one, and the known ones.
    """
    for name in names:
        if name not in known:
            raise ValueError(f'{what} has no condition "{name}"; {_listed(known, "it has")}.')


def refuse_cond(cond: CondLike | None, rows: int) -> None:
    """Refuses conditions that are not tensors or arrays with one row an example, and labels that are not one integer an example.

    Checks types and shapes only: it reads no values, so it does not wait for a device.

    Raises:
        ValueError: another type, shape or dtype.
    """
    if cond is None:
        return
    if not isinstance(cond, Mapping):
        raise ValueError(f'conditions are tensors by name, as in {{"labels": torch.tensor([3, 5])}}, got {type(cond).__name__}.')
    for name, given in cond.items():
        value = given.value if isinstance(given, Condition) else given
        if not isinstance(value, Tensor | np.ndarray):
            raise ValueError(f'cond["{name}"] must be a torch tensor with one row an example, got {type(value).__name__}.')
        if name == "labels" and (value.ndim != 1 or not _is_integer(torch.as_tensor(value))):
            raise ValueError(f"labels must be integers of shape [{rows}], one an example, got {value.dtype} of shape {tuple(value.shape)}.")
        if value.ndim == 0 or len(value) != rows:
            raise ValueError(f'cond["{name}"] must have one row an example, {rows}, got shape {tuple(value.shape)}.')


def _as_condition(name: str, value: Condition | Tensor | np.ndarray) -> Condition:
    if isinstance(value, Condition):
        if value.given.shape != value.value.shape[:1]:
            raise ValueError(f'"{name}" has {len(value)} rows, but its `given` has shape {list(value.given.shape)}.')
        return value
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value.astype(np.int64) if value.dtype.kind in "iu" else np.array(value))
    if value.ndim == 0:
        raise ValueError(f'"{name}" must have one row an example, got a single number; for one example, pass a tensor with one row.')
    if value.ndim > 1 or not _is_integer(value):
        return Condition(value, torch.ones(len(value), dtype=torch.bool, device=value.device))
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and bool((value < -1).any()):
        raise ValueError(f"{name} must be classes, counted from 0 (or -1 for none), got {value.min()}.")
    return Condition(value.long(), value >= 0)


def _dropped(one: Condition, rows: Tensor | bool) -> Condition:
    if isinstance(rows, bool):
        return replace(one, given=torch.zeros_like(one.given)) if rows else one
    return replace(one, given=one.given & ~moved(rows, one.given.device))


def _joined(parts: list[Condition]) -> Condition:
    mask = None
    if any(one.mask is not None for one in parts):
        mask = torch.cat([one.given.new_ones(one.value.shape[:2]) if one.mask is None else one.mask for one in parts])
    return Condition(torch.cat([one.value for one in parts]), torch.cat([one.given for one in parts]), mask)


def _is_integer(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


@dataclass(frozen=True)
class ConditionSpec(ABC):
    """The possible values of a condition: its kind, its size, and how to read one from text."""

    kind: ClassVar[str]

    @abstractmethod
    def read(self, text: str) -> Tensor:
        """One or more rows from the text after `--cond name=`.

        Raises:
            ValueError: the text cannot be read; one sentence.
        """

    @abstractmethod
    def check(self, value: Condition | Tensor | np.ndarray, name: str) -> None:
        """Checks given values. Waits for the device.

        Raises:
            ValueError: another dtype or shape, values out of range, NaN or infinity.
        """

    def tensor(self, value: Any, what: str) -> Tensor:
        """One or more rows from a Python value.

        Raises:
            ValueError: the value does not fit.
        """
        tensor = torch.as_tensor(value)
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        tensor = tensor if tensor.ndim == self.dims else tensor[None]
        self.check(tensor, what)
        return tensor

    @property
    def dims(self) -> int:
        """The number of axes of the value, including the rows."""
        return 2

    @abstractmethod
    def nothing(self, count: int) -> Condition:
        """`count` rows that are not given."""

    def words(self, one: Condition) -> list[str]:
        """A short text a row for a sheet of samples; empty for a row that is not given, and for kinds without a text."""
        return [""] * len(one)

    def shown(self, one: Condition) -> UInt8[np.ndarray, "b h w c"] | None:
        """A picture a row for a sheet of samples, grey for a row that is not given; None for kinds without a picture."""
        return None

    @final
    def rows(self, value: Any, numbers: Collection[int], what: str) -> Condition:
        """The condition of samples with these numbers: one value for all, or several used in turn; None for not given.

        Raises:
            ValueError: the value does not fit; the message starts with `what`.
        """
        if value is None:
            return self.nothing(len(numbers))
        if isinstance(value, Condition):
            self.check(value, what)
            every = value
        else:
            every = self.tensor(value, what)
        if not len(every):
            raise ValueError(f"{what} must have at least one value; omit it, or pass None.")
        return _as_condition(what, every[torch.tensor([number % len(every) for number in numbers], dtype=torch.long)])

    @final
    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {"kind": self.kind} | {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @final
    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "ConditionSpec":
        """Reads what `to_json` wrote, of any kind.

        Raises:
            ValueError: an unknown kind, or other options than the kind has.
        """
        kind, options = KINDS.get(record.get("kind", "")), {name: value for name, value in record.items() if name != "kind"}
        if kind is None:
            raise ValueError(f"unknown kind of condition {record.get('kind')!r}; there are {', '.join(KINDS)}.")
        if unknown := sorted(options.keys() - {one.name for one in fields(kind)}):
            raise ValueError(f"a condition of kind {kind.kind} has no option {unknown[0]}.")
        try:
            return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
        except TypeError:
            needed = ", ".join(one.name for one in fields(kind))
            raise ValueError(f"a condition of kind {kind.kind} needs {needed}, got {options}.") from None

    @final
    def fingerprint(self) -> str:
        """Equal for equal specs, different for different ones."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


@final
@dataclass(frozen=True)
class Classes(ConditionSpec):
    """One of these classes: int64 [b], 0 … len(names) - 1.

    Args:
        names: of the classes.
        counts: number of examples of each, if known.

    Raises:
        ValueError: no names, or a name twice.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] = field(default=(), compare=False)
    kind: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        """Checks the names."""
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"classes need at least one name, and names must differ; got {list(self.names)}.")

    @property
    def dims(self) -> int:
        """One: a class for each row."""
        return 1

    def nothing(self, count: int) -> Condition:
        """`count` rows without a class."""
        return Condition(torch.full((count,), -1), torch.zeros(count, dtype=torch.bool))

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    def read(self, text: str) -> Tensor:
        """Names or numbers of classes joined by commas, "none" for not given: int64 [count], -1 for none."""
        parts = [text] if text in self.names else [part.strip() for part in text.split(",")]
        return torch.tensor([self._read(part) for part in parts])

    def _read(self, part: str) -> int:
        for same in (str, str.casefold):
            found = [i for i, name in enumerate(self.names) if same(name) == same(part)]
            if len(found) == 1:
                return found[0]
        if part.casefold() in ("none", "-1"):
            return -1
        if part.isascii() and part.removeprefix("-").isdecimal():
            return self._in_range(int(part))
        near = get_close_matches(part, self.names, 1)
        hint = f"did you mean {near[0]}?" if near else f"{_listed(self.names, 'there are')}, or their numbers 0 … {len(self) - 1}, or none."
        raise ValueError(f'there is no class "{part}"; {hint}')

    def tensor(self, value: Any, what: str) -> Tensor:
        """int64 [k] of classes by number or name; -1 or "none" for none."""
        if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
            raise ValueError(f"{what} is a list of classes, each a number or a name, as in [0] or [{self.names[0]!r}]; got {value!r}.")
        numbers = [self._number(label, what) for label in value]
        if not numbers:
            raise ValueError(f"{what} must name at least one class; leave it out for all.")
        return torch.tensor(numbers)

    def _number(self, label: Any, what: str) -> int:
        if isinstance(label, str):
            return self._read(label)
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"{what}: a class is a number or a name, got {label!r}.") from None
        return self._in_range(number, f"{what}: ")

    def words(self, one: Condition) -> list[str]:
        """The names."""
        return [self.names[number] if is_given else "" for number, is_given in zip(one.value.tolist(), one.given.tolist(), strict=True)]

    def _in_range(self, number: int, where: str = "") -> int:
        if not -1 <= number < len(self):
            names = ", ".join(name if name == str(i) else f"{i} {name}" for i, name in enumerate(self.names[:20]))
            names += ", …" if len(self) > 20 else ""
            raise ValueError(f"{where}class {number} is out of range; the classes are {names} (or -1 for none).")
        return number

    def check(self, value: Condition | Tensor | np.ndarray, name: str) -> None:
        """Checks that they are integers [b] in 0 … len(names) - 1, -1 for none."""
        one = _as_condition(name, value)
        if not _is_integer(one.value) or one.value.ndim != 1:
            raise ValueError(f'"{name}" must be integers [b], one class for each example, got {shape_of(one.value)}.')
        _in_range(one.value[one.given], len(self), name, " (or be -1 for none)")


@final
@dataclass(frozen=True)
class Numbers(ConditionSpec):
    """Real numbers: [b, size]. Networks see (number - shift) / scale, which should have about the size of a standard normal number.

    Args:
        size: how many numbers.
        names: of each number; empty if they have none.
        shift: of each number; 0 by default.
        scale: of each number, positive; 1 by default.

    Raises:
        ValueError: a size below 1; names, shifts or scales of another length; scales that are not positive.
    """

    size: int
    names: tuple[str, ...] = ()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    kind: ClassVar[str] = "numbers"

    def __post_init__(self) -> None:
        """Checks the options."""
        _positive(self.size, "the size of numbers")
        for what in ("names", "shift", "scale"):
            if len(getattr(self, what)) not in (0, self.size):
                raise ValueError(f"{what} must have one entry for each of {self.size} numbers, got {len(getattr(self, what))}.")
        if not all(isfinite(number) for number in self.shift) or not all(isfinite(number) and number > 0 for number in self.scale):
            raise ValueError(f"shifts must be finite and scales positive, got {list(self.shift)} and {list(self.scale)}.")

    @classmethod
    def measured(cls, numbers: np.ndarray, names: tuple[str, ...] = ()) -> "Numbers":
        """The spec for such numbers [n, size], with their means and standard deviations over given rows (1 for a constant column).

        Raises:
            ValueError: a column that no row has, or infinity.
        """
        given = np.where(np.isnan(numbers).any(axis=1, keepdims=True), np.nan, numbers).astype(np.float64)
        if np.isnan(given).all() or np.isinf(given).any():
            raise ValueError("numbers must be finite, and given in at least one row.")
        deviation = np.nanstd(given, axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        return cls(numbers.shape[1], names, tuple(np.nanmean(given, axis=0).tolist()), tuple(scale.tolist()))

    def nothing(self, count: int) -> Condition:
        """`count` rows without numbers."""
        return Condition(torch.zeros(count, self.size), torch.zeros(count, dtype=torch.bool))

    def read(self, text: str) -> Tensor:
        """Numbers joined by commas, `size` for each row: float32 [count, size]."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(f'"{text}" is not {self._wanted()}.') from None
        if len(numbers) % self.size or not all(map(isfinite, numbers)):
            raise ValueError(f'"{text}" is not {self._wanted()}.')
        return torch.tensor(numbers, dtype=torch.float32).reshape(-1, self.size)

    def words(self, one: Condition) -> list[str]:
        """The numbers, with three digits."""
        rows = zip(one.value.tolist(), one.given.tolist(), strict=True)
        return [", ".join(f"{number:.3g}" for number in row) if is_given else "" for row, is_given in rows]

    def _wanted(self) -> str:
        count = "a number" if self.size == 1 else f"{self.size} numbers joined by commas"
        return count + (f" ({', '.join(self.names)})" if self.names else "")

    def check(self, value: Condition | Tensor | np.ndarray, name: str) -> None:
        """Checks that they are finite floats [b, size]."""
        one = _as_condition(name, value)
        if not one.value.is_floating_point() or one.value.shape[1:] != (self.size,):
            raise ValueError(f'"{name}" must be floats [b, {self.size}], got {shape_of(one.value)}.')
        _finite(one, name)


@final
@dataclass(frozen=True)
class Map(ConditionSpec):
    """An image or signal beside x, of its size or another: [b, channels, *space], about in [-1, 1].

    Args:
        channels: how many.
        shift: for the bytes of an image file, whose values are (byte - shift) / scale.
        scale: for the bytes of an image file.

    Raises:
        ValueError: fewer than one channel, a scale that is not positive.
    """

    channels: int
    shift: float = 127.5
    scale: float = 127.5
    kind: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        """Checks the options."""
        _positive(self.channels, "the channels of a map")
        if not isfinite(self.shift) or not (isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"the shift of a map must be finite and its scale positive, got {self.shift} and {self.scale}.")

    @property
    def dims(self) -> int:
        """Those of an image."""
        return 4

    def nothing(self, count: int) -> Condition:
        """`count` rows without a map."""
        return Condition(torch.zeros(count, self.channels, 1, 1), torch.zeros(count, dtype=torch.bool))

    def shown(self, one: Condition) -> UInt8[np.ndarray, "b h w c"] | None:
        """Maps of 1 or 3 channels as they would lie in a picture file; of others the first channel. None for a signal."""
        if one.value.ndim != 4:
            return None
        value = one.value if self.channels in (1, 3) else one.value[:, :1]
        value = torch.where(one.given.reshape(-1, 1, 1, 1), value * self.scale + self.shift, 127.5)
        return value.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def tensor(self, value: Any, what: str) -> Tensor:
        """Maps from image bytes [h, w, c] or [n, h, w, c], or from floats [c, h, w] or [n, c, h, w]."""
        if isinstance(value, str | Path):
            return self.read(str(value))
        if isinstance(value, list | tuple):
            return torch.cat([self.tensor(each, what) for each in value])
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            value = value if value.ndim == 4 else value[None]
            value = (np.moveaxis(value, -1, 1).astype(np.float32) - self.shift) / self.scale
        return super().tensor(value, what)

    def read(self, text: str) -> Tensor:
        """Reads an image file: float32 [1, channels, height, width]."""
        from PIL import Image, UnidentifiedImageError

        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(self.channels)
        if mode is None:
            raise ValueError(f"a map with {self.channels} channels cannot be read from an image, which has 1, 3 or 4; pass it from Python.")
        try:
            with Image.open(Path(text)) as picture:
                pixels = np.array(picture.convert(mode), dtype=np.float32)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read as an image"
            raise ValueError(f'a map must be an image file, got "{text}": {why}.') from None
        return (torch.from_numpy(pixels).reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1)[None] - self.shift) / self.scale

    def check(self, value: Condition | Tensor | np.ndarray, name: str) -> None:
        """Checks that it is finite floats [b, channels, *space]."""
        one = _as_condition(name, value)
        if not one.value.is_floating_point() or one.value.ndim < 3 or one.value.shape[1] != self.channels or not all(one.value.shape[2:]):
            raise ValueError(f'"{name}" must be floats [b, {self.channels}, …] with at least one spatial axis, got {shape_of(one.value)}.')
        _finite(one, name)


@final
@dataclass(frozen=True)
class Sequence(ConditionSpec):
    """Vectors in order: [b, n, size] with n up to `length`, and a mask of the positions in use.

    Raises:
        ValueError: a length or size below 1.
    """

    length: int
    size: int
    kind: ClassVar[str] = "sequence"

    def __post_init__(self) -> None:
        """Checks the options."""
        _positive(self.length, "the length of a sequence")
        _positive(self.size, "the size of a sequence")

    @property
    def dims(self) -> int:
        """Rows, places, entries."""
        return 3

    def nothing(self, count: int) -> Condition:
        """`count` empty sequences."""
        return Condition(torch.zeros(count, self.length, self.size), *_no_rows(count, self.length))

    def read(self, text: str) -> Tensor:
        """Not supported."""
        raise ValueError("sequences cannot be given as text yet; pass them from Python.")

    def check(self, value: Condition | Tensor | np.ndarray, name: str) -> None:
        """Checks that they are finite floats [b, n, size]; positions outside the mask can be anything."""
        one = _as_condition(name, value)
        if not one.value.is_floating_point() or one.value.ndim != 3 or one.value.shape[2] != self.size or one.value.shape[1] > self.length:
            raise ValueError(f'"{name}" must be floats [b, n, {self.size}] with n up to {self.length}, got {shape_of(one.value)}.')
        _mask_fits(one, name)
        _finite(one, name)


@final
@dataclass(frozen=True)
class Tokens(ConditionSpec):
    """Entries of a vocabulary in order: int64 [b, n] with n up to `length`, and a mask of the positions in use.

    Raises:
        ValueError: a length or vocabulary below 1.
    """

    length: int
    vocabulary: int
    kind: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        """Checks the options."""
        _positive(self.length, "the length of tokens")
        _positive(self.vocabulary, "the vocabulary of tokens")

    def nothing(self, count: int) -> Condition:
        """`count` empty sequences."""
        return Condition(torch.zeros(count, self.length, dtype=torch.long), *_no_rows(count, self.length))

    def read(self, text: str) -> Tensor:
        """Not supported."""
        raise ValueError("tokens cannot be given as text yet; pass their numbers from Python.")

    def check(self, value: Condition | Tensor | np.ndarray, name: str) -> None:
        """Checks that they are integers [b, n] in 0 … vocabulary - 1; positions outside the mask can be anything."""
        one = _as_condition(name, value)
        if not _is_integer(one.value) or one.value.ndim != 2 or one.value.shape[1] > self.length:
            raise ValueError(f'"{name}" must be integers [b, n] with n up to {self.length}, got {shape_of(one.value)}.')
        _mask_fits(one, name)
        _in_range(_seen(one), self.vocabulary, name)


def _no_rows(count: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, dtype=torch.bool), torch.zeros(count, length, dtype=torch.bool)


KINDS: dict[str, type[ConditionSpec]] = {spec.kind: spec for spec in (Classes, Numbers, Map, Sequence, Tokens)}


def class_labels(count: int) -> dict[str, ConditionSpec]:
    """The single condition "labels" with this many unnamed classes; no condition for 0."""
    return {"labels": Classes(tuple(map(str, range(count))))} if count else {}


def _seen(one: Condition) -> Tensor:
    """The given values, without positions outside the mask."""
    return one.value[one.given] if one.mask is None else one.value[one.given][one.mask[one.given]]


def _in_range(values: Tensor, count: int, name: str, unless: str = "") -> None:
    if values.numel() and bool(((values < 0) | (values >= count)).any()):
        raise ValueError(f"{name} must be in 0 … {count - 1}{unless}, got {values.min()} to {values.max()}.")


def _finite(one: Condition, name: str) -> None:
    bad = int((~_seen(one).isfinite()).sum())
    if bad:
        raise ValueError(f'"{name}" must be finite where it is given, but {bad} entries are NaN or infinity.')


def _mask_fits(one: Condition, name: str) -> None:
    if one.mask is not None and one.mask.shape != one.value.shape[:2]:
        raise ValueError(f'the mask of "{name}" must be {list(one.value.shape[:2])} like its positions, got {list(one.mask.shape)}.')


def _positive(number: int, what: str) -> None:
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}.")


def shape_of(value: Tensor) -> str:
    """Dtype and shape, for messages."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _listed(names: Collection[str], before: str) -> str:
    """The first few names."""
    shown = ", ".join(list(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{before} {shown or 'none'}"
