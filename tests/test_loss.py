import math
from functools import partial

import numpy as np
import pytest
import torch
from problems import gaussian, label, mixture

import sfumato as sf


def at_random_levels(scales, n=512):
    x0, eps = torch.randn(n, 3), torch.randn(n, 3)
    level = sf.Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0).level(torch.rand(n), like=x0)
    wrong = lambda x_t, at, cond=None: sf.Prediction.from_x0(x0 + 0.1 * torch.sin(x_t), x_t, at)  # noqa: E731
    x_t = level.alpha * x0 + level.sigma * eps
    return x0, eps, level, wrong, wrong(x_t, level)


@pytest.mark.parametrize("log_snr", [-4.0, 0.0, 3.0])
def test_the_oracles_loss_is_the_posterior_variance(log_snr):
    """E (x0_hat - x0)² at the exact predictor is the trace of Cov[x0 | x_t] = C - alpha² C (alpha² C + sigma²)^-1 C, over d."""
    level = sf.Level(*sf.vp_scales(torch.tensor(log_snr)))
    x0, _ = gaussian.sample(200_000, torch.Generator().manual_seed(0))
    loss = sf.loss.simple(gaussian, x0, torch.randn(200_000, 2), level, weight=sf.loss.x0_weight)
    wanted = (gaussian.variances[0] * level.sigma**2 / (level.alpha**2 * gaussian.variances[0] + level.sigma**2)).mean()
    assert abs(loss.mean().item() - wanted.item()) < 4 * loss.std().item() / math.sqrt(200_000)


def test_loss_is_one_number_an_example():
    x0, eps, level, wrong, _ = at_random_levels(sf.vp_scales, 7)
    whole = sf.loss.simple(wrong, x0, eps, level)
    assert whole.shape == (7,)


def test_the_default_is_the_error_of_eps():
    x0, eps = torch.randn(9, 2), torch.randn(9, 2)
    level = sf.Cosine().level(torch.rand(9), like=x0)
    p = mixture(level.alpha * x0 + level.sigma * eps, level)
    torch.testing.assert_close(sf.loss.simple(mixture, x0, eps, level), (p.eps - eps).square().mean(1), rtol=1e-5, atol=1e-9)


def test_the_condition_reaches_the_predictor():
    x0, eps, level = torch.randn(9, 2), torch.randn(9, 2), sf.Cosine().level(0.5)
    labels = torch.arange(9) % 3
    given = lambda x_t, at, cond=None: mixture(x_t, at, {"labels": labels})  # noqa: E731
    torch.testing.assert_close(sf.loss.simple(mixture, x0, eps, level, {"labels": labels}), sf.loss.simple(given, x0, eps, level))


@pytest.mark.parametrize("sampler", [sf.loss.Uniform, sf.loss.Stratified, sf.loss.LogNormal], ids=lambda s: s.__name__)
@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.Discrete.linear(100)], ids=lambda s: type(s).__name__)
def test_the_least_random_number_is_not_the_data(sampler, schedule, monkeypatch):
    """torch.rand may return 0: the level must have noise still."""
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.zeros(n, dtype=torch.float64))
    t = sampler(schedule)(1, torch.Generator())
    assert 0 < t.item() <= 1 or (isinstance(schedule, sf.Cosine) and sampler is sf.loss.LogNormal)
    assert schedule.level(t).sigma.item() > 0


@pytest.mark.parametrize("sampler", [sf.loss.Stratified, sf.loss.LogNormal], ids=lambda s: s.__name__)
def test_spread_times_come_in_no_order(sampler):
    """The place in the batch must not tell the level: data may come sorted."""
    t = sampler(sf.Cosine())(1000, torch.Generator().manual_seed(0))
    assert abs(torch.corrcoef(torch.stack([t, torch.arange(1000.0)]))[0, 1]) < 0.15
    again = sampler(sf.Cosine())(1000, torch.Generator().manual_seed(1))
    assert abs(torch.corrcoef(torch.stack([t, again]))[0, 1]) < 0.15


def test_importance_is_uniform_until_every_bin_is_full():
    times = sf.loss.Importance(sf.Cosine(), bins=4, history=2)
    times.update(torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(times.chances, torch.full((4,), 0.25))
    times.update(torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(times.chances, 0.999 * torch.tensor([0.1, 0.2, 0.3, 0.4]) + 0.001 / 4)


def test_importance_forgets_what_is_older_than_its_history():
    times = sf.loss.Importance(sf.Cosine(), bins=1, history=2)
    for value in (100.0, 3.0, 4.0):
        times.update(torch.tensor([0.5]), torch.tensor([value]))
    assert times.losses.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("schedule", [sf.Cosine(), sf.Discrete.linear(40, beta_max=0.02)], ids=label)
@pytest.mark.parametrize("kind", [lambda s: sf.loss.Importance(s, bins=8, history=1), lambda s: sf.loss.Fitted(s, bins=8)])
def test_adaptive_times_stay_in_range_and_keep_what_they_know(kind, schedule):
    times, other = kind(schedule), kind(schedule)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        t = times(64, generator)
        assert t.min() > 0
        assert t.max() <= 1
        times.update(t, 1 + t)
    other.load({name: value.clone() for name, value in times.tensors().items()})
    torch.testing.assert_close(other.chances, times.chances)
    assert not torch.allclose(times.chances, torch.full_like(times.chances, 1 / len(times.chances)))


def test_fitted_times_follow_their_running_mean():
    times = sf.loss.Fitted(sf.Cosine(log_snr_max=4.0, log_snr_min=-4.0), bins=2, decay=0.5, uniform_share=0.0)
    early, late = torch.tensor([0.2]), torch.tensor([0.8])
    times.update(early, torch.tensor([1.0]))
    torch.testing.assert_close(times.chances, torch.tensor([0.5, 0.5]))  # a stretch not seen yet is taken for an average one
    times.update(late, torch.tensor([1.0]))
    times.update(late, torch.tensor([5.0]))
    torch.testing.assert_close(times.chances, torch.tensor([0.25, 0.75]))


def test_fitted_times_want_ends():
    with pytest.raises(ValueError, match="finite log-SNR"):
        sf.loss.Fitted(sf.Discrete.linear(100).zero_terminal())


def test_the_previous_weight_is_the_error_of_the_previous_mean():
    chain = sf.Discrete.linear(50, beta_max=0.02)
    x0, eps, t = torch.randn(50, 3), torch.randn(50, 3), torch.arange(1, 51) / 50
    now, below = chain.level(t, like=x0), chain.level(torch.arange(50) / 50, like=x0)
    x_t = now.alpha * x0 + now.sigma * eps
    wrong = sf.Prediction.from_x0(x0 + 0.2 * torch.randn(50, 3), x_t, now)
    truth, ours = (sf.process.posterior(x, x_t, now, below).mean for x in (x0, wrong.x0))
    loss = sf.loss.simple(lambda *_: wrong, x0, eps, now, weight=partial(sf.loss.previous_weight, chain=chain))
    torch.testing.assert_close(loss, (ours - truth).square().mean(1))


class Nothing(torch.nn.Module):
    """A network that says 0."""

    def forward(self, x, log_snr, cond):
        return torch.zeros_like(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("t", [0.0, 0.2, 0.8, 0.95, 1.0])
def test_a_zero_networks_loss_is_one_in_every_precision(t, dtype):
    """eps = 1 everywhere, and the network says 0, to -15 nats: in float16 the square of v alone is beyond its range from -11 nats on."""
    x0, eps = torch.zeros(4, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    level = sf.Cosine().level(torch.full((4,), t), like=x0)
    loss = sf.loss.simple(sf.Denoiser(Nothing(), sf.eps_target), x0, eps, level)
    torch.testing.assert_close(loss, torch.ones(4, dtype=torch.float32), rtol=1e-5, atol=0)


CHAIN = sf.Discrete.linear(1000)
LAST = sf.process.posterior_log_variance(CHAIN.level(2 / 1000), CHAIN.level(1 / 1000))
WEIGHTS = {
    "eps": (sf.loss.eps_weight, lambda a, s: a**2 / (a**2 + s**2)),
    "x0": (sf.loss.x0_weight, lambda a, s: s**2 / (a**2 + s**2)),
    "v": (sf.loss.v_weight, lambda a, s: 1 + 0 * a),
    "min-snr": (sf.loss.min_snr_weight, lambda a, s: s**2 / (a**2 + s**2) * np.minimum((a / s) ** 2, 5)),
    "truncated-snr": (sf.loss.truncated_snr_weight, lambda a, s: s**2 / (a**2 + s**2) * np.maximum((a / s) ** 2, 1)),
    "edm": (sf.loss.edm_weight, lambda a, s: (a**2 + s**2 / 0.25) / (a**2 + s**2)),
    "sigmoid": (sf.loss.sigmoid_weight, lambda a, s: a**2 / (a**2 + s**2) / (1 + (a / s) ** 2 / math.e)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_hold_in_float16(name):
    """Against their closed forms in numpy's float64 at the same, rounded, scales, from 15 nats to -15."""
    weight, closed = WEIGHTS[name]
    level = sf.Cosine().level(torch.linspace(0, 1, 31), like=torch.zeros(31, dtype=torch.float16))
    wanted = closed(level.alpha.double().numpy(), level.sigma.double().numpy())
    torch.testing.assert_close(weight(level).double(), torch.from_numpy(wanted), rtol=1e-5, atol=0)


def test_the_weight_of_the_previous_mean_holds_in_float16():
    level = CHAIN.level(torch.linspace(0.3, 1, 15), like=torch.zeros(15, dtype=torch.float16))
    near = sf.Level(level.alpha.double(), level.sigma.double())
    ours, wanted = (sf.loss.previous_weight(each, chain=CHAIN) for each in (level, near))
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_truncated_weight_is_one_at_both_ends_of_a_chain(t):
    """max(SNR, 1) sigma²/(alpha² + sigma²) tends to 1 as sigma vanishes, and as alpha does."""
    for dtype in (torch.float32, torch.float64):
        level = sf.Discrete.linear(1000).zero_terminal().level(t).to(torch.zeros((), dtype=dtype))
        assert sf.loss.truncated_snr_weight(level).item() == 1


def wide(level):
    return sf.Level(level.alpha.double(), level.sigma.double())


LOSSES = {
    "simple": lambda x0, eps, t, s, last, vary: sf.loss.simple(vary, x0, eps, t),
    "hybrid": lambda x0, eps, t, s, last, vary: sf.loss.hybrid(vary, x0, eps, t, s, steps=1000, last_log_variance=last),
    "vlb": lambda x0, eps, t, s, last, vary: sf.loss.vlb(vary, x0, eps, t, s, steps=1000, last_log_variance=last),
    "score": lambda x0, eps, t, s, last, vary: sf.loss.score_matching(vary, x0, eps, t),
    "sliced": lambda x0, eps, t, s, last, vary: sf.loss.sliced_score_matching(vary, x0, t, probe=eps),
    "vdm": lambda x0, eps, t, s, last, vary: sf.loss.vdm(vary, x0, eps, torch.linspace(0.1, 1, 8), sf.Cosine()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_float16_data_are_those_of_float64(name):
    """At the same, rounded, data and levels; -0.4 is what a linear predictor is off by, so that nothing but the precision differs."""

    def linear(x_t, level, cond=None):
        half = torch.full_like(x_t, 0.5)
        return sf.Prediction.solve(0.6 * x_t - 0.4, x_t, level, sf.v_target, half)

    x0 = (torch.randint(0, 256, (8, 40)) * 2 / 255 - 1).half()
    eps, k = torch.randn(8, 40).half(), torch.linspace(400, 1000, 8).round()
    t, s = CHAIN.level(k / 1000, like=x0), CHAIN.level((k - 100) / 1000, like=x0)
    narrow = LOSSES[name](x0, eps, t, s, LAST.half(), linear)
    exact = LOSSES[name](x0.double(), eps.double(), wide(t), wide(s), LAST.half().double(), linear)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-3, atol=1e-4)


def test_a_condition_and_gradients_pass_the_widening():
    """float16 data are only the data: the network's weights keep their type and get their gradients."""
    net = sf.nets.MLP((3,), width=8, depth=1, conditions={"labels": sf.Classes(("a", "b"))}).half()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x0, eps, cond = torch.randn(4, 3).half(), torch.randn(4, 3).half(), {"labels": torch.tensor([0, 1, -1, 0])}
    sf.loss.simple(sf.Denoiser(net, sf.v_target), x0, eps, sf.Cosine().level(torch.rand(4), like=x0), cond).mean().backward()
    for p in net.parameters():
        assert p.grad.dtype == torch.float16
        assert p.grad.isfinite().all()
