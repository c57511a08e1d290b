"""`sfumato --import FILE.py`: a user's file that registers kinds of model and data."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def import_file(file: Path) -> None:
    """Runs a Python file as a module, once.

    Raises:
        ValueError: there is no such file, or it is not a Python file.
    """
    if not file.is_file() or file.suffix != ".py":
        raise ValueError(f"--import needs an existing Python file, got {file}.")
    name = f"sfumato_import_{file.resolve().as_posix().strip('/').replace('/', '_').removesuffix('.py').replace('.', '_')}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # so that the next import runs it again
        raise
