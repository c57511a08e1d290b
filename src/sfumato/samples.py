"""Samples as values of the data's own type, and writing them to files."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from sfumato.condition import Classes, Numbers
from sfumato.data.arrays import CONDITION
from sfumato.data.source import DataSpec
from sfumato.data.writing import write_csv, write_png
from sfumato.pictures import picture

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class Samples:
    """Samples in the type of the data, such as uint8 [n, h, w, c] images or float32 [n, …], with their conditions.

    Args:
        values: one row a sample.
        cond: the conditions they were drawn with, by name; a class of -1, or a number of NaN, means not given.
        spec: of the data, with the names of columns and classes.
    """

    values: Shaped[np.ndarray, "n *value"]
    cond: Mapping[str, np.ndarray] = field(default_factory=dict)
    spec: DataSpec | None = None

    @property
    def labels(self) -> Int64[np.ndarray, "n"] | None:
        """The condition `labels`, if there is one."""
        return self.cond.get("labels")

    def save(self, path: str | Path, *, columns: int | None = None) -> None:
        """Writes them in the format given by the suffix: .npz, .csv, .png, .jpg, or a new folder of PNGs if there is none.

        A file is written under a temporary name and renamed, so an existing file is only replaced by a complete one.

        Raises:
            ValueError: another suffix, a picture of data that have none, or a folder that is not empty.
            OSError: a path that cannot be written to.
        """
        path, suffix = Path(path), Path(path).suffix.lower()
        if suffix == ".gif":
            raise ValueError(f"a .gif shows how samples are made, which finished samples do not; write {path} with Model.reverse_gif.")
        is_image, is_table = self.values.ndim == 4 and np.issubdtype(self.values.dtype, np.integer), self.values.ndim == 2
        check_target(path, is_image=is_image, has_picture=is_image or self.values.shape[1:] == (2,), is_table=is_table)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.partial")
        if suffix == ".npz":
            with aside.open("wb") as file:
                np.savez(file, **self._arrays())
            aside.replace(path)
        elif suffix == ".csv":
            spec = self.spec
            named = {} if spec is None else {"columns": spec.columns, "classes": spec.classes, "label": spec.label}
            write_csv(aside, self.values, self.labels, **named, more=self._cells())
            aside.replace(path)
        elif suffix in PICTURES:
            picture(self.values, columns=columns).save(aside, format=PICTURES[suffix], quality=95)
            aside.replace(path)
        else:
            path.mkdir(exist_ok=True)
            for i, value in enumerate(self.values):
                name = f"{i:06d}.png" if self.labels is None or self.labels[i] < 0 else f"{i:06d}_{self.labels[i]}.png"
                write_png(path / name, value)

    def _cells(self) -> dict[str, list[str]]:
        """The conditions that fit in a table cell, except the labels; empty if not given."""
        cells = {}
        for name, values in self.cond.items():
            spec = None if self.spec is None else self.spec.conditions.get(name)
            if isinstance(spec, Classes) and name != "labels":
                cells[name] = [spec.names[number] if number >= 0 else "" for number in values]
            elif isinstance(spec, Numbers):
                names = spec.names or ([name] if spec.size == 1 else [f"{name}{i + 1}" for i in range(spec.size)])
                columns = zip(names, values.T, strict=True)
                cells |= {each: ["" if np.isnan(number) else str(number) for number in column] for each, column in columns}
        return cells

    def _arrays(self) -> dict[str, Any]:
        """The arrays of an npz of the public guided-diffusion evaluator, with the other conditions as `cond_NAME`."""
        arrays: dict[str, Any] = {"arr_0": self.values} | ({} if self.labels is None else {"arr_1": self.labels})
        arrays |= {f"{CONDITION}{name}": value for name, value in self.cond.items() if name != "labels"}
        return arrays | ({"columns": np.array(self.spec.columns)} if self.spec is not None and self.spec.columns else {})


def check_target(path: Path, *, is_image: bool, has_picture: bool, is_table: bool = False) -> None:
    """Refuses a path that samples cannot be written to; called before they are drawn.

    Raises:
        ValueError: an unknown suffix, a picture of data that have none, a folder instead of a file, or the reverse.
        OSError: a path that cannot be written to.
    """
    suffix = path.suffix.lower()
    if suffix not in ("", ".npz", ".csv", ".gif", *PICTURES):
        raise ValueError(f'samples are written as .npz, .csv, .png, .jpg, .gif or a folder, got "{path.suffix}" in {path}.')
    if suffix == ".csv" and not is_table:
        raise ValueError(f"a CSV holds rows of numbers, but these samples are not; name a .npz instead of {path}.")
    if suffix in (".gif", *PICTURES) and not has_picture:
        raise ValueError(f"only images and points in the plane can be drawn, so {path} cannot be written; use .npz.")
    if path.suffix and path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, or a folder without a suffix.")
    if not path.suffix:
        if not is_image:
            raise ValueError(f"only images can be written as a folder of PNGs; name a .npz instead of {path}.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} exists and is not empty; name a new folder.")
    home = next(each for each in (*([] if path.suffix else [path]), *path.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=home).close()  # only trying is reliable: root ignores permissions, and a disk may be read-only
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (below {home})", str(path)) from None


def sheet_columns(cycle: int, count: int) -> int | None:
    """The number of columns for which each column of `count` samples has one condition and the sheet is about square.

    A multiple of the length of the cycle of conditions; None without conditions, or if the cycle is too long.
    """
    return cycle * max(1, round(math.sqrt(count) / cycle)) if 0 < cycle <= 40 else None
