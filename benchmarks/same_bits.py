"""Trains small recipes at two commits on this machine and compares their metrics and weights to the bit.

    python benchmarks/same_bits.py BASE                 # BASE against the working tree
    python benchmarks/same_bits.py BASE --head HEAD     # two commits
    python benchmarks/same_bits.py BASE --only points,unet

Nothing is stored: bits differ between processors, so both sides are trained here, with seed 0 and one thread. Both use the packages of this
Python; only sfumato differs. Exit code 1 if a case of plain denoisers (the first five) differs, or a sample of the zoo by more than
one grey level. For other kinds the largest difference of each metric is reported, since the order of their draws may change in a release
(see CHANGELOG).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    "training.seed=0",
    "training.log_every=5",
    "training.checkpoint_every=20",
    "training.trackers=[]",
    "runtime.kernels=torch",
    "runtime.precision=float32",
)
CLOCKS = {"seconds", "images_per_second", "peak_memory_bytes"}
UNET = ("net={kind: unet, channels: [16, 32], blocks: 1, attention: [false, true], heads: 2, groups: 8, dropout: 0.1}",)
CHAIN = (
    "schedule={kind: discrete, betas: cosine, steps: 100}",
    "sampling={sampler: ancestral-learned, spacing: leading, steps: 10, log_snr_max: null, log_snr_min: null}",
)
LEARNED = (
    "objective={target: eps, weight: eps, loss: hybrid, variance: learned, values: 17, times: {kind: importance, history: 2, bins: 10}}",
)
DIT = ("net={kind: dit, patch: 2, width: 48, depth: 2, heads: 4}", "schedule={kind: flow}", "objective.target=flow")
PLAIN = {
    "points": ("swiss-roll", ("data.count=2000", "training.batch=64")),
    "patch-unet": ("digits", ("net.widths=[16, 32]", "net.heads=2", "training.batch=16", "training.held_out=0.1")),
    "unet": ("digits", (*UNET, *CHAIN, *LEARNED, "training.batch=16", "training.flip=true")),
    "dit": ("digits", (*DIT, "training.batch=16", "objective.times={kind: fitted, bins: 8}", "training.optimizer=adamw")),
    "bfloat16": (
        "digits",
        ("net.widths=[16, 32]", "net.heads=2", "training.batch=12", "runtime.precision=bfloat16", "runtime.micro_batch=5"),
    ),
}
OTHER = {
    "vae": ("vae-digits", ("training.batch=16",)),
    "ladder": ("hvae-digits", ("training.batch=16",)),
    "vdm": ("vdm-digits", ("training.batch=16",)),
    "latents": ("ldm-digits", ("training.batch=16", "autoencoder_training.batch=16", "autoencoder_training.steps=20")),
}
CASES = PLAIN | OTHER


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a commit")
    parser.add_argument("--head", help="another commit; the working tree where not given")
    parser.add_argument("--only", help=f"cases, joined by commas: {', '.join([*CASES, 'zoo'])}")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [*CASES, "zoo"]
    if unknown := set(wanted) - {*CASES, "zoo"}:
        parser.error(f"there is no case {sorted(unknown)[0]}; the cases are {', '.join([*CASES, 'zoo'])}.")
    bad = False
    with tempfile.TemporaryDirectory() as scratch:
        sides = [_checkout(options.base, Path(scratch) / "base"), _checkout(options.head, Path(scratch) / "head")]
        for name in wanted:
            runs = [Path(scratch) / "runs" / f"{name}-{i}" for i in range(2)]
            if name == "zoo":
                found = _zoo(sides, Path(scratch))
            else:
                for source, run in zip(sides, runs, strict=True):
                    _train(source, name, run, options.steps)
                found = compare(*runs)
            bad |= bool(found) and name not in OTHER
            print(f"{name:12} {'the same bits' if not found else '; '.join(found[:6])}", flush=True)
    return int(bad)


def _checkout(commit: str | None, folder: Path) -> Path:
    """The source folder of a commit, unpacked; of the working tree by default."""
    if commit is None:
        return ROOT / "src"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder / "src"


def _run(source: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "sfumato", *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{source}: sfumato {' '.join(arguments)}\n{done.stdout}{done.stderr}")


def _train(source: Path, name: str, out: Path, steps: int) -> None:
    recipe, changes = CASES[name]
    sets = [part for change in (*COMMON, *changes, f"training.steps={steps}") for part in ("--set", change)]
    _run(source, "train", recipe, *sets, "--out", str(out))


def _zoo(sides: list[Path], scratch: Path) -> list[str]:
    found = []
    for model in ("digits", "fashion"):
        paths = [scratch / f"{model}-{i}.npz" for i in range(2)]
        for source, path in zip(sides, paths, strict=True):
            _run(source, "sample", f"zoo:{model}", "--count", "20", "--kernels", "torch", "--out", str(path))
        ours, theirs = (np.load(path)["arr_0"].astype(int) for path in paths)
        if (apart := int(abs(ours - theirs).max())) > 1:
            found.append(f"zoo:{model} is up to {apart} grey levels apart")
    return found


def compare(base: Path, head: Path) -> list[str]:
    """The differences between two run folders, except times: metrics, weights, averages, the optimiser's state."""
    found = []
    for path in sorted(base.rglob("metrics.jsonl")):
        name = path.relative_to(base)
        records = [[json.loads(line) for line in side.read_text().splitlines()] for side in (path, head / name)]
        for key in sorted(set().union(*records[0]) - CLOCKS):
            columns = [[record.get(key) for record in side] for side in records]
            if columns[0] != columns[1]:
                apart = max((abs(a - b) for a, b in zip(*columns, strict=False) if a is not None and b is not None), default=float("nan"))
                found.append(f"{name}: {key} differs by up to {apart:.3g} (last {columns[0][-1]} and {columns[1][-1]})")
    for path in sorted(base.rglob("*.safetensors")):
        name = path.relative_to(base)
        there = next((head / each for each in (name, name.with_name("learned.safetensors")) if (head / each).is_file()), None)
        if there is None or (there.name != name.name and name.name != "times.safetensors"):  # what times learn has another name since 0.2
            found.append(f"{name} is missing")
            continue
        ours, theirs = load_file(path), load_file(there)
        if ours.keys() != theirs.keys():
            found.append(f"{name}: other names {sorted(ours.keys() ^ theirs.keys())[:3]}")
        wrong = [key for key in ours.keys() & theirs.keys() if ours[key].tobytes() != theirs[key].tobytes()]
        if wrong:
            found.append(f"{name}: {len(wrong)} of {len(ours)} tensors differ")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
