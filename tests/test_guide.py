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


LEVEL = sf.Level(torch.tensor(0.6), torch.tensor(0.8))


def with_variance(x_t, level, cond=None):
    """A predictor whose place of the variance names its condition."""
    labels = torch.full((len(x_t),), -1) if cond is None else cond["labels"]
    return sf.Prediction.from_x0(x_t.sin(), x_t, level, labels[:, None].to(x_t).expand_as(x_t))


def test_guidance_keeps_the_variance_of_the_conditional_branch():
    labels = torch.arange(3)
    p = sf.guide.classifier_free(with_variance, 2.0)(torch.randn(3, 2), LEVEL, {"labels": labels})
    torch.testing.assert_close(p.variance_fraction[:, 0], labels.double())


def test_clip_keeps_the_variance():
    x = torch.randn(3, 2)
    assert torch.equal(sf.guide.clip(with_variance)(x, LEVEL).variance_fraction, with_variance(x, LEVEL).variance_fraction)


def test_guidance_of_one_is_one_evaluation_and_needs_no_mark():
    rows = []

    def predict(x_t, level, cond=None):
        rows.append(len(x_t))
        return mixture(x_t, level)

    sf.guide.classifier_free(predict, 1.0)(torch.randn(3, 2), LEVEL, {"text": torch.randn(3, 4)})
    sf.guide.classifier_free(predict, 2.0)(torch.randn(3, 2), LEVEL, {"labels": torch.arange(3)})
    assert rows == [3, 6]


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.6), (-2.0, 0.1)])
def test_clip_has_both_its_bounds(low, high):
    x = 3 * torch.randn(200, 2)
    x0 = sf.guide.clip(mixture, low, high)(x, LEVEL).x0
    assert (x0.min().item(), x0.max().item()) == (low, high)


def test_an_interval_holds_its_ends():
    """log-SNR 0 exactly: alpha = sigma."""
    level, x, cond = sf.Level(torch.tensor(0.5), torch.tensor(0.5)), torch.randn(4, 2), {"labels": torch.zeros(4, dtype=torch.long)}
    strong = sf.guide.classifier_free(mixture, 3.0)
    for ends in ((0.0, 1.0), (-1.0, 0.0)):
        assert torch.equal(sf.guide.interval(strong, mixture, *ends)(x, level, cond).eps, strong(x, level, cond).eps)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5, 1)])
def test_guidance_takes_levels_of_every_shape(shape):
    x, cond = torch.randn(5, 2), {"labels": torch.arange(5) % 3}
    level = sf.Level(torch.full(shape, 0.6), torch.full(shape, 0.8))
    strong = sf.guide.classifier_free(mixture, 3.0)
    torch.testing.assert_close(strong(x, level, cond).eps, strong(x, LEVEL, cond).eps)
