"""The idx format of the MNIST family: 0, 0, type, rank, the rank sizes as big-endian uint32, then the numbers, big-endian.

Reference: LeCun, Cortes & Burges (1998), The MNIST database of handwritten digits, "The IDX file format".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from sfumato.data.arrays import from_arrays
from sfumato.data.dataset import Dataset
from sfumato.data.files import refuse_beyond_memory

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIECE = 1 << 20


def read_idx(path: str | Path) -> Shaped[np.ndarray, "..."]:
    """The array in an idx file, gzipped or not (detected from its first bytes), in the machine's byte order.

    Raises:
        ValueError: for a file that cannot be read, is not an idx file, or is shorter or longer than its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            return _read(file, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}); download it again.") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give the path of an idx file.") from None


def _read(file: "gzip.GzipFile | BinaryIO", path: Path) -> np.ndarray:
    """Header and body of an open idx file."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise ValueError(f"{path} is not an idx file: it must start with 0, 0, a type (8, 9 or 11 to 14) and the rank, got {list(magic)}.")
    dtype, rank = np.dtype(_TYPES[magic[2]]), magic[3]
    header = file.read(4 * rank)
    if len(header) < 4 * rank:
        raise ValueError(f"{path} is truncated: its header needs {4 + 4 * rank} bytes, got {4 + len(header)}; get it again.")
    shape = struct.unpack(f">{rank}I", header)
    expected = math.prod(shape) * dtype.itemsize
    refuse_beyond_memory(expected, path)
    body = bytearray()
    # In pieces: a damaged header may claim more bytes than there is memory, and one large read would allocate them.
    while len(body) <= expected and (piece := file.read(min(_PIECE, expected + 1 - len(body)))):
        body += piece
    if len(body) != expected:
        fault, got = ("truncated", str(len(body))) if len(body) < expected else ("too long", "more")
        raise ValueError(f"{path} is {fault}: {list(shape)} of {dtype.name} needs {expected} bytes of data, got {got}; get it again.")
    return np.frombuffer(body, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def idx(images: str | Path, labels: str | Path | None = None, classes: tuple[str, ...] = ()) -> Dataset:
    """The data set of an idx file and, if given, the idx file of its labels.

    Args:
        classes: names of the labels; "0", "1", ... if left out.

    Raises:
        ValueError: as `read_idx`, and for images or labels that do not make a data set.
    """
    numbers = None if labels is None else read_idx(labels)
    return from_arrays(read_idx(images), numbers, classes=classes, name=Path(images).name.split(".")[0])
