"""The training loop: data → level → denoiser → loss → weights, with checkpoints from which it goes on as if never stopped.

Nothing random is carried from step to step: the order of the data depends on (seed, epoch), and the levels, the noise, the dropped labels
and the flips of step n on (seed, n). So a checkpoint holds weights and averages, and a resumed run sees what an uninterrupted one would.
"""

import copy
import hashlib
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from sfumato import loss
from sfumato.data import Dataset
from sfumato.denoiser import Denoiser, drop
from sfumato.noise import seeded
from sfumato.pictures import picture
from sfumato.run import Form, Run, build_denoiser
from sfumato.train import checkpoint
from sfumato.train.ema import Ema
from sfumato.train.optim import Optimizer, set_gradients
from sfumato.train.recipe import Recipe, Training, load_recipe

ORDER, STEP = 0, 1  # what a seed is for: the order of an epoch, the randomness of a step


@dataclass
class TrainState:
    """What training changes: the master weights, the optimiser, the averages, and how many steps are done."""

    denoiser: Denoiser
    optimizer: Optimizer
    emas: list[Ema]
    step: int = 0
    seconds: float = 0.0

    def save(self, folder: Path, window: "Window", keep: int) -> None:
        """Writes a checkpoint."""
        tensors = {"model": self.denoiser.net.state_dict(), "optimizer": self.optimizer.tensors()}
        tensors |= {ema.name: ema.tensors for ema in self.emas}
        state = {"step": self.step, "seconds": self.seconds, "window": [window.losses, window.norms]}
        checkpoint.write(folder, self.step, tensors, state, keep=keep)

    def load(self, folder: Path) -> "Window":
        """Takes up a checkpoint."""
        state = checkpoint.read_state(folder)
        self.step, self.seconds = state["step"], state["seconds"]
        self.denoiser.net.load_state_dict(checkpoint.read_tensors(folder / "model.safetensors"))
        self.optimizer.load(checkpoint.read_tensors(folder / "optimizer.safetensors"))
        for ema in self.emas:
            ema.load(checkpoint.read_tensors(folder / f"{ema.name}.safetensors"))
        return Window(*state["window"])


@dataclass
class Window:
    """Losses and gradient norms since the last line of metrics.jsonl."""

    losses: list[float]
    norms: list[float]


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    watch: Callable[[dict[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Trains a recipe into the run folder `out` and returns it.

    Args:
        recipe: what to train.
        out: RUN, as the design of the run folder says.
        resume: go on from the newest checkpoint of `out`, or begin where there is none.
        watch: called with each line of metrics.jsonl.
        say: called with a sentence now and then.

    Raises:
        ValueError: `out` holds a run already, or a run of another recipe; data that cannot be trained on.
        CheckpointError: a damaged checkpoint.
    """
    options = recipe.training
    has_run = (out / "recipe.yaml").is_file()
    if has_run and not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
    if has_run:
        _refuse_changes(recipe, out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no run folder; choose another --out.")
    dataset = recipe.data.load()
    if dataset.skipped:
        say(f"Left out {len(dataset.skipped)} files that could not be read: {', '.join(dataset.skipped[:5])}.")
    examples, _ = dataset.split(options.held_out, options.seed) if options.held_out else (dataset, None)
    form = Form(dataset.shape, dataset.classes, dataset.scaling, _standard_deviation(examples))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        denoiser = build_denoiser(recipe, form)
    state = TrainState(denoiser, Optimizer(denoiser.net, options), [Ema(denoiser.net, width) for width in options.ema])
    window = Window([], [])
    checkpoints = out / "checkpoints"
    if has_run and checkpoint.steps_in(checkpoints):
        window = state.load(checkpoint.latest(out))
        say(f"Resuming {out} after step {state.step} of {options.steps}.")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "manifest.json", json.dumps(_manifest(recipe, dataset, form, denoiser.net), indent=2, ensure_ascii=False))
    _write(out / "recipe.yaml", recipe.to_yaml())
    _cut_metrics(out / "metrics.jsonl", state.step)
    with closing(SummaryWriter(str(out / "tensorboard"), purge_step=state.step + 1)) as board, (out / "metrics.jsonl").open("a") as metrics:
        started = time.perf_counter() - state.seconds
        step_once = _Step(recipe, examples, form, state)
        with torch.random.fork_rng():
            while state.step < options.steps:
                value, norm = step_once()
                window.losses.append(value)
                window.norms.append(norm)
                if state.step % options.log_every == 0 or state.step == options.steps:
                    state.seconds = time.perf_counter() - started
                    record = _record(state, window, options)
                    if not np.isfinite(record["loss"]):
                        raise FloatingPointError(
                            f"the loss is {record['loss']} at step {state.step}; the last good checkpoint is kept: "
                            "lower training.rate or take training.precision=float32."
                        )
                    metrics.write(json.dumps(record) + "\n")
                    metrics.flush()
                    for name, number in record.items():
                        if name not in ("step", "seconds"):
                            board.add_scalar(name, number, state.step)
                    if watch is not None:
                        watch(record)
                    window = Window([], [])
                if state.step % options.checkpoint_every == 0 or state.step == options.steps:
                    state.seconds = time.perf_counter() - started
                    state.save(checkpoints, window, options.keep)
                    _draw(Run(str(out), recipe, form, _averaged(state)), out / "samples" / f"{state.step:08d}.png")
    _write(out / "report.json", json.dumps(_report(state, options), indent=2))
    return out


class _Step:
    """One optimiser step: a batch, its levels and noise, the loss in slices, the update, the averages."""

    def __init__(self, recipe: Recipe, examples: Dataset, form: Form, state: TrainState) -> None:
        self.options = recipe.training
        self.state = state
        self.examples = examples
        self.times = recipe.objective.times.build(recipe.schedule.build())
        self.schedule = recipe.schedule.build()
        self.weight = recipe.objective.build_weight(form.data_std)
        self.has_labels = bool(form.classes)
        self.can_flip = recipe.training.flip and examples.is_image
        self.worker = _worker(state.denoiser, recipe.training.precision)
        self.masters = list(state.denoiser.net.parameters())
        self.workers = list(self.worker.net.parameters())
        self.batches = _batches(len(examples), recipe.training, state.step)

    def __call__(self) -> tuple[float, float]:
        """Makes the step; returns its loss and gradient norm."""
        number = self.state.step + 1
        generator = seeded(self.options.seed, STEP, number)
        torch.manual_seed(generator.initial_seed())  # dropout inside a network has no generator of its own
        x0, labels = self.examples.batch(next(self.batches))
        if self.can_flip:
            x0 = torch.where(_coin(len(x0), 0.5, generator).reshape(-1, 1, 1, 1), x0.flip(-1), x0)
        cond = None
        if self.has_labels and labels is not None:
            cond = drop({"labels": labels}, _coin(len(x0), self.options.label_drop, generator))
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        level = self.schedule.level(self.times(len(x0), generator), like=x0)
        if self.worker is not self.state.denoiser:
            for worker, master in zip(self.workers, self.masters, strict=True):
                worker.data.copy_(master.data)
        total = torch.zeros(())
        size = self.options.micro_batch or len(x0)
        for start in range(0, len(x0), size):
            part = slice(start, start + size)
            part_cond = None if cond is None else {name: value[part] for name, value in cond.items()}
            part_level = type(level)(level.alpha[part], level.sigma[part])
            value = loss.simple(self.worker, x0[part], eps[part], part_level, part_cond, weight=self.weight).sum() / len(x0)
            value.backward()
            total += value.detach()
        if self.worker is not self.state.denoiser:
            set_gradients(self.masters, self.workers)
        norm = self.state.optimizer.step(number)
        for parameter in self.masters:
            parameter.grad = None
        for ema in self.state.emas:
            ema.update(self.state.denoiser.net, number)
        self.state.step = number
        return float(total), norm


def precision(choice: str) -> torch.dtype:
    """float32 or bfloat16: "auto" takes bfloat16 where the machine multiplies it natively.

    Raises:
        ValueError: bfloat16 asked for on a GPU that lacks it.
    """
    if choice == "auto":
        native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native and (torch.cuda.is_available() or _has_bf16_instructions()) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[choice]


def _has_bf16_instructions() -> bool:
    path = Path("/proc/cpuinfo")
    return path.is_file() and any(flag in path.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def _worker(master: Denoiser, choice: str) -> Denoiser:
    """The denoiser that computes gradients: the master itself, or a copy whose parameters are bfloat16 (buffers stay as they are)."""
    dtype = precision(choice)
    if dtype == torch.float32:
        return master
    worker = copy.deepcopy(master)
    for parameter in worker.parameters():
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


def _record(state: TrainState, window: Window, options: Training) -> dict[str, float | int]:
    images = state.step * options.batch
    return {
        "step": state.step,
        "seconds": round(state.seconds, 3),
        "images": images,
        "loss": float(np.mean(window.losses)),
        "gradient_norm": float(np.mean(window.norms)),
        "learning_rate": options.rate * state.optimizer.rate(state.step),
        "images_per_second": round(images / state.seconds, 1),
    }


def _averaged(state: TrainState) -> Denoiser:
    """A copy of the denoiser with the first average's weights."""
    denoiser = copy.deepcopy(state.denoiser)
    denoiser.net.load_state_dict(state.emas[0].tensors)
    return denoiser.eval().requires_grad_(False)


def _draw(run: Run, path: Path) -> None:
    """The sample sheet: fixed noise, one class a column; nothing for data without a picture."""
    if len(run.form.shape) != 3 and run.form.shape != (2,):
        return
    classes = len(run.form.classes)
    count = 2000 if run.form.shape == (2,) else 8 * min(classes, 20) if classes else 64
    samples = run.sample(count, batch=64 if len(run.form.shape) == 3 else count)
    path.parent.mkdir(exist_ok=True)
    picture(samples.values, columns=min(classes, 20) or None).save(path)


def _standard_deviation(examples: Dataset) -> float:
    """Of all entries of x0 together, measured on up to 10,000 examples."""
    x0, _ = examples.batch(np.random.default_rng(0).permutation(len(examples))[:10_000])
    deviation = float(x0.std())
    if not deviation > 0:
        raise ValueError("all the data are one constant, so there is nothing to learn; check the path and the range of the data.")
    return deviation


def _refuse_changes(recipe: Recipe, out: Path) -> None:
    """The length of a run may change on resuming, nothing else."""
    found = load_recipe(out / "recipe.yaml").differences(recipe)
    wrong = [line for line in found if not line.startswith("about:")]
    if wrong:
        raise ValueError(f"{out} was begun with another recipe ({'; '.join(wrong[:5])}); resume with the old one, or choose another --out.")


def _cut_metrics(path: Path, step: int) -> None:
    """Drops the lines after `step`, which a resumed run writes again, and a last line that was cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    _write(path, "".join(kept))


def _write(path: Path, text: str) -> None:
    """Writes aside and renames."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    aside.replace(path)


def _manifest(recipe: Recipe, dataset: Dataset, form: Form, net: nn.Module) -> dict[str, Any]:
    """What made the run: data, versions, machine, seeds."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return {
        "form": form.to_json(),
        "data": {
            "name": dataset.name,
            "examples": len(dataset),
            "fingerprint": dataset.fingerprint(),
            "held_out": recipe.training.held_out,
            "split_seed": recipe.training.seed,
            "skipped": list(dataset.skipped),
        },
        "recipe_sha256": hashlib.sha256(recipe.to_yaml().encode()).hexdigest(),
        "seed": recipe.training.seed,
        "parameters": sum(p.numel() for p in net.parameters()),
        "precision": str(precision(recipe.training.precision)).removeprefix("torch."),
        "device": {"machine": platform.machine(), "processor": _processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("sfumato", "torch", "numpy", "safetensors")},
        "git_commit": commit.stdout.strip() or None,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _report(state: TrainState, options: Training) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "steps": state.step,
        "images": state.step * options.batch,
        "seconds": round(state.seconds, 1),
        "images_per_second": round(state.step * options.batch / state.seconds, 1),
        "parameters": sum(p.numel() for p in state.denoiser.net.parameters()),
        "peak_memory_bytes": peak,
    }
