import pytest
import torch
from problems import every_scales, every_target

import sfumato as sf


@every_scales
@every_target
def test_solve_recovers_both_halves(target, scales):
    x0, eps = torch.randn(64, 3), torch.randn(64, 3)
    level = sf.Cosine(scales=scales, log_snr_max=12.0, log_snr_min=-12.0).level(torch.rand(64), like=x0)
    a, b = target(level)
    p = sf.Prediction.solve(a * x0 + b * eps, level.alpha * x0 + level.sigma * eps, level, target)
    torch.testing.assert_close(p.x0, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p.eps, eps, rtol=1e-6, atol=1e-6)


@every_scales
def test_v_has_unit_scale_and_is_orthogonal_to_x_t(scales):
    """For independent unit x0 and eps, v has variance 1 and no covariance with x_t / hypot(alpha, sigma)."""
    level = sf.Cosine(scales=scales).level(torch.linspace(0, 1, 21))
    a, b = sf.v_target(level)
    torch.testing.assert_close(a**2 + b**2, torch.ones(21))
    torch.testing.assert_close(a * level.alpha + b * level.sigma, torch.zeros(21), atol=1e-12, rtol=0)


@pytest.mark.parametrize("data_std", [0.25, 0.5, 1.0])
def test_edm_target_is_karras_preconditioning(data_std):
    """D(x; σ) = c_skip x + c_out F with the coefficients of Karras et al., table 1, at alpha = 1."""
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0])
    level = sf.Level(torch.ones(5), sigma)
    f, x_t = torch.randn(5), torch.randn(5)
    p = sf.Prediction.solve(f, x_t, level, lambda at: sf.edm_target(at, data_std=data_std))
    c_skip = data_std**2 / (sigma**2 + data_std**2)
    c_out = sigma * data_std / (sigma**2 + data_std**2).sqrt()
    torch.testing.assert_close(p.x0, c_skip * x_t + c_out * f)


def test_score_is_minus_eps_over_sigma():
    level = sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    p = sf.Prediction.solve(torch.tensor([1.0, -2.0]), torch.zeros(2), level, sf.score_target)
    torch.testing.assert_close(p.score(level), torch.tensor([1.0, -2.0]))


def test_from_x0_explains_x_t():
    level, x0, x_t = sf.Level(torch.tensor(0.6), torch.tensor(0.8)), torch.randn(5), torch.randn(5)
    p = sf.Prediction.from_x0(x0, x_t, level)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x_t)


@every_target
def test_float32_survives_the_ends(target):
    """At either end of the default range a float32 round trip keeps what the level lets through: x_t is explained to rounding."""
    x0, eps = torch.randn(256, dtype=torch.float32), torch.randn(256, dtype=torch.float32)
    for t in (0.0, 1.0):
        level = sf.Cosine().level(t, like=x0)
        a, b = target(level)
        x_t = level.alpha * x0 + level.sigma * eps
        p = sf.Prediction.solve(a * x0 + b * eps, x_t, level, target)
        torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x_t, rtol=1e-5, atol=1e-5)


def test_targets_mean_what_their_names_say():
    """Not only solvable: y itself, by the words that define it."""
    x0, eps, u = torch.randn(5), torch.randn(5), torch.tensor(0.3)
    y = lambda target, level: (lambda ab: ab[0] * x0 + ab[1] * eps)(target(level))  # noqa: E731
    level = sf.Level(1 - u, u)
    torch.testing.assert_close(y(sf.x0_target, level), x0)
    torch.testing.assert_close(y(sf.eps_target, level), eps)
    line = lambda u: (1 - u) * x0 + u * eps  # noqa: E731 - the velocity of the straight line, which is that of its chord
    torch.testing.assert_close(y(sf.flow_target, level), (line(0.9) - line(0.1)) / 0.8)


def test_v_is_the_velocity_on_the_circle():
    """alpha = cos φ, sigma = sin φ: v = dx/dφ, by autograd. Salimans & Ho (2022), appendix D."""
    x0, eps, phi = torch.tensor(0.7), torch.tensor(-1.3), torch.tensor(0.4, requires_grad=True)
    (velocity,) = torch.autograd.grad(phi.cos() * x0 + phi.sin() * eps, phi)
    level = sf.Level(phi.detach().cos(), phi.detach().sin())
    torch.testing.assert_close(sf.Prediction(x0, eps).v(level), velocity)


@every_scales
def test_the_score_target_is_the_gradient_of_the_marginal(scales):
    level = sf.Cosine(scales=scales).level(0.4)
    x0, eps = torch.randn(6), torch.randn(6)
    x_t = (level.alpha * x0 + level.sigma * eps).requires_grad_()
    (score,) = torch.autograd.grad(sf.process.marginal(x0, level).log_prob(x_t).sum(), x_t)
    a, b = sf.score_target(level)
    torch.testing.assert_close(a * x0 + b * eps, score)


@pytest.mark.parametrize("make", [sf.Prediction.solve, sf.Prediction.from_x0], ids=["solve", "from_x0"])
def test_the_variance_goes_along(make):
    level, x, fraction = sf.Level(torch.tensor(0.6), torch.tensor(0.8)), torch.randn(4), torch.rand(4)
    extra = (sf.eps_target,) if make == sf.Prediction.solve else ()
    assert make(x, x, level, *extra, fraction).variance_fraction is fraction


@pytest.mark.parametrize(("target", "alpha", "sigma"), [(sf.eps_target, 0.0, 1.0), (sf.score_target, 0.0, 1.0), (sf.x0_target, 1.0, 0.0)])
def test_a_target_that_says_nothing_at_an_end_is_refused(target, alpha, sigma):
    with pytest.raises(ValueError, match="take v_target"):
        sf.Prediction.solve(torch.ones(2), torch.ones(2), sf.Level(torch.tensor(alpha), torch.tensor(sigma)), target)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0)])
def test_v_is_exact_at_both_ends(alpha, sigma):
    x0, eps, level = torch.randn(5), torch.randn(5), sf.Level(torch.tensor(alpha), torch.tensor(sigma))
    p = sf.Prediction.solve(sf.Prediction(x0, eps).v(level), alpha * x0 + sigma * eps, level, sf.v_target)
    torch.testing.assert_close((p.x0, p.eps), (x0, eps))


def test_the_data_deviation_of_the_edm_target_goes_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        sf.edm_target(sf.Cosine().level(0.5), 0.7)
