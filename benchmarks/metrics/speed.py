"""What each figure of 10,000 grey 28×28 images costs, in seconds of processor time and memory.

    python benchmarks/metrics/speed.py --fashion FOLDER [--threads 1] [--count 10000]

Data: the first training images of Fashion-MNIST. Samples: its test images, which cost what those of a model do. Memorisation: all samples
against the other training images, beside a thousand of the data.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from train_grey28 import read

from sfumato.metrics import GaussianSums, frechet_distance, kernel_distance, load_features, load_judge, memorisation, mind, prdc
from sfumato.runtime import peak_memory


def main():
    parser = argparse.ArgumentParser(description="Time the figures of grey images.")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = [part[0].numpy()[..., None] for part in (read(args.fashion, "train"), read(args.fashion, "t10k"))]
    data, others, samples = images[0][: args.count], images[0][args.count :], images[1][: args.count]
    grey28, judge = load_features("grey28"), load_judge("fashion")
    total = 0.0

    def timed(name, f):
        nonlocal total
        wall, begin = time.perf_counter(), time.process_time()
        found = f()
        seconds = time.process_time() - begin
        total += seconds
        print(
            f"{name:24} {seconds:6.1f} s of processor time, {time.perf_counter() - wall:6.1f} s, {peak_memory() / 2**30:.2f} GB", flush=True
        )
        return found

    def distance():
        sums = GaussianSums(), GaussianSums()
        for each, rows in zip(sums, (a, b), strict=True):
            each.update(rows)
        return frechet_distance(*sums).value

    a = timed("features of the data", lambda: grey28(data)).astype(np.float64)
    b = timed("features of the samples", lambda: grey28(samples)).astype(np.float64)
    timed("label accuracy", lambda: judge(samples))
    timed("Fréchet distance", distance)
    timed("kernel distance", lambda: kernel_distance(a, b))
    timed("MIND", lambda: mind(a, b))
    timed("prdc with the clipped", lambda: prdc(a, b, clip=True))
    timed("memorisation", lambda: memorisation(samples, others, data[:1000]))
    print(f"all {total:.1f} s of processor time with {args.threads} threads, {peak_memory() / 2**30:.2f} GB")


if __name__ == "__main__":
    main()
