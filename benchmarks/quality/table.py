"""Scores every run below a folder and writes RESULTS.md, results.json and sheets.png beside this file: `table.py runs/quality`."""

import argparse
import json
from pathlib import Path

import classifier
import numpy as np
import protocol
import torch
from PIL import Image, ImageDraw
from score import Scorer, samples

HERE = Path(__file__).parent
NAMES = ["sfumato", "transformer", "diffusers", "denoising-diffusion-pytorch"]
PLAN = [*((name, minutes) for minutes in (3, 10) for name in NAMES), ("sfumato", 60), ("transformer", 60)]

HEAD = f"""\
# Quality for minutes of training

Written by `table.py`; [README.md](README.md) says what is measured and how to repeat it. Fashion-MNIST, 60,000 training images; the
minutes are those in which the trainer, alone on {protocol.THREADS} threads, sees as many images. `fd@fashion_cnn` is a Fréchet distance
in the feature space of a small Fashion-MNIST classifier (`{{space}}`), against all training images: smaller is better, and it compares
with no other feature space's. *Italic* rows are real images.

| minutes | model | fd@fashion_cnn | label accuracy | kid ×1000 | images seen | images/s | parameters | sampler | samples | s to sample |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |
"""


def line(run: dict) -> str:
    """One run, or a place kept for it, as a row of the table."""
    if "fd" not in run:
        return f"| {run['minutes']:g} | {run['name']} | not run | | | | | | | | |"
    cells = [
        f"{run['minutes']:g}",
        run["name"],
        f"**{run['fd']:.2f}**",
        f"{run['label_accuracy']:.3f}",
        f"{run['kid']:.1f}",
        f"{run['images']:,}",
        f"{run['images_per_second']:.0f}",
        f"{run['parameters']:,}",
        run["sampler"],
        f"{run['samples']:,}",
        f"{run['sample_wall_seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def reference_line(name: str, row: dict) -> str:
    return f"| | {name} | {row['fd']:.2f} | {row['label_accuracy']:.3f} | {row['kid']:.1f} | | | | | {row['count']:,} | |"


def targets(runs: list[dict]) -> list[str]:
    """What is asked of the rows, and whether it holds; nothing of what has not been run."""
    fd = {(run["name"], run["minutes"]): run["fd"] for run in runs}
    asked = [
        ("ours after 3 minutes, against the transformer's 10", ("sfumato", 3), ("transformer", 10), 1.0),
        ("ours after 10 minutes, against half the transformer's", ("sfumato", 10), ("transformer", 10), 0.5),
        ("ours after 60 minutes, against a quarter of the transformer's", ("sfumato", 60), ("transformer", 60), 0.25),
    ]
    lines = [
        f"- {'holds' if fd[ours] <= share * fd[theirs] else 'FAILS'}: {what}: {fd[ours]:.2f}, wanted at most {share * fd[theirs]:.2f}"
        for what, ours, theirs, share in asked
        if ours in fd and theirs in fd
    ]
    right = [run["label_accuracy"] for run in runs if run["minutes"] == 10 and run["name"].startswith("sfumato")]
    if right:
        lines.append(
            f"- {'holds' if max(right) >= 0.9 else 'FAILS'}: label accuracy of ours after 10 minutes: {max(right):.3f}, wanted at least 0.9"
        )
    return lines


def sheets(titled: dict[str, np.ndarray], rows: int = 4) -> Image.Image:
    """The first samples of each run below its title, one column a class; three runs side by side."""
    width, height, gap = 28 * protocol.CLASSES, 28 * rows, 18
    picture = Image.new("L", (3 * (width + gap) - gap, -(-len(titled) // 3) * (height + gap)), 255)
    for i, (title, images) in enumerate(titled.items()):
        x, y = i % 3 * (width + gap), i // 3 * (height + gap)
        ImageDraw.Draw(picture).text((x, y + 3), title, fill=0)
        tiles = images[: rows * protocol.CLASSES, :, :, 0].reshape(rows, protocol.CLASSES, 28, 28)
        picture.paste(Image.fromarray(tiles.transpose(0, 2, 1, 3).reshape(height, width)), (x, y + gap))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Score all runs below a folder; write RESULTS.md, results.json and sheets.png.")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/quality"))
    parser.add_argument("--data", type=Path, default=protocol.DATA)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    reports = sorted(path for path in args.runs.glob("**/report.json") if (path.parent / "samples.npz").exists())
    if not reports:
        parser.error(f"no report.json beside a samples.npz below {args.runs}; train something first (README.md has the commands).")
    torch.set_num_threads(protocol.THREADS)
    scorer = Scorer.of(args.data)
    runs = [json.loads(path.read_text()) | scorer.score(*samples(path.parent / "samples.npz")) for path in reports]
    references = scorer.references(args.data)

    done = {(run["name"], run["minutes"]) for run in runs}
    rows = runs + [{"name": name, "minutes": minutes} for name, minutes in PLAN if (name, minutes) not in done]
    rows.sort(key=lambda run: (run["minutes"], run.get("fd", float("inf"))))
    lines = [*map(line, rows), *(reference_line(f"*{name}*", row) for name, row in references.items())]
    notes = [f"- {name}: {json.dumps(settings)}" for name, settings in {run["name"]: run["settings"] for run in runs}.items()]
    machines = sorted({f"- {run['processor']}; " + ", ".join(f"{k} {v}" for k, v in run["versions"].items()) for run in runs})
    picture = "![The first samples of each](sheets.png)"
    parts = [
        HEAD.format(space=classifier.space()) + "\n".join(lines),
        "Targets:",
        "\n".join(targets(runs)),
        picture,
        "Settings:",
        "\n".join(notes),
        "Machines:",
        "\n".join(machines),
    ]
    (args.out / "RESULTS.md").write_text("\n\n".join(parts) + "\n")
    shown = sorted(zip(runs, reports, strict=True), key=lambda pair: (pair[0]["minutes"], pair[0]["fd"]))
    images = {f"{run['name']}, {run['minutes']:g} minutes": samples(path.parent / "samples.npz")[0] for run, path in shown}
    sheets(images).save(args.out / "sheets.png")
    record = {"space": classifier.space(), "runs": runs, "references": references}
    (args.out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
