"""3×3 convolutions in float32 on CPUs with a quarter of the multiplications: F(4×4, 3×3) of Winograd.

Lavin & Gray (2015), arXiv:1509.09308, section 4.3, with the points 0, ±1, ±2, ∞: a 4×4 tile of the output is Aᵀ[(G w Gᵀ) ⊙ (Bᵀ d B)]A
of the 6×6 tile d of the input that it sees; over all tiles and channels the products are 36 products of matrices. Rounding is some four
times that of the direct sum (2e-6 in the relative norm); in the gradient of the weights the two are level.

`winograd.cpp` is compiled by torch's own loader of extensions with the machine's C++ compiler, some twenty seconds once, into the cache.
"""

import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from sfumato.runtime import cache_folder

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
LANES = 16  # channels come in multiples of this
ENOUGH_IMAGES = 20_000  # a run of fewer ends before the compiler has paid for itself
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution of stride 1 that keeps the size of a map; `by_winograd` says how it is computed, where that fits."""

    by_winograd = False
    _kept: tuple[tuple[int, int], Tensor] | None = None  # the transformed weight, and which weight it was

    def __init__(self, inward: int, outward: int) -> None:
        """As `nn.Conv2d`."""
        super().__init__(inward, outward, 3, padding=1)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The convolution."""
        if not (self.by_winograd and fits(input, self.weight)):
            return super().forward(input)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            return conv3x3(input, self.weight, self.bias)
        return _channels_first(_kernels().forward(_channels_last(input), self._transformed(), self.bias))

    def _transformed(self) -> Float[Tensor, "36 c d"]:
        """The weight as the kernel takes it; made once for a weight that stays."""
        if self.weight.is_inference():  # such a tensor does not count its changes
            return _transformed(self.weight)
        key = (self.weight.data_ptr(), self.weight._version)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, _transformed(self.weight.detach())
        return self._kept[1]


def convolves(net: nn.Module) -> bool:
    """Whether a network has any `Conv3x3`."""
    return any(isinstance(part, Conv3x3) for part in net.modules())


def use(net: nn.Module, is_on: bool = True) -> None:
    """Tells every `Conv3x3` of a network how to compute."""
    for part in net.modules():
        if isinstance(part, Conv3x3):
            part.by_winograd = is_on


def fits(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"]) -> bool:
    """Whether these can be convolved here, and there is enough of them to gain by it."""
    channels_fit = weight.shape[0] % LANES == 0 and weight.shape[1] % LANES == 0
    tiles = len(x) * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return channels_fit and tiles >= 16 and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def conv3x3(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Float[Tensor, "d"] | None) -> Float[Tensor, "b d h w"]:
    """As `torch.nn.functional.conv2d` with padding 1, with gradients of every order; the result is laid out channels-last.

    Raises:
        RuntimeError: the kernel is not compiled; ask `compiled` first.
    """
    y = _Convolution.apply(x, weight, bias)
    assert isinstance(y, Tensor)
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # torch leaves the context untyped
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _channels_first(_kernels().forward(_channels_last(x), _transformed(weight), bias))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (g,) = ctx.saved_tensors, gradients
        of_x, of_weight, of_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted: by torch's own
            for_x = conv2d_input(x.shape, weight, g, padding=1) if of_x else None
            for_weight = conv2d_weight(x, weight.shape, g, padding=1) if of_weight else None
        else:
            behind = _channels_last(g)
            turned = weight.flip(2, 3).transpose(0, 1)
            for_x = _channels_first(_kernels().forward(behind, _transformed(turned), None)) if of_x else None
            for_weight = _gathered(_kernels().backward(_channels_last(x), behind)) if of_weight else None
        return for_x, for_weight, g.sum((0, 2, 3)) if ctx.has_bias and of_bias else None


def _channels_last(x: Tensor) -> Tensor:
    """[b, h, w, c], contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    """[b, c, h, w], a view."""
    return x.permute(0, 3, 1, 2)


@functools.cache
def _both_sides() -> Float[Tensor, "36 9"]:
    """w ↦ G w Gᵀ on flattened 3×3 weights."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.kron(g, g).float()


def _transformed(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 c d"]:
    """G w Gᵀ of each pair of channels."""
    d, c = weight.shape[:2]
    return (_both_sides() @ weight.reshape(d, c, 9).permute(2, 1, 0).reshape(9, c * d)).reshape(36, c, d)


def _gathered(u: Float[Tensor, "36 c d"]) -> Float[Tensor, "d c 3 3"]:
    """The transpose of `_transformed`."""
    c, d = u.shape[1:]
    return (_both_sides().T @ u.reshape(36, c * d)).reshape(3, 3, c, d).permute(3, 2, 0, 1)


def _kernels() -> Any:  # torch's namespaces of operators have no type
    if not compiled():
        raise RuntimeError("the Winograd kernel is not compiled on this machine; leave by_winograd false.")
    return torch.ops.sfumato_winograd


@functools.cache
def compiled() -> bool:
    """Whether the kernel is there; compiles it where it can be, which takes some twenty seconds the first time. The log says why not."""
    folder, compiler = kernel_folder(), os.environ.get("CXX", "c++")
    reason = None
    if folder is None:
        reason = "SFUMATO_CACHE is empty, so there is no place for it"
    elif shutil.which(compiler) is None:
        reason = f"there is no C++ compiler ({compiler}; on Debian: apt install g++)"
    elif shutil.which("ninja") is None and not _ninja_beside():
        reason = "there is no ninja (pip install ninja)"
    if reason is None and folder is not None:
        reason = _compile(folder)
    if reason is not None:
        logger.warning("3×3 convolutions stay with torch's kernel: ours is not compiled, since %s.", reason)
    return reason is None


def _compile(folder: Path) -> str | None:
    """Compiles and loads; what went wrong, where something did."""
    from torch.utils.cpp_extension import load  # looks for compilers and GPUs as it is imported

    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # goes with the process; the loader's own lock outlives one that is killed, and is waited for
            (folder / "lock").unlink(missing_ok=True)
            load(
                "sfumato_winograd",
                [str(SOURCE)],
                extra_cflags=["-O3", "-march=native", *threads],
                extra_ldflags=threads,
                build_directory=str(folder),
                is_python_module=False,
            )
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"compiling it failed ({str(error).splitlines()[0]})"
    return None


def _ninja_beside() -> bool:
    """Puts the ninja that was installed with this Python on the path, where it is not there by itself."""
    here = Path(sys.executable).parent
    if not (here / "ninja").is_file():
        return False
    os.environ["PATH"] = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    return True


def kernel_folder() -> Path | None:
    """Where what was compiled lies: a folder for each source, torch and processor."""
    cache = cache_folder()
    if cache is None:
        return None
    cpu = Path("/proc/cpuinfo")
    flags = next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.is_file() else platform.processor()
    key = hashlib.sha256("\n".join([SOURCE.read_text(), torch.__version__, sys.version, flags]).encode()).hexdigest()[:16]
    return cache / "kernels" / key


def is_wanted(choice: str, dtype: torch.dtype, device: torch.device, *, images: int) -> bool:
    """Whether 3×3 convolutions go by Winograd: "auto" takes it where it is faster and there is enough work to compile it for.

    Raises:
        ValueError: "winograd" where it cannot be had.
    """
    can_be = device.type == "cpu" and dtype == torch.float32
    if choice == "winograd" and not (can_be and compiled()):
        why = "the log says why it was not compiled" if can_be else f"it computes in float32 on CPUs, and this is {dtype} on {device.type}"
        raise ValueError(f"Winograd's convolution cannot be had here: {why}; take convolution=direct.")
    return choice == "winograd" or (choice == "auto" and can_be and images >= ENOUGH_IMAGES and is_faster())


def is_faster() -> bool:
    """Whether it beats torch's kernel on this machine, forward and backward, by a measurement that is made once and kept in the cache."""
    if not compiled():
        return False
    folder = kernel_folder()
    assert folder is not None
    path = folder / f"seconds-{torch.get_num_threads()}-threads.json"
    if not path.is_file():
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(_measured()))
        aside.replace(path)
    seconds = json.loads(path.read_text())
    return seconds["winograd"] < seconds["direct"]


def _measured(rounds: int = 7) -> dict[str, float]:
    """Median seconds of a convolution and its gradients, both ways in turns: 16 maps of 128 channels, 16×16."""
    conv = Conv3x3(128, 128).float()
    x = torch.randn(16, 128, 16, 16, dtype=torch.float32).to(memory_format=torch.channels_last).requires_grad_()
    seconds: dict[str, list[float]] = {"direct": [], "winograd": []}
    with torch.enable_grad():
        for _ in range(rounds):
            for name, spent in seconds.items():
                conv.by_winograd = name == "winograd"
                start = time.perf_counter()
                conv(x).sum().backward()
                spent.append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in seconds.items()}
