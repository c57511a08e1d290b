"""`sfumato verify`."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.verify.ledger import Result


def verify(
    reference: Annotated[
        Path | None, typer.Option(help="An .npz of another implementation's numbers: compare each of them instead of running the ledger.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Only the rows whose id or function contains this.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The ledger as a page, as in docs/ledger.md.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Check every equation against a closed form, or against another implementation's numbers.

    Exit code 0 if all agree, 1 if not. Example: sfumato verify --only posterior
    """
    passed = _ledger(only, as_json, as_markdown) if reference is None else _reference(reference, as_json)
    if not passed:
        raise typer.Exit(1)


def _ledger(only: str | None, as_json: bool, as_markdown: bool) -> bool:
    from sfumato.verify.ledger import rows, run

    chosen = [row for row in rows() if only is None or only in row.id or only in row.function]
    if not chosen:
        raise ValueError(f'no row of the ledger has "{only}" in its id or function; leave --only out for all {len(rows())}.')
    quiet, started = as_json or as_markdown, time.perf_counter()
    results = run(chosen, on_result=None if quiet else lambda result: typer.echo(_line(result)))
    failed = [result.row.id for result in results if not result.passed]
    if as_json:
        typer.echo(json.dumps([_record(result) for result in results], indent=2, ensure_ascii=False))
    elif as_markdown:
        typer.echo("\n".join(_page(results)))
    else:
        seconds = time.perf_counter() - started
        typer.echo(f"{len(results) - len(failed)} of {len(results)} rows hold, in {seconds:.0f} s." + _broken(failed))
    return not failed


def _reference(path: Path, as_json: bool) -> bool:
    from sfumato.verify import reference as other

    results = list(other.compare(path))
    failed = [result.key for result in results if not result.passed]
    if as_json:
        typer.echo(json.dumps([{"key": r.key, "error": r.error, "passed": r.passed} for r in results], indent=2))
        return not failed
    for result in results:
        typer.echo(f"{'ok  ' if result.passed else 'FAIL'}  {result.error:8.1e}  {result.key}")
    typer.echo(f"{len(results) - len(failed)} of {len(results)} keys agree within {other.TOLERANCE:g}." + _broken(failed))
    return bool(results) and not failed


def _line(result: "Result") -> str:
    row = result.row
    mark = "ok  " if result.passed else "FAIL"
    return f"{mark}  {result.error:8.1e} <= {row.tolerance:7.1e}  {row.id:34}  {row.equation}" + (
        f"  ({result.raised})" if result.raised else ""
    )


def _record(result: "Result") -> dict[str, object]:
    row = result.row
    words = {name: getattr(row, name) for name in ("id", "equation", "notes", "function", "how", "tolerance")}
    return words | {"error": result.error, "passed": result.passed, "raised": result.raised, "seconds": round(result.seconds, 3)}


def _page(results: "list[Result]") -> list[str]:
    head = [
        "| | equation | in the notes | function | checked against | error | tolerance |",
        "| --- | --- | --- | --- | --- | ---: | ---: |",
    ]
    clean = lambda text: text.replace("|", "\\|")  # noqa: E731
    return head + [
        f"| {r.row.id} | {clean(r.row.equation)} | {clean(r.row.notes)} | `{clean(r.row.function)}` | {clean(r.row.how)} "
        f"| {r.error:.1e} | {r.row.tolerance:.0e} |"
        for r in results
    ]


def _broken(failed: list[str]) -> str:
    return f" Broken: {', '.join(failed)}." if failed else ""
