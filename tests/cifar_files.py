"""CIFAR's own pickles, written opcode by opcode as Python 2's cPickle writes them under protocol 2."""

import struct

import numpy as np


def text(content: bytes) -> bytes:
    """A byte string of Python 2."""
    return b"U" + bytes([len(content)]) + content if len(content) < 256 else b"T" + struct.pack("<i", len(content)) + content


def number(value: int) -> bytes:
    """The shortest opcode of an integer."""
    if 0 <= value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    return b"M" + struct.pack("<H", value) if 0 <= value < 1 << 16 else b"J" + struct.pack("<i", value)


def listed(items: list[bytes]) -> bytes:
    """A list, in batches of a thousand as the pickler makes them."""
    return b"]" + b"".join(b"(" + b"".join(items[i : i + 1000]) + b"e" for i in range(0, len(items), 1000))


def array(values: np.ndarray, *, dtype: bytes = b"u1", by_columns: bool = False) -> bytes:
    """An array of bytes, with its memo."""
    shape = number(values.shape[0]) + number(values.shape[1]) + b"\x86"
    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07" + number(0) + b"\x85" + text(b"b") + b"\x87Rq\x08"
    kind = b"cnumpy\ndtype\nq\x09" + text(dtype) + number(0) + number(1) + b"\x87Rq\x0a"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    content = values.tobytes(order="F" if by_columns else "C")
    return made + b"(" + number(1) + shape + kind + (b"\x88" if by_columns else b"\x89") + text(content) + b"tb"


def dictionary(entries: dict[bytes, bytes]) -> bytes:
    """A whole pickle."""
    return b"\x80\x02}q\x01(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def batch(values: np.ndarray, labels: dict[bytes, list[int]], **options) -> bytes:
    """A file of images [n, 3072] with their labels, as data_batch_1 is."""
    names = listed([text(b"image_%d.png" % i) for i in range(len(values))])
    lists = {key: listed([number(label) for label in numbers]) for key, numbers in labels.items()}
    return dictionary({b"batch_label": text(b"a batch"), **lists, b"data": array(values, **options), b"filenames": names})
