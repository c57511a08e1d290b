"""The training loop: data → level → denoiser → loss → weights, with checkpoints from which it goes on as if never stopped."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sfumato.data import Dataset
from sfumato.pictures import picture
from sfumato.run import Form, Run, build_denoiser
from sfumato.train import checkpoint
from sfumato.train.folder import begin, manifest_of, only_writer, refuse_other_data
from sfumato.train.recipe import Recipe, Training, load_recipe
from sfumato.train.state import M, Objective, TrainState, Window
from sfumato.train.step import TrainStep

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
    options = recipe.training
    has_run = begin(recipe, out, resume=resume, read=load_recipe)
    dataset = recipe.data.load()
    if dataset.skipped:
        say(f"Left out {len(dataset.skipped)} files that could not be read: {', '.join(dataset.skipped[:5])}.")
    examples, _ = dataset.split(options.held_out, options.seed) if options.held_out else (dataset, None)
    form = Form(dataset.shape, dataset.classes, dataset.scaling, _standard_deviation(examples))
    manifest = manifest_of(recipe, options, dataset, form)
    if has_run:
        form = refuse_other_data(manifest, out)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        denoiser = build_denoiser(recipe, form)
    schedule = recipe.schedule.build()
    state = TrainState.begin(denoiser, options, recipe.objective.times.build(schedule))
    Run(str(out), recipe, form, denoiser).walk()  # what sampling will refuse is refused before anything is written
    fit(
        state,
        recipe.objective.build_loss(schedule, form.data_std),
        examples,
        options,
        out,
        papers={} if has_run else {"manifest.json": json.dumps(manifest, indent=2, ensure_ascii=False), "recipe.yaml": recipe.to_yaml()},
        draw=lambda path: _draw(Run(str(out), recipe, form, state.averaged()), path),
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
    papers: Mapping[str, str],
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
        papers: files to write before the first step of a new run, name to text.
        measure: what else goes into each line of metrics.jsonl.
        draw: draws the sample sheet into a file.
        on_step: as `train` takes it, like the rest.
        watch: as above.
        say: as above.
        should_stop: as above.

    Raises:
        ValueError: another process trains into `out`.
        CheckpointError: a checkpoint that is damaged or cannot be written.
        FloatingPointError: a loss or gradient that is not finite.
        Stopped: as `should_stop` asked.
    """
    window, checkpoints = Window([], []), out / "checkpoints"
    if not papers and checkpoint.steps_in(checkpoints):
        window = state.load(checkpoint.latest(out))
        say(f"Resuming {out} after step {state.step} of {options.steps}.")
    step_once = TrainStep(state, objective, examples, options)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        for name, text in papers.items():
            checkpoint.write_text(out / name, text)
        _cut_metrics(out / "metrics.jsonl", state.step)
        with closing(_board(out, state.step)) as board, (out / "metrics.jsonl").open("a") as metrics, torch.random.fork_rng():
            started, marked = time.perf_counter() - state.seconds, state.seconds
            while state.step < options.steps:
                value, norm = step_once()
                window.losses.append(value)
                window.norms.append(norm)
                state.seconds = time.perf_counter() - started
                if on_step is not None:
                    on_step(state.step, value)
                if state.step % options.log_every == 0 or state.step == options.steps:
                    record = {**_record(state, window, options, state.seconds - marked), **measure()}
                    metrics.write(json.dumps(record) + "\n")
                    metrics.flush()
                    for name, number in record.items():
                        if name not in ("step", "seconds"):
                            board.add_scalar(name, number, state.step)
                    if watch is not None:
                        watch(record)
                    window, marked = Window([], []), state.seconds
                stopping = should_stop()
                if stopping or state.step % options.checkpoint_every == 0 or state.step == options.steps:
                    checkpoint.fsync(out / "metrics.jsonl")
                    state.save(checkpoints, window, options.keep)
                if stopping and state.step < options.steps:
                    raise Stopped(f"stopped after step {state.step} of {options.steps}; go on with --resume.")
                if state.step % options.checkpoint_every == 0:
                    draw(out / "samples" / f"{state.step:08d}.png")
        sheet = out / "samples" / f"{state.step:08d}.png"
        if not sheet.exists():
            draw(sheet)
        if not (out / "report.json").exists():
            checkpoint.write_text(out / "report.json", json.dumps(_report(state, options), indent=2))


def _record(state: TrainState[M], window: Window, options: Training, seconds: float) -> dict[str, float | int]:
    return {
        "step": state.step,
        "seconds": round(state.seconds, 3),
        "images": state.step * options.batch,
        "loss": float(np.mean(window.losses)),
        "gradient_norm": float(np.mean(window.norms)),
        "learning_rate": options.rate * state.optimizer.rate(state.step),
        "images_per_second": round(len(window.losses) * options.batch / max(seconds, 1e-9), 1),
    }


def _draw(run: Run, path: Path) -> None:
    """The sample sheet: fixed noise, one class a column; nothing for data without a picture."""
    if not run.has_picture:
        return
    columns = run.columns()
    count = 2000 if len(run.form.shape) == 1 else 8 * columns if columns else 64
    try:
        samples = run.sample(count, batch=count if len(run.form.shape) == 1 else 64)
    except ValueError as error:
        raise FloatingPointError(f"{path} could not be drawn: {error} Lower training.rate and begin anew.") from None
    path.parent.mkdir(exist_ok=True)
    picture(samples.values, columns=columns).save(path)


def _standard_deviation(examples: Dataset) -> float:
    """Of all entries of x0 together, measured on up to 10,000 examples."""
    x0, _ = examples.batch(np.random.default_rng(0).permutation(len(examples))[:10_000])
    deviation = float(x0.std())
    if not deviation > 0:
        raise ValueError("all the data are one constant, so there is nothing to learn; check the path and the range of the data.")
    return deviation


def _board(out: Path, step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)


def _cut_metrics(path: Path, step: int) -> None:
    """Drops the lines after `step`, which a resumed run writes again, and a last line that was cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            done = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if done <= step:
            kept.append(line + "\n")
    checkpoint.write_text(path, "".join(kept))


def _report(state: TrainState[M], options: Training) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "steps": state.step,
        "images": state.step * options.batch,
        "seconds": round(state.seconds, 1),
        "images_per_second": round(state.step * options.batch / state.seconds, 1),
        "parameters": sum(p.numel() for p in state.model.net.parameters()),
        "peak_memory_bytes": peak,
    }
