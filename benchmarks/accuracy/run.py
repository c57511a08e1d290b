"""Writes results.json and RESULTS.md: endpoint errors and overhead, ours and the peers' in one run. See README.md in this folder."""

import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import overhead
import peers
import torch
from problems import CHAIN, PROBLEMS, Problem

import sfumato as sf
from sfumato.runtime import processor
from sfumato.tuning import tune

HERE = Path(__file__).parent
COUNTS = (5, 8, 10, 20, 50)
TUNED = (5, 8, 10)
DEFAULT = (sf.steps.Adams(), sf.spacing.softened())
SOLVERS = [
    *(sf.steps.Adams(order) for order in (2, 3, 4)),
    sf.steps.DDIM(),
    *(sf.steps.Multistep(order) for order in (2, 3)),
    *(sf.steps.UniPC(order) for order in (2, 3)),
    *(sf.steps.AdamsBashforth(order) for order in (2, 3, 4)),
]
SPACINGS = {"softened": sf.spacing.softened(), "log_snr": sf.spacing.log_snr, "karras": sf.spacing.karras()}

Row = dict[str, Any]


def main() -> None:
    """One process for each problem, then the overhead alone on the machine."""
    started = time.perf_counter()
    with ProcessPoolExecutor(len(PROBLEMS)) as pool:
        rows = [row for part in pool.map(measure, range(len(PROBLEMS))) for row in part]
    costs = overhead.measure()
    report = {"machine": machine(), "seconds": round(time.perf_counter() - started), "accuracy": rows, "overhead": costs}
    (HERE / "results.json").write_text(json.dumps(report) + "\n")
    (HERE / "RESULTS.md").write_text(text(report))
    print(text(report))


def measure(index: int) -> list[Row]:
    """Every row of one problem."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    problem = PROBLEMS[index]
    return [*ours(problem), *theirs(problem)]


def ours(problem: Problem) -> Iterator[Row]:
    """Each solver on each spacing; and levels tuned on other noise."""
    row = lambda name, n, x: {  # noqa: E731
        "problem": problem.name,
        "library": "sfumato",
        "setting": name,
        "evaluations": n,
        "error": problem.error(x, at_data=True),
    }
    for n in COUNTS:
        for step in SOLVERS:
            for name, spacing in SPACINGS.items():
                x = sf.sample(problem.mixture, problem.start, sf.grid(CHAIN, n, spacing=spacing), step)
                yield row(f"{step} {name}", n, x) | {"default": (step, spacing) == DEFAULT}
    noise = torch.randn(288, problem.start.shape[1], generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    for n in TUNED:
        started = time.perf_counter()
        walk = sf.grid(CHAIN, n, spacing=DEFAULT[1])
        tuned = tune(problem.mixture, CHAIN, noise, levels=walk, step=DEFAULT[0])
        seconds = time.perf_counter() - started
        x = sf.sample(problem.mixture, problem.start, tuned.levels, tuned.step)
        yield row(f"tuned: {type(tuned.step).__name__}", n, x) | {"tuned": True, "seconds": round(seconds, 1)}


def theirs(problem: Problem) -> Iterator[Row]:
    """Every setting of every peer that has a run within the evaluations."""
    for setting in peers.settings():
        for n in COUNTS:
            network = peers.Network(problem.mixture, n)
            row: Row = {"problem": problem.name, "library": setting.library, "setting": setting.name, "evaluations": n}
            try:
                x, at_data = setting.run(network, problem.start, n)
            except peers.Unfit:
                continue
            except torch.linalg.LinAlgError as error:
                yield row | {"error": None, "failure": str(error).split(":")[0]}
                continue
            yield row | {
                "error": problem.error(x, at_data=at_data),
                "used": network.calls,
                "default": setting.is_default,
                "at sigma": setting.is_at_sigma,
            }


def machine() -> dict[str, Any]:
    """The machine."""
    names = ("torch", "numpy", "diffusers", "k-diffusion", "azula", "sfumato")
    return {
        "processor": processor("model name"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "date": time.strftime("%Y-%m-%d"),
    }


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    about = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Accuracy and overhead",
        "",
        f"{about['date']}, {about['cores']} cores of {about['processor']}, Python {about['python']}, {versions}; {report['seconds']} s.",
        "Written by `run.sh`; README.md says what is measured. All rows are in results.json.",
        "",
        "## Endpoint error",
        "",
        "Median over the points. *Best of theirs* is the least of all settings of diffusers and k-diffusion, chosen anew for each cell.",
    ]
    for problem in dict.fromkeys(row["problem"] for row in report["accuracy"]):
        mine = [row for row in report["accuracy"] if row["problem"] == problem and row["error"] is not None]
        lines += ["", f"### {problem}", "", "| | " + " | ".join(map(str, COUNTS)) + " |", "| --- |" + " ---: |" * len(COUNTS)]
        for title, keep in (
            (f"**sfumato, one default: {DEFAULT[0]}, {DEFAULT[1]}**", lambda row: row.get("default") and row["library"] == "sfumato"),
            ("**sfumato, tuned**", lambda row: row.get("tuned")),
            ("sfumato, best untuned", lambda row: row["library"] == "sfumato" and not row.get("tuned")),
            ("Best of theirs", lambda row: row["library"] != "sfumato" and not row.get("at sigma")),
            ("Best of theirs, the network evaluated between timesteps too", lambda row: row["library"] != "sfumato"),
            ("diffusers, best default", lambda row: row["library"] == "diffusers" and row.get("default")),
            ("k-diffusion, best default", lambda row: row["library"] == "k-diffusion" and row.get("default")),
        ):
            cells = [min((row["error"] for row in mine if row["evaluations"] == n and keep(row)), default=None) for n in COUNTS]
            lines.append(f"| {title} | " + " | ".join("" if cell is None else f"{cell:.2g}" for cell in cells) + " |")
        lines += ["", "The best of theirs: " + "; ".join(_best(mine, n) for n in COUNTS) + "."]
        lines += ["", "Tuned: " + "; ".join(_tuned(mine, n) for n in TUNED) + "."]
    lines += ["", "## Overhead", "", overhead.CAPTION, ""]
    lines += ["| | µs an evaluation | spread | beside sfumato's DDIM |", "| --- | ---: | ---: | ---: |"]
    least = next(row["median"] for row in report["overhead"] if row["name"] == "sfumato DDIM")
    for row in report["overhead"]:
        lines.append(f"| {row['name']} | {row['median']:.1f} | {row['low']:.1f} to {row['high']:.1f} | {row['median'] / least:.2f} |")
    return "\n".join(lines) + "\n"


def _best(rows: list[Row], n: int) -> str:
    found = min((row for row in rows if row["evaluations"] == n and row["library"] != "sfumato"), key=lambda row: row["error"])
    return f"{n} {found['library']} {found['setting']}"


def _tuned(rows: list[Row], n: int) -> str:
    found = next(row for row in rows if row["evaluations"] == n and row.get("tuned"))
    return f"{n} {found['setting'].removeprefix('tuned: ')} in {found['seconds']} s"


if __name__ == "__main__":
    main()
