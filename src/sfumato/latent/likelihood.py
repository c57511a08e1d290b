"""p(x | z) as a decoder says it: which numbers it gives for each entry of x, and how probable they make x.

A decoder's output holds `numbers` blocks along axis 1, each of the shape of x. A Gaussian without a bin width is a density; the others are
probabilities, of values on a grid or of black and white, and only those give bits/dim that files could be as long as.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.deprecated import old_fields
from sfumato.noise import Generator, normal_like
from sfumato.process import Normal


@runtime_checkable
class Likelihood(Protocol):
    """The law of x given a decoder's output."""

    @property
    def numbers(self) -> int:
        """How many numbers the decoder gives for each entry of x."""
        ...

    def log_prob(self, said: Float[Tensor, "b *said"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """log p(x | z) in nats, the sum over the entries."""
        ...

    def mean(self, said: Float[Tensor, "b *said"]) -> Float[Tensor, "b *x"]:
        """The x that the decoder means."""
        ...

    def sample(self, said: Float[Tensor, "b *said"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """A draw of x."""
        ...


@old_fields(width="bin_width")
@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """N(mean, std²); the decoder learns the variance of each entry, too, where no std is given.

    Args:
        std: fixed, in units of x.
        bin_width: distance of neighbouring values of data in [-1, 1]: 2/255 for bytes. If given, `log_prob` is that of the
            bins, the outermost open.
        log_variance_min: below it a learned variance does not go (an entry that is known exactly would have an infinite density).

    Raises:
        ValueError: a std or bin width that is not positive.
    """

    std: float | None = None
    bin_width: float | None = None
    log_variance_min: float = -14.0

    def __post_init__(self) -> None:
        """Refuses what is no scale."""
        for name, value in (("std", self.std), ("bin width", self.bin_width)):
            if value is not None and not value > 0:
                raise ValueError(f"the {name} of a Gaussian likelihood must be positive, got {value}.")

    @property
    def numbers(self) -> int:
        """One, or two with a learned variance."""
        return 2 if self.std is None else 1

    def law(self, said: Float[Tensor, "b *said"]) -> Normal:
        """The Gaussian of each entry."""
        if self.std is not None:
            return Normal(said, said.new_tensor(self.std).square().log())
        mean, log_variance = _blocks(said, 2)
        return Normal(mean, log_variance.clamp(min=self.log_variance_min))

    def log_prob(self, said: Float[Tensor, "b *said"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """Its log-density, or the log-probability of x's bins."""
        law = self.law(said)
        _refuse_other_shape(law.mean, x)
        if self.bin_width is None:
            return law.log_prob(x).flatten(1).sum(1)
        refuse_outside(x, -1.0, 1.0, "a binned Gaussian likelihood")
        return law.binned_log_prob(on_grid(x, self.bin_width), bin_width=self.bin_width).flatten(1).sum(1)

    def mean(self, said: Float[Tensor, "b *said"]) -> Float[Tensor, "b *x"]:
        """Its mean."""
        return self.law(said).mean

    def sample(self, said: Float[Tensor, "b *said"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """mean + std eps."""
        return self.law(said).sample(generator)


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """Black or white; the decoder gives logits. A grey x counts as that share of white, which is a loss but no probability of x.

    Args:
        low: the value of x that stands for 0; 1 stands for 1. -1 for images in [-1, 1].

    Raises:
        ValueError: from `log_prob`: x outside [low, 1].
    """

    low: float = 0.0

    @property
    def numbers(self) -> int:
        """One."""
        return 1

    def log_prob(self, said: Float[Tensor, "b *said"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """Σ x log p + (1 - x) log(1 - p) = Σ x logit - softplus(logit)."""
        _refuse_other_shape(said, x)
        refuse_outside(x, self.low, 1.0, "a Bernoulli likelihood")
        share = (x - self.low) / (1 - self.low)
        return (share * said - torch.nn.functional.softplus(said)).flatten(1).sum(1)

    def mean(self, said: Float[Tensor, "b *said"]) -> Float[Tensor, "b *x"]:
        """p, on the scale of x."""
        return self.low + (1 - self.low) * said.sigmoid()

    def sample(self, said: Float[Tensor, "b *said"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """The low value or 1."""
        chance = torch.special.ndtr(normal_like(said, generator))
        return torch.where(chance < said.sigmoid(), 1.0, self.low).to(said)


@old_fields(width="bin_width")
@dataclass(frozen=True, kw_only=True)
class DiscretisedLogistic:
    """A logistic law's mass in each value's bin, the outermost bins of [-1, 1] open; the decoder gives mean and log scale.

    log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b)), in which nothing cancels.

    Reference: Kingma et al. (2016), section 4 and appendix C.1.1, arXiv:1606.04934; Salimans et al. (2017), eqs. 1 and 2, arXiv:1701.05517.

    Args:
        bin_width: distance of neighbouring values of data in [-1, 1]: 2/255 for bytes.
        log_scale_min: below it the scale does not go; e^-7 is an eighth of a byte's bin.

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

    def log_prob(self, said: Float[Tensor, "b *said"], x: Float[Tensor, "b *x"]) -> Float[Tensor, "b"]:
        """The log-probability of x's bins."""
        refuse_outside(x, -1.0, 1.0, "a discretised logistic likelihood")
        mean, log_scale = _blocks(said, 2)
        _refuse_other_shape(mean, x)
        x = on_grid(x, self.bin_width)
        sharpness = (-log_scale.clamp(min=self.log_scale_min)).exp()
        upper, lower = ((x - mean + side * self.bin_width / 2) * sharpness for side in (1, -1))
        below, above = torch.nn.functional.logsigmoid(upper), torch.nn.functional.logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-self.bin_width * sharpness))
        top, bottom = x > 1 - self.bin_width / 2, x < -1 + self.bin_width / 2
        return torch.where(bottom, below, torch.where(top, above, inside)).flatten(1).sum(1)

    def mean(self, said: Float[Tensor, "b *said"]) -> Float[Tensor, "b *x"]:
        """The logistic's mean, cut to [-1, 1]."""
        return _blocks(said, 2)[0].clamp(-1, 1)

    def sample(self, said: Float[Tensor, "b *said"], generator: Generator | None = None) -> Float[Tensor, "b *x"]:
        """The value on the grid whose bin a draw falls into."""
        mean, log_scale = _blocks(said, 2)
        u = torch.special.ndtr(normal_like(mean, generator).double()).clamp(1e-12, 1 - 1e-12)
        x = mean + log_scale.clamp(min=self.log_scale_min).exp() * u.logit().to(mean)
        return on_grid(x, self.bin_width).clamp(-1, 1)


def _blocks(said: Tensor, count: int) -> tuple[Tensor, ...]:
    if said.shape[1] % count:
        raise ValueError(f"this likelihood needs {count} numbers for each entry of x, got a decoder's output of {tuple(said.shape)}.")
    return said.chunk(count, dim=1)


def _refuse_other_shape(said: Tensor, x: Tensor) -> None:
    if said.shape != x.shape:
        raise ValueError(f"the decoder speaks of an x of shape {tuple(said.shape)}, got one of {tuple(x.shape)}.")


def on_grid(x: Tensor, bin_width: float) -> Tensor:
    """x as the nearest value so far apart, from -1 up, whose bin it is charged for: 17 greys, say, were rounded to bytes on their way."""
    return ((x + 1) / bin_width).round() * bin_width - 1


def refuse_outside(x: Tensor, low: float, high: float, name: str) -> None:
    """Refuses data that a law gives no probability, rounding aside."""
    if bool(((x < low - 1e-4) | (x > high + 1e-4)).any()):
        raise ValueError(
            f"{name} is for data in [{low:g}, {high:g}], got {x.min().item():.4g} to {x.max().item():.4g}; "
            "rescale the data, or take a Gaussian likelihood."
        )
