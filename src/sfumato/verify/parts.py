"""Checks for a schedule or a predictor of your own; `parts_step` has those for a sampling step."""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import process
from sfumato.condition import take
from sfumato.denoiser import CondLike, Predictor
from sfumato.noise import normal_like
from sfumato.prediction import Prediction
from sfumato.schedule import Discrete, Level, Schedule
from sfumato.verify import ledger
from sfumato.verify.ledger import Check, Result, Row, worst


def schedule(part: Schedule) -> list[Result]:
    """Checks a schedule of your own: log-SNR decreases, `time` inverts it, the scales match it, and its SDE has its marginals.

    Returns:
        One result for each check.
    """
    name, inner = repr(part), _inner_times(part)
    rows = [
        _row(
            "schedule-falls",
            "d log SNR/dt < 0",
            name,
            lambda: float((part.log_snr(inner).diff() >= 0).sum()),
            "times at which it does not decrease",
            0.0,
        ),
        _row(
            "schedule-inverse",
            "t(log SNR(t)) = t",
            name,
            lambda: worst(part.time(part.log_snr(inner)), inner),
            "time(log_snr(t))",
            1e-6,
        ),
        _row("schedule-level", "α²/σ² = exp(log SNR)", name, partial(_level_error, part, inner), "log SNR of its levels, in nats", 1e-8),
        _row(
            "schedule-broadcast",
            "one t for each row",
            name,
            partial(_broadcast_error, part, inner),
            "levels one by one, shaped to the data",
            1e-12,
        ),
    ]
    if not isinstance(part, Discrete):
        rows.append(
            _row(
                "schedule-sde",
                "dV = (2 f V + g²) dt",
                name,
                partial(_moments_error, part),
                "α and σ² by Runge-Kutta from t = 0.1 to 0.9",
                1e-4,
            )
        )
    return ledger.run(rows)


def predictor(
    part: Predictor, x0: Float[Tensor, "b *x"], schedule: Schedule, cond: CondLike | None = None, *, calibrated: bool = False
) -> list[Result]:
    """Checks a predictor of your own on data x0 noised at many levels of a schedule.

    x0 and eps must reproduce x_t; a row must not depend on the other rows; one level for all rows must equal one level a row; a second call
    must give the same result; and all outputs must be finite from one end of the schedule to the other.

    Args:
        part: the predictor.
        x0: at least two examples, in the dtype that the predictor computes in.
        schedule: the schedule of the levels.
        cond: conditions, one row an example.
        calibrated: also check what holds only for an exact predictor: its error is zero on average and uncorrelated with its output, within
        4.5 standard errors. Pass thousands of x0 for this to mean much.

    Returns:
        One result for each check.

    Raises:
        ValueError: fewer than two examples.
    """
    if len(x0) < 2:
        raise ValueError(f"checking a predictor needs at least two examples, got {len(x0)}.")
    name = getattr(part, "__name__", type(part).__name__)
    times = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    if isinstance(schedule, Discrete):
        times = (times * len(schedule)).round().clamp(1, len(schedule)) / len(schedule)
    small = 1e-4 if x0.dtype == torch.float32 else 1e-9
    few = x0[: min(len(x0), 16)]
    few_cond = take(cond, slice(len(few)))
    each = partial(_over, part, few, schedule, times, few_cond)
    rows = [
        _row("predictor-explains", "α x̂_0 + σ ε̂ = x_t", name, partial(each, _explains), "x_t, relative to its size", small),
        _row("predictor-rows", "x̂_0 of a row depends on it only", name, partial(each, _rows), "each row predicted alone", 10 * small),
        _row("predictor-levels", "one level for all", name, partial(each, _levels), "the same level, one a row", 10 * small),
        _row("predictor-repeats", "x̂_0 = x̂_0", name, partial(each, _repeats), "a second call", 0.0),
        _row(
            "predictor-finite",
            "|x̂_0| < ∞",
            name,
            partial(_finite, part, few, schedule, few_cond),
            "entries that are not finite at the ends of the schedule",
            0.0,
        ),
    ]
    if calibrated:
        rows.append(
            _row(
                "predictor-calibrated",
                "E[x_0 - x̂_0] = 0, E[(x_0 - x̂_0)·x̂_0] = 0",
                name,
                partial(_over, part, x0, schedule, times, cond, _orthogonal),
                "both means, in standard errors",
                4.5,
            )
        )
    return ledger.run(rows)


def constant(prediction: Prediction) -> Predictor:
    """Always returns the given prediction."""

    def predict(x_t: Tensor, level: Level, cond: CondLike | None = None) -> Prediction:
        return prediction

    return predict


def _row(id: str, equation: str, name: str, check: "Check | partial[float]", how: str, tolerance: float) -> Row:
    def described() -> float:
        return check()

    described.__doc__ = how
    return Row(id, equation, "a part of your own", name, described, tolerance)


def _inner_times(part: Schedule) -> Tensor:
    if isinstance(part, Discrete):
        return torch.arange(1, len(part) + 1, dtype=torch.float64) / len(part)
    return torch.linspace(0, 1, 201, dtype=torch.float64)


def _level_error(part: Schedule, times: Tensor) -> float:
    level, log_snr = part.level(times), part.log_snr(times)
    finite = log_snr.isfinite()
    return float((level.log_snr - log_snr)[finite].abs().max())


def _broadcast_error(part: Schedule, times: Tensor) -> float:
    x = torch.empty(len(times), 2, 3, dtype=torch.float64)
    together = part.level(times, like=x)
    alone = [part.level(t) for t in times]
    shape = (len(times), 1, 1)
    if together.alpha.shape != shape or together.sigma.shape != shape:
        return math.inf
    return max(
        worst(getattr(together, side).flatten(), torch.stack([getattr(level, side) for level in alone])) for side in ("alpha", "sigma")
    )


def _moments_error(part: Schedule) -> float:
    """The moment equations of `process.sde`, integrated in 400 steps."""
    times = torch.linspace(0.1, 0.9, 801, dtype=torch.float64)
    (f, g2), level, h = process.sde(part, times), part.level(times[::800]), float(times[2] - times[0])
    state = torch.stack([level.alpha[0], level.sigma[0].square()]).detach()

    def slope(y: Tensor, i: int) -> Tensor:
        return torch.stack([f[i] * y[0], 2 * f[i] * y[1] + g2[i]])

    for i in range(0, 800, 2):
        k1 = slope(state, i)
        k2 = slope(state + h / 2 * k1, i + 1)
        k3 = slope(state + h / 2 * k2, i + 1)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(state + h * k3, i + 2))
    return max(worst(state[0], level.alpha[1]), worst(state[1], level.sigma[1].square()))


def _over(part: Predictor, x0: Tensor, schedule: Schedule, times: Tensor, cond: CondLike | None, measure) -> float:  # noqa: ANN001
    """The largest value of a measure over the levels."""
    generator, errors = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for t in times:
            level = schedule.level(t.expand(len(x0)), like=x0)
            x_t = level.alpha * x0 + level.sigma * normal_like(x0, generator)
            errors.append(measure(part, x0, x_t, level, cond))
    return max(errors) if all(math.isfinite(error) for error in errors) else math.nan


def _explains(part: Predictor, x0: Tensor, x_t: Tensor, level: Level, cond: CondLike | None) -> float:
    p = part(x_t, level, cond)
    return worst(level.alpha * p.x0 + level.sigma * p.eps, x_t) if p.x0.shape == x_t.shape == p.eps.shape else math.inf


def _rows(part: Predictor, x0: Tensor, x_t: Tensor, level: Level, cond: CondLike | None) -> float:
    def of(i: int) -> Tensor:
        mine = take(cond, slice(i, i + 1))
        return part(x_t[i : i + 1], Level(level.alpha[i : i + 1], level.sigma[i : i + 1]), mine).x0

    return worst(torch.cat([of(i) for i in range(len(x_t))]), part(x_t, level, cond).x0)


def _levels(part: Predictor, x0: Tensor, x_t: Tensor, level: Level, cond: CondLike | None) -> float:
    one = Level(level.alpha.flatten()[0], level.sigma.flatten()[0])
    return worst(part(x_t, one, cond).x0, part(x_t, level, cond).x0)


def _repeats(part: Predictor, x0: Tensor, x_t: Tensor, level: Level, cond: CondLike | None) -> float:
    return worst(part(x_t, level, cond).x0, part(x_t, level, cond).x0)


def _orthogonal(part: Predictor, x0: Tensor, x_t: Tensor, level: Level, cond: CondLike | None) -> float:
    output = part(x_t, level, cond).x0
    error = (x0 - output).flatten(1)
    sums = torch.stack([error.mean(1), (error * output.flatten(1)).mean(1)], 1)
    return ledger.standard_errors(sums.double(), 0.0)


def _finite(part: Predictor, x0: Tensor, schedule: Schedule, cond: CondLike | None) -> float:
    first = 1 / len(schedule) if isinstance(schedule, Discrete) else 0.0
    count = 0
    with torch.no_grad():
        for t in (first, 1.0):
            level = schedule.level(torch.full((len(x0),), t), like=x0)
            p = part(level.alpha * x0 + level.sigma * normal_like(x0, torch.Generator().manual_seed(0)), level, cond)
            count += int((~p.x0.isfinite()).sum()) + int((~p.eps.isfinite()).sum())
    return float(count)
