"""The training loop: data → level → denoiser → loss → weights, with checkpoints from which it goes on as if never stopped."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO

import numpy as np
import torch

from sfumato.data import Dataset
from sfumato.run import Run, build_denoiser
from sfumato.runtime import peak_memory
from sfumato.schedule import Schedule
from sfumato.train import checkpoint
from sfumato.train.board import Board, raised_once
from sfumato.train.engine import Engine
from sfumato.train.folder import only_writer, write_sheet
from sfumato.train.guard import Diverged, Guard
from sfumato.train.opening import opening
from sfumato.train.recipe import BitsAtLevel, Recipe, Training, load_recipe
from sfumato.train.state import M, Objective, TrainState
from sfumato.train.step import Outcome, TrainStep
from sfumato.train.window import Window

logger = logging.getLogger(__name__)

REJECTED, MOST_REJECTED = "rejected", 10  # where batches of steps that were not applied are kept, and how many


class Stopped(RuntimeError):
    """Training was asked to stop, and has written a checkpoint."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains a recipe into the run folder `out` and returns it.

    Args:
        recipe: what to train.
        out: the run folder; made here.
        resume: go on from the newest checkpoint of `out`, or begin where there is none.
        on_step: called after each step with its number and loss.
        watch: called with each line of metrics.jsonl.
        say: called with a sentence now and then.
        should_stop: asked after each step; true writes a checkpoint and raises `Stopped`.

    Raises:
        ValueError: `out` holds a run already, or a run of another recipe or of other data; data that cannot be trained on.
        CheckpointError: a checkpoint that is damaged or cannot be written.
        FloatingPointError: a loss or gradient that is not finite; the weights and checkpoints are those of before.
        Stopped: as `should_stop` asked.
    """
    start = opening(recipe, out, resume=resume, read=load_recipe, say=say, data_std=recipe.objective.data_std)
    options, engine, form = recipe.training, start.engine, start.form
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        denoiser = build_denoiser(recipe, form).to(engine.device)
    schedule = recipe.schedule.build()
    state = TrainState.begin(denoiser, options, recipe.objective.times.build(schedule))
    Run(str(out), recipe, form, denoiser).walk()  # what sampling will refuse is refused before anything is written
    fit(
        state,
        recipe.objective.build_loss(schedule, form.data_std),
        start.examples,
        options,
        out,
        engine=engine,
        schedule=schedule,
        papers=start.papers,
        bits=recipe.objective.build_bits(schedule, form.data_std),
        draw=lambda path: draw_samples(Run(str(out), recipe, form, state.averaged()), path),
        on_step=on_step,
        watch=watch,
        say=say,
        should_stop=should_stop,
    )
    return out


def fit(
    state: TrainState[M],
    objective: Objective[M],
    examples: Dataset,
    options: Training,
    out: Path,
    *,
    engine: Engine,
    schedule: Schedule | None,
    papers: Mapping[str, str],
    bits: BitsAtLevel | None = None,
    measure: Callable[[], Mapping[str, float]] = dict,
    draw: Callable[[Path], None] = lambda path: None,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """The loop itself, for any model and objective, into the folder `out`; goes on from its newest checkpoint where there is one.

    Args:
        state: at the beginning.
        objective: the loss of each example.
        examples: to train on.
        options: how long, how fast, how often.
        out: the folder; made here.
        engine: the processes that share the work; the first of them writes and speaks.
        schedule: says at which log-SNR an example was seen; None for a model without noise levels.
        papers: files to write before the first step, name to text.
        bits: makes bits/dim of losses, for metrics.jsonl.
        measure: what else goes into each line of metrics.jsonl.
        draw: draws the sample sheet into a file.
        on_step: as `train` takes it, like the rest.
        watch: as above.
        say: as above.
        should_stop: as above.

    Raises:
        ValueError: another process trains into `out`.
        CheckpointError: a checkpoint that is damaged or cannot be written.
        FloatingPointError: steps that cannot be applied, whatever the guard tries; the checkpoints are those of before.
        Stopped: as `should_stop` asked.
    """
    if not engine.is_main:  # one process speaks for all
        on_step, watch, say = None, None, lambda text: None
    course = _Course(state, objective, examples, options, out, engine, schedule, bits, measure, draw, on_step, watch, say, should_stop)
    origin, has_run = state.origin(), bool(checkpoint.steps_in(out / "checkpoints"))
    engine.wait()  # until all have looked at the folder as it was
    with only_writer(out) if engine.is_main else nullcontext():
        window = Window()
        if has_run:
            window = checkpoint.take_up(out, state.load, set_aside=engine.is_main)
            say(f"Resuming {out} after step {state.step} of {options.steps}.")
        for name, text in papers.items() if engine.is_main else ():
            with checkpoint.writing(out / name):
                checkpoint.write_text(out / name, text)
        while True:
            try:
                course.run(window)
                break
            except Diverged:
                window = course.go_back(origin)
        if engine.is_main:
            if not course.sheet.exists() and not course.is_due:
                draw_or_warn(draw, course.sheet)
            if not _is_report_of(out / "report.json", state.step):
                with checkpoint.writing(out / "report.json"):
                    checkpoint.write_text(out / "report.json", json.dumps(_report(state, options), indent=2))
        engine.wait()


@dataclass
class _Course(Generic[M]):
    """The steps from where the state is to the last, and what is written on the way."""

    state: TrainState[M]
    objective: Objective[M]
    examples: Dataset
    options: Training
    out: Path
    engine: Engine
    schedule: Schedule | None
    bits: BitsAtLevel | None
    measure: Callable[[], Mapping[str, float]]
    draw: Callable[[Path], None]
    on_step: Callable[[int, float], None] | None
    watch: Callable[[Mapping[str, float | int]], None] | None
    say: Callable[[str], None]
    should_stop: Callable[[], bool]

    @property
    def is_due(self) -> bool:
        """Whether this step has a checkpoint and a sheet of samples."""
        return self.state.step % self.options.checkpoint_every == 0

    @property
    def sheet(self) -> Path:
        """The sheet of samples of this step."""
        return self.out / "samples" / f"{self.state.step:08d}.png"

    def run(self, window: Window) -> None:
        """Makes the steps that are left.

        Raises:
            Diverged: too many in a row could not be applied.
        """
        state, options = self.state, self.options
        step_once = TrainStep(state, self.objective, self.examples, options, self.engine)
        with raised_once(), self._logs() as (board, metrics), torch.random.fork_rng():
            started, marked, before = time.perf_counter() - state.seconds, state.seconds, state.step
            if state.step and self.is_due and not self.sheet.exists():  # the run ended between a checkpoint and its sheet
                self._show(board)
            while state.step < options.steps:
                outcome = step_once()
                state.seconds = time.perf_counter() - started
                self._note(window, outcome)
                if self.on_step is not None:
                    self.on_step(state.step, outcome.loss)
                if state.step % options.log_every == 0 or state.step == options.steps:
                    record = self._record(window, (state.step - before) * options.batch / max(state.seconds - marked, 1e-9))
                    with checkpoint.writing(self.out):
                        metrics.write(json.dumps(record) + "\n")
                        metrics.flush()
                        board.log(record)
                    if self.watch is not None:
                        self.watch(record)
                    window, marked, before = Window(), state.seconds, state.step
                self._keep(window, board, stopping=self.engine.any(self.should_stop()))

    def go_back(self, origin: Callable[[], None]) -> Window:
        """Takes up the last good state again, at half the rate.

        Raises:
            FloatingPointError: that was tried as often as the recipe allows.
        """
        state, options, returns = self.state, self.options, self.state.guard.returns
        kept = f"the batches are in {self.out / REJECTED}"
        if returns >= options.retries:
            raise FloatingPointError(
                f"{options.patience} steps in a row up to step {state.step} could not be applied, at {state.guard.rate:g} of the recipe's "
                f"rate, too; {kept}. Look at the data (sfumato doctor {self.out}), lower training.rate, or take runtime.precision=float32."
            )
        window, broken = Window(), state.step
        state.guard = Guard(options.patience)
        if checkpoint.steps_in(self.out / "checkpoints"):
            window = checkpoint.take_up(self.out, state.load, set_aside=self.engine.is_main)
        else:
            origin()
        state.guard.returns, state.guard.in_a_row = returns + 1, 0
        self.say(
            f"{options.patience} steps in a row up to step {broken} could not be applied ({kept}): going back to step {state.step}, "
            f"at {state.guard.rate:g} of the recipe's rate."
        )
        self.engine.wait()
        return window

    @contextmanager
    def _logs(self) -> Iterator[tuple[Board, TextIO]]:
        """Where records go; nowhere, in any process but the first."""
        if not self.engine.is_main:
            with Path(os.devnull).open("w") as nowhere:
                yield Board([]), nowhere
            return
        path = self.out / "metrics.jsonl"
        with checkpoint.writing(self.out):
            _cut_metrics(path, self.state.step)
            board, metrics = Board.begin(self.out, self.options, self.state.step), path.open("a")
        try:
            yield board, metrics
        except BaseException:  # what ended the run is said, not that its logs could not be closed after it
            for log in (board, metrics):
                with suppress(OSError):
                    log.close()
            raise
        with checkpoint.writing(self.out):
            board.close()
            metrics.close()

    def _note(self, window: Window, outcome: Outcome) -> None:
        """Counts a step; keeps the batch of one that was not applied.

        Raises:
            Diverged: it was one too many in a row.
        """
        if outcome.objection is None:
            window.add(outcome.loss, outcome.norm)
            if self.schedule is None:
                return
            log_snr = self.schedule.log_snr(outcome.t).detach()
            window.add_examples("loss", log_snr, outcome.losses)
            if self.bits is not None:
                window.add_examples("bits", log_snr, self.bits(outcome.t, outcome.losses))
            return
        window.rejected += 1
        step = self.state.step
        self.say(f"Step {step} of {self.options.steps}: {outcome.objection}; it was not applied.")
        if self.engine.is_main and len(list((self.out / REJECTED).glob("*.npz"))) < MOST_REJECTED:
            x0, labels = self.examples.batch(outcome.rows)
            numbers = np.empty(0) if labels is None else labels.numpy()
            (self.out / REJECTED).mkdir(exist_ok=True)
            with checkpoint.aside(self.out / REJECTED / f"{step:08d}.npz") as partial, partial.open("wb") as file:
                np.savez(file, rows=outcome.rows, x0=x0.numpy(), t=outcome.t.numpy(), losses=outcome.losses.numpy(), labels=numbers)
        self.state.guard.reject()

    def _record(self, window: Window, rate: float) -> dict[str, float | int]:
        """A line of metrics.jsonl."""
        state, options = self.state, self.options
        return {
            "step": state.step,
            "seconds": round(state.seconds, 3),
            "images": state.step * options.batch,
            **window.means(),
            "rejected": window.rejected,
            "learning_rate": options.rate * state.optimizer.rate(state.step) * state.guard.rate,
            "images_per_second": round(rate, 1),
            "peak_memory_bytes": peak_memory(),
            **self.measure(),
        }

    def _keep(self, window: Window, board: Board, *, stopping: bool) -> None:
        """A checkpoint, then a sheet of samples, where they are due.

        Raises:
            Stopped: after the checkpoint, where that was asked for.
        """
        state, options = self.state, self.options
        if self.engine.is_main and options.snapshot_every and state.step % options.snapshot_every == 0:
            state.snapshot(self.out / "snapshots")
        if self.engine.is_main and (stopping or self.is_due or state.step == options.steps):
            checkpoint.fsync(self.out / "metrics.jsonl")
            state.save(self.out / "checkpoints", window, options.keep)  # from here on the step is not made again
        if self.is_due:
            self._show(board)
        if stopping and state.step < options.steps:
            raise Stopped(f"stopped after step {state.step} of {options.steps}")

    def _show(self, board: Board) -> None:
        """Draws the sheet of samples of this step."""
        if not self.engine.is_main:
            return
        draw_or_warn(self.draw, self.sheet)
        if self.sheet.exists():
            with checkpoint.writing(self.out):
                board.show(self.sheet, self.state.step)


def draw_or_warn(draw: Callable[[Path], None], path: Path) -> None:
    """Draws a sheet of samples; one that cannot be drawn is a warning in the log, as the weights are saved already.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        draw(path)
    except (ValueError, FloatingPointError, MemoryError) as error:
        logger.warning("The sample sheet %s could not be drawn; the checkpoint is saved. The reason: %s", path, error)


def draw_samples(run: Run, path: Path) -> None:
    """The sample sheet: fixed noise, one class a column; nothing for data without a picture."""
    if not run.has_picture:
        return
    columns = run.columns()
    count = 2000 if len(run.form.shape) == 1 else 8 * columns if columns else 64
    samples = run.sample(count, batch=count if len(run.form.shape) == 1 else 64)
    write_sheet(path, samples.values, columns=columns)


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
    checkpoint.write_text(path, "".join(kept))


def _is_report_of(path: Path, step: int) -> bool:
    """Whether there is a report, and of this step."""
    try:
        return json.loads(path.read_text())["steps"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _report(state: TrainState[M], options: Training) -> dict[str, Any]:
    return {
        "steps": state.step,
        "images": state.step * options.batch,
        "seconds": round(state.seconds, 1),
        "images_per_second": round(state.step * options.batch / state.seconds, 1),
        "parameters": sum(p.numel() for p in state.model.net.parameters()),
        "peak_memory_bytes": peak_memory(),
    }
