"""Healthy and faulty recipes and runs, made on the fly from real data and short trainings; each fault is one damage."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import sfumato as sf
from sfumato import storage
from sfumato.doctor import Outcome, Plan
from sfumato.recipe import load_recipe
from sfumato.runtime import multiplies_bfloat16

Subject = Plan | Outcome

DIGITS = {  # a small network that learns the digits in seconds
    "data": {"kind": "digits"},
    "net": {"kind": "mlp", "width": 160, "depth": 3, "waves": 0},
    "schedule": {"kind": "cosine", "log_snr_max": 12, "log_snr_min": -12},
    "objective": {"target": "edm", "weight": "edm", "times": {"kind": "log-normal", "mean": -0.8, "std": 1.2}},
    "training": {
        "steps": 500, "batch": 128, "rate": 3e-3, "warmup": 25, "held_out": 0.15, "checkpoint_every": 500, "log_every": 25,
    },
    "runtime": {"precision": "float32"},
    "sampling": {"steps": 15, "log_snr_max": 9, "log_snr_min": -9, "guidance": 1.5},
}  # fmt: skip
TOY = ["data.count=20000", "training.steps=400", "training.batch=512", "training.warmup=40", "training.checkpoint_every=400",
       "training.log_every=25", "net.width=64"]  # fmt: skip


@dataclass
class Shelf:
    """A folder in which cases are made, and the runs that several of them share."""

    root: Path
    made: int = field(default=0)
    trained: dict[str, Path] = field(default_factory=dict)

    def path(self, suffix: str = "") -> Path:
        """A new path."""
        self.made += 1
        return self.root / f"case{self.made}{suffix}"

    def recipe(self, tree: dict[str, Any], changes: Sequence[str] = (), *, trial: float | None = None) -> Plan:
        """A plan of a tree of options."""
        path = self.path(".yaml")
        path.write_text(yaml.safe_dump(tree))
        return Plan(load_recipe(path, changes), trial_seconds=trial)

    def digits(self, *changes: str, trial: float | None = None) -> Plan:
        """The healthy digits with changes."""
        return self.recipe(DIGITS, changes, trial=trial)

    def toy(self, *changes: str, trial: float | None = None) -> Plan:
        """Healthy points with changes."""
        toy = [each for each in TOY if not (each.startswith("data.") and any(change.startswith("data=") for change in changes))]
        return Plan(load_recipe("moons", [*toy, *changes]), trial_seconds=trial)

    def arrays(self, values: np.ndarray, labels: np.ndarray | None = None) -> list[str]:
        """Changes that take these arrays for data."""
        path = self.path(".npz")
        np.savez(path, **({"arr_0": values} if labels is None else {"arr_0": values, "arr_1": labels}))
        return [f"data={{kind: array, path: {path}}}"]

    def images(self, pictures: Sequence[Image.Image]) -> Path:
        """A folder of PNGs."""
        folder = self.path()
        folder.mkdir()
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{i:04d}.png")
        return folder

    def folder(self, pictures: Sequence[Image.Image], *changes: str) -> Plan:
        """The shipped recipe for folders, on these."""
        few = ["training.steps=100", "training.batch=32", "training.warmup=5", "training.checkpoint_every=50", "training.flip=false"]
        return Plan(load_recipe("folder", [f"data.path={self.images(pictures)}", "data.size=16", *few, *changes]), trial_seconds=None)

    def train(self, tree: dict[str, Any], *changes: str, stop_after: int | None = None) -> Path:
        """A real training."""
        path, out = self.path(".yaml"), self.path()
        path.write_text(yaml.safe_dump(tree))
        done: list[int] = []
        calls = sf.Callbacks(on_step=lambda step, loss: done.append(step), should_stop=lambda: len(done) == stop_after)
        try:
            sf.train(load_recipe(path, changes), out=out, callbacks=calls)
        except sf.Stopped:
            assert stop_after is not None
        return out

    def run_of(self, recipe: Any) -> Path:
        """A whole training of a recipe, which those who ask for the same one share: they only read it."""
        key = recipe.to_yaml()
        if key not in self.trained:
            self.trained[key] = self.path()
            sf.train(recipe, out=self.trained[key])
        return self.trained[key]

    @cached_property
    def digits_run(self) -> Path:
        path = self.path(".yaml")
        path.write_text(yaml.safe_dump(DIGITS))
        return self.run_of(load_recipe(path))

    @cached_property
    def toy_run(self) -> Path:
        out = self.path()
        sf.train(load_recipe("moons", TOY), out=out)
        return out

    @cached_property
    def idle_run(self) -> Path:
        """A rate at which nothing moves."""
        return self.train(DIGITS, "training.rate=1e-9", "training.steps=60", "training.warmup=0", "training.log_every=5")

    @cached_property
    def exploded_run(self) -> Path:
        """A rate at which the guard gives up."""
        path, out = self.path(".yaml"), self.path()
        path.write_text(yaml.safe_dump(DIGITS))
        changes = ["training.rate=30", "training.warmup=60", "training.steps=120", "training.log_every=5", "training.checkpoint_every=40"]
        with pytest.raises(FloatingPointError):
            sf.train(load_recipe(path, changes), out=out)
        return out

    @cached_property
    def short_run(self) -> Path:
        """A whole run of a few steps."""
        return self.train(DIGITS, "training.steps=40", "training.warmup=2", "training.checkpoint_every=40", "training.ema=[0.2]")

    @cached_property
    def young_run(self) -> Path:
        """Stopped after a twentieth of its steps."""
        return self.train(DIGITS, stop_after=20)

    @cached_property
    def memorised_run(self) -> Path:
        """Few examples, many steps."""
        values, _ = digits()
        return self.train(DIGITS, *self.arrays(values[:60]), "training.batch=48", "training.held_out=0.85", "training.steps=900",
                          "training.log_every=60", "training.checkpoint_every=900")  # fmt: skip

    def copy(self, run: Path) -> Path:
        """A copy to damage."""
        return Path(shutil.copytree(run, self.path()))

    def with_options(self, run: Path, *changes: str) -> Outcome:
        """The run sampled in another way."""
        return Outcome(run, changes, samples=128)

    def with_curve(self, change: Callable[[list[dict[str, Any]]], None]) -> Outcome:
        """The digits' run with another metrics.jsonl."""
        run = self.copy(self.digits_run)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        change(lines)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Outcome(run, samples=64)

    def with_weights(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Outcome:
        """The digits' run with other averaged weights."""
        run = self.copy(self.digits_run)
        (path,) = (run / "checkpoints").glob("*/ema-*.safetensors")
        storage.add(path.parent, path.stem, {name: change(name, value) for name, value in load_file(path).items()})
        return Outcome(run, samples=128)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits' bytes and labels."""
    data = sf.data.digits()
    assert data.labels is not None
    return data.values, data.labels


def colours(count: int = 120, height: int = 16, width: int = 16) -> list[Image.Image]:
    """Smooth pictures in colour, no two alike."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC) for each in coarse]


def clear(picture: Image.Image) -> Image.Image:
    """With a transparent corner."""
    picture = picture.convert("RGBA")
    picture.putpixel((0, 0), (0, 0, 0, 0))
    return picture


def series(count: int = 400) -> np.ndarray:
    """Two channels of waves."""
    phase = np.random.default_rng(0).random((count, 2, 1)) * 2 * np.pi
    return np.sin(np.linspace(0, 6, 24) + phase).astype(np.float32)


def broken_folder(shelf: Shelf) -> Plan:
    plan = shelf.folder(colours())
    for i in range(0, 60, 5):
        path = plan.recipe.data.path / f"{i:04d}.png"  # pyright: ignore[reportAttributeAccessIssue]
        path.write_bytes(path.read_bytes()[:60])
    return plan


def captioned(shelf: Shelf) -> Plan:
    plan = shelf.folder(colours())
    lines = [f"{i:04d}.png,number {i}\n" for i in range(120)]
    (plan.recipe.data.path / "metadata.csv").write_text("".join(["file_name,text\n", *lines]))  # pyright: ignore[reportAttributeAccessIssue]
    return plan


def twice(values: np.ndarray, share: float, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> np.ndarray:
    """With a share of the rows repeated."""
    return np.concatenate([values, change(values[: int(share * len(values))])])


def rare() -> tuple[np.ndarray, np.ndarray]:
    values, labels = digits()
    kept = (labels != 3) | (np.cumsum(labels == 3) <= 5)
    return values[kept], labels[kept]


def dark() -> np.ndarray:
    """Of a small deviation about black."""
    return (digits()[0] // 12).astype(np.uint8)


def few_many() -> tuple[np.ndarray, np.ndarray]:
    """Thirteen threes beside five hundred of the rest, as two classes."""
    values, labels = digits()
    threes, rest = np.flatnonzero(labels == 3)[:13], np.flatnonzero(labels != 3)[:500]
    rows = np.concatenate([threes, rest])
    return values[rows], (labels[rows] == 3).astype(np.int64)


def with_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    return value + 0.6 if name == "outward.bias" else value


def shaken(amount: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def change(name: str, value: torch.Tensor) -> torch.Tensor:
        if not value.numel():  # a network without waves has an empty table of them
            return value
        return value + amount * value.std(correction=0) * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    return change


def cut(run: Path) -> Path:
    (path,) = (run / "checkpoints").glob("*/ema-*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    return run


def without_checkpoints(run: Path) -> Path:
    shutil.rmtree(run / "checkpoints")
    return run


def with_early_average(shelf: Shelf) -> Outcome:
    """The average of a run's beginning beside the weights of its end."""
    (early,) = (shelf.young_run / "checkpoints").glob("*/ema-*.safetensors")
    run = shelf.copy(shelf.digits_run)
    (late,) = (run / "checkpoints").glob("*/ema-*.safetensors")
    storage.add(late.parent, late.stem, load_file(early))
    return Outcome(run, samples=64)


def with_array_run(shelf: Shelf, damage: Callable[[Path], None]) -> Outcome:
    """A run of an array that is damaged afterwards."""
    changes = shelf.arrays(*digits())
    run = shelf.train(DIGITS, *changes, "training.steps=5", "training.warmup=1")
    damage(Outcome(run).recipe.data.path)  # pyright: ignore[reportAttributeAccessIssue]
    return Outcome(run, samples=16)


def other_values(path: Path) -> None:
    values, labels = digits()
    np.savez(path, arr_0=values[:, ::-1], arr_1=labels)


def multiplied(first: float, factor: float) -> Callable[[list[dict[str, Any]]], None]:
    def change(lines: list[dict[str, Any]]) -> None:
        for line in lines[int(first * len(lines)) :]:
            line["loss"] *= factor

    return change


def spiked(lines: list[dict[str, Any]]) -> None:
    lines[12]["loss"] *= 4


def turned_nan(lines: list[dict[str, Any]]) -> None:
    for line in lines[-3:]:
        line["loss"] = math.nan


RECIPE_FAULTS: dict[str, Callable[[Shelf], Plan]] = {
    "data-refused": lambda s: Plan(load_recipe("folder", [f"data.path={s.root / 'nothing'}"])),
    "captions-unused": captioned,
    "broken-files": broken_folder,
    "constant-data": lambda s: s.digits(*s.arrays((digits()[0] > 0).astype(np.uint8))),
    "sliver-of-range": lambda s: s.digits(*s.arrays((digits()[0] // 16).astype(np.uint8), digits()[1])),
    "constant-features": lambda s: s.toy(*s.arrays(np.concatenate([sf.data.moons(500, 0), np.ones((500, 1), np.float32)], 1))),
    "outliers": lambda s: s.toy(*s.arrays(np.concatenate([sf.data.moons(500, 0), np.full((3, 2), -9999, np.float32)]))),
    "unlike-scales": lambda s: s.toy(*s.arrays(series() * np.array([[1.0], [200.0]], np.float32)), "data.scaling=all"),
    "near-precision": lambda s: s.toy(*s.arrays(sf.data.moons(500, 0) * np.float32([1, 800]) + np.float32([0, 1.7e9]))),
    "floats-for-images": lambda s: s.toy(*s.arrays(np.stack([np.asarray(p) / 255 for p in colours()]).astype(np.float32))),
    "grey-as-rgb": lambda s: s.folder([p.convert("L").convert("RGB") for p in colours()]),
    "alpha-channel": lambda s: s.digits(*s.arrays(np.stack([np.asarray(p.convert("RGBA")) for p in colours()]))),
    "alpha-on-white": lambda s: s.folder([clear(p) for p in colours()]),
    "cropped-away": lambda s: s.folder(colours(height=16, width=40)),
    "enlarged": lambda s: s.folder(colours(height=8, width=8)),
    "copies": lambda s: s.digits(*s.arrays(twice(digits()[0], 0.1))),
    "near-copies": lambda s: s.digits(*s.arrays(twice(digits()[0], 0.2, lambda x: np.clip(x, 2, 255)))),
    "tiny-set": lambda s: s.digits(*s.arrays(digits()[0][:60])),
    "batch-above-data": lambda s: s.digits(*s.arrays(digits()[0][:60])),
    "class-imbalance": lambda s: s.digits(*s.arrays(*few_many())),
    "rare-classes": lambda s: s.digits(*s.arrays(*rare())),
    "one-class": lambda s: s.digits(*s.arrays(digits()[0], np.zeros(len(digits()[0]), np.int64))),
    "empty-labels": lambda s: s.digits(*s.arrays(digits()[0], np.random.default_rng(0).permutation(digits()[1]))),
    "flip-changes": lambda s: s.digits("training.flip=true"),
    "clip-cuts-data": lambda s: s.toy("sampling.clip=true"),
    "options-refused": lambda s: s.digits("net={kind: dit, width: 100, heads: 7}"),
    "signal-in-noise": lambda s: s.digits("schedule.log_snr_min=-2", "sampling.log_snr_min=null"),
    "noise-at-the-end": lambda s: s.digits("sampling.log_snr_max=3"),
    "untrained-levels": lambda s: s.digits("objective.times.std=0.2"),
    "few-steps": lambda s: s.digits("sampling.steps=2"),
    "average-too-short": lambda s: s.digits("training.ema=[0.004]"),
    "average-too-wide": lambda s: s.digits("training.ema=[0.1, 0.28]"),
    "warm-up-too-long": lambda s: s.digits("training.warmup=600"),
    "no-checkpoint-on-the-way": lambda s: s.digits("training.checkpoint_every=5000"),
    "guidance-untaught": lambda s: s.digits("training.label_drop=0.001"),
    "guidance-too-strong": lambda s: s.digits("sampling.guidance=20"),
    "bfloat16-emulated": lambda s: s.digits("runtime.precision=bfloat16"),
    "bound-of-floats": lambda s: s.toy(
        "schedule={kind: discrete}", "objective={loss: vlb, times: {kind: uniform}}", "sampling={sampler: ancestral}"
    ),
    "rate-too-high": lambda s: s.digits("training.rate=3.0", trial=3.0),
    "rate-too-low": lambda s: s.digits("training.rate=1.0e-9", trial=3.0),
    "memory": lambda s: s.digits("training.batch=100000000", "training.steps=1", "training.warmup=0", trial=0.5),
    "too-long": lambda s: s.digits("training.steps=1000000000", trial=3.0),
    "checkpoints-far-apart": lambda s: s.digits("training.steps=100000000", "training.checkpoint_every=50000000", trial=3.0),
    "nothing-clipped-off": lambda s: s.digits("training.clip=1.0e-5", trial=0.5),
}

RUN_FAULTS: dict[str, Callable[[Shelf], Outcome]] = {
    "checkpoint-damaged": lambda s: Outcome(cut(s.copy(s.short_run)), samples=16),
    "no-checkpoint": lambda s: Outcome(without_checkpoints(s.copy(s.short_run)), samples=16),
    "stopped-early": lambda s: Outcome(s.young_run, samples=64),
    "other-data": lambda s: with_array_run(s, other_values),
    "data-elsewhere": lambda s: with_array_run(s, Path.unlink),
    "loss-not-finite": lambda s: s.with_curve(turned_nan),
    "steps-rejected": lambda s: Outcome(s.exploded_run, samples=16),
    "loss-exploded": lambda s: s.with_curve(multiplied(0.7, 5)),
    "loss-spikes": lambda s: s.with_curve(spiked),
    "loss-never-fell": lambda s: Outcome(s.idle_run, samples=64),
    "rate-was-zero": lambda s: Outcome(s.idle_run, samples=64),
    "always-clipped": lambda s: Outcome(s.train(DIGITS, "training.clip=0.001", "training.steps=60", "training.log_every=5"), samples=64),
    "learnt-nothing": lambda s: Outcome(s.idle_run, samples=64),
    "worse-than-gaussian": lambda s: s.with_weights(shaken(0.3)),
    "only-gaussian": lambda s: Outcome(s.young_run, samples=64),
    "held-out-gap": lambda s: Outcome(s.memorised_run, samples=64),
    "average-worse": with_early_average,
    "samples-not-finite": lambda s: s.with_weights(lambda name, value: value * math.nan),
    "saturated": lambda s: s.with_options(s.digits_run, "sampling.guidance=30"),
    "colour-shift": lambda s: s.with_weights(with_bias),
    "collapsed": lambda s: s.with_options(s.digits_run, "sampling.sampler=ddim", "sampling.steps=1", "sampling.guidance=1"),
    "samples-alike": lambda s: s.with_options(s.digits_run, "sampling.guidance=15"),
    "blurred": lambda s: s.with_options(s.digits_run, "sampling.sampler=ddim", "sampling.steps=1", "sampling.guidance=0"),
    "grainy": lambda s: s.with_options(s.digits_run, "sampling.sampler=euler-maruyama", "sampling.spacing=log-snr", "sampling.steps=6"),
    "flat": lambda s: s.with_options(s.digits_run, "sampling.sampler=ddim", "sampling.steps=1", "sampling.guidance=0"),
    "training-copies": lambda s: Outcome(s.memorised_run, samples=128),
}

MORE_FAULTS: list[tuple[str, Callable[[Shelf], Plan]]] = [  # in which what helps above would not
    ("cropped-away", lambda s: s.folder(colours(height=16, width=22))),
    ("cropped-away", lambda s: s.folder(colours(60, height=16, width=40) + colours(60, height=40, width=16))),
    ("enlarged", lambda s: s.folder(colours(height=6, width=6)[:60] + colours(60))),
    ("average-too-short", lambda s: s.digits("training.steps=30")),
    ("average-too-short", lambda s: s.digits("training.steps=10", "training.ema=[0.2]")),
    ("average-too-short", lambda s: s.digits("training.steps=100", "training.ema=[0.01, 0.15]")),
    ("average-too-wide", lambda s: s.digits("training.steps=30", "training.ema=[0.28]")),
    ("average-too-wide", lambda s: s.digits("training.ema=[0.28, 0.2]")),
    ("warm-up-too-long", lambda s: s.digits("training.steps=1", "training.warmup=1")),
    ("noise-at-the-end", lambda s: s.digits("schedule.log_snr_max=3", "sampling.log_snr_max=3")),
    ("noise-at-the-end", lambda s: s.digits("schedule.log_snr_max=3", "sampling.log_snr_max=null")),
    ("noise-at-the-end", lambda s: s.digits("schedule={kind: ve, sigma_min: 0.5}")),
    ("noise-at-the-end", lambda s: s.digits("schedule={kind: discrete, betas: cosine, steps: 20}")),
    ("noise-at-the-end", lambda s: s.digits(*s.arrays(dark()), "sampling.log_snr_max=5")),
    ("noise-at-the-end", lambda s: s.digits(*s.arrays(dark()), "schedule={kind: discrete, betas: linear, steps: 1000}")),
    ("signal-in-noise", lambda s: s.digits("schedule={kind: ve, sigma_max: 2}")),
    ("signal-in-noise", lambda s: s.digits("schedule={kind: discrete, betas: linear, steps: 100}", "objective.target=eps",
                                           "schedule.steps=1000", "schedule.betas=" + str([1e-3] * 1000))),
    ("untrained-levels", lambda s: s.digits("schedule.log_snr_max=4", "schedule.log_snr_min=-4")),
    ("tiny-set", lambda s: s.digits(*s.arrays(digits()[0][:20]), "training.batch=10000")),
    ("bound-of-floats", lambda s: s.toy("schedule={kind: discrete}", "objective={loss: hybrid, variance: learned, times: {kind: uniform}}",
                                        "sampling={sampler: ancestral-learned}")),
    ("rate-too-low", lambda s: s.digits("training.rate=1.0e-9", "training.muon_rate=1.0e-9", "training.optimizer=muon",
                                        "net={kind: dit, patch: 4, width: 16, depth: 1, heads: 2}", trial=3.0)),
]  # fmt: skip


def again(plan: Plan) -> Plan:
    """The same recipe on what lies there now."""
    return Plan(plan.recipe, trial_seconds=plan.trial_seconds)


def without_broken(shelf: Shelf, plan: Plan) -> Plan:
    for i in range(0, 60, 5):
        (plan.recipe.data.path / f"{i:04d}.png").unlink()  # pyright: ignore[reportAttributeAccessIssue]
    return again(plan)


def with_data_back(shelf: Shelf, outcome: Outcome) -> Outcome:
    values, labels = digits()
    np.savez(outcome.recipe.data.path, arr_0=values, arr_1=labels)  # pyright: ignore[reportAttributeAccessIssue]
    return Outcome(outcome.folder, samples=16)


def without_damaged(shelf: Shelf, outcome: Outcome) -> Outcome:
    (damaged,) = (outcome.folder / "checkpoints").iterdir()
    shutil.rmtree(damaged)
    sf.train(load_recipe(outcome.folder / "recipe.yaml"), out=outcome.folder, resume=True)
    return Outcome(outcome.folder, samples=16)


def image_arrays(shelf: Shelf, values: np.ndarray, labels: np.ndarray | None = None) -> Plan:
    return shelf.digits(*shelf.arrays(values, labels))


BY_HAND: dict[str, Callable[[Shelf, Any], Subject]] = {  # what the words of a finding say, done
    "data-refused": lambda s, plan: s.folder(colours()),
    "broken-files": without_broken,
    "constant-data": lambda s, plan: image_arrays(s, (digits()[0] > 0).astype(np.uint8) * 255),
    "sliver-of-range": lambda s, plan: image_arrays(s, (digits()[0] // 16 * 16).astype(np.uint8), digits()[1]),
    "constant-features": lambda s, plan: s.toy(*s.arrays(sf.data.moons(500, 0))),
    "outliers": lambda s, plan: s.toy(*s.arrays(sf.data.moons(500, 0))),
    "near-precision": lambda s, plan: s.toy(*s.arrays(sf.data.moons(500, 0).astype(np.float64) * [1, 800] + [0, 1.7e9])),
    "floats-for-images": lambda s, plan: s.toy(*s.arrays(np.stack([np.asarray(p) for p in colours()]))),
    "alpha-channel": lambda s, plan: s.digits(*s.arrays(np.stack([np.asarray(p) for p in colours()]))),
    "copies": lambda s, plan: image_arrays(s, np.unique(twice(digits()[0], 0.1), axis=0)),
    "near-copies": lambda s, plan: image_arrays(s, digits()[0]),
    "class-imbalance": lambda s, plan: image_arrays(s, few_many()[0][:100], few_many()[1][:100]),
    "rare-classes": lambda s, plan: image_arrays(s, rare()[0], np.where(rare()[1] == 3, 2, rare()[1])[:] - (rare()[1] > 3)),
    "one-class": lambda s, plan: image_arrays(s, digits()[0]),
    "empty-labels": lambda s, plan: image_arrays(s, *digits()),
    "options-refused": lambda s, plan: s.digits("net={kind: dit, width: 98, heads: 7}"),
    "checkpoint-damaged": without_damaged,
    "other-data": with_data_back,
    "data-elsewhere": with_data_back,
}
BY_TRAINING = ["no-checkpoint", "stopped-early", "loss-not-finite", "steps-rejected", "loss-exploded", "loss-spikes", "loss-never-fell",
               "rate-was-zero", "always-clipped", "learnt-nothing", "worse-than-gaussian", "only-gaussian", "held-out-gap",
               "average-worse", "samples-not-finite", "training-copies", "colour-shift"]  # fmt: skip
LONGER = ["only-gaussian", "worse-than-gaussian", "average-worse", "colour-shift"]  # of which the advice is four times as many steps
BY_SAMPLING = ["saturated", "collapsed", "samples-alike", "blurred", "grainy", "flat"]


def shared(name: str) -> Path:
    import os

    path = Path(os.environ.get("SFUMATO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / name
    if not path.exists():
        pytest.skip(f"{name} is not here; set SFUMATO_TEST_DATA to its folder")
    return path


def fashion_files() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")


HEALTHY: dict[str, Callable[[Shelf], Subject]] = {
    "recipe digits": lambda s: Plan(load_recipe("digits"), trial_seconds=2.0),
    "recipe demo": lambda s: Plan(load_recipe("demo"), trial_seconds=1.0),
    "recipe swiss-roll": lambda s: Plan(load_recipe("swiss-roll", ["data.count=50000"]), trial_seconds=1.0),
    "recipe checkerboard": lambda s: Plan(load_recipe("checkerboard", ["data.count=50000"]), trial_seconds=1.0),
    "recipe fashion": lambda s: (fashion_files(), Plan(load_recipe("fashion"), trial_seconds=1.0))[1],
    "recipe flowers": lambda s: Plan(load_recipe("folder", [f"data.path={shared('flowers64.zip')}"]), trial_seconds=1.0),
    "recipe datasaurus": lambda s: Plan(load_recipe("datasaurus", [f"data.path={shared('points/datasaurus.tsv')}"]), trial_seconds=1.0),
    "a folder of PNGs": lambda s: s.folder(colours()),
    "a DDPM of digits": lambda s: s.digits(
        "schedule={kind: discrete}",
        "objective={target: eps, weight: eps, times: {kind: uniform}}",
        "sampling={sampler: ancestral, steps: 250, spacing: trailing, log_snr_max: null, log_snr_min: null}",
        trial=1.0,
    ),
    "an array of series": lambda s: s.toy(*s.arrays(series(4000)), trial=1.0),
    "series far from zero, of unlike scales": lambda s: s.toy(
        *s.arrays(series(4000).astype(np.float64) * [[30.0], [1e5]] + [[1.7e9], [0.0]]), trial=1.0
    ),
    "run of digits": lambda s: Outcome(s.digits_run, samples=192),
    "run of moons": lambda s: Outcome(s.toy_run, samples=192),
    "zoo:digits": lambda s: Outcome("zoo:digits", samples=128),
    "zoo:fashion": lambda s: (fashion_files(), Outcome("zoo:fashion", samples=32))[1],
}

SKIPPED = {"bfloat16-emulated": multiplies_bfloat16() or torch.cuda.is_available()}
