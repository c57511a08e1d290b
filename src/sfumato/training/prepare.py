"""How a training begins: its data and their spec, the arithmetic, the files of its folder; for every kind of model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.data.dataset import Dataset
from sfumato.data.source import DataSpec, Source, Stream
from sfumato.kernels import choice
from sfumato.options import Runtime, Training
from sfumato.runtime import precision
from sfumato.storage import steps_in
from sfumato.training.engine import Engine
from sfumato.training.folder import begin, begun_with, manifest_of, refuse_other_data, texts_of
from sfumato.training.optim import rate_at
from sfumato.training.trackers import refuse_missing


@dataclass(frozen=True)
class PreparedRun:
    """What a training begins with."""

    engine: Engine
    source: Source | Stream  # all of the data
    examples: Source | Stream  # what is trained on
    held_out: Source | None
    spec: DataSpec
    texts: dict[str, str]  # files to be written before the first step; none where a run goes on as it was begun
    is_new: bool


def prepare(
    recipe: Any,
    source: Source | Stream,
    out: Path,
    *,
    resume: bool,
    say: Callable[[str], None],
    made_from: Mapping[str, str],
) -> PreparedRun:
    """Divides the data, measures them, and looks at the folder.

    Args:
        recipe: of any kind.
        source: its data.
        out: the run folder.
        resume: whether it may hold a run already.
        say: told of what should be known of the data.
        made_from: fingerprints of the weights of earlier stages, by name.

    Raises:
        ValueError: `out` holds a run already, or a run of another recipe or of other data; data that cannot be trained on.
    """
    options, engine = recipe.training, Engine.begin()
    refuse_missing(options)
    begun = begin(recipe, out, resume=resume or engine.was_restarted)
    for note in source.notes if engine.is_main else ():
        say(note)
    if isinstance(source, Dataset) and source.captions is not None and engine.is_main:
        say("The images have captions, which no kind of model learns from yet: they are read and not used.")
    if isinstance(source, Stream):
        if options.held_out:
            raise ValueError(f"{source.name} is a stream, of which no rows can be held out; set training.held_out=0.")
        examples, held_out = source, None
    else:
        examples, held_out = recipe.divided(source)
    spec = examples.spec
    if spec.data_std is None and isinstance(examples, Source):
        spec = replace(spec, data_std=standard_deviation(examples))
    engine = _equipped(engine, recipe, spec.shape, begun=None if begun is None else out, say=say)
    manifest = manifest_of(recipe, source, spec, engine, made_from)
    if begun is not None:
        spec = refuse_other_data(manifest, out)
        if isinstance(examples, Source) and spec.codec != examples.spec.codec:
            say(f"The data keep the scaling with which {out} was begun.")
            examples, held_out = examples.scaled_like(spec), None if held_out is None else held_out.scaled_like(spec)
        if (sentence := _extension(begun.training, options, out)) and engine.is_main:
            say(sentence)
    return PreparedRun(engine, source, examples, held_out, spec, texts_of(begun, recipe, manifest, out), begun is None)


def _extension(before: Training, now: Training, out: Path) -> str:
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


def standard_deviation(examples: Source) -> float | None:
    """Of all entries of x together, measured on up to 10,000 examples; None of symbols.

    Raises:
        ValueError: all are one constant.
    """
    batch = examples.batch(np.random.default_rng(0).permutation(len(examples))[:10_000])
    if not batch.x.is_floating_point():
        return None
    deviation = float((batch.x if batch.mask is None else batch.x[batch.mask]).std())
    if not deviation > 0:
        raise ValueError("all the data are one constant, so there is nothing to learn; check the path and the range of the data.")
    return deviation


def _equipped(engine: Engine, recipe: Any, shape: Sequence[int | None], *, begun: Path | None, say: Callable[[str], None]) -> Engine:
    """The engine with its arithmetic, the same in all processes.

    Args:
        engine: which has begun.
        recipe: what is asked for.
        shape: of one x.
        begun: the folder of a run that goes on, with the kernels that it began with where the recipe leaves them to the machine.
        say: told where the kernels are sfumato's.

    Raises:
        ValueError: kernels that cannot be had.
    """
    runtime = recipe.runtime.model_copy(update={"precision": recipe.precision(recipe.runtime.precision)})
    if runtime.kernels == "auto" and begun is not None:
        runtime = runtime.model_copy(update={"kernels": begun_with(begun).get("kernels", "torch")})
    by_kernels = not engine.any(not wants_kernels(runtime, recipe.training, shape, engine.device))
    if by_kernels and engine.is_main:
        say(
            "Normalisations and 3×3 convolutions go by sfumato's kernels, which are faster here; --set runtime.kernels=torch takes torch's."
        )
    return replace(engine, precision=precision(runtime.precision, engine.device), by_kernels=by_kernels, micro_batch=runtime.micro_batch)


def wants_kernels(runtime: Runtime, options: Training, shape: Sequence[int | None], device: torch.device) -> bool:
    """Whether a training is to be computed by our kernels; the networks of points and signals have none.

    Raises:
        ValueError: kernels that cannot be had.
    """
    images = options.steps * options.batch if len(shape) == 3 else 0
    return choice.is_wanted(runtime.kernels, precision(runtime.precision, device), device, images=images)
