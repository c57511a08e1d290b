"""Embeds conditions for networks: the level, classes and numbers in one vector, maps added to x.

A learned value, chosen by `torch.where` (never by multiplication), replaces a condition that is not given, so the value in such a row
affects neither the output nor a gradient.
"""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.condition import Classes, Condition, ConditionSpec, CondLike, Map, Numbers, as_cond, refuse_unknown, shape_of
from sfumato.nets.layers import Features, LogSNRFourier

RATES = 8  # sines and cosines for each number


class Conditioner(nn.Module):
    """One vector for each row: features of its log-SNR through an MLP, plus embeddings of its classes and numbers. Maps are added to x.

    Conditions are used in the order of their names, so the order of the mapping does not matter. A missing condition is not given in any
    row. The weights of "labels" are called `label`, as in old checkpoints, those of another condition `on_` and its name.
    """

    def __init__(
        self,
        width: int,
        conditions: Mapping[str, ConditionSpec] | None = None,
        features: Features | None = None,
        *,
        given: bool = False,
        stem: Callable[[int], nn.Module] | None = None,
    ) -> None:
        """Builds the embeddings.

        Args:
            width: of the vector.
            conditions: name to spec, as `accepted` returns them.
            features: `LogSNRFourier`, `TimestepSinusoids` or `LearnedTimesteps`; by default Fourier features, as many as the width.
            given: refuse examples without a class.
            stem: makes a layer without bias from the given number of map channels to the output of the network's first layer. The sum of
            both equals one layer over x and the map concatenated.
        """
        super().__init__()
        self.conditions = dict(sorted((conditions or {}).items()))
        self.features = features or LogSNRFourier(width - width % 2)
        self.level = nn.Sequential(nn.Linear(self.features.size, width), nn.SiLU(), nn.Linear(width, width))
        for name, spec in self.conditions.items():
            if isinstance(spec, Classes):
                part = ClassEmbedding(name, len(spec), width, given=given)
            elif isinstance(spec, Numbers):
                part = NumberEmbedding(name, spec, width)
            else:
                assert isinstance(spec, Map)
                assert stem is not None
                part = MapStem(name, spec.channels, stem(spec.channels))
            self.add_module(_key(name), part)

    def forward(self, log_snr: Float[Tensor, "b"], cond: CondLike | None) -> Float[Tensor, "b width"]:
        """The condition vectors, after a SiLU.

        Raises:
            ValueError: a condition that the network does not have or of another shape, a class out of range, or (on a CPU) a missing
            class that must be given.
        """
        known = as_cond(cond) or {}
        refuse_unknown(known, self.conditions, "this network")
        vector = self.level(self.features(log_snr).to(next(self.level.parameters()).dtype))
        for name in self.conditions:
            part = self.part(name)
            if not isinstance(part, MapStem):
                vector = vector + part(known.get(name), len(log_snr))
        return nn.functional.silu(vector)

    def maps(self, x: Float[Tensor, "b c *size"], cond: CondLike | None) -> list[tuple[nn.Module, Tensor]]:
        """For each map its layer, and the map at the size of x.

        Raises:
            ValueError: a map with another number of channels or axes.
        """
        known, found = as_cond(cond) or {}, []
        for name in self.conditions:
            part = self.part(name)
            if isinstance(part, MapStem):
                found.append((part.stem, part(known.get(name), x)))
        return found

    def part(self, name: str) -> "ClassEmbedding | NumberEmbedding | MapStem":
        """The weights of one condition."""
        return cast("ClassEmbedding | NumberEmbedding | MapStem", getattr(self, _key(name)))

    def begin_at_zero(self, *names: str) -> None:
        """Sets the effect of these conditions to zero, so that the network computes the same as without them; they can still learn.

        Raises:
            ValueError: an unknown name.
        """
        refuse_unknown(names, self.conditions, "this network")
        for name in names:
            self.part(name).begin_at_zero()


class ClassEmbedding(nn.Module):
    """A vector for each class, and one for no class, unless a class must be given."""

    def __init__(self, name: str, classes: int, width: int, *, given: bool = False) -> None:
        """Normal vectors of standard deviation 0.5."""
        super().__init__()
        self.name, self.classes, self.must_be_given = name, classes, given
        self.weight = nn.Embedding(classes + (not given), width).weight
        nn.init.normal_(self.weight, std=0.5)

    def forward(self, one: Condition | None, count: int) -> Float[Tensor, "b width"]:
        """The vectors; NaN for a missing class that must be given, if it was not checked (on devices other than the CPU)."""
        if one is None:
            if self.must_be_given:
                raise ValueError(self._must_be_given())
            return nn.functional.embedding(torch.full((count,), self.classes, device=self.weight.device), self.weight)
        if one.value.ndim != 1 or one.value.is_floating_point():
            raise ValueError(f'"{self.name}" must be integers [b], one class for each example, got {shape_of(one.value)}.')
        if one.value.device.type == "cpu" and not torch.compiler.is_compiling():
            self._refuse(one)
        if self.must_be_given:
            return nn.functional.embedding(one.value.where(one.given, 0), self.weight).where(one.given[:, None], math.nan)
        return nn.functional.embedding(one.value.where(one.given, self.classes), self.weight)

    def begin_at_zero(self) -> None:
        """Sets every vector to zero."""
        nn.init.zeros_(self.weight)

    def _refuse(self, one: Condition) -> None:
        low, high = map(int, one.value.where(one.given, 0).aminmax()) if len(one) else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(f"{self.name} must lie in 0 … {self.classes - 1} (or be -1 for none), got {low} to {high}.")
        if self.must_be_given and not bool(one.given.all()):
            raise ValueError(self._must_be_given())

    def _must_be_given(self) -> str:
        pass_them = f'pass cond={{"{self.name}": …}}, one in 0 … {self.classes - 1} a row'
        return f"this network was never trained without {'a label' if self.name == 'labels' else self.name}; {pass_them}."


class NumberEmbedding(nn.Module):
    """Sines and cosines of each number, at rates from 0.25 to 8 radians a unit, through an MLP; a learned vector if not given."""

    def __init__(self, name: str, spec: Numbers, width: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.name, self.size = name, spec.size
        self.shift = nn.Buffer(torch.tensor(spec.shift or (0.0,) * spec.size), persistent=False)
        self.scale = nn.Buffer(torch.tensor(spec.scale or (1.0,) * spec.size), persistent=False)
        self.embed = nn.Sequential(nn.Linear(2 * RATES * spec.size, width), nn.SiLU(), nn.Linear(width, width))
        self.missing = nn.Parameter(0.5 * torch.randn(width))

    def forward(self, one: Condition | None, count: int) -> Float[Tensor, "b width"]:
        """The vectors."""
        if one is None:
            return self.missing.expand(count, -1)
        if one.value.shape[1:] != (self.size,) or not one.value.is_floating_point():
            raise ValueError(f'"{self.name}" must be floats [b, {self.size}], got {shape_of(one.value)}.')
        given = one.given[:, None]
        unit = (one.value.where(given, 0) - self.shift) / self.scale
        rates = torch.logspace(math.log10(0.25), math.log10(8.0), RATES, device=unit.device, dtype=unit.dtype)
        angles = (unit[..., None] * rates).flatten(1)
        embedded = self.embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.missing.dtype))
        return embedded.where(given, self.missing)

    def begin_at_zero(self) -> None:
        """Sets the last layer and the vector for "not given" to zero."""
        last = cast(nn.Linear, self.embed[-1])
        for parameter in (last.weight, last.bias, self.missing):
            nn.init.zeros_(parameter)


class MapStem(nn.Module):
    """The first layer for a map, added to that for x; a learned value for each channel if not given."""

    def __init__(self, name: str, channels: int, stem: nn.Module) -> None:
        """Keeps the layer, which has no bias."""
        super().__init__()
        self.name, self.channels, self.stem = name, channels, stem
        self.missing = nn.Parameter(torch.zeros(channels))

    def forward(self, one: Condition | None, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b m *size"]:
        """The map at the size of x: averaged over areas if it is larger, linearly interpolated if it is smaller."""
        missing = self.missing.reshape(1, -1, *(1,) * (x.ndim - 2))
        if one is None:
            return missing.expand(len(x), -1, *x.shape[2:])
        if one.value.ndim != x.ndim or one.value.shape[1] != self.channels or not one.value.is_floating_point():
            axes = ", …" * (x.ndim - 2)
            raise ValueError(f'"{self.name}" must be floats [b, {self.channels}{axes}], got {shape_of(one.value)}.')
        given = one.given.reshape(-1, *(1,) * (x.ndim - 1))
        return resized(one.value.where(given, 0), x.shape[2:]).to(missing.dtype).where(given, missing)

    def begin_at_zero(self) -> None:
        """Sets the layer to zero."""
        for parameter in self.stem.parameters():
            nn.init.zeros_(parameter)


def _key(name: str) -> str:
    """The name of a condition's weights; module names have no dots."""
    return "label" if name == "labels" else "on_" + name.replace("%", "%25").replace(".", "%2E")


def accepted(
    net: str, consumes: tuple[type[ConditionSpec], ...], conditions: Mapping[str, ConditionSpec] | None
) -> dict[str, ConditionSpec]:
    """The conditions, after checking that the network supports their kinds.

    Raises:
        ValueError: names the first that it does not support.
    """
    for name, spec in (conditions or {}).items():
        if not isinstance(spec, consumes):
            kinds = ", ".join(kind.kind for kind in consumes)
            raise ValueError(f'{net} cannot take the condition "{name}" of kind {spec.kind}; it takes {kinds}.')
    return dict(conditions or {})


def resized(maps: Float[Tensor, "b c *from"], size: torch.Size) -> Float[Tensor, "b c *size"]:
    """Maps of this size: axes that shrink are averaged over areas, axes that grow are linearly interpolated, as images are scaled."""
    least = [min(a, b) for a, b in zip(maps.shape[2:], size, strict=True)]
    if list(maps.shape[2:]) != least:
        maps = nn.functional.interpolate(maps, least, mode="area")
    if maps.shape[2:] != size:
        maps = nn.functional.interpolate(maps, list(size), mode=("linear", "bilinear", "trilinear")[maps.ndim - 3])
    return maps
