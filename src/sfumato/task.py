"""A kind of model, as the trainer, the commands and a user see it: a `Task` is options and functions of them, without state of its own.

A kind is one file: its options, its loss, its `Sampler`. The trainer draws batches and applies steps; whatever noise, times, latents or
masks a loss needs, the task draws itself from the step's `Draw`. A `Recipe` is a task with its data and how it is trained.
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
    """What a loss says of a batch.

    Args:
        per_example: the loss of each example.
        log_snr: at which log-SNR each was seen, nats; metrics.jsonl then tells the loss by noise level.
        weight: of each example in the sum that is differentiated, where examples are drawn with other chances than they count.
        parts: other numbers an example, by name, for metrics.jsonl: by noise level where there is one, else their mean.
    """

    per_example: Float[Tensor, "b"]
    log_snr: Float[Tensor, "b"] | None = None
    weight: Float[Tensor, "b"] | None = None
    parts: dict[str, Float[Tensor, "b"]] = field(default_factory=dict)

    @staticmethod
    def merge(join: Callable[[list[Tensor]], Tensor], terms: "Sequence[LossTerms]") -> "LossTerms":
        """Terms whose tensors are `join` of those of several terms."""
        of = lambda name: None if getattr(terms[0], name) is None else join([getattr(each, name) for each in terms])  # noqa: E731
        parts = {name: join([each.parts[name] for each in terms]) for name in terms[0].parts}
        return LossTerms(join([each.per_example for each in terms]), of("log_snr"), of("weight"), parts)


@runtime_checkable
class State(Protocol):
    """What learns beside the weights: adaptive times, codebooks. It lies in every checkpoint and is the same in all processes."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All of it, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `tensors` gave."""
        ...


@dataclass(frozen=True)
class Request:
    """Samples that are asked for: rows `rows` of seed `seed`, of which row i depends on (model, seed, i) alone.

    Args:
        rows: numbers of the samples.
        seed: of their noise.
        device: to draw on.
        cond: conditions, one row a sample; those that are missing are not given.
        options: what was asked for beside, by name; only names in the sampler's `takes`.
        noise: standard normal noise to begin with, one row a sample, in the place of the seed's.
        on_step: called after each step with its number, x there, and the x0 that it foretells; may raise to end the work.
    """

    rows: range
    seed: int
    device: torch.device
    cond: Cond
    options: Mapping[str, Any] = field(default_factory=dict)
    noise: Tensor | None = None
    on_step: Callable[[int, Tensor, Tensor], None] | None = None


class Sampler:
    """Draws samples of a trained model. What a kind cannot do, it refuses in a sentence.

    Attributes:
        kind: of the model, in words, as "a VAE".
        takes: names of the options of a request that have a meaning here.
    """

    kind: ClassVar[str] = "this kind of model"
    takes: ClassVar[frozenset[str]] = frozenset()

    use: str = ""  # what to do with a model that cannot be sampled, in a sentence; empty for one that can

    def reconstruct(self, values: np.ndarray) -> np.ndarray:
        """Values through the model's latents and back.

        Raises:
            ValueError: it has no latents.
        """
        raise ValueError(f"{self.kind} has no latents to reconstruct data from.")

    def film(self, request: Request) -> list[Tensor]:
        """The reverse process, from noise to samples, each moment as x at unit scale.

        Raises:
            ValueError: samples are made in one pass.
        """
        raise ValueError(f"{self.kind} is drawn in one pass, so there is no reverse process to film; write samples as .png or .npz.")

    def forward_film(self, x: Tensor, frames: int, seed: int) -> list[Tensor]:
        """The forward process on x.

        Raises:
            ValueError: there is none, or it is not one on x.
        """
        raise ValueError(f"{self.kind} noises nothing, so there is no forward process to film.")

    def tune(self, steps: int, cond: Cond, *, guidance: float | None = None, rows: int = 96, seed: int = 0) -> "TuningResult":
        """Levels and method for so many evaluations, fitted to this model.

        Raises:
            ValueError: it visits no levels.
        """
        raise ValueError(f"{self.kind} visits no noise levels, so there are none to tune.")

    def save_tuned(self, folder: Path, steps: int, guidance: float | None, tuned: "TuningResult") -> Path:
        """Keeps tuned levels with a run."""
        raise NotImplementedError

    def evaluations(self, options: Mapping[str, Any]) -> int:
        """How often the network is asked for a sample, about."""
        return 1

    def default(self, name: str, spec: ConditionSpec, options: Mapping[str, Any]) -> Any:
        """What a condition is where nothing is asked for: every class in turn; None for not given."""
        return range(len(spec.names)) if isinstance(spec, Classes) else None

    def needs(self, name: str) -> bool:
        """Whether a condition must be given for every sample."""
        return False

    def __call__(self, request: Request) -> Tensor:
        """x of the samples, one row each.

        Raises:
            ValueError: the model makes no samples.
        """
        raise ValueError(f"{self.kind} makes no samples. {self.use}".strip())

    def check(self, options: Mapping[str, Any], cond: Cond) -> None:
        """Refuses what cannot be drawn, before anything is; `cond` has one row a sample.

        Raises:
            ValueError: an option without a meaning for this kind, or a value that cannot be.
        """
        if wrong := sorted(set(options) - self.takes):
            raise ValueError(f"{self.kind} is sampled without {', '.join(wrong)}; leave {'it' if len(wrong) == 1 else 'them'} out.")

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

    `is_exact` marks a kind whose loss must be computed in float32, as a likelihood bound; `has_levels` one that is trained at the noise
    levels of a fixed schedule, with options `schedule`, `objective` and `sampling`.
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
        """Whether this kind has `metrics` of its own, for which an averaged model is made."""
        return type(self).metrics is not Task.metrics

    def precision(self, asked: str) -> str:
        """The number format of training: "float32", "bfloat16", or "auto" for what the machine multiplies fast."""
        return "float32" if self.is_exact else asked

    def check_training(self, training: Training) -> None:
        """Refuses ways of training that cannot work for this kind.

        Raises:
            ValueError: says what, without a full stop.
        """

    def build(self, spec: DataSpec, earlier: "Sequence[Model]" = ()) -> nn.Module:
        """The untrained model of such data; of earlier stages' models, where there are any.

        Raises:
            ValueError: data that this kind is not for.
        """
        raise NotImplementedError

    def trained(self, model: nn.Module) -> nn.Module:
        """The part whose weights are trained, averaged and stored."""
        return model

    def loss(self, model: Any, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The loss of each example."""
        raise NotImplementedError

    def begin(self, model: Any) -> State | None:
        """What else learns."""
        return None

    def update(self, state: State, terms: LossTerms, draw: Draw) -> None:
        """Teaches the state what a step that was applied has seen; terms and draw are of the whole batch, in every process."""

    def examine(self, model: Any, spec: DataSpec, source: Source) -> None:
        """Refuses data and options that do not fit, before anything is written.

        Raises:
            ValueError: they do not.
        """
        self.sampler(model, spec).check({}, {})

    def metrics(self, model: Any, held_out: Source) -> dict[str, float]:
        """Numbers for each line of metrics.jsonl: of the averaged model on held-out examples (on training ones, where there are none)."""
        return {}

    def finish(self, model: Any, examples: Source, held_out: Source, say: Callable[[str], None]) -> dict[str, str]:
        """After the last step, with the averaged model: files to write into the run folder, name to text."""
        return {}

    def restore(self, model: Any, folder: Path) -> None:
        """Takes up what `finish` wrote into a run folder.

        Raises:
            CheckpointError: it is missing or damaged.
        """

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> Sampler:
        """How it is sampled; of what lies in the run folder beside the weights, where there is one. The name is for messages."""
        return Sampler()

    def sheet(self, model: "Model", source: Source) -> "Image | None":
        """The picture beside each checkpoint, of samples of the averaged model; None for data that have no picture."""
        return model.sheet(source=source)

    def stages(self, out: Path) -> "Sequence[Stage]":
        """Trainings that make this model one after another, each in a folder of `out`; none where it is trained in one."""
        return ()

    def trainings(self) -> dict[str, Training]:
        """The options of each training, by name, in order."""
        assert isinstance(self, Recipe)
        return {"training": self.training}

    def needs(self) -> Sequence[Path]:
        """Folders of ready models, which come before those of the stages."""
        return ()


class Recipe(Options):
    """A task with its data and how it is trained and computed: everything that makes a run. `recipe_class` makes one of a kind."""

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
        """What to train on, and what is held out, if anything is.

        Raises:
            ValueError: data that cannot be divided so.
        """
        return (source, None) if (how := self.how_divided) is None else source.split(how)

    @property
    def how_divided(self) -> Split | None:
        """How rows are held out; None where none are."""
        share, by, seed = self.training.held_out, self.training.held_out_by, self.training.seed
        if not share:
            return None
        return Random(share, seed) if by == "random" else Block(share) if by == "block" else Group(by, share, seed)

    def with_steps(self, steps: int) -> "Recipe":
        """The same recipe with so many steps, of all its trainings together.

        Raises:
            ValueError: too few.
        """
        if steps < 1:
            raise ValueError(f"training.steps got {steps}, but it must be at least 1.")
        return self.model_copy(update={"training": self.training.model_copy(update={"steps": steps})})


KINDS: dict[str, type[Task]] = {}  # what `model.kind` (or `model`) of a recipe names, to the kind's options
T = TypeVar("T", bound=type[Task])


def register(*names: str) -> Callable[[T], T]:
    """Enters a kind of model under these names, so that recipes can ask for it: `model: NAME`, or `model: {kind: NAME, …}`.

    Raises:
        ValueError: a name that is taken by another kind.
    """

    def enter(task: T) -> T:
        for name in names:
            if (there := KINDS.get(name)) is not None and there.__qualname__ != task.__qualname__:
                raise ValueError(f'there is a kind of model "{name}" already, {there.__name__}; choose another name.')
            KINDS[name] = task
        return task

    return enter


def recipe_class(task: type[Task]) -> type[Any]:
    """Recipes of a kind of model: its options, with those of data, training and runtime."""
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
        source: what it is trained on, of the data, the earlier stages' models, and the run folder.
    """

    name: str
    recipe: Any
    source: "Callable[[Source, Sequence[Model], Path, Callable[[str], None]], Source]"


def examples_of(source: Source, count: int, model: nn.Module) -> Batch:
    """Up to `count` examples, the same ones every time, on the model's device: what figures in metrics.jsonl are of."""
    rows = np.random.default_rng(0).permutation(len(source))[:count]
    return source.batch(rows).to(next(model.parameters()).device)
