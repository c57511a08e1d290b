"""Parts that several networks share. Networks map (x of unit scale, log_snr, cond) to a tensor of x's size; they know no more than that."""

import math
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.kernels.winograd import Conv3x3


class LogSNRFourier(nn.Module):
    """Sines and cosines of the log-SNR, `size` of them, at rates from 0.05 to 5 radians a nat."""

    def __init__(self, size: int) -> None:
        """Has no weights."""
        super().__init__()
        self.size = size

    def forward(self, log_snr: Float[Tensor, "b"]) -> Float[Tensor, "b size"]:
        """The features; beyond 40 nats they stay as they are there."""
        rates = torch.logspace(math.log10(0.05), math.log10(5.0), self.size // 2, device=log_snr.device)
        angles = log_snr[:, None].clamp(-40, 40) * rates.to(log_snr.dtype)
        return _padded([angles.cos(), angles.sin()], self.size)


class TimestepSinusoids(nn.Module):
    """Sines and cosines of the place of a log-SNR in a falling table of them, at rates from 1 to 1/10000 radians a place.

    The encoding of Vaswani et al. (2017), section 3.5, arXiv:1706.03762, for networks that were trained to see the number of a step: in
    float32, as theirs is, since at the thousandth place its rounding is what their weights have learned.
    """

    def __init__(self, size: int, knots: Float[Tensor, "n"], *, stride: float = 1.0, cosine_first: bool = True, shift: float = 0.0) -> None:
        """Has no weights.

        Args:
            size: how many features.
            knots: the table, in nats; -inf may be its last.
            stride: what one place counts.
            cosine_first: the cosines before the sines.
            shift: the slowest rate is 10000 to the power -(n - 1) / (n - shift), n = size // 2.

        Raises:
            ValueError: as `place_in`.
        """
        super().__init__()
        refuse_knots(knots)
        self.size, self.stride, self.cosine_first, self.shift = size, stride, cosine_first, shift
        self.knots = knots.double()
        self.rounded = nn.Buffer(knots.float(), persistent=False)

    def forward(self, log_snr: Float[Tensor, "b"]) -> Float[Tensor, "b size"]:
        """The features."""
        half = self.size // 2
        steps = torch.arange(half, dtype=torch.float32, device=log_snr.device)
        rates = (-math.log(10000) * steps / (half - self.shift)).exp()
        angles = (_place(self, log_snr).float() * self.stride)[:, None] * rates
        waves = [angles.cos(), angles.sin()]
        return _padded(waves if self.cosine_first else waves[::-1], self.size)


class LearnedTimesteps(nn.Module):
    """A learned row of features for each entry of a falling table of log-SNRs; between two entries, between their rows."""

    def __init__(self, size: int, knots: Float[Tensor, "n"]) -> None:
        """Normal rows at first.

        Raises:
            ValueError: as `place_in`.
        """
        super().__init__()
        refuse_knots(knots)
        self.size, self.knots = size, knots.double()
        self.rounded = nn.Buffer(knots.float(), persistent=False)
        self.weight = nn.Parameter(torch.randn(len(knots), size))

    def forward(self, log_snr: Float[Tensor, "b"]) -> Float[Tensor, "b size"]:
        """The features."""
        place = _place(self, log_snr)
        below = place.floor().long()
        share = (place - below)[:, None].to(self.weight)
        return torch.lerp(self.weight[below], self.weight[(below + 1).clamp(max=len(self.weight) - 1)], share)


def place_in(knots: Float[Tensor, "n"], log_snr: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Where in a falling table of log-SNRs each one lies: 0 at its first entry, linear between two, at the ends beyond them.

    Computed in the dtype of the table. Within a thousandth of an entry it is that entry: what rounding leaves of a level of the table in
    float32.
    """
    rising, value = -knots, -log_snr.to(knots.dtype)
    above = torch.searchsorted(rising, value).clamp(1, len(knots) - 1)
    share = ((value - rising[above - 1]) / (rising[above] - rising[above - 1])).clamp(0, 1)
    place = above - 1 + share.nan_to_num(nan=1.0)  # infinity over infinity: at a last entry without signal
    nearest = place.round()
    return torch.where((place - nearest).abs() < 1e-3, nearest, place)


def _place(features: "TimestepSinusoids | LearnedTimesteps", log_snr: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The place in a network's table: in float64 on a CPU, elsewhere in float32, which every device has."""
    return place_in(features.knots if log_snr.device.type == "cpu" else features.rounded, log_snr)


def refuse_knots(knots: Tensor) -> None:
    """Refuses a table of log-SNRs that is not one: fewer than two, or not falling."""
    if knots.ndim != 1 or len(knots) < 2 or not bool((knots[1:] < knots[:-1]).all()):
        raise ValueError(f"a table of log-SNRs has at least two, falling; got {len(knots)} of shape {tuple(knots.shape)}.")


def _padded(parts: list[Tensor], size: int) -> Tensor:
    """The features side by side; an odd size ends in a zero."""
    return nn.functional.pad(torch.cat(parts, dim=1), (0, size % 2))


Features = LogSNRFourier | TimestepSinusoids | LearnedTimesteps
Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d)


def refuse_misfit(x: Tensor, shape: tuple[int, ...], *, exactly: bool = False) -> None:
    """Refuses x without the channels and axes of `shape`, that of one x that a network was built for; sizes may differ unless `exactly`.

    Raises:
        ValueError: another number of channels or axes, or another size.
    """
    if x.ndim != len(shape) + 1 or x.shape[1] != shape[0] or (exactly and x.shape[1:] != shape):
        wanted = ", ".join(map(str, ("b", *shape)))
        sizes = "" if exactly or len(shape) < 2 else " (or of another size)"
        raise ValueError(f"this network takes x of shape [{wanted}]{sizes}, channels after the batch, got {tuple(x.shape)}.")


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias at zero, so that a residual branch begins as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Conv3(nn.Conv1d):
    """What `Conv3x3` is to maps, to signals."""

    def __init__(self, inward: int, outward: int) -> None:
        """As `nn.Conv1d`."""
        super().__init__(inward, outward, 3, padding=1)

    def forward(self, input: Float[Tensor, "b c n"], plus: Float[Tensor, "b d n"] | None = None) -> Float[Tensor, "b d n"]:
        """The convolution, and `plus` added to it."""
        y = super().forward(input)
        return y if plus is None else plus + y


def conv3(inward: int, outward: int, dims: int) -> Conv3 | Conv3x3:
    """A convolution of three entries a side that keeps the size, in one dimension or two."""
    return (Conv3, Conv3x3)[dims - 1](inward, outward)


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
