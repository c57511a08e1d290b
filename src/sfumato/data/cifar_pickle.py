"""Reads the pickles of CIFAR-10 and CIFAR-100 without unpickling: no class is looked up and nothing is called.

Python 2 wrote them as dictionaries of byte strings, integers, lists of these, and one NumPy array of bytes. The opcodes for these are
interpreted here with Python's own types; the three names that an array's pickle mentions are only compared. Any other opcode, name or
argument is refused.
"""

import math
import pickletools
from typing import Any

import numpy as np

_ARRAY, _NEW, _TYPE = "numpy ndarray", "numpy.core.multiarray _reconstruct", "numpy dtype"
_NAMES = {_ARRAY, _NEW, _TYPE}
_NUMBERS = {"BININT", "BININT1", "BININT2"}
_STRINGS = {"SHORT_BINSTRING", "BINSTRING"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(str):
    """A name in the pickle, which is never looked up."""


class _Bytes:
    """The type of an array of bytes."""


class _Empty:
    """An array before its numbers are set; afterwards they are its `values`."""

    values: np.ndarray | None = None


def read_pickle(data: bytes) -> dict[bytes, Any]:
    """The dictionary in a CIFAR pickle: byte strings, integers, lists, uint8 arrays.

    Raises:
        ValueError: for any other pickle, and for a damaged one.
    """
    try:
        content = _run(data)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its opcodes do not fit together ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise ValueError(f"it contains a {type(content).__name__} instead of a dictionary")
    return {key: value.values if isinstance(value, _Empty) else value for key, value in content.items()}


def _run(data: bytes) -> Any:
    """What the opcodes leave on the stack."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        top, stack = stack, below.pop()
        return top

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                below.append(stack)
                stack = []
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                top = since_mark()
                stack.append(tuple(top))
            case "APPEND":
                item = stack.pop()
                _list(stack).append(item)
            case "APPENDS":
                top = since_mark()
                _list(stack).extend(top)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _dict(stack)[key] = value
            case "SETITEMS":
                top = since_mark()
                if len(top) % 2:
                    raise IndexError
                _dict(stack).update(zip(top[::2], top[1::2], strict=True))
            case "GLOBAL":
                stack.append(_name(argument))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_made(name, arguments))
            case "BUILD":
                state = stack.pop()
                _fill(stack[-1], state)
            case name if name in _NUMBERS:
                stack.append(argument)
            case name if name in _STRINGS:
                stack.append(argument.encode("latin-1"))
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _TUPLES:
                length = _TUPLES[name]
                if len(stack) < length:
                    raise IndexError
                stack[len(stack) - length :] = [tuple(stack[len(stack) - length :])]
            case other:
                raise ValueError(f"it uses the opcode {other}, which no CIFAR file does; nothing was executed")
    raise ValueError("it ends before its last opcode")


def _list(stack: list[Any]) -> list[Any]:
    if type(stack[-1]) is not list:
        raise TypeError
    return stack[-1]


def _dict(stack: list[Any]) -> dict[Any, Any]:
    if type(stack[-1]) is not dict:
        raise TypeError
    return stack[-1]


def _name(name: str) -> _Name:
    if name not in _NAMES:
        raise ValueError(f"it asks for {name.replace(' ', '.')}, which no CIFAR file does; nothing was executed")
    return _Name(name)


def _made(name: object, arguments: object) -> _Empty | _Bytes:
    """The empty array, or the type of bytes: the only two calls that are allowed, with the only arguments."""
    if type(name) is _Name and name == _NEW and arguments == (_Name(_ARRAY), (0,), b"b"):
        return _Empty()
    if type(name) is _Name and name == _TYPE and arguments == (b"u1", 0, 1):
        return _Bytes()
    raise ValueError("it makes something other than an array of bytes, which no CIFAR file does; nothing was executed")


def _fill(made: object, state: object) -> None:
    """Sets the numbers of the empty array. The state of the type is ignored: bytes have no byte order."""
    if type(made) is _Bytes and isinstance(state, tuple):
        return
    if type(made) is not _Empty or not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("it fills something other than an array of bytes, which no CIFAR file does; nothing was executed")
    _, shape, dtype, is_by_columns, content = state
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape) or not isinstance(dtype, _Bytes):
        raise TypeError
    if not isinstance(content, bytes) or len(content) != math.prod(shape):
        raise ValueError(f"its array of shape {list(shape)} has the wrong number of bytes")
    made.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_by_columns else "C")
