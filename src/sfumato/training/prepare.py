"""Prepares a training: its data and their spec, number format and kernels, the files of its folder; for every kind of model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.data.dataset import Dataset
from sfumato.data.source import DataSpec, Source, Stream
from sfumato.engine import Engine
from sfumato.kernels import choice
from sfumato.options import Runtime, Training
from sfumato.runtime import precision
from sfumato.storage import steps_in
from sfumato.training.folder import files_to_write, manifest_in, manifest_of, recipe_to_resume, refuse_other_data
from sfumato.training.optim import rate_at
from sfumato.training.trackers import refuse_missing


@dataclass(frozen=True)
class PreparedRun:
    """What a training starts from."""

    engine: Engine
    source: Source | Stream  # all of the data
    examples: Source | Stream  # the training examples
    held_out: Source | None
    spec: DataSpec
    texts: dict[str, str]  # files to write before the first step; none for an unchanged resumed run
    is_new: bool


def prepare(
    recipe: Any,
    source: Source | Stream,
    out: Path,
    *,
    resume: bool,
    on_message: Callable[[str], None],
    made_from: Mapping[str, str],
) -> PreparedRun:
    """Splits the data, measures them, and checks the run folder.

    Args:
        recipe: of any kind.
        source: its data.
        out: the run folder.
        resume: whether the folder may hold a run already.
        on_message: called with notes on the data.
        made_from: fingerprints of the weights of earlier stages, by name.

    Raises:
        ValueError: `out` holds a run already, or a run of another recipe or other data; data that cannot be trained on.
    """
    options, engine = recipe.training, Engine.begin()
    refuse_missing(options)
    existing = recipe_to_resume(recipe, out, resume=resume or engine.was_restarted)
    for note in source.notes if engine.is_main else ():
        on_message(note)
    if isinstance(source, Dataset) and source.captions is not None and engine.is_main:
        on_message("The images have captions, but no kind of model can use them yet: they are ignored.")
    if isinstance(source, Stream):
        if options.held_out:
            raise ValueError(f"{source.name} is a stream, so no rows can be held out; set training.held_out=0.")
        examples, held_out = source, None
    else:
        examples, held_out = recipe.divided(source)
    spec = examples.spec
    if spec.data_std is None and isinstance(examples, Source):
        spec = replace(spec, data_std=standard_deviation(examples))
    engine = _with_runtime(engine, recipe, spec.shape, existing=None if existing is None else out, on_message=on_message)
    manifest = manifest_of(recipe, source, spec, engine, made_from)
    if existing is not None:
        spec = refuse_other_data(manifest, out)
        if isinstance(examples, Source) and spec.codec != examples.spec.codec:
            on_message(f"The data keep the scaling of the run in {out}.")
            examples, held_out = examples.scaled_like(spec), None if held_out is None else held_out.scaled_like(spec)
        if (sentence := _extension(existing.training, options, out)) and engine.is_main:
            on_message(sentence)
    return PreparedRun(engine, source, examples, held_out, spec, files_to_write(existing, recipe, manifest, out), existing is None)


def _extension(before: Training, now: Training, out: Path) -> str:
    """A sentence on the learning rate if a run with a checkpoint is made longer; empty otherwise."""
    done = max(steps_in(out / "checkpoints"), default=0)
    if not done or before.steps == now.steps:
        return ""
    was, will = now.rate * rate_at(before, done), now.rate * rate_at(now, done + 1)
    return (
        f"{out} continues from step {done} to {now.steps} instead of {before.steps}: from now on the learning rate is that of a run of "
        f"{now.steps} steps, so it changes from {was:.2g} to {will:.2g}"
        + (f", and decays to zero at step {now.steps}." if now.decay != "constant" else ".")
    )


def standard_deviation(examples: Source) -> float | None:
    """Standard deviation of all entries of x together, measured on up to 10,000 examples; None for symbols.

    Raises:
        ValueError: all entries are equal.
    """
    batch = examples.batch(np.random.default_rng(0).permutation(len(examples))[:10_000])
    if not batch.x.is_floating_point():
        return None
    deviation = float((batch.x if batch.mask is None else batch.x[batch.mask]).std())
    if not deviation > 0:
        raise ValueError("all data have the same constant value, so there is nothing to learn; check the path and the range of the data.")
    return deviation


def _with_runtime(
    engine: Engine, recipe: Any, shape: Sequence[int | None], *, existing: Path | None, on_message: Callable[[str], None]
) -> Engine:
    """The engine with its number format and kernels, the same in all processes.

    Args:
        engine: the processes.
        recipe: the requested recipe.
        shape: of one x.
        existing: the folder of a resumed run: it keeps its kernels if the recipe leaves the choice to the machine.
        on_message: called if sfumato's kernels are used.

    Raises:
        ValueError: kernels that are not available.
    """
    runtime = recipe.runtime.model_copy(update={"precision": recipe.precision(recipe.runtime.precision)})
    if runtime.compile:
        runtime = runtime.model_copy(update={"kernels": "torch"})
    if runtime.kernels == "auto" and existing is not None:
        runtime = runtime.model_copy(update={"kernels": manifest_in(existing).get("kernels", "torch")})
    by_kernels = not engine.any(not wants_kernels(runtime, recipe.training, shape, engine.device))
    if by_kernels and engine.is_main:
        on_message(
            "Normalisations and 3×3 convolutions use sfumato's kernels, which are faster here; --set runtime.kernels=torch uses torch's."
        )
    dtype = precision(runtime.precision, engine.device)
    return replace(engine, precision=dtype, by_kernels=by_kernels, micro_batch=runtime.micro_batch, compiles=runtime.compile)


def wants_kernels(runtime: Runtime, options: Training, shape: Sequence[int | None], device: torch.device) -> bool:
    """Whether a training uses our kernels; networks for points and signals have none.

    Raises:
        ValueError: kernels that are not available.
    """
    images = options.steps * options.batch if len(shape) == 3 else 0
    return choice.is_wanted(runtime.kernels, precision(runtime.precision, device), device, images=images)
