import pytest
import torch
from problems import every_scales, mixture

import sfumato as sf


@every_scales
def test_classifier_free_is_the_tilted_score(scales):
    """∇ log p(x_t) + γ ∇ log p(y | x_t), by autograd of the exact noisy classifier."""
    x = torch.randn(64, 2, requires_grad=True)
    level = sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0).level(torch.rand(64), like=x)
    labels = torch.randint(0, 3, (64,))
    log_class = mixture.log_class(x, level).gather(1, labels[:, None]).sum()
    (class_score,) = torch.autograd.grad(log_class, x)
    x = x.detach()
    guided = sf.guide.classifier_free(mixture, 2.5)(x, level, {"labels": labels})
    torch.testing.assert_close(guided.score(level), mixture(x, level).score(level) + 2.5 * class_score, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_of_zero_and_one_are_the_two_branches(scale):
    x, level, cond = torch.randn(8, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8)), {"labels": torch.arange(8) % 3}
    wanted = mixture(x, level, cond if scale else None)
    torch.testing.assert_close(sf.guide.classifier_free(mixture, scale)(x, level, cond).eps, wanted.eps)


def test_without_a_condition_guidance_does_nothing():
    x, level = torch.randn(8, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    torch.testing.assert_close(sf.guide.classifier_free(mixture, 3.0)(x, level).eps, mixture(x, level).eps)


def test_clip_bounds_x0_and_still_explains_x_t():
    x, level = 3 * torch.randn(64, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    p = sf.guide.clip(mixture)(x, level)
    assert p.x0.abs().max() <= 1
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x)
    inside = mixture(x, level).x0.abs().amax(1) <= 1
    torch.testing.assert_close(p.eps[inside], mixture(x, level).eps[inside])


@pytest.mark.parametrize(("t", "inside"), [(0.05, False), (0.5, True), (0.98, False)])
def test_interval_guides_only_between_its_levels(t, inside):
    x, level, cond = torch.randn(8, 2), sf.Cosine().level(t), {"labels": torch.zeros(8, dtype=torch.long)}
    strong = sf.guide.classifier_free(mixture, 3.0)
    p = sf.guide.interval(strong, mixture, -4.0, 4.0)(x, level, cond)
    torch.testing.assert_close(p.eps, (strong if inside else mixture)(x, level, cond).eps)


def test_interval_refuses_rows_at_different_levels():
    level = sf.Cosine().level(torch.rand(4), like=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="all rows at one level"):
        sf.guide.interval(mixture, mixture, -1.0, 1.0)(torch.zeros(4, 2), level)


def test_float_conditions_cannot_be_dropped():
    with pytest.raises(ValueError, match='"text" is torch.float64'):
        sf.guide.classifier_free(mixture, 2.0)(
            torch.zeros(1, 2), sf.Level(torch.tensor(1.0), torch.tensor(1.0)), {"text": torch.zeros(1, 4)}
        )
