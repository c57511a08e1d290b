"""Every toy recipe: time to train, and the distance of 10,000 samples from fresh data.

The distance is the sliced 2-Wasserstein distance over 500 fixed directions, in the data's units, beside the same distance between two
fresh draws of the true distribution. Both are means over five pairs: the distance of a single pair varies by a third.
Run: python benchmarks/toys.py [NAME …] [--out runs/toys]
"""

import argparse
import json
from pathlib import Path

import numpy as np

import sfumato as sf
from sfumato.runtime import keep_memory


def sliced_w2(a: np.ndarray, b: np.ndarray, directions: int = 500) -> float:
    """The root mean square, over directions, of the 2-Wasserstein distance between the projections of two equally large sets."""
    angles = np.pi * (np.arange(directions) + 0.5) / directions
    lines = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(sf.data.TOYS))
    parser.add_argument("--out", type=Path, default=Path("runs/toys"))
    parser.add_argument("--set", dest="changes", action="append", default=[])
    options = parser.parse_args()
    keep_memory()
    results = {}
    for name in options.names:
        folder = options.out / name
        run = sf.train(sf.load_recipe(name, options.changes), out=folder, resume=True)
        samples = [run.sample(10_000, batch=10_000, seed=seed).values for seed in range(5)]
        fresh = [sf.data.TOYS[name](10_000, 1000 + seed) for seed in range(10)]
        ours = np.mean([sliced_w2(drawn, f) for drawn, f in zip(samples, fresh, strict=False)])
        floor = np.mean([sliced_w2(fresh[2 * i], fresh[2 * i + 1]) for i in range(5)])
        results[name] = {
            "seconds": json.loads((folder / "report.json").read_text())["seconds"],
            "sliced_w2": float(ours),
            "between_true_samples": float(floor),
            "ratio": round(float(ours / floor), 3),
        }
        print(name, json.dumps(results[name]), flush=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
