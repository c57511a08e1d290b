"""The table of docs/restoration: means over the observations of results.json. `python table.py` prints it."""

import json
from collections import defaultdict
from pathlib import Path

from oracle import NOISES, OBSERVATIONS, operators
from run import METHODS, RESULTS

PLACES = [f"{place}, {noise}" for place in operators() for noise in NOISES]


def main() -> None:
    cells: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for key, record in json.loads(Path(RESULTS).read_text()).items():
        name, place, noise, _ = key.split(" | ")
        cells[name, f"{place}, {noise}"].append(record)
    print(f"| method, evaluations | {' | '.join(PLACES)} | seconds |\n| --- |{' --- |' * (len(PLACES) + 1)}")
    for name in METHODS:
        row = [cells[name, place] for place in PLACES]
        if not any(row):
            continue
        seconds = [record["seconds"] for records in row for record in records]
        print(f"| {name} | {' | '.join(map(cell, row))} | {sum(seconds) / len(seconds):.1f} |")


def cell(records: list[dict[str, float]]) -> str:
    """Sliced W2 over that of true draws (coverage of 50 and 90% intervals); how many observations, where not all."""
    if not records:
        return ""
    mean = lambda what: sum(record[what] for record in records) / len(records)  # noqa: E731
    few = f", {len(records)} of {OBSERVATIONS}" if len(records) < OBSERVATIONS else ""
    return f"{mean('sliced'):.2f} ({mean('cover_50'):.2f}, {mean('cover_90'):.2f}{few})"


if __name__ == "__main__":
    main()
