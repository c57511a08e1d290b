"""Steps against closed forms: the order at which they approach the exact flow, the law that stochastic ones reach, and the DDPM algebra."""

import math
from functools import cache

import pytest
import torch
from problems import betas_of, every_scales, gaussian, gaussian_flow, mixture

import sfumato as sf


def endpoint(step, steps, schedule, noise, predict=mixture):
    levels = sf.grid(schedule, steps, spacing=sf.spacing.log_snr)
    return sf.sample(predict, levels[0].sigma * noise, levels, step)


@cache
def fine_solution(step, schedule):
    noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    return noise, endpoint(step, 2048, schedule, noise)


@every_scales
@pytest.mark.parametrize(
    ("step", "order"),
    [(sf.steps.DDIM(), 1), (sf.steps.Multistep(1), 1), (sf.steps.Multistep(2), 2), (sf.steps.Heun(), 2)],
    ids=lambda v: repr(v) if not isinstance(v, int) else "",
)
def test_step_reaches_its_order(step, order, scales):
    """Median endpoint error on a mixture against a fine solution by another method; the mean is ruled by points on the ridge between modes."""
    schedule = sf.Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0)
    noise, truth = fine_solution(sf.steps.Multistep() if isinstance(step, sf.steps.Heun) else sf.steps.Heun(), schedule)
    coarse, fine = ((endpoint(step, n, schedule, noise) - truth).norm(dim=1).median() for n in (64, 128))
    assert math.log2(coarse / fine) > order - 0.2


@every_scales
@pytest.mark.parametrize("step", [sf.steps.DDIM(), sf.steps.Multistep(), sf.steps.Heun()], ids=repr)
def test_step_follows_the_closed_flow_of_a_gaussian(step, scales):
    schedule, x = sf.Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0), torch.randn(64, 2)
    levels = sf.grid(schedule, 1000, spacing=sf.spacing.log_snr)
    start = levels[0].sigma * x
    wanted = gaussian_flow(start, levels[0], levels[-1])
    tolerance = 1e-2 if isinstance(step, sf.steps.DDIM) else 1e-4
    torch.testing.assert_close(sf.sample(gaussian, start, levels, step), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "step", [sf.steps.Ancestral("small"), sf.steps.Ancestral("large"), sf.steps.DDIM(0.5), sf.steps.DDIM(1.0)], ids=repr
)
def test_stochastic_steps_reach_the_law(step):
    """On a Gaussian through the whole chain of 1000: the mean and covariance of 20,000 samples."""
    generator = torch.Generator().manual_seed(3)
    levels = [sf.Discrete.linear(1000).level(k / 1000) for k in range(1000, -1, -1)]
    x = sf.sample(gaussian, torch.randn(20_000, 2, generator=generator), levels, step, generator=generator)
    covariance = gaussian.axes[0] @ torch.diag(gaussian.variances[0]) @ gaussian.axes[0].T
    torch.testing.assert_close(x.mean(0), gaussian.means[0], rtol=0, atol=0.025)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.025)


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
    "step", [sf.steps.Ancestral(), sf.steps.DDIM(), sf.steps.DDIM(0.7), sf.steps.Heun(), sf.steps.Multistep()], ids=repr
)
def test_a_last_level_without_noise_is_finite(step):
    x = sf.sample(mixture, torch.randn(8, 2), sf.grid(sf.Discrete.linear(1000), 10), step, generator=torch.Generator())
    assert x.isfinite().all()
    assert (mixture.log_prob(x, sf.Level(torch.tensor(1.0), torch.tensor(0.0))) > -12).all()


@pytest.mark.parametrize("scales", [sf.ve_scales, sf.flow_scales, sf.sub_vp_scales], ids=lambda f: f.__name__)
@pytest.mark.parametrize("step", [sf.steps.DDIM(), sf.steps.Multistep(), sf.steps.Heun(), sf.steps.Ancestral()], ids=repr)
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
    with pytest.raises(ValueError, match="no whole stride over 1000 steps gives 999"):
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


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.Flow(), sf.Discrete.linear(1000)], ids=repr)
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
        (lambda: sf.grid(sf.Discrete.linear(100), 101), "the chain has 100 steps, 101 were asked for"),
        (lambda: sf.grid(sf.Cosine(), 10, spacing=sf.spacing.leading), "counts the steps of a chain"),
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
