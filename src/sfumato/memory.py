"""Available memory, the memory of a backward pass, and splitting work that does not fit."""

import logging
import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
T = TypeVar("T")


def available_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate: on the GPU, or what the kernel reports, limited by a container or ulimit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo, held = Path("/proc/meminfo"), Path("/proc/self/statm")
    if meminfo.is_file():
        known += [1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        known.append(max(0, int(limit.read_text()) - int(used.read_text())))
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses != resource.RLIM_INFINITY and held.is_file():
        known.append(max(0, addresses - int(held.read_text().split()[0]) * resource.getpagesize()))
    return min(known)


def kept_for_gradient(loss: Callable[[], Tensor], parameters: Iterable[Tensor]) -> tuple[Tensor, int]:
    """A loss, and the bytes that autograd keeps for its backward pass, without the parameters."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()
    return value, sum(kept.values())


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be allocated."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halving(compute: Callable[[int], T], size: int, what: str) -> tuple[T, int]:
    """The result of `compute(size)` for the first of size, size/2, … that fits in memory, and that size; logs a smaller one.

    Raises:
        MemoryError: not even size 1 fits.
    """
    while True:
        try:
            return compute(size), size
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            if size == 1:
                raise MemoryError(
                    f"there is not enough memory for a single {what} of this model; free some memory, or use a smaller model."
                ) from error
        logger.warning("There is not enough memory for %d %ss at once; continuing with %d.", size, what, -(-size // 2))
        size = -(-size // 2)


def by_parts(draw: Callable[[slice], Tensor], count: int, size: int, on_part: Callable[[int], None] | None = None) -> list[Tensor]:
    """The results of `draw` for consecutive slices of `count` samples, each of at most `size` and smaller if memory is short, on the CPU.

    Args:
        draw: returns the samples of a slice.
        count: number of samples.
        size: largest slice.
        on_part: called after each slice with the number done.

    Raises:
        MemoryError: not even one fits.
    """
    done: list[Tensor] = []
    start = 0
    while start < count:
        part, size = halving(lambda size, start=start: draw(slice(start, min(start + size, count))).cpu(), size, "sample")
        done.append(part)
        start += len(part)
        if on_part is not None:
            on_part(start)
    return done
