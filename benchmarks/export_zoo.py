"""Exports a run for the zoo: averaged weights in half precision, the recipe, the manifest, and a card with its figures.

    python benchmarks/export_zoo.py runs/zoo-fashion fashion --figure "fd@fashion_cnn=0.5" --figure "label accuracy=0.93"

Figures are measured on the exported model; run it once without them, measure, and run it again.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from sfumato.recipe import load_recipe
from sfumato.storage import ZOO, latest, read_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--figure", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="of the recipe's sampling options")
    options = parser.parse_args()
    if any(not change.startswith("sampling.") for change in options.changes):
        raise SystemExit("only sampling.* may change: the rest describes how the model was trained.")
    recipe = load_recipe(options.run / "recipe.yaml", options.changes)
    width = recipe.training.ema[0]
    checkpoint = latest(options.run)
    folder = ZOO / options.name
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "checkpoints" / checkpoint.name
    target.mkdir(parents=True)
    tensors = read_tensors(checkpoint / f"ema-{width:.3f}.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    if not all(bool(value.isfinite().all()) for value in half.values() if value.is_floating_point()):
        raise SystemExit("a weight overflows half precision.")
    error = max(
        ((value - half[name].float()).norm() / value.norm().clamp(min=1e-12)).item()
        for name, value in tensors.items()
        if value.dtype == torch.float32
    )
    save_file(half, target / f"ema-{width:.3f}.safetensors")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    shutil.copy(options.run / "manifest.json", folder / "manifest.json")
    report = json.loads((options.run / "report.json").read_text())
    card = {"parameters": report["parameters"], "training": report, "figures": dict(figure.split("=", 1) for figure in options.figure)}
    (folder / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB, largest relative error of a weight in half precision {error:.1e}")


if __name__ == "__main__":
    main()
