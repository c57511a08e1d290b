"""A report: figures by name, and the manifest of what they depend on; one JSON file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from sfumato.storage import write_text

VERSION = 1  # of the layout of a report


@dataclass(frozen=True)
class Figure:
    """A number and how sure it is.

    Args:
        value: the figure.
        error: its standard error; None where it is not known, as of a distance from one seed.
        count: samples (or data examples, for a likelihood) that it is of.
        floor: the same figure of real data: of disjoint halves against each other, or of held-out data; None where it has no meaning.
        floor_count: examples that the floor is of.
        ceiling: the same figure of noise; None where it has no meaning.
    """

    value: float
    error: float | None = None
    count: int = 0
    floor: float | None = None
    floor_count: int | None = None
    ceiling: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """Value, error and count always; floor and ceiling where they are known."""
        more = {name: getattr(self, name) for name in ("floor", "floor_count", "ceiling")}
        return {"value": self.value, "error": self.error, "count": self.count} | {k: v for k, v in more.items() if v is not None}


@dataclass(frozen=True)
class Report:
    """Figures by name, such as "fd@grey28", and the manifest of what they depend on.

    Args:
        metrics: name to figure.
        manifest: JSON types: samples, model, data, features, versions, device.
        notes: sentences that belong beside the figures, such as on a covariance that is not of full rank.
    """

    metrics: Mapping[str, Figure]
    manifest: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As in report.json."""
        metrics = {name: figure.to_json() for name, figure in self.metrics.items()}
        return {"version": VERSION, "metrics": metrics, "notes": list(self.notes), "manifest": dict(self.manifest)}

    def save(self, path: Path) -> None:
        """Writes report.json, aside first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    def table(self) -> Table:
        """The figures for a terminal, with floor and ceiling beside them."""
        table = Table(Column("figure", no_wrap=True), "value", "± error", "count", "floor (real)", "ceiling (noise)", box=None)
        for name, figure in self.metrics.items():
            floor = "" if figure.floor is None else f"{figure.floor:.4g}"
            if figure.floor is not None and figure.floor_count not in (None, figure.count):
                floor += f" (of {figure.floor_count})"
            ceiling = "" if figure.ceiling is None else f"{figure.ceiling:.4g}"
            error = "" if figure.error is None else f"{figure.error:.2g}"
            table.add_row(name, f"{figure.value:.4g}", error, str(figure.count), floor, ceiling)
        return table


def read_report(path: str | Path) -> Report:
    """The report in a file.

    Raises:
        ValueError: there is none, it is damaged, or a newer version wrote it.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({str(error.strerror).lower()}); name a report that sfumato evaluate --out wrote."
        ) from None
    except ValueError:
        raise ValueError(f"{path} is not JSON; name a report that sfumato evaluate --out wrote.") from None
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict) or "version" not in record:
        raise ValueError(f"{path} is no report of sfumato evaluate: it has no metrics and version; name one that --out wrote.")
    if record["version"] != VERSION:
        raise ValueError(
            f"{path} is a report of version {record['version']}, and this sfumato reads version {VERSION}; update sfumato, or evaluate "
            "again."
        )
    try:
        metrics = {str(name): _figure(figure) for name, figure in record["metrics"].items()}
        return Report(metrics, dict(record["manifest"]), tuple(map(str, record.get("notes", ()))))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); evaluate again.") from None


def _figure(record: Mapping[str, Any]) -> Figure:
    number = lambda name: None if record.get(name) is None else float(record[name])  # noqa: E731
    floor_count = None if record.get("floor_count") is None else int(record["floor_count"])
    return Figure(float(record["value"]), number("error"), int(record["count"]), number("floor"), floor_count, number("ceiling"))
