"""Fits the levels and the method of a sampling run to one model and one number of evaluations.

`tune` compares the endpoints of a probability-flow run with the flow's own fine solution from the same noise. Damped Gauss-Newton on the
differences moves the steps - 1 inner levels and, with `FittedMultistep`, the extrapolation of each step. `tune_bound` picks the levels of
a shorter ancestral chain: its bound on -log p(x0) is a sum over steps, each of which depends on its two levels only, so the best path of
every length is found exactly.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import take
from sfumato.denoiser import CondLike, Predictor
from sfumato.deprecated import old_keywords
from sfumato.likelihood import prior_bits, term_bits
from sfumato.noise import Generator, normal_like
from sfumato.process import posterior_log_variance
from sfumato.sampling import Step, grid, sample, spacing
from sfumato.sampling.steps import DDIM, Adams, AdamsBashforth, Ancestral, Heun, Multistep, UniPC
from sfumato.schedule import Discrete, Level, Schedule


@dataclass(frozen=True)
class FittedMultistep:
    """DPM-Solver++(2M) with fitted extrapolations: step i uses x0_i + c_i (x0_i - x0_{i-1}) in place of x0.

    2M itself has c_i = h_i / (2 h_{i-1}), and 0 over long steps and in the step to the data. Shaul et al. (2024), arXiv:2403.01329, fit all
    coefficients of every step; this class has one a step. `tune` makes it: `FittedMultistep()` in its `methods` asks it to fit them.
    """

    extrapolations: tuple[float, ...] = ()

    def __call__(
        self,
        predict: Predictor,
        x: Float[Tensor, "b *x"],
        t: Level,
        s: Level,
        memory: tuple[int, Tensor] | None,
        generator: Generator | None,
    ) -> tuple[Float[Tensor, "b *x"], tuple[int, Tensor]]:
        """One step; remembers the number of steps and the last x0.

        Raises:
            ValueError: more steps than were fitted.
        """
        x0 = predict(x, t).x0
        ahead, done = x0, 0
        if memory is not None:
            done, before = memory
            if done > len(self.extrapolations):
                raise ValueError(
                    f"this method was fitted to {len(self.extrapolations) + 1} steps; use it with the levels it was fitted to."
                )
            ahead = torch.lerp(before, x0, 1 + self.extrapolations[done - 1])
        ratio = float(s.sigma) / float(t.sigma)
        return torch.add(ratio * x, ahead, alpha=float(s.alpha) - float(t.alpha) * ratio), (done + 1, x0)


METHODS: tuple[Step, ...] = (FittedMultistep(), UniPC(2))

_KINDS: Mapping[str, Callable[..., Step]] = {
    kind.__name__: kind for kind in (Adams, AdamsBashforth, Ancestral, DDIM, FittedMultistep, Heun, Multistep, UniPC)
} | {"Fitted": FittedMultistep}  # its name in files that 0.1.0 wrote
_LEAST_LOG_SNR = -20.0  # where the first step from pure noise ends
_NUDGE = 5e-3  # change of a parameter for a column of the Jacobian


@dataclass(frozen=True)
class TuningResult:
    """Levels and the method to use them with: `sample(predict, x, tuned.levels, tuned.step)`.

    `error` is their error, `default_error` that of the levels and method they replace. For `tune` both are medians over noise not used in
    the fit (of the root mean square over an endpoint's entries), for `tune_bound` the bound in bits/dim.
    """

    levels: tuple[Level, ...]
    step: Step
    error: float
    default_error: float

    def to_json(self) -> str:
        """As text; numbers keep all bits."""
        levels = [[float(level.alpha), float(level.sigma)] for level in self.levels]
        options = asdict(self.step)  # type: ignore[call-overload]
        record = {"method": type(self.step).__name__, "options": options, "levels": levels}
        return json.dumps(record | {"error": self.error, "default_error": self.default_error}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "TuningResult":
        """From `to_json`.

        Raises:
            ValueError: text that `to_json` has not written.
        """
        try:
            record = json.loads(text)
            options = {name: tuple(value) if isinstance(value, list) else value for name, value in record["options"].items()}
            step = _KINDS[record["method"]](**options)
            pairs = torch.tensor(record["levels"], dtype=torch.float64)
            return cls(tuple(Level(a, s) for a, s in pairs), step, float(record["error"]), float(record["default_error"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not a record of tuned levels ({error!r}); tune again.") from None


@torch.no_grad()
def tune(
    predict: Predictor,
    schedule: Schedule,
    noise: Float[Tensor, "n *x"],
    cond: CondLike | None = None,
    *,
    steps: int = 10,
    levels: Sequence[Level] | None = None,
    step: Step | None = None,
    methods: Sequence[Step] = METHODS,
    rounds: int = 12,
    reference: int = 256,
) -> TuningResult:
    """The levels and method whose endpoints are closest to the fine solution's; on unseen noise never worse than the default's.

    Takes about rounds · 2 steps · steps evaluations a method and `reference` more, of two thirds of the noise; the last third is for
    testing.

    Args:
        predict: the model, guided or not.
        schedule: the schedule of the levels.
        noise: standard normal, a hundred rows or more.
        cond: conditions, one row a row of noise.
        steps: number of evaluations.
        levels: the levels to improve: the ends are kept, the inner ones move; `grid(schedule, steps)` by default.
        step: the method of the default; Multistep by default.
        methods: the methods to try, each with its own levels; each must take one evaluation a step.
        rounds: number of Gauss-Newton rounds.
        reference: steps of the fine solution.

    Raises:
        ValueError: fewer than 2 steps, fewer than 12 rows of noise, or no methods.

    Reference: after Sabour et al. (2024), arXiv:2404.14507, who optimise levels for a model; here the measured error itself is minimised.
    """
    default = tuple(grid(schedule, steps) if levels is None else levels)
    if len(default) < 3 or len(noise) < 12 or not methods:
        raise ValueError(f"tuning needs 2 steps, 12 rows of noise and a method, got {len(default) - 1}, {len(noise)} and {len(methods)}.")
    course = _Course.of(schedule, default)
    x = default[0].sigma.to(noise) * noise
    wanted = course.fine(predict, x, cond, reference)
    seen = torch.arange(len(x), device=x.device) % 3 != 2
    rows = lambda mask: (x[mask], wanted[mask], take(cond, mask))  # noqa: E731
    fitting, judging = _Trial(predict, *rows(seen)), _Trial(predict, *rows(~seen))

    before = judging.error(default, step or Multistep())
    best = TuningResult(default, step or Multistep(), before, before)
    for method in methods:
        start = course.start() if not isinstance(method, FittedMultistep) else torch.cat([course.start(), course.extrapolations()])

        def walk(place: Tensor, method: Step = method) -> tuple[tuple[Level, ...], Step]:
            inner, more = place.split([len(default) - 1, len(place) - len(default) + 1])
            return course.levels(inner), FittedMultistep(tuple(more.tolist())) if isinstance(method, FittedMultistep) else method

        found = walk(_gauss_newton(lambda place, walk=walk: fitting.residuals(*walk(place)), start, rounds))
        error = judging.error(*found)
        if error < best.error:
            best = TuningResult(*found, error, before)
    return best


@dataclass(frozen=True)
class _Course:
    """Levels between fixed ends, parametrised by the shares of log-SNR between them (a softmax, including the rest before the end)."""

    schedule: Schedule
    default: tuple[Level, ...]
    low: float
    high: float

    @classmethod
    def of(cls, schedule: Schedule, default: tuple[Level, ...]) -> "_Course":
        """From given levels; the last level with noise bounds the inner ones."""
        last = default[-2] if bool(default[-1].sigma == 0) else default[-1]
        return cls(schedule, default, max(float(default[0].log_snr), _LEAST_LOG_SNR), float(last.log_snr))

    def levels(self, place: Tensor) -> tuple[Level, ...]:
        """The levels at these parameters, one a step."""
        shares = place.softmax(0).cumsum(0)[:-1]
        return (self.default[0], *self._at(self.low + (self.high - self.low) * shares), self.default[-1])

    def start(self) -> Tensor:
        """The parameters of the default levels, moved off their bounds."""
        inner = torch.stack([level.log_snr for level in self.default[1:-1]]).double().cpu()
        shares = torch.cat([inner, inner.new_tensor([self.high])]).diff(prepend=inner.new_tensor([self.low])) / (self.high - self.low)
        return shares.clamp(min=0.02 / len(shares)).log()

    def extrapolations(self) -> Tensor:
        """Those of DPM-Solver++(2M) on the default levels."""
        lengths = torch.stack([level.log_snr for level in self.default]).double().cpu().diff()
        return torch.where(lengths.isfinite(), lengths, 0.0)[1:] / (2 * lengths[:-1])

    def fine(self, predict: Predictor, x: Tensor, cond: CondLike | None, steps: int) -> Tensor:
        """The endpoints of a run of many steps, uniform in log-SNR."""
        inner = self._at(torch.linspace(self.low, self.high, steps + 1, dtype=torch.float64)[1:-1])
        last = self._at(torch.tensor([self.high], dtype=torch.float64)) if bool(self.default[-1].sigma == 0) else ()
        return sample(predict, x, [self.default[0], *inner, *last, self.default[-1]], UniPC(3), cond)

    def _at(self, log_snr: Tensor) -> tuple[Level, ...]:
        level = self.schedule.level(self.schedule.time(log_snr))
        return tuple(Level(alpha, sigma) for alpha, sigma in zip(level.alpha, level.sigma, strict=True))


@dataclass(frozen=True)
class _Trial:
    """Starting points with their reference endpoints."""

    predict: Predictor
    x: Tensor
    wanted: Tensor
    cond: CondLike | None

    def residuals(self, levels: Sequence[Level], step: Step) -> Float[Tensor, "n d"]:
        """Endpoint minus truth, scaled so that a row's norm is the root mean square over its entries."""
        missed = (sample(self.predict, self.x, levels, step, self.cond) - self.wanted).flatten(1).cpu().double()
        return missed / math.sqrt(missed.shape[1])

    def error(self, levels: Sequence[Level], step: Step) -> float:
        """The median over rows."""
        return float(self.residuals(levels, step).norm(dim=1).median())


def _gauss_newton(residuals: Callable[[Tensor], Tensor], place: Tensor, rounds: int) -> Tensor:
    """The minimum of the mean of log(r² + d²) over rows r, with d a share of their median: rows on ridges between modes get little weight.

    Levenberg-Marquardt on rows weighted by 1 / (r² + d²), with the Jacobian by differences and a damping that shrinks while it succeeds.
    """
    damping, missed = 0.1, residuals(place)
    eye = torch.eye(len(place), dtype=torch.float64)
    for _ in range(rounds):
        floor = (0.3 * missed.norm(dim=1).median()).square().clamp(min=1e-24)
        loss = lambda r, floor=floor: (r.square().sum(1) + floor).log().mean()  # noqa: E731
        weight = 1 / (missed.square().sum(1) + floor)
        columns = torch.stack([(residuals(place + _NUDGE * e) - missed) / _NUDGE for e in eye], dim=-1)
        normal = torch.einsum("ndk,ndl,n->kl", columns, columns, weight).cpu()
        slope = torch.einsum("ndk,nd,n->k", columns, missed, weight).cpu()
        if not bool(normal.diagonal().mean() > 1e-12):  # moving the levels has no effect
            break
        scale = normal.diagonal().diag() + normal.diagonal().mean() * eye
        for _ in range(6):
            move = torch.linalg.solve(normal + damping * scale, -slope).clamp(-1, 1)
            there = residuals(place + move)
            if loss(there) < loss(missed):
                place, missed, damping = place + move, there, max(damping / 4, 1e-6)
                break
            damping *= 4
        else:
            break
    return place


@dataclass(frozen=True)
class BoundCosts:
    """What each step of a shorter chain adds to the bound, in bits/dim: a table over the chain's levels 0 … T, 0 the data.

    `steps[t, s]` is E KL(q(x_s|x_t, x0) ‖ p(x_s|x_t)), infinite unless t > s > 0. `decoder[t, s]` is E -log p(x0|x_s) with the variance of
    the step t → s before it, for the few s that may be the last. `prior` is E KL(q(x_T|x0) ‖ N(0, I)).
    """

    steps: Float[Tensor, "t s"]
    decoder: Float[Tensor, "t s"]
    prior: float

    def total(self, path: Sequence[int]) -> float:
        """The bound of a chain through these levels, from T to 0."""
        inner = sum(float(self.steps[t, s]) for t, s in pairwise(path[:-1]))
        return self.prior + inner + float(self.decoder[path[-3], path[-2]])

    def shortest(self, steps: int) -> list[int]:
        """The levels of the best chain with this many steps, from T to 0. Watson et al. (2021), alg. 1, arXiv:2106.03802.

        Raises:
            ValueError: fewer than two steps, or more than the chain has.
        """
        length = len(self.steps) - 1
        if not 2 <= steps <= length:
            raise ValueError(f"a chain of {length} steps can be shortened to 2 … {length} steps, got {steps}.")
        reached = torch.full((length + 1,), math.inf, dtype=torch.float64)
        reached[length] = 0.0
        came_from = []
        for last in [False] * (steps - 2) + [True]:
            through = reached[:, None] + self.steps + (self.decoder if last else 0.0)
            reached, parent = through.min(0)
            came_from.append(parent)
        path = [int(reached.argmin())]
        for parent in reversed(came_from):
            path.append(int(parent[path[-1]]))
        return [*reversed(path), 0]


@old_keywords(width="bin_width")
@torch.no_grad()
def bound_costs(
    predict: Predictor,
    chain: Discrete,
    x0: Float[Tensor, "b *x"],
    cond: CondLike | None = None,
    *,
    variance: str = "small",
    bin_width: float = 2 / 255,
    ends: int = 1,
    generator: Generator | None = None,
) -> BoundCosts:
    """The table of all steps between a chain's levels, from one evaluation a level: a step needs only the model's error at t.

        KL(t → s) = ½ (r (SNR_s - SNR_t) E(x0_hat - x0)² + r - 1 - log r)

    with r = 1 if the model has the posterior's own variance ("small"), and sigma_s²/sigma_t² if it has that of the transition.

    Args:
        predict: the model.
        chain: up to about a thousand levels; `Discrete.through(grid(chain, 200, spacing=spacing.uniform))` thins a longer one.
        x0: data, as `likelihood.vlb` takes them.
        cond: conditions, one row an example.
        variance: of the reverse steps: "small" or "large".
        bin_width: distance of neighbouring values of the data.
        ends: how many of the chain's first levels may be the last one before the data.
        generator: of the noise in x_t, one draw a level.

    Raises:
        ValueError: a learned variance, which depends on more than the error, or ends out of range.
    """
    if variance not in ("small", "large"):
        raise ValueError(f'the variance of tuned chains is "small" or "large", got "{variance}"; there is no such table for a learned one.')
    if not 1 <= ends < len(chain):
        raise ValueError(f"ends must lie in 1 … {len(chain) - 1}, got {ends}.")
    levels = [chain.level(k / len(chain)) for k in range(len(chain) + 1)]
    decoder = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
    squared = torch.zeros(len(levels), dtype=torch.float64)
    for k, level in enumerate(levels[1:], start=1):
        x_t = level.alpha * x0 + level.sigma * normal_like(x0, generator)
        prediction = predict(x_t, level, cond)
        squared[k] = (prediction.x0 - x0).square().cpu().mean(dtype=torch.float64)
        for before in range(k + 1, len(levels)) if k <= ends else ():
            last = posterior_log_variance(levels[before], level)
            bits = term_bits(prediction, x0, x_t, level, levels[0], variance=variance, last_log_variance=last, bin_width=bin_width)
            decoder[before, k] = bits.cpu().mean(dtype=torch.float64)
    snr = torch.stack([level.log_snr for level in levels]).exp()
    sigma = torch.stack([level.sigma for level in levels])
    ratio = (sigma / sigma[:, None]).square() if variance == "large" else torch.ones(len(levels), len(levels), dtype=torch.float64)
    nats = 0.5 * (ratio * (snr - snr[:, None]) * squared[:, None] + ratio - 1 - ratio.log())
    is_step = torch.ones_like(nats).tril(-1).bool() & (torch.arange(len(levels)) > 0)
    costs = torch.where(is_step, nats / math.log(2), math.inf)
    return BoundCosts(costs, decoder, float(prior_bits(x0, levels[-1]).cpu().mean(dtype=torch.float64)))


@old_keywords(width="bin_width")
def tune_bound(
    predict: Predictor,
    chain: Discrete,
    x0: Float[Tensor, "b *x"],
    cond: CondLike | None = None,
    *,
    steps: int = 10,
    variance: str = "small",
    bin_width: float = 2 / 255,
    ends: int = 1,
    generator: Generator | None = None,
) -> TuningResult:
    """The levels of a chain with the smallest bound on these data among all chains with this many steps, for `Ancestral(variance)`.

    Arguments and errors are those of `bound_costs`; the default for comparison has evenly spaced levels from T to 1.
    """
    costs = bound_costs(predict, chain, x0, cond, variance=variance, bin_width=bin_width, ends=ends, generator=generator)
    path = costs.shortest(steps)
    evenly = [round(k) for k in (spacing.openai_sections()(chain, steps) * len(chain)).tolist()]
    levels = tuple(chain.level(k / len(chain)) for k in path)
    return TuningResult(levels, Ancestral(variance), costs.total(path), costs.total(evenly))
