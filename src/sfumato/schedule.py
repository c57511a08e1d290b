"""How noisy is noisy: levels, and the schedules that order them in time.

Every process here has Gaussian marginals x_t = alpha x0 + sigma eps. A `Level` is that pair of scales, and it is the only thing that the
rest of the library knows of noise: networks, losses, steps and likelihoods take levels, never times. A schedule is a decreasing curve of
log-SNR, log(alpha²/sigma²) in nats, over t in [0, 1] (0 = data), together with `scales`, the rule that turns log-SNR into (alpha, sigma).
Curve and scales are independent: `Cosine(scales=ve_scales)` is the cosine curve walked with alpha = 1.

A continuous schedule is cut to [log_snr_min, log_snr_max] and stretched back over t in [0, 1], so both ends are finite. A `Discrete` chain
has its exact levels at t = k/T, k = 0 … T, with Level(1, 0) at k = 0 as in the papers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.runtime import moved

Scales = Callable[[Tensor], tuple[Tensor, Tensor]]


def vp_scales(log_snr: Float[Tensor, "*t"]) -> tuple[Float[Tensor, "*t"], Float[Tensor, "*t"]]:
    """Variance preserving: alpha² + sigma² = 1."""
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def ve_scales(log_snr: Float[Tensor, "*t"]) -> tuple[Float[Tensor, "*t"], Float[Tensor, "*t"]]:
    """Variance exploding: alpha = 1."""
    return torch.ones_like(log_snr), (-log_snr / 2).exp()


def flow_scales(log_snr: Float[Tensor, "*t"]) -> tuple[Float[Tensor, "*t"], Float[Tensor, "*t"]]:
    """Straight lines from noise to data: alpha + sigma = 1."""
    return (log_snr / 2).sigmoid(), (-log_snr / 2).sigmoid()


def sub_vp_scales(log_snr: Float[Tensor, "*t"]) -> tuple[Float[Tensor, "*t"], Float[Tensor, "*t"]]:
    """Sub-VP: sigma = 1 - alpha². Song et al. (2021), eq. 29, arXiv:2011.13456."""
    inverse_ratio = (-log_snr / 2).exp()
    alpha = 2 / (inverse_ratio + (inverse_ratio.square() + 4).sqrt())
    return alpha, alpha * inverse_ratio


@dataclass(frozen=True, slots=True)
class Level:
    """How noisy x_t = alpha x0 + sigma eps is; the scales are shaped to broadcast against x_t."""

    alpha: Float[Tensor, "*level"]
    sigma: Float[Tensor, "*level"]

    @property
    def log_snr(self) -> Float[Tensor, "*level"]:
        """log(alpha²/sigma²) in nats: +inf where sigma = 0, -inf where alpha = 0."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def to(self, like: Tensor) -> "Level":
        """The same level in the dtype and on the device of `like`."""
        return Level(moved(self.alpha, like), moved(self.sigma, like))


class Schedule(ABC):
    """A decreasing log-SNR curve over t in [0, 1] (0 = data) and the scales that go with it."""

    scales: Scales

    @abstractmethod
    def log_snr(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log(alpha²/sigma²) at time t, in nats."""

    @abstractmethod
    def time(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The time t in [0, 1] at which the schedule has this log-SNR: the inverse of `log_snr`."""

    def level(self, t: Float[Tensor, "*t"] | float, *, like: Tensor | None = None) -> Level:
        """The Level at time t, computed in float64 on the CPU and cast once.

        Args:
            t: times in [0, 1]; one number, or one a row of `like`. Times on another device are waited for.
            like: the tensor that the level will multiply: the level takes its dtype and device and gets trailing axes to broadcast
                against it. Without it the level keeps the shape of t, in float64 on the CPU (a zero-dimensional level multiplies anything).

        Raises:
            ValueError: t outside [0, 1], t with more axes than `like`, or `like` not of floating point.
        """
        t = torch.as_tensor(t.cpu() if isinstance(t, Tensor) else t, dtype=torch.float64)
        if not torch.compiler.is_compiling():
            _refuse_outside(t)
        level = Level(*self.scales(self.log_snr(t)))
        if like is None:
            return level
        if not like.is_floating_point():
            raise ValueError(f"a level multiplies floating-point data, got {like.dtype}; scale the data first, as a Dataset does.")
        if t.ndim > like.ndim:
            raise ValueError(f"t of shape {tuple(t.shape)} has more axes than the data of shape {tuple(like.shape)}; pass one t a row.")
        trailing = (...,) + (None,) * (like.ndim - t.ndim)
        return Level(level.alpha[trailing], level.sigma[trailing]).to(like)


@dataclass(frozen=True, kw_only=True)
class Continuous(Schedule):
    """A log-SNR curve cut to [log_snr_min, log_snr_max] nats and stretched back over t in [0, 1].

    A curve of your own is a frozen dataclass that inherits from this one and defines `curve` and its `inverse`.
    """

    scales: Scales = vp_scales
    log_snr_max: float = 15.0
    log_snr_min: float = -15.0

    def __post_init__(self) -> None:
        """Refuses an empty or infinite range."""
        if not -45 <= self.log_snr_min < self.log_snr_max <= 45:  # beyond, float64 rounds the curves' ends
            raise ValueError(f"log_snr_min < log_snr_max must lie in [-45, 45] nats, got {self.log_snr_min} and {self.log_snr_max}.")

    @abstractmethod
    def curve(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Log-SNR of the whole curve; decreasing in u."""

    @abstractmethod
    def inverse(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The u at which the whole curve has this log-SNR."""

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = self.inverse(like.new_tensor([self.log_snr_max, self.log_snr_min]))
        return start, stop

    def log_snr(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log(alpha²/sigma²) at time t, in nats."""
        start, stop = self._ends(t)
        return self.curve(start + (stop - start) * t)

    def time(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The time t in [0, 1] with this log-SNR; what lies beyond the ends is taken to them."""
        start, stop = self._ends(log_snr)
        return ((self.inverse(log_snr) - start) / (stop - start)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Cosine(Continuous):
    """alpha = cos(pi u / 2) under `vp_scales`. Nichol & Dhariwal (2021), eq. 17 without offset, arXiv:2102.09672."""

    def curve(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """-2 log tan(pi u / 2)."""
        return -2 * (math.pi / 2 * u).tan().log()

    def inverse(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """2/pi atan(exp(-log_snr / 2))."""
        return 2 / math.pi * (-log_snr / 2).exp().atan()


@dataclass(frozen=True, kw_only=True)
class LinearBeta(Continuous):
    """What `LinearVP` and `SubVP` share: beta(u) = beta_min + u (beta_max - beta_min) and B(u) = ∫_0^u beta."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Refuses rates that are not positive and ordered."""
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"a linear beta needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}; the usual values are 0.1 and 20."
            )
        super().__post_init__()

    def integral(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """B(u)."""
        return self.beta_min * u + (self.beta_max - self.beta_min) / 2 * u.square()

    def integral_inverse(self, integral: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The u >= 0 with this B."""
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt())


@dataclass(frozen=True, kw_only=True)
class LinearVP(LinearBeta):
    """alpha² = exp(-B) with a linear beta. Song et al. (2021), eq. 32, arXiv:2011.13456."""

    def curve(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """-log(exp(B) - 1)."""
        return -self.integral(u).expm1().log()

    def inverse(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The u with B = log(1 + exp(-log_snr))."""
        return self.integral_inverse(torch.nn.functional.softplus(-log_snr))


@dataclass(frozen=True, kw_only=True)
class SubVP(LinearBeta):
    """The alpha of `LinearVP` under sigma = 1 - alpha². Song et al. (2021), eq. 29, arXiv:2011.13456."""

    scales: Scales = sub_vp_scales

    def curve(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """-B - 2 log(1 - exp(-B))."""
        integral = self.integral(u)
        return -integral - 2 * (-(-integral).expm1()).log()

    def inverse(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The u with alpha = exp(-B/2) where alpha/(1 - alpha²) = exp(log_snr/2), so B = 2 asinh(exp(-log_snr/2) / 2)."""
        return self.integral_inverse(2 * ((-log_snr / 2).exp() / 2).asinh())


@dataclass(frozen=True, kw_only=True)
class VE(Continuous):
    """alpha = 1 and sigma from sigma_min to sigma_max, uniform in its logarithm. Song et al. (2021), eq. 30, arXiv:2011.13456."""

    scales: Scales = ve_scales
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_snr_max: float = field(init=False)
    log_snr_min: float = field(init=False)

    def __post_init__(self) -> None:
        """Derives the log-SNR range from the sigmas."""
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max must be finite, got {self.sigma_min} and {self.sigma_max}; try 0.002 and 80.")
        object.__setattr__(self, "log_snr_max", -2 * math.log(self.sigma_min))
        object.__setattr__(self, "log_snr_min", -2 * math.log(self.sigma_max))

    def curve(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Linear in u; the ends come from the cut."""
        return -u

    def inverse(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Linear in log-SNR."""
        return -log_snr


@dataclass(frozen=True, kw_only=True)
class Flow(Continuous):
    """alpha = 1 - u, sigma = u: rectified flow and conditional optimal transport. Liu et al. (2023), eq. 1, arXiv:2209.03003."""

    scales: Scales = flow_scales

    def curve(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """2 log((1 - u) / u)."""
        return -2 * u.logit()

    def inverse(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """1 / (1 + exp(log_snr / 2))."""
        return (-log_snr / 2).sigmoid()


class Discrete(Schedule):
    """A chain of T steps with variances beta_1 … beta_T; its exact levels sit at t = k/T with alpha_k² = Π_{i<=k} (1 - beta_i).

    Between its levels the log-SNR is interpolated, so a model of the chain can be walked at any level. Where it is infinite at one end of a
    step it cannot be: in the first step sigma² grows linearly, and in the last of a chain with zero terminal SNR alpha² falls linearly.

    Reference: Ho et al. (2020), eq. 4, arXiv:2006.11239.
    """

    scales = staticmethod(vp_scales)

    def __init__(self, betas: Tensor) -> None:
        """Builds the chain from its step variances [T].

        Args:
            betas: in (0, 1), kept in float64; the last may be 1 (zero terminal SNR).

        Raises:
            ValueError: betas that are not a vector, or lie outside (0, 1).
        """
        betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be a vector with one entry a step, got shape {tuple(betas.shape)}.")
        if not bool(((betas > 0) & (betas <= 1)).all()) or bool((betas[:-1] == 1).any()):
            raise ValueError(f"betas must lie in (0, 1), only the last may be 1; got {betas.min().item():.6g} to {betas.max().item():.6g}.")
        self.betas = betas
        log_alpha_squared = torch.log1p(-betas).cumsum(0)
        sigma_squared = -torch.expm1(log_alpha_squared)
        self._log_snr = log_alpha_squared - sigma_squared.log()
        self._ends_without_signal = bool(betas[-1] == 1) and len(betas) > 1
        self._signal_before_last = float(log_alpha_squared[-2].exp()) if len(betas) > 1 else 1.0

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    def __repr__(self) -> str:
        """Names the chain by its length and ends."""
        return f"Discrete({len(self)} steps, beta {self.betas[0].item():.4g} to {self.betas[-1].item():.4g})"

    @classmethod
    def linear(cls, steps: int, *, beta_min: float = 1e-4, beta_max: float = 0.02) -> "Discrete":
        """Betas uniform from beta_min to beta_max, scaled by 1000/steps. Ho et al. (2020), section 4, arXiv:2006.11239."""
        scale = 1000 / _at_least_one(steps)
        if scale * beta_max > 1:
            raise ValueError(f"linear betas pass 1 with {steps} steps; take at least {math.ceil(1000 * beta_max)} steps, or .cosine.")
        return cls(torch.linspace(scale * beta_min, scale * beta_max, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int, *, offset: float = 0.008, beta_max: float = 0.999) -> "Discrete":
        """alpha_k² = f(k)/f(0), f(k) = cos²((k/T + s)/(1 + s) · pi/2), betas cut at beta_max. Nichol & Dhariwal (2021), eq. 17."""
        k = torch.arange(_at_least_one(steps) + 1, dtype=torch.float64) / steps
        f = ((k + offset) / (1 + offset) * math.pi / 2).cos().square()
        return cls((1 - f[1:] / f[:-1]).clamp(max=beta_max))

    @classmethod
    def sigmoid(cls, steps: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, beta_max: float = 0.999) -> "Discrete":
        """alpha_k² from a sigmoid between start and end with temperature tau. Jabri et al. (2022), alg. 1, arXiv:2212.11972."""
        u = torch.arange(_at_least_one(steps) + 1, dtype=torch.float64) / steps
        ends = torch.tensor([start, end], dtype=torch.float64)
        first, last = (ends / tau).sigmoid()
        f = (last - ((u * (end - start) + start) / tau).sigmoid()) / (last - first)
        return cls((1 - f[1:] / f[:-1]).clamp(max=beta_max))

    @classmethod
    def sqrt(cls, steps: int, *, offset: float = 1e-4, beta_max: float = 0.999) -> "Discrete":
        """alpha_k² = 1 - sqrt(k/T + s): noise comes fast at the data's end. Li et al. (2022), appendix A, arXiv:2205.14217."""
        k = torch.arange(_at_least_one(steps) + 1, dtype=torch.float64) / steps
        f = 1 - (k + offset).sqrt()
        f[0] = 1
        return cls((1 - f[1:].clamp(min=0) / f[:-1]).clamp(max=beta_max))

    def zero_terminal(self) -> "Discrete":
        """The chain with alpha shifted and scaled so that the last level has no signal. Lin et al. (2024), alg. 1, arXiv:2305.08891.

        Raises:
            ValueError: a chain of one step, which would be the noise alone.
        """
        if len(self) < 2:
            raise ValueError("a chain of one step cannot be rescaled to zero terminal SNR; take at least two steps.")
        alpha = torch.log1p(-self.betas).cumsum(0).div(2).exp()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])
        return Discrete(1 - (alpha / before).square())

    @classmethod
    def through(cls, levels: Sequence[Level]) -> "Discrete":
        """The chain whose levels these are: variance-preserving, from noise to the data, as `grid` makes them; a respaced chain.

        Raises:
            ValueError: levels that do not end at the data, are not in order, or have alpha² + sigma² other than 1.
        """
        alpha, sigma = torch.stack([x.alpha for x in levels]).double(), torch.stack([x.sigma for x in levels]).double()
        if alpha.ndim != 1 or len(alpha) < 2 or not bool(sigma[-1] == 0) or not bool((alpha.diff() > 0).all()):
            raise ValueError(
                "a chain goes through at least two single levels in falling order of noise, the last being the data (sigma = 0)."
            )
        if not torch.allclose(alpha.square() + sigma.square(), torch.ones_like(alpha)):
            raise ValueError("a chain's levels have alpha² + sigma² = 1; build them from a schedule with vp_scales.")
        return cls((1 - (alpha[:-1] / alpha[1:]).square()).flip(0))

    def log_snr(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log(alpha²/sigma²) at time t, in nats: exact at t = k/T, +inf at 0."""
        table = self._log_snr.to(t)
        k = t * len(self)
        nearest = k.round()
        k = torch.where(((k - nearest).abs() < 1e-9 * len(self)) & (nearest >= 1), nearest, k)  # k/T·T need not be k in floating point
        below = k.floor().clamp(1, len(self)).long()
        above = k.ceil().clamp(1, len(self)).long()
        inside = torch.where(above == below, table[below - 1], torch.lerp(table[below - 1], table[above - 1], k - below))
        if self._ends_without_signal:  # alpha² falls linearly over the last step, as log-SNR cannot
            last = self._signal_before_last * (len(self) - k)
            inside = torch.where(k > len(self) - 1, last.log() - torch.log1p(-last), inside)
        first = torch.log((1 + table[0].exp()) / k.clamp(max=1) - 1)  # sigma² = k sigma_1² for k <= 1
        return torch.where(k >= 1, inside, first)

    def below(self, level: Level) -> Level:
        """The level one step down from a level of the chain, in its shape and dtype; waits for the device of a level that has one."""
        k = (self.time(level.log_snr.cpu().double()) * len(self)).round()
        return self.level((k - 1) / len(self)).to(level.alpha)

    def time(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The time with this log-SNR, as `log_snr` interpolates it; less than the chain's last is taken to t = 1."""
        table = self._log_snr.to(log_snr)
        above = torch.searchsorted(-table, -log_snr.contiguous()).clamp(max=len(self) - 1)
        below = (above - 1).clamp(min=0)
        fraction = ((log_snr - table[below]) / (table[above] - table[below])).clamp(0, 1)
        if self._ends_without_signal:
            fraction = torch.where(above == len(self) - 1, 1 - log_snr.sigmoid() / self._signal_before_last, fraction)
        first = (-log_snr).sigmoid() / (-table[0]).sigmoid()
        return torch.where(log_snr >= table[0], first, below + 1 + fraction) / len(self)


class LearnedSchedule(nn.Module, Schedule):
    """A log-SNR curve that is learned: a monotone network of t between two endpoints, all of them parameters.

    gamma(t) = -log_snr(t) is normalised to 0 … 1 between the endpoints, so their gradients and the curve's are apart. The parameters stay
    in float64 on the CPU, where levels are computed, when a model that holds the schedule is moved to a device or cast.

    Reference: Kingma et al. (2021), section 3.2 and appendix H, arXiv:2107.00630.
    """

    def __init__(self, *, log_snr_max: float = 13.3, log_snr_min: float = -5.0, width: int = 64, scales: Scales = vp_scales) -> None:
        """A curve linear in log-SNR at first.

        Raises:
            ValueError: endpoints out of order.
        """
        super().__init__()
        if not -45 <= log_snr_min < log_snr_max <= 45:
            raise ValueError(f"log_snr_min < log_snr_max must lie in [-45, 45] nats, got {log_snr_min} and {log_snr_max}.")
        self.scales = scales
        self.log_snr_max = nn.Parameter(torch.tensor(float(log_snr_max), dtype=torch.float64))
        self.span = nn.Parameter(torch.tensor(math.log(log_snr_max - log_snr_min), dtype=torch.float64))  # kept positive by its exponential
        generator = torch.Generator().manual_seed(0)
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.inward = nn.Parameter(torch.randn(width, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(2 * torch.randn(width, generator=generator, dtype=torch.float64))
        self.outward = nn.Parameter(torch.full((width,), -9.0, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedSchedule":
        """What moves and casts modules leaves this one as it is."""
        return self

    @property
    def log_snr_min(self) -> Tensor:
        """The log-SNR at t = 1."""
        return self.log_snr_max - self.span.exp()

    def _rise(self, t: Tensor) -> Tensor:
        """Increasing in t: every weight enters through its exponential."""
        slope, inward, bias, outward = (_beside(each, t) for each in (self.slope, self.inward, self.bias, self.outward))
        return slope.exp() * t + (inward.exp() * t[..., None] + bias).sigmoid() @ outward.exp()

    def place(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Where between the endpoints t lies, from 0 to 1: the curve without its ends."""
        start, stop = self._rise(t.new_zeros(())), self._rise(t.new_ones(()))
        return (self._rise(t) - start) / (stop - start)

    def log_snr(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log(alpha²/sigma²) at time t, in nats, where t is; differentiable in t and in the parameters."""
        return _beside(self.log_snr_max, t) - _beside(self.span.exp(), t) * self.place(t)

    @torch.no_grad()
    def time(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The time with this log-SNR, by bisection; what lies beyond the ends is taken to them."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            is_early = self.log_snr(middle) > log_snr
            low, high = torch.where(is_early, middle, low), torch.where(is_early, high, middle)
        return (low + high) / 2


def finite_ends(schedule: Schedule) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Log-SNR of the schedule's first level with noise and of its last with signal, in nats."""
    n = len(schedule) if isinstance(schedule, Discrete) else None
    first, last = schedule.log_snr(torch.tensor([1 / n if n else 0.0, 1.0], dtype=torch.float64))
    if n and n > 1 and not bool(last.isfinite()):
        last = schedule.log_snr(torch.tensor((n - 1) / n, dtype=torch.float64))
    return first, last


def _beside(parameter: Tensor, t: Tensor) -> Tensor:
    """A learned schedule's parameter where t is: in float64 on the CPU, on another device in the dtype of t."""
    return parameter if t.device.type == "cpu" else moved(parameter, t)


def _refuse_outside(t: Tensor) -> None:
    """Refuses times outside [0, 1], and NaN."""
    low, high = map(float, t.detach().aminmax()) if t.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"t must lie in [0, 1] (0 = data, 1 = noise), got {low:.6g} to {high:.6g}.")


def _at_least_one(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a chain needs at least one step, got {steps}.")
    return steps
