"""The processes and the device of a training: one process or many, on CPUs or GPUs, as `torchrun` or `accelerate launch` started them.

Every process makes the draws of the whole batch from the same seeds and computes its own share of it; losses and gradients are summed over
the processes once a step. So many processes make the same steps as one, up to the order of summation, and can resume each other's
checkpoints.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from sfumato.runtime import moved

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """The processes of a training and the device of this one."""

    accelerator: Accelerator
    precision: torch.dtype = torch.float32
    by_kernels: bool = False  # whether the network uses sfumato's kernels
    micro_batch: int | None = None  # examples in one forward pass
    compiles: bool = False  # whether the network is compiled with torch.compile

    @classmethod
    def begin(cls) -> "Engine":
        """Joins the other processes if the environment names some."""
        has_others, has_gpu = int(os.environ.get("WORLD_SIZE", "1")) > 1, torch.cuda.is_available()
        if has_others and not distributed.is_initialized():
            _meet("nccl" if has_gpu else "gloo")
        return cls(Accelerator(cpu=has_others and not has_gpu))  # otherwise accelerate does not connect CPU processes

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @property
    def processes(self) -> int:
        """The number of processes."""
        return self.accelerator.num_processes

    @property
    def was_restarted(self) -> bool:
        """Whether torchrun has restarted these processes after one was lost."""
        return _restarts() > 0

    def share(self, count: int) -> slice:
        """This process's rows of `count`."""
        return share_of(self.accelerator.process_index, self.processes, count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.processes == 1:
            return tensor
        total = self.accelerator.reduce(tensor, "sum")
        assert isinstance(total, Tensor)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over the processes, in place, in one message of the same length in all of them.

        Which parameters have a gradient may depend on a process's share of the batch (free nats are an example): one that is missing here
        counts as zero where another process has it.
        """
        if self.processes == 1:
            return
        parameters = list(parameters)
        dtype = None if self.device.type == "cpu" else torch.float32  # a learned schedule's gradients are on the CPU, in float64
        has_one = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = self.sum(torch.cat([has_one, *(moved(gradient.flatten(), self.device, dtype) for gradient in gradients)]))
        counts, *parts = total.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, count, part in zip(parameters, counts.tolist(), parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter) if count else None

    def any(self, is_so: bool) -> bool:
        """Whether it is true in at least one process."""
        return is_so if self.processes == 1 else bool(self.sum(torch.tensor(float(is_so), device=self.device)))

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all processes, concatenated along the first axis."""
        return array if self.processes == 1 else np.concatenate(gather_object([array]))

    def all_of(self, thing: T) -> list[T]:
        """What each process gives, in their order."""
        return [thing] if self.processes == 1 else gather_object([thing])

    def wait(self) -> None:
        """Waits for all processes."""
        self.accelerator.wait_for_everyone()


def _restarts() -> int:
    """How often torchrun has restarted these processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meet(backend: str) -> None:
    """Joins the others under a prefix for this start: torchrun may keep one store, which still holds the addresses of lost processes."""
    store, rank, processes = next(rendezvous("env://"))
    ours = distributed.PrefixStore(f"start-{_restarts()}", store)  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group(backend, store=ours, rank=rank, world_size=processes)
    atexit.register(distributed.destroy_process_group)  # otherwise its threads may still run when the process exits, which aborts it


def share_of(rank: int, processes: int, count: int) -> slice:
    """The rows of `count` of one process: consecutive, of sizes that differ by at most one."""
    return slice(rank * count // processes, (rank + 1) * count // processes)
