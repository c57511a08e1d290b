"""What every trainer of this benchmark shares: the data, the clock, the options and the files that it leaves behind.

The budget is processor time: (CPU seconds of the process and of the children that it waited for) / 2 threads. On an idle machine
of two cores this is wall time at most; other load on the machine slows a run down without taking training from it. For this to hold
a thread that waits must sleep: OpenMP's default is to spin, and beside one other busy process the same step was then charged two to
five times its processor time. Import this module before torch.
"""

import argparse
import gzip
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

IN_TIME = "torch" not in sys.modules or os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # OpenMP reads it once, as torch loads it
os.environ["TQDM_DISABLE"] = "1"  # draw() prints the progress of all alike

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Generator, Tensor, nn  # noqa: E402

THREADS = 2
CLASSES = 10
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


def cpu_seconds() -> float:
    """CPU seconds of this process (all threads) and of the children that it waited for, such as a compiler."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


@dataclass
class Clock:
    """Counts from its making; `spent` is CPU seconds / 2 threads."""

    minutes: float
    cpu_start: float = field(default_factory=cpu_seconds)
    wall_start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return (cpu_seconds() - self.cpu_start) / THREADS

    @property
    def wall(self) -> float:
        return time.monotonic() - self.wall_start

    @property
    def fraction(self) -> float:
        return self.spent / (60 * self.minutes)


@dataclass
class Progress:
    """Counts steps and images, keeps the losses and prints a line every ten seconds."""

    clock: Clock
    batch: int
    losses: list[float] = field(default_factory=list)
    printed: float = 0.0

    def add(self, loss: float) -> None:
        self.losses.append(loss)
        if self.clock.wall - self.printed >= 10:
            self.printed = self.clock.wall
            recent = np.mean(self.losses[-100:])
            rate = self.images / self.clock.spent
            print(f"{self.clock.spent:6.0f} s  {self.steps:6d} steps  {rate:6.0f} images/s  loss {recent:.4f}", flush=True)

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def images(self) -> int:
        return self.steps * self.batch

    def report(self) -> dict[str, object]:
        tenth = max(1, self.steps // 10)
        return {
            "steps": self.steps,
            "images": self.images,
            "train_seconds": round(self.clock.spent, 2),
            "train_wall_seconds": round(self.clock.wall, 2),
            "images_per_second": round(self.images / self.clock.spent, 1),
            "loss_first_tenth": round(float(np.mean(self.losses[:tenth])), 5),
            "loss_last_tenth": round(float(np.mean(self.losses[-tenth:])), 5),
        }


def options(description: str, *, batch: int, sampling_batch: int, sampling_steps: int) -> argparse.ArgumentParser:
    """The options of every trainer; a trainer may add its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="training budget: CPU seconds / 2 threads, in minutes")
    parser.add_argument("--out", type=Path, required=True, help="folder for samples.npz, sheet.png and report.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four Fashion-MNIST idx files (.gz)")
    parser.add_argument("--count", type=int, default=10_000, help="samples to draw; sample i has the label i %% 10")
    parser.add_argument("--batch", type=int, default=batch, help="training batch")
    parser.add_argument("--sample-only", action="store_true", help="draw again from the weights that an earlier run left in the folder")
    parser.add_argument("--sampling-batch", type=int, default=sampling_batch)
    parser.add_argument("--sampling-steps", type=int, default=sampling_steps)
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Two threads, the seed, and the folder to write into."""
    if not IN_TIME:
        raise RuntimeError("torch was imported before protocol, so its threads spin while they wait; import protocol first.")
    torch.set_num_threads(THREADS)
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
    labels, clock, done, printed = torch.arange(count) % CLASSES, Clock(0), [], 0.0
    for rows in labels.split(batch):
        with torch.no_grad():
            x = sampler(rows)
        done.append(x.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
        if clock.wall - printed >= 10:
            printed, ready = clock.wall, sum(map(len, done))
            print(f"{ready:6d} of {count} samples, {ready / clock.wall:.1f} a second", flush=True)
    seconds = {"sample_seconds": round(clock.spent, 2), "sample_wall_seconds": round(clock.wall, 2)}
    return np.concatenate(done), labels.numpy(), seconds


def sheet(images: np.ndarray, labels: np.ndarray, rows: int = 8) -> Image.Image:
    """One column a class, the first `rows` samples of each; black where there are fewer."""
    page = np.zeros((rows, 28, CLASSES, 28), np.uint8)
    for label in range(CLASSES):
        for row, image in enumerate(images[labels == label][:rows]):
            page[row, :, label] = image[..., 0]
    return Image.fromarray(page.reshape(rows * 28, CLASSES * 28)).resize((CLASSES * 56, rows * 56), Image.Resampling.NEAREST)


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
    full = report | {"samples": len(images), "threads": THREADS, "processor": processor(), "versions": versions}
    (out / "report.json").write_text(json.dumps(full, indent=2) + "\n")
    print(json.dumps(full))
