"""The C++ beside this file: torch's own loader of extensions compiles it with the machine's compiler, half a minute once, to a cache."""

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
LANES = 16  # channels come in multiples of this


class HasKernel:
    """A module that a kernel of ours can compute; `by_kernel` says whether it is to, where that fits."""

    by_kernel = False


def channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w c"]:
    """As the kernels take a map: contiguous; a view where it lies so already."""
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
        raise RuntimeError("the kernels are not compiled on this machine; leave by_kernel false.")
    return getattr(torch.ops, f"sfumato_{name}")


@functools.cache
def compiled() -> bool:
    """Whether the kernels are there; compiles them where that can be, half a minute the first time. The log says why not."""
    folder = kernel_folder()
    reason = "SFUMATO_CACHE is empty, so there is no place for them" if folder is None else _loaded(folder)
    if reason is not None:
        logger.warning("The network stays with torch's kernels: ours are not compiled, since %s.", reason)
    return reason is None


def were_compiled() -> bool:
    """Whether they lie in the cache, so that `compiled` takes no time."""
    folder = kernel_folder()
    return folder is not None and (folder / LIBRARY).is_file()


def _loaded(folder: Path) -> str | None:
    """Loads them, compiled where nobody has; why that cannot be, where it cannot."""
    library = folder / LIBRARY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # goes with the process; the loader's own lock outlives one that is killed, and is waited for
            if library.is_file():
                torch.ops.load_library(library)
                return None
            compiler = os.environ.get("CXX", "c++")
            if shutil.which(compiler) is None:
                return f"there is no C++ compiler ({compiler}; on Debian: apt install g++)"
            if shutil.which("ninja") is None and not _ninja_beside():
                return "there is no ninja (pip install ninja)"
            _compile(folder / "build").replace(library)  # whole, so that it needs no compiler again, whichever installation asks
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        what = f"what lies in {library} cannot be loaded; delete it" if library.is_file() else "compiling them failed"
        return f"{what} ({str(error).splitlines()[0]})"
    return None


def _compile(folder: Path) -> Path:
    """Compiles and loads the library, and returns where it lies."""
    from torch.utils.cpp_extension import load  # looks for compilers and GPUs as it is imported

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
    """Puts the ninja that was installed with this Python on the path, where it is not there by itself."""
    here = Path(sys.executable).parent
    if not (here / "ninja").is_file():
        return False
    os.environ["PATH"] = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    return True


def kernel_folder() -> Path | None:
    """Where what was compiled lies: a folder for each state of the sources, torch and processor."""
    cache = cache_folder()
    if cache is None:
        return None
    texts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    key = hashlib.sha256("\n".join([*texts, torch.__version__, sys.version, processor("flags")]).encode()).hexdigest()[:16]
    return cache / "kernels" / key
