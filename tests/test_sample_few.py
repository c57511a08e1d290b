"""Few steps and long ones: every method of the probability flow against DDIM, over oracles, schedules, spacings and numbers of steps."""

import itertools
import math
import warnings
from functools import cache

import pytest
import torch
from problems import few_steps, gaussian, label, long_walk, mixture

import sfumato as sf
from sfumato.sampling import flow

POINT = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.7]], dtype=torch.float64), torch.zeros(1, 2, 2))
TIGHT = sf.GaussianMixture(mixture.weights, mixture.means, 0.1 * (mixture.axes * mixture.variances[:, None]) @ mixture.axes.mT)
SCHEDULES = {
    "chain": sf.Discrete.linear(1000),
    "cosine": sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0),
    "flow": sf.Flow(),
    "ve": sf.VE(),
}
SPACINGS = {
    "leading": sf.spacing.leading,
    "uniform": sf.spacing.uniform,
    "log_snr": sf.spacing.log_snr,
    "quadratic": sf.spacing.quadratic,
    "karras": sf.spacing.karras(),
    "softened": sf.spacing.softened(),
}
PAIRS = [
    *(("chain", space) for space in SPACINGS),
    *(("cosine", space) for space in ("uniform", "log_snr", "karras")),
    *(("flow", space) for space in ("uniform", "karras", "softened")),
    *(("ve", space) for space in ("quadratic", "karras")),
]
REMEMBERING = [kind(order) for kind in (sf.steps.Multistep, sf.steps.UniPC, sf.steps.AdamsBashforth, sf.steps.Adams) for order in (1, 2, 3)]
METHODS = [sf.steps.Heun(), *REMEMBERING]
NOISE = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@cache
def flown(oracle, schedule, start, end):
    """The adaptive flow from the noise at level `start`, by its scales, to `end`; from no signal or to no noise, as near as can be."""
    (alpha, sigma), (alpha_s, sigma_s) = start, end
    levels = (
        sf.Level(torch.tensor(max(alpha, 1e-6)), torch.tensor(sigma)),
        sf.Level(torch.tensor(alpha_s), torch.tensor(max(sigma_s, 1e-6))),
    )
    return flow(oracle, sigma * NOISE, *levels, rtol=1e-5, atol=1e-5, max_steps=20_000).x


def errors(oracle, schedule, levels, steps):
    """Root mean square over rows of each method's distance to the flow's end; the two worst rows lie on ridges and are left out."""
    ends = [(float(level.alpha), float(level.sigma)) for level in (levels[0], levels[-1])]
    truth = flown(oracle, schedule, *ends)
    found = [(sf.sample(oracle, levels[0].sigma * NOISE, levels, step) - truth).norm(dim=1) for step in steps]
    return [each.sort().values[:-2].square().mean().sqrt().item() for each in found]


@long_walk
@few_steps
@pytest.mark.parametrize(("name", "space"), PAIRS)
def test_one_and_two_steps_are_exact_on_one_point(name, space):
    """There x0 and eps of a walk are known at once: x at every level is alpha x0 + sigma eps with the eps that it began with."""
    for steps in (1, 2):
        levels = sf.grid(SCHEDULES[name], steps, spacing=SPACINGS[space])
        start, end = (level.alpha * POINT.means[0] + level.sigma * NOISE for level in (levels[0], levels[-1]))
        for step in [sf.steps.DDIM(), *METHODS]:
            torch.testing.assert_close(sf.sample(POINT, start, levels, step), end, rtol=0, atol=1e-11, msg=lambda m, s=step: f"{s}: {m}")


@long_walk
@few_steps
@pytest.mark.parametrize(("name", "space"), PAIRS)
def test_no_method_is_much_worse_than_ddim(name, space):
    """By more than a tenth, and a hundredth of the data's scale, on two mixtures at three numbers of steps; most are far better.

    At five steps, a half: Adams on levels that are far apart at both ends comes to 1.5 times DDIM's error on the tighter mixture.
    """
    for oracle, steps in itertools.product((mixture, TIGHT), (2, 5, 24)):
        levels = sf.grid(SCHEDULES[name], steps, spacing=SPACINGS[space])
        ddim, *others = errors(oracle, name, levels, [sf.steps.DDIM(), *METHODS])
        worse = {
            repr(step): (error, ddim)
            for step, error in zip(METHODS, others, strict=True)
            if error > (1.5 if steps == 5 else 1.1) * ddim + 0.01
        }
        assert not worse, (steps, oracle is TIGHT)


@long_walk
@pytest.mark.parametrize("step", [s for s in METHODS if getattr(s, "order", 2) > 1], ids=label)
def test_more_steps_are_not_worse_where_one_is_long(step):
    """`leading` over a chain of 1000 has one step 3 to 4 times as long as the one before; its error must fall as steps grow."""
    for oracle in (mixture, TIGHT):
        grids = [sf.grid(SCHEDULES["chain"], steps, spacing=sf.spacing.leading) for steps in (16, 25, 31, 40)]
        found = [errors(oracle, "chain", levels, [step])[0] for levels in grids]
        assert all(fine < 1.1 * coarse for coarse, fine in itertools.pairwise(found)), found


def test_second_order_is_kept_where_steps_grow_gently():
    """Steps each a quarter longer than the one before: far below the error of DDIM at orders 2 and 3."""
    schedule = SCHEDULES["cosine"]
    lengths = torch.tensor([1.25**i for i in range(12)])
    places = torch.cat([torch.zeros(1), (lengths / lengths.sum()).cumsum(0)])
    levels = [schedule.level(t) for t in schedule.time(-9 + 12 * places)]
    ddim, *others = errors(mixture, "cosine", levels, [sf.steps.DDIM(), *(kind(order) for kind in KINDS for order in (2, 3))])
    assert max(others) < 0.8 * ddim, (ddim, others)


KINDS = (sf.steps.Multistep, sf.steps.UniPC, sf.steps.AdamsBashforth, sf.steps.Adams)


def test_heun_says_where_it_has_no_meaning():
    with pytest.warns(UserWarning, match="not accurate over a step of 18 nats of log-SNR, so DDIM's is used"):
        one = sf.sample(gaussian, NOISE, sf.grid(SCHEDULES["cosine"], 1), sf.steps.Heun())
    torch.testing.assert_close(one, sf.sample(gaussian, NOISE, sf.grid(SCHEDULES["cosine"], 1), sf.steps.DDIM()), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.sample(gaussian, NOISE, sf.grid(SCHEDULES["chain"], 40, spacing=sf.spacing.trailing), sf.steps.Heun())


@pytest.mark.parametrize("step", [sf.steps.Multistep(3), sf.steps.UniPC(3), sf.steps.AdamsBashforth(3), sf.steps.Adams(3)], ids=label)
def test_lower_order_final_lowers_the_last_steps(step):
    """The walk of order 3, whose last two steps are taken by the methods of order 2 and 1."""
    levels = sf.grid(SCHEDULES["cosine"], 16)
    x, memory = levels[0].sigma * NOISE, None
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        x, memory = type(step)(min(3, 16 - i))(mixture, x, t, s, memory, None)
    lowered = sf.sample(mixture, levels[0].sigma * NOISE, levels, sf.steps.LowerOrderFinal(step))
    assert torch.equal(lowered, x)
    assert not torch.allclose(lowered, sf.sample(mixture, levels[0].sigma * NOISE, levels, step), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="only a method with an order"):
        sf.steps.LowerOrderFinal(sf.steps.DDIM())


@few_steps
def test_the_default_of_a_trained_model_at_one_and_two_steps():
    """zoo:digits: the distance of the default, and of others, to a solution of 30 steps is DDIM's at most."""
    model = sf.load("zoo:digits")

    def draw(sampler, steps):
        options = {"steps": steps, "guidance": 1.0, "sampler": sampler}
        return model.sampler(sf.Request(range(10), 0, model.device, model.conditions(range(10)), options))

    truth = draw("adams", 30)
    for steps in (1, 2):
        ddim, *others = ((draw(name, steps) - truth).square().mean().sqrt().item() for name in ("ddim", "adams", "heun", "unipc"))
        assert max(others) < 1.001 * ddim < math.inf
