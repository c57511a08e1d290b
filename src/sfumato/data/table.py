"""Tables of numbers in CSV or TSV: each row an example, each column a feature, and perhaps one column of labels.

The first line names the columns. Numbers are written with a point; an empty cell, NaN and infinity are refused, as no value would be right.
"""

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO

import numpy as np

from sfumato.data.dataset import Dataset, Scaling

_LONGEST_LINE = 1 << 24


def table(path: str | Path, *, columns: Sequence[str] | None = None, label: str | None = None) -> Dataset:
    """float32 [n, columns] of a .csv (commas) or .tsv (tabs), standardised column by column.

    Args:
        columns: the features, in this order; every column but the label if left out.
        label: the column of the labels. Its distinct cells are the classes: in the order of numbers where all are integers, else of texts.

    Raises:
        ValueError: for a file that cannot be read, columns that are not there or not different, and cells that are no finite number, each
            with its line and column.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names, numbers, labels = _read(file, path, columns, label)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}; give the path of a CSV or TSV file.") from None
    if not numbers:
        raise ValueError(f"{path} has a line of names but no rows below it; give a table with data.")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which Dataset refuses
        values = np.frombuffer(numbers, np.float64).reshape(-1, len(names)).astype(np.float32)
    classes = _classes(labels)
    places = {text: number for number, text in enumerate(classes)}
    return Dataset(
        values=values,
        labels=None if label is None else np.array([places[text] for text in labels], dtype=np.int64),
        classes=classes,
        scaling=Scaling.measure(values),
        name=path.stem,
    )


def _read(file: IO[str], path: Path, columns: Sequence[str] | None, label: str | None) -> tuple[Sequence[str], "array[float]", list[str]]:
    """Names of the features, their numbers row by row, and the labels' cells."""
    rows = csv.reader(_lines(file, path), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    numbers, labels = array("d"), list[str]()
    try:
        header = [name.strip() for name in next(rows, [])]
        names = _features(header, path, columns, label)
        where = {name: place for place, name in enumerate(header)}
        places = [where[name] for name in names]
        label_place = None if label is None else where[label]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{path}, line {rows.line_num}: expected {len(header)} cells as in the first line, got {len(row)}.")
            numbers.extend(_numbers(row, places, header, f"{path}, line {rows.line_num}"))
            if label_place is not None:
                labels.append(row[label_place].strip())
                if not labels[-1]:
                    raise ValueError(f"{path}, line {rows.line_num}: column {label!r} has no label; fill it or remove the row.")
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num} is no CSV: {error}; correct it.") from None
    return names, numbers, labels


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines; a file without line ends is not read whole."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"{path} has a line of more than {_LONGEST_LINE} characters, so it is no table; give a CSV or TSV file.")
        yield line


def _features(header: list[str], path: Path, columns: Sequence[str] | None, label: str | None) -> Sequence[str]:
    """The names of the features."""
    if not any(header):
        raise ValueError(f"{path} must begin with a line that names its columns, got an empty one; give a table with data.")
    if all(map(_is_number, header)):
        raise ValueError(f"{path} must begin with a line that names its columns, got numbers ({', '.join(header[:4])}); add the names.")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: the columns must have different names, got {twice[0]!r} more than once.")
    for name in [*(columns or ()), *([] if label is None else [label])]:
        if name not in header:
            near = get_close_matches(name, header, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(header[:20])}."
            raise ValueError(f"{path} has no column {name!r}; {hint}")
    names = [name for name in header if name != label] if columns is None else columns
    if not names or len(set(names)) < len(names) or label in names:
        raise ValueError(f"{path}: a table needs different columns as features, without the label, got {', '.join(names) or 'none'}.")
    return names


def _numbers(row: list[str], places: list[int], header: list[str], where: str) -> list[float]:
    """The cells of the features."""
    try:
        numbers = [float(row[place]) for place in places]
    except ValueError:
        numbers = []
    if not numbers or not math.isfinite(sum(numbers)) or any("_" in row[place] for place in places):
        for place in places:
            if not _is_number(row[place]) or not math.isfinite(float(row[place])):
                got = repr(row[place]) if row[place].strip() else "an empty cell"
                raise ValueError(
                    f"{where}: column {header[place]!r} must hold finite numbers, got {got}; "
                    "fill it, remove the row, or choose other columns."
                )
    return numbers


def _is_number(cell: str) -> bool:
    """Whether the cell is a number, NaN and infinity among them; Python would also read 1_000."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _classes(labels: list[str]) -> tuple[str, ...]:
    """The distinct labels in order."""
    distinct = set(labels)
    is_whole = all(label.removeprefix("-").isdecimal() for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label) if is_whole else 0, label)))
