"""Variational diffusion: its bound in continuous time and in T steps, and a schedule that is taught to make it steadier."""

import math

import pytest
import torch

import sfumato as sf
from sfumato import latent, loss
from sfumato.latent import vdm

NATS = math.log(2)
ORACLE = sf.GaussianMixture(
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[0.4, 0.1], [-0.3, -0.2]], dtype=torch.float64),
    torch.stack([0.02 * torch.eye(2, dtype=torch.float64), 0.05 * torch.eye(2, dtype=torch.float64)]),
)


def bent(seed=1, **ends):
    """A learned schedule with bends, as training leaves it."""
    schedule = sf.LearnedSchedule(**ends)
    with torch.no_grad():
        schedule.outward += 9 + torch.randn(len(schedule.outward), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return schedule


def grid_points(n, width=2 / 255):
    x = ORACLE.sample(n, torch.Generator().manual_seed(77))[0].clamp(-1, 1)
    return ((x + 1) / width).round() * width - 1


def quadrature(schedule, x0, count=4000, seed=0):
    """The continuous term at `count` evenly spread times, each with noise of its own."""
    t = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    rows = x0[torch.arange(count) % len(x0)]
    return loss.vdm(ORACLE, rows, torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)), t, schedule).detach()


def test_the_bound_depends_on_the_ends_alone():
    """Two curves between the same ends, in standard errors; other ends give another bound."""
    x0 = grid_points(500)
    straight, curved = (quadrature(s, x0, 40_000) for s in (sf.LearnedSchedule(), bent()))
    error = math.hypot(*(float(v.std()) / math.sqrt(len(v)) for v in (straight, curved)))
    assert (straight.mean() - curved.mean()).abs() < 4 * error
    assert quadrature(sf.LearnedSchedule(log_snr_max=8.0), x0, 40_000).mean() < straight.mean() - 10 * error


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "make", [lambda: sf.LearnedSchedule(log_snr_max=12.0, log_snr_min=-6.0), lambda: bent(log_snr_max=12.0, log_snr_min=-6.0)]
)
def test_a_taught_schedule_lowers_the_variance_and_leaves_the_bound(make):
    """Only the curve moves; the bound's mean stays within its errors, its variance over times and noise falls."""
    x0, schedule = grid_points(500), make()
    curve = [schedule.slope, schedule.inward, schedule.bias, schedule.outward]
    before = quadrature(schedule, x0, 40_000)
    optimizer, generator = torch.optim.Adam(curve, lr=0.03), torch.Generator().manual_seed(0)
    times = loss.Stratified(schedule)
    for _ in range(250):
        eps, t = torch.randn(x0.shape, generator=generator), times(len(x0), generator)
        value = vdm.diffusion_bits(ORACLE, x0, eps, t, schedule).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    after = quadrature(schedule, x0, 40_000, seed=1)
    error = math.hypot(*(float(v.std()) / math.sqrt(len(v)) for v in (before, after)))
    assert (after.mean() - before.mean()).abs() < 4 * error
    assert after.var() < 0.8 * before.var()
    assert schedule.log_snr_max.item() == 12.0


def test_the_curve_gets_the_gradient_of_the_square_and_the_rest_that_of_the_loss():
    """Against two plain backward passes through `loss.vdm`."""
    schedule, x0 = bent(), grid_points(64)
    scale = torch.nn.Parameter(torch.tensor(0.9))

    def predict(x_t, level, cond=None):
        p = ORACLE(x_t, level)
        return sf.Prediction(p.x0, scale * p.eps)

    eps, t = torch.randn(x0.shape), torch.rand(64)
    curve, ends = [schedule.slope, schedule.inward, schedule.bias, schedule.outward], [schedule.log_snr_max, schedule.span, scale]
    value = vdm.diffusion_bits(predict, x0, eps, t, schedule)
    plain = loss.vdm(predict, x0, eps, t, schedule)
    torch.testing.assert_close(value, plain)
    ours = torch.autograd.grad(value.mean(), [*curve, *ends])
    squared = torch.autograd.grad(plain.square().mean(), curve, retain_graph=True)
    straight = torch.autograd.grad(plain.mean(), ends)
    for mine, theirs in zip(ours, [*squared, *straight], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_frozen_schedule_needs_no_gradient():
    schedule = bent().requires_grad_(False)
    x0 = grid_points(8)
    vdm.diffusion_bits(ORACLE, x0, torch.randn(x0.shape), torch.rand(8), schedule)


@pytest.mark.parametrize("width", [2 / 255, 2 / 16])
@pytest.mark.parametrize("log_snr", [14.0, 6.0, -3.0])
def test_the_decoder_is_the_posterior_over_the_grid(width, log_snr):
    """Against the sum over every value, at levels where it is one value, many, and nearly all."""
    x0, level = grid_points(40, width), sf.Level(*sf.vp_scales(torch.tensor(log_snr, dtype=torch.float64)))
    z = level.alpha * x0 + level.sigma * torch.randn(x0.shape)
    values = torch.arange(round(2 / width) + 1, dtype=torch.float64) * width - 1
    scores = -0.5 * ((z[..., None] - level.alpha * values) / level.sigma).square()
    index = ((x0 + 1) / width).round().long()
    truth = -scores.log_softmax(-1).gather(-1, index[..., None])[..., 0].mean(1) / NATS
    torch.testing.assert_close(vdm.decoder_bits(x0, z, level, bin_width=width), truth, rtol=1e-9, atol=1e-12)


def test_the_bounds_of_more_steps_fall_to_the_continuous_one():
    x0 = grid_points(3000)
    schedule = sf.LearnedSchedule(log_snr_max=12.0, log_snr_min=-6.0)

    def of(steps, seed=0):
        return vdm.bound(
            ORACLE,
            x0,
            schedule,
            steps=steps,
            draws=16,
            generator=torch.Generator().manual_seed(seed),
            times=torch.Generator().manual_seed(seed + 100),
        )

    bits = [float(of(steps).total.mean()) for steps in (8, 32, 128)]
    endless = of(None, seed=1)
    assert bits[0] > bits[1] > bits[2] > float(endless.total.mean())
    many = of(4096, seed=2)
    assert (many.total.mean() - endless.total.mean()).abs() < 4 * math.hypot(many.standard_error, endless.standard_error) + 0.02


def test_the_continuous_bound_of_the_exact_model_is_its_evidence():
    """With the exact predictor of the data the bound is tight but for the decoder, whose posterior over a fine grid is exact, too."""
    width = 2 / 1023
    x0 = grid_points(4000, width)
    schedule = sf.LearnedSchedule(log_snr_max=11.0, log_snr_min=-9.0)
    bound = vdm.bound(
        ORACLE,
        x0,
        schedule,
        draws=64,
        bin_width=width,
        generator=torch.Generator().manual_seed(20),
        times=torch.Generator().manual_seed(1020),
    )
    apart = bound.total + (ORACLE.log_prob(x0) + 2 * math.log(width)) / (2 * NATS)
    assert apart.mean().abs() < 4 * apart.std() / math.sqrt(len(apart))
    assert apart.std() / math.sqrt(len(apart)) < 0.025


def test_a_chain_and_no_draws_are_refused():
    with pytest.raises(ValueError, match="for a chain use likelihood.vlb"):
        vdm.bound(ORACLE, grid_points(4), sf.Discrete.linear(20))
    with pytest.raises(ValueError, match="draws and steps must be at least 1"):
        vdm.bound(ORACLE, grid_points(4), sf.Cosine(), draws=0)
    with pytest.raises(ValueError, match=r"this bound is for data in \[-1, 1\], got"):
        vdm.bound(ORACLE, 2 * grid_points(4), sf.Cosine())


@pytest.mark.usefixtures("unchecked")
def test_the_whole_loss_teaches_the_ends():
    """From ends that are far off, the bound itself moves them to where prior and decoder cost next to nothing."""
    torch.manual_seed(0)
    schedule = sf.LearnedSchedule(log_snr_max=2.0, log_snr_min=0.0)

    class Known(torch.nn.Module):
        def forward(self, x, log_snr, cond=None):
            alpha, sigma = sf.vp_scales(log_snr[:, None])
            level = sf.Level(alpha, sigma)
            return ORACLE(x * torch.hypot(alpha, sigma), level).eps

    model, x0 = latent.VDM(sf.Denoiser(Known()), schedule, bin_width=2 / 16), grid_points(200, 2 / 16)
    ends = [schedule.log_snr_max, schedule.span]
    optimizer, generator = torch.optim.Adam(ends, lr=0.1), torch.Generator().manual_seed(0)
    before = vdm.bound(model.denoiser, x0, schedule, draws=32, bin_width=2 / 16).total.mean()
    for _ in range(100):
        eps = torch.randn(x0.shape, generator=generator)
        value = model.loss(x0, eps, loss.Stratified(schedule)(len(x0), generator)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    after = vdm.bound(model.denoiser, x0, schedule, draws=32, bin_width=2 / 16)
    assert after.total.mean() < before - 0.1
    assert schedule.log_snr_max.item() > 5
    assert schedule.log_snr_min.item() < -3
