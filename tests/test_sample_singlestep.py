"""The deterministic methods that ask between two levels, or weigh all steps as equal: orders, ends, scalings, evaluations."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import SCALES, counted, few_steps, gaussian, gaussian_flow, label, long_walk, mixture
from test_sample_steps import NO_SIGNAL, quantile_error
from typer.testing import CliRunner

import sfumato as sf
from sfumato.cli import app
from sfumato.tasks.options import SAMPLERS

pytestmark = few_steps

UNLISTED = [  # in the ledger
    (sf.steps.Singlestep(3, "x0"), 3),
    (sf.steps.PLMS(heun=False), 2),
    (sf.steps.EDM(sf.steps.Singlestep(3), churn=0.0), 3),
    (sf.steps.Renoised(sf.steps.Singlestep(3), eta=0.0), 3),
]
METHODS = [
    sf.steps.Singlestep(2),
    sf.steps.Singlestep(3),
    sf.steps.Singlestep(2, "x0"),
    sf.steps.PLMS(),
    sf.steps.SinglestepSDE(eta=0.0),
    sf.steps.MultistepSDE(eta=0.0),
    *(step for step, _ in UNLISTED),
]


@long_walk
@pytest.mark.parametrize(("step", "order"), UNLISTED, ids=label)
def test_it_keeps_the_quantiles_to_its_order(step, order):
    """The orders of the others are rows of the ledger (order-…), under three scalings; two are methods of theirs under another name."""
    schedule, n = sf.Cosine(log_snr_max=8.0, log_snr_min=-16.0), 64 if order == 3 else 32
    ratio = quantile_error(step, sf.grid(schedule, n)) / quantile_error(step, sf.grid(schedule, 2 * n))
    assert math.log2(ratio) > order - 0.2


@pytest.mark.parametrize(
    "step", [sf.steps.Singlestep(2), sf.steps.Singlestep(3), sf.steps.Singlestep(2, "x0"), sf.steps.Singlestep(3, "x0")]
)
def test_one_step_has_its_local_order(step):
    """Against the closed flow of a Gaussian, between levels at scales of their own."""
    schedule, x = sf.Cosine(scales=sf.flow_scales), torch.randn(64, 2)

    def error(h):
        t, s = (schedule.level(schedule.time(torch.tensor(at))) for at in (0.4, 0.4 + 2 * h))
        return (step(gaussian, x, t, s, None, None)[0] - gaussian_flow(x, t, s)).norm(dim=1).mean()

    assert math.log2(error(0.04) / error(0.02)) > step.order + 0.8


@pytest.mark.parametrize("step", [sf.steps.Singlestep(3, "eps"), sf.steps.Singlestep(3, "x0")], ids=label)
def test_what_is_linear_in_log_snr_is_integrated_exactly(step):
    """Where x0 (or eps) is a + b λ whatever x is, the integral is a closed form: x_s/sigma_s = x_t/sigma_t + ∫ exp(λ) (a + b λ) dλ."""
    a, b, now, then = 0.7, -0.4, -0.3, 0.9

    def predict(x_t, level, cond=None):
        value = (a + b * level.log_snr / 2).expand_as(x_t)
        if step.on == "x0":
            return sf.Prediction.from_x0(value, x_t, level)
        return sf.Prediction((x_t - level.sigma * value) / level.alpha, value)

    levels = [sf.Level(*sf.vp_scales(torch.tensor(2 * half))) for half in (now, then)]
    x = torch.randn(4, 3)
    sign, key = (1, "sigma") if step.on == "x0" else (-1, "alpha")
    antiderivative = lambda at: math.exp(sign * at) * (a + b * (at - sign)) / sign  # noqa: E731
    scale = [getattr(level, key) for level in levels]
    exact = scale[1] * (x / scale[0] + sign * (antiderivative(then) - antiderivative(now)))
    torch.testing.assert_close(step(predict, x, *levels, None, None)[0], exact)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_plms_has_its_order_where_the_steps_in_sigma_are_equal(order):
    """After exact predictions: one step from a point of a Gaussian's flow, whose error falls as its length to order + 1."""
    x, start = torch.randn(64, 2), sf.Level(torch.tensor(1.0), torch.tensor(3.0))

    def error(h):
        levels = [sf.Level(torch.tensor(1.0), torch.tensor(1.0 - h * i)) for i in range(order + 1)]
        points = [gaussian_flow(x, start, level) for level in levels]
        memory = None
        for here, (t, s) in zip(points, itertools.pairwise(levels), strict=False):
            out, memory = sf.steps.PLMS(order, heun=False)(gaussian, here, t, s, memory, None)
        return (out - points[-1]).norm(dim=1).mean()

    assert math.log2(error(0.04) / error(0.02)) > order + 0.8


def test_plms_begins_with_the_trapezoidal_rule():
    levels, x = sf.grid(sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), 12)[3:5], torch.randn(16, 2)
    torch.testing.assert_close(sf.steps.PLMS()(mixture, x, *levels, None, None)[0], sf.steps.Heun()(mixture, x, *levels, None, None)[0])
    torch.testing.assert_close(
        sf.steps.PLMS(heun=False)(mixture, x, *levels, None, None)[0], sf.steps.DDIM()(mixture, x, *levels, None, None)[0]
    )


STOCHASTIC = [
    sf.steps.Renoised(),
    sf.steps.Renoised(sf.steps.Singlestep(2, "x0"), eta=0.5),
    sf.steps.Renoised(sf.steps.DDIM(), eta=2.0),
    sf.steps.EDM(),
    sf.steps.EDM(sf.steps.DDIM(), churn=0.4, s_tmin=0.0),
    sf.steps.Restart(times=2),
    sf.steps.Restart(sf.steps.Multistep(), times=2),
    sf.steps.SinglestepSDE(),
    sf.steps.SinglestepSDE(eta=0.5),
    sf.steps.MultistepSDE(),
    sf.steps.MultistepSDE(eta=2.0),
    sf.steps.AdaptiveSDE(),
]
EVERY = METHODS + STOCHASTIC


@long_walk
@pytest.mark.parametrize("scales", SCALES[1:], ids=lambda f: f.__name__)
@pytest.mark.parametrize("step", EVERY, ids=label)
def test_the_scales_do_not_matter(step, scales):
    vp, other = (sf.grid(sf.Cosine(scales=which, log_snr_min=-10.0, log_snr_max=10.0), 12) for which in (sf.vp_scales, scales))
    noise = torch.randn(8, 2)
    one, two = (
        sf.sample(mixture, levels[0].alpha + levels[0].sigma * noise, levels, step, generator=torch.Generator().manual_seed(1))
        for levels in (vp, other)
    )
    torch.testing.assert_close(one / vp[-1].alpha, two / other[-1].alpha, rtol=1e-6, atol=1e-6)


@long_walk
@pytest.mark.parametrize("schedule", [sf.Discrete.linear(1000), NO_SIGNAL], ids=["to the data", "from noise alone"])
@pytest.mark.parametrize("spacing", [sf.spacing.log_snr, sf.spacing.uniform, sf.spacing.shifted()], ids=["log_snr", "uniform", "shifted"])
@pytest.mark.parametrize("step", EVERY, ids=label)
def test_both_ends_are_safe(step, spacing, schedule):
    levels = sf.grid(schedule, 30, spacing=spacing)
    x = sf.sample(mixture, torch.randn(64, 2), levels, step, generator=torch.Generator().manual_seed(0))
    density = mixture.log_prob(x, sf.Level(torch.tensor(1.0), torch.tensor(0.0)))
    assert x.isfinite().all()
    assert (density > -14).double().mean() > 0.95


@pytest.mark.parametrize("step", EVERY, ids=label)
def test_the_last_step_to_the_data_returns_x0(step):
    chain, x, asked = sf.Discrete.linear(1000), torch.randn(16, 2), []
    levels = [chain.level(t) for t in (0.5, 0.4, 0.3, 0.2, 0.0)]

    def predict(x_t, level, cond=None):
        asked.append(mixture(x_t, level))
        return asked[-1]

    out = sf.sample(predict, x, levels, step, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, asked[-1].x0)


@pytest.mark.parametrize("step", EVERY, ids=label)
def test_a_sample_is_a_function_of_its_own_generator(step):
    levels, x = sf.grid(sf.Cosine(log_snr_min=-10.0, log_snr_max=10.0), 6), torch.randn(5, 2)
    together = sf.sample(mixture, x, levels, step, generator=sf.noise.row_generators(3, range(5)))
    apart = [sf.sample(mixture, x[i : i + 1], levels, step, generator=sf.noise.row_generators(3, [i])) for i in (4, 1)]
    torch.testing.assert_close(together[[4, 1]], torch.cat(apart), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("step", "calls"),
    [
        (sf.steps.Singlestep(2), 19),
        (sf.steps.Singlestep(3), 28),
        (sf.steps.PLMS(), 11),
        (sf.steps.PLMS(heun=False), 10),
        (sf.steps.EDM(), 19),
        (sf.steps.Renoised(sf.steps.DDIM()), 10),
        (sf.steps.Restart(times=3, steps=4), 19 + 2 * (3 * 4 + 1)),
        (sf.steps.SinglestepSDE(), 19),
        (sf.steps.MultistepSDE(), 10),
    ],
    ids=label,
)
def test_evaluations_of_ten_steps_to_the_data(step, calls):
    predict, asked = counted(mixture)
    sf.sample(predict, torch.randn(2, 2), sf.grid(sf.Discrete.linear(1000), 10), step)
    assert len(asked) == calls


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("edm", sf.steps.EDM()),
        ("restart", sf.steps.Restart()),
        ("plms", sf.steps.PLMS()),
        ("ipndm", sf.steps.PLMS(heun=False)),
        ("dpm2", sf.steps.Singlestep(2)),
        ("dpm2-ancestral", sf.steps.Renoised(sf.steps.Singlestep(2))),
        ("singlestep-2", sf.steps.Singlestep(2)),
        ("singlestep-3", sf.steps.Singlestep(3)),
        ("dpmpp-2s-ancestral", sf.steps.Renoised(sf.steps.Singlestep(2, "x0"))),
        ("dpmpp-sde", sf.steps.SinglestepSDE()),
        ("dpmpp-2m-sde", sf.steps.MultistepSDE()),
        ("adaptive-sde", sf.steps.AdaptiveSDE()),
    ],
)
def test_it_has_a_name_for_the_command(name, step):
    assert SAMPLERS[name] == step


@pytest.mark.parametrize("name", ["dpmpp-sde", "edm"])
def test_the_command_samples_with_it(name, tmp_path):
    """A trained model, in float32; the i-th sample does not depend on how many are drawn at a time."""
    drawn = []
    for batch in (2, 1):
        out = tmp_path / f"{batch}.npz"
        options = ["--sampler", name, "--steps", "3", "--count", "2", "--batch", str(batch), "--out", str(out)]
        result = CliRunner().invoke(app, ["sample", "zoo:digits", *options])
        assert result.exit_code == 0, result.output
        drawn.append(next(iter(np.load(out).values())).astype(float))
    assert abs(drawn[0] - drawn[1]).max() <= 1
    assert drawn[0].std() > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sf.steps.Singlestep(1), "order must be 2 or 3, got 1"),
        (lambda: sf.steps.Singlestep(2, "v"), 'on must be "eps"'),
        (lambda: sf.steps.PLMS(5), "order must be 1 to 4, got 5"),
        (lambda: sf.steps.EDM(churn=0.5), "churn must lie in"),
        (lambda: sf.steps.EDM(s_tmin=2.0, s_tmax=1.0), "0 <= s_tmin <= s_tmax"),
        (lambda: sf.steps.EDM(s_noise=-1.0), "s_noise must be 0 or more"),
        (lambda: sf.steps.Renoised(eta=-0.1), "eta must be 0 or more"),
        (lambda: sf.steps.Renoised(s_noise=math.nan), "s_noise must be 0 or more"),
        (lambda: sf.steps.Restart(low=0.4), "0 < low < high"),
        (lambda: sf.steps.Restart(times=0), "times must be at least 1"),
        (lambda: sf.steps.Restart(steps=0), "steps must be at least 1"),
        (lambda: sf.steps.SinglestepSDE(eta=1.1), "eta must lie in"),
        (lambda: sf.steps.SinglestepSDE(s_noise=-1.0), "s_noise must be 0 or more"),
        (lambda: sf.steps.MultistepSDE(eta=-1.0), "eta must be 0 or more"),
        (lambda: sf.steps.AdaptiveSDE(rtol=0.0), "tolerances must be positive"),
        (lambda: sf.steps.AdaptiveSDE(max_steps=0), "max_steps must be at least 1"),
        (
            lambda: sf.sample(mixture, torch.zeros(2, 2), sf.grid(sf.Cosine(), 1), sf.steps.AdaptiveSDE(max_steps=3)),
            "2 of 2 rows are not through after 3 steps",
        ),
        (
            lambda: sf.steps.BrownianPath.draw(torch.zeros(3, 2), sf.noise.row_generators(0, range(2))),
            "got 2 generators for 3 rows",
        ),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
