"""Training, for every kind of model: `train`, and its loop, which resumes from checkpoints as if it had never stopped."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL.Image import Image
from torch import nn

from sfumato import storage
from sfumato.data.options import PythonData
from sfumato.data.source import Source, Stream
from sfumato.data.wrapped import as_source
from sfumato.engine import Engine
from sfumato.evaluation.watch import BEST, Watch
from sfumato.loading import load
from sfumato.model import Model
from sfumato.options import Runtime, Training
from sfumato.recipe import load_recipe, recipe_of
from sfumato.runtime import peak_memory
from sfumato.storage import weights_fingerprint
from sfumato.task import Recipe, Task
from sfumato.training.accumulator import Accumulator
from sfumato.training.folder import only_writer, write_sheet
from sfumato.training.guard import Diverged, Guard
from sfumato.training.initial import begin_from
from sfumato.training.prepare import PreparedRun, prepare
from sfumato.training.state import TrainState
from sfumato.training.step import StepResult, TrainStep
from sfumato.training.trackers import Trackers, raised_once

logger = logging.getLogger(__name__)

REJECTED, MOST_REJECTED = "rejected", 10  # folder for batches of rejected steps, and how many are kept


class Stopped(RuntimeError):
    """Training was asked to stop, and has written a checkpoint."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls. Only the process that writes calls them, except `should_stop`, which all processes call.

    Args:
        on_step: after each step, with its number (counted over all stages) and its loss.
        on_log: with each line of metrics.jsonl.
        on_checkpoint: with the folder of each complete checkpoint.
        on_message: with messages for the user.
        should_stop: called after each step; true writes a checkpoint and raises `Stopped`.
    """

    on_step: Callable[[int, float], None] | None = None
    on_log: Callable[[Mapping[str, float | int]], None] | None = None
    on_checkpoint: Callable[[Path], None] | None = None
    on_message: Callable[[str], None] | None = None
    should_stop: Callable[[], bool] | None = None

    @classmethod
    def joined(cls, several: "Sequence[Callbacks]") -> "Callbacks":
        """Callbacks that call all of the given ones."""

        def all_of(name: str) -> Any:
            callbacks = [call for each in several if (call := getattr(each, name)) is not None]
            return (lambda *values: any([bool(call(*values)) for call in callbacks])) if callbacks else None

        return cls(**{field.name: all_of(field.name) for field in fields(cls)})

    def message(self, text: str) -> None:
        """Passes a message to `on_message`."""
        if self.on_message is not None:
            self.on_message(text)

    def once(self) -> "Callbacks":
        """The same callbacks, without repeated messages: stages of one run open the same data on the same machine."""
        sent: set[str] = set()

        def message(text: str) -> None:
            if text not in sent:
                sent.add(text)
                self.message(text)

        return replace(self, on_message=message)


def train(
    task: "Task | Recipe | str | Path",
    source: Any = None,
    out: str | Path | None = None,
    *,
    training: Training | None = None,
    runtime: Runtime | None = None,
    callbacks: "Sequence[Callbacks] | Callbacks" = (),
    resume: bool = False,
    init_from: str | Path | None = None,
) -> Model:
    """Trains a model into the run folder `out` and returns it with its averaged weights.

    Args:
        task: a kind of model with its options, such as `sf.Diffusion(net=…)`, whose network may be your own module; or a recipe, its name
            or its file.
        source: training data: a `Source` or `Stream`, arrays, a torch `Dataset`, an iterable of batches; by default the data of the
        recipe.
        out: the run folder, which is created.
        training: training options, for a task; a recipe has its own.
        runtime: precision, kernels and the like, for a task; a recipe has its own.
        callbacks: functions that the training calls.
        resume: continue from the newest checkpoint of `out`, or start if there is none.
        init_from: a run, `zoo:NAME` or a file of weights to start from; replaces `training.init_from`.

    Raises:
        ValueError: `out` holds a run already, or a run of another recipe or other data; data that cannot be trained on; a recipe
        together with `training` or `runtime`; another process is training into `out`.
        CheckpointError: a checkpoint that is damaged or cannot be written.
        FloatingPointError: a loss or gradient is not finite; weights and checkpoints are those of the last good step.
        Stopped: a callback asked for it.
    """
    recipe: Any = load_recipe(task) if isinstance(task, str | Path) else task
    if out is None:
        raise ValueError("train needs a folder for the run: train(task, source, out).")
    if isinstance(recipe, Recipe) and (training is not None or runtime is not None):
        raise ValueError("a recipe has its own training and runtime options; change those instead of passing training= or runtime=.")
    if not isinstance(recipe, Recipe):
        if source is None:
            raise ValueError("a task has no data: pass train a source, or a recipe.")
        source = as_source(source)
        recipe = recipe_of(recipe, data=PythonData(name=source.name), training=training or Training(), runtime=runtime or Runtime())
    if init_from is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"init_from": str(init_from)})})
    callbacks = Callbacks.joined([callbacks] if isinstance(callbacks, Callbacks) else callbacks)
    if not Engine.begin().is_main:  # messages come from one process
        callbacks = Callbacks(should_stop=callbacks.should_stop)
    _train(
        recipe,
        recipe.data.load() if source is None else as_source(source),
        Path(out),
        callbacks=callbacks.once(),
        resume=resume,
        made_from={},
    )
    return load(Path(out), module=recipe if isinstance(recipe, Task) else None)


def _train(recipe: Any, source: Source | Stream, out: Path, *, callbacks: Callbacks, resume: bool, made_from: Mapping[str, str]) -> None:
    """Trains a model, in one training or in stages."""
    start = prepare(recipe, source, out, resume=resume, on_message=callbacks.message, made_from=made_from)
    if recipe.stages(out):
        _train_stages(recipe, start, out, callbacks)
    else:
        fit(recipe, start, out, callbacks)


def _train_stages(recipe: Any, start: PreparedRun, out: Path, callbacks: Callbacks) -> None:
    """Trains each stage into its folder; a stopped run resumes in the stage where it stopped."""
    source, engine = start.source, start.engine
    if isinstance(source, Stream):
        raise ValueError(f"{source.name} is a stream, but a model of several stages reads its data more than once; give it a Source.")
    earlier: list[Model] = [load(path) for path in recipe.needs()]
    recipe.examine(earlier, start.spec, start.examples)  # before anything is written
    if engine.is_main:
        with only_writer(out):
            for name, text in start.texts.items():
                with storage.writing(out / name):
                    storage.write_text(out / name, text)
    engine.wait()
    done = 0
    for stage in recipe.stages(out):
        data = None
        if engine.is_main:
            data = stage.source(source, earlier, out, callbacks.message)
        engine.wait()
        data = stage.source(source, earlier, out, callbacks.message) if data is None else data
        stage_calls = callbacks
        if (on_step := callbacks.on_step) is not None and done:
            stage_calls = replace(callbacks, on_step=_later(on_step, done))
        made_from = {model.name if path is None else path: weights_fingerprint(model.network) for model, path in _named(earlier, out)}
        _train(stage.recipe, data, out / stage.name, callbacks=stage_calls, resume=True, made_from=made_from)
        earlier.append(load(out / stage.name))
        done += stage.recipe.training.steps
    if engine.is_main:
        sheet = out / "samples" / f"{recipe.training.steps:08d}.png"
        _draw_or_warn(lambda: recipe.sheet(load(out), start.examples), sheet)


def _later(on_step: Callable[[int, float], None], done: int) -> Callable[[int, float], None]:
    """Adds the steps of earlier stages to the step number."""
    return lambda step, loss: on_step(done + step, loss)


def _named(models: Sequence[Model], out: Path) -> Iterator[tuple[Model, str | None]]:
    """Models with their path relative to the run folder, if they are in it."""
    for model in models:
        inside = Path(model.name).is_relative_to(out)
        yield model, str(Path(model.name).relative_to(out)) if inside else None


def fit(recipe: Any, start: PreparedRun, out: Path, callbacks: Callbacks) -> None:
    """Runs the training loop for any kind of model into `out`; continues from its newest checkpoint if there is one.

    Raises:
        ValueError, CheckpointError, FloatingPointError, Stopped: as `train`.
    """
    options, engine = recipe.training, start.engine
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = recipe.build(start.spec).to(engine.device)
    if start.is_new and options.init_from:
        callbacks.message(begin_from(recipe.trained(model), options.init_from))
    state = TrainState.begin(recipe, model, options)
    examples = start.held_out or start.examples
    if isinstance(examples, Source):
        recipe.examine(model, start.spec, examples)  # refuses what cannot work before anything is written
    loop = TrainingLoop(recipe, state, start, out, callbacks, watch_of(recipe, model, start, out))
    origin, has_run = state.origin(), bool(storage.steps_in(out / "checkpoints"))
    engine.wait()  # until every process has checked the folder before it changes
    with only_writer(out) if engine.is_main else nullcontext():
        accumulator = Accumulator()
        if has_run:
            accumulator = storage.load_newest_valid(out, state.load, set_aside=engine.is_main)
            callbacks.message(f"Resuming {out} after step {state.step} of {options.steps}.")
        for name, text in start.texts.items() if engine.is_main else ():
            with storage.writing(out / name):
                storage.write_text(out / name, text)
        while True:
            try:
                loop.run(accumulator)
                break
            except Diverged:
                accumulator = loop.go_back(origin)
        if engine.is_main:
            loop.end()
        engine.wait()


def watch_of(recipe: Any, model: nn.Module, start: PreparedRun, out: Path) -> Watch | None:
    """What `training.evaluate_every` measures; None where it is 0.

    Raises:
        ValueError: a kind of model that makes no samples, or data that they cannot be held against.
    """
    options = recipe.training
    if not options.evaluate_every:
        return None
    sampler = recipe.sampler(model, start.spec)
    if sampler.use:
        raise ValueError(f"training.evaluate_every measures samples, and {sampler.kind} makes none; set it to 0.")
    if start.held_out is not None:
        return Watch(start.held_out, "held-out data", options.evaluate_count, out)
    if not isinstance(start.examples, Source):
        raise ValueError("training.evaluate_every holds samples against data, which a stream cannot be asked for; set it to 0.")
    return Watch(start.examples, "training data, as nothing is held out", options.evaluate_count, out)


@dataclass
class TrainingLoop:
    """Runs the remaining steps, and writes metrics, checkpoints and samples."""

    recipe: Any
    state: TrainState
    start: PreparedRun
    out: Path
    callbacks: Callbacks
    watch: Watch | None = None

    @property
    def options(self) -> Training:
        """The training options."""
        return self.recipe.training

    @property
    def engine(self) -> Engine:
        """The processes; the first one writes files and messages."""
        return self.start.engine

    @property
    def metric_examples(self) -> Source | None:
        """The examples for metrics: held-out ones, else training ones; None for a stream."""
        source = self.start.held_out or self.start.examples
        return source if isinstance(source, Source) else None

    @property
    def is_due(self) -> bool:
        """Whether this step has a checkpoint and a sheet of samples."""
        return self.state.step % self.options.checkpoint_every == 0

    @property
    def sheet(self) -> Path:
        """Path of this step's sheet of samples."""
        return self.out / "samples" / f"{self.state.step:08d}.png"

    def run(self, accumulator: Accumulator) -> None:
        """Runs the remaining steps.

        Raises:
            Diverged: too many steps in a row were rejected.
        """
        state, options = self.state, self.options
        step_once = TrainStep(state, self.start.examples, options, self.engine)
        with raised_once(), self._logs() as (trackers, metrics), torch.random.fork_rng():
            started, marked, before = time.perf_counter() - state.seconds, state.seconds, state.step
            if state.step and self.is_due and not self.sheet.exists():  # the run ended between a checkpoint and its sheet
                self._show(trackers)
            while state.step < options.steps:
                result = step_once()
                state.seconds = time.perf_counter() - started
                self._note(accumulator, result)
                if self.callbacks.on_step is not None:
                    self.callbacks.on_step(state.step, result.loss)
                evaluates = bool(options.evaluate_every) and (state.step % options.evaluate_every == 0 or state.step == options.steps)
                if state.step % options.log_every == 0 or state.step == options.steps or evaluates:
                    record = self._record(accumulator, (state.step - before) * options.batch / max(state.seconds - marked, 1e-9))
                    record |= self._evaluated() if evaluates else {}
                    with storage.writing(self.out):
                        metrics.write(json.dumps(record) + "\n")
                        metrics.flush()
                        trackers.log(record)
                    if self.callbacks.on_log is not None:
                        self.callbacks.on_log(record)
                    accumulator, marked, before = Accumulator(), state.seconds, state.step
                stopping = self.engine.any(self.callbacks.should_stop is not None and self.callbacks.should_stop())
                self._keep(accumulator, trackers, stopping=stopping)

    def end(self) -> None:
        """Writes what follows the last step: the last sheet, the task's files, the report."""
        if not self.sheet.exists() and not self.is_due:
            self._draw(self.state.averaged())
        if _is_report_of(self.out / "report.json", self.state.step):
            return
        texts = {}
        if self.metric_examples is not None and isinstance(self.start.examples, Source):
            texts = self.recipe.finish(self.state.averaged(), self.start.examples, self.metric_examples, self.callbacks.message)
        for name, text in {**texts, "report.json": json.dumps(_report(self.state, self.options), indent=2)}.items():
            with storage.writing(self.out / name):
                storage.write_text(self.out / name, text)

    def go_back(self, origin: Callable[[], None]) -> Accumulator:
        """Restores the last good state, at half the learning rate.

        Raises:
            FloatingPointError: the run went back as often as the recipe allows.
        """
        state, options, returns = self.state, self.options, self.state.guard.returns
        kept = f"the batches are in {self.out / REJECTED}"
        if returns >= options.retries:
            raise FloatingPointError(
                f"{options.patience} steps in a row up to step {state.step} could not be applied, at {state.guard.rate:g} of the recipe's "
                f"learning rate, too; {kept}. Try sfumato doctor {self.out}, lower training.rate, or try runtime.precision=float32."
            )
        accumulator, broken = Accumulator(), state.step
        state.guard = Guard(options.patience)
        if storage.steps_in(self.out / "checkpoints"):
            accumulator = storage.load_newest_valid(self.out, state.load, set_aside=self.engine.is_main)
        else:
            origin()
        state.guard.returns, state.guard.in_a_row = returns + 1, 0
        self.callbacks.message(
            f"{options.patience} steps in a row up to step {broken} could not be applied ({kept}): going back to step {state.step}, "
            f"at {state.guard.rate:g} of the recipe's learning rate."
        )
        self.engine.wait()
        return accumulator

    @contextmanager
    def _logs(self) -> Iterator[tuple[Trackers, TextIO]]:
        """Trackers and metrics.jsonl; neither in processes other than the first."""
        if not self.engine.is_main:
            with Path(os.devnull).open("w") as nowhere:
                yield Trackers([]), nowhere
            return
        path = self.out / "metrics.jsonl"
        with storage.writing(self.out):
            _cut_metrics(path, self.state.step)
            trackers, metrics = Trackers.begin(self.out, self.options, self.state.step), path.open("a")
        try:
            yield trackers, metrics
        except BaseException:  # report what ended the run, not a failure to close its logs afterwards
            for log in (trackers, metrics):
                with suppress(OSError):
                    log.close()
            raise
        with storage.writing(self.out):
            trackers.close()
            metrics.close()

    def _note(self, accumulator: Accumulator, result: StepResult) -> None:
        """Adds a step to the metrics; saves the batch of a rejected step.

        Raises:
            Diverged: too many steps in a row were rejected.
        """
        if result.objection is None:
            accumulator.add(result.loss, result.norm, result.terms)
            return
        accumulator.rejected += 1
        step = self.state.step
        self.callbacks.message(f"Step {step} of {self.options.steps}: {result.objection}; it was not applied.")
        if self.engine.is_main and len(list((self.out / REJECTED).glob("*.npz"))) < MOST_REJECTED:
            batch, terms = result.batch, result.terms
            arrays = {"x0": batch.x, "losses": terms.per_example} | ({} if terms.log_snr is None else {"log_snr": terms.log_snr})
            arrays |= {name: condition.value.where(*_rows(condition)) for name, condition in batch.cond.items()}
            found: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
            found |= {} if result.rows is None else {"rows": result.rows}
            (self.out / REJECTED).mkdir(exist_ok=True)
            with storage.aside(self.out / REJECTED / f"{step:08d}.npz") as partial, partial.open("wb") as file:
                np.savez(file, **found)
        self.state.guard.reject()

    def _record(self, accumulator: Accumulator, rate: float) -> dict[str, float | int]:
        """A line of metrics.jsonl."""
        state, options = self.state, self.options
        found = (
            {}
            if self.metric_examples is None or not self.recipe.has_metrics
            else self.recipe.metrics(state.averaged(), self.metric_examples)
        )
        return {
            "step": state.step,
            "seconds": round(state.seconds, 3),
            "images": state.step * options.batch,
            **accumulator.means(),
            "rejected": accumulator.rejected,
            "learning_rate": options.rate * state.optimizer.rate(state.step) * state.guard.rate,
            "images_per_second": round(rate, 1),
            "peak_memory_bytes": peak_memory(),
            **found,
        }

    def _evaluated(self) -> dict[str, float]:
        """The figure of the averaged model's samples at this step, after which its checkpoint is kept apart where it is the best so far."""
        if self.watch is None or not self.engine.is_main:
            return {}
        state = self.state
        name, value = self.watch.figure(Model(str(self.out), self.recipe, self.start.spec, state.averaged()))
        if self.watch.keep(state, Accumulator(), name, value):
            where, on = self.out / BEST, self.watch.chosen_on
            self.callbacks.message(f"Step {state.step}: {name} {value:.4g} on {on}, the best so far; its checkpoint is in {where}.")
        return {name: value}

    def _keep(self, accumulator: Accumulator, trackers: Trackers, *, stopping: bool) -> None:
        """Writes a checkpoint, then a sheet of samples, if they are due.

        Raises:
            Stopped: after the checkpoint, if a callback asked for it.
        """
        state, options = self.state, self.options
        if self.engine.is_main and options.snapshot_every and state.step % options.snapshot_every == 0:
            state.snapshot(self.out / "snapshots")
        if self.engine.is_main and (stopping or self.is_due or state.step == options.steps):
            storage.fsync(self.out / "metrics.jsonl")
            state.save(self.out / "checkpoints", accumulator, options.keep)  # from here on the step is never repeated
            if self.callbacks.on_checkpoint is not None:
                self.callbacks.on_checkpoint(self.out / "checkpoints" / f"{state.step:08d}")
        if self.is_due:
            self._show(trackers)
        if stopping and state.step < options.steps:
            raise Stopped(f"stopped after step {state.step} of {options.steps}")

    def _show(self, trackers: Trackers) -> None:
        """Draws the sheet of samples of this step."""
        if not self.engine.is_main:
            return
        self._draw(self.state.averaged())
        if self.sheet.exists():
            with storage.writing(self.out):
                trackers.show(self.sheet, self.state.step)

    def _draw(self, averaged: nn.Module) -> None:
        if self.metric_examples is not None:
            model, examples = Model(str(self.out), self.recipe, self.start.spec, averaged), self.metric_examples
            _draw_or_warn(lambda: self.recipe.sheet(model, examples), self.sheet)


def _draw_or_warn(draw: Callable[[], Image | None], path: Path) -> None:
    """Draws a sheet of samples; one that cannot be drawn is a warning in the log, as the weights are saved already.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        if (sheet := draw()) is not None:
            write_sheet(path, sheet)
    except (ValueError, FloatingPointError, MemoryError) as error:
        logger.warning("The sample sheet %s could not be drawn; the checkpoint is saved. The reason: %s", path, error)


def _rows(condition: Any) -> tuple[torch.Tensor, int]:
    """Which rows of a condition are given, shaped like its value, and -1 for the others."""
    return condition.given.reshape(-1, *(1,) * (condition.value.ndim - 1)), -1


def _cut_metrics(path: Path, step: int) -> None:
    """Drops the lines after `step`, which a resumed run writes again, and what cannot be read: a last line that was cut short, or more."""
    if not path.is_file():
        return
    kept, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            done = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            if number < len(lines):
                logger.warning("%s: line %d cannot be read and is left out.", path, number)
            continue
        if done <= step:
            kept.append(line + "\n")
    storage.write_text(path, "".join(kept))


def _is_report_of(path: Path, step: int) -> bool:
    """Whether there is a report, and of this step."""
    try:
        return json.loads(path.read_text())["steps"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _report(state: TrainState, options: Training) -> dict[str, Any]:
    return {
        "steps": state.step,
        "images": state.step * options.batch,
        "seconds": round(state.seconds, 1),
        "images_per_second": round(state.step * options.batch / state.seconds, 1),
        "parameters": sum(p.numel() for p in state.net.parameters()),
        "peak_memory_bytes": peak_memory(),
    }
