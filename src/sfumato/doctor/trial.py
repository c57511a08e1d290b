"""A short trial of a training on the real data: whether the loss falls, the time of a step, the memory it needs.

The trial uses the full learning rate after a few steps of warm-up, in float32, without a guard, which would hide what it looks for. Time
and memory are for the recipe's batch; if that takes too long, a smaller batch is tried and the time scaled. On a processor, time is
processor time over the threads, so the forecast is for an idle machine, and does not depend on its present load.
"""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.data.source import DataSpec, Draw, Source
from sfumato.kernels import choice
from sfumato.memory import available_memory, kept_for_gradient
from sfumato.noise import seeded
from sfumato.runtime import compute_device, peak_memory
from sfumato.training.optim import Optimizer
from sfumato.training.prepare import wants_kernels

STEPS, WARMUP = 40, 10
LEAST = 16  # smallest batch of the trial, unless the recipe's is smaller
PROBE = 128  # examples, with one noise each, for the loss before and after
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Trial:
    """The results of a trial.

    Args:
        steps: number of steps, with batches of `batch`.
        seconds_per_step: for the recipe's batch.
        before: the loss on fixed examples, levels and noise, before the first step; nan if it is not finite.
        after: the same after the last step.
        moved: mean absolute change of the losses of single examples, relative to `before`.
        norms: of the gradients, before clipping.
        peak_bytes: predicted peak memory of the training.
        example_bytes: the part of it that each example in one forward pass adds.
        free_bytes: free memory of this machine.
        device: the device, in words.
    """

    steps: int
    batch: int
    seconds_per_step: float
    before: float
    after: float
    moved: float
    norms: tuple[float, ...]
    peak_bytes: int
    example_bytes: int
    free_bytes: int
    device: str


def try_out(recipe: Any, spec: DataSpec, source: Source, rows: np.ndarray, *, seconds: float) -> Trial:
    """Trains a copy of the recipe's model for at most `STEPS` steps and about `seconds` seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        return _Bench(recipe, spec, source, rows).run(seconds)


class _Bench:
    """A network, its optimiser and its batches, for the time of a trial."""

    def __init__(self, recipe: Any, spec: DataSpec, source: Source, rows: np.ndarray) -> None:
        self.recipe, self.options = recipe, recipe.training.model_copy(update={"warmup": WARMUP, "decay": "constant"})
        self.micro_batch = recipe.runtime.micro_batch
        self.source, self.rows, self.device = source, rows, compute_device()
        self.model = recipe.build(spec).to(self.device)
        self.net, self.state = recipe.trained(self.model), recipe.begin(self.model)
        choice.use(self.net, wants_kernels(recipe.runtime, self.options, spec.shape, self.device))
        self.optimizer = Optimizer(self.net, self.options)
        self.emas = len(recipe.training.ema)
        self.parameters = sum(p.numel() for p in self.net.parameters())

    def run(self, seconds: float) -> Trial:
        """Runs the trial."""
        free = available_memory(self.device)
        a_few = min(4, self.options.batch)
        self._timed(copy.deepcopy(self.model), a_few)  # the first call of a kernel is slow
        fixed, per_example = self._memory(a_few)
        taken, many = self._timed(self.model, a_few), min(LEAST * 4, self.options.batch)
        one = taken / a_few if taken * many / a_few > seconds / 4 else self._timed(self.model, many) / many
        slice_ = self.micro_batch or self.options.batch
        batch = self.options.batch
        batch = min(batch, max(LEAST, int(seconds / (STEPS * one))), max(1, int(0.5 * free / max(1, per_example))))
        before, durations, norms = self._probe(), [], []
        deadline = self._now() + seconds
        while len(norms) < STEPS and (len(norms) < 3 or self._now() < deadline):
            started = self._now()
            norms.append(self._step(len(norms) + 1, batch))
            durations.append(self._now() - started)
            if not math.isfinite(norms[-1]):
                break
        after = self._probe()
        return Trial(
            steps=len(norms),
            batch=batch,
            seconds_per_step=float(np.median(durations)) * self.options.batch / batch,
            before=float(before.mean()),
            after=float(after.mean()),
            moved=float((after - before).abs().mean() / before.mean()),
            norms=tuple(norms),
            peak_bytes=fixed + per_example * slice_,
            example_bytes=per_example,
            free_bytes=free,
            device=self.device.type,
        )

    def _loss(self, model: nn.Module, step: int, count: int) -> Tensor:
        """The loss of `count` examples, with the draws of a step."""
        options = self.options
        rows = self.rows[torch.randint(len(self.rows), (count,), generator=seeded(options.seed, step)).numpy()]
        draw = Draw(options.seed, step + 1, count, slice(0, count), drop=options.label_drop, drops=options.drop)
        return self.recipe.loss(model, self.source.batch(rows).to(self.device), draw, self.state).per_example

    def _now(self) -> float:
        """Seconds: wall-clock time for a GPU; for processors, this process's processor time divided by its threads."""
        return time.perf_counter() if self.device.type != "cpu" else time.process_time() / torch.get_num_threads()

    def _timed(self, model: nn.Module, count: int) -> float:
        """Seconds for the gradient of `count` examples."""
        started = self._now()
        loss = self._loss(model, 0, count).mean()
        loss.backward()
        float(loss.detach())  # waits for a GPU
        return self._now() - started

    @torch.no_grad()
    def _probe(self) -> Tensor:
        """The losses of the fixed examples."""
        self.model.eval()
        losses = self._loss(self.model, 0, PROBE).cpu().double()
        self.model.train()
        return losses

    def _step(self, number: int, count: int) -> float:
        """One step; the gradient's norm before clipping."""
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        size = min(count, self.micro_batch or count)
        for part in range(-(-count // size)):
            (self._loss(self.model, number * 1000 + part, size).mean() * size / count).backward()
        norm = float(nn.utils.clip_grad_norm_(self.optimizer.parameters, self.options.clip))
        if math.isfinite(norm):
            self.optimizer.step(number)
        return norm

    def _memory(self, count: int) -> tuple[int, int]:
        """Bytes that do not depend on the batch, and bytes for each example of a slice: what autograd keeps for the backward pass."""
        loss, kept = kept_for_gradient(lambda: self._loss(self.model, 0, count).mean(), self.net.parameters())
        loss.backward()
        copies = 2 + 2 + self.emas  # weights and gradients, AdamW's two moments, the averages
        base = self.parameters * FLOAT * copies
        if self.device.type == "cpu":
            base += peak_memory()
        return base, kept // count
