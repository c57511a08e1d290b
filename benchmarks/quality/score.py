"""Scores samples against all 60,000 training images in the feature space `fashion_cnn` (classifier.py).

    python benchmarks/quality/score.py runs/quality/*/samples.npz

fd: Fréchet distance of the features' Gaussians, the data's being that of all 60,000 training images; smaller is better. It depends on
the number of samples (fewer, larger): compare equal numbers only. label_accuracy: share of the samples whose predicted class is the one
asked for; the classifier itself is right on 0.927 of the test images. kid: unbiased squared MMD under a cubic kernel, the first 5,000
samples against 5,000 training images, times 1000.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import classifier
import numpy as np
import protocol
import torch
from distance import frechet, kernel_distance

KID_IMAGES = 5000


@dataclass(frozen=True)
class Scorer:
    """The classifier, and what it makes of the training images."""

    net: classifier.FashionCNN
    mean: np.ndarray
    cov: np.ndarray
    features: np.ndarray

    @classmethod
    def of(cls, data: Path) -> "Scorer":
        net = classifier.load()
        features, _ = classifier.describe(net, protocol.fashion_mnist(data)[0])
        return cls(net, features.mean(0), np.cov(features.T), features[:KID_IMAGES])

    def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
        features, predicted = classifier.describe(self.net, images)
        return {
            "fd": round(frechet(self.mean, self.cov, features.mean(0), np.cov(features.T)), 4),
            "kid": round(1000 * kernel_distance(features[:KID_IMAGES], self.features), 3),
            "label_accuracy": round(float(np.mean(predicted == labels)), 4),
            "count": len(images),
        }

    def references(self, data: Path) -> dict[str, dict[str, float | int]]:
        """What real images score: the test set (the floor for a model that has learnt the data) and the last 10,000 training images."""
        images, labels = protocol.fashion_mnist(data)
        return {
            "10,000 test images": self.score(*protocol.fashion_mnist(data, "t10k")),
            "10,000 training images": self.score(images[-10_000:], labels[-10_000:]),
        }


def samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`arr_0` (uint8 [n, 28, 28, 1]) and `arr_1` (int64 [n]) of an .npz file."""
    with np.load(path) as file:
        images, labels = file["arr_0"], file["arr_1"]
    if images.dtype != np.uint8 or images.shape != (len(labels), 28, 28, 1):
        raise ValueError(f"{path}: arr_0 has to be uint8 [{len(labels)}, 28, 28, 1], got {images.dtype} {list(images.shape)}.")
    return images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description="Fréchet distance and label accuracy of samples, beside those of real images.")
    parser.add_argument("samples", type=Path, nargs="+", metavar="SAMPLES.npz")
    parser.add_argument("--data", type=Path, default=protocol.DATA)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    torch.set_num_threads(protocol.THREADS)
    scorer = Scorer.of(args.data)
    rows = scorer.references(args.data) | {str(path): scorer.score(*samples(path)) for path in args.samples}
    if args.json:
        print(json.dumps({"space": classifier.space(), "scores": rows}, indent=2))
        return
    width = max(map(len, rows))
    print(f"{classifier.space():{width}}  {'fd':>9}  {'kid x1000':>9}  {'label accuracy':>14}  {'images':>6}")
    for name, row in rows.items():
        print(f"{name:{width}}  {row['fd']:9.3f}  {row['kid']:9.2f}  {row['label_accuracy']:14.4f}  {row['count']:6d}")


if __name__ == "__main__":
    main()
