"""Steps against closed forms: the order at which they approach the exact flow, the law that stochastic ones reach, and the DDPM algebra."""

import math
from functools import cache

import jaxtyping
import numpy as np
import pytest
import torch
from problems import betas_of, few_steps, gaussian, gaussian_flow, label, long_walk, mixture

import sfumato as sf


@long_walk
@pytest.mark.parametrize("step", [sf.steps.DDIM(), sf.steps.Multistep(), sf.steps.Heun()], ids=label)
def test_step_follows_the_closed_flow_of_a_gaussian(step):
    schedule, x = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), torch.randn(64, 2)
    levels = sf.grid(schedule, 1000, spacing=sf.spacing.log_snr)
    start = levels[0].sigma * x
    wanted = gaussian_flow(start, levels[0], levels[-1])
    tolerance = 1e-2 if isinstance(step, sf.steps.DDIM) else 1e-4
    torch.testing.assert_close(sf.sample(gaussian, start, levels, step), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("variance", "sign"), [("small", -1), ("large", 1)])
def test_one_coarse_ancestral_step_has_its_variance(variance, sign):
    """β̃ and β of a stride of 100, from the betas of the strided chain; the two differ by 20% here."""
    chain = sf.Discrete.linear(1000)
    t, s = chain.level(0.3), chain.level(0.2)
    product = torch.cumprod(1 - chain.betas, 0)
    beta = 1 - product[299] / product[199]
    wanted = beta if variance == "large" else beta * (1 - product[199]) / (1 - product[299])
    x = torch.zeros(200_000, 2)
    p = lambda x_t, level, cond=None: sf.Prediction(torch.zeros_like(x_t), x_t / level.sigma)  # noqa: E731
    out, _ = sf.steps.Ancestral(variance)(p, x, t, s, None, torch.Generator().manual_seed(0))
    assert abs(out.var().item() / wanted.item() - 1) < 0.01


def test_learned_variance_interpolates_in_the_logarithm():
    chain = sf.Discrete.linear(1000)
    t, s = chain.level(0.3), chain.level(0.2)
    small, large = sf.process.posterior_log_variance(t, s), sf.process.transition_log_variance(s, t)

    def predict(x_t, level, cond=None):
        return sf.Prediction(torch.zeros_like(x_t), x_t / level.sigma, torch.full_like(x_t, 0.25))

    out, _ = sf.steps.Ancestral("learned")(predict, torch.zeros(200_000, 1), t, s, None, torch.Generator().manual_seed(0))
    assert abs(out.var().item() / (0.25 * large + 0.75 * small).exp().item() - 1) < 0.01


def test_ddim_with_eta_one_is_ancestral():
    levels, x = sf.grid(sf.Discrete.linear(1000), 20, spacing=sf.spacing.trailing), torch.randn(32, 2)
    runs = [
        sf.sample(mixture, x, levels, step, generator=torch.Generator().manual_seed(5))
        for step in (sf.steps.DDIM(1.0), sf.steps.Ancestral())
    ]
    torch.testing.assert_close(*runs)


def test_ddim_without_noise_keeps_x0_and_eps():
    """Where the data is one point, x0 is known at once and the straight way there is exact in one step."""
    point = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.7]]), torch.zeros(1, 2, 2))
    levels = sf.grid(sf.Discrete.cosine(50), 1)
    torch.testing.assert_close(sf.sample(point, torch.randn(8, 2), levels, sf.steps.DDIM()), point.means.expand(8, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "step", [sf.steps.Ancestral(), sf.steps.DDIM(), sf.steps.DDIM(0.7), sf.steps.Heun(), sf.steps.Multistep()], ids=label
)
def test_a_last_level_without_noise_is_finite(step):
    x = sf.sample(mixture, torch.randn(8, 2), sf.grid(sf.Discrete.linear(1000), 10), step, generator=torch.Generator())
    assert x.isfinite().all()
    assert (mixture.log_prob(x, sf.Level(torch.tensor(1.0), torch.tensor(0.0))) > -12).all()


@pytest.mark.parametrize("scales", [sf.ve_scales, sf.flow_scales, sf.sub_vp_scales], ids=lambda f: f.__name__)
@pytest.mark.parametrize("step", [sf.steps.DDIM(), sf.steps.Multistep(), sf.steps.Heun(), sf.steps.Ancestral()], ids=label)
def test_the_scales_do_not_matter(step, scales):
    """Methods written in log-SNR walk the same path under any scales, but for the factor on x."""
    vp, other = (sf.grid(sf.Cosine(scales=which), 12) for which in (sf.vp_scales, scales))
    noise = torch.randn(16, 2)
    one, two = (
        sf.sample(mixture, levels[0].sigma * noise, levels, step, generator=torch.Generator().manual_seed(1)) for levels in (vp, other)
    )
    torch.testing.assert_close(one / vp[-1].alpha, two / other[-1].alpha, rtol=1e-6, atol=1e-6)


def test_a_row_is_a_batch_of_one():
    levels, noise = sf.grid(sf.Cosine(), 10), torch.randn(5, 2)
    whole = sf.sample(mixture, noise, levels, sf.steps.Ancestral(), generator=sf.row_generators(7, range(5)))
    alone = sf.sample(mixture, noise[3:4], levels, sf.steps.Ancestral(), generator=sf.row_generators(7, [3]))
    torch.testing.assert_close(whole[3:4], alone)


def test_rows_have_independent_noise():
    noise = sf.normal_like(torch.empty(2, 100_000), sf.row_generators(0, [0, 1]))
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.02
    assert not torch.equal(*(sf.normal_like(torch.empty(1, 4), sf.row_generators(seed, [0])) for seed in (0, 1)))


def test_on_step_sees_every_level():
    seen, levels = [], sf.grid(sf.Cosine(), 5)
    out = sf.sample(mixture, torch.randn(3, 2), levels, sf.steps.DDIM(), on_step=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1], out)


def kept(levels, total):
    chain = sf.Discrete.linear(total)
    return [round(chain.time(level.log_snr.reshape(1)).item() * total) for level in levels]


def test_leading_and_trailing_are_those_of_the_table():
    """Lin et al. (2024), table 2: T = 1000, S = 10; their index i is level i, with indices from 1."""
    chain = sf.Discrete.linear(1000)
    assert kept(sf.grid(chain, 10, spacing=sf.spacing.leading), 1000) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert kept(sf.grid(chain, 10, spacing=sf.spacing.trailing), 1000) == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]


def test_openai_sections_are_evenly_kept():
    chain = sf.Discrete.linear(300)
    levels = sf.grid(chain, 60, spacing=sf.spacing.openai_sections([10, 20, 30]))
    ks = kept(levels, 300)[::-1]
    assert ks[:2] == [0, 1]
    assert ks[10:12] == [100, 101]
    assert ks[30:32] == [200, 201]
    assert ks[-1] == 300


def test_ddim_stride_refuses_what_no_stride_gives():
    assert kept(sf.grid(sf.Discrete.linear(1000), 50, spacing=sf.spacing.ddim_stride), 1000)[:2] == [981, 961]
    with pytest.raises(ValueError, match="no integer stride over 1000 steps gives 999"):
        sf.grid(sf.Discrete.linear(1000), 999, spacing=sf.spacing.ddim_stride)


def test_a_respaced_chain_has_the_betas_of_its_levels():
    """Two steps of betas b1, b2 merged into one have beta 1 - (1 - b1)(1 - b2)."""
    chain = sf.Discrete.linear(100)
    betas = betas_of(sf.grid(chain, 50, spacing=sf.spacing.uniform))
    torch.testing.assert_close(betas, 1 - (1 - chain.betas[::2]) * (1 - chain.betas[1::2]), rtol=1e-9, atol=1e-12)


def test_karras_spacing_is_their_equation_5():
    levels = sf.grid(sf.VE(sigma_min=0.002, sigma_max=80.0), 17, spacing=sf.spacing.karras(7.0))
    i = torch.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(torch.stack([level.sigma for level in levels]), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.Flow(), sf.Discrete.linear(1000)], ids=["Cosine", "Flow", "Discrete"])
def test_log_snr_spacing_is_uniform(schedule):
    log_snr = torch.stack([level.log_snr for level in sf.grid(schedule, 12)])[:-1]
    torch.testing.assert_close(log_snr.diff(), (log_snr[-1] - log_snr[0]).expand(11) / 11, rtol=1e-9, atol=1e-9)


def test_quadratic_spacing_is_denser_near_the_data():
    times = sf.spacing.quadratic(sf.Cosine(), 4)
    torch.testing.assert_close(times, torch.tensor([1, 9 / 16, 1 / 4, 1 / 16, 0]))


def test_spacings_never_visit_a_level_twice():
    for spacing in (sf.spacing.uniform, sf.spacing.quadratic):
        assert (torch.tensor(kept(sf.grid(sf.Discrete.linear(50), 40, spacing=spacing), 50)).diff() < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sf.grid(sf.Cosine(), 0), "steps must be at least 1"),
        (lambda: sf.grid(sf.Discrete.linear(100), 101), "the chain has 100 steps, but 101 were asked for"),
        (lambda: sf.grid(sf.Cosine(), 10, spacing=sf.spacing.leading), "needs the steps of a chain"),
        (lambda: sf.grid(sf.Discrete.linear(100), 10, spacing=sf.spacing.openai_sections([5, 6])), "keep 11 steps"),
        (lambda: sf.grid(sf.Discrete.linear(100), 90, spacing=sf.spacing.openai_sections([80, 10])), "cannot keep 80"),
        (lambda: sf.sample(mixture, torch.zeros(1, 2), [], sf.steps.DDIM()), "at least two levels"),
        (lambda: sf.steps.DDIM(1.5), "eta must lie"),
        (lambda: sf.steps.Multistep(5), "order must be"),
        (lambda: sf.steps.Ancestral("huge"), "variance must be"),
        (lambda: sf.normal_like(torch.zeros(3, 2), sf.row_generators(0, [1])), "1 generators for 3 rows"),
        (lambda: sf.sample(mixture, torch.zeros(1, 2), sf.grid(sf.Cosine(), 2), sf.steps.Ancestral("learned")), "not learned a variance"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


NO_SIGNAL = sf.Discrete(torch.cat([torch.linspace(1e-3, 0.1, 99), torch.ones(1)]))


def ks(times, chain):
    return [round(k) for k in (times * len(chain)).tolist()]


POINT = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.7]]), torch.zeros(1, 2, 2))


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_one_ddim_step_on_a_point_has_the_variance_of_its_level(eta):
    """On data of one point, x_t of the marginal goes to x_s of the marginal for every eta; eta² β̃ of its variance is fresh."""
    t, s = sf.Discrete.linear(1000).level(0.3), sf.Discrete.linear(1000).level(0.2)
    x = (t.alpha * POINT.means + t.sigma).expand(200_000, 2)
    out, _ = sf.steps.DDIM(eta)(POINT, x, t, s, None, torch.Generator().manual_seed(0))
    fresh = eta**2 * sf.process.posterior_log_variance(t, s).exp()
    torch.testing.assert_close(out.var(0), fresh.expand(2), rtol=0.02, atol=0)
    kept = (out.mean(0) - s.alpha * POINT.means[0]) ** 2
    torch.testing.assert_close(kept + out.var(0), (s.sigma**2).expand(2), rtol=0.02, atol=0)


def test_openai_sections_need_no_equal_lengths():
    """10 steps in 3 sections: 4, 3, 3, the longer ones first, each from its first step to its last."""
    chain = sf.Discrete(torch.full((10,), 0.1))
    assert ks(sf.spacing.openai_sections((2, 2, 2))(chain, 6), chain) == [10, 8, 7, 5, 4, 1, 0]
    assert ks(sf.spacing.openai_sections((4, 3, 3))(chain, 10), chain) == list(range(10, -1, -1))
    assert ks(sf.spacing.openai_sections((1, 1, 1))(chain, 3), chain) == [8, 5, 1, 0]
    # Eleven in 3: 4, 4, 3.
    chain = sf.Discrete(torch.full((11,), 0.1))
    assert ks(sf.spacing.openai_sections((2, 2, 2))(chain, 6), chain) == [11, 9, 8, 5, 4, 1, 0]


def test_openai_sections_round_to_the_nearest():
    """Four of 0 … 9: 0, 3, 6, 9; of 0 … 10 (stride 10/3): 0, 3, 7, 10."""
    for steps, kept in ((10, [10, 7, 4, 1, 0]), (11, [11, 8, 4, 1, 0])):
        chain = sf.Discrete(torch.full((steps,), 0.1))
        assert ks(sf.spacing.openai_sections()(chain, 4), chain) == kept


WHOLE = [
    sf.spacing.uniform,
    sf.spacing.trailing,
    sf.spacing.leading,
    sf.spacing.ddim_stride,
    sf.spacing.quadratic,
    sf.spacing.openai_sections(),
]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("spacing", WHOLE, ids=lambda s: getattr(s, "__name__", "openai_sections"))
def test_as_many_steps_as_a_chain_has_are_the_chain(spacing, steps):
    chain = sf.Discrete(torch.full((steps,), 0.1))
    assert ks(spacing(chain, steps), chain) == list(range(steps, -1, -1))
    assert len(sf.grid(chain, steps, spacing=spacing)) == steps + 1


@pytest.mark.parametrize("spacing", WHOLE[:5], ids=lambda s: s.__name__)
def test_spacings_keep_levels_of_the_chain_each_once(spacing):
    for length in range(1, 31):
        chain = sf.Discrete(torch.full((length,), 0.1))
        for steps in range(1, length + 1):
            if spacing is sf.spacing.ddim_stride and steps not in {len(range(0, length, i)) for i in range(1, length + 1)}:
                continue
            times = spacing(chain, steps)
            assert len(times) == steps + 1
            assert times[-1] == 0
            assert (times.diff() < 0).all()
            torch.testing.assert_close(times * length, (times * length).round(), rtol=0, atol=1e-9)


def test_uniform_takes_the_nearest_level():
    chain = sf.Discrete(torch.full((8,), 0.1))
    assert ks(sf.spacing.uniform(chain, 3), chain) == [8, 5, 3, 0]  # 16/3 and 8/3


def test_leading_strides_are_whole():
    """Its stride is T // S: 30 in 7 go by 4, the last 25."""
    chain = sf.Discrete(torch.full((30,), 0.1))
    assert ks(sf.spacing.leading(chain, 7), chain) == [25, 21, 17, 13, 9, 5, 1, 0]


def test_ddim_stride_of_one_step_keeps_the_first():
    chain = sf.Discrete(torch.full((9,), 0.1))
    assert ks(sf.spacing.ddim_stride(chain, 1), chain) == [1, 0]
    assert ks(sf.spacing.ddim_stride(chain, 3), chain) == [7, 4, 1, 0]
    assert ks(sf.spacing.ddim_stride(chain, 5), chain) == [9, 7, 5, 3, 1, 0]


@pytest.mark.parametrize("spacing", [sf.spacing.log_snr, sf.spacing.karras()], ids=["log_snr", "karras"])
def test_curves_on_a_chain_without_terminal_signal(spacing):
    """From t = 1 through the chain's finite levels: the curve runs between level T - 1 and level 1."""
    chain = sf.Discrete(torch.cat([torch.full((9,), 0.1), torch.ones(1)]))
    times = spacing(chain, 5)
    assert times[0] == 1
    assert times[-1] == 0
    assert math.isclose(times[-2].item(), 0.1, rel_tol=1e-9)
    inner = chain.log_snr(times[1:-1])
    ends = chain.log_snr(torch.tensor([0.9, 0.1]))
    u = torch.linspace(0, 1, 5)[1:]
    if spacing is sf.spacing.log_snr:
        torch.testing.assert_close(inner, torch.lerp(ends[0], ends[1], u))
    else:
        roots = (-ends / 14).exp()
        torch.testing.assert_close((-inner / 14).exp(), torch.lerp(roots[0], roots[1], u))
    alone = sf.Discrete(torch.ones(1))
    assert spacing(alone, 1).tolist() == [1, 0]


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.LinearVP(), sf.SubVP(), sf.Flow(), sf.VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("spacing", [sf.spacing.log_snr, sf.spacing.karras()], ids=["log_snr", "karras"])
def test_curves_begin_and_end_where_the_schedule_does(spacing, schedule):
    for steps in (1, 7, 50):
        times = spacing(schedule, steps)
        assert (times[0].item(), times[-1].item()) == (1.0, 0.0)


def test_karras_rho_is_seven():
    times = [spacing(sf.VE(), 18) for spacing in (sf.spacing.karras(), sf.spacing.karras(7.0))]
    assert torch.equal(*times)


def test_one_step_needs_two_levels():
    with pytest.raises(ValueError, match="at least two levels, got 1"):
        sf.sample(mixture, torch.zeros(1, 2), [sf.Cosine().level(1.0)], sf.steps.DDIM())


def test_the_condition_reaches_every_evaluation():
    """Under its label a component's own flow: the samples of label j are those of component j alone."""
    levels, noise = sf.grid(sf.Cosine(), 20), torch.randn(30, 2)
    labels = torch.arange(30) % 3
    alone = lambda j: lambda x, level, cond=None: mixture(x, level, {"labels": torch.full((len(x),), j)})  # noqa: E731
    for step in (sf.steps.DDIM(), sf.steps.Heun(), sf.steps.Multistep()):
        together = sf.sample(mixture, noise, levels, step, {"labels": labels})
        for j in range(3):
            torch.testing.assert_close(together[labels == j], sf.sample(alone(j), noise[labels == j], levels, step))


def test_noise_comes_from_the_generator_alone():
    levels, noise = sf.grid(sf.Cosine(), 5), torch.randn(4, 2)
    for step in (sf.steps.Ancestral(), sf.steps.DDIM(1.0)):
        one, two = (sf.sample(mixture, noise, levels, step, generator=torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(one, two)


@pytest.mark.parametrize("step", [sf.steps.Ancestral("small"), sf.steps.Ancestral("large")], ids=label)
def test_an_ancestral_step_to_the_data_returns_the_mean(step):
    x, chain = torch.randn(5, 2), sf.Discrete.linear(1000)
    out, _ = step(mixture, x, chain.level(0.3), chain.level(0.0), None, torch.Generator())
    torch.testing.assert_close(out, mixture(x, chain.level(0.3)).x0)


@long_walk
@pytest.mark.parametrize("lengths", [(1.0, 1.4), (1.4, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("step", [sf.steps.Multistep(), sf.steps.Heun()], ids=label)
def test_second_order_holds_between_unequal_steps(step, lengths):
    """Steps whose lengths in log-SNR take turns, so that they differ however many there are; against the closed flow of a Gaussian."""
    schedule, x = sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0), torch.randn(64, 2)

    def error(turns):
        at = torch.cat([torch.zeros(1), torch.tensor(lengths).repeat(turns).cumsum(0)])
        levels = [schedule.level(t) for t in schedule.time(-6 + 12 * at / at[-1])]
        start = levels[0].sigma * x
        return (sf.sample(gaussian, start, levels, step) - gaussian_flow(start, levels[0], levels[-1])).norm(dim=1).mean()

    assert math.log2(error(40) / error(80)) > 1.8


@pytest.mark.parametrize("step", [sf.steps.Heun(), sf.steps.Multistep()], ids=label)
def test_a_step_to_the_data_is_ddims(step):
    """Without noise at the end every method of the flow returns x0, whatever it remembers."""
    chain, x = sf.Discrete.linear(1000), torch.randn(16, 2)
    levels = [chain.level(t) for t in (0.5, 0.3, 0.0)]
    halfway, memory = step(mixture, x, levels[0], levels[1], None, None)
    out, _ = step(mixture, halfway, levels[1], levels[2], memory, None)
    torch.testing.assert_close(out, mixture(halfway, levels[1]).x0)


def test_ddim_from_noise_alone_is_finite():
    """From alpha = 0, β̃ is all of sigma_s²; rounding must not make the rest negative."""
    chain = sf.Discrete(torch.cat([torch.linspace(1e-3, 0.1, 99), torch.ones(1)]))
    for k in range(100):
        out, _ = sf.steps.DDIM(1.0)(mixture, torch.randn(2, 2), chain.level(1.0), chain.level(k / 100), None, torch.Generator())
        assert out.isfinite().all()


@few_steps
@pytest.mark.parametrize("step", [sf.steps.DDIM(), sf.steps.Heun(), sf.steps.Multistep()], ids=label)
def test_a_deterministic_step_draws_nothing(step):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    sf.sample(mixture, torch.randn(4, 2), sf.grid(sf.Cosine(), 4), step, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("halves", "looks_back"),
    [
        ((-1.0, 0.0, 1.4), True),
        ((-0.1, 0.0, 0.14), True),
        ((-0.1, 0.0, 0.16), False),
        ((-0.01, 0.0, 0.5), False),
        ((-4.0, -1.0, 2.0), False),
    ],
)
@pytest.mark.parametrize("step", [sf.steps.Multistep(2), sf.steps.AdamsBashforth(2)], ids=label)
def test_a_prediction_is_extrapolated_over_half_as_much_again_as_the_last_step_at_most(step, halves, looks_back):
    """Over a longer step, in this or in itself (lengths in half log-SNR), the method is DDIM."""
    before, now, then = (sf.Level(*sf.schedule.vp_scales(2 * torch.tensor(half))) for half in halves)
    x, memory = step(mixture, torch.randn(16, 2), before, now, None, None)
    ours, _ = step(mixture, x, now, then, memory, None)
    plain, _ = sf.steps.DDIM()(mixture, x, now, then, None, None)
    assert torch.allclose(ours, plain) != looks_back


def test_a_multistep_after_a_step_of_another_length_has_local_order_three():
    """One step from exact points of a Gaussian's flow; globally, wrong lengths can cancel from step to step."""
    schedule, x = sf.Cosine(), torch.randn(64, 2)

    def error(h):
        before, t, s = (schedule.level(at) for at in schedule.time(torch.tensor([0.3, 0.3 + 3 * h, 0.3 + 4 * h])))
        _, memory = sf.steps.Multistep()(gaussian, x, before, t, None, None)
        out, _ = sf.steps.Multistep()(gaussian, gaussian_flow(x, before, t), t, s, memory, None)
        return (out - gaussian_flow(x, before, s)).norm(dim=1).mean()

    assert math.log2(error(0.02) / error(0.01)) > 2.8


def test_heun_from_noise_alone_is_finite():
    assert sf.sample(gaussian, torch.randn(4, 2), sf.grid(NO_SIGNAL, 10), sf.steps.Heun()).isfinite().all()


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.LinearVP()], ids=["Cosine", "LinearVP"])
def test_second_order_beats_first_on_every_spacing(schedule):
    levels, x = sf.grid(schedule, 20, spacing=sf.spacing.uniform), torch.randn(256, 2)
    start = levels[0].sigma * x
    wanted = gaussian_flow(start, levels[0], levels[-1])
    one, two = ((sf.sample(gaussian, start, levels, sf.steps.Multistep(order)) - wanted).norm(dim=1).mean() for order in (1, 2))
    assert two < one


@pytest.mark.parametrize("scale", [5.0, 20.0])
@pytest.mark.parametrize("schedule", [sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), sf.VE(), sf.Discrete.linear(1000)], ids=label)
def test_softened_levels_are_even_in_what_they_are_named_for(schedule, scale):
    """log(1 + scale · alpha/sigma) rises in equal steps from the last level with noise to the first."""
    levels = [level for level in sf.grid(schedule, 12, spacing=sf.spacing.softened(scale)) if level.sigma > 0]
    place = torch.stack([torch.log1p(scale * level.alpha / level.sigma) for level in levels])
    torch.testing.assert_close(place, torch.linspace(float(place[0]), float(place[-1]), len(place)), rtol=0, atol=2e-3)
    ends = schedule.log_snr(torch.tensor([1.0, 1 / 1000 if isinstance(schedule, sf.Discrete) else 0.0]))
    torch.testing.assert_close(torch.stack([levels[0].log_snr, levels[-1].log_snr]), ends)


@pytest.fixture
def unchecked(monkeypatch):
    """As users call it: without the checks of types that only tests have, which speak before our own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def sampled(x=None, step=None, cond=None, predict=mixture):
    return sf.sample(predict, torch.zeros(4, 2) if x is None else x, sf.grid(sf.Cosine(), 2), step or sf.steps.DDIM(), cond)


def images(x, cond=None, net=None):
    denoiser = sf.Denoiser(
        net or sf.nets.DiT((1, 4, 4), patch=2, width=8, depth=1, heads=2, conditions={"labels": sf.Classes(("a", "b", "c"))}), sf.v_target
    )
    return denoiser(x, sf.Cosine().level(0.5), cond)


def labelled(labels):
    return {"labels": labels}


UNET = sf.nets.UNetLayout(channels=(4,), blocks=1, attention=(False,), middle=(False,), groups=2)
LEVELS = sf.grid(sf.Cosine(), 2)
DIT = sf.Denoiser(sf.nets.DiT((1, 4, 4), patch=2, width=8, depth=1, heads=2), sf.v_target)
MISUSES = {
    "a step's class": (lambda: sampled(step=sf.steps.DDIM), r"got the class DDIM; write DDIM\(\)"),
    "a run's sampler's class": (lambda: zoo().sample(2, sampler=sf.steps.Heun), r"got the class Heun; write Heun\(\)"),
    "a step's name": (lambda: sampled(step="ddim"), "a step is a method such as"),
    "upwards by a class": (lambda: sf.invert(mixture, torch.zeros(4, 2), LEVELS, step=sf.steps.Heun), r"write Heun\(\)"),
    "numpy noise": (lambda: sampled(np.zeros((4, 2))), r"x must be a torch tensor, got ndarray; use torch\.as_tensor"),
    "numpy noise in a flow": (
        lambda: sf.flow(mixture, np.zeros((4, 2)), LEVELS[0], LEVELS[1]),
        "x must be a torch tensor, got ndarray",
    ),
    "numpy into an oracle": (lambda: mixture(np.zeros((4, 2)), LEVELS[0]), "x must be a torch tensor, got ndarray"),
    "numpy into a network": (lambda: images(np.zeros((2, 1, 4, 4))), "x must be a torch tensor, got ndarray"),
    "whole numbers for noise": (lambda: sampled(torch.zeros(4, 2, dtype=torch.long)), "x must hold floating-point numbers"),
    "noise of no row": (lambda: mixture(torch.zeros(()), LEVELS[0]), "one row an example"),
    "labels too few": (lambda: sampled(cond=labelled(torch.zeros(3, dtype=torch.long))), "must have one row an example, 4"),
    "one label for all": (lambda: images(torch.zeros(2, 1, 4, 4), labelled(torch.zeros(1, dtype=torch.long))), "one row an example, 2"),
    "labels in a column": (lambda: images(torch.zeros(2, 1, 4, 4), labelled(torch.zeros(2, 1, dtype=torch.long))), r"of shape \[2\]"),
    "labels of floats": (lambda: sampled(cond=labelled(torch.zeros(4))), r"labels must be integers of shape \[4\]"),
    "labels in a list": (lambda: sampled(cond=labelled([0, 1, 2, 0])), r'cond\["labels"\] must be a torch tensor'),
    "labels without a name": (lambda: sampled(cond=torch.zeros(4, dtype=torch.long)), "conditions are tensors by name"),
    "labels too few to guide": (
        lambda: sampled(cond=labelled(torch.zeros(3, dtype=torch.long)), predict=sf.guide.classifier_free(mixture, 2.0)),
        "one row an example, 4",
    ),
    "labels too few for a guided call": (
        lambda: sf.guide.classifier_free(mixture, 2.0)(torch.zeros(4, 2), LEVELS[0], labelled(torch.zeros(3, dtype=torch.long))),
        "one row an example, 4",
    ),
    "labels too few for a classifier": (
        lambda: sf.guide.label_log_prob(mixture.log_class)(torch.zeros(4, 2), LEVELS[0], labelled(torch.zeros(3, dtype=torch.long))),
        "one row an example, 4",
    ),
    "labels too few for draws": (lambda: mixture.sample(4, labels=torch.zeros(3, dtype=torch.long)), "one row an example, 4"),
    "labels too few for points": (
        lambda: sf.EmpiricalDistribution(torch.zeros(2, 2), torch.tensor([0, 1]))(
            torch.zeros(4, 2), LEVELS[0], labelled(torch.zeros(3, dtype=torch.long))
        ),
        "one row an example, 4",
    ),
    "a number for labels": (
        lambda: zoo().sample(2, labels=3),
        "labels of zoo:digits is a list of classes, each a number or a name.*; got 3",
    ),
    "a word for labels": (lambda: zoo().sample(2, labels="3"), "labels of zoo:digits is a list of classes"),
    "a table of labels": (lambda: zoo().sample(2, labels=np.zeros((2, 2), dtype=int)), "labels of zoo:digits is a list of classes"),
    "lists in labels": (lambda: zoo().sample(2, labels=[[3], [4, 5]]), r"a class is a number or a name, got \[3\]"),
    "broken numbers for labels": (lambda: zoo().sample(2, labels=[2.5]), "a class is a number or a name, got 2.5"),
    "no name of a class": (lambda: zoo().sample(2, labels=["cat"]), 'there is no class "cat"; there are 0, 1, 2'),
    "images without channels": (lambda: images(torch.zeros(2, 4, 4)), r"takes x of shape \[b, 1, 4, 4\].*got \(2, 4, 4\)"),
    "images of other channels": (lambda: images(torch.zeros(2, 3, 4, 4)), r"got \(2, 3, 4, 4\)"),
    "without channels into a U-Net": (lambda: images(torch.zeros(2, 4, 4), net=sf.nets.UNet((1, 4, 4), UNET)), r"got \(2, 4, 4\)"),
    "without channels into patches": (
        lambda: images(torch.zeros(2, 8, 8), net=sf.nets.PatchUNet((1, 8, 8), widths=(8, 8), depth=1, heads=2)),
        r"got \(2, 8, 8\)",
    ),
    "points of another length": (lambda: images(torch.zeros(2, 3), net=sf.nets.MLP((2,), width=8, depth=1)), r"\[b, 2\].*got \(2, 3\)"),
    "a training loss without channels": (
        lambda: sf.loss.simple(DIT, torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), LEVELS[0]),
        r"got \(2, 4, 4\)",
    ),
}


@cache
def zoo():
    return sf.load("zoo:digits")


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_gets_one_sentence(name, unchecked):
    call, sentence = MISUSES[name]
    torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match=sentence):
        call()


@few_steps
@pytest.mark.parametrize(
    "predict", [mixture, sf.EmpiricalDistribution(torch.zeros(3, 2), torch.tensor([0, 1, 2]))], ids=["mixture", "points"]
)
def test_no_rows_have_no_answers(predict):
    x, level, cond = torch.zeros(0, 2), sf.Cosine().level(0.5), {"labels": torch.zeros(0, dtype=torch.long)}
    for p in (predict(x, level), predict(x, level, cond)):
        assert p.x0.shape == p.eps.shape == (0, 2)
    assert predict.log_prob(x, level).shape == (0,)
    assert sf.sample(predict, x, sf.grid(sf.Cosine(), 3), sf.steps.Heun(), cond).shape == (0, 2)
