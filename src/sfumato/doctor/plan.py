"""A recipe before its training: its options, its data, the levels it will use. Everything is read once, when a check first needs it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sfumato.data import Dataset, Scaling
from sfumato.data.options import DatasetsData, FolderData
from sfumato.data.source import Batch, DataSpec, Source, Stream
from sfumato.doctor.files import Picture, pictures
from sfumato.doctor.trial import Trial, try_out
from sfumato.noise import seeded
from sfumato.schedule import Level, Schedule
from sfumato.tasks.options import Sampling

SUBSET = 1500  # examples for checks that compare all pairs
FARTHEST = 30.0  # nats: replaces an infinite log-SNR
DRAWS = 1_000_000  # most training times


class Plan:
    """What a recipe will do. `trial` is None if none is wanted: for a run that is already trained."""

    def __init__(self, recipe: Any, *, trial_seconds: float | None = 10.0, scaling: Scaling | None = None) -> None:
        """Reads nothing yet.

        Args:
            recipe: the recipe.
            trial_seconds: the time for the short trial of its training; None for no trial.
            scaling: of an existing run; measured on the training rows by default.
        """
        self.recipe = recipe
        self.trial_seconds = trial_seconds
        self.scaling = scaling

    @cached_property
    def _loaded(self) -> tuple[Source | None, str]:
        """The data, or why they cannot be read. A folder with too many broken images is read without them, so that other checks can run."""
        options = self.recipe.data
        try:
            source = options.load()
            return (None, "") if isinstance(source, Stream) else (self._scaled(source), "")
        except ValueError as error:
            refusal = str(error)
        if isinstance(options, FolderData | DatasetsData):
            try:
                return options.model_copy(update={"limit_broken": 10**9}).load(), refusal
            except ValueError:
                pass  # the first refusal is the one to report
        return None, refusal

    def _scaled(self, dataset: Source) -> Source:
        """The data with the scaling that training gives them."""
        if not isinstance(dataset, Dataset):
            return dataset
        if self.scaling is not None:
            with suppress(ValueError):  # data of another form than the run's, which other checks report
                return dataset.scaled(self.scaling)
        if dataset.measured is None:
            return dataset
        examples, _ = self.recipe.divided(dataset)
        return dataset.scaled_like(examples.spec)

    @property
    def has_levels(self) -> bool:
        """Whether it is of a kind of model that is trained at the noise levels of a schedule."""
        return self.recipe.has_levels

    @property
    def sampling(self) -> Sampling | None:
        """The options for sampling in steps; None for a kind that is sampled otherwise, or not at all."""
        options = getattr(self.recipe, "sampling", None)
        return options if isinstance(options, Sampling) else None

    @cached_property
    def source(self) -> Source | None:
        """The data as the kind of model sees them; None if they cannot be read, or only as a stream."""
        data = self._loaded[0]
        try:
            return None if data is None else self.recipe.adapt(data)
        except ValueError:  # `build_refusal` says it
            return data

    @property
    def dataset(self) -> Dataset | None:
        """The data, if they have fixed size and checks can look into them; None for other sources."""
        data = self._loaded[0]
        return data if isinstance(data, Dataset) else None

    @property
    def refusal(self) -> str:
        """The loader's error; empty if it accepts the data."""
        return self._loaded[1]

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows held out."""
        assert self.source is not None
        everything, how = np.arange(len(self.source)), self.recipe.how_divided
        return (everything, everything[:0]) if how is None else self.source.split_rows(how)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The labels of the training examples."""
        dataset = self.dataset
        return None if dataset is None or dataset.labels is None else dataset.labels[self.rows[0]]

    def some(self, count: int = SUBSET, *, held_out: bool = False) -> tuple[Shaped[Tensor, "n *x"], Tensor | None]:
        """x0 and labels of up to `count` training (or held-out) examples, the same ones every time."""
        batch = self._batch(count, held_out=held_out)
        return batch.x, batch.cond["labels"].value if "labels" in batch.cond else None

    def _batch(self, count: int, *, held_out: bool = False) -> Batch:
        assert self.source is not None
        rows = self.rows[1] if held_out else self.rows[0]
        return self.source.batch(rows[np.random.default_rng(0).permutation(len(rows))[:count]])

    @cached_property
    def _first(self) -> Batch:
        """Up to `SUBSET` training examples."""
        return self._batch(SUBSET)

    @property
    def x0(self) -> Shaped[Tensor, "n *x"]:
        """Up to `SUBSET` training examples."""
        return self._first.x

    @cached_property
    def pictures(self) -> Sequence[Picture]:
        """The image files on the disk; empty if the data are not a folder of images."""
        return pictures(self.recipe.data.path) if isinstance(self.recipe.data, FolderData) and self.dataset is not None else ()

    @cached_property
    def spec(self) -> DataSpec | None:
        """The spec of the data; None if they cannot be read, or are constant."""
        if self.source is None:
            return None
        if not self.x0.is_floating_point():  # symbols
            return self.source.spec
        deviation = float((self.x0 if self._first.mask is None else self.x0[self._first.mask]).std())
        return replace(self.source.spec, data_std=deviation) if deviation > 0 else None

    @cached_property
    def _built(self) -> tuple[list[Level], int, str]:
        """The levels of sampling and the number of weights, or why the options are refused."""
        if self.spec is None:
            return [], 0, ""
        assert self.source is not None
        try:
            self.recipe.adapt(self._loaded[0])
            if self.recipe.stages(Path()):
                self.recipe.examine([], self.spec, self.source)
                return [], 0, ""
            with torch.random.fork_rng():
                torch.manual_seed(self.recipe.training.seed)
                model = self.recipe.build(self.spec)
                self.recipe.examine(model, self.spec, self.source)
                sampler = self.recipe.sampler(model, self.spec, name="the recipe")
                levels = sampler.plan().levels if self.has_levels else []
        except ValueError as error:
            return [], 0, str(error)
        return levels, sum(p.numel() for p in self.recipe.trained(model).parameters()), ""

    @property
    def levels(self) -> list[Level]:
        """The levels of sampling, from noise to data; empty if nothing can be built."""
        return self._built[0]

    @property
    def parameters(self) -> int:
        """Number of weights of the network; 0 if it cannot be built."""
        return self._built[1]

    @property
    def build_refusal(self) -> str:
        """Why no network or sampler can be built from the options; empty if they can."""
        return self._built[2]

    @cached_property
    def sampling_schedule(self) -> Schedule:
        """The training schedule, cut to the ends for sampling."""
        options, ends = self.recipe.schedule, self.recipe.sampling
        changes = {name: value for name in ("log_snr_max", "log_snr_min") if (value := getattr(ends, name)) is not None}
        return options.model_copy(update=changes).build()

    @cached_property
    def drawn(self) -> Float[Tensor, "n"]:
        """Log-SNR of the levels drawn in training, in nats: as many as the run will draw, at most a million."""
        schedule, training = self.recipe.schedule.build(), self.recipe.training
        times = self.recipe.objective.times.build(schedule)(min(DRAWS, training.steps * training.batch), seeded(0))
        return schedule.log_snr(times.double()).clamp(-FARTHEST, FARTHEST)

    @cached_property
    def stages(self) -> "Mapping[str, Plan]":
        """The plan of the first stage of a model made in several, by name; later stages are trained on what is not there yet."""
        first = [stage for stage in self.recipe.stages(Path())[:1] if stage.recipe.data == self.recipe.data]
        return {stage.name: Plan(stage.recipe, trial_seconds=self.trial_seconds) for stage in first}

    @cached_property
    def trial(self) -> Trial | None:
        """A few steps on the real data; None if not wanted or not possible."""
        if self.trial_seconds is None or self.source is None or self.spec is None or self.build_refusal or self.recipe.stages(Path()):
            return None
        return try_out(self.recipe, self.spec, self.source, self.rows[0], seconds=self.trial_seconds)


def log_snr(level: Level) -> float:
    """Log-SNR of a single level, in nats, with infinities replaced by `FARTHEST`."""
    return max(-FARTHEST, min(FARTHEST, float(level.log_snr)))
