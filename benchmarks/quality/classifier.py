"""The feature space `fashion_cnn`: the 128 penultimate features of a small Fashion-MNIST classifier (test accuracy 0.927).

Its weights are kept beside this file, since another training gives another space, whose figures cannot be compared with these. They
came from the recipe below, which

    python benchmarks/quality/classifier.py --minutes 2.5 --out classifier.safetensors

repeats (480,640 images seen on two cores).
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import protocol
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")
FEATURES = 128


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class FashionCNN(nn.Module):
    """Four convolutions on 2x2 pixel blocks, 128 features from a 3x3 grid of averages, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.PixelUnshuffle(2), block(4, 48), block(48, 64), nn.MaxPool2d(2), block(64, 128), block(128, 128))
        self.dense = nn.Linear(128 * 9, FEATURES)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(FEATURES, protocol.CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """[n, 128] of images [n, 1, 28, 28] in [-1, 1]."""
        pixels = (x + 1) / 2
        maps = F.max_pool2d(self.body((pixels - 0.286) / 0.353), 2, padding=1)
        return F.gelu(self.dense(F.adaptive_avg_pool2d(maps, 3).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.features(x)))


def load(path: Path = WEIGHTS) -> FashionCNN:
    net = FashionCNN()
    net.load_state_dict(load_file(path))
    return net.eval()


def space(path: Path = WEIGHTS) -> str:
    """The name of the feature space: the network's, and the first eight digits of its weights' SHA-256."""
    return f"fashion_cnn:{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


@torch.no_grad()
def describe(net: FashionCNN, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features float64 [n, 128] and predicted labels int64 [n] of uint8 images [n, 28, 28] or [n, 28, 28, 1]."""
    x = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1)
    features = torch.cat([net.features(part) for part in x.split(500)])
    return features.double().numpy(), net.head(features).argmax(1).numpy()


def train(data: Path, epochs: float, seed: int, batch: int = 128, peak: float = 2e-3) -> FashionCNN:
    """AdamW under a triangle of learning rates, flips, labels smoothed by 0.05."""
    x, labels = protocol.training_set(data)
    generator = Generator().manual_seed(seed)
    net = FashionCNN().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.02, fused=True)
    progress = protocol.Progress(round(epochs * len(x)), batch)
    for x0, label in protocol.batches(x, labels, batch, generator):
        done = progress.fraction
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = peak * min(1.0, done / 0.1, (1 - done) / 0.9 + 1e-3)
        x0 = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x0.flip(3), x0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x0)
        value = F.cross_entropy(logits.float(), label, label_smoothing=0.05)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        progress.add(value.item())
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the classifier anew, into a feature space of its own.")
    parser.add_argument("--epochs", type=float, default=10, help="the shipped weights are of a run of 2.5 minutes, about as long")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=protocol.DATA)
    args = parser.parse_args()
    torch.set_num_threads(protocol.THREADS)
    torch.manual_seed(args.seed)
    net = train(args.data, args.epochs, args.seed)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, args.out)
    images, labels = protocol.fashion_mnist(args.data, "t10k")
    print(f"test accuracy {np.mean(describe(net, images)[1] == labels):.4f}, written to {args.out}")


if __name__ == "__main__":
    main()
