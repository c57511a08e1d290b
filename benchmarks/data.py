"""Data: batches a second, and the time to open 50,000 images the first and the second time.

Batches are of 128 images of 32×32×3 in random order with random flips, as in training: from an array in memory, and from the memory map of
the cache. The folder contains PNGs of noise in 100 classes; each opening is a new process, timed without its imports, with the
fingerprint and the split. Files are in the system's file cache. A few minutes.
Run: python benchmarks/data.py [--images 50000] [--out benchmarks/data.md]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfumato import data

OPEN = """
import json, sys, time
from sfumato import data
start, busy = time.perf_counter(), time.process_time()
dataset = data.folder(sys.argv[1], cache=data.cache_folder())
dataset.fingerprint()
dataset.split_indices(0.1, 0)
print(json.dumps([time.perf_counter() - start, time.process_time() - busy]))
"""


def rate(dataset: data.Dataset, seconds: float = 3.0, batch: int = 128) -> tuple[float, float]:
    """Images with random flips, per second of wall-clock and of processor time: the best of three."""
    generator, rng, best = torch.Generator().manual_seed(0), np.random.default_rng(0), (0.0, 0.0)
    for _ in range(3):
        order, count, start, busy = rng.permutation(len(dataset)), 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - start) < seconds:
            rows = order[np.arange(count, count + batch) % len(order)]
            x0 = dataset.batch(rows).x
            coin = torch.rand(len(x0), generator=generator) < 0.5
            x0 = torch.where(coin.reshape(-1, 1, 1, 1), x0.flip(-1), x0)
            count += len(x0)
        best = max(best, (count / elapsed, count / (time.process_time() - busy)))
    return best


def make(root: Path, count: int) -> None:
    """PNGs of noise, in 100 classes."""
    rng = np.random.default_rng(0)
    for i in range(100):
        (root / f"class_{i:03d}").mkdir(parents=True)
    for i in range(count):
        path = root / f"class_{i % 100:03d}" / f"{i:06d}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path, compress_level=0)


def opening(root: Path, cache: Path) -> tuple[float, float]:
    """Wall-clock and processor seconds, in a new process."""
    environment = os.environ | {"SFUMATO_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, "-c", OPEN, str(root)], capture_output=True, text=True, check=True, env=environment)
    clock, busy = json.loads(answer.stdout)
    return clock, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "images", Path(folder) / "cache"
        make(root, options.images)
        print(f"Made {options.images:,} images.", flush=True)
        first, second = opening(root, cache), min(opening(root, cache) for _ in range(3))
        print(f"Opened them in {first[0]:.1f} s, then in {second[0]:.2f} s.", flush=True)
        mapped = data.folder(root, cache=cache)
        held = data.Dataset(
            values=np.array(mapped.values), labels=mapped.labels, classes=mapped.classes, scaling=mapped.scaling, name="held"
        )
        rates = rate(held), rate(mapped)
    rows = [
        ("batches from memory, images/s (of the processor)", f"{rates[0][0]:,.0f} ({rates[0][1]:,.0f})", "5,000"),
        ("batches from the cache's memory map, images/s (of the processor)", f"{rates[1][0]:,.0f} ({rates[1][1]:,.0f})", "5,000"),
        ("first opening, s (of the processor)", f"{first[0]:.1f} ({first[1]:.1f})", ""),
        ("second opening, s, best of three (of the processor)", f"{second[0]:.2f} ({second[1]:.2f})", "2"),
    ]
    table = "\n".join(f"| {what} | {figure} | {goal} |" for what, figure, goal in rows)
    text = (
        f"# Data\n\n`python benchmarks/data.py`: {options.images:,} PNGs of 32×32×3, batches of 128 with flips, one thread.\n\n"
        f"| what | figure | goal |\n| --- | --- | --- |\n{table}\n\n"
        f"Load average before the run: {load:.1f} on {os.cpu_count()} cores (an idle machine has 0).\n"
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
