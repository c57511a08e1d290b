"""A run, during or after training: metadata, curve, weights, samples. Everything is read once, when a check first needs it."""

import fcntl
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from sfumato import oracle
from sfumato.data import Scaling
from sfumato.denoiser import Predictor
from sfumato.doctor.plan import Plan, log_snr
from sfumato.loading import load
from sfumato.model import Model
from sfumato.noise import seeded
from sfumato.recipe import load_recipe
from sfumato.schedule import Level
from sfumato.storage import CheckpointError, folder_of, name_of, read_manifest, read_spec, read_state, read_tensors, steps_in

COMPARED = 96  # examples for the loss by level
LEVELS = 6
FITTED = 20_000  # most examples for fitting the Gaussian
MOST_DIMENSIONS = 1024  # most dimensions with a full covariance
TRAINING = 5000  # most examples that samples are compared with
SAMPLING_SECONDS = 30.0


@dataclass(frozen=True)
class LevelErrors:
    """Mean squared error of x0 at each level, on the same examples and noise for all predictors."""

    log_snr: tuple[float, ...]
    model: Float[np.ndarray, "k"]
    raw: Float[np.ndarray, "k"] | None
    untrained: Float[np.ndarray, "k"]
    gaussian: Float[np.ndarray, "k"]
    on_training: Float[np.ndarray, "k"] | None
    gaussian_is_full: bool


class Outcome:
    """The contents of a run folder, or of `zoo:NAME`."""

    def __init__(self, model: str | Path, changes: Sequence[str] = (), *, samples: int = 256, part_of: Path | None = None) -> None:
        """Reads only the recipe.

        Args:
            model: a run folder or `zoo:NAME`.
            changes: `path=value` changes of the place of the data or of the sampling.
            samples: how many to draw, at most.
            part_of: the run folder of the model of several stages that this run is a stage of.

        Raises:
            ValueError: there is no such model, or a change does not fit.
        """
        self.name, self.folder, self.count, self.part_of = str(model), folder_of(model), samples, part_of
        self.recipe = load_recipe(self.folder / "recipe.yaml", changes)
        self.plan = Plan(self.recipe, trial_seconds=None, scaling=_scaling(self.folder))

    @property
    def has_levels(self) -> bool:
        """Whether it is of a kind of model that is trained at the noise levels of a schedule."""
        return self.recipe.has_levels

    @cached_property
    def is_later_stage(self) -> bool:
        """Whether its data were made by an earlier stage."""
        try:
            return bool(read_manifest(self.folder).get("made_from"))
        except CheckpointError:
            return False

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """The lines of metrics.jsonl that have a loss."""
        return [line for line in self.lines if isinstance(line.get("loss"), int | float)]

    @cached_property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """All lines of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line may be incomplete
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                found.append(record)
        return found

    def longer(self) -> str:
        """The command that trains it four times as long."""
        whole, steps = self.part_of or self.folder, 4 * self.recipe.training.steps
        longer = f"--steps {steps}" if self.part_of is None else f"--set training.steps={steps}"
        return f"sfumato train {whole}/recipe.yaml --out {whole} {longer} --resume"

    def weaker(self) -> str:
        """Options of `sample` for less guidance and more steps than the recipe's."""
        sampling = self.recipe.sampling
        less = f"--guidance {1 if sampling.guidance <= 2 else 2} " if sampling.guidance > 1 else ""
        return f"{less}{self.finer()}"

    def finer(self) -> str:
        """Options of `sample` for more steps than the recipe's."""
        return f"--steps {max(40, 2 * self.recipe.sampling.steps)}"

    def curve(self, name: str) -> Float[np.ndarray, "n"]:
        """One column of the records."""
        return np.array([record.get(name, math.nan) for record in self.records], dtype=np.float64)

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return steps_in(self.folder / "checkpoints")

    @cached_property
    def is_running(self) -> bool:
        """Whether a process holds the run's lock."""
        lock = self.folder / ".lock"
        if not lock.is_file():
            return False
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @cached_property
    def damage(self) -> Sequence[str]:
        """The problems of the checkpoints' files, one sentence each."""
        found = []
        for step in self.steps:
            checkpoint = self.folder / "checkpoints" / f"{step:08d}"
            averages = {checkpoint / f"{name_of(width)}.safetensors" for width in self.recipe.training.ema}
            for path in sorted({*checkpoint.glob("*.safetensors"), *averages}):
                found += _refusal(lambda path=path: read_tensors(path))
            if any(checkpoint.glob("[!e]*.safetensors")):  # the zoo has averages only
                found += _refusal(lambda checkpoint=checkpoint: read_state(checkpoint))
        found += _refusal(lambda: read_spec(self.folder))
        return found

    @cached_property
    def data_changed(self) -> bool:
        """Whether the data differ from those of the manifest."""
        assert self.plan.source is not None
        begun = json.loads((self.folder / "manifest.json").read_text()).get("data", {}).get("fingerprint")
        return begun is not None and begun != self.plan.source.fingerprint()

    @cached_property
    def run(self) -> Model | None:
        """The model with its averaged weights; None if none can be read."""
        try:
            loaded = load(self.folder) if self.steps else None
            return None if loaded is None else Model(loaded.name, self.recipe, loaded.spec, loaded.network, self.folder)
        except CheckpointError:
            return None

    @cached_property
    def has_data(self) -> bool:
        """Whether the data are available, of the model's shape, and of fixed size, so that they can be compared with samples."""
        if self.plan.source is None or self.run is None:
            return False
        shape = self.plan.source.spec.shape
        return shape == self.run.spec.shape and None not in shape and self.plan.x0.is_floating_point()

    @cached_property
    def errors(self) -> LevelErrors | None:
        """Errors by level on held-out examples, or on training examples if fewer than 32 are held out; None if they are not finite."""
        if self.run is None or not self.has_data:
            return None
        is_held_out = len(self.plan.rows[1]) >= 32
        examples, training = self.plan.some(COMPARED, held_out=is_held_out), self.plan.some(COMPARED)
        schedule = self.run.schedule
        low, high = np.quantile(self.plan.drawn.numpy(), [0.05, 0.95])
        visited = [log_snr(level) for level in self.plan.levels[:-1]]
        points = np.linspace(max(low, min(visited)), min(high, max(visited)), LEVELS)
        levels = [schedule.level(t) for t in schedule.time(torch.as_tensor(points))]
        model = _errors(self.run.predictor, *examples, levels)
        if not np.isfinite(model).all():
            return None
        untrained = self.recipe.build(self.run.spec).eval()
        gaussian, is_full = self._gaussian()
        raw = self._raw()
        return LevelErrors(
            tuple(map(float, points)),
            model,
            None if raw is None else _errors(raw, *examples, levels),
            _errors(untrained, *examples, levels),
            _errors(gaussian, examples[0], None, levels),
            _errors(self.run.predictor, *training, levels) if is_held_out else None,
            is_full,
        )

    def _gaussian(self) -> tuple[Predictor, bool]:
        """The optimal predictor for Gaussian data with this mean and covariance; with a diagonal one if there are too few examples."""
        flat = self.plan.some(FITTED)[0].flatten(1).double()
        if flat.shape[1] <= MOST_DIMENSIONS and len(flat) >= 4 * flat.shape[1]:
            return oracle.Gaussian(flat.mean(0), torch.cov(flat.T)), True
        return oracle.Gaussian(flat.mean(0), flat.var(0)), False

    def _raw(self) -> Predictor | None:
        """The model with its raw weights instead of the average; None if they are missing or damaged."""
        assert self.run is not None
        path = self.folder / "checkpoints" / f"{self.steps[-1]:08d}" / "model.safetensors"
        if not path.is_file():
            return None
        denoiser = self.recipe.build(self.run.spec)
        try:
            denoiser.net.load_state_dict(read_tensors(path))
        except (CheckpointError, RuntimeError):
            return None
        return denoiser.eval().requires_grad_(False)

    @cached_property
    def _drawn(self) -> tuple[Shaped[Tensor, "n *x"] | None, str]:
        """x0 of samples with the label frequencies of the data, or why there are none."""
        if self.run is None or self.run.sampler.use:  # a kind that cannot be sampled says so in `use`
            return None, ""
        labels = None
        if self.plan.labels is not None and self.run.spec.classes:
            labels = self.plan.labels[np.random.default_rng(1).permutation(len(self.plan.labels))]
        parts, done, started = [], 0, time.perf_counter()
        try:
            while done < self.count and (not done or time.perf_counter() - started < SAMPLING_SECONDS):
                some = min(64, self.count - done)
                mine = None if labels is None else [int(labels[i % len(labels)]) for i in range(done, done + some)]
                cond = self._given(done, some) if self.run.needs_examples else None
                parts.append(self.run.spec.codec.encode(self.run.sample(some, labels=mine, cond=cond, seed=done).values))
                done += some
        except ValueError as error:
            return None, str(error)
        return torch.cat(parts), ""

    def _given(self, done: int, some: int) -> Mapping[str, Any] | None:
        """Conditions of training examples, for a model that must have them."""
        if self.plan.source is None:
            return None
        rows = self.plan.rows[0]
        return self.plan.source.batch(rows[np.arange(done, done + some) % len(rows)]).cond

    @property
    def samples(self) -> Shaped[Tensor, "n *x"] | None:
        """x0 of samples; None if there are none, or none that are finite."""
        found = self._drawn[0]
        return found if found is not None and not bool(self._broken(found).any()) else None

    def _broken(self, found: Shaped[Tensor, "n *x"]) -> Bool[Tensor, "n"]:
        """Which samples are not finite; among examples of varying size NaN stands where a sample has no entry."""
        varies = self.run is not None and None in self.run.spec.shape
        finite = found.flatten(1).isfinite()
        return found.flatten(1).isinf().any(1) | ~finite.any(1) if varies else ~finite.all(1)

    @property
    def sample_refusal(self) -> str:
        """Why no samples could be drawn; empty if they could."""
        found, refusal = self._drawn
        if found is not None and (broken := int(self._broken(found).sum())):
            return f"{broken} of {len(found)} samples are not finite."
        return refusal

    @cached_property
    def real(self) -> Shaped[Tensor, "n *x"]:
        """Training examples, for comparison with samples."""
        return self.plan.some(TRAINING)[0]

    @property
    def is_comparable(self) -> bool:
        """Whether there are samples, and data to compare them with."""
        return self.has_data and self.samples is not None


def _refusal(read: Any) -> list[str]:
    try:
        read()
    except CheckpointError as error:
        return [str(error)]
    return []


@torch.no_grad()
def _errors(
    predict: Predictor, x0: Float[Tensor, "n *x"], labels: Int64[Tensor, "n"] | None, levels: Sequence[Level]
) -> Float[np.ndarray, "k"]:
    cond = None if labels is None else {"labels": labels}
    found = []
    for number, level in enumerate(levels):
        eps = torch.randn(x0.shape, generator=seeded(0, number), dtype=x0.dtype)
        error = predict(level.alpha * x0 + level.sigma * eps, level, cond).x0 - x0
        found.append(float(error.double().square().mean()))
    return np.array(found)


def _scaling(folder: Path) -> Scaling | None:
    """The scaling of the run; None if its manifest cannot be read."""
    try:
        codec = read_spec(folder).codec
        return codec if isinstance(codec, Scaling) else None
    except CheckpointError:
        return None
