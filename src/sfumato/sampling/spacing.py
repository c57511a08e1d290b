"""The levels of a sampling run: `grid(schedule, steps, spacing=…)`, and the spacings under their usual names.

A spacing maps (schedule, steps) to the times of the steps + 1 levels, from noise to data. Those that use a chain's indices (`leading`,
`ddim_stride`, `openai_sections`) need a `Discrete`; index i of the papers' code is our level k = i + 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.schedule import Discrete, Level, Schedule, finite_ends

Spacing = Callable[[Schedule, int], Tensor]


def grid(schedule: Schedule, steps: int, *, spacing: Spacing | None = None) -> list[Level]:
    """The steps + 1 levels from noise to data, zero-dimensional and in float64: they multiply tensors of any dtype on any device.

    Args:
        schedule: the schedule of the levels.
        steps: number of steps; each evaluates the model once, or more often for some methods (Heun twice).
        spacing: one of this module's; `log_snr` by default.

    Raises:
        ValueError: steps below 1, or more than a chain has, or a spacing that does not fit the schedule.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if isinstance(schedule, Discrete) and steps > len(schedule):
        raise ValueError(f"the chain has {len(schedule)} steps, but {steps} were asked for; use fewer, or a continuous schedule.")
    times = (spacing or log_snr)(schedule, steps)
    return [schedule.level(t) for t in times]


def uniform(schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
    """t uniform from 1 to 0; on a chain, rounded to the nearest levels."""
    return _snap(torch.linspace(1, 0, steps + 1, dtype=torch.float64), schedule)


def trailing(schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
    """Counts down from the last level in equal strides, then the data. Lin et al. (2024), table 2, arXiv:2305.08891."""
    return uniform(schedule, steps)


def leading(schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
    """Counts up from the first level in integer strides, without the noisiest level, as in DDIM's code. Lin et al. (2024), table 2."""
    chain = _chain(schedule, "leading")
    return _with_data(torch.arange(steps) * (len(chain) // steps) + 1, chain)


def ddim_stride(schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
    """`leading`, for a number of steps that an integer stride gives exactly, as improved-diffusion's "ddimN" requires."""
    chain = _chain(schedule, "ddim_stride")
    for stride in range(1, len(chain) + 1):
        kept = torch.arange(0, len(chain), stride)
        if len(kept) == steps:
            return _with_data(kept + 1, chain)
    raise ValueError(f"no integer stride over {len(chain)} steps gives {steps}; use a divisor of {len(chain)}, or spacing.trailing.")


def quadratic(schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
    """t = u², u uniform: denser near the data. Song et al. (2021), appendix D.2, arXiv:2010.02502."""
    return _snap(torch.linspace(1, 0, steps + 1, dtype=torch.float64).square(), schedule)


def log_snr(schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
    """Log-SNR uniform between the ends; a chain steps from its first level to the data. Lu et al. (2022), section 3.3, arXiv:2206.00927."""
    first, last = finite_ends(schedule)
    return _between(schedule, steps, lambda u: last + (first - last) * u)


@dataclass(frozen=True)
class softened:  # noqa: N801 - a spacing with an option, named like the others
    """log(1 + scale · alpha/sigma) uniform between the ends: log-SNR uniform near the data, alpha/sigma in the noise.

    Where alpha/sigma is far below 1/scale, x_t carries no information on x0 and the flow is straight; `log_snr` wastes a third of its
    levels there.
    """

    scale: float = 20.0

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
        """The times of the levels."""
        first, last = ((self.scale * (end / 2).exp()).log1p() for end in finite_ends(schedule))
        return _between(schedule, steps, lambda u: 2 * ((last + (first - last) * u).expm1() / self.scale).log())


@dataclass(frozen=True)
class karras:  # noqa: N801 - a spacing with an option, named like the others
    """(sigma/alpha)^(1/rho) uniform between the ends. Karras et al. (2022), eq. 5, arXiv:2206.00364."""

    rho: float = 7.0

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
        """The times of the levels."""
        first, last = ((-end / (2 * self.rho)).exp() for end in finite_ends(schedule))
        return _between(schedule, steps, lambda u: -2 * self.rho * (last + (first - last) * u).log())


@dataclass(frozen=True)
class shifted:  # noqa: N801 - a spacing with an option, named like the others
    """u' = shift u / (1 + (shift - 1) u), with u = sigma / (alpha + sigma), a rectified flow's time, uniform between the ends.

    It multiplies sigma/alpha by `shift`: more noise for larger images, 3 in SD3. Levels beyond the schedule's ends (below the first
    level's noise, above the last's) are clamped to them. Esser et al. (2024), eq. 23, arXiv:2403.03206.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        """Refuses a shift that is not positive."""
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be positive, got {self.shift}; 1 keeps the flow's time uniform, SD3 uses 3.")

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
        """The times of the levels."""
        first, last = ((-end / 2).sigmoid() for end in finite_ends(schedule))
        return _between(schedule, steps, lambda u: -2 * (last + (first - last) * u).logit() - 2 * math.log(self.shift))


@dataclass(frozen=True)
class openai_sections:  # noqa: N801 - a spacing with an option, named like the others
    """A chain divided into equal sections, each with its own number of evenly spaced steps; improved-diffusion's "a,b,c".

    Nichol & Dhariwal (2021), section 4, arXiv:2102.09672, and its public code. Without counts: one section with `steps`.
    """

    counts: tuple[int, ...] = ()

    def __init__(self, counts: Sequence[int] = ()) -> None:
        """Takes the counts from the data's end to the noise's."""
        object.__setattr__(self, "counts", tuple(counts))

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "levels"]:
        """The times of the kept levels and of the data."""
        chain, counts = _chain(schedule, "openai_sections"), self.counts or (steps,)
        if sum(counts) != steps:
            raise ValueError(f"the sections keep {sum(counts)} steps in all, but {steps} were asked for.")
        whole, extra = divmod(len(chain), len(counts))
        kept, start = [], 0
        for i, count in enumerate(counts):
            size = whole + (i < extra)
            if count > size:
                raise ValueError(f"a section of {size} steps cannot keep {count}.")
            stride, place = (size - 1) / (count - 1) if count > 1 else 1.0, 0.0
            for _ in range(count):  # summed as in the public code, which determines how halves are rounded
                kept.append(start + round(place))
                place += stride
            start += size
        return _with_data(torch.tensor(kept) + 1, chain)


def _chain(schedule: Schedule, name: str) -> Discrete:
    if not isinstance(schedule, Discrete):
        raise ValueError(f"spacing.{name} needs the steps of a chain, got {schedule!r}; use spacing.uniform, or a Discrete schedule.")
    return schedule


def _with_data(kept: Tensor, chain: Discrete) -> Tensor:
    """Ascending levels k of a chain to descending times that end at the data."""
    return torch.cat([kept.flip(0).double() / len(chain), torch.zeros(1, dtype=torch.float64)])


def _snap(times: Tensor, schedule: Schedule) -> Tensor:
    """On a chain, the nearest levels, separated if two times have the same nearest level."""
    if not isinstance(schedule, Discrete):
        return times
    k = (times * len(schedule)).round().long()
    room = torch.arange(len(k) - 1, -1, -1)
    k = torch.maximum(k, room)
    return k.double() / len(schedule)


def _between(schedule: Schedule, steps: int, curve: Callable[[Tensor], Tensor]) -> Tensor:
    """Times along a curve of log-SNR over u from 0 (noise) to 1; on a chain the last step goes from its first level to the data."""
    if not isinstance(schedule, Discrete):
        times = schedule.time(curve(torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
        times[0], times[-1] = 1, 0
        return times
    times = schedule.time(curve(torch.linspace(0, 1, steps, dtype=torch.float64)))
    times[0] = 1
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])
