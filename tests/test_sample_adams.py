"""Adams's methods: their order, their steps against the closed flow of a Gaussian, their weights; the softened spacing."""

import math
from functools import cache

import pytest
import torch
from problems import SCALES, every_scales, gaussian, gaussian_flow, long_walk, mixture

import sfumato as sf
from sfumato.sampling.steps.adams import _arcs


def walk(step, steps, schedule, noise, predict=mixture):
    levels = sf.grid(schedule, steps, spacing=sf.spacing.log_snr)
    return sf.sample(predict, levels[0].sigma * noise, levels, step)


@cache
def flown(schedule):
    return walk(sf.steps.UniPC(3), 1500, schedule, torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))


@long_walk
@pytest.mark.parametrize(("order", "steps"), [(1, 60), (2, 60), (3, 160)])
def test_adams_reaches_its_order(order, steps):
    """One above the predictor's, where steps are short enough to be corrected; median error on a mixture against another method."""
    schedule = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0)
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    truth = flown(schedule)
    coarse, fine = ((walk(sf.steps.Adams(order), n, schedule, noise) - truth).norm(dim=1).median() for n in (steps, 2 * steps))
    assert math.log2(coarse / fine) > order + 0.8


@every_scales
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_walks_alike_under_every_scaling(order, scales):
    """But for the factor on x, with steps that are corrected: so its order is that of one scaling."""
    noise, ends = torch.randn(16, 2), []
    for which in (sf.vp_scales, scales):
        levels = sf.grid(sf.Cosine(scales=which, log_snr_max=8.0, log_snr_min=-8.0), 40)
        start = levels[0].alpha + levels[0].sigma * noise
        ends.append(sf.sample(mixture, start, levels, sf.steps.Adams(order)) / levels[-1].alpha)
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_long_step_is_not_corrected(order):
    """Steps of two nats: the last is laid through the last v, from where x stands."""
    schedule, x = sf.Cosine(), torch.randn(64, 2)
    levels = [schedule.level(t) for t in schedule.time(torch.tensor([-6.0, -4.0, -2.0, 0.0, 2.0]))]
    out, memory, points = x, None, [x] + [gaussian_flow(x, levels[0], level) for level in levels[1:]]
    for i in range(4):
        out, memory = sf.steps.Adams(order)(gaussian, points[i], levels[i], levels[i + 1], memory, None)
    u = [point / torch.hypot(level.alpha, level.sigma) for point, level in zip(points, levels, strict=True)]
    v = [gaussian(point, level).v(level) for point, level in zip(points, levels, strict=True)]
    arcs = sum(w * v[3 - k] for k, w in enumerate(_arcs(0.0, 1.0, (0.0, -1.0, -2.0, -3.0)[:order])))
    torch.testing.assert_close(out, torch.hypot(levels[4].alpha, levels[4].sigma) * (u[3] - arcs))


@pytest.mark.parametrize(("now", "then"), [(-4.0, 2.0), (-1.0, -0.5), (1.0, 5.0), (-8.0, 0.0)])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_weights_integrate_polynomials_over_the_arc(order, now, then):
    """Σ w p(node) against ∫ p(λ(φ)) dφ by the trapezoidal rule in φ."""
    nodes = tuple([then, now, now - 0.7, now - 1.9, now - 2.5][:order])
    phi = torch.linspace(math.atan(math.exp(-then)), math.atan(math.exp(-now)), 200_001)
    for power in range(order):
        wanted = torch.trapezoid((-phi.tan().log()).pow(power), phi)
        got = sum(w * node**power for w, node in zip(_arcs(now, then, nodes), nodes, strict=True))
        assert got == pytest.approx(float(wanted), rel=1e-4, abs=1e-5)


def test_a_long_step_with_one_v_turns():
    """Of four nats, or of a wide arc: DDIM's, under any scales; a short one goes along the tangent."""
    for scales in SCALES:
        schedule, x = sf.Cosine(scales=scales), torch.randn(16, 2)
        t, long, wide, short = (schedule.level(at) for at in schedule.time(torch.tensor([-0.5, 3.5, 0.7, -0.4])))
        noisy, less = (schedule.level(at) for at in schedule.time(torch.tensor([-9.0, -5.0])))
        for start, end in ((t, long), (t, wide), (noisy, less)):
            turned, _ = sf.steps.Adams(1)(mixture, x, start, end, None, None)
            torch.testing.assert_close(turned, sf.steps.DDIM()(mixture, x, start, end, None, None)[0], rtol=1e-10, atol=1e-12)
        straight, _ = sf.steps.Adams(1)(mixture, x, t, short, None, None)
        arc = torch.atan2(t.sigma, t.alpha) - torch.atan2(short.sigma, short.alpha)
        u, v = x / torch.hypot(t.alpha, t.sigma), mixture(x, t).v(t)
        torch.testing.assert_close(straight, torch.hypot(short.alpha, short.sigma) * (u - arc * v))


def test_unit_variance_is_walked_exactly():
    """v = 0 on N(0, 1): x keeps its place on the circle, where no step is long."""
    unit = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    schedule, noise = sf.Cosine(scales=sf.flow_scales), torch.randn(20, 2)
    levels = sf.grid(schedule, 20)
    x = torch.hypot(levels[0].alpha, levels[0].sigma) * noise
    wanted = torch.hypot(levels[-1].alpha, levels[-1].sigma) * noise
    torch.testing.assert_close(sf.sample(unit, x, levels, sf.steps.Adams()), wanted)


def test_a_step_to_the_data_returns_x0():
    chain, x = sf.Discrete.linear(1000), torch.randn(16, 2)
    out, _ = sf.steps.Adams()(mixture, x, chain.level(0.3), chain.level(0.0), None, None)
    torch.testing.assert_close(out, mixture(x, chain.level(0.3)).x0)


@long_walk
def test_a_walk_from_noise_alone_arrives():
    chain, x = sf.Discrete.linear(1000).zero_terminal(), torch.randn(200, 2)
    levels = sf.grid(chain, 60)
    reference = sf.sample(mixture, x, sf.grid(chain, 400), sf.steps.UniPC(2))
    assert (sf.sample(mixture, x, levels, sf.steps.Adams()) - reference).norm(dim=1).median() < 0.02


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.Flow(), sf.VE(), sf.Discrete.linear(1000)], ids=lambda s: type(s).__name__)
def test_softened_spacing_is_uniform_in_its_curve(schedule):
    levels = sf.grid(schedule, 12, spacing=sf.spacing.softened(20.0))
    ratios = torch.stack([level.alpha / level.sigma for level in levels if level.sigma > 0])
    curve = (1 + 20 * ratios).log()
    torch.testing.assert_close(curve.diff(), curve.diff().mean().expand(len(curve) - 1), rtol=1e-6, atol=1e-9)
    assert sf.spacing.softened()(schedule, 12)[[0, -1]].tolist() == [1, 0]


@long_walk
@pytest.mark.parametrize("steps", [8, 10, 20, 50])
def test_the_default_beats_the_second_order_on_uniform_log_snr(steps):
    """The pair that the accuracy benchmark recommends, on a mixture that it does not use."""
    chain, x = sf.Discrete.linear(1000), torch.randn(100, 2)
    start = chain.level(1.0).sigma * x
    truth = sf.sample(mixture, start, sf.grid(chain, 300), sf.steps.UniPC(3))
    new = sf.sample(mixture, start, sf.grid(chain, steps, spacing=sf.spacing.softened()), sf.steps.Adams())
    old = sf.sample(mixture, start, sf.grid(chain, steps), sf.steps.Multistep())
    assert (new - truth).norm(dim=1).median() < (old - truth).norm(dim=1).median() / 3


def test_orders_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="order must be 1 to 4"):
        sf.steps.Adams(5)
