"""Reading files that nobody has checked: never more than the memory holds, never a pipe or a device that would not end."""

import os
import stat
import tokenize
import zipfile
import zlib
from pathlib import Path

MOST_BYTES = 1 << 28  # of one image, one metadata file, one pickle of CIFAR

# What NumPy and zipfile are known to raise on damaged files; MemoryError where a header claims more than there is.
NUMPY_DAMAGE = (ValueError, OSError, EOFError, RuntimeError, MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


def read_whole(path: str | Path) -> bytes:
    """The bytes of a file of at most `MOST_BYTES`.

    Raises:
        ValueError: for a larger file, or one that is no file but a pipe, a device or the like.
        OSError: as the system says.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no ordinary file")
    refuse_large(status.st_size)
    with open(path, "rb") as file:
        return file.read(status.st_size)


def refuse_large(count: int) -> None:
    """Refuses a file that would fill the memory before anything has seen its header."""
    if count > MOST_BYTES:
        raise ValueError(f"it may have {MOST_BYTES} bytes, got {count}")


def refuse_beyond_memory(count: int, path: str | Path) -> None:
    """Refuses to unpack what this machine cannot hold.

    Raises:
        ValueError: for more bytes than there is memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count > memory:
        raise ValueError(
            f"{path} claims to unpack to {count / 1e9:.1f} GB, but this machine has {memory / 1e9:.1f} GB of memory; "
            "if that is no error, save it as an .npy file, which is read in pieces."
        )
