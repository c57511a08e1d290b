"""Compiles the C++ sources of this package with torch's extension loader and the machine's compiler: half a minute once, into a cache."""

import fcntl
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.runtime import cache_folder, processor

logger = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("winograd.cpp", "norm.cpp"))
HEADERS = (Path(__file__).with_name("lanes.h"),)
LIBRARY = "sfumato_kernels.so"
LANES = 16  # the number of channels must be a multiple of this


class HasKernel:
    """A module that one of our kernels can compute; `by_kernel` turns that on, if the input fits."""

    by_kernel = False


def channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w c"]:
    """A feature map in the kernels' layout: contiguous; a view if it already has that layout."""
    return x.permute(0, 2, 3, 1).contiguous()


def channels_first(x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """The inverse of `channels_last`, as a view."""
    return x.permute(0, 3, 1, 2)


def operators(name: str) -> Any:  # torch's namespaces of operators have no type
    """The operators of one source.

    Raises:
        RuntimeError: they are not compiled.
    """
    if not compiled():
        raise RuntimeError("the kernels are not compiled on this machine; set by_kernel=False.")
    return getattr(torch.ops, f"sfumato_{name}")


@functools.cache
def compiled() -> bool:
    """Whether the kernels are available; compiles them if possible, half a minute the first time. The log says why not."""
    folder = kernel_folder()
    reason = "SFUMATO_CACHE is empty, so there is no place to store them" if folder is None else _loaded(folder)
    if reason is not None:
        logger.warning("The network uses torch's kernels: ours are not compiled, since %s.", reason)
    return reason is None


def were_compiled() -> bool:
    """Whether they are in the cache, so that `compiled` takes no time."""
    folder = kernel_folder()
    return folder is not None and (folder / LIBRARY).is_file()


def _loaded(folder: Path) -> str | None:
    """Loads them, after compiling if necessary; returns why that is impossible, if it is."""
    library = folder / LIBRARY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends; the loader's own lock remains after a kill and blocks
            if library.is_file():
                torch.ops.load_library(library)
                return None
            compiler = os.environ.get("CXX", "c++")
            if shutil.which(compiler) is None:
                return f"there is no C++ compiler ({compiler}; on Debian: apt install g++)"
            if shutil.which("ninja") is None and not _ninja_beside():
                return "there is no ninja (pip install ninja)"
            _compile(folder / "build").replace(library)  # complete, so that no installation needs the compiler again
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        what = f"{library} cannot be loaded; delete it" if library.is_file() else "compiling them failed"
        return f"{what} ({str(error).splitlines()[0]})"
    return None


def _compile(folder: Path) -> Path:
    """Compiles and loads the library, and returns its path."""
    from torch.utils.cpp_extension import load  # looks for compilers and GPUs when imported

    folder.mkdir(exist_ok=True)
    (folder / "lock").unlink(missing_ok=True)
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    load(
        LIBRARY.removesuffix(".so"),
        [str(source) for source in SOURCES],
        extra_cflags=["-O3", "-march=native", *threads],
        extra_ldflags=threads,
        build_directory=str(folder),
        is_python_module=False,
    )
    return folder / LIBRARY


def _ninja_beside() -> bool:
    """Adds the ninja that was installed with this Python to PATH, unless there is one."""
    here = Path(sys.executable).parent
    if not (here / "ninja").is_file():
        return False
    os.environ["PATH"] = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    return True


def kernel_folder() -> Path | None:
    """The folder of compiled kernels: one for each version of the sources, torch and processor."""
    cache = cache_folder()
    if cache is None:
        return None
    texts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    key = hashlib.sha256("\n".join([*texts, torch.__version__, sys.version, processor("flags")]).encode()).hexdigest()[:16]
    return cache / "kernels" / key
