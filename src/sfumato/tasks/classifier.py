"""The noise-conditioned classifier of a run: trained on its data under its schedule, to guide its sampler.

Dhariwal & Nichol (2021), section 4.1 and appendix H, arXiv:2105.05233: cross-entropy of noised examples, at times uniform in t. It is saved
in RUN/classifier, a run folder: recipe.yaml, manifest.json, metrics.jsonl, checkpoints/.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from sfumato import nets
from sfumato.classifier import Classifier
from sfumato.condition import Classes
from sfumato.data.source import Batch, DataSpec, Draw, Source
from sfumato.loss import AdaptiveTimes, TimeSampler
from sfumato.noise import normal_like, seeded
from sfumato.options import Options, Size, Training
from sfumato.schedule import Schedule
from sfumato.task import LossTerms, Sampler, State, Task, register
from sfumato.tasks.options import ScheduleOptions, Times, UniformTimes

LOG_SNRS = (-8, -4, 0, 4, 8)  # nats, at which its accuracy is measured


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
    """`nets.MLP`, for points and other data that are not images."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=3, ge=1)
    waves: int = Field(default=0, ge=0)

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        """The network for data of this shape, flattened."""
        return nets.MLP((math.prod(shape),), width=self.width, depth=self.depth, waves=self.waves, out_channels=classes)


@register("classifier")
class ClassifierTask(Task):
    """A classifier of noisy examples."""

    model: Literal["classifier"] = "classifier"
    schedule: ScheduleOptions
    net: Annotated[PatchNet | VectorNet, Field(discriminator="kind")]
    times: Times = UniformTimes()

    def check_training(self, training: Training) -> None:
        """Refuses label dropping: a classifier needs every label."""
        if training.label_drop:
            raise ValueError("a classifier needs every label; set training.label_drop=0")

    @cached_property
    def noise(self) -> Schedule:
        """The noise schedule."""
        return self.schedule.build()

    @cached_property
    def drawn(self) -> TimeSampler:
        """The sampler of training times, if it has no state."""
        return self.times.build(self.noise)

    def build(self, spec: DataSpec, earlier: Any = ()) -> Classifier:
        """The untrained classifier; its prior is the share of each class among the training examples, with one added to each count."""
        labels = spec.conditions.get("labels")
        if not isinstance(labels, Classes):
            raise ValueError("a classifier needs labels, but these data have none.")
        counts = torch.tensor(labels.counts or (0,) * len(labels.names)) + 1
        return Classifier(self.net.build(spec.sizes, len(labels.names)), spec, counts / counts.sum())

    def trained(self, model: Any) -> nn.Module:
        """The network."""
        return model.net

    def begin(self, model: Classifier) -> State | None:
        """The sampler of training times, if it adapts to the losses."""
        times = self.times.build(self.noise)
        return times if isinstance(times, State) else None

    def loss(self, model: Classifier, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """Cross-entropy of each noised example."""
        times = state if isinstance(state, AdaptiveTimes) else self.drawn
        t = draw.whole(times)
        level = self.noise.level(t, like=batch.x)
        log_prob = model(level.alpha * batch.x + level.sigma * draw.normal(batch.x), level, batch.cond)
        weight = times.weight(t) if isinstance(times, AdaptiveTimes) else None
        return LossTerms(-log_prob, log_snr=self.noise.log_snr(t), weight=weight)

    def update(self, state: State, terms: LossTerms, draw: Draw) -> None:
        """Updates the sampler of training times."""
        assert isinstance(state, AdaptiveTimes)
        state.update(draw.whole(state), terms.per_example)

    def metrics(self, model: Classifier, held_out: Source) -> dict[str, float]:
        """Accuracy at some noise levels."""
        return accuracy(model, self.noise, held_out)

    def sampler(self, model: Classifier, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> Sampler:
        """Refuses: a classifier makes no samples."""
        return ClassifierSampler()


class ClassifierSampler(Sampler):
    """Makes no samples."""

    kind = "a classifier"
    use = "Use it to guide its run: sfumato sample RUN --classifier RUN"


@torch.no_grad()
def accuracy(model: Classifier, schedule: Schedule, examples: Source, *, count: int = 500, batch: int = 100) -> dict[str, float]:
    """The accuracy on up to `count` examples at each of LOG_SNRS, always with the same noise."""
    device = next(model.parameters()).device
    rows, right = np.random.default_rng(0).permutation(len(examples))[:count], dict.fromkeys(LOG_SNRS, 0)
    for start in range(0, len(rows), batch):
        some = examples.batch(rows[start : start + batch])
        x0, labels, eps = some.x.to(device), some.cond["labels"].value, normal_like(some.x, seeded(0, start)).to(device)
        for log_snr in LOG_SNRS:
            level = schedule.level(schedule.time(torch.tensor(float(log_snr), dtype=torch.float64)))
            guesses = model.log_class(level.alpha * x0 + level.sigma * eps, level).argmax(1)
            right[log_snr] += int((guesses.cpu() == labels).sum())
    return {f"accuracy@{log_snr:+d}": right[log_snr] / len(rows) for log_snr in LOG_SNRS}
