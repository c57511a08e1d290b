"""The oracle is held against what it does not use: autograd of its density, torch.distributions, and quadrature."""

import pytest
import torch
from problems import every_scales, mixture

import sfumato as sf


@every_scales
def test_eps_is_the_scaled_score(scales):
    x = torch.randn(64, 2, requires_grad=True)
    level = sf.Cosine(scales=scales).level(torch.rand(64), like=x)
    (score,) = torch.autograd.grad(mixture.log_prob(x, level).sum(), x)
    torch.testing.assert_close(mixture(x, level).score(level), score, rtol=1e-6, atol=1e-8)


@every_scales
def test_x0_is_tweedies_formula(scales):
    """E[x0 | x_t] = (x_t + sigma² ∇ log p(x_t)) / alpha."""
    x = torch.randn(64, 2, requires_grad=True)
    level = sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0).level(torch.rand(64), like=x)
    (score,) = torch.autograd.grad(mixture.log_prob(x, level).sum(), x)
    torch.testing.assert_close(mixture(x, level).x0, (x + level.sigma**2 * score).detach() / level.alpha)


def test_density_against_torch_distributions():
    x, level = torch.randn(100, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    covariances = mixture.axes @ torch.diag_embed(mixture.variances) @ mixture.axes.mT
    noised = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(mixture.weights),
        torch.distributions.MultivariateNormal(0.6 * mixture.means, 0.36 * covariances + 0.64 * torch.eye(2)),
    )
    torch.testing.assert_close(mixture.log_prob(x, level), noised.log_prob(x))


def test_posterior_mean_by_quadrature():
    """One dimension: E[x0 | x_t] as a ratio of two integrals over a fine grid."""
    line = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.2]], [[0.5]]]))
    level, x_t, x0 = sf.Level(torch.tensor(0.8), torch.tensor(0.6)), torch.tensor([[0.7]]), torch.linspace(-8, 8, 200_001)
    density = (
        0.4 * torch.distributions.Normal(-1.0, 0.2**0.5).log_prob(x0).exp()
        + 0.6 * torch.distributions.Normal(2.0, 0.5**0.5).log_prob(x0).exp()
    )
    joint = density * torch.distributions.Normal(0.8 * x0, 0.6).log_prob(x_t[0]).exp()
    wanted = torch.trapezoid(joint * x0, x0) / torch.trapezoid(joint, x0)
    torch.testing.assert_close(line(x_t, level).x0.squeeze(), wanted)


def test_a_label_conditions_on_its_component():
    x, level = torch.randn(6, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    labels = torch.tensor([0, 1, 2, 0, 1, -1])
    alone = [
        sf.GaussianMixture(
            torch.ones(1), mixture.means[j : j + 1], (mixture.axes @ torch.diag_embed(mixture.variances) @ mixture.axes.mT)[j : j + 1]
        )
        for j in range(3)
    ]
    p, log_prob = mixture(x, level, {"labels": labels}), mixture.log_prob(x, level, {"labels": labels})
    for i, label in enumerate(labels.tolist()):
        single = alone[label] if label >= 0 else mixture
        torch.testing.assert_close(p.x0[i], single(x[i : i + 1], level).x0[0])
        torch.testing.assert_close(log_prob[i], single.log_prob(x[i : i + 1], level)[0])


def test_samples_have_the_moments():
    x, labels = mixture.sample(200_000, torch.Generator().manual_seed(0))
    share = torch.bincount(labels) / 200_000
    torch.testing.assert_close(share, mixture.weights, atol=5e-3, rtol=0)
    for j in range(3):
        mine, covariance = x[labels == j], mixture.axes[j] @ torch.diag(mixture.variances[j]) @ mixture.axes[j].T
        torch.testing.assert_close(mine.mean(0), mixture.means[j], atol=0.02, rtol=0)
        torch.testing.assert_close(mine.T.cov(), covariance, atol=0.02, rtol=0)


@pytest.mark.parametrize("sigma", [1e-4, 1e4])
def test_float32_is_stable_far_out(sigma):
    x = torch.randn(32, 2, dtype=torch.float32) * max(1.0, sigma)
    level = sf.Level(torch.tensor(1.0), torch.tensor(sigma))
    p = mixture(x, level)
    exact = mixture(x.double(), level)
    torch.testing.assert_close(p.x0.double(), exact.x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.eps.double(), exact.eps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.6], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), "sum to 1"),
        (([1.0], [[0.0, 1.0]], [[[1.0]]]), "must agree"),
        (([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (([1.0], [[0.0, 1.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive semi-definite"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sf.GaussianMixture(*map(torch.tensor, arguments))


def test_the_wrong_dimension_is_refused():
    with pytest.raises(ValueError, match="2 dimensions"):
        mixture(torch.zeros(1, 3), sf.Level(torch.tensor(1.0), torch.tensor(1.0)))


def in_three_dimensions():
    root = torch.randn(2, 3, 3)
    covariances = root @ root.mT
    return torch.randn(2, 3), covariances, sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.zeros(2, 3) + torch.randn(2, 3), covariances)


def test_density_in_three_dimensions_against_torch_distributions():
    """In two dimensions an eigenbasis may equal its transpose; in three it does not."""
    _, covariances, mixture = in_three_dimensions()
    x, level = torch.randn(50, 3), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    noised = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(mixture.weights),
        torch.distributions.MultivariateNormal(0.6 * mixture.means, 0.36 * covariances + 0.64 * torch.eye(3)),
    )
    torch.testing.assert_close(mixture.log_prob(x, level), noised.log_prob(x))


def test_posterior_means_in_three_dimensions_by_autograd():
    _, _, mixture = in_three_dimensions()
    x, level = torch.randn(50, 3, requires_grad=True), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    (score,) = torch.autograd.grad(mixture.log_prob(x, level).sum(), x)
    p = mixture(x, level)
    torch.testing.assert_close(p.eps, -0.8 * score)
    torch.testing.assert_close(0.6 * p.x0 + 0.8 * p.eps, x.detach())


def test_samples_in_three_dimensions_have_their_covariance():
    covariance = torch.tensor([[2.0, 0.8, -0.3], [0.8, 1.0, 0.4], [-0.3, 0.4, 0.6]])
    x, _ = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 3), covariance[None]).sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.04)


def test_data_on_a_line_is_allowed():
    """A covariance of rank one: rounding makes some of its eigenvalues negative."""
    for seed in range(5):
        direction = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        line = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 6), torch.outer(direction, direction)[None])
        x, _ = line.sample(100, torch.Generator().manual_seed(0))
        along = x @ direction / direction.norm()
        torch.testing.assert_close(along[:, None] * direction / direction.norm(), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_fewer_dimensions_are_refused_as_more_are(dimensions):
    mixture = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match="2 dimensions"):
        mixture(torch.zeros(1, dimensions), sf.Level(torch.tensor(1.0), torch.tensor(1.0)))


def test_a_point_without_noise_is_itself():
    point = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.7]]), torch.zeros(1, 2, 2))
    p = point(point.means, sf.Level(torch.tensor(1.0), torch.tensor(0.0)))
    torch.testing.assert_close(p.x0, point.means)


def test_a_label_beyond_the_components_is_refused():
    with pytest.raises(ValueError, match="label"):
        mixture(torch.zeros(1, 2), sf.Cosine().level(0.5), {"labels": torch.tensor([3])})
