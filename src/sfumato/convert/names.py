"""Weights of a `UNet` under another library's names: renamed, joined and reordered, so that every number is preserved both ways."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sfumato.nets import UNet
from sfumato.nets.conditioner import ClassEmbedding
from sfumato.storage import CheckpointError


@dataclass(frozen=True)
class Names:
    """How another library stores the weights of a network.

    Args:
        theirs: maps one of our names to theirs, or to the names of the parts that our weight concatenates along its rows.
        rows: for one of our names, the order of our rows in theirs; None if they are equal.
        axes: number of axes of its attention projections, which are convolutions here.
    """

    theirs: Callable[[str], tuple[str, ...]]
    rows: Callable[[str], Tensor | None]
    axes: int


def take(net: UNet, tensors: Mapping[str, Tensor], names: Names, source: str) -> None:
    """Copies another library's weights into the network.

    Raises:
        CheckpointError: weights that are missing, unknown, or of another shape; the message names the first few.
    """
    ours, left = {}, set(tensors)
    missing = [part for name in net.state_dict() for part in names.theirs(name) if part not in tensors]
    if missing:
        raise CheckpointError(f"{source} lacks {_few(missing)}; is the file complete, and does it match the configuration?")
    for name, wanted in net.state_dict().items():
        parts = names.theirs(name)
        value, rows = torch.cat([tensors[part] for part in parts]), names.rows(name)
        if _matrix(value.shape) != _matrix(wanted.shape):
            raise CheckpointError(
                f"{source}: {' with '.join(parts)} has shape {list(value.shape)}, but the configuration needs {list(wanted.shape)}."
            )
        ours[name] = (value if rows is None else value[rows]).reshape(wanted.shape)
        left -= set(parts)
    if left:
        raise CheckpointError(f"{source} contains {_few(sorted(left))}, which this architecture does not have.")
    net.load_state_dict(ours)


def give(net: UNet, names: Names) -> dict[str, Tensor]:
    """The network's weights as another library stores them; the inverse of `take`."""
    theirs = {}
    for name, value in net.state_dict().items():
        parts, rows = names.theirs(name), names.rows(name)
        if rows is not None:
            value = torch.empty_like(value).index_copy_(0, rows, value)
        if name.endswith((".qkv.weight", ".outward.weight")):
            value = value.reshape(*value.shape[:2], *(1,) * (names.axes - 2))
        theirs |= {part: chunk.clone() for part, chunk in zip(parts, value.chunk(len(parts)), strict=True)}
    return theirs


def label_rows(net: UNet) -> int:
    """The number of rows of the label embedding, the only condition that other libraries' U-Nets have; 0 without labels.

    Raises:
        ValueError: a network with another condition.
    """
    for name in net.condition.conditions:
        part = net.condition.part(name)
        if name != "labels" or not isinstance(part, ClassEmbedding):
            raise ValueError(f'the condition "{name}" cannot be exported: other libraries\' U-Nets support labels only.')
        return len(part.weight)
    return 0


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a file that torch wrote, in float32; nothing in it is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or contains anything else.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}).") from None
    except UnpicklingError:
        raise CheckpointError(f"{path} contains more than tensors, which is not loaded for safety; use a file with weights only.") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} contains no mapping from names to tensors; save the network's state_dict only.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _matrix(shape: torch.Size) -> list[int]:
    """The shape without trailing ones, in which a matrix and a 1×1 convolution differ."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return sizes


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
