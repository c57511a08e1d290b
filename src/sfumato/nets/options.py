"""The options of each network, and building it from them."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field

from sfumato import nets
from sfumato.condition import ConditionSpec
from sfumato.options import Options, Size

Conditions = Mapping[str, ConditionSpec]


class MLPNet(Options):
    """`nets.MLP`."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=256, ge=1)
    depth: int = Field(default=4, ge=1)
    waves: int = Field(default=64, ge=0)

    def build(self, shape: tuple[int, ...], conditions: Conditions, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.MLP(shape, width=self.width, depth=self.depth, conditions=conditions, waves=self.waves, out_channels=out_channels)


class UNetNet(Options):
    """`nets.UNet`, with the option names of `nets.UNetLayout`."""

    kind: Literal["unet"] = "unet"
    channels: tuple[Size, ...] = Field(default=(64, 128, 128), min_length=1)
    blocks: int = Field(default=2, ge=1)
    attention: tuple[bool, ...] = (False, False, True)
    attention_up: tuple[bool, ...] | None = None
    middle: tuple[bool, ...] = (True, False)
    heads: int = Field(default=4, ge=1)
    head_width: int | None = Field(default=None, ge=1)
    groups: int = Field(default=32, ge=1)
    middle_groups: int | None = Field(default=None, ge=0)
    eps: float = Field(default=1e-5, gt=0)
    scales: bool = True
    resample: Literal["conv", "pool", "block"] = "conv"
    pads_end: bool = False
    width: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, shape: tuple[int, ...], conditions: Conditions, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        layout = nets.UNetLayout(**self.model_dump(exclude={"kind"}))
        return nets.UNet(shape, layout, conditions=conditions, out_channels=out_channels)


class DiTNet(Options):
    """`nets.DiT`."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(default=4, ge=1)
    width: int = Field(default=192, ge=1)
    depth: int = Field(default=8, ge=1)
    heads: int = Field(default=6, ge=1)

    def build(self, shape: tuple[int, ...], conditions: Conditions, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.DiT(
            shape, patch=self.patch, width=self.width, depth=self.depth, heads=self.heads, conditions=conditions, out_channels=out_channels
        )


class PatchUNetNet(Options):
    """`nets.PatchUNet`."""

    kind: Literal["patch-unet"] = "patch-unet"
    patch: int = Field(default=2, ge=1)
    widths: tuple[Size, ...] = Field(default=(64, 192), min_length=2)
    depth: int = Field(default=2, ge=0)
    middle: str = "cac"
    heads: int = Field(default=6, ge=1)

    def build(self, shape: tuple[int, ...], conditions: Conditions, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.PatchUNet(
            shape,
            patch=self.patch,
            widths=self.widths,
            depth=self.depth,
            middle=self.middle,
            heads=self.heads,
            conditions=conditions,
            out_channels=out_channels,
        )


class OwnNet(Options):
    """Your own network, given in Python: called as module(x at unit scale, log_snr [b], cond)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    kind: Literal["own"] = "own"
    module: torch.nn.Module | None = Field(default=None, exclude=True)

    @property
    def is_missing(self) -> bool:
        """Whether it was read from a file, which cannot hold the module."""
        return self.module is None

    def build(self, shape: tuple[int, ...], conditions: Conditions, out_channels: int | None = None) -> torch.nn.Module:
        """A copy of the module.

        Raises:
            ValueError: there is none, as in a recipe that was read from a file.
        """
        if self.module is None:
            raise ValueError("net.kind=own is your own network, which a file cannot hold; train and load it in Python.")
        return copy.deepcopy(self.module)


def _own(net: Any) -> Any:
    return OwnNet(module=net) if isinstance(net, torch.nn.Module) else net


if TYPE_CHECKING:  # a module of the user's own is taken as well
    Net = MLPNet | UNetNet | DiTNet | PatchUNetNet | OwnNet | Any
else:
    Net = Annotated[MLPNet | UNetNet | DiTNet | PatchUNetNet | OwnNet, BeforeValidator(_own), Field(discriminator="kind")]
