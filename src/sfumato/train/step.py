"""One optimiser step: a batch, its levels and noise, the loss in slices, the update, the averages.

Nothing random is carried from step to step: the order of the data depends on (seed, epoch), and the levels, the noise, the dropped labels
and the flips of step n on (seed, n). So a checkpoint holds weights and averages, and a resumed run sees what an uninterrupted one would.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from sfumato import condition, loss
from sfumato.data import Dataset
from sfumato.kernels import choice
from sfumato.memory import available_memory, halving, kept_for_gradient
from sfumato.noise import seeded
from sfumato.train.engine import Engine
from sfumato.train.optim import set_gradients
from sfumato.train.recipe import Training
from sfumato.train.state import M, Objective, TrainState

logger = logging.getLogger(__name__)

ORDER, STEP, DROPOUT, NOISE = range(4)  # what a seed is for: the order of an epoch, the randomness of a step, that inside a network, eps
BLOCK = 64  # rows whose noise has one generator, so that a process draws little more than its share
FEW = 4  # examples by which the memory of a batch is foreseen


@dataclass(frozen=True)
class Outcome:
    """What a step saw; `objection` says why it was not applied, where it was not."""

    loss: float
    norm: float
    rows: np.ndarray  # of the data set, [b]
    t: Tensor  # [b]
    losses: Tensor  # [b]
    objection: str | None


class TrainStep(Generic[M]):
    """One optimiser step: a batch, its levels and noise, the loss in slices, the update, the averages."""

    def __init__(self, state: TrainState[M], objective: Objective[M], examples: Dataset, options: Training, engine: Engine) -> None:
        """Makes the model that computes gradients."""
        self.state, self.objective, self.examples, self.options, self.engine = state, objective, examples, options, engine
        self.times = state.times
        self.can_flip = options.flip and examples.is_image
        self.worker = _worker(state.model, engine.precision)
        choice.use(self.worker.net, engine.by_kernels)
        self.masters = list(state.model.net.parameters())
        self.workers = list(self.worker.net.parameters())
        self.batches = batches(len(examples), options, state.step)
        self.size: int | None = None  # how many examples go through the network at once; found at the first step

    def __call__(self) -> Outcome:
        """Makes the step, unless the guard objects to it."""
        number, rows, device = self.state.step + 1, next(self.batches), self.engine.device
        generator, count = seeded(self.options.seed, STEP, number), len(rows)
        mine = self.engine.share(count)
        flipped, dropped = _coin(count, 0.5, generator), _coin(count, self.options.label_drop, generator)
        t = self.times(count, generator)
        x0, labels = self.examples.batch(rows[mine])
        if self.can_flip:
            x0 = torch.where(flipped[mine].reshape(-1, 1, 1, 1), x0.flip(-1), x0)
        cond = None if labels is None else condition.drop({"labels": labels}, dropped[mine])
        eps = _noise(x0, mine, count, lambda block: seeded(self.options.seed, NOISE, number, block))
        if self.worker is not self.state.model:
            for worker, master in zip(self.workers, self.masters, strict=True):
                worker.data.copy_(master.data)
        weights = self.times.weight(t).to(x0) if isinstance(self.times, loss.AdaptiveTimes) else torch.ones(())

        def each(part: slice) -> Tensor:
            part_cond = condition.to(condition.take(cond, part), device)
            return self.objective(self.worker, x0[part].to(device), eps[part].to(device), t[mine][part].to(device), part_cond)

        def gradients(size: int) -> Tensor:
            torch.manual_seed(seeded(self.options.seed, DROPOUT, number, mine.start).initial_seed())  # dropout takes no generator
            for parameter in self.workers:
                parameter.grad = None
            losses = torch.zeros(count)
            for part in (slice(start, start + size) for start in range(0, len(x0), size)):
                found = each(part)
                weighted = found * weights[mine][part].to(found) if weights.ndim else found
                (weighted.sum() / count).backward()
                losses[mine][part] = found.detach().float().cpu()
            return losses

        if self.size is None:
            self.size = self._fitting(each, min(self.engine.micro_batch or len(x0), len(x0)))
        losses, self.size = halving(gradients, self.size, "example")
        losses = self.engine.sum(losses.to(device)).cpu()
        total = float((losses * weights).mean())
        if self.worker is not self.state.model:
            set_gradients(self.masters, self.workers)
        self.engine.sum_gradients(self.masters)
        norm = self.state.optimizer.clip()
        objection = self.state.guard.objection(total, norm)
        if objection is None:
            self._apply(number, t, losses)
            self.state.guard.accept(total)
        for parameter in self.masters:
            parameter.grad = None
        self.state.step = number
        return Outcome(total, norm, rows, t, losses, objection)

    def _fitting(self, loss: Callable[[slice], Tensor], size: int) -> int:
        """The size, or as often half of it as it takes until what autograd keeps fits in eight tenths of the memory, by a few examples."""
        if size < 2:
            return max(1, size)
        few = min(FEW, size)
        _, kept = kept_for_gradient(lambda: loss(slice(few)), self.workers)
        free = available_memory(self.engine.device)
        fitting = size
        while fitting > 1 and kept / few * fitting > 0.8 * free:
            fitting = -(-fitting // 2)
        if fitting < size:
            logger.warning(
                "A part of %d examples would keep %.1f GiB, and %.1f are free: going in parts of %d, which add up to the same step.",
                *(size, kept / few * size / 2**30, free / 2**30, fitting),
            )
        return fitting

    def _apply(self, number: int, t: Tensor, losses: Tensor) -> None:
        """Moves the weights and all that follows them."""
        self.state.optimizer.step(number, self.state.guard.rate)
        for ema in self.state.emas:
            ema.update(self.state.model.net, number)
        if isinstance(self.times, loss.AdaptiveTimes):
            self.times.update(t, losses)


def _noise(x: Tensor, rows: slice, count: int, generator: Callable[[int], torch.Generator]) -> Tensor:
    """Standard normal noise like x, which are these rows of a batch of `count`: the same whichever process asks for them."""
    drawn = [x[:0]]
    for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
        first = block * BLOCK
        noise = torch.randn((min(BLOCK, count - first), *x.shape[1:]), generator=generator(block), dtype=x.dtype)
        drawn.append(noise[max(0, rows.start - first) : rows.stop - first])
    return torch.cat(drawn)


def _worker(master: M, dtype: torch.dtype) -> M:
    """The model that computes gradients: the master itself, or a copy whose parameters are bfloat16 (buffers stay as they are)."""
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
