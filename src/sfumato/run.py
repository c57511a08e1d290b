"""A trained model as one object: `load` a run folder or `zoo:NAME`, then sample it."""

import json
import logging
import math
import operator
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from sfumato import guide
from sfumato.classifier import Classifier
from sfumato.data.writing import write_csv, write_png
from sfumato.denoiser import Denoiser, Predictor
from sfumato.form import Form
from sfumato.memory import by_parts
from sfumato.noise import normal_like, row_generators
from sfumato.pictures import cloud, gif, limits_of, picture, sheet
from sfumato.sample import Step, grid, sample
from sfumato.schedule import Discrete, Level, Schedule
from sfumato.train.checkpoint import CheckpointError, load_average, write_text
from sfumato.train.recipe import SAMPLERS, SPACINGS, Recipe, known, load_recipe, unknown
from sfumato.tune import Tuned, tune

ZOO = Path(__file__).parent / "zoo"
logger = logging.getLogger(__name__)

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

Label = SupportsIndex | str  # a class by its number or its name; -1 or "none" for none
Labels = Sequence[Label] | np.ndarray | Tensor


@dataclass(frozen=True)
class Samples:
    """Samples in the type of the data, such as uint8 or uint16 [n, h, w, c] images, or float32 or float64 [n, …].

    Args:
        values: one row a sample.
        labels: where there are classes; -1 for none.
        form: of the data, which names columns and classes.
    """

    values: Shaped[np.ndarray, "n *value"]
    labels: Int64[np.ndarray, "n"] | None
    form: Form | None = None

    def save(self, path: str | Path, *, columns: int | None = None) -> None:
        """Writes them in the form that the suffix names: .npz, .csv, .png, .jpg, or a new folder of PNGs where there is none.

        A file is written aside and renamed, so that what stood there before is lost only to a whole new one.

        Raises:
            ValueError: another suffix, a picture of what has none, or a folder that holds something.
            OSError: a place that cannot be written to.
        """
        path, suffix = Path(path), Path(path).suffix.lower()
        if suffix == ".gif":
            raise ValueError(f"a .gif shows how samples come about, which these no longer know; draw {path} with Run.reverse_gif.")
        is_image, is_table = np.issubdtype(self.values.dtype, np.integer), self.values.ndim == 2
        check_target(path, is_image=is_image, has_picture=is_image or self.values.shape[1:] == (2,), is_table=is_table)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.partial")
        if suffix == ".npz":
            arrays: dict[str, Any] = {"arr_0": self.values}
            if self.labels is not None:
                arrays["arr_1"] = self.labels
            if self.form is not None and self.form.columns:
                arrays["columns"] = np.array(self.form.columns)
            with aside.open("wb") as file:
                np.savez(file, **arrays)
            aside.replace(path)
        elif suffix == ".csv":
            form = self.form
            named = {} if form is None else {"columns": form.columns, "classes": form.classes, "label": form.label}
            write_csv(aside, self.values, self.labels, **named)
            aside.replace(path)
        elif suffix in PICTURES:
            picture(self.values, columns=columns).save(aside, format=PICTURES[suffix], quality=95)
            aside.replace(path)
        else:
            path.mkdir(exist_ok=True)
            for i, value in enumerate(self.values):
                name = f"{i:06d}.png" if self.labels is None or self.labels[i] < 0 else f"{i:06d}_{self.labels[i]}.png"
                write_png(path / name, value)


def check_target(path: Path, *, is_image: bool, has_picture: bool, is_table: bool = False) -> None:
    """Refuses a path to which samples cannot be written; asked before the work of drawing them.

    Raises:
        ValueError: an unknown suffix, a picture of what has none, a folder where a file is meant, or the other way round.
        OSError: a place that cannot be written to.
    """
    suffix = path.suffix.lower()
    if suffix not in ("", ".npz", ".csv", ".gif", *PICTURES):
        raise ValueError(f'samples are written as .npz, .csv, .png, .jpg, .gif or a folder, got "{path.suffix}" in {path}.')
    if suffix == ".csv" and not is_table:
        raise ValueError(f"a CSV holds rows of numbers, which these samples are not; end {path} in .npz.")
    if suffix in (".gif", *PICTURES) and not has_picture:
        raise ValueError(f"these samples have no picture (images and points in the plane have), so {path} cannot be drawn; use .npz.")
    if path.suffix and path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, or a folder without a suffix.")
    if not path.suffix:
        if not is_image:
            raise ValueError(f"only images can be written as a folder of PNGs; end {path} in .npz.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} exists and is not empty; name a new folder.")
    home = next(each for each in (*([] if path.suffix else [path]), *path.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=home).close()  # only trying tells: permissions do not bind everybody, and a disk may be read-only
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (below {home})", str(path)) from None


@dataclass(frozen=True)
class Run:
    """A trained model with its recipe and the form of its data."""

    name: str
    recipe: Recipe
    form: Form
    denoiser: Denoiser
    tuned: Mapping[tuple[int, float], Tuned] = field(default_factory=dict)  # by steps and guidance: walks that `sample` takes by itself
    learned: Schedule | None = None  # the schedule, where it was trained with the network

    @cached_property
    def schedule(self) -> Schedule:
        """The noise schedule it was trained under."""
        return self.learned or self.recipe.schedule.build()

    @property
    def device(self) -> torch.device:
        """Where its network lives."""
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device) -> None:
        """Moves its network."""
        self.denoiser.to(device)

    @property
    def networks(self) -> list[nn.Module]:
        """All that it computes with."""
        return [self.denoiser.net]

    @property
    def predictor(self) -> Predictor:
        """The averaged network as a `Predictor`."""
        return self.denoiser

    def labels(self, indices: Sequence[int], labels: Labels | None = None, *, classifier: guide.LogProb | None = None) -> Tensor | None:
        """The label of each sample: the given ones in turn, or every class in turn; None for a model without classes.

        A label is the number or the name of a class; -1 or "none" draws without one. Text is a name where a class has it, else a number. A
        model that was trained without its labels takes them for a `classifier` alone.

        Raises:
            ValueError: labels for a model without classes, or that has not learned them; a class that it does not have.
        """
        classes, drop = self.form.classes, self.recipe.training.label_drop
        if not classes:
            if labels is not None:
                raise ValueError(f"{self.name} has no classes, so labels cannot be asked for; leave --labels out.")
            return None
        is_unlabelled = drop == 1 and classifier is None
        wanted = ([-1] if is_unlabelled else range(len(classes))) if labels is None else self._numbers(labels)
        if not wanted:
            raise ValueError("labels must name at least one class; leave them out for all.")
        if is_unlabelled and max(wanted) >= 0:
            raise ValueError(
                f"{self.name} was trained without its labels (training.label_drop=1), so it cannot draw a class; "
                "leave the labels out, or guide by a classifier."
            )
        if min(wanted) < 0 and not drop:
            raise ValueError(
                f"{self.name} was never trained without a label (training.label_drop=0), so it cannot draw without one; name a class."
            )
        return torch.tensor([wanted[i % len(wanted)] for i in indices])

    def _numbers(self, labels: Labels) -> list[int]:
        """The number of each class, -1 for none."""
        if isinstance(labels, str) or not isinstance(labels, Collection) or getattr(labels, "ndim", 1) != 1:
            raise ValueError(
                f"labels are a list of classes, each a number or a name, as in [0] or [{self.form.classes[0]!r}]; got {labels!r}."
            )
        return [self._number(label) for label in labels]

    def _number(self, label: Label) -> int:
        """The number of a class, -1 for none."""
        classes = self.form.classes
        if isinstance(label, str):
            for same in (str, str.casefold):
                found = [i for i, name in enumerate(classes) if same(name) == same(label)]
                if len(found) == 1:
                    return found[0]
            if label.casefold() == "none":
                return -1
            try:
                label = int(label)
            except ValueError:
                raise ValueError(unknown(label, classes, "class")) from None
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"a label is the number or the name of a class, got {label!r}.") from None
        if not -1 <= number < len(classes):
            names = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:20])) + (", …" if len(classes) > 20 else "")
            raise ValueError(f"label {number} is out of range: {self.name} has the classes {names} (or -1 for none).")
        return number

    def sample(
        self,
        count: int = 64,
        *,
        steps: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        guidance: float | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
        batch: int = 64,
        rows: slice = slice(None),
        on_batch: Callable[[int], None] | None = None,
    ) -> Samples:
        """`count` samples; the i-th depends on (model, seed, i) and these options alone, not on `batch` or `rows`.

        Args:
            count: how many.
            steps: of the sampler; the recipe's where not given.
            labels: classes by number or name, taken in turn, -1 or "none" for no label; every class in turn where not given.
            seed: of the noise.
            guidance: γ, the scale of guidance: 1 = off, 0 = without the label; the recipe's where not given, which changes nothing for a
                model that its labels cannot guide. Classifier-free without a `classifier`; with one it scales the classifier, and the
                model's labels are dropped, so that 1 is Bayes' rule.
            sampler: a name (`ancestral`, `ddim`, `heun`, `multistep`, …) or a step; the recipe's where not given.
            classifier: log p(label | x_t), as `train.classifier.load` gives it.
            batch: how many at a time.
            rows: which of them to draw, where others draw the rest.
            on_batch: called with the number done after each batch.

        Raises:
            ValueError: a count, batch or steps below 1, unknown names, labels out of range, guidance where it means nothing.
        """
        for name, number in (("count", count), ("batch", batch)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        walk = self.walk(steps=steps, guidance=guidance, sampler=sampler, classifier=classifier)
        mine = range(count)[rows]
        all_labels = self.labels(mine, labels, classifier=classifier)
        draw = lambda part: walk(mine[part], seed, None if all_labels is None else all_labels[part])  # noqa: E731
        done = by_parts(draw, len(mine), batch, on_batch)
        return Samples(
            self.form.scaling.decode(torch.cat([torch.empty(0, *self.form.shape), *done])),
            None if all_labels is None else all_labels.numpy(),
            self.form,
        )

    def walk(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
    ) -> "Walk":
        """The way from noise to samples with its options settled, as `sample` takes them.

        Raises:
            ValueError: unknown names, steps below 1, guidance below 0 or where it means nothing, a spacing that does not fit the schedule,
                or a classifier that does not fit the model.
        """
        defaults = self.recipe.sampling
        step = sampler if sampler is not None else defaults.sampler
        if isinstance(step, str):
            step = SAMPLERS[known(step, SAMPLERS, "sampler")]
        scale = defaults.guidance if guidance is None else guidance
        if not 0 <= scale < math.inf:
            raise ValueError(f"guidance must be at least 0 (1 = off), got {scale}.")
        if guidance is not None and guidance != 1 and classifier is None and self._unguided:
            raise ValueError(f"{self._unguided}; take guidance 1, or leave it out.")
        predict = self._guided(scale, classifier)
        if defaults.guidance_interval is not None and scale > 1:  # what weakens the condition does so at every level
            predict = guide.interval(predict, self._guided(1.0, classifier), *defaults.guidance_interval)
        predict = guide.clip(predict) if defaults.clip else predict
        steps = defaults.steps if steps is None else steps
        tuned = self.tuned.get((steps, scale)) if sampler is None and classifier is None else None
        if tuned is not None:
            return Walk(predict, tuned.step, list(tuned.levels), self.form.shape, self.device)
        return Walk(predict, step, self._levels(steps), self.form.shape, self.device)

    def tune(self, steps: int, *, guidance: float | None = None, rows: int = 96, seed: int = 0) -> Tuned:
        """Levels and method for so many evaluations, fitted to this model: see `sfumato.tune`. `save_tuned` keeps them with the run.

        Args:
            steps: evaluations of the model (of both branches, where it is guided).
            guidance: for which the levels are fitted; the recipe's where not given.
            rows: walks that are looked at, each class in turn.
            seed: of their noise.
        """
        untuned = replace(self, tuned={})
        walk, labels = untuned.walk(steps=steps, guidance=guidance), self.labels(range(rows))
        noise = normal_like(torch.empty(rows, *self.form.shape), row_generators(seed, range(rows)))
        cond = None if labels is None else {"labels": labels}
        return tune(walk.predict, self._sampling_schedule, noise, cond, steps=steps, levels=walk.levels, step=walk.step)

    @property
    def _unguided(self) -> str:
        """Why the model's own labels cannot guide it; empty where they can."""
        drop = self.recipe.training.label_drop
        if not self.form.classes:
            return f"{self.name} has no classes, so guidance has nothing to guide by"
        if drop == 0:
            return f"{self.name} was never trained without a label (training.label_drop=0), so guidance has nothing to compare a label with"
        if drop == 1:
            return f"{self.name} was trained without its labels (training.label_drop=1), so only a classifier can guide it"
        return ""

    def _guided(self, scale: float, classifier: guide.LogProb | None) -> Predictor:
        """The model guided by a classifier on its unconditional branch, or by its own labels."""
        if classifier is None:
            return guide.classifier_free(self.denoiser, scale) if self.form.classes else self.denoiser
        if not self.form.classes:
            raise ValueError(f"{self.name} has no classes, so a classifier cannot guide it; take a model of labelled data.")
        if not self.recipe.training.label_drop:
            raise ValueError(
                f"{self.name} has never seen a dropped label, so a classifier has no unconditional model to guide; "
                "train it with training.label_drop above 0 (1 = without labels)."
            )
        if isinstance(classifier, Classifier):
            self._refuse_stranger(classifier.form)
        return guide.classifier(guide.unconditional(self.denoiser), classifier, scale)

    def _refuse_stranger(self, theirs: Form) -> None:
        for what in ("shape", "classes", "scaling"):
            if getattr(theirs, what) != getattr(self.form, what):
                raise ValueError(
                    f"the classifier is of other data than {self.name}: its {what} is {getattr(theirs, what)}, "
                    f"not {getattr(self.form, what)}; take one trained with sfumato train-classifier {self.name}."
                )

    def reverse_gif(
        self,
        path: str | Path,
        count: int = 64,
        *,
        steps: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        guidance: float | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
    ) -> None:
        """Writes a GIF of the reverse process: the noise, then x_t after each step, brought to unit scale."""
        walk = self.walk(steps=steps, guidance=guidance, sampler=sampler, classifier=classifier)
        wanted = self.labels(range(count), labels, classifier=classifier)
        frames = [normal_like(torch.empty(count, *self.form.shape), row_generators(seed, range(count)))]
        walk(range(count), seed, wanted, lambda i, x: frames.append(_unit(x, walk.levels[i + 1])))
        self._gif(frames, Path(path), columns=self.columns(labels, count))

    def forward_gif(self, path: str | Path, x0: Float[Tensor, "n *x"], *, frames: int = 40, seed: int = 0) -> None:
        """Writes a GIF of the forward process on x0: the same noise at growing levels."""
        noise = normal_like(x0, row_generators(seed, range(len(x0))))
        levels = self._levels(frames)[::-1]
        self._gif([_unit(level.alpha * x0 + level.sigma * noise, level) for level in levels], Path(path), columns=None)

    def columns(self, labels: Labels | None = None, count: int = 64) -> int | None:
        """How many columns make each column of `count` samples one class, and the sheet about square.

        That is a multiple of the length of the cycle of labels; None without classes, or where a cycle is too wide.
        """
        length = len(self.form.classes) if labels is None else len(labels)
        return length * max(1, round(math.sqrt(count) / length)) if 0 < length <= 40 else None

    @property
    def has_picture(self) -> bool:
        """Whether its samples are images or points in the plane."""
        return self.form.has_picture

    def _levels(self, steps: int) -> list[Level]:
        """From noise to the data. A chain ends there; on a curve the last step goes from the curve's last level to it."""
        spacing = SPACINGS[self.recipe.sampling.spacing]
        if isinstance(self._sampling_schedule, Discrete) or steps < 2:
            return grid(self._sampling_schedule, steps, spacing=spacing)
        one = torch.ones((), dtype=torch.float64)
        return [*grid(self._sampling_schedule, steps - 1, spacing=spacing), Level(one, 0 * one)]

    @cached_property
    def _sampling_schedule(self) -> Schedule:
        """The training schedule, between the ends that the recipe samples from."""
        options, ends = self.recipe.schedule, self.recipe.sampling
        changes = {name: value for name in ("log_snr_max", "log_snr_min") if (value := getattr(ends, name)) is not None}
        return options.model_copy(update=changes).build() if changes else self.schedule

    def _gif(self, frames: Sequence[Tensor], path: Path, *, columns: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = [self.form.scaling.decode(frame) for frame in frames]
        if self.form.is_image:
            pictures = [sheet(value, columns=columns) for value in values]
        else:
            limits = limits_of(np.concatenate([values[0], values[-1]]))
            pictures = [cloud(value, limits=limits) for value in values]
        gif(pictures, path)


@dataclass(frozen=True)
class Walk:
    """The way from noise to samples: a predictor, a method, the levels between."""

    predict: Predictor
    step: Step
    levels: list[Level]
    shape: tuple[int, ...]
    device: torch.device

    def __call__(
        self, rows: range, seed: int, labels: Tensor | None = None, on_step: Callable[[int, Tensor], None] | None = None
    ) -> Float[Tensor, "n *x"]:
        """x0 of the samples with these numbers; each has a generator of its own for all its noise."""
        generators = row_generators(seed, rows)
        noise = normal_like(torch.empty(len(rows), *self.shape, device=self.device), generators)
        cond = None if labels is None else {"labels": labels.to(self.device)}
        return sample(self.predict, self.levels[0].sigma * noise, self.levels, self.step, cond, generator=generators, on_step=on_step)


def _unit(x: Tensor, level: Level) -> Tensor:
    return x / torch.hypot(level.alpha, level.sigma)


def load(model: str | Path, *, ema: float | None = None) -> Run:
    """Loads a run folder, or `zoo:NAME`, with the averaged weights of its newest checkpoint.

    Args:
        model: a run folder or `zoo:NAME`.
        ema: which average, by its width; the recipe's first where not given.

    A damaged checkpoint is passed over, with a warning in the log, for the one before it.

    Raises:
        ValueError: there is no such model, or no such average.
        CheckpointError: no checkpoint yet, or none that is whole.
    """
    folder = folder_of(model)
    recipe, form = load_recipe(folder / "recipe.yaml"), read_form(folder)
    denoiser = build_denoiser(recipe, form)
    load_average(denoiser, folder, recipe.training.ema, ema)
    run = Run(str(model), recipe, form, denoiser, read_tuned(folder))
    if recipe.sampling.guidance != 1 and run._unguided:
        logger.warning("%s; its recipe's guidance of %g changes nothing.", run._unguided, recipe.sampling.guidance)
    return run


def save_tuned(folder: Path, steps: int, guidance: float, tuned: Tuned) -> Path:
    """Keeps tuned levels with a run, where `load` finds them; those of the same steps and guidance are replaced."""
    path = folder / "tuned" / f"{steps}-guidance-{guidance:g}.json"
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps({"steps": steps, "guidance": guidance, "walk": json.loads(tuned.to_json())}, indent=1))
    return path


def read_tuned(folder: Path) -> dict[tuple[int, float], Tuned]:
    """The tuned walks of a run, by steps and guidance. Raises CheckpointError for a damaged one."""
    found = {}
    for path in sorted((folder / "tuned").glob("*.json")):
        try:
            record = json.loads(path.read_text())
            found[record["steps"], float(record["guidance"])] = Tuned.from_json(json.dumps(record["walk"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}); delete it, or tune again.") from None
    return found


def folder_of(model: str | Path) -> Path:
    """The folder of a run, or of `zoo:NAME`.

    Raises:
        ValueError: there is no such model.
    """
    folder = Path(model)
    if str(model).startswith("zoo:"):
        folder = ZOO / str(model).removeprefix("zoo:")
        if folder == ZOO or not (folder / "recipe.yaml").is_file():
            raise ValueError(f"there is no {model}; the zoo holds {', '.join('zoo:' + name for name in zoo_names()) or 'no model'}.")
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(
            f"{model} is no run folder (it has no recipe.yaml) and no zoo:NAME; train one with sfumato train RECIPE --out {model}."
        )
    return folder


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
    variance = recipe.objective.variance
    channels = 2 * form.shape[0] if variance == "learned" else None
    net = recipe.net.build(form.shape, len(form.classes), channels)
    return Denoiser(net, recipe.objective.build_target(), data_std=form.data_std, variance=variance)


def zoo_names() -> list[str]:
    """The models that ship with sfumato."""
    return sorted(path.name for path in ZOO.iterdir() if (path / "recipe.yaml").is_file()) if ZOO.is_dir() else []
