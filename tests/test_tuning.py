"""Tuned walks on unseen noise; the bound's table against `term_bits` and its shortest paths against all paths."""

from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from problems import label, mixture

import sfumato as sf
from sfumato.likelihood import prior_bits, term_bits, vlb
from sfumato.tuning import FittedMultistep, TuningResult, bound_costs, tune, tune_bound

CHAIN = sf.Discrete.linear(1000)
QUICK: dict[str, Any] = {"rounds": 6, "reference": 64}
METHOD = {5: sf.steps.UniPC(2), 8: FittedMultistep(), 10: FittedMultistep()}  # one each, to save time


@cache
def unseen():
    """Other noise, and its endpoints by Heun's rule."""
    x = CHAIN.level(1.0).sigma * torch.randn(200, 2, generator=torch.Generator().manual_seed(9))
    low, high = (float(CHAIN.level(t).log_snr) for t in (1.0, 1 / 1000))
    fine = [CHAIN.level(t) for t in CHAIN.time(torch.linspace(low, high, 151))]
    return x, sf.sample(mixture, x, [CHAIN.level(1.0), *fine[1:], CHAIN.level(0.0)], sf.steps.Heun())


def endpoint_error(levels, step):
    x, truth = unseen()
    return float((sf.sample(mixture, x, levels, step) - truth).norm(dim=1).median())


@pytest.mark.parametrize("steps", [5, 8, 10])
def test_tuned_walks_have_half_the_error_on_unseen_noise(steps):
    tuned = tune(mixture, CHAIN, torch.randn(48, 2), steps=steps, methods=[METHOD[steps]], **QUICK)
    assert len(tuned.levels) == steps + 1
    assert endpoint_error(tuned.levels, tuned.step) < endpoint_error(sf.grid(CHAIN, steps), sf.steps.Multistep()) / 2
    assert tuned.error < tuned.default_error / 2


def test_a_default_that_nothing_beats_is_kept():
    """A step of DDIM on a point of data is exact, so no fit can better it."""
    point = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.7]]), torch.zeros(1, 2, 2))
    levels = sf.grid(CHAIN, 4)
    tuned = tune(point, CHAIN, torch.randn(24, 2), steps=4, step=sf.steps.DDIM(), methods=[sf.steps.UniPC(2)], **QUICK)
    assert tuned.error <= tuned.default_error < 1e-6
    assert tuned.levels[0] == levels[0]


@pytest.mark.parametrize(
    "schedule", [sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), sf.Flow(), sf.VE(), sf.Discrete.cosine(50).zero_terminal()], ids=label
)
def test_every_schedule_is_tuned_between_its_ends(schedule):
    tuned = tune(mixture, schedule, torch.randn(30, 2), steps=4, methods=[sf.steps.AdamsBashforth(2)], **QUICK)
    default = sf.grid(schedule, 4)
    assert (tuned.levels[0], tuned.levels[-1]) == (default[0], default[-1])
    assert tuned.error < tuned.default_error


def test_levels_that_are_given_keep_their_ends():
    one = torch.ones(())
    given = [*sf.grid(sf.Cosine(log_snr_max=6.0), 4), sf.Level(one, 0 * one)]
    tuned = tune(mixture, sf.Cosine(log_snr_max=6.0), torch.randn(48, 2), levels=given, methods=[sf.steps.UniPC(2)], **QUICK)
    assert len(tuned.levels) == len(given)
    assert (tuned.levels[0], tuned.levels[-1]) == (given[0], given[-1])
    assert tuned.error < tuned.default_error


def test_conditions_are_tuned_with_their_rows():
    """Half the rows under label 0, half under label 2: the truth of each is its own component's."""
    labels = torch.arange(48) % 2 * 2
    tuned = tune(mixture, CHAIN, torch.randn(48, 2), {"labels": labels}, steps=5, methods=[sf.steps.UniPC(2)], **QUICK)
    assert tuned.error < tuned.default_error / 2


def test_a_record_is_the_same_walk():
    for step in (sf.steps.UniPC(3), FittedMultistep((0.3, 0.1 + 0.2))):
        tuned = TuningResult(tuple(sf.grid(CHAIN, 7)), step, 0.1, 0.3)
        assert TuningResult.from_json(tuned.to_json()) == tuned
    with pytest.raises(ValueError, match="not a record of tuned levels"):
        TuningResult.from_json('{"method": "Magic"}')


def test_a_record_under_the_methods_old_name_still_loads():
    tuned = TuningResult(tuple(sf.grid(CHAIN, 3)), FittedMultistep((0.3,)), 0.1, 0.3)
    assert '"FittedMultistep"' in tuned.to_json()
    assert TuningResult.from_json(tuned.to_json().replace('"FittedMultistep"', '"Fitted"')) == tuned


@pytest.mark.parametrize("schedule", [CHAIN, sf.Flow(log_snr_max=6.0)], ids=["Discrete", "Flow"])
def test_fitted_with_its_own_extrapolations_is_2m(schedule):
    levels, x = sf.grid(schedule, 12), torch.randn(20, 2)
    h = torch.stack([level.log_snr for level in levels]).diff()
    given = [float(b / (2 * a)) if b.isfinite() else 0.0 for a, b in pairwise(h)]
    torch.testing.assert_close(
        sf.sample(mixture, levels[0].sigma * x, levels, FittedMultistep(tuple(given))),
        sf.sample(mixture, levels[0].sigma * x, levels, sf.steps.Multistep(2)),
    )


def test_fitted_walks_no_farther_than_it_was_fitted():
    with pytest.raises(ValueError, match="fitted to 3 steps"):
        sf.sample(mixture, torch.randn(4, 2), sf.grid(CHAIN, 4), FittedMultistep((0.5, 0.5)))


SHORT = sf.Discrete.linear(12, beta_max=0.01)
GRID_DATA = (torch.randint(0, 17, (200, 2), generator=torch.Generator().manual_seed(5)) / 8 - 1).double()


def costs_of(variance, ends=1):
    return bound_costs(mixture, SHORT, GRID_DATA, variance=variance, bin_width=1 / 8, ends=ends, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_table_is_that_of_term_bits(variance):
    """Every entry, from the same draws of x_t."""
    costs, generator = costs_of(variance, ends=2), torch.Generator().manual_seed(1)
    levels = [SHORT.level(k / 12) for k in range(13)]
    for t in range(1, 13):
        x_t = levels[t].alpha * GRID_DATA + levels[t].sigma * sf.normal_like(GRID_DATA, generator)
        p = mixture(x_t, levels[t])
        wanted = [float(term_bits(p, GRID_DATA, x_t, levels[t], levels[s], variance=variance).mean()) for s in range(1, t)]
        torch.testing.assert_close(costs.steps[t, 1:t], torch.tensor(wanted))
        assert costs.steps[t, t:].isinf().all()
        assert costs.steps[t, 0].isinf()
    assert costs.decoder.isfinite().sum() == 11 + 10
    assert costs.prior == pytest.approx(float(prior_bits(GRID_DATA, levels[-1]).mean()))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("ends", [1, 6])
@pytest.mark.parametrize("steps", [2, 3, 5, 12])
def test_no_path_is_shorter(steps, ends, variance):
    """Against all subsets of the inner levels."""
    costs = costs_of(variance, ends)
    paths = [[12, *reversed(inner), 0] for inner in combinations(range(1, 12), steps - 1) if inner[0] <= ends]
    best = min(paths, key=costs.total)
    assert costs.total(costs.shortest(steps)) == pytest.approx(costs.total(best), rel=1e-12)
    assert costs.shortest(steps) == best


def test_the_bound_of_the_tuned_chain_is_the_least_of_all_spacings():
    chain, generator = sf.Discrete.linear(40, beta_max=0.01), torch.Generator().manual_seed(0)
    x0 = (mixture.sample(100, generator)[0].clamp(-2, 2) * 8).round() / 16
    tuned = tune_bound(mixture, chain, x0, steps=8, bin_width=1 / 16, ends=8, generator=generator)
    costs = bound_costs(mixture, chain, x0, bin_width=1 / 16, ends=8, generator=torch.Generator().manual_seed(0))
    assert len(tuned.levels) == 9
    for spacing in (sf.spacing.uniform, sf.spacing.leading, sf.spacing.quadratic, sf.spacing.openai_sections()):
        path = [round(k) for k in (spacing(chain, 8) * 40).tolist()]
        if path[0] == 40 and path[-2] <= 8:
            assert costs.total(costs.shortest(8)) <= costs.total(path)
    assert tuned.error < tuned.default_error


def test_the_tables_total_is_the_bound():
    """Of a chain through some levels, from other draws: within their standard errors."""
    x0 = GRID_DATA.repeat(20, 1)
    costs = bound_costs(mixture, SHORT, x0, bin_width=1 / 8, generator=torch.Generator().manual_seed(2))
    path = costs.shortest(5)
    bound = vlb(mixture, x0, [SHORT.level(k / 12) for k in path], bin_width=1 / 8, generator=torch.Generator().manual_seed(3))
    assert abs(costs.total(path) - float(bound.total.mean())) < 4 * bound.standard_error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tune(mixture, CHAIN, torch.randn(5, 2)), "12 rows of noise"),
        (lambda: tune(mixture, CHAIN, torch.randn(50, 2), steps=1), "tuning needs 2 steps"),
        (lambda: tune(mixture, CHAIN, torch.randn(50, 2), methods=[]), "a method"),
        (lambda: costs_of("learned"), 'is "small" or "large"'),
        (lambda: costs_of("small", ends=12), "ends must lie"),
        (lambda: costs_of("small").shortest(13), "shortened to 2 … 12"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
