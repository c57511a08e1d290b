"""Properties of the machine, and settings made before heavy work."""

import ctypes
import os
import platform
import resource
import shutil
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

COPIES_AT_ONCE = {"cuda"}  # devices that take ordinary memory into a buffer of their own before an asynchronous copy returns


@cache
def processor(fact: str) -> str:
    """A fact on the processor from Linux, as "model name" or "flags"; elsewhere Python's name for it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(fact)), platform.processor())


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; otherwise float32 is far faster."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor("flags").split())


def compute_device() -> torch.device:
    """The device for heavy work: the first GPU, Apple's GPU, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 on a CPU; float32 on other devices, because Apple's GPUs have no float64."""
    return torch.float64 if device.type == "cpu" else torch.float32


def moved(tensor: Tensor, like: Tensor | torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, or with the dtype and device of another tensor; copies to a device are asynchronous where that is safe."""
    device = like if isinstance(like, torch.device) else like.device
    dtype = like.dtype if dtype is None and isinstance(like, Tensor) else dtype
    if tensor.device.type == "cpu" and dtype is not None:
        tensor = tensor.to(dtype)  # before the copy: not every device has the dtype that it comes from
    is_safe = device.type in COPIES_AT_ONCE and tensor.device.type == "cpu"
    return tensor.to(device=device, dtype=dtype, non_blocking=is_safe)


def compile_networks(module: nn.Module, device: torch.device) -> None:
    """Compiles the networks in a module with `torch.compile`, in place. Weights keep their names, copies are not compiled.

    Raises:
        ValueError: there is no C++ compiler, which code for a CPU needs.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))):
        raise ValueError("torch.compile needs a C++ compiler for the CPU, and none was found; install g++, or leave compile off.")
    if type(module).forward is nn.Module.forward:  # it only holds other modules
        for child in module.children():
            compile_networks(child, device)
    else:
        module.compile()


def seed_everywhere(seed: int, device: torch.device) -> None:
    """Seeds the global generators of the CPU and of this device, like `torch.manual_seed`, but without the stack trace that it records."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def precision(choice: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16: "auto" is bfloat16 if the device multiplies it natively."""
    if choice == "auto":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else multiplies_bfloat16()
        return torch.bfloat16 if is_fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[choice]


def keep_memory() -> None:
    """Asks glibc to keep freed memory instead of returning it, so that large temporaries cost no page faults; no effect elsewhere.

    A freshly mapped 32 MB tensor takes longer to fault in than to fill.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cache_folder() -> Path | None:
    """The cache folder, from the environment; None if SFUMATO_CACHE is empty."""
    where = os.environ.get("SFUMATO_CACHE")
    if where is not None:
        return Path(where).expanduser() if where else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"
