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
