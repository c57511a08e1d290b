"""The figures of the shipped models: a report each, and quality by sampler and steps, written into docs/zoo.md.

    python benchmarks/zoo_figures.py --out runs/zoo-figures --fashion /usr/share/datasets/fashion-mnist

Reports, tables and pictures stay in the folder; what is there is not measured again, and an interrupted run goes on. On idle cores, 10,000
samples of zoo:fashion take about a quarter of an hour.
"""

import argparse
from pathlib import Path

import sfumato as sf
from sfumato.evaluation.report import Report, read_report

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BEGIN, END = "<!-- figures: written by benchmarks/zoo_figures.py -->", "<!-- end of the figures -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/zoo-figures"))
    parser.add_argument("--fashion", type=Path, default=None, help="the folder of Fashion-MNIST's idx files; where Debian puts them")
    parser.add_argument("--count", type=int, default=10_000, help="samples of zoo:fashion")
    parser.add_argument("--sweep-count", type=int, default=1000, help="samples a setting of the tables; 0 for no tables of zoo:fashion")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sweep = {"samplers": ["ddim", "ancestral", "adams"], "steps": [5, 10, 20, 50]}
    page = [section(options.out, "zoo:digits", "digits", 1700, ["fd", "kd", "prdc", "accuracy", "memorisation"], sweep, 500)]
    fashion = "fashion" if options.fashion is None else f"{{kind: fashion, path: {options.fashion}}}"
    page.append(section(options.out, "zoo:fashion", fashion, options.count, None, sweep, options.sweep_count))
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2] if rest else ""
    PAGE.write_text("\n".join([head.rstrip("\n"), "", BEGIN, "", *page, END]) + tail.rstrip("\n") + "\n", encoding="utf-8")


def section(out: Path, model: str, data: str, count: int, metrics: list[str] | None, sweep: dict, sweep_count: int) -> str:
    """A model's figures, in Markdown."""
    path = out / f"{model.removeprefix('zoo:')}.json"
    if path.is_file():
        report = read_report(path)
    else:
        report = sf.evaluate(model, data, metrics=metrics, count=count, out=path, on_progress=lambda *done: print(*done, flush=True))
    text = [f"### {model}", "", described(report), "", *table(report), *("\n" + note for note in report.notes), ""]
    if sweep_count:
        folder = out / f"{model.removeprefix('zoo:')}-sweep"
        made = sf.sweep(model, data, folder, metrics=["fd"], count=sweep_count, force=True, **sweep)
        name = next(iter(made.rows[0][1].metrics))
        text += [f"{name} by sampler and steps, {sweep_count} samples of one seed a cell, the recipe's guidance:", "", made.table(name)]
    return "\n".join(text)


def described(report: Report) -> str:
    """What the figures are of."""
    manifest, sampling = report.manifest, report.manifest["model"]["sampling"]
    samples, data = manifest["samples"], manifest["data"]
    return (
        f"{samples['count']} samples of seed {samples['seeds'][0]}: {sampling['sampler']}, {sampling['steps']} steps "
        f"({samples['evaluations']:g} evaluations a sample), guidance {sampling['guidance']:g}; against {data['count']} examples of "
        f"{data['name']} ({data['split']}). {manifest['chosen'].capitalize()}."
    )


def table(report: Report) -> list[str]:
    """The figures with floor and ceiling."""
    lines = ["| figure | value | error | floor: real data | ceiling: noise |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, figure in report.metrics.items():
        cells = ["–" if value is None else f"{value:.4g}" for value in (figure.value, figure.error, figure.floor, figure.ceiling)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
