"""The training loop: data → level → denoiser → loss → weights, with checkpoints from which it goes on as if never stopped.

Nothing random is carried from step to step: the order of the data depends on (seed, epoch), and the levels, the noise, the dropped labels
and the flips of step n on (seed, n). So a checkpoint holds weights and averages, and a resumed run sees what an uninterrupted one would.
"""

import copy
import fcntl
import hashlib
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sfumato import loss
from sfumato.data import Dataset
from sfumato.denoiser import Cond, drop
from sfumato.noise import seeded
from sfumato.pictures import picture
from sfumato.run import Form, Run, build_denoiser, read_form
from sfumato.runtime import multiplies_bfloat16
from sfumato.train import checkpoint
from sfumato.train.ema import Ema
from sfumato.train.optim import Optimizer, set_gradients
from sfumato.train.recipe import Options, Recipe, Training, load_recipe

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OURS = {"manifest.json", "recipe.yaml", ".manifest.json.partial", ".recipe.yaml.partial", ".lock"}  # of a run killed at its very start

ORDER, STEP, DROPOUT = 0, 1, 2  # what a seed is for: the order of an epoch, the randomness of a step, that inside a network


@runtime_checkable
class HasNet(Protocol):
    """A model around a network whose weights are trained."""

    net: nn.Module


M = TypeVar("M", bound=HasNet)
Objective = Callable[[M, Tensor, Tensor, Tensor, Cond | None], Tensor]  # (model, x0, eps, t, cond) to one loss an example


@dataclass
class TrainState(Generic[M]):
    """What training changes: the master weights, the optimiser, the averages, what the times have learned, how many steps are done."""

    model: M
    optimizer: Optimizer
    emas: list[Ema]
    times: loss.TimeSampler
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, model: M, options: Training, times: loss.TimeSampler) -> "TrainState[M]":
        """Before the first step."""
        return cls(model, Optimizer(model.net, options), [Ema(model.net, width) for width in options.ema], times)

    def averaged(self) -> M:
        """A copy of the model with the first average's weights."""
        model = copy.deepcopy(self.model)
        model.net.load_state_dict(self.emas[0].tensors)
        model.net.eval().requires_grad_(False)
        return model

    def save(self, folder: Path, window: "Window", keep: int) -> None:
        """Writes a checkpoint."""
        tensors = {"model": self.model.net.state_dict(), "optimizer": self.optimizer.tensors()}
        tensors |= {ema.name: ema.tensors for ema in self.emas}
        if isinstance(self.times, loss.AdaptiveTimes):
            tensors["times"] = self.times.tensors()
        state = {"step": self.step, "seconds": self.seconds, "window": [window.losses, window.norms]}
        checkpoint.write(folder, self.step, tensors, state, keep=keep)

    def load(self, folder: Path) -> "Window":
        """Takes up a checkpoint."""
        state = checkpoint.read_state(folder)
        self.step, self.seconds = state["step"], state["seconds"]
        takers = {"model": self.model.net.load_state_dict, "optimizer": self.optimizer.load} | {ema.name: ema.load for ema in self.emas}
        if isinstance(self.times, loss.AdaptiveTimes):
            takers["times"] = self.times.load
        for stem, take in takers.items():
            path = folder / f"{stem}.safetensors"
            tensors = checkpoint.read_tensors(path)
            try:
                take(tensors)
            except (RuntimeError, KeyError, ValueError) as error:
                raise checkpoint.damaged(path, error) from None
        return Window(*state["window"])


@dataclass
class Window:
    """Losses and gradient norms since the last line of metrics.jsonl."""

    losses: list[float]
    norms: list[float]


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


def begin(recipe: Options, out: Path, *, resume: bool, read: Callable[[Path], Options]) -> bool:
    """Whether `out` holds a run to go on with.

    Raises:
        ValueError: it holds one already, or one of another recipe, or something else.
    """
    has_run = (out / "recipe.yaml").is_file()
    if has_run and not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
    if has_run:
        _refuse_changes(read(out / "recipe.yaml"), recipe, out)
    elif out.exists() and (not out.is_dir() or any(path.name not in OURS for path in out.iterdir())):
        raise ValueError(f"{out} exists and is no run folder; choose another --out.")
    return has_run


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
    step_once = _Step(state, objective, examples, options)
    out.mkdir(parents=True, exist_ok=True)
    with _only_writer(out):
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


class _Step(Generic[M]):
    """One optimiser step: a batch, its levels and noise, the loss in slices, the update, the averages."""

    def __init__(self, state: TrainState[M], objective: Objective[M], examples: Dataset, options: Training) -> None:
        self.state, self.objective, self.examples, self.options = state, objective, examples, options
        self.times = state.times
        self.can_flip = options.flip and examples.is_image
        self.worker = _worker(state.model, options.precision)
        self.masters = list(state.model.net.parameters())
        self.workers = list(self.worker.net.parameters())
        self.batches = _batches(len(examples), options, state.step)

    def __call__(self) -> tuple[float, float]:
        """Makes the step; returns its loss and gradient norm."""
        number = self.state.step + 1
        generator = seeded(self.options.seed, STEP, number)
        torch.manual_seed(seeded(self.options.seed, DROPOUT, number).initial_seed())  # dropout takes no generator
        x0, labels = self.examples.batch(next(self.batches))
        if self.can_flip:
            x0 = torch.where(_coin(len(x0), 0.5, generator).reshape(-1, 1, 1, 1), x0.flip(-1), x0)
        cond = None
        if labels is not None:
            cond = drop({"labels": labels}, _coin(len(x0), self.options.label_drop, generator))
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        t = self.times(len(x0), generator)
        if self.worker is not self.state.model:
            for worker, master in zip(self.workers, self.masters, strict=True):
                worker.data.copy_(master.data)
        total, seen, weights = torch.zeros(()), [], None
        if isinstance(self.times, loss.AdaptiveTimes):
            weights = self.times.weight(t).to(x0)
        size = self.options.micro_batch or len(x0)
        for start in range(0, len(x0), size):
            part = slice(start, start + size)
            part_cond = None if cond is None else {name: value[part] for name, value in cond.items()}
            losses = self.objective(self.worker, x0[part], eps[part], t[part], part_cond)
            value = (losses if weights is None else losses * weights[part]).sum() / len(x0)
            value.backward()
            total += value.detach()
            seen.append(losses.detach())
        if not bool(total.isfinite()):
            raise FloatingPointError(_not_finite("loss", float(total), number))
        if self.worker is not self.state.model:
            set_gradients(self.masters, self.workers)
        norm = self.state.optimizer.step(number)
        if not np.isfinite(norm):
            raise FloatingPointError(_not_finite("gradient", norm, number))
        for parameter in self.masters:
            parameter.grad = None
        for ema in self.state.emas:
            ema.update(self.state.model.net, number)
        if isinstance(self.times, loss.AdaptiveTimes):
            self.times.update(t, torch.cat(seen))
        self.state.step = number
        return float(total), norm


def _not_finite(what: str, value: float, step: int) -> str:
    return (
        f"the {what} is {value} at step {step}, which was not applied; lower training.rate, or take training.precision=float32, "
        "and go on with --resume from the last checkpoint."
    )


def precision(choice: str) -> torch.dtype:
    """float32 or bfloat16: "auto" takes bfloat16 where the processor multiplies it natively."""
    if choice == "auto":
        return torch.bfloat16 if multiplies_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[choice]


def _worker(master: M, choice: str) -> M:
    """The model that computes gradients: the master itself, or a copy whose parameters are bfloat16 (buffers stay as they are)."""
    dtype = precision(choice)
    if dtype == torch.float32:
        return master
    worker = copy.deepcopy(master)
    for parameter in worker.net.parameters():
        parameter.data = parameter.data.to(dtype)
    return worker


def _batches(count: int, options: Training, done: int) -> Iterator[np.ndarray]:
    """Row numbers for each step after `done`: every epoch in an order of its own, epochs laid end to end."""
    position, order, epoch = done * options.batch, np.empty(0, dtype=np.int64), -1
    while True:
        rows: list[int] = []
        while len(rows) < options.batch:
            now, offset = divmod(position, count)
            if now != epoch:
                epoch, order = now, np.random.default_rng((options.seed, ORDER, now)).permutation(count)
            take = order[offset : offset + options.batch - len(rows)]
            rows.extend(take)
            position += len(take)
        yield np.array(rows)


def _coin(n: int, chance: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) < chance


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


def _refuse_changes(begun: Options, recipe: Options, out: Path) -> None:
    """Only what `recipe.MAY_CHANGE` lists may change on resuming."""
    wrong = begun.differences(recipe)
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{out} was begun with another recipe ({'; '.join(wrong[:5])}{more}); resume with the old one, or choose another --out."
        )


def refuse_other_data(manifest: Mapping[str, Any], out: Path) -> Form:
    """The form of the data as the run began, if they and the number format are still the same."""
    form, begun = read_form(out), json.loads((out / "manifest.json").read_text())
    for what, before, now in (
        ("data", begun.get("data", {}).get("fingerprint"), manifest["data"]["fingerprint"]),
        ("precision", begun.get("precision"), manifest["precision"]),
    ):
        if before != now:
            raise ValueError(f"{out} was begun with another {what} ({before} → {now}); bring the old one back, or choose another --out.")
    return form


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Holds the run folder's lock, which the system drops with the process however it ends.

    Raises:
        ValueError: another process holds it.
    """
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training into {out}; wait for it, stop it, or choose another --out.") from None
        yield


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


def manifest_of(recipe: Options, training: Training, dataset: Dataset, form: Form) -> dict[str, Any]:
    """What made the run: data, versions, machine, seeds."""
    return {
        "form": form.to_json(),
        "data": {
            "name": dataset.name,
            "examples": len(dataset),
            "fingerprint": dataset.fingerprint(),
            "held_out": training.held_out,
            "split_seed": training.seed,
            "skipped": list(dataset.skipped),
        },
        "recipe_sha256": hashlib.sha256(recipe.to_yaml().encode()).hexdigest(),
        "seed": training.seed,
        "precision": str(precision(training.precision)).removeprefix("torch."),
        "device": {"machine": platform.machine(), "processor": _processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("sfumato", "torch", "numpy", "safetensors")},
        "git_commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of sfumato's own checkout; None where it is installed otherwise, or git is not there."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=root)
    return head.stdout.strip() or None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


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
