"""The law p(x | z): what a decoder's output means, and the probability of x under it.

A decoder's output holds `numbers` blocks along axis 1, each of the shape of x. A Gaussian without a bin width is a density; the others are
probabilities of discrete values, and only those give bits/dim that correspond to file sizes.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.deprecated import old_fields
from sfumato.noise import Generator, normal_like
from sfumato.process import Normal
from sfumato.runtime import moved


@runtime_checkable
class Likelihood(Protocol):
    """The law of x given a decoder's output."""

    @property
    def numbers(self) -> int:
        """How many numbers the decoder gives for each entry of x."""
        ...

    def log_prob(self, output: Float[Tensor, "b *output"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """log p(x | z) in nats, the sum over the entries."""
        ...

    def mean(self, output: Float[Tensor, "b *output"]) -> Float[Tensor, "b *x"]:
        """The mean of x."""
        ...

    def sample(self, output: Float[Tensor, "b *output"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """A draw of x."""
        ...


@old_fields(width="bin_width")
@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """N(mean, std²); without a std, the decoder also predicts the variance of each entry.

    Args:
        std: fixed, in units of x.
        bin_width: distance of neighbouring values of data in [-1, 1]: 2/255 for bytes. If given, `log_prob` is that of the
            bins, the outermost open.
        log_variance_min: lower limit of a learned log variance (an entry that is known exactly would have an infinite density).

    Raises:
        ValueError: a std or bin width that is not positive.
    """

    std: float | None = None
    bin_width: float | None = None
    log_variance_min: float = -14.0

    def __post_init__(self) -> None:
        """Checks std and bin width."""
        for name, value in (("std", self.std), ("bin width", self.bin_width)):
            if value is not None and not value > 0:
                raise ValueError(f"the {name} of a Gaussian likelihood must be positive, got {value}.")

    @property
    def numbers(self) -> int:
        """One, or two with a learned variance."""
        return 2 if self.std is None else 1

    def law(self, output: Float[Tensor, "b *output"]) -> Normal:
        """The Gaussian of each entry."""
        if self.std is not None:
            return Normal(output, output.new_tensor(self.std).square().log())
        mean, log_variance = _blocks(output, 2)
        return Normal(mean, log_variance.clamp(min=self.log_variance_min))

    def log_prob(self, output: Float[Tensor, "b *output"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """Its log-density, or the log-probability of x's bins."""
        law = self.law(output)
        _refuse_other_shape(law.mean, x)
        if self.bin_width is None:
            return law.log_prob(x).flatten(1).sum(1)
        refuse_outside(x, -1.0, 1.0, "a binned Gaussian likelihood")
        return law.binned_log_prob(on_grid(x, self.bin_width), bin_width=self.bin_width).flatten(1).sum(1)

    def mean(self, output: Float[Tensor, "b *output"]) -> Float[Tensor, "b *x"]:
        """Its mean."""
        return self.law(output).mean

    def sample(self, output: Float[Tensor, "b *output"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """mean + std eps."""
        return self.law(output).sample(generator)


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """Black or white; the decoder gives logits. For a grey x, the result is a cross-entropy and not a probability of x.

    Args:
        low: the value of x that means 0; the value 1 means 1. -1 for images in [-1, 1].

    Raises:
        ValueError: from `log_prob`: x outside [low, 1].
    """

    low: float = 0.0

    @property
    def numbers(self) -> int:
        """One."""
        return 1

    def log_prob(self, output: Float[Tensor, "b *output"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """Σ x log p + (1 - x) log(1 - p) = Σ x logit - softplus(logit)."""
        _refuse_other_shape(output, x)
        refuse_outside(x, self.low, 1.0, "a Bernoulli likelihood")
        share = (x - self.low) / (1 - self.low)
        return (share * output - torch.nn.functional.softplus(output)).flatten(1).sum(1)

    def mean(self, output: Float[Tensor, "b *output"]) -> Float[Tensor, "b *x"]:
        """p, on the scale of x."""
        return self.low + (1 - self.low) * output.sigmoid()

    def sample(self, output: Float[Tensor, "b *output"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """The low value or 1."""
        chance = torch.special.ndtr(normal_like(output, generator))
        return torch.where(chance < output.sigmoid(), 1.0, self.low).to(output)


@old_fields(width="bin_width")
@dataclass(frozen=True, kw_only=True)
class DiscretisedLogistic:
    """A logistic law integrated over each value's bin, the outermost bins of [-1, 1] open; the decoder gives mean and log scale.

    log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b)), where nothing cancels.

    Reference: Kingma et al. (2016), section 4 and appendix C.1.1, arXiv:1606.04934; Salimans et al. (2017), eqs. 1 and 2, arXiv:1701.05517.

    Args:
        bin_width: distance of neighbouring values of data in [-1, 1]: 2/255 for bytes.
        log_scale_min: lower limit of the log scale; e^-7 is an eighth of a byte's bin.

    Raises:
        ValueError: a bin width that is not positive; from `log_prob`, x outside [-1, 1].
    """

    bin_width: float = 2 / 255
    log_scale_min: float = -7.0

    def __post_init__(self) -> None:
        """Checks the bin width."""
        if not self.bin_width > 0:
            raise ValueError(f"the bin width of a discretised logistic must be positive, got {self.bin_width}.")

    @property
    def numbers(self) -> int:
        """Two."""
        return 2

    def log_prob(self, output: Float[Tensor, "b *output"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """The log-probability of x's bins."""
        refuse_outside(x, -1.0, 1.0, "a discretised logistic likelihood")
        mean, log_scale = _blocks(output, 2)
        _refuse_other_shape(mean, x)
        x = on_grid(x, self.bin_width)
        sharpness = (-log_scale.clamp(min=self.log_scale_min)).exp()
        upper, lower = ((x - mean + side * self.bin_width / 2) * sharpness for side in (1, -1))
        below, above = torch.nn.functional.logsigmoid(upper), torch.nn.functional.logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-self.bin_width * sharpness))
        top, bottom = x > 1 - self.bin_width / 2, x < -1 + self.bin_width / 2
        return torch.where(bottom, below, torch.where(top, above, inside)).flatten(1).sum(1)

    def mean(self, output: Float[Tensor, "b *output"]) -> Float[Tensor, "b *x"]:
        """The logistic's mean, cut to [-1, 1]."""
        return _blocks(output, 2)[0].clamp(-1, 1)

    def sample(self, output: Float[Tensor, "b *output"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """A draw, rounded to the grid of values."""
        mean, log_scale = _blocks(output, 2)
        u = torch.special.ndtr(normal_like(torch.empty_like(mean, device="cpu"), generator).double()).clamp(1e-12, 1 - 1e-12)
        x = mean + log_scale.clamp(min=self.log_scale_min).exp() * moved(u.logit(), mean)
        return on_grid(x, self.bin_width).clamp(-1, 1)


def _blocks(output: Tensor, count: int) -> tuple[Tensor, ...]:
    if output.shape[1] % count:
        raise ValueError(f"this likelihood needs {count} numbers for each entry of x, got a decoder's output of {tuple(output.shape)}.")
    return output.chunk(count, dim=1)


def _refuse_other_shape(output: Tensor, x: Tensor) -> None:
    if output.shape != x.shape:
        raise ValueError(f"the decoder is for x of shape {tuple(output.shape)}, got {tuple(x.shape)}.")


def on_grid(x: Tensor, bin_width: float) -> Tensor:
    """x rounded to the grid of this spacing from -1 up (data of 17 grey levels, for example, were rounded to bytes before)."""
    return ((x + 1) / bin_width).round() * bin_width - 1


def refuse_outside(x: Tensor, low: float, high: float, name: str) -> None:
    """Refuses data outside the support of a likelihood, up to rounding. Checks data on the CPU only, because others would be waited for."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((x < low - 1e-4) | (x > high + 1e-4)).any()):
        raise ValueError(
            f"{name} is for data in [{low:g}, {high:g}], got {x.min().item():.4g} to {x.max().item():.4g}; "
            "rescale the data, or use a Gaussian likelihood."
        )
