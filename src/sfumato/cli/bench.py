"""`sfumato bench`."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sfumato.bench import bench as measure


def bench(
    against: Annotated[str, typer.Option(help="Other libraries that are installed here, with commas: diffusers,k-diffusion,…")] = "",
    only: Annotated[str, typer.Option(help="Only the questions whose name contains this.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each library; torch's own number where not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure the speed of this machine, beside other libraries where asked: one process each, in turns, medians and quartiles.

    Leave the machine alone meanwhile. Example: sfumato bench --against diffusers --only "batch 16"
    """
    names = [name.strip() for name in against.split(",") if name.strip()]
    report = measure(names, only=only, threads=threads, say=lambda line: typer.echo(line, err=as_json))
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)


def _print(report: Mapping[str, Any]) -> None:
    console = Console()
    ceiling = report["ceiling"]
    table = Table(title=f"{report['threads']} threads, torch {report['torch']}")
    for column in ("what", "library", "ms", "quartiles", "GFLOP/s", "of the ceiling", "memory MB", "times ours"):
        table.add_column(column, justify="left" if column in ("what", "library") else "right")
    ours = {figure["question"]: figure["seconds"] for figure in report["figures"] if figure["library"] == "sfumato"}
    for figure in report["figures"]:
        rate = figure["operations"] / figure["seconds"]
        most = ceiling.get("bfloat16" if "bfloat16" in figure["question"] and figure["library"] == "sfumato" else "float32")
        table.add_row(
            figure["question"],
            figure["library"],
            f"{figure['seconds'] * 1e3:.1f}",
            f"{figure['low'] * 1e3:.1f} … {figure['high'] * 1e3:.1f}",
            f"{rate / 1e9:.0f}" if rate else "",
            f"{rate / most:.0%}" if rate else "",
            f"{figure['memory'] / 1e6:.0f}",
            f"{figure['seconds'] / ours[figure['question']]:.2f}",
        )
    console.print(table)
    for name, most in ceiling.items():
        console.print(f"The ceiling in {name}: {most / 1e9:.0f} GFLOP/s, a product of matrices of 2048.")
    for target in report["targets"]:
        console.print(f"{'holds' if target['holds'] else 'FAILS'}  {target['what']}: {target['seen']:.3g}, wanted {target['wanted']}")
    for reason in report["left_out"]:
        console.print(f"not measured  {reason}")
