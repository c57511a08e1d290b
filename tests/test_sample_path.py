"""Walks from data and back, the adaptive flow, what progressive tells, and what the loop refuses."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import SCALES, gaussian, gaussian_flow, label, mixture

import sfumato as sf
from sfumato.sampling import encode_decode, flow, interpolate, invert, progressive, slerp

REFERENCE = Path(os.environ.get("SFUMATO_TEST_REFERENCE", Path(__file__).parents[2] / "shared" / "reference" / "improved_diffusion.npz"))
SCHEDULE = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0)
CLEAN, NOISY = SCHEDULE.level(0.0), SCHEDULE.level(1.0)


@pytest.mark.parametrize("scales", SCALES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("down", [True, False], ids=["to data", "to noise"])
def test_the_flow_of_a_gaussian_is_its_closed_form(scales, down):
    """The error falls with the tolerance."""
    schedule, x = sf.Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0), torch.randn(32, 2)
    start, end = (schedule.level(1.0 if down else 0.0), schedule.level(0.0 if down else 1.0))
    x = start.alpha * gaussian.means + start.sigma * x
    wanted = gaussian_flow(x, start, end)
    for tolerance in (1e-4, 1e-6, 1e-8):
        error = (flow(gaussian, x, start, end, rtol=tolerance, atol=tolerance).x - wanted).abs().max() / torch.hypot(end.alpha, end.sigma)
        assert error < 20 * tolerance


def test_the_flow_is_close_by_default():
    """Modes a hundredth wide, which steps of its greatest length miss by a quarter of their width."""
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.2, 0.1]])
    sharp = sf.GaussianMixture(torch.ones(5) / 5, means, 1e-4 * torch.eye(2).expand(5, 2, 2))
    clean, x = sf.Cosine(log_snr_max=12.0, log_snr_min=-8.0).level(0.0), NOISY.sigma * torch.randn(64, 2)
    truth = flow(sharp, x, NOISY, clean, rtol=1e-9, atol=1e-9).x
    assert (flow(sharp, x, NOISY, clean).x - truth).abs().median() < 1e-4


def test_the_flow_goes_there_and_back():
    x = torch.randn(32, 2)
    there = flow(mixture, x, NOISY, CLEAN, rtol=1e-8, atol=1e-8)
    back = flow(mixture, there.x, CLEAN, NOISY, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-6)


def test_the_flow_counts_its_evaluations_and_a_row_is_a_batch_of_one():
    x, rows = torch.randn(8, 2), []

    def predict(x_t, level, cond=None):
        rows.append(len(x_t))
        return mixture(x_t, level, cond)

    labels = torch.arange(8) % 3
    whole = flow(predict, x, NOISY, CLEAN, {"labels": labels}, rtol=1e-9, atol=1e-9)
    assert sum(rows) == whole.nfe.sum()
    assert len(set(whole.nfe.tolist())) > 1
    for i in range(8):
        alone = flow(mixture, x[i : i + 1], NOISY, CLEAN, {"labels": labels[i : i + 1]}, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.x, whole.x[i : i + 1])
        assert alone.nfe[0] == whole.nfe[i]


def test_inversion_does_not_see_the_scale_of_its_levels():
    """Levels twice as large and data to match, down to data whose alpha is 2: noise twice as large."""
    levels, x = sf.grid(sf.Discrete.linear(100), 10, spacing=sf.spacing.uniform), torch.randn(8, 2)
    doubled = [sf.Level(2 * level.alpha, 2 * level.sigma) for level in levels]
    torch.testing.assert_close(invert(mixture, 2 * x, doubled), 2 * invert(mixture, x, levels))


@pytest.mark.parametrize("step", [None, sf.steps.Heun(), sf.steps.Multistep(), sf.steps.AdamsBashforth(3)], ids=label)
def test_inversion_is_the_gaussians_flow_upwards(step):
    """To the method's order."""
    order, x = 1 if step is None else getattr(step, "order", 2), gaussian.sample(64)[0]

    def error(steps):
        levels = sf.grid(SCHEDULE, steps)
        return (invert(gaussian, x, levels, step=step) - gaussian_flow(x, levels[-1], levels[0])).norm(dim=1).mean()

    assert math.log2(error(64) / error(128)) > order - 0.2


def test_a_round_trip_comes_back_the_closer_the_more_steps():
    chain, (x, _) = sf.Discrete.linear(1000), mixture.sample(200)

    def distance(steps):
        levels = sf.grid(chain, steps)
        return (sf.sample(mixture, invert(mixture, x, levels), levels, sf.steps.DDIM()) - x).norm(dim=1).median()

    assert distance(200) < 0.03
    assert distance(200) < 0.6 * distance(100)


@pytest.mark.parametrize("step", [None, sf.steps.Heun(), sf.steps.Multistep(2)], ids=label)
def test_inversion_reaches_a_level_without_signal(step):
    levels = [*(sf.Discrete.linear(1000).level(k / 10) for k in range(9, -1, -1))]
    noise = sf.Level(torch.tensor(0.0), torch.tensor(1.0))
    out = invert(mixture, mixture.sample(16)[0], [noise, *levels], step=step)
    last = invert(mixture, mixture.sample(16)[0], levels, step=step)
    assert out.isfinite().all()
    assert last.shape == out.shape


def test_inversion_from_clean_data_to_the_first_level_only_scales():
    chain, x = sf.Discrete.linear(1000), torch.randn(4, 2)
    torch.testing.assert_close(invert(mixture, x, [chain.level(0.001), chain.level(0.0)]), chain.level(0.001).alpha * x)


def test_slerp_keeps_the_norm_and_turns_evenly():
    a, b = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    a, b = (x / x.flatten(1).norm(dim=1)[:, None, None] for x in (a, b))
    quarter, half = slerp(a, b, 0.25), slerp(a, b, torch.full((5,), 0.5))
    dot = lambda x, y: (x * y).flatten(1).sum(1)  # noqa: E731
    torch.testing.assert_close(dot(quarter, quarter), torch.ones(5))
    torch.testing.assert_close(dot(a, quarter).acos(), dot(quarter, half).acos())
    torch.testing.assert_close(4 * dot(a, quarter).acos(), dot(a, b).acos())


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_of_parallel_rows_is_the_straight_line(factor):
    a = torch.randn(3, 4)
    torch.testing.assert_close(slerp(a, factor * a, 0.25), (0.75 + 0.25 * factor) * a)


def test_slerp_takes_a_weight_a_row_and_ends_at_its_ends():
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(slerp(a, b, torch.tensor([0.0, 1.0])), torch.stack([a[0], b[1]]))


def test_interpolation_ends_at_its_data_and_stays_among_them():
    levels, (x, _) = sf.grid(sf.Discrete.linear(1000), 200), mixture.sample(60)
    a, b = x[:30], x[30:]
    between = [interpolate(mixture, a, b, weight, levels) for weight in (0.0, 0.5, 1.0)]
    assert (between[0] - a).norm(dim=1).median() < 0.02
    assert (between[2] - b).norm(dim=1).median() < 0.02
    clean = sf.Level(torch.tensor(1.0), torch.tensor(0.0))
    straight = (a + b) / 2
    assert mixture.log_prob(between[1], clean).mean() > mixture.log_prob(straight, clean).mean()


def test_what_is_noised_to_a_level_and_read_at_once_is_the_posterior_mean():
    """Cov(x0, E[x0 | x_t]) = alpha² c²/v along each axis of a Gaussian."""
    generator, chain = torch.Generator().manual_seed(0), sf.Discrete.linear(1000)
    x0, level = gaussian.sample(50_000, generator)[0], chain.level(0.3)
    x = encode_decode(gaussian, x0, [level, chain.level(0.0)], sf.steps.DDIM(), generator=generator)
    along = lambda x: (x - gaussian.means[0]) @ gaussian.axes[0]  # noqa: E731
    wanted = level.alpha**2 * gaussian.variances[0] ** 2 / (level.alpha**2 * gaussian.variances[0] + level.sigma**2)
    torch.testing.assert_close((along(x) * along(x0)).mean(0), wanted, rtol=0.03, atol=0.003)


def test_what_is_noised_and_sampled_again_keeps_the_law_and_forgets_with_the_noise():
    """An exact reverse chain keeps the data's law; the correlation with x0 is that of two draws of the posterior, alpha² c / v."""
    generator, chain = torch.Generator().manual_seed(0), sf.Discrete.linear(1000)
    x0 = gaussian.sample(20_000, generator)[0]
    levels = [chain.level(k / 1000) for k in range(300, -1, -2)]
    x = encode_decode(gaussian, x0, levels, sf.steps.Multistep(2, 1.0), generator=generator)
    along = lambda x: (x - gaussian.means[0]) @ gaussian.axes[0]  # noqa: E731
    torch.testing.assert_close(along(x).var(0), gaussian.variances[0], rtol=0.03, atol=0)
    covariance = (along(x) * along(x0)).mean(0)
    v = levels[0].alpha ** 2 * gaussian.variances[0] + levels[0].sigma ** 2
    torch.testing.assert_close(covariance, levels[0].alpha ** 2 * gaussian.variances[0].square() / v, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("step", [sf.steps.DDIM(0.5), sf.steps.Heun(), sf.steps.UniPC(2)], ids=label)
def test_progressive_tells_what_sample_does(step):
    levels, noise, seen = sf.grid(sf.Discrete.linear(1000), 12), torch.randn(8, 2), []
    out = sf.sample(mixture, noise, levels, step, generator=torch.Generator().manual_seed(0), on_step=lambda i, x: seen.append(x))
    moments = list(progressive(mixture, noise, levels, step, generator=torch.Generator().manual_seed(0)))
    assert [moment.level for moment in moments] == levels
    torch.testing.assert_close(torch.stack([moment.x for moment in moments]), torch.stack([noise, *seen]))
    torch.testing.assert_close(moments[-1].x0, out)
    for moment in moments[:-1]:
        torch.testing.assert_close(moment.x0, mixture(moment.x, moment.level).x0)


def test_the_x0_on_the_way_comes_closer():
    """Its mean squared distance from the end falls from the data's spread to nothing."""
    levels = sf.grid(sf.Discrete.linear(1000), 40)
    moments = list(progressive(mixture, torch.randn(500, 2), levels, sf.steps.DDIM()))
    distances = [(moment.x0 - moments[-1].x).square().mean().item() for moment in moments]
    assert all(a >= b - 1e-3 for a, b in itertools.pairwise(distances))
    assert distances[0] > 0.5


def broken(at, value):
    """`mixture`, but for the call `at`, whose x0 and eps `value` makes."""
    calls = []

    def predict(x_t, level, cond=None):
        calls.append(level)
        p = mixture(x_t, level)
        return sf.Prediction(value(p.x0), value(p.eps)) if len(calls) == at else p

    return predict


LEVELS = sf.grid(SCHEDULE, 8)
MIXED = [LEVELS[0], LEVELS[2], LEVELS[1], LEVELS[3]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sf.sample(broken(3, lambda x: x * math.nan), torch.zeros(2, 2), LEVELS, sf.steps.DDIM()),
            "x is not finite after step 3 of 8, from log-SNR -4: the predictor returned NaN",
        ),
        (lambda: sf.sample(broken(2, lambda x: x / 0), torch.ones(2, 2), LEVELS, sf.steps.Multistep()), "not finite after step 2 of 8"),
        (
            lambda: sf.sample(broken(2, lambda x: x[:1]), torch.zeros(2, 2), LEVELS, sf.steps.DDIM()),
            r"x0 of shape \(1, 2\) and eps of shape \(1, 2\) in step 2 of 8, from log-SNR -6; both must have the shape of x_t, \(2, 2\)",
        ),
        (lambda: sf.sample(mixture, torch.zeros(2, 2), MIXED, sf.steps.DDIM()), r"level 2 is not \(log-SNR -4, then -6\)"),
        (lambda: sf.sample(mixture, torch.zeros(2, 2), LEVELS[::-1], sf.steps.DDIM()), "level 1 is not"),
        (lambda: sf.sample(mixture, torch.zeros(2, 2), [LEVELS[0], LEVELS[0]], sf.steps.DDIM()), "each level must be cleaner"),
        (lambda: list(progressive(mixture, torch.zeros(2, 2), LEVELS[::-1], sf.steps.DDIM())), "each level must be cleaner"),
        (lambda: invert(mixture, torch.zeros(2, 2), LEVELS[::-1]), "each level must be cleaner"),
        (lambda: encode_decode(mixture, torch.zeros(2, 2), LEVELS[:1], sf.steps.DDIM()), "at least two levels"),
        (lambda: flow(mixture, torch.zeros(2, 2), NOISY, CLEAN, max_steps=5), "2 of 2 rows is not through after 5 steps"),
        (lambda: flow(mixture, torch.zeros(2, 2), NOISY, CLEAN, rtol=0.0), "tolerances must be positive"),
        (lambda: flow(mixture, torch.zeros(2, 2), NOISY, sf.Discrete.linear(1000).level(0.0)), "with signal and with noise"),
        (lambda: flow(broken(1, lambda x: x * math.nan), torch.zeros(1, 2), NOISY, CLEAN), "not through after 1[0-9] steps"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_sum_in_half_precision_is_no_infinity():
    """Twenty thousand entries of 10 are beyond float16's largest number, and finite."""
    constant = lambda x_t, level, cond=None: sf.Prediction(torch.full_like(x_t, 10), torch.zeros_like(x_t))  # noqa: E731
    out = sf.sample(constant, torch.zeros(1, 20_000, dtype=torch.float16), LEVELS, sf.steps.DDIM())
    assert out.dtype == torch.float16


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference numbers are not here")
@pytest.mark.parametrize("case", ["linear1000", "cosine1000", "cosine1000_respaced_25", "linear1000_ddim50"])
def test_inversion_is_improved_diffusions(case):
    """Its ddim_reverse_sample, one step up at each of ten indices; the last to a level without signal."""
    reference = np.load(REFERENCE)
    data = {key.split("/", 1)[1]: torch.as_tensor(reference[key]) for key in reference.files if key.startswith(case + "/")}
    chain, up = sf.Discrete(data["betas"]), []
    for j, index in enumerate(data["t"].tolist()):
        raw = data["network_mean_output"][j : j + 1]
        predict = lambda x_t, level, cond=None, raw=raw: sf.Prediction.solve(raw, x_t, level, sf.eps_target)  # noqa: E731
        here = chain.level((index + 1) / len(chain))
        above = chain.level((index + 2) / len(chain)) if index + 2 <= len(chain) else sf.Level(torch.tensor(0.0), torch.tensor(1.0))
        up.append(invert(predict, data["x_t"][j : j + 1], [above, here]))
    torch.testing.assert_close(torch.cat(up), data["ddim/inversion"], rtol=1e-9, atol=1e-9)
