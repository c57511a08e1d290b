"""Training times: each sampler against the density that it states, and the weights of those that learn, which must undo that density."""

import math
from collections.abc import Callable

import pytest
import torch
from problems import every_schedule, label
from torch import Tensor

import sfumato as sf

COUNT = 20_000
CHANCE = 1.95  # Kolmogorov's distance times the root of the number of draws, beyond which chance goes once in a thousand
NORMAL = torch.distributions.Normal(0.0, 1.0)
WIDE = sf.Cosine(log_snr_max=30.0, log_snr_min=-30.0)  # cuts nothing off a normal of log(sigma/alpha)
SHORT = sf.Discrete.linear(40, beta_max=0.02)


def draw(times: Callable[[int, torch.Generator], Tensor], count: int = COUNT) -> Tensor:
    return times(count, torch.Generator().manual_seed(0))


def distance(values: Tensor, cdf: Tensor, below: Tensor | None = None, weights: Tensor | None = None) -> float:
    """Kolmogorov's: the largest difference between the share of draws up to a value (each counted by its weight) and P(up to it).

    `cdf` has P(X <= x) of each value, `below` P(X < x), which is the same unless values repeat.
    """
    order = values.argsort()
    share = (torch.ones_like(cdf) if weights is None else weights)[order] / len(values)
    upto, values, cdf = share.cumsum(0), values[order], cdf[order]
    below = cdf if below is None else below[order]
    last = torch.cat([values[1:] > values[:-1], torch.tensor([True])])  # of equal values
    first = torch.cat([torch.tensor([True]), values[1:] > values[:-1]])
    return max((upto - cdf)[last].abs().max().item(), (upto - share - below)[first].abs().max().item())


def uniform(t: Tensor, schedule: sf.Schedule) -> tuple[Tensor, Tensor]:
    """P(up to t), P(below t) of uniform times: over (0, 1], or over the levels 1/T … 1 of a chain."""
    return (t, t - 1 / len(schedule)) if isinstance(schedule, sf.Discrete) else (t, t)


def normal(t: Tensor, schedule: sf.Schedule, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """The same where log(sigma/alpha) is normal. A level of a chain takes what lies nearer in t than to the next; the ends the rest."""
    half = 0.5 / len(schedule) if isinstance(schedule, sf.Discrete) else 0.0
    ratio = lambda at: -schedule.log_snr(at) / 2  # noqa: E731
    upto, below = (NORMAL.cdf((ratio((t + side).clamp(0, 1)) - mean) / std) for side in (half, -half))
    first = 2 * half if half else 0.0
    return torch.where(t >= 1, 1.0, upto), torch.where(t <= first, 0.0, below)


@every_schedule
def test_uniform_times_are_uniform(schedule):
    t = draw(sf.loss.Uniform(schedule))
    assert distance(t, *uniform(t, schedule)) < CHANCE / math.sqrt(COUNT)
    assert t.min() > 0


@every_schedule
def test_stratified_times_are_uniform_to_one_draw(schedule):
    """There is one in each nth of [0, 1), so no share is off by more than 1/n."""
    t = draw(sf.loss.Stratified(schedule))
    assert distance(t, *uniform(t, schedule)) < 1.01 / COUNT


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.4, 2.0)])
@pytest.mark.parametrize("schedule", [WIDE, sf.Cosine(), sf.Flow(), sf.VE(), SHORT, sf.Discrete.cosine(200)], ids=label)
def test_log_normal_times_have_their_density_to_one_draw(schedule, mean, std):
    """Between the schedule's ends, which take what lies beyond them; the other schedules than `WIDE` cut off up to 30%."""
    t = draw(sf.loss.LogNormal(schedule, mean=mean, std=std))
    assert distance(t, *normal(t, schedule, mean, std)) < 1.01 / COUNT


LOSSES = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0], [6.0, 8.0], [0.5, 0.5]])  # of five bins, two each
SIZES = torch.tensor([12.5, 1.0, 2.0, 50.0, 0.25]).sqrt()  # the roots of their second moments


def importance(schedule: sf.Schedule, share: float) -> sf.loss.Importance:
    """One that has seen LOSSES. A chain must be of five steps."""
    times = sf.loss.Importance(schedule, bins=5, history=2, uniform_share=share)
    middle = torch.arange(1, 6) / 5 if isinstance(schedule, sf.Discrete) else (torch.arange(5) + 0.5) / 5
    for column in LOSSES.T:
        times.update(middle, column)
    return times


FIVE = sf.Discrete(torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4]))
by_importance = pytest.mark.parametrize(("schedule", "share"), [(sf.Cosine(), 1e-3), (sf.Cosine(), 0.3), (FIVE, 0.1)], ids=label)


@by_importance
def test_importance_draws_a_bin_by_the_root_of_its_second_moment(schedule, share):
    """Within a bin uniformly; `share` of all times uniformly. Nichol & Dhariwal (2021), eq. 18."""
    t = draw(importance(schedule, share))
    edges = torch.cat([torch.zeros(1), ((1 - share) * SIZES / SIZES.sum() + share / 5).cumsum(0)])
    whole = (5 * t - 1e-9).floor().long()
    upto = torch.lerp(edges[whole], edges[whole + 1], 5 * t - whole)
    below = edges[whole] if isinstance(schedule, sf.Discrete) else upto
    assert distance(t, upto, below) < CHANCE / math.sqrt(COUNT)


def undone(t: Tensor, weights: Tensor, cdf: Tensor, below: Tensor | None = None) -> float:
    """Kolmogorov's distance of weighted draws, over what chance explains: weights are not divided by their sum, so a wrong mean shows."""
    return distance(t, cdf, below, weights) / (CHANCE * (weights.square().mean() / len(t)).sqrt().item())


@by_importance
def test_the_weight_of_importance_gives_uniform_times_back(schedule, share):
    times = importance(schedule, share)
    t = draw(times)
    assert undone(t, times.weight(t), *uniform(t, schedule)) < 1


@by_importance
def test_a_weighted_mean_is_that_of_uniform_times(schedule, share):
    """Of a function that is large where few times are drawn: ∫ (1 + cos 3t) dt, or the mean over the chain's levels."""
    times = importance(schedule, share)
    t = draw(times)
    value = times.weight(t) * (1 + (3 * t).cos())
    wanted = 1 + math.sin(3) / 3 if isinstance(schedule, sf.Cosine) else (1 + (3 * torch.arange(1, 6) / 5).cos()).mean().item()
    assert abs(value.mean().item() - wanted) < 4 * value.std().item() / math.sqrt(COUNT)


def fitted(schedule: sf.Schedule, share: float) -> sf.loss.Fitted:
    """One whose five stretches of log-SNR have cost 5, 1, 2, 8 and 0.5, from the cleanest on."""
    times = sf.loss.Fitted(schedule, bins=5, uniform_share=share)
    middle = (times.edges[1:] + times.edges[:-1]) / 2
    times.mean = torch.tensor([5.0, 1.0, 2.0, 8.0, 0.5])
    assert times.edges[0] == schedule.log_snr(torch.tensor([1 / len(schedule) if isinstance(schedule, sf.Discrete) else 0.0]))
    assert (middle.diff() < 0).all()
    return times


by_fitted = pytest.mark.parametrize(
    ("schedule", "share"), [(sf.Cosine(), 0.05), (sf.VE(), 0.0), (sf.Flow(), 0.5), (SHORT, 0.05), (sf.Discrete.cosine(200), 0.2)], ids=label
)


def along(t: Tensor, schedule: sf.Schedule, ends: tuple[float, float]) -> Tensor:
    """How far the log-SNR at t has come from the cleaner end to the noisier, 0 … 1."""
    return ((schedule.log_snr(t) - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)


def cells(t: Tensor, schedule: sf.Schedule, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """How far log-SNR has come where what is drawn as t begins and ends: at t itself, or half way in t to a chain's neighbouring levels."""
    if not isinstance(schedule, sf.Discrete):
        return along(t, schedule, ends), along(t, schedule, ends)
    half = 0.5 / len(schedule)
    return along((t - half).clamp(min=0.0), schedule, ends), along((t + half).clamp(max=1.0), schedule, ends)


@by_fitted
def test_fitted_times_are_drawn_by_the_loss_of_their_stretch(schedule, share):
    """To one draw, as they are spread evenly; within a stretch uniformly in log-SNR."""
    times = fitted(schedule, share)
    t, ends = draw(times), (times.edges[0].item(), times.edges[-1].item())
    edges = torch.cat([torch.zeros(1), ((1 - share) * torch.tensor([5.0, 1.0, 2.0, 8.0, 0.5]) / 16.5 + share / 5).cumsum(0)])

    def chance(place):
        whole = (5 * place).floor().long().clamp(max=4)
        return torch.lerp(edges[whole], edges[whole + 1], 5 * place - whole)

    below, upto = (chance(place) for place in cells(t, schedule, ends))
    assert distance(t, upto, below) < 1.01 / COUNT


@by_fitted
def test_the_weight_of_fitted_times_gives_uniform_log_snr_back(schedule, share):
    times = fitted(schedule, share)
    t = draw(times)
    below, upto = cells(t, schedule, (times.edges[0].item(), times.edges[-1].item()))
    assert undone(t, times.weight(t), upto, below) < 1
    assert abs(times.weight(t).mean().item() - 1) < 4e-4  # one draw of 20,000, at the largest weight
