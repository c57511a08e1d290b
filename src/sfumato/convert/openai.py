"""Reads and writes weights of OpenAI's improved-diffusion and guided-diffusion `UNetModel`, without either.

Their files contain only weights, `input_blocks.…`, `middle_block.…`, `output_blocks.…`, from which channels, blocks, attention, classes and
a learned variance follow. The rest (heads, the order of q, k and v, the chain) must be given. Nichol & Dhariwal
(2021), arXiv:2102.09672; Dhariwal & Nichol (2021), arXiv:2105.05233.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.condition import class_labels
from sfumato.convert.imported import OBJECTIVES, as_model, knots
from sfumato.convert.names import Names, give, label_rows, read_weights, take
from sfumato.model import Model
from sfumato.nets import UNet, UNetLayout
from sfumato.nets.layers import TimestepSinusoids
from sfumato.prediction import Target, eps_target
from sfumato.schedule import Discrete
from sfumato.tasks.options import Sampling

ENDS = {
    "condition.level.0": "time_embed.0",
    "condition.level.2": "time_embed.2",
    "condition.label": "label_emb",
    "stem": "input_blocks.0.0",
    "norm": "out.0",
    "head": "out.2",
}
PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "modulation": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "outward": "proj_out",
}


def load_openai(
    path: str | Path,
    shape: tuple[int, int, int],
    chain: Discrete,
    *,
    heads: int = 4,
    head_width: int | None = None,
    interleaved: bool = True,
    rescaled: bool = False,
    target: Target = eps_target,
) -> Model:
    """Loads a `UNetModel` as a model, sampled by default along the whole chain with x0 clipped to [-1, 1].

    Args:
        path: a state_dict saved by torch (.pt), or safetensors; nothing in it is executed.
        shape: of one image, (c, height, width): their `image_size`.
        chain: their `diffusion_steps` and `noise_schedule`: `Discrete.linear(4000)`, `Discrete.cosine(1000)`, …
        heads: their `num_heads`.
        head_width: their `num_head_channels`, if it is not -1.
        interleaved: q, k and v are interleaved head by head; false for their `use_new_attention_order`.
        rescaled: their `rescale_timesteps`: the network counts in thousandths of the chain.
        target: `eps_target`, or `x0_target` for their `predict_xstart`.

    Raises:
        ValueError: weights of another kind of network or of images of another shape, heads that do not divide the channels, another target.
        CheckpointError: a file that is missing or damaged, or weights that do not fit together.
    """
    if target not in OBJECTIVES:
        raise ValueError("a UNetModel can be loaded with eps_target, x0_target or v_target, got another target.")
    tensors = read_weights(Path(path))
    try:
        layout = _layout(tensors, heads, head_width)
        stem, head, size = (tensors[f"{name}.weight"].shape for name in ("input_blocks.0.0", "out.2", "time_embed.0"))
    except KeyError as error:
        raise ValueError(f"{path} is not a UNetModel of improved-diffusion or guided-diffusion: it lacks {error.args[0]}.") from None
    if stem[1] != shape[0] or head[0] not in (shape[0], 2 * shape[0]):
        raise ValueError(
            f"{path} maps {stem[1]} channels to {head[0]}, which does not fit images of shape {shape} (once, or twice as many)."
        )
    label = tensors.get("label_emb.weight")
    features = TimestepSinusoids(size[1], knots(chain), stride=1000.0 / len(chain) if rescaled else 1.0)
    net = UNet(
        shape, layout, conditions=class_labels(0 if label is None else len(label)), out_channels=head[0], features=features, given=True
    )
    take(net, tensors, _names(net, interleaved), str(path))
    sampler = "ancestral-large" if head[0] == shape[0] else "ancestral-learned"
    return as_model(str(path), net, shape, chain, target, Sampling(sampler=sampler, steps=len(chain), spacing="uniform", clip=True))


def openai_weights(net: UNet, *, interleaved: bool = True) -> dict[str, Tensor]:
    """The state_dict of the `UNetModel` for this network, equal to the bit to what `load_openai` read.

    Raises:
        ValueError: something that their `UNetModel` cannot represent (the message names it).
    """
    label_rows(net)
    layout, features = net.layout, net.condition.features
    wanted = {"middle": (True, False), "middle_groups": None, "eps": 1e-5, "groups": 32, "pads_end": False}
    for name, value in wanted.items():
        if getattr(layout, name) != value:
            raise ValueError(f"{name}={getattr(layout, name)} cannot be represented in a UNetModel, which has {value}.")
    if not isinstance(features, TimestepSinusoids) or not features.cosine_first or features.shift != 0:
        raise ValueError("a UNetModel uses cosines, then sines, of the step index; this network's features are others.")
    return give(net, _names(net, interleaved))


def _layout(tensors: Mapping[str, Tensor], heads: int, head_width: int | None) -> UNetLayout:
    """What the names and shapes of the weights determine about the network."""

    def numbers(pattern: str) -> list[int]:
        return sorted({int(found[1]) for name in tensors if (found := re.match(pattern, name))})

    inputs, outputs = numbers(r"input_blocks\.(\d+)\."), numbers(r"output_blocks\.(\d+)\.")
    if not outputs:
        raise KeyError("output_blocks")
    gaps = sorted(set(range(inputs[-1])) - set(inputs)) if inputs else []
    if convolved := numbers(r"output_blocks\.(\d+)\.[12]\.conv\."):
        resample, stride = "conv", convolved[0] + 1
    elif resized := numbers(r"output_blocks\.(\d+)\.[12]\.in_layers\."):
        resample, stride = "block", resized[0] + 1
    elif gaps:
        resample, stride = "pool", gaps[0]
    else:
        resample, stride = "conv", len(outputs)
    levels = range(len(outputs) // stride)
    channels = tuple(len(tensors[f"input_blocks.{1 + i * stride}.0.out_layers.3.weight"]) for i in levels)
    if any(c % 32 for c in channels):
        raise ValueError(f"a UNetModel normalises in 32 groups, which do not divide the channels {channels}.")
    return UNetLayout(
        channels=channels,
        blocks=stride - 1,
        attention=tuple(f"input_blocks.{1 + i * stride}.1.qkv.weight" in tensors for i in levels),
        attention_up=tuple(f"output_blocks.{i * stride}.1.qkv.weight" in tensors for i in reversed(levels)),
        heads=heads,
        head_width=head_width,
        scales=len(tensors["input_blocks.1.0.emb_layers.1.weight"]) == 2 * channels[0],
        resample=resample,
        width=len(tensors["time_embed.2.weight"]),
    )


def _names(net: UNet, interleaved: bool) -> Names:
    layout, stride = net.layout, net.layout.blocks + 1
    attends = layout.attention_on_the_way_up[::-1]

    def place(group: str, i: int, j: int) -> str:
        """Their name for the j-th block of the i-th resolution, or for the resampling after it."""
        return {
            "down": f"input_blocks.{1 + i * stride + j}.",
            "up": f"output_blocks.{i * stride + j}.",
            "shrink": f"input_blocks.{(i + 1) * stride}.0.",
            "grow": f"output_blocks.{(i + 1) * stride - 1}.{1 + attends[i] if i < len(attends) else 1}.",
        }[group]

    def theirs(name: str) -> tuple[str]:
        name, kind = name.rsplit(".", 1)
        if name in ENDS:
            return (f"{ENDS[name]}.{kind}",)
        group, *numbers, last = name.split(".")
        if group == "middle":
            return (f"middle_block.{2 * int(numbers[0]) + (numbers[1] == 'attention')}.{PARTS[last]}.{kind}",)
        if last == "conv":
            return (f"{place(group, int(numbers[0]), 0)}{'op' if group == 'shrink' else 'conv'}.{kind}",)
        if group in ("shrink", "grow"):
            return (f"{place(group, int(numbers[0]), 0)}{PARTS[last]}.{kind}",)
        return (f"{place(group, int(numbers[0]), int(numbers[1]))}{int(numbers[2] == 'attention')}.{PARTS[last]}.{kind}",)

    def rows(name: str) -> Tensor | None:
        if not interleaved or ".qkv." not in name:
            return None
        channels = len(net.get_parameter(name)) // 3
        return torch.arange(3 * channels).reshape(layout.heads_of(channels), 3, -1).transpose(0, 1).flatten()

    return Names(theirs, rows, axes=3)
