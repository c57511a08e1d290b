"""Which networks use the kernels of this package: as configured, or if a measurement shows that they are faster."""

import json
import os
import statistics
import time

import torch
from torch import nn

from sfumato.kernels.build import HasKernel, compiled, kernel_folder
from sfumato.kernels.norm import GroupNorm
from sfumato.kernels.winograd import Conv3x3

ENOUGH_IMAGES = 20_000  # a shorter run does not save the compile time


def has_kernels(net: nn.Module) -> bool:
    """Whether a network has a module that our kernels can compute."""
    return any(isinstance(part, HasKernel) for part in net.modules())


def use(net: nn.Module, is_on: bool = True) -> None:
    """Turns the kernels on or off in every such module."""
    for part in net.modules():
        if isinstance(part, HasKernel):
            part.by_kernel = is_on


def is_wanted(choice: str, dtype: torch.dtype, device: torch.device, *, images: int, waits: bool = True) -> bool:
    """Whether a network should use the kernels: "auto" uses them if they are faster and there is enough work to pay for compiling.

    With `waits` false (they are already compiled) any amount of work is enough. Training always uses True: its results must not depend
    on what was compiled before.

    Raises:
        ValueError: "compiled" but they are not available.
    """
    can_be = device.type == "cpu" and dtype == torch.float32
    if choice == "compiled" and not (can_be and compiled()):
        why = (
            "the log says why they were not compiled"
            if can_be
            else f"they compute in float32 on CPUs, and this is {dtype} on {device.type}"
        )
        raise ValueError(f"the compiled kernels are not available: {why}; set kernels=torch.")
    return choice == "compiled" or (choice == "auto" and can_be and images >= (ENOUGH_IMAGES if waits else 1) and is_faster())


def is_faster() -> bool:
    """Whether they are faster than torch's on this machine, forward and backward; measured once and cached."""
    if not compiled():
        return False
    folder = kernel_folder()
    assert folder is not None
    path = folder / f"seconds-{torch.get_num_threads()}-threads.json"
    if not path.is_file():
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(_measured()))
        aside.replace(path)
    seconds = json.loads(path.read_text())
    return seconds["compiled"] < seconds["torch"]


def _measured(rounds: int = 7) -> dict[str, float]:
    """Median seconds of a normalised, activated convolution and its gradients, alternating: 16 maps of 128 channels, 16×16."""
    norm, conv = GroupNorm(32, 128).float(), Conv3x3(128, 128).float()
    x = torch.randn(16, 128, 16, 16, dtype=torch.float32).to(memory_format=torch.channels_last).requires_grad_()
    seconds: dict[str, list[float]] = {"torch": [], "compiled": []}
    with torch.enable_grad():
        for _ in range(rounds):
            for name, spent in seconds.items():
                conv.by_kernel = norm.by_kernel = name == "compiled"
                start = time.perf_counter()
                conv(norm(x, activates=True)).sum().backward()
                spent.append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in seconds.items()}
