"""A trained model as one object: `load` a run folder or `zoo:NAME`, then sample it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from sfumato import guide
from sfumato.data import Scaling
from sfumato.denoiser import Denoiser, Predictor
from sfumato.noise import normal_like, row_generators
from sfumato.pictures import cloud, gif, limits_of, picture, sheet
from sfumato.sample import Step, grid, sample
from sfumato.schedule import Schedule
from sfumato.train.checkpoint import CheckpointError, latest, read_tensors
from sfumato.train.recipe import SAMPLERS, SPACINGS, Recipe, load_recipe

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Form:
    """What the data of a run look like: all that a model needs to know of them, kept in its manifest."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    scaling: Scaling
    data_std: float

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "shape": list(self.shape),
            "classes": list(self.classes),
            "scaling": self.scaling.to_json(),
            "data_std": self.data_std,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Form":
        """From `to_json`."""
        return cls(tuple(record["shape"]), tuple(record["classes"]), Scaling.from_json(record["scaling"]), record["data_std"])


@dataclass(frozen=True)
class Samples:
    """Samples in the form of the data: uint8 [n, h, w, c] images, or float32 [n, …]; with their labels where there are classes."""

    values: Shaped[np.ndarray, "n *value"]
    labels: Int64[np.ndarray, "n"] | None

    def save(self, path: str | Path, *, columns: int | None = None) -> None:
        """Writes them in the form that the suffix names: .npz, .png, or a folder of PNGs where there is none.

        Raises:
            ValueError: another suffix, or a picture of what has none.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            with path.open("wb") as file:
                if self.labels is None:
                    np.savez(file, arr_0=self.values)
                else:
                    np.savez(file, arr_0=self.values, arr_1=self.labels)
        elif path.suffix == ".png":
            picture(self.values, columns=columns).save(path)
        elif path.suffix == "":
            if self.values.ndim != 4:
                raise ValueError(
                    f"only images can be written as a folder of PNGs, these samples have shape {self.values.shape[1:]}; use .npz."
                )
            path.mkdir(exist_ok=True)
            for i, value in enumerate(self.values):
                name = f"{i:06d}.png" if self.labels is None else f"{i:06d}_{self.labels[i]}.png"
                sheet(value[None], scale=1).crop((1, 1, 1 + value.shape[1], 1 + value.shape[0])).save(path / name)
        else:
            raise ValueError(f'samples are written as .npz, .png, .gif or a folder, got "{path.suffix}" in {path}.')


@dataclass(frozen=True)
class Run:
    """A trained model with its recipe and the form of its data."""

    name: str
    recipe: Recipe
    form: Form
    denoiser: Denoiser

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule it was trained under."""
        return self.recipe.schedule.build()

    @property
    def predictor(self) -> Predictor:
        """The averaged network as a `Predictor`."""
        return self.denoiser

    def labels(self, indices: Sequence[int], labels: Sequence[int] | None = None) -> Tensor | None:
        """The label of each sample: the given ones in turn, or every class in turn; None for a model without classes.

        Raises:
            ValueError: labels for a model without classes, or out of its range.
        """
        classes = self.form.classes
        if not classes:
            if labels:
                raise ValueError(f"{self.name} has no classes, so labels cannot be asked for; leave --labels out.")
            return None
        wanted = list(labels) if labels else list(range(len(classes)))
        wrong = [label for label in wanted if not 0 <= label < len(classes)]
        if wrong:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:20]))
            raise ValueError(f"label {wrong[0]} is out of range: {self.name} has the classes {names}.")
        return torch.tensor([wanted[i % len(wanted)] for i in indices])

    def sample(
        self,
        count: int = 64,
        *,
        steps: int | None = None,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        guidance: float | None = None,
        sampler: str | Step | None = None,
        batch: int = 64,
        on_batch: Callable[[int], None] | None = None,
    ) -> Samples:
        """`count` samples; the i-th depends on (model, seed, i) and these options alone, not on `batch`.

        Args:
            count: how many.
            steps: of the sampler; the recipe's where not given.
            labels: classes, taken in turn; every class in turn where not given.
            seed: of the noise.
            guidance: classifier-free scale, 1 = off; the recipe's where not given.
            sampler: a name (`ancestral`, `ddim`, `heun`, `multistep`, …) or a step; the recipe's where not given.
            batch: how many at a time.
            on_batch: called with the number done after each batch.

        Raises:
            ValueError: a count, batch or steps below 1, unknown names, labels out of range.
        """
        for name, number in (("count", count), ("batch", batch)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        walk = self.walk(steps=steps, guidance=guidance, sampler=sampler)
        done, all_labels = [], self.labels(range(count), labels)
        for start in range(0, count, batch):
            rows = range(start, min(count, start + batch))
            done.append(walk(rows, seed, None if all_labels is None else all_labels[start : rows.stop], None))
            if on_batch is not None:
                on_batch(rows.stop)
        return self._samples(torch.cat(done), all_labels)

    def walk(
        self, *, steps: int | None = None, guidance: float | None = None, sampler: str | Step | None = None
    ) -> "Callable[[range, int, Tensor | None, Callable[[int, Tensor], None] | None], Tensor]":
        """The sampler with its options settled: (rows, seed, labels, on_step) to x0 of those rows."""
        defaults = self.recipe.sampling
        step = sampler if sampler is not None else defaults.sampler
        if isinstance(step, str):
            if step not in SAMPLERS:
                raise ValueError(f'there is no sampler "{step}"; the samplers are {", ".join(SAMPLERS)}.')
            step = SAMPLERS[step]
        levels = grid(self._sampling_schedule, defaults.steps if steps is None else steps, spacing=SPACINGS[defaults.spacing])
        scale = defaults.guidance if guidance is None else guidance
        if scale < 0:
            raise ValueError(f"guidance must be at least 0 (1 = off), got {scale}.")
        predict: Predictor = guide.classifier_free(self.denoiser, scale) if self.form.classes else self.denoiser
        if defaults.guidance_interval is not None:
            predict = guide.interval(predict, self.denoiser, *defaults.guidance_interval)
        predict = guide.clip(predict) if defaults.clip else predict

        def walk(rows: range, seed: int, labels: Tensor | None, on_step: Callable[[int, Tensor], None] | None) -> Tensor:
            generators = row_generators(seed, rows)
            noise = normal_like(torch.empty(len(rows), *self.form.shape), generators)
            cond = None if labels is None else {"labels": labels}
            return sample(predict, levels[0].sigma * noise, levels, step, cond, generator=generators, on_step=on_step)

        return walk

    def reverse_gif(self, path: str | Path, count: int = 64, *, labels: Sequence[int] | None = None, seed: int = 0, **options: Any) -> None:
        """Writes a GIF of the reverse process: x_t at each step, brought to the data's scale."""
        frames: list[Tensor] = []
        rows, levels = range(count), None
        wanted = self.labels(rows, labels)
        levels = grid(
            self._sampling_schedule, options.get("steps") or self.recipe.sampling.steps, spacing=SPACINGS[self.recipe.sampling.spacing]
        )
        self.walk(**options)(rows, seed, wanted, lambda i, x: frames.append(x / torch.hypot(levels[i + 1].alpha, levels[i + 1].sigma)))
        self._gif(frames, Path(path), columns=self.columns(wanted))

    def forward_gif(self, path: str | Path, x0: Float[Tensor, "n *x"], *, frames: int = 40, seed: int = 0) -> None:
        """Writes a GIF of the forward process on x0: the same noise at growing levels."""
        noise = normal_like(x0, row_generators(seed, range(len(x0))))
        levels = grid(self._sampling_schedule, frames)[::-1]
        shown = [(level.alpha * x0 + level.sigma * noise) / torch.hypot(level.alpha, level.sigma) for level in levels]
        self._gif(shown, Path(path), columns=None)

    def columns(self, labels: Tensor | None) -> int | None:
        """One class a column, where labels come in turn."""
        return None if labels is None else min(len(labels.unique()), len(labels))

    @cached_property
    def _sampling_schedule(self) -> Schedule:
        """The training schedule, between the ends that the recipe samples from."""
        options, ends = self.recipe.schedule, self.recipe.sampling
        changes = {name: value for name in ("log_snr_max", "log_snr_min") if (value := getattr(ends, name)) is not None}
        return options.model_copy(update=changes).build() if changes else self.schedule

    def _samples(self, x0: Tensor, labels: Tensor | None) -> Samples:
        return Samples(self.form.scaling.decode(x0), None if labels is None else labels.numpy())

    def _gif(self, frames: Sequence[Tensor], path: Path, *, columns: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = [self.form.scaling.decode(frame) for frame in frames]
        if values[0].ndim == 4:
            pictures = [sheet(value, columns=columns) for value in values]
        else:
            limits = limits_of(np.concatenate([values[0], values[-1]]))
            pictures = [cloud(value, limits=limits) for value in values]
        gif(pictures, path)


def load(model: str | Path, *, ema: float | None = None) -> Run:
    """Loads a run folder, or `zoo:NAME`, with the averaged weights of its newest checkpoint.

    Args:
        model: a run folder or `zoo:NAME`.
        ema: which average, by its width; the recipe's first where not given.

    Raises:
        ValueError: there is no such model, or no such average.
        CheckpointError: no checkpoint yet, or a damaged one.
    """
    folder = Path(model)
    if str(model).startswith("zoo:"):
        folder = ZOO / str(model).removeprefix("zoo:")
        if not (folder / "recipe.yaml").is_file():
            raise ValueError(f"there is no {model}; the zoo holds {', '.join('zoo:' + name for name in zoo_names())}.")
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(
            f"{model} is no run folder (it has no recipe.yaml) and no zoo:NAME; train one with sfumato train RECIPE --out {model}."
        )
    recipe, form = load_recipe(folder / "recipe.yaml"), read_form(folder)
    checkpoint, width = latest(folder), ema if ema is not None else recipe.training.ema[0]
    tensors = read_tensors(checkpoint / f"ema-{width:.3f}.safetensors")
    denoiser = build_denoiser(recipe, form)
    try:
        denoiser.net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint} does not fit its recipe.yaml ({str(error).splitlines()[1].strip()}); restore either."
        ) from None
    return Run(str(model), recipe, form, denoiser.eval().requires_grad_(False))


def read_form(folder: Path) -> Form:
    """The form of the data from a run's manifest.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        return Form.from_json(json.loads(path.read_text())["form"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error!r}); restore it, or train again.") from None


def build_denoiser(recipe: Recipe, form: Form) -> Denoiser:
    """The untrained denoiser that a recipe asks for on data of this form."""
    net = recipe.net.build(form.shape, len(form.classes))
    return Denoiser(net, recipe.objective.build_target(form.data_std), data_std=form.data_std)


def zoo_names() -> list[str]:
    """The models that ship with sfumato."""
    return sorted(path.name for path in ZOO.iterdir() if (path / "recipe.yaml").is_file()) if ZOO.is_dir() else []
