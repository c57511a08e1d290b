"""What training changes from step to step, and its way into a checkpoint and back."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from sfumato import loss
from sfumato.denoiser import Cond
from sfumato.train import checkpoint
from sfumato.train.ema import Ema
from sfumato.train.optim import Optimizer
from sfumato.train.recipe import Training


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
