"""`sfumato compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.evaluation.compare import Comparison


def compare(
    reports: Annotated[list[Path], typer.Argument(help="Reports that `sfumato evaluate --out` wrote.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Show figures that cannot be compared side by side; none is ranked.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare reports: what they differ in, then their figures, with the best of each where it can be told.

    Example: sfumato compare a.json b.json
    """
    from rich.console import Console

    from sfumato.evaluation.compare import NotComparable
    from sfumato.evaluation.compare import compare as compare_reports
    from sfumato.evaluation.report import read_report

    console = Console()
    try:
        names = [path.stem if len({each.stem for each in reports}) == len(reports) else str(path) for path in reports]
        comparison = compare_reports(dict(zip(names, map(read_report, reports), strict=True)), anyway=anyway)
    except NotComparable as refusal:
        _show_differences(console, refusal.comparison)
        raise
    _show_differences(console, comparison)
    if comparison.blocking:
        parts = ", ".join(difference.path for difference in comparison.blocking)
        typer.echo(f"These figures cannot be compared ({parts} differ), so none is called the best.")
    console.print(comparison.figures_table(ranked=not comparison.blocking))


def _show_differences(console: "Console", comparison: "Comparison") -> None:
    if comparison.differences:
        console.print(comparison.differences_table())
        console.print()
    else:
        typer.echo("The manifests agree in everything.")
