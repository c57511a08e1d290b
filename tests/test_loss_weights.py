"""Weights of losses: what an error of one in x0, in eps or in a network's output costs, found by making that error.

None of the formulas of `loss` stands here: the claims are values at known log-SNRs, limits, symmetries, and that one loss is another.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from problems import every_scales
from torch import Tensor

import sfumato as sf

LOG_SNR = torch.linspace(-14.0, 14.0, 57, dtype=torch.float64)  # with 0, and steps of half a nat
X0, EPS = torch.full((57, 1), 0.3, dtype=torch.float64), torch.full((57, 1), -1.1, dtype=torch.float64)


def levels(scales: Callable[[Tensor], tuple[Tensor, Tensor]], log_snr: Tensor = LOG_SNR) -> sf.Level:
    return sf.Level(*(scale[:, None] for scale in scales(log_snr)))


def cost(weight: sf.loss.Weight, level: sf.Level, *, x0: float = 0.0, eps: float = 0.0) -> Tensor:
    """The loss of a prediction that is off by this much in x0, or in eps, with the other that follows from x_t."""
    rows = len(level.alpha)
    true_x0, true_eps = X0[:1].expand(rows, 1), EPS[:1].expand(rows, 1)
    x_t = level.alpha * true_x0 + level.sigma * true_eps
    if eps:
        wrong = sf.Prediction((x_t - level.sigma * (true_eps + eps)) / level.alpha, true_eps + eps)
    else:
        wrong = sf.Prediction(true_x0 + x0, (x_t - level.alpha * (true_x0 + x0)) / level.sigma)
    return sf.loss.simple(lambda *_: wrong, true_x0, true_eps, level, weight=weight)


def at(weight: sf.loss.Weight, log_snr: float, **off: float) -> float:
    return cost(weight, levels(sf.vp_scales, torch.tensor([log_snr])), **off).item()


def close(a: Tensor, b: Tensor | float) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), rtol=1e-7, atol=1e-12)


ALL = {
    "eps": sf.loss.eps_weight,
    "x0": sf.loss.x0_weight,
    "v": sf.loss.v_weight,
    "min-snr": sf.loss.min_snr_weight,
    "truncated-snr": sf.loss.truncated_snr_weight,
    "edm": sf.loss.edm_weight,
    "sigmoid": sf.loss.sigmoid_weight,
}


@pytest.mark.parametrize("name", ALL)
def test_a_weight_is_a_function_of_log_snr_alone(name):
    """Errors of x0 cost the same whatever the scaling of x_t; and errors of eps cost them SNR times less."""
    vp = levels(sf.vp_scales)
    for scales in (sf.ve_scales, sf.flow_scales, sf.sub_vp_scales):
        close(cost(ALL[name], levels(scales), x0=1.0), cost(ALL[name], vp, x0=1.0))
    close(cost(ALL[name], vp, eps=1.0) * LOG_SNR.exp(), cost(ALL[name], vp, x0=1.0))


@every_scales
def test_an_error_of_eps_costs_its_square_by_the_weight_of_eps(scales):
    """Ho et al. (2020), eq. 14."""
    close(cost(sf.loss.eps_weight, levels(scales), eps=0.5), 0.25)


@every_scales
def test_an_error_of_x0_costs_its_square_by_the_weight_of_x0(scales):
    close(cost(sf.loss.x0_weight, levels(scales), x0=0.5), 0.25)


@pytest.mark.parametrize("degrees", [10.0, 30.0, 45.0, 80.0])
def test_the_weight_of_v_is_that_of_a_turn(degrees):
    """On the circle (alpha, sigma) = (cos φ, sin φ) v is dx_t/dφ: its error is that of a derivative, by differences of the two paths."""
    phi, h = math.radians(degrees), 1e-6
    x0, eps, off = 0.3, -1.1, 0.7  # the other path starts at x0 + off and meets the first at φ
    other_eps = (math.cos(phi) * x0 + math.sin(phi) * eps - math.cos(phi) * (x0 + off)) / math.sin(phi)
    path = lambda a, b, angle: math.cos(angle) * a + math.sin(angle) * b  # noqa: E731
    slope = [(path(a, b, phi + h) - path(a, b, phi - h)) / (2 * h) for a, b in ((x0, eps), (x0 + off, other_eps))]
    log_snr = -2 * math.log(math.tan(phi))
    assert at(sf.loss.v_weight, log_snr, x0=off) == pytest.approx((slope[0] - slope[1]) ** 2, rel=1e-6)


GAMMAS = [1.0, 5.0, 20.0]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_min_snr_is_the_loss_of_eps_below_gamma_and_gamma_times_that_of_x0_above(gamma):
    """Hang et al. (2023), eqs. 4 and 5: the smaller of the two everywhere, which meet where the SNR is gamma."""
    weight = partial(sf.loss.min_snr_weight, gamma=gamma)
    level = levels(sf.vp_scales)
    of_eps, of_x0 = cost(sf.loss.eps_weight, level, x0=1.0), gamma * cost(sf.loss.x0_weight, level, x0=1.0)
    close(cost(weight, level, x0=1.0), torch.minimum(of_eps, of_x0))
    assert at(weight, math.log(gamma), x0=1.0) == pytest.approx(gamma)
    assert at(weight, math.log(gamma), eps=1.0) == pytest.approx(1.0)
    assert at(weight, math.log(4 * gamma), eps=1.0) == pytest.approx(0.25)  # a clipped SNR on x0 is gamma/SNR on eps
    assert at(weight, math.log(gamma / 4), x0=1.0) == pytest.approx(gamma / 4)


def test_min_snr_without_a_limit_is_the_loss_of_eps():
    level = levels(sf.flow_scales)
    close(cost(partial(sf.loss.min_snr_weight, gamma=1e9), level, x0=1.0), cost(sf.loss.eps_weight, level, x0=1.0))


def test_the_published_gamma_is_five():
    """Hang et al. (2023), section 4: γ = 5. No error of x0 costs more than five times its square."""
    close(cost(sf.loss.min_snr_weight, levels(sf.vp_scales), x0=1.0).max(), 5.0)


@every_scales
def test_truncated_snr_is_the_larger_of_the_losses_of_x0_and_eps(scales):
    """As its authors write it: max(|x0_hat - x0|², |eps_hat - eps|²). Salimans & Ho (2022), section 4."""
    level = levels(scales)
    both = [cost(weight, level, x0=0.7) for weight in (sf.loss.x0_weight, sf.loss.eps_weight)]
    close(cost(sf.loss.truncated_snr_weight, level, x0=0.7), torch.maximum(*both))


def test_truncated_snr_is_the_same_from_both_ends():
    """x0 and eps change places when the log-SNR changes its sign; it is least, half the error of v, in the middle."""
    level = levels(sf.vp_scales)
    close(cost(sf.loss.truncated_snr_weight, level, x0=1.0), cost(sf.loss.truncated_snr_weight, level, eps=1.0).flip(0))
    weight = sf.loss.truncated_snr_weight(level)[:, 0]
    assert weight.argmin() == 28
    close(weight[28], 0.5)
    assert weight[0] > 0.99 < weight[-1]


@every_scales
@pytest.mark.parametrize("data_std", [0.2, 0.5, 1.7])
def test_an_error_of_edms_network_costs_its_square(scales, data_std):
    """λ(σ) is chosen so that the network's output has weight one at every level. Karras et al. (2022), eq. 8."""
    level = levels(scales)

    class Off(torch.nn.Module):
        """Says what is right for x0 = 0.3 and eps = -1.1, and something more."""

        def __init__(self, more: float) -> None:
            super().__init__()
            self.more = more

        def forward(self, x, log_snr, cond):
            return wanted + self.more

    sigma = level.sigma / level.alpha  # on y = x0 + σ eps, c_out F = x0 - c_skip y: the paper's table 1
    y, total = X0 + sigma * EPS, (sigma**2 + data_std**2).sqrt()
    wanted = (X0 - data_std**2 / total**2 * y) / (sigma * data_std / total)
    exact, off = (sf.Denoiser(Off(more), sf.edm_target, data_std=data_std) for more in (0.0, 0.5))
    weight = partial(sf.loss.edm_weight, data_std=data_std)
    close(sf.loss.simple(exact, X0, EPS, level, weight=weight), 0.0)
    close(sf.loss.simple(off, X0, EPS, level, weight=weight), 0.25)


def test_the_weight_of_edm_at_both_ends_and_at_the_datas_deviation():
    """On x0, with their σ_data = 0.5: 1/σ² at the clean end, 1/σ_data² = 4 at the noisy one, and 8 where σ = σ_data."""
    assert at(sf.loss.edm_weight, 2 * math.log(1 / 0.5), x0=1.0) == pytest.approx(8.0)
    assert at(sf.loss.edm_weight, 14.0, x0=1.0) == pytest.approx(math.exp(14.0), rel=1e-5)
    assert at(sf.loss.edm_weight, -14.0, x0=1.0) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 1.0, 2.0])
def test_the_sigmoid_weight_goes_from_the_loss_of_eps_to_a_multiple_of_that_of_x0(bias):
    """Errors of eps cost their square where there is noise and half of it at log-SNR = bias; errors of x0 at most exp(bias).

    Hoogeboom et al. (2024), section 3.1, give the last for x0: exp(bias) times a sigmoid that ends at one.
    """
    weight = partial(sf.loss.sigmoid_weight, bias=bias)
    assert at(weight, bias - 16.0, eps=1.0) == pytest.approx(1.0, rel=1e-6)
    assert at(weight, bias, eps=1.0) == pytest.approx(0.5)
    assert at(weight, bias + 16.0, x0=1.0) == pytest.approx(math.exp(bias), rel=1e-6)


@pytest.mark.parametrize("bias", [-3.0, 1.0])
def test_the_sigmoid_weight_is_min_snr_without_its_corner(bias):
    """With gamma = exp(bias): half of it at the corner, never more, and alike eight nats to either side."""
    level = levels(sf.vp_scales, torch.linspace(-12.0, 14.0, 53))
    soft = cost(partial(sf.loss.sigmoid_weight, bias=bias), level, x0=1.0)
    hard = cost(partial(sf.loss.min_snr_weight, gamma=math.exp(bias)), level, x0=1.0)
    ratio, away = soft / hard, (torch.linspace(-12.0, 14.0, 53) - bias).abs()
    close(ratio[away == 0], 0.5)
    assert (ratio < 1).all()
    assert (ratio[away >= 8] > 0.999).all()
    close(ratio[away == 2], ratio[away == 2].mean())  # the same on both sides


def test_the_published_bias_is_one():
    """Hoogeboom et al. (2024), section 3.1, for 32 × 32 latents: half weight on eps at a log-SNR of 1."""
    assert at(sf.loss.sigmoid_weight, 1.0, eps=1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "weight"), [("min-snr", sf.loss.min_snr_weight), ("truncated-snr", sf.loss.truncated_snr_weight)])
def test_a_recipes_weight_is_the_function_of_its_name(name, weight):
    level = levels(sf.vp_scales)
    objective = sf.tasks.diffusion.Objective(weight=name)
    torch.testing.assert_close(objective.build_weight(0.7)(level), weight(level), rtol=0, atol=0)
