"""Reads untrusted files: never more than fits in memory, and no pipe or device that might not end."""

import os
import stat
import tokenize
import zipfile
import zlib
from pathlib import Path

MOST_BYTES = 1 << 28  # for one image, one metadata file, one CIFAR pickle

# What NumPy and zipfile are known to raise on damaged files; MemoryError if a header claims too much.
NUMPY_DAMAGE = (ValueError, OSError, EOFError, RuntimeError, MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


def read_whole(path: str | Path) -> bytes:
    """The bytes of a file of at most `MOST_BYTES`.

    Raises:
        ValueError: for a larger file, or for a pipe, a device or the like.
        OSError: as the system says.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    refuse_large(status.st_size)
    with open(path, "rb") as file:
        return file.read(status.st_size)


def refuse_large(count: int) -> None:
    """Refuses a file that would fill the memory before its header is read."""
    if count > MOST_BYTES:
        raise ValueError(f"it must have at most {MOST_BYTES} bytes, got {count}")


def refuse_beyond_memory(count: int, path: str | Path) -> None:
    """Refuses to unpack more than this machine's memory.

    Raises:
        ValueError: for more bytes than there is memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count > memory:
        raise ValueError(
            f"{path} claims to unpack to {count / 1e9:.1f} GB, but this machine has {memory / 1e9:.1f} GB of memory; "
            "if that is correct, save it as an .npy file, which is read in pieces."
        )
