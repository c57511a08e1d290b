"""Starting a training from the weights of another one."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.nets.conditioner import Conditioner
from sfumato.recipe import load_recipe
from sfumato.storage import folder_of, load_newest_valid, name_of, read_tensors


def begin_from(net: nn.Module, source: str) -> str:
    """Copies the weights of another training into a network as far as they fit; returns a sentence on what was copied.

    If a weight has more input or output channels than the old one, the old values are copied and the new channels start at zero. A
    condition that the old network did not have has no effect at first.

    Args:
        net: the network to train.
        source: a run folder (the averaged weights of its newest valid checkpoint), `zoo:NAME`, or a .safetensors file.

    Raises:
        ValueError: there is no such run or file, or none of its weights fits.
        CheckpointError: the weights cannot be read.
    """
    old, new = _weights(source), net.state_dict()
    taken, padded, left = {}, 0, []
    for name, value in old.items():
        there = new.get(name)
        if there is None or value.ndim != there.ndim or any(a > b for a, b in zip(value.shape, there.shape, strict=True)):
            left.append(f"{name} {list(value.shape)}")
            continue
        taken[name] = torch.zeros_like(there)
        taken[name][tuple(slice(size) for size in value.shape)] = value.to(there)
        padded += value.shape != there.shape
    if not taken:
        raise ValueError(f"no weight of {source} fits this network: its first weight is {left[0]}, the network's is {next(iter(new))}.")
    net.load_state_dict({**new, **taken})
    conditioner = next((part for part in net.modules() if isinstance(part, Conditioner)), None)
    added = []
    if conditioner is not None:
        added = [name for name in conditioner.conditions if not any(key in taken for key in _keys(net, conditioner, name))]
        conditioner.begin_at_zero(*added)
    parts = [f"Starting from {source}: {len(taken)} of {len(new)} weights copied"]
    parts += [f"{padded} of them padded with zeros"] * bool(padded)
    parts += [f"new conditions, without effect at first: {', '.join(added)}"] * bool(added)
    parts += [f"not copied: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"] * bool(left)
    return "; ".join(parts) + "."


def _keys(net: nn.Module, conditioner: Conditioner, name: str) -> list[str]:
    """Names, in the network's state, of the weights of one condition."""
    part = conditioner.part(name)
    prefix = next(path for path, module in net.named_modules() if module is part)
    return [f"{prefix}.{key}" for key in part.state_dict()]


def _weights(source: str) -> dict[str, Tensor]:
    path = Path(source).expanduser()
    if path.is_file():
        return read_tensors(path)
    if path.suffix == ".safetensors":
        raise ValueError(f"training.init_from: there is no file {source}.")
    folder = folder_of(source)
    file = f"{name_of(load_recipe(folder / 'recipe.yaml').training.ema[0])}.safetensors"
    return load_newest_valid(folder, lambda checkpoint: read_tensors(checkpoint / file))
