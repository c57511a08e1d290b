"""The state that training changes, and its way to and from checkpoints."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato import storage
from sfumato.options import Training
from sfumato.task import State, Task
from sfumato.training.accumulator import Accumulator
from sfumato.training.ema import Ema
from sfumato.training.guard import Guard
from sfumato.training.optim import Optimizer


@dataclass
class TrainState:
    """What training changes: float32 weights, optimiser, averages, the task's and the guard's state, the number of steps done."""

    task: Task
    model: Any
    optimizer: Optimizer
    emas: list[Ema]
    learned: State | None
    guard: Guard
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, task: Task, model: nn.Module, options: Training) -> "TrainState":
        """Before the first step."""
        net = task.trained(model)
        emas = [Ema(net, width) for width in options.ema]
        return cls(task, model, Optimizer(net, options), emas, task.begin(model), Guard(options.patience))

    @property
    def net(self) -> nn.Module:
        """The trained weights."""
        return self.task.trained(self.model)

    def origin(self) -> Callable[[], None]:
        """Remembers the initial weights; the returned function restores them, with a new optimiser and new averages."""
        weights = {name: value.clone() for name, value in self.net.state_dict().items()}
        learned = None if self.learned is None else copy.deepcopy(self.learned.tensors())

        def restore() -> None:
            self.net.load_state_dict(weights)
            self.optimizer = Optimizer(self.net, self.optimizer.options)
            self.emas = [Ema(self.net, ema.width) for ema in self.emas]
            if learned is not None and self.learned is not None:
                self.learned.load(learned)
            self.step = 0

        return restore

    def averaged(self) -> Any:
        """A copy of the model with the first average's weights."""
        model = copy.deepcopy(self.model)
        self.task.trained(model).load_state_dict(self.emas[0].tensors)
        return model.eval().requires_grad_(False)

    def save(self, folder: Path, accumulator: Accumulator, keep: int) -> None:
        """Writes a checkpoint."""
        tensors = {**self._tensors(), "optimizer": self.optimizer.tensors()}
        state = {"step": self.step, "seconds": self.seconds, "window": accumulator.to_json(), "guard": self.guard.to_json()}
        storage.write(folder, self.step, tensors, state, keep=keep)

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """File stem to tensors, for all tensors whose names and shapes follow from the recipe."""
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self.net.state_dict()}
        tensors |= {ema.name: ema.tensors for ema in self.emas}
        return tensors if self.learned is None else {**tensors, "learned": self.learned.tensors()}

    def snapshot(self, folder: Path) -> None:
        """Saves the averages, for `reconstruct_ema`."""
        storage.write(folder, self.step, {ema.name: ema.tensors for ema in self.emas}, {"step": self.step}, keep=None)

    def load(self, folder: Path) -> Accumulator:
        """Loads a checkpoint.

        Raises:
            CheckpointError: a file is missing, damaged, or from another network.
        """
        state, path = storage.read_state(folder), folder / "state.json"
        try:
            self.step, self.seconds, accumulator = int(state["step"]), float(state["seconds"]), Accumulator.from_json(state["window"])
            self.guard.load(state["guard"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise storage.damaged(path, error) from None
        takers = {"model": self.net.load_state_dict, "optimizer": self.optimizer.load} | {ema.name: ema.load for ema in self.emas}
        if self.learned is not None:
            takers["learned"] = self.learned.load
        held = self._tensors()
        for stem, take in takers.items():
            path = folder / f"{stem}.safetensors"
            if stem == "learned" and not path.exists():
                path = folder / "times.safetensors"  # as version 0.1 called it
            tensors = storage.read_tensors(path)
            try:
                for name, value in held.get(stem, {}).items():
                    if name not in tensors or tensors[name].shape != value.shape:
                        raise ValueError(f"{name} should be {list(value.shape)}")
                take(tensors)
            except (RuntimeError, KeyError, ValueError) as error:
                raise storage.damaged(path, error) from None
        return accumulator
