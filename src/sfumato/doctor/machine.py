"""What this machine computes on, and what it has left."""

import os
from pathlib import Path

import torch


def compute_device() -> torch.device:
    """Where training goes: the first GPU, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def available_memory(device: torch.device) -> int:
    """Bytes that a process can still take: of the GPU, or what the kernel says is available and a container may hold."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        known += [1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        known.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return min(known)
