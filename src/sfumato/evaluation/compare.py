"""Several reports side by side: what they differ in before any number, and a ranking only where one can be made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

from sfumato.evaluation.report import Figure, Report

# Parts of the manifest that must agree for figures to be compared; `features` and `judge` where both reports have the same.
MUST_AGREE = ("data.fingerprint", "data.split", "data.count", "data.scaling", "samples.count", "samples.resized", "features.", "settings.")
HIGHER = ("precision", "recall", "density", "coverage", "clipped_", "label_accuracy", "inception_score", "psnr", "ssim")
NEITHER = ("expected_",)  # figures that say nothing of better or worse


@dataclass(frozen=True)
class Difference:
    """A part of the manifests that is not the same in all reports."""

    path: str
    values: tuple[Any, ...]  # one a report; None where it has none

    @property
    def blocks(self) -> bool:
        """Whether figures that differ in it cannot be compared."""
        if not self.path.startswith(MUST_AGREE):
            return False
        is_shared = not self.path.startswith(("features.", "settings."))  # else a report may simply lack these features
        return is_shared or len({str(value) for value in self.values if value is not None}) > 1


@dataclass(frozen=True)
class Comparison:
    """Reports by name, and what they differ in."""

    reports: Mapping[str, Report]
    differences: tuple[Difference, ...]

    @property
    def blocking(self) -> tuple[Difference, ...]:
        """Those because of which figures cannot be compared."""
        return tuple(difference for difference in self.differences if difference.blocks)

    def differences_table(self) -> Table:
        """What differs, one row a part of the manifest."""
        table = Table(Column("differs", no_wrap=True), *(Column(name, overflow="fold") for name in self.reports), box=None)
        for difference in self.differences:
            mark = " (!)" if difference.blocks else ""
            table.add_row(difference.path + mark, *("–" if value is None else _short(value) for value in difference.values))
        return table

    def figures_table(self, *, ranked: bool = True) -> Table:
        """The figures, one row each; with the best of each row where it can be told."""
        names = list(dict.fromkeys(name for report in self.reports.values() for name in report.metrics))
        table = Table(
            Column("figure", no_wrap=True),
            *(Column(name, overflow="fold") for name in self.reports),
            *(["best"] if ranked else []),
            box=None,
        )
        for name in names:
            figures = {label: report.metrics.get(name) for label, report in self.reports.items()}
            cells = [_cell(figure) for figure in figures.values()]
            table.add_row(name, *cells, *([best(name, figures)] if ranked else []))
        return table


def compare(reports: Mapping[str, Report], *, anyway: bool = False) -> Comparison:
    """Compares reports.

    Args:
        reports: by the names under which they are shown.
        anyway: whether to go on where they cannot be compared.

    Raises:
        ValueError: fewer than two reports, no figure that two of them share, or figures that cannot be compared.
    """
    if len(reports) < 2:
        raise ValueError(f"a comparison needs at least two reports, got {len(reports)}.")
    counts: dict[str, int] = {}
    for report in reports.values():
        for name in report.metrics:
            counts[name] = counts.get(name, 0) + 1
    if not any(count > 1 for count in counts.values()):
        has = "; ".join(f"{label} has {', '.join(report.metrics) or 'none'}" for label, report in reports.items())
        raise ValueError(f"the reports share no figure: {has}; evaluate them with the same --metrics and --features.")
    comparison = Comparison(reports, tuple(differences([report.manifest for report in reports.values()])))
    if comparison.blocking and not anyway:
        raise NotComparable(comparison)
    return comparison


class NotComparable(ValueError):
    """Reports whose figures cannot be compared; `comparison` has what differs."""

    def __init__(self, comparison: Comparison) -> None:
        """Says which parts differ."""
        self.comparison = comparison
        parts = ", ".join(difference.path for difference in comparison.blocking)
        super().__init__(
            f"these figures cannot be compared, as the reports differ in {parts}; evaluate both alike, or add --anyway to see them side by "
            "side."
        )


def differences(manifests: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Every part, by its path, that is not the same in all manifests; those that block a comparison first."""
    flat = [_flat(manifest) for manifest in manifests]
    paths = dict.fromkeys(path for each in flat for path in each)
    found = [Difference(path, tuple(each.get(path) for each in flat)) for path in paths]
    different = [difference for difference in found if any(value != difference.values[0] for value in difference.values)]
    return sorted(different, key=lambda difference: not difference.blocks)


def best(name: str, figures: Mapping[str, Figure | None]) -> str:
    """Which report has the best figure, where the two best differ by more than two standard errors; else why it cannot be told."""
    known = {label: figure for label, figure in figures.items() if figure is not None}
    if len(known) < 2 or name.startswith(NEITHER):
        return ""
    sign = -1 if name.startswith(HIGHER) else 1
    (first, a), (_, b) = sorted(known.items(), key=lambda item: sign * item[1].value)[:2]
    if a.error is None or b.error is None:
        return f"{first}, by an unknown error" if a.value != b.value else "equal"
    return first if abs(a.value - b.value) > 2 * (a.error**2 + b.error**2) ** 0.5 else "within two errors"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return f"{figure.value:.4g}" + ("" if figure.error is None else f" ± {figure.error:.2g}")


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if is_hash else text


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
