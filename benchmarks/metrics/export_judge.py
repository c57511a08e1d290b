"""Makes the judge in the package of the classifier of benchmarks/quality: half precision, batch normalisation folded in.

    python benchmarks/metrics/export_judge.py --fashion FOLDER

The judge was trained by benchmarks/quality/classifier.py, on other data, with another seed and to other classes than grey28.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from train_grey28 import accuracy, read

from sfumato.metrics.features import WEIGHTS
from sfumato.metrics.small_cnn import SmallCNN


def main():
    parser = argparse.ArgumentParser(description="Export the judge of garments.")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    args = parser.parse_args()
    theirs = load_file(Path(__file__).parents[1] / "quality" / "classifier.safetensors")
    net = SmallCNN((48, 64, 128, 128), 128, 10, normalised=True)
    names = {"body.1": 0, "body.2": 1, "body.4": 2, "body.5": 3}  # blocks of a convolution and its normalisation
    weights = {}
    for name, value in theirs.items():
        block, _, rest = name.partition(".")
        if block == "body":
            place, part, rest = rest.split(".", 2)
            name = f"{'convs' if part == '0' else 'norms'}.{names[f'body.{place}']}.{rest}"
        weights[name] = value
    # Theirs takes (pixel - 0.286) / 0.353 of pixels in [0, 1], which is the same line.
    net.load_state_dict(weights)
    save_file(net.eval().folded(), WEIGHTS / "judge-fashion.safetensors")
    torch.set_num_threads(1)
    images, labels = read(args.fashion, "t10k")
    print(f"test accuracy {accuracy(SmallCNN.from_weights(net.folded()), images, labels):.4f}")


if __name__ == "__main__":
    main()
