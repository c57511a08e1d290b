"""Methods against closed forms: Gaussians and mixtures, of which the posterior given y is known."""

from itertools import pairwise

import pytest
import torch

import sfumato as sf
from sfumato import restoration
from sfumato.restoration import moments
from sfumato.restoration.observed import at_ratios, differentiable, geometric, ratio, spread_levels
from sfumato.restoration.smc import systematic
from sfumato.verify.ledger import standard_errors, worst

D, NOISE = 5, 0.3


def gaussian() -> sf.GaussianMixture:
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(D, D, generator=generator)
    return sf.Gaussian(torch.randn(D, generator=generator), a @ a.T / D + 0.05 * torch.eye(D))


def mixture() -> sf.GaussianMixture:
    means = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.5, -0.5], [0.0, -1.0, 0.0]])
    covariances = torch.stack([torch.diag(torch.tensor(v)) for v in ([0.1, 0.3, 0.05], [0.2, 0.1, 0.1], [0.05, 0.1, 0.4])])
    return sf.GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, covariances)


def hidden(oracle):
    """The same predictor without its closed-form covariance, as a network is."""
    return lambda x_t, level, cond=None: oracle(x_t, level, cond)


def problem(oracle, matrix):
    """y of one draw, and the operator."""
    generator = torch.Generator().manual_seed(5)
    x0 = oracle.sample(1, generator)[0]
    return x0 @ matrix.T + NOISE * torch.randn(1, len(matrix), generator=generator), restoration.Matrix(matrix)


H = torch.tensor([[1.0, 0.5, 0.0, -0.3, 0.2], [0.0, 2.0, 1.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.1, -1.0]], dtype=torch.float64)
LEVELS = {
    "vp": lambda steps: restoration.default_levels(steps),
    "ve": lambda steps: [sf.Level(torch.tensor(1.0), torch.tensor(a)) for a in (20.0, 2.0, 0.7, 0.2, 0.0)[: steps + 1]],
    "flow": lambda steps: sf.grid(sf.Flow(log_snr_max=10, log_snr_min=-6), steps),
}


def scores(x, posterior):
    """Standard errors of the mean and of the covariance of draws [n, d] from a Gaussian."""
    apart = x - posterior.mean
    outer = (apart[:, :, None] * apart[:, None]).flatten(1)
    return max(standard_errors(x, posterior.mean), standard_errors(outer, posterior.covariance.flatten()))


@pytest.mark.parametrize("scaling", ["vp", "ve"])
@pytest.mark.parametrize("renoise", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("is_hidden", [False, True])
def test_moment_matching_is_exact_for_a_gaussian_at_four_steps(scaling, renoise, is_hidden):
    oracle = gaussian()
    y, operator = problem(oracle, H)
    method = restoration.MomentMatching(renoise=renoise, iterations=D)
    predict = hidden(oracle) if is_hidden else oracle
    levels, generator = LEVELS[scaling](4), torch.Generator().manual_seed(1)
    x = sf.restore(predict, y, operator, NOISE, method=method, count=8000, levels=levels, generator=generator)
    assert scores(x[:, 0], oracle.given(H, y[0], NOISE)) < 4.5


@pytest.mark.parametrize("scales", [sf.vp_scales, sf.ve_scales, sf.flow_scales])
def test_the_covariance_is_the_jacobian_by_tweedie(scales):
    """Cov[x0 | x_t] = (sigma²/alpha) ∂x0_hat/∂x_t, the latter by automatic differentiation of the oracle."""
    oracle, x_t = mixture(), torch.randn(4, 3)
    for log_snr in (-3.0, 0.0, 4.0):
        level = sf.Level(*scales(torch.tensor(log_snr)))
        _, pull = differentiable(oracle, x_t, level)
        jacobian = torch.stack([pull(torch.eye(3)[i].expand(4, 3)) for i in range(3)], 1)
        torch.testing.assert_close(oracle.covariance_given(x_t, level), level.sigma**2 / level.alpha * jacobian)


def test_the_covariance_of_rows_at_levels_of_their_own():
    oracle, x_t = mixture(), torch.randn(4, 3)
    level = sf.Cosine().level(torch.linspace(0.1, 0.9, 4), like=x_t)
    each = [oracle.covariance_given(x_t[i : i + 1], sf.Level(level.alpha[i : i + 1], level.sigma[i : i + 1]))[0] for i in range(4)]
    torch.testing.assert_close(oracle.covariance_given(x_t, level), torch.stack(each))


def exact_mean(oracle, x_t, level, y):
    """E[x0 | x_t, y], by conditioning on both at once."""
    both = torch.cat([float(level.alpha) * torch.eye(D), H])
    noise = torch.cat([torch.full((D,), float(level.sigma)), torch.full((len(H),), NOISE)])
    return torch.stack([oracle.given(both, torch.cat([x, y]), noise).mean for x in x_t])


@pytest.mark.parametrize("log_snr", [-3.0, 0.0, 3.0])
def test_the_gain_gives_the_mean_given_both_for_any_gaussian(log_snr):
    oracle, level, x_t = gaussian(), sf.Level(*sf.vp_scales(torch.tensor(log_snr))), torch.randn(3, D)
    y, operator = problem(oracle, H)
    observed = restoration.observe(y.repeat(3, 1), operator, NOISE)
    x0 = oracle(x_t, level).x0
    _, pull = differentiable(oracle, x_t, level)
    scale = float(level.sigma) ** 2 / float(level.alpha)
    full = moments.Full(oracle.covariance_given(x_t, level), observed)
    krylov = moments.Krylov(lambda v: scale * pull(v), observed, 20)  # its conjugate gradients end at 1e-3
    for found, tolerance in ((full, 1e-6), (krylov, 2e-3)):
        assert worst(x0 + found.gain(observed.residual(x0)), exact_mean(oracle, x_t, level, y[0])) < tolerance


@pytest.mark.parametrize("log_snr", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_pigdm_gives_the_mean_given_both_for_isotropic_gaussians(log_snr, std):
    oracle = sf.Gaussian(torch.linspace(-1, 1, D), std**2)
    level, x_t = sf.Level(*sf.vp_scales(torch.tensor(log_snr))), torch.randn(3, D)
    y, operator = problem(oracle, H)
    guided = restoration.PiGDM(data_std=std).predictor(oracle, restoration.observe(y.repeat(3, 1), operator, NOISE))
    found = guided(x_t, level)
    assert worst(found.x0, exact_mean(oracle, x_t, level, y[0])) < 1e-9
    torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x_t)


def test_lanczoss_square_root_is_that_of_the_matrix():
    a = torch.randn(2, 6, 6)
    c = a @ a.mT
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.sqrt()[:, None] @ vectors.mT
    z = torch.randn(2, 6)
    found = moments.square_root(lambda v: (c @ v[..., None])[..., 0], z, 6)
    torch.testing.assert_close(found, (root @ z[..., None])[..., 0])


ONE = torch.tensor([0.7, -0.4, 0.2, 1.1], dtype=torch.float64)
SINGULAR = torch.tensor(
    [2.0, 0.5, 0.05], dtype=torch.float64
)  # y sees these with less, with less, and with more noise than the level; the last not at all


@pytest.mark.parametrize(
    "method", [restoration.DDRM(), restoration.DDRM(eta_b=0.6), restoration.DDNM(), restoration.RePaint(resamplings=3)]
)
def test_spectral_steps_keep_the_marginal_in_each_case(method):
    """q(x_s | x0) = N(alpha_s x0, sigma_s²) in every coordinate, where the predictor knows x0."""
    count, (t, s) = 40000, at_ratios([1.0, 0.8])[:2]
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(6)))[0]
    h = torch.diag(SINGULAR) @ rotation[:, :3].T
    generator = torch.Generator().manual_seed(7)
    y = ONE @ h.T + 0.2 * torch.randn(count, 3, generator=generator)
    x_t = t.alpha * ONE + t.sigma * torch.randn(count, 4, generator=generator)
    step = method.step(restoration.observe(y, restoration.Matrix(h), 0.2), None)
    x_s, _ = step(sf.EmpiricalDistribution(ONE[None]), x_t, t, s, None, generator)
    assert standard_errors(x_s, s.alpha * ONE) < 4.5
    assert standard_errors((x_s - s.alpha * ONE).square(), s.sigma.square()) < 4.5


def test_ddrm_begins_at_its_marginal_where_y_is_seen_well():
    h = torch.diag(torch.tensor([2.0, 0.5]))
    generator = torch.Generator().manual_seed(8)
    y = ONE[:2] @ h + 0.2 * torch.randn(20000, 2, generator=generator)
    level = at_ratios([3.0])[0]
    x = restoration.DDRM().begin(restoration.observe(y, restoration.Matrix(h), 0.2), torch.randn(20000, 2, generator=generator), level)
    assert standard_errors(x, level.alpha * ONE[:2]) < 4.5
    assert standard_errors((x - level.alpha * ONE[:2]).square(), level.sigma.square()) < 4.5


@pytest.mark.parametrize(
    "method", [restoration.DDRM(), restoration.DDNM(), restoration.RePaint(resamplings=2), restoration.MomentMatching()]
)
def test_without_noise_the_draws_give_y(method):
    oracle, matrix = gaussian(), H
    y = oracle.sample(3, torch.Generator().manual_seed(9))[0] @ matrix.T
    x = sf.restore(oracle, y, restoration.Matrix(matrix), 0.0, method=method, count=4, generator=torch.Generator().manual_seed(1))
    assert worst(x @ matrix.T, y.expand(4, 3, 3)) < 1e-6


def test_diffpir_minimises_its_objective():
    """Without fresh noise, x_s lies on the line from the minimiser through x_t."""
    oracle, level, s = gaussian(), *at_ratios([1.3, 0.6])[:2]
    y, operator = problem(oracle, H)
    x_t, method = torch.randn(2, D), restoration.DiffPIR(weight=3.0, zeta=0.0)
    x_s, _ = method.step(restoration.observe(y.repeat(2, 1), operator, NOISE), None)(oracle, x_t, level, s, None, None)
    share = s.sigma / level.sigma
    x = ((x_s - share * x_t) / (s.alpha - share * level.alpha)).requires_grad_()
    weight = 3.0 * NOISE**2 / ratio(level) ** 2
    objective = (y - x @ H.T).square().sum() + weight * (x - oracle(x_t, level).x0).square().sum()
    assert torch.autograd.grad(objective, x)[0].abs().max() < 1e-9


def test_dps_steps_down_the_gradient_of_the_residual():
    oracle, (t, s) = gaussian(), at_ratios([1.3, 0.6])[:2]
    y, operator = problem(oracle, H)
    x = torch.randn(2, D)
    draw = lambda zeta: restoration.DPS(zeta=zeta).step(restoration.observe(y.repeat(2, 1), operator, NOISE), None)(  # noqa: E731
        oracle, x, t, s, None, torch.Generator().manual_seed(2)
    )[0]
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad((y - oracle(leaf, t).x0 @ H.T).norm(dim=1).sum(), leaf)[0]
    torch.testing.assert_close(draw(1.0) - draw(2.0), gradient)  # variance preserving: at unit scale already


def test_a_round_of_split_gibbs_keeps_the_posterior():
    oracle = gaussian()
    y, operator = problem(oracle, H)
    posterior = oracle.given(H, y[0], NOISE)
    z = posterior.sample(6000, torch.Generator().manual_seed(3))[0]
    method = restoration.SplitGibbs(inner=60, tail=0)
    observed = restoration.observe(y.repeat(6000, 1), operator, NOISE)
    from sfumato.restoration.spectral import Spectrum

    generator = torch.Generator().manual_seed(4)
    rho = 0.12  # below noise_std over the largest singular value
    x = method.near(z, rho, Spectrum.of(observed), generator)
    with torch.no_grad():
        after = method.denoised(oracle, x, rho, None, generator)
    assert scores(after, posterior) < 4.5
    assert scores(x, posterior) > 6  # x itself is more spread


def test_split_gibbs_comes_to_the_posterior():
    oracle = gaussian()
    y, operator = problem(oracle, H)
    method = restoration.SplitGibbs(inner=16, tail=10)
    levels = at_ratios(geometric(5.0, 0.1, 12))
    x = sf.restore(oracle, y, operator, NOISE, method=method, count=1500, levels=levels, generator=torch.Generator().manual_seed(3))
    posterior = oracle.given(H, y[0], NOISE)
    assert worst(torch.cov(x[:, 0].T), posterior.covariance) < 0.2
    assert ((x[:, 0].mean(0) - posterior.mean) / posterior.covariance.diagonal().sqrt()).abs().max() < 0.3


def high(steps):
    """Levels from so much noise that x_T is plain noise."""
    return at_ratios(geometric(3000.0, 0.05, steps))


def test_particles_of_a_gaussian_have_one_weight_and_the_exact_evidence():
    oracle = gaussian()
    y, operator = problem(oracle, H)
    found = restoration.draw(
        oracle, y, operator, NOISE, method=restoration.TwistedSMC(particles=4000), count=4000, levels=high(4),
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert found.ess.min() > 3999
    assert abs(float(found.log_evidence) - float(oracle.observed(H, NOISE).log_prob(y))) < 0.01
    assert scores(found.x[:, 0], oracle.given(H, y[0], NOISE)) < 4.5


def test_the_estimate_of_the_evidence_is_unbiased():
    """E[Z] = p(y) with 16 particles, over 24 runs, on a mixture; the chain's levels are fine where the components part."""
    oracle, matrix = mixture(), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 1.0]])
    y, operator = problem(oracle, matrix)
    levels = at_ratios([*geometric(3000.0, 5.0, 5), *geometric(3.0, 0.1, 40)])
    method, generator = restoration.TwistedSMC(particles=16, threshold=0.9), torch.Generator().manual_seed(2)
    found = restoration.draw(oracle, y.repeat(24, 1), operator, NOISE, method=method, count=1, levels=levels, generator=generator)
    relative = (found.log_evidence - oracle.observed(matrix, NOISE).log_prob(y)).exp()
    assert 0.01 < relative.std() < 1
    assert standard_errors(relative, 1.0) < 4


def test_particles_without_a_covariance_have_the_exact_evidence_of_an_isotropic_gaussian():
    oracle = sf.Gaussian(torch.linspace(-1, 1, D), 0.49)
    y, operator = problem(oracle, H)
    method, generator = restoration.TwistedSMC(particles=4000, batch=1000), torch.Generator().manual_seed(1)
    found = restoration.draw(hidden(oracle), y, operator, NOISE, method=method, count=4000, levels=high(5), generator=generator)
    assert abs(float(found.log_evidence) - float(oracle.observed(H, NOISE).log_prob(y))) < 0.05
    assert scores(found.x[:, 0], oracle.given(H, y[0], NOISE)) < 4.5


def test_particles_come_to_the_posterior_of_a_mixture():
    oracle, matrix = mixture(), torch.tensor([[1.0, 1.0, 0.0]])
    y, operator = torch.tensor([[0.2]]), restoration.Matrix(matrix)
    posterior = oracle.given(matrix, y[0], 0.5)
    method, generator = restoration.TwistedSMC(particles=1500), torch.Generator().manual_seed(3)
    x = sf.restore(oracle, y, operator, 0.5, method=method, count=1500, levels=high(40), generator=generator)[:, 0]
    share = posterior.log_class(x, sf.Level(torch.tensor(1.0), torch.tensor(1e-6))).exp().mean(0)
    assert (share - posterior.weights).abs().max() < 0.03
    assert ((x.mean(0) - posterior.mean) / posterior.covariance.diagonal().sqrt()).abs().max() < 0.06


def test_systematic_resampling_counts_each_row_by_its_share():
    share = torch.tensor([0.1, 0.25, 0.0, 0.65])
    rows = systematic(share, 20, torch.Generator().manual_seed(0))
    assert rows.bincount(minlength=4).tolist() == [2, 5, 0, 13]


@pytest.mark.parametrize("method", [restoration.MomentMatching(), restoration.MomentMatching(renoise=0.0)])
def test_a_posterior_draw_is_as_far_from_the_truth_as_another(method):
    """E|x - x_true|² = 2 MMSE, over 6,000 true x and their y."""
    oracle, generator = gaussian(), torch.Generator().manual_seed(6)
    truth = oracle.sample(6000, generator)[0]
    y = truth @ H.T + NOISE * torch.randn(6000, 3, generator=generator)
    x = sf.restore(
        oracle, y, restoration.Matrix(H), NOISE, method=method, count=1, levels=restoration.default_levels(5), generator=generator
    )
    mmse = oracle.given(H, y[0], NOISE).covariance.trace()
    assert standard_errors((x[0] - truth).square().sum(1), 2 * mmse) < 4


def test_the_noise_is_found_where_the_evidence_is_largest():
    generator = torch.Generator().manual_seed(7)
    oracle = sf.Gaussian(torch.zeros(48), torch.linspace(0.02, 1.5, 48))
    truth = oracle.sample(1, generator)[0]
    y = truth + 0.25 * torch.randn(1, 48, generator=generator)
    observed = restoration.observe(y, restoration.Identity(), 1.0)
    found = restoration.estimate_noise(oracle, observed, method=restoration.MomentMatching(), generator=generator)
    evidence = lambda std: float(oracle.observed(torch.eye(48), float(std)).log_prob(y))  # noqa: E731
    most = max(evidence(std) for std in torch.logspace(-2, 0.3, 200))
    assert evidence(found) > most - 0.25  # nats: less than y can tell
    assert evidence(1.6 * found) < most - 0.5


def test_spread_levels_fall_from_80_to_the_data():
    ratios = [ratio(level) for level in spread_levels(12)]
    assert ratios[0] == pytest.approx(80)
    assert ratios[-2:] == [pytest.approx(0.02), 0]
    assert all(a > b for a, b in pairwise(ratios))
