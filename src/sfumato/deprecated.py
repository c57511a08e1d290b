"""Old spellings of renamed public names and keywords: they work until version 0.2, with a `DeprecationWarning`."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def old_names(module: str, load: Callable[[str], Any] | None = None, /, **names: str) -> Callable[[str], Any]:
    """A module's `__getattr__` that returns renamed objects under their old names.

    Args:
        module: its `__name__`.
        load: what a module whose names are loaded when they are first used returns for all others.
        names: the new name for each old one.
    """

    def get(name: str) -> Any:
        if name not in names:
            if load is not None:
                return load(name)
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {module}.{names[name]}.", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return get


def old_keywords(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function or an `__init__` whose keywords were renamed: {old: new}.

    Raises:
        TypeError: from the function, where both spellings of one keyword are given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__} got both {new} and {old}, its old spelling; give {new} alone.")
                warnings.warn(f"the keyword {old} of {function.__qualname__} is now called {new}.", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def old_fields(**names: str) -> Callable[[type[T]], type[T]]:
    """`old_keywords` for the fields of a dataclass: a decorator of the class."""

    def decorate(cls: type[T]) -> type[T]:
        setattr(cls, "__init__", old_keywords(**names)(cls.__init__))  # noqa: B010 - pyright knows no __init__ of a type variable
        return cls

    return decorate
