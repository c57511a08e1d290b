import math

import pytest
import torch
from problems import every_scales, every_target

import sfumato as sf


class Spy(torch.nn.Module):
    """Keeps what it was called with; returns `answer` of its input."""

    def __init__(self, answer=lambda x: x):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, x, log_snr, cond):
        self.calls.append((x, log_snr, cond))
        return self.answer(x)


@every_scales
@pytest.mark.parametrize("data_std", [0.25, 1.0, 3.0])
def test_the_network_sees_unit_scale(scales, data_std):
    """x0 and eps with no correlation and these exact deviations: the mean square of what goes in is 1 at every level."""
    x0, eps = data_std * torch.tensor([[1.0, -1, 1, -1]]), torch.tensor([[1.0, 1, -1, -1]])
    for t in (0.0, 0.3, 0.8, 1.0):
        level, net = sf.Cosine(scales=scales).level(t), Spy()
        sf.Denoiser(net, data_std=data_std)(level.alpha * x0 + level.sigma * eps, level)
        torch.testing.assert_close(net.calls[0][0].square().mean(), torch.tensor(1.0))


def test_the_network_sees_the_log_snr_of_each_row():
    schedule, x, net = sf.Cosine(), torch.randn(3, 2), Spy()
    t = torch.tensor([0.1, 0.5, 0.9])
    denoiser = sf.Denoiser(net)
    denoiser(x, schedule.level(t, like=x))
    denoiser(x, schedule.level(0.2))
    torch.testing.assert_close(net.calls[0][1], schedule.log_snr(t))
    torch.testing.assert_close(net.calls[1][1], schedule.log_snr(torch.full((3,), 0.2)))


def test_the_network_sees_the_condition():
    net, cond = Spy(), {"labels": torch.arange(3)}
    sf.Denoiser(net)(torch.randn(3, 2), sf.Cosine().level(0.5), cond)
    seen = net.calls[0][2]["labels"]
    assert torch.equal(seen.value, cond["labels"])
    assert seen.given.all()
    sf.Denoiser(net)(torch.randn(3, 2), sf.Cosine().level(0.5), {"labels": seen})
    assert net.calls[1][2]["labels"] is seen


@every_target
@every_scales
def test_any_answer_explains_x_t(target, scales):
    x, level = torch.randn(4, 3), sf.Cosine(scales=scales).level(torch.rand(4), like=torch.zeros(4, 3))
    p = sf.Denoiser(Spy(torch.sin), target, data_std=0.3)(x, level)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x, rtol=1e-6, atol=1e-6)


def test_a_learned_variance_is_the_second_half_of_the_channels():
    """-1 is β̃ (0), +1 is β (1); the first half is the target's."""
    low, mid, high = (torch.full((2, 1, 4), v) for v in (-1.0, 0.0, 1.0))
    x, level = torch.randn(2, 3, 4), sf.Cosine().level(0.5)
    eps = torch.randn(2, 3, 4)
    p = sf.Denoiser(Spy(lambda _: torch.cat([eps, low, mid, high], dim=1)), variance="learned")(x, level)
    torch.testing.assert_close(p.eps, eps)
    torch.testing.assert_close(p.variance_fraction, torch.tensor([0.0, 0.5, 1.0])[:, None].expand(2, 3, 4))


def test_a_learned_variance_reaches_the_step():
    """A network that says +1 everywhere makes Ancestral("learned") the same as "large", -1 the same as "small"."""
    levels, x = sf.grid(sf.Discrete.linear(100), 5), torch.randn(6, 2, 3)
    for said, variance in ((1.0, "large"), (-1.0, "small")):
        answer = lambda x, said=said: torch.cat([x.sin(), torch.full_like(x, said)], dim=1)  # noqa: E731
        denoiser = sf.Denoiser(Spy(answer), variance="learned")
        one, two = (
            sf.sample(denoiser, x, levels, sf.steps.Ancestral(kind), generator=torch.Generator().manual_seed(0))
            for kind in ("learned", variance)
        )
        torch.testing.assert_close(one, two)


def test_the_v_of_a_zero_network_has_unit_loss():
    """E v² = 1 for unit data; a network that says 0 is off by v itself."""
    x0, eps = torch.tensor([[1.0, -1, 1, -1]]), torch.tensor([[1.0, 1, -1, -1]])
    denoiser = sf.Denoiser(Spy(torch.zeros_like), sf.v_target)
    for t in (0.0, 0.4, 1.0):
        value = sf.loss.simple(denoiser, x0, eps, sf.Cosine().level(t), weight=sf.loss.v_weight).item()
        assert math.isclose(value, 1.0, rel_tol=1e-9)


def test_a_level_for_each_row_must_have_trailing_axes():
    x = torch.randn(2, 2)
    with pytest.raises(ValueError, match="like=x_t"):
        sf.Denoiser(Spy())(x, sf.Cosine().level(torch.tensor([0.1, 0.9])))


@pytest.mark.parametrize("data_std", [0.25, 1.0])
def test_edm_target_and_input_scale_share_the_deviation(data_std):
    """With a zero network, EDM's x0 is c_skip x_t: the best linear guess for data of this deviation."""
    x, level = torch.randn(4, 3), sf.Level(torch.tensor(1.0), torch.tensor(0.7))
    p = sf.Denoiser(Spy(torch.zeros_like), sf.edm_target, data_std=data_std)(x, level)
    torch.testing.assert_close(p.x0, data_std**2 / (data_std**2 + 0.49) * x)
