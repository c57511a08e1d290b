"""Each conditional is held against Bayes' rule on the joint Gaussian of (x_s, x_t), and the DDPM forms against a chain."""

import math

import pytest
import torch
from problems import every_scales

import sfumato as sf
from sfumato import process


def pair(scales, s=0.35, t=0.6):
    schedule = sf.Cosine(scales=scales)
    return schedule.level(s), schedule.level(t)


@every_scales
def test_transition_carries_one_marginal_into_the_next(scales):
    s, t = pair(scales)
    x0 = torch.tensor([1.7])
    at_s = sf.process.marginal(x0, s)
    step = sf.process.transition(at_s.mean, s, t)
    ratio = t.alpha / s.alpha
    at_t = sf.process.marginal(x0, t)
    torch.testing.assert_close(step.mean, at_t.mean)
    torch.testing.assert_close(step.log_variance.exp() + ratio**2 * at_s.log_variance.exp(), at_t.log_variance.exp())


@every_scales
def test_posterior_is_bayes_rule(scales):
    """Conditioning the joint Gaussian of (x_s, x_t) given x0 on x_t, by its covariance matrix."""
    s, t = pair(scales)
    x0, x_t = torch.tensor([0.8]), torch.tensor([-0.3])
    ratio = t.alpha / s.alpha
    cov_ss, cov_st, cov_tt = s.sigma**2, ratio * s.sigma**2, t.sigma**2
    mean = s.alpha * x0 + cov_st / cov_tt * (x_t - t.alpha * x0)
    variance = cov_ss - cov_st**2 / cov_tt
    q = sf.process.posterior(x0, x_t, t, s)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.log_variance.exp(), variance)


def test_posterior_of_a_chain_is_ddpm_equation_7():
    chain = sf.Discrete.linear(100)
    product = torch.cumprod(1 - chain.betas, 0)
    x0, x_t = torch.tensor([0.4]), torch.tensor([1.1])
    for k in (2, 50, 100):
        beta, now, before = chain.betas[k - 1], product[k - 1], product[k - 2]
        mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_t
        q = sf.process.posterior(x0, x_t, chain.level(k / 100), chain.level((k - 1) / 100))
        torch.testing.assert_close(q.mean, mean, rtol=1e-9, atol=0)
        torch.testing.assert_close(q.log_variance.exp(), (1 - before) / (1 - now) * beta, rtol=1e-9, atol=0)


def test_one_step_of_a_chain_has_its_beta():
    chain = sf.Discrete.cosine(100)
    for k in (1, 30, 100):
        q = sf.process.transition(torch.ones(1), chain.level((k - 1) / 100), chain.level(k / 100))
        torch.testing.assert_close(q.log_variance.exp(), chain.betas[k - 1], rtol=1e-9, atol=0)
        torch.testing.assert_close(q.mean, (1 - chain.betas[k - 1]).sqrt().reshape(1))


def test_the_last_step_back_is_the_data():
    chain = sf.Discrete.linear(100)
    q = sf.process.posterior(torch.tensor([0.4]), torch.tensor([1.1]), chain.level(0.01), chain.level(0.0))
    assert q.mean.item() == pytest.approx(0.4, abs=1e-12)
    assert q.log_variance.item() == -math.inf


def test_close_levels_do_not_cancel_in_float32():
    schedule = sf.Cosine()
    close = [schedule.level(t, like=torch.zeros(1, dtype=torch.float32)) for t in (0.5, 0.5 + 1e-3)]
    exact = [schedule.level(t) for t in (0.5, 0.5 + 1e-3)]
    log_variance = sf.process.transition_log_variance(*close)
    torch.testing.assert_close(log_variance.double().squeeze(), sf.process.transition_log_variance(*exact), rtol=0, atol=1e-3)


def test_kl_and_log_prob_against_torch():
    mean, log_variance = torch.randn(2, 50), torch.randn(2, 50)
    ours = [sf.Normal(m, v) for m, v in zip(mean, log_variance, strict=True)]
    theirs = [torch.distributions.Normal(m, (v / 2).exp()) for m, v in zip(mean, log_variance, strict=True)]
    torch.testing.assert_close(ours[0].kl(ours[1]), torch.distributions.kl_divergence(*theirs))
    x = torch.randn(50)
    torch.testing.assert_close(ours[0].log_prob(x), theirs[0].log_prob(x))


def test_samples_have_the_mean_and_the_variance():
    q = sf.Normal(torch.full((200_000,), 3.0), torch.tensor(math.log(4.0)))
    x = q.sample(torch.Generator().manual_seed(1))
    assert abs(x.mean().item() - 3) < 4 * 2 / math.sqrt(200_000)
    assert abs(x.var().item() / 4 - 1) < 4 * math.sqrt(2 / 200_000)


def test_beta_of_two_close_levels_is_exact_to_rounding():
    """At alpha = 1, sigma_ts² = (sigma_t - sigma_s)(sigma_t + sigma_s), which does not cancel."""
    for dtype, rtol in ((torch.float32, 2e-6), (torch.float64, 1e-14)):
        one = torch.ones((), dtype=dtype)
        s, t = sf.Level(one, one), sf.Level(one, one + 2.0**-12)
        wanted = (t.sigma - s.sigma) * (t.sigma + s.sigma)
        torch.testing.assert_close(sf.process.transition_log_variance(s, t).exp(), wanted, rtol=rtol, atol=0)


MISFITS = [
    (torch.zeros(4, 3), sf.Level(torch.ones(5, 1), torch.ones(5, 1))),
    (torch.zeros(4, 3), sf.Level(torch.ones(4, 1, 1), torch.ones(4, 1, 1))),
]


@pytest.mark.parametrize(("x", "level"), MISFITS)
@pytest.mark.parametrize(
    "function",
    [
        lambda x, level: process.marginal(x, level),
        lambda x, level: process.transition(x, sf.Level(0.9 * level.alpha, 0.1 * level.sigma), level),
        lambda x, level: process.posterior(x, x, level, sf.Level(0.9 * level.alpha, 0.1 * level.sigma)),
    ],
    ids=["marginal", "transition", "posterior"],
)
def test_what_does_not_fit_is_refused(function, x, level):
    with pytest.raises(ValueError, match="does not fit"):
        function(x, level)


def test_levels_of_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"floating-point data, got torch\.int64"):
        sf.Cosine().level(0.5, like=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("variance", ["huge", "middle", "smaller"])
def test_an_unknown_variance_is_refused(variance):
    t, s, x = sf.Cosine().level(0.5), sf.Cosine().level(0.4), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f'"small", "large" or "learned", got "{variance}"'):
        process.reverse(sf.Prediction(x, x), x, t, s, variance=variance)
