"""`sfumato bench`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def bench(
    against: Annotated[str, typer.Option(help="Other installed libraries to compare with, comma-separated: diffusers,k-diffusion,…")] = "",
    only: Annotated[str, typer.Option(help="Only the benchmarks whose name contains this.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each library; torch's default if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the report to this .json.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png: the cost by batch, pixels, channels and steps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure speed on this machine, also of other libraries: each in its own process, alternating; medians and quartiles.

    Keep the machine otherwise idle. Example: sfumato bench --against diffusers --only "batch 16"
    """
    from sfumato.bench import bench as measure
    from sfumato.bench import cost
    from sfumato.storage import aside

    for option, path, suffix in (("--plot", plot, ".png"), ("--out", out, ".json")):
        if path is not None and path.suffix != suffix:
            raise ValueError(f"{option} must end in {suffix}, got {path}.")
    names = [name.strip() for name in against.split(",") if name.strip()]
    report = measure(names, only=only, threads=threads, on_result=lambda line: typer.echo(line, err=as_json))
    if plot is not None:
        curves = cost.costs(threads=threads)
        report["costs"] = {name: {"curve": curve, "slope": cost.slope(curve)} for name, curve in curves.items()}
        plot.parent.mkdir(parents=True, exist_ok=True)
        with aside(plot) as partial:
            cost.draw(curves, partial)
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with aside(out) as partial:
            partial.write_text(f"{text}\n")
    if as_json:
        typer.echo(text)
    else:
        _print(report)


def _print(report: Mapping[str, Any]) -> None:
    typer.echo(f"\n{report['threads']} threads, torch {report['torch']}; medians and quartiles; memory above that at the start.")
    for name, most in report["ceiling"].items():
        typer.echo(f"The ceiling in {name}: {most / 1e9:.0f} GFLOP/s, for a product of 2048 × 2048 matrices.")
    figures = report["figures"]
    ours = {figure["question"]: figure["seconds"] for figure in figures if figure["library"] == "sfumato"}
    for question in ours:
        typer.echo(f"\n{question}")
        for figure in (figure for figure in figures if figure["question"] == question):
            typer.echo(f"  {_row(figure, ours[question], report['ceiling'])}")
    typer.echo("")
    for target in report["targets"]:
        typer.echo(f"{'holds' if target['holds'] else 'FAILS'}  {target['what']}: {target['seen']:.3g}, wanted {target['wanted']}")
    for name, growth in report.get("costs", {}).items():
        typer.echo(f"cost grows with the {name} to the power {growth['slope']:.2f}")
    for library, questions in report["left_out"].items():
        typer.echo(f"not measured  {library}: {'; '.join(questions)}")


def _row(figure: Mapping[str, Any], ours: float, ceiling: Mapping[str, float]) -> str:
    seconds, rate = figure["seconds"], figure["operations"] / figure["seconds"]
    text = f"{figure['library']:28}{seconds * 1e3:9.1f} ms ({figure['low'] * 1e3:.1f} … {figure['high'] * 1e3:.1f})"
    text += f"  {seconds / ours:5.2f}×" + (f"  {figure['memory'] / 1e6:5.0f} MB" if rate else "")
    return text + (f"  {rate / 1e9:4.0f} GFLOP/s, {rate / ceiling[figure['precision']]:.0%} of the ceiling" if rate else "")
