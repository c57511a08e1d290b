"""The noise-conditioned classifier of a run: trained on its data under its schedule, to guide its sampler.

Dhariwal & Nichol (2021), section 4.1 and appendix H, arXiv:2105.05233: cross-entropy of noised examples, at times uniform in t. It lies in
RUN/classifier, a folder like the run's own: recipe.yaml, manifest.json, metrics.jsonl, checkpoints/.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from sfumato import nets
from sfumato.classifier import Classifier
from sfumato.data import Dataset
from sfumato.denoiser import CondLike
from sfumato.form import Form
from sfumato.noise import normal_like, seeded
from sfumato.run import Run, folder_of, read_form
from sfumato.schedule import Schedule
from sfumato.train import checkpoint
from sfumato.train.checkpoint import CheckpointError
from sfumato.train.ema import name_of
from sfumato.train.engine import Engine
from sfumato.train.folder import begin, manifest_of, papers_of, refuse_other_data
from sfumato.train.loop import fit
from sfumato.train.opening import divided, equipped, extension
from sfumato.train.recipe import Data, Options, Runtime, ScheduleOptions, Size, Times, Training, UniformTimes, read_tree, resolve
from sfumato.train.state import TrainState
from sfumato.train.window import LOG_SNRS


class PatchNet(Options):
    """`nets.PatchClassifier`, for images."""

    kind: Literal["patch-classifier"] = "patch-classifier"
    patch: int = Field(default=1, ge=1)
    widths: tuple[Size, ...] = Field(default=(32, 64, 128), min_length=1)
    depth: int = Field(default=1, ge=1)

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.PatchClassifier(shape, classes, patch=self.patch, widths=self.widths, depth=self.depth)


class VectorNet(Options):
    """`nets.MLP`, for points and anything else that is no image."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=3, ge=1)
    waves: int = Field(default=0, ge=0)

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        """The network for data of this shape, read as one vector."""
        return nets.MLP((math.prod(shape),), width=self.width, depth=self.depth, waves=self.waves, out_channels=classes)


class ClassifierRecipe(Options):
    """Everything that makes a classifier; data and schedule are the run's."""

    data: Data
    schedule: ScheduleOptions
    net: Annotated[PatchNet | VectorNet, Field(discriminator="kind")]
    times: Times = UniformTimes()
    training: Training
    runtime: Runtime = Runtime()

    @field_validator("training")
    @classmethod
    def _keeps_its_labels(cls, training: Training) -> Training:
        if training.label_drop:
            raise ValueError("a classifier learns from every label; leave training.label_drop at 0")
        return training


def recipe_for(run: Run, changes: Sequence[str] = (), *, steps: int | None = None) -> ClassifierRecipe:
    """The recipe of a run's classifier, with `path=value` changes: the run's data, split, flips and schedule, a network of its own.

    Raises:
        ValueError: a run without classes, or a change that does not fit.
    """
    if not run.form.classes:
        raise ValueError(f"{run.name} has no classes, so there is nothing to classify; train a model of labelled data.")
    patch = max(1, min(run.form.shape[1:], default=1) // 14)
    net = {"kind": "patch-classifier", "patch": patch} if run.form.is_image else {"kind": "mlp"}
    theirs = run.recipe.training
    training = {
        "steps": 1000,
        "rate": 1e-3,
        "weight_decay": 0.05,
        "label_drop": 0.0,
        "checkpoint_every": 500,
        "log_every": 100,
        **{name: getattr(theirs, name) for name in ("batch", "flip", "held_out", "held_out_by", "seed")},
    }
    shared = run.recipe.model_dump(mode="json", include={"data", "schedule", "runtime"})
    return resolve(ClassifierRecipe, {**shared, "net": net, "training": training}, changes, steps=steps, source=run.name)


def train(
    run: Run,
    recipe: ClassifierRecipe,
    out: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains the classifier of a run into the folder `out` and returns it; the arguments are those of `loop.train`.

    metrics.jsonl also says how many of the held-out examples (of the training ones, where none are held out) are told right at each of
    LOG_SNRS.

    Raises:
        ValueError: data other than the run's, or an `out` that cannot be used.
        CheckpointError: a checkpoint that is damaged or cannot be written.
        FloatingPointError: a loss or gradient that is not finite.
        Stopped: as `should_stop` asked.
    """
    options, engine = recipe.training, Engine.begin()
    begun = begin(recipe, out, resume=resume or engine.was_restarted, read=_read)
    dataset = recipe.data.load()
    _refuse_stranger(run, dataset)
    examples, held_out = divided(dataset.scaled(run.form.scaling), options)
    counts = np.bincount(_labels(examples), minlength=len(run.form.classes)) + 1  # a class that is missing here has a chance, too
    engine = equipped(engine, recipe.runtime, options, run.form.shape, begun=None if begun is None else out, say=say)
    manifest = {**manifest_of(recipe, options, dataset, run.form, engine), "prior": (counts / counts.sum()).tolist()}
    if begun is not None:
        refuse_other_data(manifest, out)
        if (sentence := extension(begun.training, options, out)) and engine.is_main:
            say(sentence)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = _build(recipe, run.form, manifest["prior"]).to(engine.device)
    schedule = recipe.schedule.build()
    state = TrainState.begin(model, options, recipe.times.build(schedule))

    def cross_entropy(model: Classifier, x0: Tensor, eps: Tensor, t: Tensor, cond: CondLike | None) -> Tensor:
        level = schedule.level(t, like=x0)
        return -model(level.alpha * x0 + level.sigma * eps, level, cond)

    fit(
        state,
        cross_entropy,
        examples,
        options,
        out,
        engine=engine,
        schedule=schedule,
        papers=papers_of(begun, recipe, manifest, out),
        measure=lambda: accuracy(model, schedule, held_out or examples),
        on_step=on_step,
        watch=watch,
        say=say,
        should_stop=should_stop,
    )
    return out


@torch.no_grad()
def accuracy(model: Classifier, schedule: Schedule, examples: Dataset, *, count: int = 500, batch: int = 100) -> dict[str, float]:
    """The share of up to `count` examples that a classifier tells right at each of LOG_SNRS, always under the same noise."""
    rows, right = np.random.default_rng(0).permutation(len(examples))[:count], dict.fromkeys(LOG_SNRS, 0)
    for start in range(0, len(rows), batch):
        x0, labels = examples.batch(rows[start : start + batch])
        eps = normal_like(x0, seeded(0, start))
        for log_snr in LOG_SNRS:
            level = schedule.level(schedule.time(torch.tensor(float(log_snr), dtype=torch.float64)))
            guesses = model.log_class(level.alpha * x0 + level.sigma * eps, level).argmax(1)
            right[log_snr] += int((guesses == labels).sum())
    return {f"accuracy@{log_snr:+d}": right[log_snr] / len(rows) for log_snr in LOG_SNRS}


def load(folder: str | Path) -> Classifier:
    """The classifier of a run (RUN or RUN/classifier), with the averaged weights of its newest checkpoint.

    Raises:
        ValueError: there is none.
        CheckpointError: no checkpoint yet, or a damaged one.
    """
    place = Path(folder)
    home = folder_of(folder) / "classifier" if str(folder).startswith("zoo:") else place / "classifier"
    found = next((each for each in (home, place) if (each / "recipe.yaml").is_file() and "prior" in _manifest(each)), None)
    if found is None:
        raise ValueError(f"{folder} holds no classifier; train one with sfumato train-classifier {folder}, or name its own folder.")
    recipe, form = _read(found / "recipe.yaml"), read_form(found)
    file = f"{name_of(recipe.training.ema[0])}.safetensors"

    def read(folder: Path) -> Classifier:
        tensors, model = checkpoint.read_tensors(folder / file), _build(recipe, form, _manifest(found)["prior"])
        try:
            model.net.load_state_dict(tensors)
        except RuntimeError as error:
            raise checkpoint.damaged(folder / file, error) from None
        return model

    return checkpoint.take_up(found, read).eval().requires_grad_(False)


def _build(recipe: ClassifierRecipe, form: Form, prior: Sequence[float]) -> Classifier:
    return Classifier(recipe.net.build(form.shape, len(form.classes)), form, torch.tensor(prior))


def _read(path: Path) -> ClassifierRecipe:
    return resolve(ClassifierRecipe, read_tree(path), source=str(path))


def _manifest(folder: Path) -> dict:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'} is missing or damaged ({error!r}); restore it, or train again.") from None


def _refuse_stranger(run: Run, dataset: Dataset) -> None:
    """The classifier sees what the run saw, row for row."""
    begun, now = _manifest(folder_of(run.name)).get("data", {}).get("fingerprint"), dataset.fingerprint()
    if begun != now:
        raise ValueError(
            f"{run.name} was trained on other data ({begun} → {now}); bring them back, or give their place with --set data.path=…."
        )


def _labels(examples: Dataset) -> np.ndarray:
    assert examples.labels is not None
    return examples.labels
