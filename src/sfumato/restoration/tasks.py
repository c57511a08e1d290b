"""The operators of common damages by name, as the command line asks for them."""

import torch
from torch import Tensor

from sfumato.options import RESTORATION_TASKS as TASKS
from sfumato.restoration.gibbs import SplitGibbs
from sfumato.restoration.guided import DPS, DiffPIR, PiGDM
from sfumato.restoration.matching import MomentMatching
from sfumato.restoration.observed import Method
from sfumato.restoration.operators import AveragePool, Bicubic, Blur, Grey, Identity, Mask, Matrix, Operator, Shape
from sfumato.restoration.smc import TwistedSMC
from sfumato.restoration.spectral import DDNM, DDRM, RePaint

METHODS: dict[str, type[Method]] = {
    "moment-matching": MomentMatching,
    "pigdm": PiGDM,
    "ddrm": DDRM,
    "ddnm": DDNM,
    "dps": DPS,
    "repaint": RePaint,
    "diffpir": DiffPIR,
    "split-gibbs": SplitGibbs,
    "twisted-smc": TwistedSMC,
}


def operator_of(
    task: str,
    shape: Shape,
    *,
    mask: Tensor | None = None,
    factor: int | None = None,
    downsampling: str = "average",
    kernel: Tensor | None = None,
    padding: str = "reflect",
    matrix: Tensor | None = None,
) -> Operator:
    """What damaged x of this shape.

    Args:
        task: one of `TASKS`.
        shape: of x, channels first.
        mask: for "inpaint": true, or above 0, is what is seen; of the size of x, with or without channels.
        factor: for "upscale".
        downsampling: for "upscale": "average" or "bicubic".
        kernel: for "deblur"; it is brought to the sum 1.
        padding: for "deblur", as `Blur`.
        matrix: for "matrix", [m, d].

    Raises:
        ValueError: an unknown task, a part that is missing or does not fit.
    """
    if task not in TASKS:
        raise ValueError(f'the task is one of {", ".join(TASKS)}, got "{task}".')
    needed = {"inpaint": ("mask", mask), "upscale": ("factor", factor), "deblur": ("kernel", kernel), "matrix": ("matrix", matrix)}
    if task in needed and needed[task][1] is None:
        raise ValueError(f"the task {task} needs --{needed[task][0]}; without it nobody knows how the picture was damaged.")
    for name, (option, value) in needed.items():
        if name != task and value is not None:
            raise ValueError(f"--{option} is for the task {name}, not for {task}; leave it out.")
    if mask is not None:
        return Mask(mask, shape=shape)
    if factor is not None:
        makers = {"average": AveragePool, "bicubic": Bicubic}
        if downsampling not in makers:
            raise ValueError(f'--downsampling is average or bicubic, got "{downsampling}".')
        operator = makers[downsampling](factor)
    elif kernel is not None:
        total = float(torch.as_tensor(kernel, dtype=torch.float64).sum())
        operator = Blur(kernel / total if abs(total) > 1e-12 else kernel, padding=padding)
    elif matrix is not None:
        operator = Matrix(matrix, shape=shape)
    else:
        operator = Grey() if task == "colourise" else Identity()
    operator.output(shape)  # refuses what does not fit before any work
    return operator


def kernel_of(text: str) -> Tensor:
    """A kernel by name: `gaussian:SIGMA` (cut at 3 sigma) or `box:SIZE`; of sum 1.

    Raises:
        ValueError: another name, or a number that is none.
    """
    name, _, number = text.partition(":")
    try:
        if name == "gaussian" and (sigma := float(number)) > 0:
            reach = max(1, round(3 * sigma))
            line = (-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square()).exp()
        elif name == "box" and (size := int(number)) > 1:
            line = torch.ones(size, dtype=torch.float64)
        else:
            raise ValueError
    except ValueError:
        raise ValueError(
            f'--kernel is gaussian:SIGMA, box:SIZE, or a file (.npy or a picture), as in gaussian:1.5 or box:3; got "{text}".'
        ) from None
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def method_of(name: str) -> Method:
    """A method by its name, with its defaults.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f'--method is one of {", ".join(METHODS)}, got "{name}".')
    return METHODS[name]()
