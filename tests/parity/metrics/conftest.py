"""torchvision, which the peers import at their top and none of these figures uses, may be missing or of another build than torch."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType


class _Name(type):
    """An empty class with every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Empty(ModuleType):
    """Has every name that is imported from it, as such a class."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder())
