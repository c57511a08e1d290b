"""Which choice learns fastest: short trainings that differ in one thing, each for as many seconds of a processor.

    python benchmarks/quality/screen.py fashion-target      # one screen: its curves and numbers
    python benchmarks/quality/screen.py all                 # all of them, about half an hour of one core
    python benchmarks/quality/screen.py report              # benchmarks/quality.md again from what was measured

A screen leaves benchmarks/quality/screens/NAME.json and NAME.png. Each training's learning rate falls to nothing at its own end, which is
fitted to the seconds by the time of its first steps. The error is that of the averaged weights on images that no training has seen:
the mean of (x0_hat - x0)², weighted as Karras et al. (2022) weight it (arXiv:2206.00364, table 1), one level an image, the same levels and
noise for all. Processor time counts, so other work on the machine costs little; the screens of one table are still best run together.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from protocol import processor

import sfumato as sf
from sfumato import data
from sfumato.recipe import load_recipe
from sfumato.runtime import keep_memory

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FOLDER, REPORT = HERE / "screens", HERE.parent / "quality.md"
SECONDS = {"fashion": 45, "digits": 20}
LOOKS = 5  # along a training
IMAGES = 400  # by which a model is judged
MUON = "training.optimizer=muon"
UNET = "net={kind: unet, channels: [32, 64, 64], blocks: 1, attention: [false, false, true], heads: 4, groups: 8}"
VARIANTS: dict[str, dict[str, list[str]]] = {
    "network": {
        "the recipe's patch U-Net": [],
        "a plain U-Net": [UNET, "training.optimizer=adamw"],
        "a transformer on patches": ["net={kind: dit, patch: PATCH, width: 192, depth: 6, heads: 6}", "training.optimizer=adamw"],
    },
    "optimizer": {
        "Muon 3e-3, AdamW 2e-3 beside it": [],
        "AdamW 1e-3": ["training.optimizer=adamw", "training.rate=1e-3"],
        "AdamW 2e-3": ["training.optimizer=adamw", "training.rate=2e-3"],
        "AdamW 4e-3": ["training.optimizer=adamw", "training.rate=4e-3"],
    },
    "target": {
        "EDM's target and weight": [],
        "v": ["objective.target=v", "objective.weight=v"],
        "eps": ["objective.target=eps", "objective.weight=eps"],
        "x0, EDM's weight": ["objective.target=x0"],
    },
    "times": {
        "the recipe's log-normal": [],
        "uniform on the cosine": ["objective.times={kind: uniform}"],
        "log-normal, mean -0.4, deviation 1.6": ["objective.times={kind: log-normal, mean: -0.4, std: 1.6}"],
        "learnt by second moments": ["objective.times={kind: importance}"],
    },
    "batch": {
        "the recipe's": [],
        "half of it": ["training.batch=HALF"],
        "twice of it": ["training.batch=DOUBLE"],
    },
    "average": {"0.05": [], "0.10": [], "0.20": []},  # of one training
}
SCREENS = {f"{name}-{what}": (name, what) for name in SECONDS for what in VARIANTS}
BATCH = {"fashion": 64, "digits": 128}
Curve = dict[str, list[float]]


def unseen(name: str) -> data.Dataset:
    """Images that no training of a screen sees."""
    recipe = load_recipe(name, ["data.train=false"] if name == "fashion" else [])
    dataset = recipe.data.load()
    return dataset if name == "fashion" else dataset.split(recipe.training.held_out, recipe.training.seed)[1]


@torch.no_grad()
def error(run: sf.Model, dataset: data.Dataset) -> float:
    """EDM's weighted error of a model."""
    count, generator = min(IMAGES, len(dataset)), torch.Generator().manual_seed(0)
    batch = dataset.batch(np.random.default_rng(0).permutation(len(dataset))[:count])
    x0 = batch.x
    normal = torch.distributions.Normal(-1.2, 1.2)
    ratio = normal.icdf((torch.randperm(count, generator=generator) + 0.5) / count).exp()  # sigma over alpha
    weight = (ratio**2 + run.spec.std**2) / (ratio * run.spec.std) ** 2
    alpha = (1 + ratio**2).rsqrt()
    eps, total = torch.randn(x0.shape, generator=generator), 0.0
    for part in torch.arange(count).split(50):
        level = sf.Level(*(value[part].reshape(-1, 1, 1, 1) for value in (alpha, ratio * alpha)))
        cond = sf.condition.take(batch.cond, part)
        guess = run.predictor(level.alpha * x0[part] + level.sigma * eps[part], level, cond or None).x0
        total += float((weight[part] * (guess - x0[part]).square().mean((1, 2, 3))).sum())
    return total / count


def follow(name: str, changes: list[str], seconds: float, widths: list[float]) -> dict[float, Curve]:
    """One training, and the error of its averages along it, by their width."""
    changes = [change.replace("HALF", str(BATCH[name] // 2)).replace("DOUBLE", str(2 * BATCH[name])) for change in changes]
    changes = [change.replace("PATCH", {"fashion": "4", "digits": "2"}[name]) for change in changes]
    quiet = ["training.log_every=1000000", "training.trackers=[]", "training.keep=1000", "sampling.steps=1", f"training.ema={widths}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"

        def go(steps: int, every: int, **calls: Any) -> None:
            shutil.rmtree(out, ignore_errors=True)
            fitted = [f"training.warmup={max(10, steps // 20)}", f"training.checkpoint_every={every}"]
            sf.train(load_recipe(name, [*quiet, *fitted, *changes], steps=steps), out=out, callbacks=sf.Callbacks(**calls))

        marks: list[float] = []
        with contextlib.suppress(sf.Stopped):
            go(10**6, 10**6, on_step=lambda step, loss: marks.append(time.process_time()), should_stop=lambda: len(marks) > 10)
        steps = max(LOOKS, int(seconds / np.median(np.diff(marks[3:]))))
        marks.clear()
        go(steps, -(-steps // LOOKS), on_step=lambda step, loss: marks.append(time.process_time()))
        spent = steps * float(np.median(np.diff(marks)))  # what checkpoints and their sheets take does not count
        recipe, judges = load_recipe(out / "recipe.yaml"), unseen(name)
        curves: dict[float, Curve] = {width: {"seconds": [], "images": [], "error": []} for width in widths}
        for path in sorted((out / "checkpoints").iterdir(), reverse=True):
            for width, curve in curves.items():
                curve["seconds"].insert(0, spent * int(path.name) / steps)
                curve["images"].insert(0, int(path.name) * recipe.training.batch)
                curve["error"].insert(0, error(sf.load(out, ema=width), judges))
            shutil.rmtree(path)  # so that the one before is the newest
    return curves


def screen(title: str) -> None:
    """Trains all variants of a screen, writes its numbers and draws its curves."""
    name, what = SCREENS[title]
    variants = VARIANTS[what]
    if what == "average":
        curves = {f"width {width:.2f}": curve for width, curve in follow(name, [], SECONDS[name], [float(w) for w in variants]).items()}
    else:
        curves = {}
        for variant, changes in variants.items():
            curves[variant] = follow(name, changes, SECONDS[name], [0.1])[0.1]
            print(title, variant, curves[variant], flush=True)
    FOLDER.mkdir(exist_ok=True)
    report = {"seconds": SECONDS[name], "processor": processor(), "torch": torch.__version__, "curves": curves}
    (FOLDER / f"{title}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(title, curves)


def draw(title: str, curves: dict[str, Curve]) -> None:
    """The error over the seconds, of each variant."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for variant, curve in curves.items():
        axes.plot(curve["seconds"], curve["error"], marker="o", markersize=3, label=variant)
    axes.set(title=title, xlabel="processor seconds", ylabel="weighted error, unseen images", yscale="log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.tick_params(axis="y", which="both", labelsize=7)
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(FOLDER / f"{title}.png", dpi=110)
    plt.close(figure)


def report() -> None:
    """quality.md: what stands above its first screen stays, the rest is written from the JSON files."""
    mark = "<!-- screens -->"
    head = REPORT.read_text().split(mark)[0] if REPORT.exists() else "# Quality a minute\n\n"
    lines = [mark, ""]
    for title in SCREENS:
        path = FOLDER / f"{title}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        lines += [
            f"## {title}",
            "",
            f"`python benchmarks/quality/screen.py {title}`: {found['seconds']} s each on {found['processor']}.",
            "",
        ]
        lines += ["| variant | images | error half-way | error at the end |", "| --- | ---: | ---: | ---: |"]
        for variant, curve in found["curves"].items():
            lines.append(
                f"| {variant} | {curve['images'][-1]:,} | {curve['error'][len(curve['error']) // 2]:.4f} | {curve['error'][-1]:.4f} |"
            )
        lines += ["", f"![{title}](quality/screens/{title}.png)", ""]
    REPORT.write_text(head + "\n".join(lines).rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("screen", choices=[*SCREENS, "all", "report"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    for title in SCREENS if args.screen == "all" else [] if args.screen == "report" else [args.screen]:
        screen(title)
    report()


if __name__ == "__main__":
    main()
