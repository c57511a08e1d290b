"""How a training begins: its data, their form, the papers of its folder; for every kind of model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from sfumato.data import Dataset
from sfumato.form import Form
from sfumato.kernels import choice
from sfumato.runtime import precision
from sfumato.train.board import refuse_missing
from sfumato.train.checkpoint import steps_in
from sfumato.train.data_options import Data
from sfumato.train.engine import Engine
from sfumato.train.folder import HasTraining, begin, begun_with, manifest_of, papers_of, refuse_other_data
from sfumato.train.optim import rate_at
from sfumato.train.options import Options
from sfumato.train.recipe import Runtime, Training


@runtime_checkable
class HasData(HasTraining, Protocol):
    """What a recipe of any kind has."""

    @property
    def data(self) -> Data:
        """What it is trained on."""
        ...

    @property
    def runtime(self) -> Runtime:
        """By what arithmetic."""
        ...


R = TypeVar("R", bound=Options)


@dataclass(frozen=True)
class Opening:
    """What a training begins with."""

    engine: Engine
    dataset: Dataset
    examples: Dataset
    held_out: Dataset | None
    form: Form
    papers: dict[str, str]  # to be written before the first step; none where a run goes on as it was begun


def opening(
    recipe: R, out: Path, *, resume: bool, read: Callable[[Path], R], say: Callable[[str], None], data_std: float | None = None
) -> Opening:
    """Loads and divides the data, and looks at the folder.

    Args:
        recipe: of any kind.
        out: the run folder.
        resume: whether it may hold a run already.
        read: reads such a recipe.
        say: told of files left out.
        data_std: of the entries of x0; measured where not given.

    Raises:
        ValueError: `out` holds a run already, or a run of another recipe or of other data; data that cannot be trained on.
    """
    assert isinstance(recipe, HasData)
    options, engine = recipe.training, Engine.begin()
    refuse_missing(options)
    begun = begin(recipe, out, resume=resume or engine.was_restarted, read=read)
    dataset = recipe.data.load()
    if dataset.skipped:
        say(f"Left out {len(dataset.skipped)} files that could not be read: {', '.join(dataset.skipped[:5])}.")
    for note in dataset.notes:
        say(note)
    if dataset.captions is not None and engine.is_main:
        say("The images have captions, which no kind of model learns from yet: they are read and not used.")
    examples, held_out = divided(dataset, options)
    form = Form.of(examples, data_std or standard_deviation(examples))
    engine = equipped(engine, recipe.runtime, options, dataset.shape, begun=None if begun is None else out, say=say)
    manifest = manifest_of(recipe, options, dataset, form, engine)
    if begun is not None:
        assert isinstance(begun, HasData)
        form = refuse_other_data(manifest, out)
        if form.scaling != examples.scaling:
            say(f"The data keep the scaling with which {out} was begun.")
            examples, held_out = examples.scaled(form.scaling), None if held_out is None else held_out.scaled(form.scaling)
        if (sentence := extension(begun.training, options, out)) and engine.is_main:
            say(sentence)
    return Opening(engine, dataset, examples, held_out, form, papers_of(begun, recipe, manifest, out))


def extension(before: Training, now: Training, out: Path) -> str:
    """What becomes of the learning rate where a run with a checkpoint is made longer; empty where it is not."""
    done = max(steps_in(out / "checkpoints"), default=0)
    if not done or before.steps == now.steps:
        return ""
    was, will = now.rate * rate_at(before, done), now.rate * rate_at(now, done + 1)
    return (
        f"{out} goes on from step {done} to {now.steps}, in place of {before.steps}: from here on the learning rate is that of a run of "
        f"{now.steps} steps, so it goes from {was:.2g} to {will:.2g}"
        + (f", and to zero at step {now.steps}." if now.decay != "constant" else ".")
    )


def divided(dataset: Dataset, options: Training) -> tuple[Dataset, Dataset | None]:
    """What to train on, and what is held out, if anything is.

    Raises:
        ValueError: data that cannot be divided.
    """
    return dataset.split(options.held_out, options.seed, by=options.held_out_by) if options.held_out else (dataset, None)


def standard_deviation(examples: Dataset) -> float:
    """Of all entries of x0 together, measured on up to 10,000 examples."""
    x0, _ = examples.batch(np.random.default_rng(0).permutation(len(examples))[:10_000])
    deviation = float(x0.std())
    if not deviation > 0:
        raise ValueError("all the data are one constant, so there is nothing to learn; check the path and the range of the data.")
    return deviation


def equipped(
    engine: Engine, runtime: Runtime, options: Training, shape: Sequence[int], *, begun: Path | None, say: Callable[[str], None]
) -> Engine:
    """The engine with its arithmetic, the same in all processes.

    Args:
        engine: which has begun.
        runtime: what is asked for.
        options: of the training.
        shape: of one x0.
        begun: the folder of a run that goes on, with the kernels that it began with where the recipe leaves them to the machine.
        say: told where the kernels are sfumato's.

    Raises:
        ValueError: kernels that cannot be had.
    """
    if runtime.kernels == "auto" and begun is not None:
        runtime = runtime.model_copy(update={"kernels": begun_with(begun).get("kernels", "torch")})
    by_kernels = not engine.any(not wants_kernels(runtime, options, shape, engine.device))
    if by_kernels and engine.is_main:
        say(
            "Normalisations and 3×3 convolutions go by sfumato's kernels, which are faster here; --set runtime.kernels=torch takes torch's."
        )
    return replace(engine, precision=precision(runtime.precision, engine.device), by_kernels=by_kernels, micro_batch=runtime.micro_batch)


def wants_kernels(runtime: Runtime, options: Training, shape: Sequence[int], device: torch.device) -> bool:
    """Whether a training is to be computed by our kernels; the networks of points and signals have none.

    Raises:
        ValueError: kernels that cannot be had.
    """
    images = options.steps * options.batch if len(shape) == 3 else 0
    return choice.is_wanted(runtime.kernels, precision(runtime.precision, device), device, images=images)
