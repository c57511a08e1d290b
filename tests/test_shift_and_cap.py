"""The flow-shift spacing, and the cap of dynamic thresholds."""

import numpy as np
import pytest
import torch
from problems import SCHEDULES

import sfumato as sf
from sfumato.tasks.options import SPACINGS


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(type(s).__name__))
@pytest.mark.parametrize("shift", [0.5, 3.0, 7.0])
def test_a_shift_multiplies_sigma_over_alpha(schedule, shift):
    """Wherever that is within the schedule's ends: the levels of shift 1, which are even in sigma / (alpha + sigma), times the shift."""
    ratios = lambda shift: [  # noqa: E731
        (level.sigma / level.alpha).item() for level in sf.grid(schedule, 12, spacing=sf.spacing.shifted(shift))
    ]
    plain = ratios(1.0)
    inner = plain[1:-2] if isinstance(schedule, sf.Discrete) else plain[1:-1]
    even = np.array([r / (1 + r) for r in plain[:-1]])
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0], rtol=1e-2)
    most = (-schedule.log_snr(torch.tensor(1.0)) / 2).exp().item()
    wanted = [min(shift * r, most) for r in inner]
    np.testing.assert_allclose(ratios(shift)[1 : 1 + len(inner)], wanted, rtol=2e-3)


def test_on_a_rectified_flow_it_is_the_shift_of_its_time():
    t = torch.linspace(1, 0, 9)
    schedule = sf.Flow()
    torch.testing.assert_close(sf.spacing.shifted(3.0)(schedule, 8), 3 * t / (1 + 2 * t), rtol=0, atol=1e-3)
    torch.testing.assert_close(sf.spacing.shifted(1.0)(schedule, 8), t, rtol=0, atol=1e-9)


def test_it_has_a_name_for_recipes_and_refuses_no_shift():
    assert SPACINGS["shifted"] == sf.spacing.shifted(3.0)
    with pytest.raises(ValueError, match="shift must be positive, got 0"):
        sf.spacing.shifted(0.0)


LEVEL = sf.Cosine().level(0.4)


@pytest.mark.parametrize("maximum", [1.0, 1.7, 100.0, None])
def test_dynamic_thresholds_have_a_cap(maximum):
    """Against numpy, on rows whose quantile is below 1, between, and far beyond; x_t is explained as before."""
    x0 = torch.randn(3, 2, 20) * torch.tensor([0.1, 1.0, 8.0])[:, None, None]
    x = LEVEL.alpha * x0 + LEVEL.sigma * torch.randn_like(x0)
    p = sf.guide.dynamic_clip(lambda x_t, level, cond=None: sf.Prediction.from_x0(x0, x_t, level), 0.9, maximum=maximum)(x, LEVEL)
    for row, ours in zip(x0.numpy(), p.x0.numpy(), strict=True):
        s = max(1.0, np.quantile(np.abs(row), 0.9))
        s = s if maximum is None else min(s, maximum)
        np.testing.assert_allclose(ours, np.clip(row, -s, s) / s, rtol=1e-12)
    torch.testing.assert_close(LEVEL.alpha * p.x0 + LEVEL.sigma * p.eps, x)


def test_a_cap_of_one_is_static_clipping():
    predict = lambda x_t, level, cond=None: sf.Prediction.from_x0(3 * x_t, x_t, level)  # noqa: E731
    x = torch.randn(4, 10)
    torch.testing.assert_close(sf.guide.dynamic_clip(predict, maximum=1.0)(x, LEVEL).x0, sf.guide.clip(predict)(x, LEVEL).x0)


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, .* got 0.5"):
        sf.guide.dynamic_clip(lambda x_t, level, cond=None: sf.Prediction(x_t, x_t), maximum=0.5)
