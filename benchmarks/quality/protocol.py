"""What every trainer of this benchmark shares: the data, the budget, the options and the files that it leaves behind.

The budget is a number of images: the minutes times the images a second that the trainer does alone on two threads of an idle machine
(`--measure`, 60 s of wall time). So a training may then run beside other work, on one thread or two, and sees what it would have seen.
"""

import argparse
import gzip
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

os.environ["TQDM_DISABLE"] = "1"  # draw() prints the progress of all alike

THREADS = 2
CLASSES = 10
MEASURE_SECONDS = 60
DATA = Path("/usr/share/datasets/fashion-mnist")


def idx(path: Path) -> np.ndarray:
    """The array of an idx file of bytes: two zeros, the type (8: uint8), the rank, one big-endian size a dimension, the values."""
    with gzip.open(path) as file:
        raw = file.read()
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} does not start as an idx file of bytes; got {raw[:4]!r}.")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def fashion_mnist(folder: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 28, 28] and labels uint8 [n] of the split `train` (60,000) or `t10k` (10,000)."""
    return idx(folder / f"{split}-images-idx3-ubyte.gz"), idx(folder / f"{split}-labels-idx1-ubyte.gz")


def training_set(folder: Path) -> tuple[Tensor, Tensor]:
    """All 60,000 training images as float32 [n, 1, 28, 28] in [-1, 1], and their labels int64 [n]."""
    images, labels = fashion_mnist(folder)
    return torch.from_numpy(images.copy()).float().div_(127.5).sub_(1).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def batches(x: Tensor, labels: Tensor, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, in a new order each epoch; an epoch's incomplete last batch is dropped."""
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) == size:
                yield x[rows], labels[rows]


def allowed(args: argparse.Namespace) -> int | None:
    """The images that the budget holds; None while the rate is being measured."""
    return None if args.measure else round(60 * args.minutes * args.rate)


@dataclass
class Progress:
    """Counts steps and images against the budget, keeps the losses and prints a line every ten seconds."""

    allowed: int | None
    batch: int
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)
    printed: float = 0.0

    def add(self, loss: float) -> None:
        self.losses.append(loss)
        self.times.append(self.wall)
        if self.wall - self.printed >= 10:
            self.printed = self.wall
            recent = np.mean(self.losses[-100:])
            print(f"{self.wall:6.0f} s  {self.steps:6d} steps  {self.rate:6.0f} images/s  loss {recent:.4f}", flush=True)

    @property
    def wall(self) -> float:
        return time.monotonic() - self.start

    @property
    def fraction(self) -> float:
        return self.wall / MEASURE_SECONDS if self.allowed is None else self.images / self.allowed

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def images(self) -> int:
        return self.steps * self.batch

    @property
    def rate(self) -> float:
        """Images a second after the first five steps, which also warm things up."""
        seconds = self.times[-1] - self.times[min(5, self.steps) - 1]
        return (self.steps - 5) * self.batch / seconds if seconds > 0 else float("nan")

    def report(self) -> dict[str, object]:
        tenth = max(1, self.steps // 10)
        return {
            "steps": self.steps,
            "images": self.images,
            "train_wall_seconds": round(self.wall, 2),
            "images_per_second_here": round(self.rate, 1),
            "loss_first_tenth": round(float(np.mean(self.losses[:tenth])), 5),
            "loss_last_tenth": round(float(np.mean(self.losses[-tenth:])), 5),
        }


def options(description: str, *, batch: int, sampling_batch: int, sampling_steps: int) -> argparse.ArgumentParser:
    """The options of every trainer; a trainer may add its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="training budget; times --rate, the images to see")
    parser.add_argument("--rate", type=float, help="images a second on the idle machine, as --measure prints them")
    parser.add_argument("--measure", action="store_true", help="train for 60 s of wall time and print the images a second; nothing else")
    parser.add_argument("--threads", type=int, default=THREADS, help="of this process; moves no result beyond rounding")
    parser.add_argument("--out", type=Path, required=True, help="folder for samples.npz, sheet.png and report.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four Fashion-MNIST idx files (.gz)")
    parser.add_argument("--count", type=int, default=10_000, help="samples to draw; sample i has the label i %% 10")
    parser.add_argument("--batch", type=int, default=batch, help="training batch")
    parser.add_argument("--sample-only", action="store_true", help="draw again from the weights that an earlier run left in the folder")
    parser.add_argument("--resume", action="store_true", help="go on with a training that was cut off, where its trainer can")
    parser.add_argument("--sampling-batch", type=int, default=sampling_batch)
    parser.add_argument("--sampling-steps", type=int, default=sampling_steps)
    return parser


def prepare(args: argparse.Namespace) -> None:
    """The threads, the seed, and the folder to write into."""
    if args.rate is None and not args.measure:
        raise SystemExit("--rate is missing: run with --measure on an idle machine first, and give the rate that it prints.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)


def keep(out: Path, net: nn.Module, trained: dict[str, object]) -> None:
    """Leaves the weights to sample with, and what their training took, in `out`; `restore` reads them."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, out / "model.safetensors")
    (out / "trained.json").write_text(json.dumps(trained, indent=2) + "\n")


def restore(out: Path, net: nn.Module) -> dict[str, object]:
    """Loads the weights in `out` into `net`; returns what their training took."""
    net.load_state_dict(load_file(out / "model.safetensors"))
    return json.loads((out / "trained.json").read_text())


def draw(sampler: Callable[[Tensor], Tensor], count: int, batch: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Images uint8 [n, 28, 28, 1], labels int64 [n] and the time it took; `sampler` maps labels [b] to images [b, 1, 28, 28] in [-1, 1]."""
    labels, start, done, printed = torch.arange(count) % CLASSES, time.monotonic(), [], 0.0
    for rows in labels.split(batch):
        with torch.no_grad():
            x = sampler(rows)
        done.append(x.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
        wall = time.monotonic() - start
        if wall - printed >= 10:
            printed, ready = wall, sum(map(len, done))
            print(f"{ready:6d} of {count} samples, {ready / wall:.1f} a second", flush=True)
    return np.concatenate(done), labels.numpy(), {"sample_wall_seconds": round(time.monotonic() - start, 2)}


def sheet(images: np.ndarray, labels: np.ndarray, rows: int = 8) -> Image.Image:
    """One column a class, the first `rows` samples of each; black where there are fewer."""
    page = np.zeros((rows, 28, CLASSES, 28), np.uint8)
    for label in range(CLASSES):
        for row, image in enumerate(images[labels == label][:rows]):
            page[row, :, label] = image[..., 0]
    return Image.fromarray(page.reshape(rows * 28, CLASSES * 28)).resize((CLASSES * 56, rows * 56), Image.Resampling.NEAREST)


def precision() -> torch.dtype:
    """bfloat16 where the processor multiplies it; where it does not, float32, which is then far faster."""
    info = Path("/proc/cpuinfo")
    has = info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if has else torch.float32


def processor() -> str:
    """The processor's name as Linux tells it, or the machine's type."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(out: Path, images: np.ndarray, labels: np.ndarray, report: dict[str, object], packages: list[str]) -> None:
    """Leaves samples.npz (arr_0, arr_1), sheet.png and report.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "samples.npz", arr_0=images, arr_1=labels)
    sheet(images, labels).save(out / "sheet.png")
    versions = {"python": platform.python_version(), "torch": torch.__version__} | {name: version(name) for name in packages}
    full = report | {"samples": len(images), "threads": torch.get_num_threads(), "processor": processor(), "versions": versions}
    (out / "report.json").write_text(json.dumps(full, indent=2) + "\n")
    print(json.dumps(full))
