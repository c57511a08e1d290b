"""Every step against laws that no solver made: quantiles and standard scores that the flow keeps, moments that a linear chain passes on."""

import itertools
import math

import pytest
import torch
from problems import SCALES, counted, every_scales, gaussian, gaussian_flow, label, long_walk, mixture

import sfumato as sf

WEIGHTS, MEANS, VARIANCES = torch.tensor([[0.3, 0.5, 0.2], [2.0, -1.0, 0.2], [0.1, 0.2, 0.05]], dtype=torch.float64)
line = sf.GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None, None])

DETERMINISTIC = [
    (sf.steps.DDIM(), 1),
    (sf.steps.Heun(), 2),
    *((sf.steps.Multistep(order), order) for order in (1, 2, 3)),
    *((sf.steps.UniPC(order), order) for order in (1, 2, 3)),
    *((sf.steps.AdamsBashforth(order), order) for order in (1, 2, 3, 4)),
]
names = {"ids": lambda v: getattr(v, "__name__", repr(v)).replace("steps.", "") if not isinstance(v, int) else ""}


def cdf(x, level):
    """P(x_t <= x) of `line`: along the probability flow in one dimension no quantile moves."""
    spread = (level.alpha**2 * VARIANCES + level.sigma**2).sqrt()
    return (WEIGHTS * torch.special.ndtr((x - level.alpha * MEANS) / spread)).sum(1)


def quantile_error(step, levels):
    x = torch.linspace(-2.5, 2.5, 101)[:, None] * torch.hypot(levels[0].alpha, levels[0].sigma)
    return (cdf(sf.sample(line, x, levels, step), levels[-1]) - cdf(x, levels[0])).abs().mean().item()


@long_walk
@pytest.mark.parametrize("step", [sf.steps.Multistep(1), sf.steps.AdamsBashforth(1)], ids=label)
def test_the_lowest_step_of_a_family_is_of_order_one(step):
    """The orders of all others are rows of the ledger (order-…), under three scalings, between which `test_the_scales_do_not_matter`."""
    schedule = sf.Cosine(log_snr_max=8.0, log_snr_min=-16.0)
    assert math.log2(quantile_error(step, sf.grid(schedule, 32)) / quantile_error(step, sf.grid(schedule, 64))) > 0.8


UNEQUAL = [3.0, 2.6, 2.8, 2.4, 2.6]  # the longest is 1.08 times the one before, so that none is of a lower order


@pytest.mark.parametrize(
    ("step", "order"),
    [*((sf.steps.Multistep(k), k) for k in (1, 2, 3)), *((sf.steps.AdamsBashforth(k), k) for k in (1, 2, 3, 4)), (sf.steps.UniPC(3), 4)],
    **names,
)
def test_a_step_after_steps_of_other_lengths_has_its_local_order(step, order):
    """One step of the method with predictions from exact points of a Gaussian's flow: the error falls as its length to order + 1."""
    schedule, x = sf.Cosine(), torch.randn(64, 2)

    def error(h):
        halves = -0.5 + h * torch.tensor([0.0, *itertools.accumulate(UNEQUAL)])
        levels = [schedule.level(at) for at in schedule.time(2 * halves)]
        memory = None
        for t, s in itertools.pairwise(levels):
            here = gaussian_flow(x, levels[0], t)
            if isinstance(step, sf.steps.UniPC) and memory is not None:
                memory = (gaussian_flow(x, levels[0], memory[1]), *memory[1:])
                here = here + 0.1 * h**4  # the corrector starts from the exact x before, so what it is handed hardly matters
            out, memory = step(gaussian, here, t, s, memory, None)
        if isinstance(step, sf.steps.UniPC):
            exact = gaussian_flow(x, levels[0], levels[-2])
            return (memory[0] - exact).norm(dim=1).mean()
        return (out - gaussian_flow(x, levels[0], levels[-1])).norm(dim=1).mean()

    assert math.log2(error(0.02) / error(0.01)) > order + 0.8


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_multistep_of_order_one_is_ddim(eta):
    levels, x = sf.grid(sf.Discrete.linear(1000), 12), torch.randn(16, 2)
    runs = [
        sf.sample(mixture, x, levels, step, generator=torch.Generator().manual_seed(5))
        for step in (sf.steps.Multistep(1, eta), sf.steps.DDIM(eta))
    ]
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)


MEAN, VARIANCE = 0.5, 0.3
bell = sf.GaussianMixture(torch.ones(1), torch.tensor([[MEAN]]), torch.tensor([[[VARIANCE]]]))


def moment_errors(step, levels, draws):
    """How far the law that a sampler reaches on `bell` is from the data's, in mean and variance, with no sampling error.

    Everything is linear there: x at the end is a + b x at the start + Σ c_k z_k. More rows than draws, and the noise drawn again from the
    same seed, give a, b and c; the variance is b² of the start's + Σ c_k².
    """
    rows, count, generator = draws * len(levels) + 40, draws * (len(levels) - 1), torch.Generator().manual_seed(1)
    start = torch.randn(rows, 1, generator=generator)
    before = generator.get_state()
    end = sf.sample(bell, start, levels, step, generator=generator)
    after = generator.get_state()
    generator.set_state(before)
    drawn = [torch.randn(rows, 1, generator=generator) for _ in range(count)]
    assert torch.equal(generator.get_state(), after)
    inputs = torch.cat([torch.ones(rows, 1), start, *drawn], 1)
    weights = torch.linalg.lstsq(inputs, end).solution
    torch.testing.assert_close(inputs @ weights, end)
    a, b, c = weights[0, 0], weights[1, 0], weights[2:, 0]
    t, s = levels[0], levels[-1]
    mean = a + b * t.alpha * MEAN - s.alpha * MEAN
    variance = b**2 * (t.alpha**2 * VARIANCE + t.sigma**2) + c.square().sum() - (s.alpha**2 * VARIANCE + s.sigma**2)
    return mean.abs().item(), variance.abs().item()


STOCHASTIC = [
    (sf.steps.Ancestral("small"), 1),
    (sf.steps.Ancestral("large"), 1),
    (sf.steps.DDIM(0.5), 1),
    (sf.steps.DDIM(1.0), 1),
    (sf.steps.EulerMaruyama(), 1),
    (sf.steps.Multistep(1, 1.0), 1),
    (sf.steps.Multistep(2, 0.5), 2),
    (sf.steps.Multistep(2, 1.0), 2),
    (sf.steps.Multistep(3, 1.0), 2),
]


@long_walk
@pytest.mark.parametrize(
    ("step", "order", "scales"),
    [
        *((*each, sf.vp_scales) for each in STOCHASTIC),
        *((sf.steps.Ancestral("large"), 1, scales) for scales in SCALES[1:]),
    ],
    **names,
)
def test_stochastic_step_has_its_weak_order(step, order, scales):
    """In the variance, and in the mean where that is not exact; of the one whose law depends on the scaling, in each."""
    schedule = sf.Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0)
    errors = [moment_errors(step, sf.grid(schedule, n), 1) for n in (64, 128)]
    assert math.log2(errors[0][1] / errors[1][1]) > order - 0.2
    assert errors[1][0] < 1e-12 or math.log2(errors[0][0] / errors[1][0]) > order - 0.2


@long_walk
@every_scales
def test_euler_maruyama_has_strong_order_one(scales):
    """The mean-square distance of walks with n and 2n steps on one Brownian path halves with the steps.

    Both are linear in their noises, and a coarse step's is (z_1 + z_2)/sqrt(2) of the two fine ones: the distance is had noise by noise.
    """
    schedule = sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0)

    def weights(n):
        levels, generator = sf.grid(schedule, n), torch.Generator().manual_seed(1)
        start = torch.randn(n + 40, 1, generator=generator)
        end = sf.sample(bell, start, levels, sf.steps.EulerMaruyama(), generator=generator)
        generator.manual_seed(1)
        columns = [torch.randn(n + 40, 1, generator=generator) for _ in range(n + 1)]
        return torch.linalg.lstsq(torch.cat([torch.ones(n + 40, 1), *columns], 1), end).solution[:, 0]

    def distance(n):
        coarse, fine = weights(n), weights(2 * n)
        split = coarse[2:].repeat_interleave(2) / math.sqrt(2)
        return ((coarse[1] - fine[1]) ** 2 + (split - fine[2:]).square().sum()).sqrt().item()

    assert math.log2(distance(32) / distance(64)) > 0.8


@long_walk
@pytest.mark.parametrize(
    ("step", "steps", "bias"),
    [
        (sf.steps.Ancestral("small"), 120, 0.0),
        (sf.steps.Ancestral("large"), 120, 0.0),
        (sf.steps.DDIM(0.5), 120, 0.0),
        (sf.steps.EulerMaruyama(), 120, 0.0),
        (sf.steps.Multistep(2, 1.0), 50, 0.0),
        (sf.steps.Multistep(3, 1.0), 50, 0.0),
        (sf.steps.Multistep(2, 0.3), 50, 0.0),
        (sf.steps.PredictorCorrector(), 100, 0.0),
        (sf.steps.PredictorCorrector(sf.steps.UniPC(3), sf.steps.Langevin(steps=2, step_size=0.01)), 50, 0.0),
        (sf.steps.Langevin(steps=10, step_size=0.05), 40, 0.05),
    ],
    ids=label,
)
def test_stochastic_steps_reach_the_law(step, steps, bias):
    """On a mixture: Kolmogorov's distance of 20,000 samples from it, beyond what chance explains once in a thousand.

    The Langevin dynamics' own bias, of a finite step at a finite number of levels, comes on top; its size is tested below.
    """
    generator, levels = torch.Generator().manual_seed(3), sf.grid(sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), steps)
    x0, _ = line.sample(20_000, generator)
    x = sf.sample(line, sf.process.marginal(x0, levels[0]).sample(generator), levels, step, generator=generator)
    distance = (cdf(x, levels[-1]).sort().values - (torch.arange(20_000) + 0.5) / 20_000).abs().max().item()
    assert distance < 1.95 / math.sqrt(20_000) + bias


@every_scales
def test_annealed_langevin_has_the_variance_of_its_recursion(scales):
    """On a Gaussian: v ← (1 - δ/v_s)² v + 2 δ at each step, v ← (alpha_s/alpha_t)² v at each change of level."""
    levels = sf.grid(sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0), 12)
    variance = levels[0].alpha ** 2 * VARIANCE + levels[0].sigma ** 2
    for t, s in itertools.pairwise(levels):
        variance, exact, size = variance * (s.alpha / t.alpha) ** 2, s.alpha**2 * VARIANCE + s.sigma**2, 0.1 * s.sigma**2
        for _ in range(5):
            variance = (1 - size / exact) ** 2 * variance + 2 * size
    mean_error, variance_error = moment_errors(sf.steps.Langevin(5, 0.1), levels, 5)
    assert mean_error < 1e-9
    torch.testing.assert_close(torch.tensor(variance_error), (variance - exact).abs())


def test_the_default_corrector_has_the_signal_to_noise_ratio_of_the_paper():
    """Drift over noise, where the score is as long as noise / sigma is: 0.16. Song et al. (2021), alg. 5, arXiv:2011.13456."""
    level, corrector, x, z = sf.Cosine().level(0.5), sf.steps.PredictorCorrector().corrector, torch.zeros(1, 1000), torch.randn(1, 1000)
    says = lambda eps: lambda x_t, level, cond=None: sf.Prediction(x_t, eps)  # noqa: E731
    moved = corrector.correct(says(z), x, level, torch.Generator().manual_seed(0))
    noise = corrector.correct(says(torch.zeros_like(z)), x, level, torch.Generator().manual_seed(0))
    assert ((moved - noise).norm() / noise.norm()).item() == pytest.approx(0.16, rel=0.1)


def test_langevin_has_the_variance_that_its_step_size_gives():
    """On N(m, c) the stationary variance of x + δ score + sqrt(2 δ) z is c / (1 - δ/(2c)): in closed form, from any start."""
    c, step_size = 0.5, 0.2
    x = sf.steps.langevin(
        lambda x: -(x - 1.0) / c, torch.zeros(100_000, 1), step_size=step_size, steps=40, generator=torch.Generator().manual_seed(0)
    )
    wanted = c / (1 - step_size / (2 * c))
    assert abs(x.var().item() / wanted - 1) < 4 * math.sqrt(2 / 100_000)
    assert abs(x.mean().item() - 1) < 4 * math.sqrt(wanted / 100_000)


@long_walk
@every_scales
def test_a_langevin_correction_keeps_the_law_of_its_level(scales):
    """Its stationary variance on a Gaussian, in closed form: with v the level's variance and δ = step_size sigma², v / (1 - δ/(2v))."""
    level, corrector = sf.Cosine(scales=scales).level(0.5), sf.steps.Langevin(steps=200, step_size=0.3)
    v = level.alpha**2 * VARIANCE + level.sigma**2
    x = corrector.correct(bell, level.alpha * MEAN + v.sqrt() * torch.randn(50_000, 1), level, torch.Generator().manual_seed(0))
    wanted = v / (1 - 0.3 * level.sigma**2 / (2 * v))
    assert abs(x.var().item() / wanted.item() - 1) < 4 * math.sqrt(2 / 50_000)
    assert abs(x.mean().item() - level.alpha.item() * MEAN) < 4 * (wanted / 50_000).sqrt().item()


def test_annealed_langevin_is_algorithm_one():
    """NCSN's own recursion with its α_i = ε sigma_i²/sigma_L² on alpha = 1, from the same noise."""
    levels = sf.grid(sf.VE(sigma_min=0.05, sigma_max=5.0), 6)
    x = start = levels[0].sigma * torch.randn(8, 2)
    epsilon = 2 * 0.1 * levels[-1].sigma ** 2
    generator = torch.Generator().manual_seed(2)
    for level in levels[1:]:
        size = epsilon * level.sigma**2 / levels[-1].sigma ** 2
        for _ in range(3):
            score = mixture(x, level).score(level)
            x = x + size / 2 * score + size.sqrt() * torch.randn(8, 2, generator=generator)
    ours = sf.sample(mixture, start, levels, sf.steps.Langevin(3, 0.1), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours, x)


def test_a_corrector_mends_what_the_predictor_got_wrong():
    """What 16 steps of DDIM lack in variance falls with the number of Langevin steps after each."""
    levels = sf.grid(sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), 16)
    slope = sf.sample(bell, torch.tensor([[0.0], [1.0]]), levels, sf.steps.DDIM()).diff(dim=0).item()
    errors = [abs(slope**2 - VARIANCE)]
    for count in (1, 2, 5):
        errors.append(moment_errors(sf.steps.PredictorCorrector(sf.steps.DDIM(), sf.steps.Langevin(count, 0.05)), levels, count)[1])
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


EVERY = [
    *(step for step, _ in DETERMINISTIC),
    *(step for step, _ in STOCHASTIC),
    sf.steps.Langevin(2),
    sf.steps.PredictorCorrector(),
    sf.steps.PredictorCorrector(sf.steps.UniPC(3), sf.steps.Langevin(1, 0.1)),
]
NO_SIGNAL = sf.Discrete(torch.cat([torch.linspace(1e-3, 0.1, 99), torch.ones(1)]))


@long_walk
@pytest.mark.parametrize("schedule", [sf.Discrete.linear(1000), NO_SIGNAL], ids=["to the data", "from noise alone"])
@pytest.mark.parametrize("spacing", [sf.spacing.log_snr, sf.spacing.uniform, sf.spacing.karras()], ids=["log_snr", "uniform", "karras"])
@pytest.mark.parametrize("step", EVERY, ids=label)
def test_both_ends_are_safe(step, spacing, schedule):
    """Samples at sigma = 0 after 30 steps are finite and, but for two Langevin steps a level, where data are."""
    levels = sf.grid(schedule, 30, spacing=spacing)
    x = sf.sample(mixture, torch.randn(64, 2), levels, step, generator=torch.Generator().manual_seed(0))
    density = mixture.log_prob(x, sf.Level(torch.tensor(1.0), torch.tensor(0.0)))
    assert x.isfinite().all()
    assert isinstance(step, sf.steps.Langevin) or (density > -14).double().mean() > 0.95


@pytest.mark.parametrize("step", [s for s in EVERY if not isinstance(s, sf.steps.Langevin | sf.steps.PredictorCorrector)], ids=label)
def test_the_last_step_to_the_data_returns_x0(step):
    chain, x = sf.Discrete.linear(1000), torch.randn(16, 2)
    levels = [chain.level(t) for t in (0.5, 0.4, 0.3, 0.2, 0.0)]
    asked = []

    def predict(x_t, level, cond=None):
        asked.append(mixture(x_t, level))
        return asked[-1]

    out = sf.sample(predict, x, levels, step, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, asked[-1].x0)


@long_walk
@pytest.mark.parametrize("scales", SCALES[1:], ids=lambda f: f.__name__)
@pytest.mark.parametrize("step", [step for step in EVERY if step != sf.steps.Ancestral("large")], ids=label)
def test_the_scales_do_not_matter(step, scales):
    """Every method walks one path, but for the factor on x; all but DDPM's large variance, which is that of a step of its scaling."""
    vp, other = (sf.grid(sf.Cosine(scales=which, log_snr_min=-10.0, log_snr_max=10.0), 12) for which in (sf.vp_scales, scales))
    noise = torch.randn(16, 2)
    one, two = (
        sf.sample(mixture, levels[0].alpha * MEANS[0] + levels[0].sigma * noise, levels, step, generator=torch.Generator().manual_seed(1))
        for levels in (vp, other)
    )
    torch.testing.assert_close(one / vp[-1].alpha, two / other[-1].alpha, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "calls"),
    [
        *((step, 10) for step, _ in DETERMINISTIC if not isinstance(step, sf.steps.Heun)),
        (sf.steps.Heun(), 20),
        (sf.steps.EulerMaruyama(), 10),
        (sf.steps.Multistep(3, 1.0), 10),
        (sf.steps.Langevin(3), 30),
        (sf.steps.PredictorCorrector(), 20),
    ],
    ids=label,
)
def test_evaluations_of_ten_steps(step, calls):
    predict, asked = counted(mixture)
    sf.sample(predict, torch.randn(2, 2), sf.grid(sf.Cosine(log_snr_max=10.0, log_snr_min=-10.0), 10), step)
    assert len(asked) == calls


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sf.steps.Multistep(4), "order must be 1 to 3, got 4"),
        (lambda: sf.steps.Multistep(2, -0.1), "eta must lie"),
        (lambda: sf.steps.UniPC(0), "order must be 1 to 3, got 0"),
        (lambda: sf.steps.AdamsBashforth(5), "order must be 1 to 4, got 5"),
        (lambda: sf.steps.Langevin(0), "at least 1 step, got 0"),
        (lambda: sf.steps.Langevin(3, 0.0), "step_size must be positive, in units of sigma²"),
        (lambda: sf.steps.langevin(lambda x: -x, torch.zeros(1, 1), step_size=-1.0, steps=1), "step_size must be positive"),
        (lambda: sf.steps.langevin(lambda x: -x, torch.zeros(1, 1), step_size=0.0, steps=1), "step_size must be positive"),
        (lambda: sf.steps.langevin(lambda x: -x, torch.zeros(1, 1), step_size=1.0, steps=0), "at least 1 step"),
        (
            lambda: sf.steps.Multistep()(
                mixture,
                torch.zeros(3, 2),
                *(sf.Cosine().level(torch.tensor([t, t, t]), like=torch.zeros(3, 2)) for t in (0.5, 0.4)),
                None,
                None,
            ),
            "one level for all rows",
        ),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
