"""What training changes from step to step, and its way into a checkpoint and back."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from sfumato import loss
from sfumato.denoiser import CondLike
from sfumato.train import checkpoint
from sfumato.train.ema import Ema
from sfumato.train.guard import Guard
from sfumato.train.optim import Optimizer
from sfumato.train.recipe import Training
from sfumato.train.window import Window


@runtime_checkable
class HasNet(Protocol):
    """A model around a network whose weights are trained."""

    net: nn.Module


M = TypeVar("M", bound=HasNet)
Objective = Callable[[M, Tensor, Tensor, Tensor, CondLike | None], Tensor]  # (model, x0, eps, t, cond) to one loss an example


@dataclass
class TrainState(Generic[M]):
    """What training changes: the master weights, the optimiser, the averages, what times and guard have learned, the steps done."""

    model: M
    optimizer: Optimizer
    emas: list[Ema]
    times: loss.TimeSampler
    guard: Guard
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, model: M, options: Training, times: loss.TimeSampler) -> "TrainState[M]":
        """Before the first step."""
        emas = [Ema(model.net, width) for width in options.ema]
        return cls(model, Optimizer(model.net, options), emas, times, Guard(options.patience))

    def origin(self) -> Callable[[], None]:
        """Keeps the weights of the beginning; what is returned takes them up again, with a new optimiser and new averages."""
        weights = {name: value.clone() for name, value in self.model.net.state_dict().items()}
        times = copy.deepcopy(self.times.tensors()) if isinstance(self.times, loss.AdaptiveTimes) else None

        def restore() -> None:
            self.model.net.load_state_dict(weights)
            self.optimizer = Optimizer(self.model.net, self.optimizer.options)
            self.emas = [Ema(self.model.net, ema.width) for ema in self.emas]
            if times is not None and isinstance(self.times, loss.AdaptiveTimes):
                self.times.load(times)
            self.step = 0

        return restore

    def averaged(self) -> M:
        """A copy of the model with the first average's weights."""
        model = copy.deepcopy(self.model)
        model.net.load_state_dict(self.emas[0].tensors)
        model.net.eval().requires_grad_(False)
        return model

    def save(self, folder: Path, window: Window, keep: int) -> None:
        """Writes a checkpoint."""
        tensors = {**self._tensors(), "optimizer": self.optimizer.tensors()}
        state = {"step": self.step, "seconds": self.seconds, "window": window.to_json(), "guard": self.guard.to_json()}
        checkpoint.write(folder, self.step, tensors, state, keep=keep)

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """File stem to tensors, of all whose names and shapes the recipe settles."""
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self.model.net.state_dict()}
        tensors |= {ema.name: ema.tensors for ema in self.emas}
        if isinstance(self.times, loss.AdaptiveTimes):
            tensors["times"] = self.times.tensors()
        return tensors

    def snapshot(self, folder: Path) -> None:
        """Keeps the averages, for `reconstruct_ema`."""
        checkpoint.write(folder, self.step, {ema.name: ema.tensors for ema in self.emas}, {"step": self.step}, keep=None)

    def load(self, folder: Path) -> Window:
        """Takes up a checkpoint.

        Raises:
            CheckpointError: a file is missing, damaged, or of another network.
        """
        state, path = checkpoint.read_state(folder), folder / "state.json"
        try:
            self.step, self.seconds, window = int(state["step"]), float(state["seconds"]), Window.from_json(state["window"])
            self.guard.load(state["guard"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise checkpoint.damaged(path, error) from None
        takers = {"model": self.model.net.load_state_dict, "optimizer": self.optimizer.load} | {ema.name: ema.load for ema in self.emas}
        if isinstance(self.times, loss.AdaptiveTimes):
            takers["times"] = self.times.load
        held = self._tensors()
        for stem, take in takers.items():
            path = folder / f"{stem}.safetensors"
            tensors = checkpoint.read_tensors(path)
            try:
                for name, value in held.get(stem, {}).items():
                    if name not in tensors or tensors[name].shape != value.shape:
                        raise ValueError(f"{name} should be {list(value.shape)}")
                take(tensors)
            except (RuntimeError, KeyError, ValueError) as error:
                raise checkpoint.damaged(path, error) from None
        return window
