"""sfumato trains, samples, guides, measures and explains diffusion models on your own data.

A public name is loaded when it is first used, so that `import sfumato` and the command line load no more than they need. The names and
their modules are listed once, in `__init__.pyi`, which type checkers read as well.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from sfumato.deprecated import old_names

__version__ = "0.1.0"

_imports = [each for each in ast.parse(Path(__file__).with_suffix(".pyi").read_bytes()).body if isinstance(each, ast.ImportFrom)]
_modules = {alias.name: str(each.module) for each in _imports for alias in each.names}  # public name to the module that it is from

__all__ = sorted(_modules)  # pyright: ignore[reportUnsupportedDunderAll]


def _load(name: str) -> object:
    """A public name, or a module of the package; afterwards it is an attribute as any other."""
    if name in _modules and _modules[name] != __name__:
        value = getattr(import_module(_modules[name]), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


__getattr__ = old_names(
    __name__,
    _load,
    Points="EmpiricalDistribution",
    Flowed="FlowResult",
    Fitted="FittedMultistep",
    Moment="SamplingState",
    Tuned="TuningResult",
)


def __dir__() -> list[str]:
    """The public names, and what is loaded."""
    return sorted({*globals(), *__all__})
