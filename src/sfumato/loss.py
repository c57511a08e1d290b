"""Training losses: noise is an argument; the result is one number an example.

At a given x_t the errors of x0, eps and v are the same error at different scales: with r = hypot(alpha, sigma),

    v_hat - v = (r/alpha) (eps_hat - eps) = -(r/sigma) (x0_hat - x0),

so every published loss is a weight on the squared error of v, which is finite at both ends of every schedule. A `Weight` is that factor as
a function of the level; the weights here are named after the loss they give.

Losses and weights are computed in float32 or wider: in float16 the square of v and the inverse of a small weight overflow.

The times at which examples are noised come from a `TimeSampler`: (n, generator) -> t [n] in [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import likelihood
from sfumato.denoiser import CondLike, Predictor
from sfumato.deprecated import old_keywords
from sfumato.prediction import Prediction
from sfumato.runtime import moved
from sfumato.schedule import Discrete, Level, Schedule

Weight = Callable[[Level], Tensor]
TimeSampler = Callable[[int, torch.Generator], Tensor]


def eps_weight(level: Level) -> Tensor:
    """alpha²/(alpha² + sigma²): the mean square of eps_hat - eps. Ho et al. (2020), eq. 14, arXiv:2006.11239."""
    return _log_snr(level).sigmoid()


def x0_weight(level: Level) -> Tensor:
    """sigma²/(alpha² + sigma²): the mean square of x0_hat - x0."""
    return (-_log_snr(level)).sigmoid()


def v_weight(level: Level) -> Tensor:
    """1: the mean square of v_hat - v. Salimans & Ho (2022), section 4, arXiv:2202.00512."""
    return torch.ones_like(_wide(level.alpha))


def min_snr_weight(level: Level, *, gamma: float = 5.0) -> Tensor:
    """The mean square of x0_hat - x0 times min(SNR, gamma). Hang et al. (2023), eq. 4, arXiv:2303.09556."""
    log_snr = _log_snr(level)
    return (-log_snr).sigmoid() * log_snr.exp().clamp(max=gamma)


def truncated_snr_weight(level: Level) -> Tensor:
    """The mean square of x0_hat - x0 times max(SNR, 1). Salimans & Ho (2022), section 4, arXiv:2202.00512.

    sigmoid(-λ) max(exp λ, 1) = max(sigmoid λ, sigmoid -λ), λ the log-SNR, which is finite at both ends.
    """
    log_snr = _log_snr(level)
    return torch.maximum(log_snr.sigmoid(), (-log_snr).sigmoid())


def previous_weight(level: Level, *, chain: Discrete) -> Tensor:
    """The mean square of the error in μ̃, the posterior mean of a step of the chain: c_0² on x0, c_0 from Ho et al. (2020), eq. 7."""
    level = _wide_level(level)
    before = chain.below(level)
    return x0_weight(level) * (before.alpha * torch.expm1(level.log_snr - before.log_snr)).square()


def edm_weight(level: Level, *, data_std: float = 0.5) -> Tensor:
    """The mean square of EDM's network output: (σ² + s²)/(σ s)² on x0, σ = sigma/alpha. Karras et al. (2022), eq. 8, arXiv:2206.00364."""
    return eps_weight(level) + x0_weight(level) / data_std**2


def sigmoid_weight(level: Level, *, bias: float = 1.0) -> Tensor:
    """sigmoid(bias - log_snr) on the square of eps_hat - eps. Hoogeboom et al. (2024), section 3.1, arXiv:2410.19324."""
    log_snr = _log_snr(level)
    return log_snr.sigmoid() * (bias - log_snr).sigmoid()


def simple(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    level: Level,
    cond: CondLike | None = None,
    *,
    weight: Weight = eps_weight,
) -> Float[Tensor, "b"]:
    """weight(level) · mean over x of (v_hat - v)², one value an example; the caller averages.

    With the default weight this is L_simple, the mean square of eps_hat - eps. Ho et al. (2020), eq. 14, arXiv:2006.11239.
    """
    x0, eps, level = _wide(x0), _wide(eps), _wide_level(level)
    truth = Prediction(x0, eps)
    error = predict(level.alpha * x0 + level.sigma * eps, level, cond).v(level) - truth.v(level)
    return (weight(level) * error.square()).flatten(1).mean(1)


@old_keywords(width="bin_width")
def vlb(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    t: Level,
    s: Level,
    cond: CondLike | None = None,
    *,
    steps: int,
    variance: str = "small",
    last_log_variance: Tensor,
    bin_width: float = 2 / 255,
) -> Float[Tensor, "b"]:
    """One random term of the bound times the number of terms, in bits/dim; its mean over uniform t = 1 … steps is Σ L_{t-1} + L_0.

    Args:
        predict: the model.
        x0: data on the grid of their values, in [-1, 1].
        eps: the noise in x_t.
        t: the level of each example.
        s: the level one step down; the data, in rows with the decoder's term.
        cond: conditions.
        steps: number of steps of the chain.
        variance: "small", "large" or "learned".
        last_log_variance: replaces the log variance if s is the data: log β̃ of the chain's second step. See `process.reverse`.
        bin_width: distance of neighbouring values of the data.

    Reference: Nichol & Dhariwal (2021), eqs. 4-7, arXiv:2102.09672.
    """
    x0, eps, t, s, last_log_variance = _wide(x0), _wide(eps), _wide_level(t), _wide_level(s), _wide(last_log_variance)
    x_t = t.alpha * x0 + t.sigma * eps
    term = likelihood.term_bits(
        predict(x_t, t, cond), x0, x_t, t, s, variance=variance, last_log_variance=last_log_variance, bin_width=bin_width
    )
    return steps * term


@old_keywords(width="bin_width")
def hybrid(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    t: Level,
    s: Level,
    cond: CondLike | None = None,
    *,
    steps: int,
    weight: Weight = eps_weight,
    vlb_weight: float = 1e-3,
    last_log_variance: Tensor,
    bin_width: float = 2 / 255,
) -> Float[Tensor, "b"]:
    """L_simple + vlb_weight · L_vlb (bits/dim), where the bound trains only the learned variance: the mean is detached in it.

    Arguments as for `vlb`. Reference: Nichol & Dhariwal (2021), eq. 16, arXiv:2102.09672.
    """
    x0, eps, t, s, last_log_variance = _wide(x0), _wide(eps), _wide_level(t), _wide_level(s), _wide(last_log_variance)
    x_t, truth = t.alpha * x0 + t.sigma * eps, Prediction(x0, eps)
    prediction = predict(x_t, t, cond)
    error = prediction.v(t) - truth.v(t)
    held = Prediction(prediction.x0.detach(), prediction.eps.detach(), prediction.variance_fraction)
    term = likelihood.term_bits(held, x0, x_t, t, s, variance="learned", last_log_variance=last_log_variance, bin_width=bin_width)
    return (weight(t) * error.square()).flatten(1).mean(1) + vlb_weight * steps * term


def vdm(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    t: Float[Tensor, "b"],
    schedule: Schedule,
    cond: CondLike | None = None,
) -> Float[Tensor, "b"]:
    """The bound's diffusion part in continuous time, ½ (-d log_snr/dt) |eps_hat - eps|², in bits/dim; t uniform in [0, 1].

    Its mean over t depends on the schedule's ends only. A schedule with parameters gets gradients through log_snr and through x_t.

    Reference: Kingma et al. (2021), eq. 17, arXiv:2107.00630.
    """
    x0, eps = _wide(x0), _wide(eps)
    with torch.enable_grad():
        leaf = t.detach().cpu().double().requires_grad_()
        (fall,) = torch.autograd.grad(schedule.log_snr(leaf).sum(), leaf, create_graph=True)
    level = schedule.level(t, like=x0)
    error = predict(level.alpha * x0 + level.sigma * eps, level, cond).eps - eps
    return -0.5 * moved(fall, x0) * error.square().flatten(1).mean(1) / math.log(2)


def score_matching(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    eps: Float[Tensor, "b *x"],
    level: Level,
    cond: CondLike | None = None,
    *,
    weight: Callable[[Level], Tensor] | None = None,
) -> Float[Tensor, "b"]:
    """Denoising score matching: weight · mean over x of (score_hat - ∇ log q(x_t | x0))²; the weight is sigma² by default.

    Reference: Vincent (2011); Song & Ermon (2019), eqs. 5 and 6, arXiv:1907.05600.
    """
    x0, eps, level = _wide(x0), _wide(eps), _wide_level(level)
    score = predict(level.alpha * x0 + level.sigma * eps, level, cond).score(level)
    scale = level.sigma.square() if weight is None else weight(level)
    return (scale * (score + eps / level.sigma).square()).flatten(1).mean(1)


def sliced_score_matching(
    predict: Predictor,
    x_t: Float[Tensor, "b *x"],
    level: Level,
    cond: CondLike | None = None,
    *,
    probe: Float[Tensor, "b *x"],
) -> Float[Tensor, "b"]:
    """v'∇(v' score) + ½ |score|², one probe v a row (standard normal or Rademacher), summed over x; needs no clean data.

    Its expectation is ½ E|score_hat - score|² up to a constant of the data. Song et al. (2020), eq. 8 (reduced variance), arXiv:1905.07088.
    """
    x_t, level = _wide(x_t), _wide_level(level)
    with torch.enable_grad():
        x = x_t if x_t.requires_grad else x_t.detach().requires_grad_()
        score = predict(x, level, cond).score(level)
        (along,) = torch.autograd.grad((score * probe).sum(), x, create_graph=True)
    return ((along * probe) + 0.5 * score.square()).flatten(1).sum(1)


@dataclass(frozen=True)
class Uniform:
    """t uniform: over (0, 1] on a continuous schedule, over the levels 1/T … 1 of a chain. Ho et al. (2020), alg. 1."""

    schedule: Schedule

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n independent times."""
        return _to_chain(torch.rand(n, generator=generator, dtype=torch.float64), self.schedule)


@dataclass(frozen=True)
class Stratified:
    """Uniform times stratified over a batch: its loss has less variance. Kingma et al. (2021), appendix I.1, arXiv:2107.00630."""

    schedule: Schedule

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n times, one in each nth of [0, 1), in random order."""
        u = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
        return _to_chain(u[torch.randperm(n, generator=generator)], self.schedule)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma/alpha) normal, stratified over a batch; clamped to the schedule's ends, or rounded to a chain's levels.

    Karras et al. (2022), table 1, arXiv:2206.00364.
    """

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n times, their log-SNR normal with mean -2 mean and std 2 std."""
        u = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        log_ratio = self.mean + self.std * math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-12, 1 - 1e-12))
        t = self.schedule.time(-2 * log_ratio[torch.randperm(n, generator=generator)])
        return _nearest_level(t, self.schedule)


@runtime_checkable
class AdaptiveTimes(Protocol):
    """A sampler of times that adapts to the losses; `tensors` and `load` save and restore its state."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """n times."""
        ...

    def weight(self, t: Tensor) -> Tensor:
        """The factor for each loss."""
        ...

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Records losses."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its state."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores its state."""
        ...


class Importance:
    """Times drawn more often where the loss is large, by second moments of the last `history` losses a bin; uniform until all are full.

    A bin is a level of a chain, or one of `bins` intervals of t in (0, 1]. `weight(t)` keeps the mean loss that of uniform times.

    Reference: Nichol & Dhariwal (2021), eq. 18, arXiv:2102.09672.
    """

    def __init__(self, schedule: Schedule, *, bins: int = 100, history: int = 10, uniform_share: float = 1e-3) -> None:
        """Starts uniform; a fixed share of the times stays uniform."""
        self.schedule = schedule
        self.losses = torch.full((len(schedule) if isinstance(schedule, Discrete) else bins, history), math.nan, dtype=torch.float64)
        self.uniform_share = uniform_share

    @property
    def chances(self) -> Float[Tensor, "bins"]:
        """The probability of each bin."""
        bins = len(self.losses)
        if bool(self.losses.isnan().any()):
            return torch.full((bins,), 1 / bins, dtype=torch.float64)
        size = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform_share) * size / size.sum() + self.uniform_share / bins

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n independent times."""
        bin_ = torch.multinomial(self.chances, n, replacement=True, generator=generator)
        place = torch.ones(n) if isinstance(self.schedule, Discrete) else 1 - torch.rand(n, generator=generator, dtype=torch.float64)
        return (bin_ + place.double()) / len(self.losses)

    def weight(self, t: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The density of uniform times divided by that of these."""
        return 1 / (len(self.losses) * self.chances[self._bins(t)])

    def update(self, t: Float[Tensor, "n"], losses: Float[Tensor, "n"]) -> None:
        """Records the unweighted losses at these times."""
        for bin_, value in zip(self._bins(t).tolist(), losses.detach().double().tolist(), strict=True):
            self.losses[bin_] = torch.cat([self.losses[bin_, 1:], self.losses.new_tensor([value])])

    def tensors(self) -> dict[str, Tensor]:
        """The recorded losses."""
        return {"losses": self.losses}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores recorded losses."""
        self.losses = tensors["losses"].clone()

    def _bins(self, t: Tensor) -> Tensor:
        return ((t * len(self.losses) - 1e-9).ceil().long() - 1).clamp(0, len(self.losses) - 1)


class Fitted:
    """Times whose density over log-SNR follows the loss: each interval of log-SNR is drawn in proportion to its mean loss.

    The loss is a running mean over `bins` intervals of equal length. Dieleman et al. (2022), section 4.3 (time warping), arXiv:2211.15089.
    `weight(t)` is the density of uniform log-SNR divided by this one.
    """

    def __init__(self, schedule: Schedule, *, bins: int = 40, decay: float = 0.99, uniform_share: float = 0.05) -> None:
        """Starts uniform in log-SNR between the schedule's finite ends."""
        self.schedule, self.decay, self.uniform_share = schedule, decay, uniform_share
        first = schedule.log_snr(torch.tensor([1 / len(schedule) if isinstance(schedule, Discrete) else 0.0, 1.0], dtype=torch.float64))
        if not bool(first.isfinite().all()):
            raise ValueError("loss.Fitted needs a schedule whose ends have finite log-SNR; use one without zero terminal SNR.")
        self.edges = torch.linspace(float(first[0]), float(first[1]), bins + 1, dtype=torch.float64)
        self.mean = torch.full((bins,), math.nan, dtype=torch.float64)

    @property
    def chances(self) -> Float[Tensor, "bins"]:
        """The probability of each interval."""
        bins = len(self.mean)
        known = self.mean.nan_to_num(nan=float(self.mean.nanmean()) if bool(self.mean.isfinite().any()) else 1.0).clamp(min=0)
        share = known / known.sum() if bool(known.sum() > 0) else torch.full_like(known, 1 / bins)
        return (1 - self.uniform_share) * share + self.uniform_share / bins

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n times, stratified over a batch."""
        u = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        cumulative = self._cumulative()
        bin_ = (torch.searchsorted(cumulative, u, right=True) - 1).clamp(0, len(self.mean) - 1)
        place = (u - cumulative[bin_]) / self.chances[bin_]
        log_snr = torch.lerp(self.edges[bin_], self.edges[bin_ + 1], place)
        return _nearest_level(self.schedule.time(log_snr[torch.randperm(n, generator=generator)]), self.schedule)

    def weight(self, t: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The density of uniform log-SNR divided by that of these times; on a chain, over the interval of log-SNR of each level."""
        if not isinstance(self.schedule, Discrete):
            return 1 / (len(self.mean) * self.chances[self._bins(t)])
        half, bins, cumulative = 0.5 / len(self.schedule), len(self.mean), self._cumulative()
        ends = torch.stack([t.double() - half, t.double() + half]).clamp(1 / len(self.schedule), 1.0)
        places = ((self.schedule.log_snr(ends) - self.edges[0]) / (self.edges[1] - self.edges[0])).clamp(0, bins)
        bin_ = places.floor().long().clamp(max=bins - 1)
        drawn = torch.lerp(cumulative[bin_], cumulative[bin_ + 1], places - bin_)
        return (places[1] - places[0]) / (bins * (drawn[1] - drawn[0]))

    def update(self, t: Float[Tensor, "n"], losses: Float[Tensor, "n"]) -> None:
        """Records the losses at these times."""
        for bin_, value in zip(self._bins(t).tolist(), losses.detach().double().tolist(), strict=True):
            old = self.mean[bin_]
            self.mean[bin_] = value if bool(old.isnan()) else self.decay * old + (1 - self.decay) * value

    def tensors(self) -> dict[str, Tensor]:
        """The running means."""
        return {"mean": self.mean}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores running means."""
        self.mean = tensors["mean"].clone()

    def _cumulative(self) -> Tensor:
        """The total probability of the intervals before each edge."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.chances.cumsum(0)])

    def _bins(self, t: Tensor) -> Tensor:
        width = self.edges[1] - self.edges[0]
        return ((self.schedule.log_snr(t.double()) - self.edges[0]) / width).floor().long().clamp(0, len(self.mean) - 1)


def _wide(value: Tensor) -> Tensor:
    """The tensor in float32 or wider."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _wide_level(level: Level) -> Level:
    """The level in float32 or wider."""
    return Level(_wide(level.alpha), _wide(level.sigma))


def _log_snr(level: Level) -> Tensor:
    """log(alpha²/sigma²) in nats, in float32 or wider."""
    return _wide_level(level).log_snr


def _nearest_level(t: Tensor, schedule: Schedule) -> Tensor:
    """On a chain, the nearest of its levels 1 … T."""
    return (t * len(schedule)).round().clamp(min=1) / len(schedule) if isinstance(schedule, Discrete) else t


def _to_chain(u: Tensor, schedule: Schedule) -> Tensor:
    """u in [0, 1) to a time: 1 - u, or one of the levels 1 … T of a chain."""
    if isinstance(schedule, Discrete):
        return ((u * len(schedule)).floor() + 1) / len(schedule)
    return 1 - u
