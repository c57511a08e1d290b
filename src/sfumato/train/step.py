"""One optimiser step: a batch, its levels and noise, the loss in slices, the update, the averages.

Nothing random is carried from step to step: the order of the data depends on (seed, epoch), and the levels, the noise, the dropped labels
and the flips of step n on (seed, n). So a checkpoint holds weights and averages, and a resumed run sees what an uninterrupted one would.
"""

import copy
from collections.abc import Iterator
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from sfumato import loss
from sfumato.data import Dataset
from sfumato.denoiser import drop
from sfumato.noise import seeded
from sfumato.runtime import multiplies_bfloat16
from sfumato.train.optim import set_gradients
from sfumato.train.recipe import Training
from sfumato.train.state import M, Objective, TrainState

ORDER, STEP, DROPOUT = 0, 1, 2  # what a seed is for: the order of an epoch, the randomness of a step, that inside a network


class TrainStep(Generic[M]):
    """One optimiser step: a batch, its levels and noise, the loss in slices, the update, the averages."""

    def __init__(self, state: TrainState[M], objective: Objective[M], examples: Dataset, options: Training) -> None:
        """Makes the model that computes gradients."""
        self.state, self.objective, self.examples, self.options = state, objective, examples, options
        self.times = state.times
        self.can_flip = options.flip and examples.is_image
        self.worker = _worker(state.model, options.precision)
        self.masters = list(state.model.net.parameters())
        self.workers = list(self.worker.net.parameters())
        self.batches = batches(len(examples), options, state.step)

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


def batches(count: int, options: Training, done: int) -> Iterator[np.ndarray]:
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
