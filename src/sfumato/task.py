"""A kind of model, as used by the trainer, the commands and a user: a `Task` is a set of options and functions of them, without state.

A kind is one file: its options, its loss, its `Sampler`. The trainer draws batches and applies steps; noise, times, latents or masks that
a loss needs are drawn by the task from the step's `Draw`. A `Recipe` is a task with its data and training options.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ConfigDict, create_model, model_validator
from torch import Tensor, nn

from sfumato.condition import Classes, Cond, ConditionSpec
from sfumato.data.options import DATA_KINDS, data_union
from sfumato.data.source import Batch, Block, DataSpec, Draw, Group, Random, Source, Split
from sfumato.options import Options, Runtime, Training

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.denoiser import Predictor
    from sfumato.model import Model
    from sfumato.schedule import Schedule
    from sfumato.tuning import TuningResult


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch.

    Args:
        per_example: the loss of each example.
        log_snr: the log-SNR of each example, nats; metrics.jsonl then has the loss by noise level.
        weight: weight of each example in the loss, if examples are not drawn with the probabilities they should count with.
        parts: other numbers for each example, by name, for metrics.jsonl: by noise level if there is log_snr, else their mean.
    """

    per_example: Float[Tensor, "b"]
    log_snr: Float[Tensor, "b"] | None = None
    weight: Float[Tensor, "b"] | None = None
    parts: dict[str, Float[Tensor, "b"]] = field(default_factory=dict)

    @staticmethod
    def merge(join: Callable[[list[Tensor]], Tensor], terms: "Sequence[LossTerms]") -> "LossTerms":
        """Merges several terms: every tensor is `join` of theirs."""
        of = lambda name: None if getattr(terms[0], name) is None else join([getattr(each, name) for each in terms])  # noqa: E731
        parts = {name: join([each.parts[name] for each in terms]) for name in terms[0].parts}
        return LossTerms(join([each.per_example for each in terms]), of("log_snr"), of("weight"), parts)


@runtime_checkable
class State(Protocol):
    """State that is updated outside the optimiser: adaptive times, codebooks. Saved in every checkpoint; equal in all processes."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All of the state, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` returned."""
        ...


@dataclass(frozen=True)
class Request:
    """A request for samples: rows `rows` of seed `seed`; row i depends only on (model, seed, i).

    Args:
        rows: numbers of the samples.
        seed: of their noise.
        device: to draw on.
        cond: conditions, one row a sample; missing ones are not given.
        options: other options by name; only names in the sampler's `takes`.
        noise: standard normal noise to start from, one row a sample, instead of the seed's.
        on_step: called after each step with its number, x, and the predicted x0; may raise to stop.
    """

    rows: range
    seed: int
    device: torch.device
    cond: Cond
    options: Mapping[str, Any] = field(default_factory=dict)
    noise: Tensor | None = None
    on_step: Callable[[int, Tensor, Tensor], None] | None = None


class Sampler:
    """Draws samples from a trained model. A kind refuses what it cannot do with an error message.

    Attributes:
        kind: the kind of model, in words, as "a VAE".
        takes: names of the options of a request that this kind supports.
    """

    kind: ClassVar[str] = "this kind of model"
    takes: ClassVar[frozenset[str]] = frozenset()

    use: str = ""  # for a model that cannot be sampled: a sentence on its use

    def reconstruct(self, values: np.ndarray) -> np.ndarray:
        """Encodes and decodes values.

        Raises:
            ValueError: the model has no latents.
        """
        raise ValueError(f"{self.kind} has no latents to reconstruct data from.")

    def upscale(self, request: Request, *, overlap: int = 8) -> Tensor:
        """x of pictures given the condition `low`, their low-resolution copies, of any size.

        Raises:
            ValueError: it does not enlarge pictures.
        """
        raise ValueError(f"{self.kind} enlarges no pictures; train one that does with: sfumato train upscale --set data.path=….")

    def film(self, request: Request) -> list[Tensor]:
        """The reverse process, from noise to samples: x at unit scale after each step.

        Raises:
            ValueError: samples are made in one pass.
        """
        raise ValueError(f"{self.kind} is sampled in one pass, so there is no reverse process to show; write samples as .png or .npz.")

    def forward_film(self, x: Tensor, frames: int, seed: int) -> list[Tensor]:
        """The forward process on x.

        Raises:
            ValueError: there is no such process, or it does not act on x.
        """
        raise ValueError(f"{self.kind} has no forward process to show.")

    def tune(self, steps: int, cond: Cond, *, guidance: float | None = None, rows: int = 96, seed: int = 0) -> "TuningResult":
        """Fits levels and method for a number of evaluations to this model.

        Raises:
            ValueError: it has no noise levels.
        """
        raise ValueError(f"{self.kind} has no noise levels to tune.")

    def save_tuned(self, folder: Path, steps: int, guidance: float | None, tuned: "TuningResult") -> Path:
        """Saves tuned levels in a run folder."""
        raise NotImplementedError

    def evaluations(self, options: Mapping[str, Any]) -> int:
        """Approximate number of network evaluations for a sample."""
        return 1

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """How samples are drawn under these options, defaults filled in, as JSON types: for the manifest of a report."""
        return {name: value if isinstance(value, str | int | float | bool) else repr(value) for name, value in options.items()}

    def default(self, name: str, spec: ConditionSpec, options: Mapping[str, Any]) -> Any:
        """The value of a condition that was not asked for: by default every class in turn; None for not given."""
        return range(len(spec.names)) if isinstance(spec, Classes) else None

    def needs(self, name: str) -> bool:
        """Whether a condition must be given for every sample."""
        return False

    def __call__(self, request: Request) -> Tensor:
        """x of the samples, one row each.

        Raises:
            ValueError: the model cannot be sampled.
        """
        raise ValueError(f"{self.kind} cannot be sampled. {self.use}".strip())

    def check(self, options: Mapping[str, Any], cond: Cond) -> None:
        """Refuses what cannot be drawn, before the work starts; `cond` has one row a sample.

        Raises:
            ValueError: an option that this kind does not support, or an invalid value.
        """
        if wrong := sorted(set(options) - self.takes):
            raise ValueError(f"{self.kind} does not support {', '.join(wrong)}; remove {'it' if len(wrong) == 1 else 'them'}.")

    @property
    def predicts_data(self) -> bool:
        """Whether the denoiser's x0 is the data, not a latent of them."""
        return True

    @property
    def predictor(self) -> "Predictor":
        """The denoiser.

        Raises:
            ValueError: there is none.
        """
        raise ValueError(f"{self.kind} has no denoiser.")

    @property
    def schedule(self) -> "Schedule":
        """The noise schedule.

        Raises:
            ValueError: there is none.
        """
        raise ValueError(f"{self.kind} has no noise schedule.")


class Task(Options):
    """A kind of model: options, and functions of them.

    `is_exact` marks a kind whose loss needs float32, such as a likelihood bound; `has_levels` one that is trained at the noise levels of a
    fixed schedule, with options `schedule`, `objective` and `sampling`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    is_exact: ClassVar[bool] = False
    has_levels: ClassVar[bool] = False

    @property
    def what(self) -> str:
        """What is trained, in a word: its kind, or the network of a plain denoiser."""
        model, net = getattr(self, "model", None), getattr(self, "net", None)
        return str(getattr(model, "kind", model) or getattr(net, "kind", type(self).__name__))

    @property
    def has_metrics(self) -> bool:
        """Whether this kind has its own `metrics`, which need a copy of the averaged model."""
        return type(self).metrics is not Task.metrics

    def precision(self, asked: str) -> str:
        """The number format of training: "float32", "bfloat16", or "auto" for what the machine computes fast."""
        return "float32" if self.is_exact else asked

    def check_training(self, training: Training) -> None:
        """Refuses training options that cannot work for this kind.

        Raises:
            ValueError: the reason, without a full stop.
        """

    def adapt(self, source: Source) -> Source:
        """The data as this kind sees them, such as images with a low-resolution copy as a condition.

        Raises:
            ValueError: data that this kind is not for.
        """
        return source

    def build(self, spec: DataSpec, earlier: "Sequence[Model]" = ()) -> nn.Module:
        """The untrained model for such data; uses the models of earlier stages, if there are any.

        Raises:
            ValueError: data that this kind does not support.
        """
        raise NotImplementedError

    def trained(self, model: nn.Module) -> nn.Module:
        """The part whose weights are trained, averaged and stored."""
        return model

    def loss(self, model: Any, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The loss of each example."""
        raise NotImplementedError

    def begin(self, model: Any) -> State | None:
        """The initial state, if this kind has one."""
        return None

    def update(self, state: State, terms: LossTerms, draw: Draw) -> None:
        """Updates the state after a step that was applied; terms and draw are of the whole batch, in every process."""

    def examine(self, model: Any, spec: DataSpec, source: Source) -> None:
        """Refuses data and options that do not fit, before anything is written.

        Raises:
            ValueError: they do not.
        """
        self.sampler(model, spec).check({}, {})

    def metrics(self, model: Any, held_out: Source) -> dict[str, float]:
        """Numbers for each line of metrics.jsonl, from the averaged model on held-out examples (training ones if none are held out)."""
        return {}

    def bits_per_dim(
        self, model: Any, spec: DataSpec, batch: Batch, *, generator: torch.Generator, times: torch.Generator
    ) -> dict[str, Float[Tensor, "b"]]:
        """-log2 p(x) / d of each example, given its conditions, or bounds on it, by how it was had: "bound", "flow"; none by default.

        Args:
            model: of this kind.
            spec: of its data.
            batch: examples, on the model's device.
            generator: of noise.
            times: of the times or terms that are drawn.
        """
        return {}

    def finish(self, model: Any, examples: Source, held_out: Source, on_message: Callable[[str], None]) -> dict[str, str]:
        """Called after the last step with the averaged model: returns files for the run folder, name to text."""
        return {}

    def restore(self, model: Any, folder: Path) -> None:
        """Loads what `finish` wrote into a run folder.

        Raises:
            CheckpointError: it is missing or damaged.
        """

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> Sampler:
        """Its sampler, with what the run folder holds besides weights, if there is one. The name is for messages."""
        return Sampler()

    def sheet(self, model: "Model", source: Source) -> "Image | None":
        """The picture beside each checkpoint, of samples of the averaged model; None for data that have no picture."""
        return model.sheet(source=source)

    def stages(self, out: Path) -> "Sequence[Stage]":
        """The trainings that make this model one after another, each in a folder of `out`; empty if there is only one."""
        return ()

    def trainings(self) -> dict[str, Training]:
        """The options of each training, by name, in order."""
        assert isinstance(self, Recipe)
        return {"training": self.training}

    def needs(self) -> Sequence[Path]:
        """Folders of trained models, which come before those of the stages."""
        return ()


class Recipe(Options):
    """A task with its data, training and runtime options: everything that makes a run. `recipe_class` makes one for a kind."""

    about: str = ""
    data: Any
    training: Training = Training()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        assert isinstance(self, Task)
        if self.is_exact and self.runtime.precision == "bfloat16":
            raise ValueError("bfloat16 is too coarse for a likelihood bound; set runtime.precision=float32 or auto")
        self.check_training(self.training)
        return self

    def divided(self, source: Source) -> tuple[Source, Source | None]:
        """The training examples, and the held-out ones if there are any.

        Raises:
            ValueError: data that cannot be divided so.
        """
        kept, held = (source, None) if (how := self.how_divided) is None else source.split(how)
        assert isinstance(self, Task)
        return self.adapt(kept), None if held is None else self.adapt(held)

    @property
    def how_divided(self) -> Split | None:
        """How rows are held out; None if none are."""
        share, by, seed = self.training.held_out, self.training.held_out_by, self.training.seed
        if not share:
            return None
        return Random(share, seed) if by == "random" else Block(share) if by == "block" else Group(by, share, seed)

    def with_steps(self, steps: int) -> "Recipe":
        """The same recipe with this many steps, over all its trainings.

        Raises:
            ValueError: too few.
        """
        if steps < 1:
            raise ValueError(f"training.steps must be at least 1, got {steps}.")
        return self.model_copy(update={"training": self.training.model_copy(update={"steps": steps})})


KINDS: dict[str, type[Task]] = {}  # names for `model.kind` (or `model`) in a recipe, to the kinds
T = TypeVar("T", bound=type[Task])


def register(*names: str) -> Callable[[T], T]:
    """Registers a kind of model under these names, so that recipes can use it: `model: NAME`, or `model: {kind: NAME, …}`.

    Raises:
        ValueError: another kind has one of the names.
    """

    def enter(task: T) -> T:
        for name in names:
            if (there := KINDS.get(name)) is not None and there.__qualname__ != task.__qualname__:
                raise ValueError(f'there already is a kind of model "{name}", {there.__name__}; choose another name.')
            KINDS[name] = task
        return task

    return enter


def recipe_class(task: type[Task]) -> type[Any]:
    """The recipe class of a kind of model: its options, with those of data, training and runtime."""
    return _recipe_class(task, len(DATA_KINDS))


@lru_cache
def _recipe_class(task: type[Task], kinds: int) -> type[Any]:
    return create_model(f"{task.__name__}Recipe", __base__=(task, Recipe), data=(data_union(), ...))


@dataclass(frozen=True)
class Stage:
    """One training of a model that is made in several.

    Args:
        name: of its folder in the run.
        recipe: of its kind.
        source: returns its training data, from the data, the earlier stages' models, and the run folder.
    """

    name: str
    recipe: Any
    source: "Callable[[Source, Sequence[Model], Path, Callable[[str], None]], Source]"


def examples_of(source: Source, count: int, model: nn.Module) -> Batch:
    """Up to `count` examples, the same ones every time, on the model's device: for the figures in metrics.jsonl."""
    rows = np.random.default_rng(0).permutation(len(source))[:count]
    return source.batch(rows).to(next(model.parameters()).device)
