"""One optimiser step: a batch, its loss in parts, the update, the averages.

Nothing random is carried from step to step: the order of the data depends on (seed, epoch), and every draw of step n on (seed, n). So a
checkpoint holds weights and averages, and a resumed run sees what an uninterrupted one would.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.source import DROPOUT, Batch, Draw, Source, Stream
from sfumato.engine import Engine
from sfumato.kernels import choice
from sfumato.memory import available_memory, halving, kept_for_gradient
from sfumato.noise import seeded
from sfumato.options import Training
from sfumato.runtime import compile_networks, moved, seed_everywhere
from sfumato.task import LossTerms
from sfumato.training.optim import set_gradients
from sfumato.training.state import TrainState

logger = logging.getLogger(__name__)

ORDER = 0  # what a seed is for, beside what `Draw` takes it for: the order of an epoch
FEW = 4  # examples by which the memory of a batch is foreseen


@dataclass(frozen=True)
class StepResult:
    """What a step saw; `objection` says why it was not applied, where it was not."""

    loss: float
    norm: float
    rows: np.ndarray | None  # of the source, [b]; None of a stream
    batch: Batch  # this process's share
    terms: LossTerms  # of the whole batch
    objection: str | None


class TrainStep:
    """One optimiser step: a batch, its loss in parts, the update, the averages."""

    def __init__(self, state: TrainState, examples: Source | Stream, options: Training, engine: Engine) -> None:
        """Makes the model that computes gradients."""
        self.state, self.task, self.options, self.engine = state, state.task, options, engine
        self.worker = _compute_copy(state, engine.precision)
        net = self.task.trained(self.worker)
        choice.use(net, engine.by_kernels)
        if engine.compiles:
            compile_networks(net, engine.device)
        self.fp32_params = list(state.net.parameters())
        self.compute_params = list(net.parameters())
        self.batches = self._of_stream(examples) if isinstance(examples, Stream) else self._of_source(examples)
        self.size: int | None = None  # how many examples go through the network at once; found at the first step

    def __call__(self) -> StepResult:
        """Makes the step, unless the guard objects to it."""
        state, engine = self.state, self.engine
        rows, count, batch, draw = next(self.batches)
        batch = batch.to(engine.device)
        if self.worker is not state.model:
            for compute, master in zip(self.compute_params, self.fp32_params, strict=True):
                compute.data.copy_(master.data)

        def terms_of(part: slice) -> LossTerms:
            is_whole = part.stop - part.start >= len(batch)
            return self.task.loss(self.worker, batch if is_whole else batch[part], draw if is_whole else draw[part], state.learned)

        def gradients(size: int) -> LossTerms:
            seed = seeded(self.options.seed, DROPOUT, draw.step, draw.rows.start).initial_seed()
            seed_everywhere(seed, engine.device)  # dropout takes no generator
            for parameter in self.compute_params:
                parameter.grad = None
            seen = []
            for part in (slice(start, start + size) for start in range(0, len(batch), size)):
                terms = terms_of(part)
                self._refuse_misfit(terms, min(part.stop, len(batch)) - part.start)
                found = terms.per_example
                weighted = found if terms.weight is None else found * moved(terms.weight, found)
                (weighted.sum() / count).backward()
                seen.append(LossTerms.merge(lambda values: values[0].detach().float(), [terms]))
            return seen[0] if len(seen) == 1 else LossTerms.merge(torch.cat, seen)

        if self.size is None:
            self.size = self._fitting(terms_of, min(engine.micro_batch or len(batch), len(batch)))
        mine, self.size = halving(gradients, self.size, "example")
        if self.worker is not state.model:
            set_gradients(self.fp32_params, self.compute_params)
        engine.sum_gradients(self.fp32_params)
        terms, norm = self._seen(mine, state.optimizer.clip(), draw)
        losses = terms.per_example if terms.weight is None else terms.per_example * terms.weight
        total = float(losses.mean())
        objection = state.guard.objection(total, norm)
        if objection is None:
            self._apply(terms, draw)
            state.guard.accept(total)
        for parameter in self.fp32_params:
            parameter.grad = None
        state.step = draw.step
        return StepResult(total, norm, rows, batch, terms, objection)

    def _seen(self, mine: LossTerms, norm: Tensor, draw: Draw) -> tuple[LossTerms, float]:
        """What the guard judges, on the CPU: numbers of the whole batch, and the gradient's norm. It is all that a step waits for."""
        columns: list[Tensor] = [norm.reshape(1)]

        def place(values: list[Tensor]) -> Tensor:
            columns.append(self._whole(values[0], draw))
            return columns[-1]

        whole = LossTerms.merge(place, [mine])
        if self.engine.device.type == "cpu":
            return whole, float(norm)
        far = [column.flatten().float() for column in columns if column.device.type != "cpu"]
        back = iter(torch.cat(far).cpu().split([len(column) for column in far]))
        near = iter([column if column.device.type == "cpu" else next(back) for column in columns])
        norm = next(near)
        return LossTerms.merge(lambda _: next(near), [whole]), float(norm)

    def _whole(self, values: Tensor, draw: Draw) -> Tensor:
        """One number an example of the whole batch, of those of this process's share."""
        if self.engine.processes == 1:
            return values
        whole = torch.zeros(draw.count, device=self.engine.device)
        whole[draw.rows] = moved(values, whole)
        return self.engine.sum(whole)

    def _refuse_misfit(self, terms: LossTerms, count: int) -> None:
        if terms.per_example.shape != (count,):
            raise ValueError(
                f"the loss of {type(self.task).__name__} must be one number an example, [{count}], got shape "
                f"{tuple(terms.per_example.shape)}; average over the entries of an example, not over examples."
            )

    def _fitting(self, terms_of: Callable[[slice], LossTerms], size: int) -> int:
        """The size, or as often half of it as it takes until what autograd keeps fits in eight tenths of the memory, by a few examples."""
        if size < 2:
            return max(1, size)
        few = min(FEW, size)
        _, kept = kept_for_gradient(lambda: terms_of(slice(0, few)).per_example, self.compute_params)
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

    def _apply(self, terms: LossTerms, draw: Draw) -> None:
        """Moves the weights and all that follows them."""
        state = self.state
        if state.learned is not None:
            self.task.update(state.learned, terms, self._draw(draw.step, draw.count, slice(0, draw.count)))
        state.optimizer.step(draw.step, state.guard.rate)
        for ema in state.emas:
            ema.update(state.net, draw.step)

    def _draw(self, step: int, count: int, rows: slice) -> Draw:
        options = self.options
        return Draw(options.seed, step, count, rows, drop=options.label_drop, drops=options.drop, flip=options.flip)

    def _of_source(self, examples: Source) -> Iterator[tuple[np.ndarray | None, int, Batch, Draw]]:
        """Rows, the size of the whole batch, this process's share of it and its draws, for each step that is left."""
        for step, rows in enumerate(orders(len(examples), self.options, self.state.step), start=self.state.step + 1):
            mine = self.engine.share(len(rows))
            draw = self._draw(step, len(rows), mine)
            yield rows, len(rows), examples.batch(rows[mine], draw), draw

    def _of_stream(self, examples: Stream) -> Iterator[tuple[np.ndarray | None, int, Batch, Draw]]:
        """As `_of_source`; every process reads the whole stream and takes its share."""
        for step, batch in enumerate(examples.batches(self.state.step), start=self.state.step + 1):
            mine = self.engine.share(len(batch))
            yield None, len(batch), batch[mine], self._draw(step, len(batch), mine)
        raise ValueError(f"{examples.name} ended before step {self.options.steps}; give an iterable that goes on, or set training.steps.")


def _compute_copy(state: TrainState, dtype: torch.dtype) -> Any:
    """The model that computes gradients: the master itself, or a copy whose parameters are bfloat16 (buffers stay as they are)."""
    if dtype == torch.float32:
        return state.model
    worker = copy.deepcopy(state.model)
    for parameter in state.task.trained(worker).parameters():
        parameter.data = parameter.data.to(dtype)
    return worker


def orders(count: int, options: Training, done: int) -> Iterator[np.ndarray]:
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
