"""Tables of numbers in CSV or TSV: each row an example, each column a feature; optionally a column of labels, and columns of conditions.

The first line has the names of the columns and determines the separator: commas, semicolons or tabs. Numbers have a decimal point; in
files with semicolons also a comma. A cell that is empty, NaN or NA is missing: it is refused, or its row is dropped.
"""

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from sfumato.condition import Classes, ConditionSpec, Numbers
from sfumato.data.arrays import Missing
from sfumato.data.dataset import Dataset
from sfumato.data.scaling import Scaling

_LONGEST_LINE = 1 << 24
_MISSING = {"", "nan", "na", "n/a", "null", "none"}
_MOST_LINES, _MOST_COLUMNS = 8, 12  # that an error lists


def table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    conditions: Sequence[str] = (),
    missing: Missing = "refuse",
) -> Dataset:
    """float64 [n, columns] of a .csv (commas, semicolons or tabs) or .tsv (tabs), standardised column by column.

    Args:
        columns: the features, in this order; by default every column but the label and the conditions.
        label: the column of the labels. Its distinct cells are the classes: in the order of numbers where all are integers, else of texts.
        conditions: columns that are conditions: numbers if every non-missing cell is one, else classes like the label's.
        missing: "refuse" missing cells, or "drop" their rows.

    Raises:
        ValueError: for a file that cannot be read, columns that are missing or repeated, and cells that are not finite numbers, all of
        them with their lines and columns.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = _read(file, path, columns, label, conditions, drops=missing == "drop")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}; give the path of a CSV or TSV file.") from None
    if not found.numbers:
        what = f"only rows with missing cells ({found.dropped})" if found.dropped else "no rows"
        raise ValueError(f"{path} has a line of names but {what} below it; give a table with data.")
    numbers = np.frombuffer(found.numbers, np.float64).reshape(-1, len(found.names))
    features = len(found.names) - sum(name not in found.texts for name in conditions)
    values = np.ascontiguousarray(numbers[:, :features])
    left_out = f"{path.name}: left out {found.dropped} of {len(values) + found.dropped} rows with missing cells (data.missing=drop)."
    labels, classes = (None, None) if label is None else _as_classes(found.texts[label])
    known: dict[str, tuple[np.ndarray, ConditionSpec]] = {}
    for name in conditions:
        if name in found.texts:
            known[name] = _as_classes(found.texts[name])
        else:
            column = numbers[:, [found.names.index(name)]].astype(np.float32)
            known[name] = column, Numbers.measured(column)
    return Dataset(
        values=values,
        labels=labels,
        classes=() if classes is None else classes.names,
        scaling=Scaling.measure(values),
        name=path.stem,
        columns=tuple(found.names[:features]),
        label=label or "label",
        measured="channel",
        notes=(left_out,) if found.dropped else (),
        conditions=known,
    )


@dataclass
class _Found:
    """Names of the numbers (features, then conditions), the numbers by row, texts of labels and conditions, number of dropped rows."""

    names: Sequence[str]
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    texts: dict[str, list[str]] = field(default_factory=dict)
    dropped: int = 0


def _read(file: IO[str], path: Path, columns: Sequence[str] | None, label: str | None, conditions: Sequence[str], *, drops: bool) -> _Found:
    """The whole table; with conditions it is read twice, since only at the end of a column is it known whether it has only numbers."""
    header, rows, is_comma = _rows(file, path)
    features = _features(header, path, columns, label, conditions)
    where = {name: place for place, name in enumerate(header)}
    of_texts = [] if label is None else [label]
    if conditions:
        cells = ([row[where[name]].strip() for name in conditions] for _, row in rows)
        is_number = [True] * len(conditions)
        for row in cells:
            is_number = [
                is_it and (cell.lower() in _MISSING or math.isfinite(_number(cell, comma=is_comma)))
                for is_it, cell in zip(is_number, row, strict=True)
            ]
        of_texts += [name for name, is_it in zip(conditions, is_number, strict=True) if not is_it]
        file.seek(0)
        _, rows, _ = _rows(file, path)
    found = _Found([*features, *(name for name in conditions if name not in of_texts)], texts={name: [] for name in of_texts})
    places, bad = [where[name] for name in found.names], dict[str, _Bad]()
    for line, row in rows:
        numbers = [_number(row[place], comma=is_comma) for place in places]
        texts = [row[where[name]].strip() for name in of_texts]
        wrong = [name for name, number in zip(found.names, numbers, strict=True) if not math.isfinite(number)]
        if drops and ("" in texts or wrong) and all(row[where[name]].strip().lower() in _MISSING for name in wrong):
            found.dropped += 1
            continue
        for name in [*wrong, *(name for name, text in zip(of_texts, texts, strict=True) if text == "")]:
            bad.setdefault(name, _Bad()).add(line, row[where[name]].strip())
        found.numbers.extend(numbers)
        for name, text in zip(of_texts, texts, strict=True):
            found.texts[name].append(text)
    if bad:
        raise ValueError(_refusal(path, bad, label))
    return found


def _rows(file: IO[str], path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]], bool]:
    """The names of the columns, each row with its line number, and whether numbers may have a decimal comma."""
    lines = _lines(file, path)
    first = next(lines, "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first)
    rows = csv.reader(chain([first], lines), delimiter=delimiter)

    def cells() -> Iterator[list[str]]:
        try:
            yield from rows
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num} is not CSV: {error}; correct it.") from None

    every = cells()
    header = [name.strip() for name in next(every, [])]

    def below() -> Iterator[tuple[int, list[str]]]:
        for row in every:
            if row and len(row) != len(header):
                raise ValueError(f"{path}, line {rows.line_num}: expected {len(header)} cells as in the first line, got {len(row)}.")
            if row:
                yield rows.line_num, row

    return header, below(), delimiter == ";"


def _as_classes(texts: list[str]) -> tuple[np.ndarray, Classes]:
    """Texts as int64 [n], and the spec of their classes."""
    names, counts = _classes(texts), Counter(texts)
    places = {text: number for number, text in enumerate(names)}
    return np.array([places[text] for text in texts], np.int64), Classes(names, tuple(counts[name] for name in names))


@dataclass
class _Bad:
    """The cells of a column that are not finite numbers (or labels): how many, the first of them, whether all are missing."""

    count: int = 0
    lines: list[int] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    can_drop: bool = True

    def add(self, line: int, cell: str) -> None:
        """Counts one."""
        self.count += 1
        self.can_drop &= cell.lower() in _MISSING
        if len(self.lines) < _MOST_LINES:
            self.lines.append(line)
            self.cells.append(repr(cell) if cell else "an empty cell")

    def __str__(self) -> str:
        """For example "an empty cell, 'nan' in lines 3, 7"."""
        more = f" and {self.count - len(self.lines)} more" if self.count > len(self.lines) else ""
        where = f"line{'s' * (self.count > 1)} {', '.join(map(str, self.lines))}{more}"
        return f"{', '.join(dict.fromkeys(self.cells))} in {where}"


def _refusal(path: Path, bad: dict[str, _Bad], label: str | None) -> str:
    """One sentence on all bad cells."""
    named = [f"column {name!r} has {'no label: ' * (name == label)}{cells}" for name, cells in list(bad.items())[:_MOST_COLUMNS]]
    others = f"; and {len(bad) - _MOST_COLUMNS} more columns" if len(bad) > _MOST_COLUMNS else ""
    remedy = "correct them, choose other columns, or name a column of labels as the label"
    if all(cells.can_drop for cells in bad.values()):
        remedy = "fill them, or drop their rows with --set data.missing=drop"
    count = sum(cells.count for cells in bad.values())
    return f"{path}: every cell must hold a finite number, got {count} that do not: {'; '.join(named)}{others}; {remedy}."


def _delimiter(line: str) -> str:
    """The separator that splits the first line into the most names; a comma if none does."""
    return max(",;\t", key=lambda mark: len(next(csv.reader([line[:100_000]], delimiter=mark), [])))


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines; stops at a line that is too long instead of reading a whole file without line ends."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"{path} has a line of more than {_LONGEST_LINE} characters, so it is not a table; give a CSV or TSV file.")
        yield line


def _features(header: list[str], path: Path, columns: Sequence[str] | None, label: str | None, conditions: Sequence[str]) -> Sequence[str]:
    """The names of the features."""
    if not any(header):
        raise ValueError(f"{path} must start with a line of column names, got an empty one; give a table with data.")
    if all(map(_is_number, header)):
        raise ValueError(f"{path} must start with a line of column names, got numbers ({', '.join(header[:4])}); add the names.")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: the columns must have different names, got {twice[0]!r} more than once.")
    known = [*([] if label is None else [label]), *conditions]
    for name in [*(columns or ()), *known]:
        if name not in header:
            near = get_close_matches(name, header, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(header[:20])}."
            raise ValueError(f"{path} has no column {name!r}; {hint}")
    names = [name for name in header if name not in known] if columns is None else columns
    if not names or len(set(names)) < len(names) or label in names:
        raise ValueError(f"{path}: the features must be different columns, without the label; got {', '.join(names) or 'none'}.")
    if len({*names, *known}) < len(names) + len(known):
        raise ValueError(f"{path}: a column can be a feature, the label, or one condition; {', '.join(conditions)} are used twice.")
    return names


def _number(cell: str, *, comma: bool) -> float:
    """The number in a cell, NaN if there is none; Python would also accept 1_000."""
    text = cell.strip()
    if comma and "," in text and "." not in text:
        text = text.replace(",", ".")
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _is_number(cell: str) -> bool:
    """Whether the cell is a number, including NaN and infinity; Python would also accept 1_000."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _classes(labels: list[str]) -> tuple[str, ...]:
    """The distinct labels, in order."""
    distinct = set(labels)
    is_whole = all(label.removeprefix("-").isdecimal() for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label) if is_whole else 0, label)))
