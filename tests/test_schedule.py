import math

import pytest
import torch
from problems import SCALES, every_scales, every_schedule

import sfumato as sf

SCALE_RULES = {
    sf.vp_scales: lambda a, s: a**2 + s**2 - 1,
    sf.ve_scales: lambda a, s: a - 1,
    sf.flow_scales: lambda a, s: a + s - 1,
    sf.sub_vp_scales: lambda a, s: s - (1 - a**2),
}


@pytest.mark.parametrize("scales", SCALES)
def test_scales_keep_their_rule_and_the_log_snr(scales):
    log_snr = torch.linspace(-14, 14, 57)
    alpha, sigma = scales(log_snr)
    torch.testing.assert_close(SCALE_RULES[scales](alpha, sigma), torch.zeros(57), atol=1e-9, rtol=0)
    torch.testing.assert_close(sf.Level(alpha, sigma).log_snr, log_snr)


@every_schedule
def test_time_inverts_log_snr(schedule):
    t = torch.linspace(1e-4, 1, 501)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, atol=1e-9, rtol=1e-9)


@every_schedule
def test_log_snr_falls_with_time(schedule):
    assert (schedule.log_snr(torch.linspace(0, 1, 4001)).diff() < 0).all()


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.LinearVP(), sf.SubVP(), sf.Flow()], ids=lambda s: type(s).__name__)
def test_continuous_ends_are_the_cut(schedule):
    torch.testing.assert_close(schedule.log_snr(torch.tensor([0.0, 1.0])), torch.tensor([15.0, -15.0]), rtol=1e-9, atol=1e-9)


def test_cosine_alpha_is_the_cosine():
    schedule = sf.Cosine(log_snr_max=40.0, log_snr_min=-40.0)  # the cut is far away, so u is t but for 1e-9
    t = torch.linspace(0.01, 0.99, 99)
    torch.testing.assert_close(schedule.level(t).alpha, torch.cos(math.pi / 2 * t), rtol=0, atol=1e-7)


def test_flow_is_the_straight_line():
    level = sf.Flow(log_snr_max=44.0, log_snr_min=-44.0).level(torch.linspace(0.01, 0.99, 99))
    torch.testing.assert_close(level.sigma, torch.linspace(0.01, 0.99, 99), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "power"), [(sf.LinearVP, 1), (sf.SubVP, 2)])
def test_linear_beta_solves_its_sde(kind, power):
    """d alpha/dt = -beta/2 alpha (both), and the variance is 1 - e^-B (VP) or its square (sub-VP), B integrated by quadrature."""
    schedule = kind(log_snr_max=40.0, log_snr_min=-20.5)
    wide = schedule.inverse(torch.tensor([40.0, -20.5]))
    t = torch.linspace(0.05, 0.95, 10)
    u = wide[0] + (wide[1] - wide[0]) * t
    integral = torch.stack([torch.trapezoid(0.1 + 19.9 * (p := torch.linspace(0, float(end), 20001)), p) for end in u])
    level = schedule.level(t)
    torch.testing.assert_close(level.alpha, (-integral / 2).exp(), rtol=1e-8, atol=0)
    torch.testing.assert_close(level.sigma**2, (1 - (-integral).exp()) ** power, rtol=1e-8, atol=0)


def test_ve_is_geometric():
    sigma = sf.VE(sigma_min=0.01, sigma_max=50.0).level(torch.tensor([0.0, 0.5, 1.0])).sigma
    torch.testing.assert_close(sigma, torch.tensor([0.01, math.sqrt(0.5), 50.0]))


def test_discrete_is_the_product_of_its_betas():
    betas = torch.rand(50) * 0.2 + 0.001
    chain = sf.Discrete(betas)
    product = 1.0
    for k, beta in enumerate(betas.tolist(), start=1):
        product *= 1 - beta
        level = chain.level(k / 50)
        assert math.isclose(level.alpha.item() ** 2, product, rel_tol=1e-12)
        assert math.isclose(level.sigma.item() ** 2, 1 - product, rel_tol=1e-12)


def test_discrete_begins_at_the_data():
    level = sf.Discrete.linear(1000).level(0.0)
    assert (level.alpha.item(), level.sigma.item(), level.log_snr.item()) == (1.0, 0.0, math.inf)


def test_linear_betas_are_those_of_the_paper():
    betas = sf.Discrete.linear(1000).betas
    assert betas[0] == 1e-4
    assert betas[-1] == 0.02
    torch.testing.assert_close(betas.diff(), torch.full((999,), (0.02 - 1e-4) / 999))


def test_cosine_chain_follows_its_curve_until_the_cut():
    chain, k = sf.Discrete.cosine(100), torch.arange(1, 99)
    wanted = (torch.cos((k / 100 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    torch.testing.assert_close(chain.level(k / 100).alpha ** 2, wanted)
    assert chain.betas[-1] == 0.999


def test_sigmoid_chain_is_symmetric_about_its_middle():
    chain = sf.Discrete.sigmoid(100)
    alpha2 = chain.level(torch.arange(1, 100) / 100).alpha ** 2
    torch.testing.assert_close(alpha2 + alpha2.flip(0), torch.ones(99), rtol=1e-9, atol=1e-9)


def test_zero_terminal_snr_is_allowed():
    chain = sf.Discrete(torch.tensor([0.1, 0.5, 1.0]))
    assert chain.level(1.0).alpha.item() == 0
    assert chain.level(1.0).sigma.item() == 1


@every_scales
def test_a_level_broadcasts_against_its_data(scales):
    x = torch.zeros(4, 3, 2, 2, dtype=torch.float32)
    level = sf.Cosine(scales=scales).level(torch.rand(4), like=x)
    assert level.alpha.shape == (4, 1, 1, 1)
    assert level.alpha.dtype == torch.float32
    assert (level.alpha * x).shape == x.shape


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_time_outside_is_refused(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        sf.Cosine().level(t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.Discrete(torch.tensor([0.1, 1.5])), r"betas must lie in \(0, 1\)"),
        (lambda: sf.Discrete(torch.tensor([0.0, 0.5])), r"betas must lie in \(0, 1\)"),
        (lambda: sf.Discrete(torch.tensor([1.0, 0.5])), "only the last may be 1"),
        (lambda: sf.Discrete(torch.zeros(2, 2)), "must be a vector"),
        (lambda: sf.Discrete.linear(0), "at least one step"),
        (lambda: sf.Discrete.linear(10), "linear betas pass 1"),
        (lambda: sf.Cosine(log_snr_max=-3.0, log_snr_min=3.0), "log_snr_min < log_snr_max"),
        (lambda: sf.VE(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: sf.VE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: sf.VE(sigma_min=1.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: sf.VE(sigma_max=math.inf), "must be finite"),
        (lambda: sf.LinearVP(beta_min=0.0), "0 < beta_min <= beta_max"),
        (lambda: sf.LinearVP(beta_min=2.0, beta_max=1.0), "0 < beta_min <= beta_max"),
        (lambda: sf.LinearVP(beta_max=math.inf), "0 < beta_min <= beta_max"),
        (lambda: sf.Flow(log_snr_max=1.0, log_snr_min=1.0), "log_snr_min < log_snr_max"),
        (lambda: sf.Cosine().level(torch.rand(2, 2), like=torch.zeros(2)), "more axes than the data"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


NO_SIGNAL = sf.Discrete(torch.cat([torch.linspace(1e-3, 0.1, 99), torch.ones(1)]))


CURVES = [sf.Cosine(), sf.LinearVP(), sf.SubVP(), sf.VE(), sf.Flow()]


@pytest.mark.parametrize("schedule", CURVES, ids=lambda s: type(s).__name__)
def test_a_log_snr_beyond_the_ends_is_taken_to_them(schedule):
    ends = schedule.log_snr(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(schedule.time(ends + torch.tensor([3.0, -3.0])), torch.tensor([0.0, 1.0]), rtol=0, atol=0)


def test_a_log_snr_beyond_a_chain_is_taken_to_its_ends():
    chain = sf.Discrete.linear(100)
    last = chain.log_snr(torch.tensor([1.0]))
    assert chain.time(last - 5).item() == 1
    assert chain.time(torch.tensor([math.inf])).item() == 0


def test_every_level_of_a_zero_terminal_chain_but_its_last_has_signal():
    """k/T·T is not k in floating point for some (k, T); the level must still be the k-th."""
    for steps in range(2, 120):
        chain = sf.Discrete(torch.cat([torch.full((steps - 1,), 0.1), torch.ones(1)]))
        k = torch.arange(1, steps)
        torch.testing.assert_close(chain.level(k / steps).alpha ** 2, 0.9**k)


def test_a_first_step_that_is_almost_all_noise_keeps_its_signal():
    chain = sf.Discrete(torch.tensor([1 - 2.0**-53]))
    assert math.isclose(chain.level(1.0).alpha.item() ** 2, 2.0**-53, rel_tol=1e-9)


def test_the_first_step_has_a_variance_that_grows_linearly():
    chain = sf.Discrete.linear(100)
    t = torch.linspace(0, 0.01, 11)
    torch.testing.assert_close(chain.level(t).sigma ** 2, chain.betas[0] * torch.linspace(0, 1, 11))


def test_the_first_step_goes_on_down_to_the_data():
    """sigma² = k beta_1 for k in (0, 1], down to a billionth of the step, where rounding to a whole k would give the data."""
    chain, k = sf.Discrete.linear(100), torch.tensor([1e-12, 1e-9, 0.5, 1 - 1e-12, 1.0])
    wanted = torch.log1p(-k * chain.betas[0]) - torch.log(k * chain.betas[0])
    torch.testing.assert_close(chain.log_snr(k / 100), wanted, rtol=1e-8, atol=0)


def test_tiny_betas_do_not_cancel():
    chain, k = sf.Discrete(torch.full((4,), 1e-13)), torch.arange(1, 5)
    torch.testing.assert_close(chain.level(k / 4).sigma ** 2, k * 1e-13, rtol=1e-9, atol=0)


def test_betas_of_curves_are_cut_where_they_are_asked_to():
    for make in (sf.Discrete.cosine, sf.Discrete.sigmoid):
        assert make(50).betas.max() == 0.999
        assert make(50, beta_max=0.9).betas.max() == 0.9
        assert make(50, beta_max=1.0).level(1.0).alpha < 1e-12


def test_the_temperature_of_a_sigmoid_scales_its_ends():
    one, other = sf.Discrete.sigmoid(80, start=-3.0, end=2.0, tau=0.5), sf.Discrete.sigmoid(80, start=-6.0, end=4.0)
    torch.testing.assert_close(one.betas, other.betas)


def test_the_shortest_linear_chain_ends_in_noise_alone():
    assert sf.Discrete.linear(20).betas[-1] == 1
    with pytest.raises(ValueError, match="at least 20 steps"):
        sf.Discrete.linear(19)


def test_a_level_goes_to_the_device_of_its_data():
    level = sf.Level(torch.tensor(0.6), torch.tensor(0.8)).to(torch.empty(1, dtype=torch.float32, device="meta"))
    assert {(v.device.type, v.dtype) for v in (level.alpha, level.sigma)} == {("meta", torch.float32)}


def test_a_constant_beta_is_a_linear_one():
    schedule = sf.LinearVP(beta_min=3.0, beta_max=3.0)
    t = torch.linspace(0.1, 1, 10)
    log_alpha = schedule.level(t).alpha.log()  # -3u/2 with u affine in t
    torch.testing.assert_close(log_alpha.diff(), (log_alpha[-1] - log_alpha[0]).expand(9) / 9)
    torch.testing.assert_close(schedule.curve(torch.tensor([0.5])), -torch.tensor([1.5]).expm1().log())


@every_scales
def test_a_level_at_each_time_is_that_of_the_time_alone(scales):
    schedule, t = sf.Cosine(scales=scales), torch.linspace(0, 1, 7)
    rows = schedule.level(t, like=torch.zeros(7, 2, 3))
    for i in range(7):
        assert rows.alpha[i].item() == schedule.level(t[i]).alpha.item()
        assert rows.sigma[i].item() == schedule.level(t[i]).sigma.item()


def test_a_level_of_a_chain_is_the_last_of_the_chain_cut_there():
    """To the last bit, also where k/T·T is not k in floating point."""
    betas = torch.full((60,), 0.9)
    for steps in range(2, 61):
        chain = sf.Discrete(betas[:steps])
        for k in range(1, steps + 1):
            assert chain.log_snr(torch.tensor(k / steps)).item() == sf.Discrete(betas[:k]).log_snr(torch.tensor(1.0)).item()


def test_between_the_last_levels_of_a_zero_terminal_chain():
    assert not NO_SIGNAL.log_snr(torch.linspace(0, 1, 1001)).isnan().any()


def test_time_of_no_signal_is_one():
    assert NO_SIGNAL.time(torch.tensor([-math.inf])).item() == 1


def test_a_chain_keeps_its_noise_at_high_log_snr():
    chain = sf.Discrete.linear(1000)
    assert chain.level(chain.time(torch.tensor([24.0]))).sigma.item() > 0


CHAIN = sf.Discrete.linear(100)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([CHAIN.level(0.0)], "at least two single levels"),
        ([CHAIN.level(1.0), CHAIN.level(0.5)], "the last being the data"),
        ([CHAIN.level(0.5), CHAIN.level(1.0), CHAIN.level(0.0)], "falling order"),
        ([sf.Level(torch.tensor(0.5), torch.tensor(0.5)), CHAIN.level(0.0)], "vp_scales"),
    ],
)
def test_levels_that_make_no_chain_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        sf.Discrete.through(levels)


def test_a_chain_of_one_step_has_no_zero_terminal_form():
    with pytest.raises(ValueError, match="at least two steps"):
        sf.Discrete(torch.tensor([0.3])).zero_terminal()


@pytest.mark.parametrize(("top", "bottom"), [(1.0, 2.0), (50.0, 0.0), (0.0, -50.0)])
def test_a_learned_schedule_out_of_order_is_refused(top, bottom):
    with pytest.raises(ValueError, match="log_snr_min < log_snr_max"):
        sf.LearnedSchedule(log_snr_max=top, log_snr_min=bottom)


def test_a_learned_schedule_starts_as_a_line():
    t = torch.linspace(0, 1, 11)
    schedule = sf.LearnedSchedule(log_snr_max=7.0, log_snr_min=-3.0)
    torch.testing.assert_close(schedule.log_snr(t).detach(), 7 - 10 * t, rtol=0, atol=0.05)
    assert float(schedule.log_snr_min.detach()) == pytest.approx(-3.0)


def test_a_learned_schedule_on_another_device_answers_where_t_is():
    """Levels are asked for with numbers of the CPU wherever a model is; here the other device is "meta", which knows shapes alone."""
    schedule = sf.LearnedSchedule(log_snr_max=6.0, log_snr_min=-6.0)
    assert schedule.log_snr(torch.rand(3, device="meta")).device.type == "meta"


@pytest.mark.usefixtures("unchecked")
def test_a_learned_schedule_learns_a_curve():
    """Its weights are enough to become another schedule between the same ends."""
    schedule, wanted, t = (
        sf.LearnedSchedule(log_snr_max=6.0, log_snr_min=-6.0),
        sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0),
        torch.rand(256),
    )
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(300):
        loss = (schedule.log_snr(t) - wanted.log_snr(t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    assert (schedule.log_snr(torch.linspace(0, 1, 500)).diff() < 0).all()


def test_the_square_root_chain_is_cut_where_it_is_asked_to():
    assert sf.Discrete.sqrt(50, beta_max=0.9).betas.max().item() == 0.9


@pytest.mark.parametrize("limits", [(45.0, -45.0), (0.0, -1.0)])
def test_the_widest_and_narrow_ranges_are_allowed(limits):
    schedule = sf.Cosine(log_snr_max=limits[0], log_snr_min=limits[1])
    ends = schedule.log_snr(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor(limits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [sf.Cosine, sf.LinearVP, sf.SubVP, sf.VE, sf.Flow], ids=lambda kind: kind.__name__)
def test_the_options_of_a_curve_go_by_name(kind):
    with pytest.raises(TypeError, match="positional argument"):
        kind(1.0)


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_the_last_level_with_signal_is_before_the_end_of_a_zero_terminal_chain(steps):
    chain = sf.Discrete(torch.linspace(0.1, 0.3, steps)).zero_terminal()
    first, last = sf.schedule.finite_ends(chain)
    assert last == chain.log_snr(torch.tensor((steps - 1) / steps))
    assert last.isfinite()
    assert first == chain.log_snr(torch.tensor(1 / steps))
