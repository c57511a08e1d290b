"""What the machine can do, and what it is asked for before heavy work."""

import ctypes
import sys
from functools import cache
from pathlib import Path


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; where it does not, float32 is far faster."""
    path = Path("/proc/cpuinfo")
    return path.is_file() and any(flag in path.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def keep_memory() -> None:
    """Asks glibc to keep freed memory instead of returning it, so that large temporaries cost no page faults; elsewhere does nothing.

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
