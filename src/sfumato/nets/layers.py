"""Parts that several networks share. Networks map (x of unit scale, log_snr, cond) to a tensor of x's size; they know no more than that."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Condition(nn.Module):
    """One vector a row from its log-SNR (sines and cosines through an MLP) and, where there are classes, its label.

    A label of -1, or no label at all, has an embedding of its own.
    """

    def __init__(self, width: int, classes: int = 0) -> None:
        """Makes the embedding of `width` entries; `classes` = 0 ignores labels."""
        super().__init__()
        self.classes = classes
        self.waves = width // 2
        self.level = nn.Sequential(nn.Linear(2 * self.waves, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.5)

    def forward(self, log_snr: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None) -> Float[Tensor, "b width"]:
        """The condition vectors, after a SiLU.

        Raises:
            ValueError: a label outside -1 … classes - 1.
        """
        rates = torch.logspace(math.log10(0.05), math.log10(5.0), self.waves, device=log_snr.device)
        dtype = next(self.parameters()).dtype
        angles = log_snr[:, None].clamp(-40, 40) * rates.to(log_snr.dtype)
        vector = self.level(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))
        if self.label is not None:
            labels = torch.full_like(log_snr, -1, dtype=torch.long) if cond is None or "labels" not in cond else cond["labels"]
            if not torch.compiler.is_compiling() and bool(((labels < -1) | (labels >= self.classes)).any()):
                raise ValueError(f"labels must lie in 0 … {self.classes - 1} (or be -1 for none), got {labels.min()} to {labels.max()}.")
            vector = vector + self.label(torch.where(labels < 0, self.classes, labels))
        return nn.functional.silu(vector)


def zeroed(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """The layer with weight and bias at zero, so that a residual branch begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def attend(q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"], scale: float) -> Float[Tensor, "b h n d"]:
    """softmax(scale q kᵀ) v, as two plain products on a CPU, where they beat the fused kernel at the sizes of images."""
    if q.device.type == "cpu":
        return (scale * q @ k.mT).softmax(dim=-1) @ v
    return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def pad_to_multiple(x: Float[Tensor, "b c *size"], multiple: int) -> Tensor:
    """x with zeros after its end on every spatial axis, up to a multiple of `multiple`."""
    pads = [pad for n in reversed(x.shape[2:]) for pad in (0, -n % multiple)]
    return nn.functional.pad(x, pads) if any(pads) else x


def crop_like(y: Float[Tensor, "b c *padded"], x: Float[Tensor, "b d *size"]) -> Tensor:
    """y cut to the spatial size of x."""
    return y[(..., *(slice(n) for n in x.shape[2:]))]
