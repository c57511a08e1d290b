"""The oracle is held against what it does not use: autograd of its density, torch.distributions, and quadrature."""

import math

import pytest
import torch
from problems import every_scales, mixture

import sfumato as sf
from sfumato.oracle import Affine, EmpiricalDistribution, Gaussian, LinearGaussianChain, chain


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


def vp(half_log_snr):
    """A level under VP scales."""
    return sf.Level(*sf.vp_scales(2 * torch.as_tensor(half_log_snr)))


def normal(mean, covariance):
    return torch.distributions.MultivariateNormal(mean, covariance)


def test_diagonal_covariances_are_full_ones():
    means, diagonals, x = torch.randn(2, 5), torch.rand(2, 5), torch.randn(7, 5)
    weights, level = torch.tensor([0.4, 0.6]), vp(torch.linspace(-3, 3, 7))
    level = sf.Level(level.alpha[:, None], level.sigma[:, None])
    thin, full = sf.GaussianMixture(weights, means, diagonals), sf.GaussianMixture(weights, means, torch.diag_embed(diagonals))
    torch.testing.assert_close(thin(x, level).x0, full(x, level).x0)
    torch.testing.assert_close(thin(x, level).eps, full(x, level).eps)
    torch.testing.assert_close(thin.log_prob(x, level), full.log_prob(x, level))
    torch.testing.assert_close(thin.covariances, full.covariances)
    draws = [oracle.sample(5, torch.Generator().manual_seed(0), torch.tensor([0, 1, 0, 1, 0]))[0] for oracle in (thin, thin)]
    torch.testing.assert_close(*draws)
    x0, labels = thin.sample(50_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x0[labels == 1].var(0), diagonals[1], rtol=0.05, atol=0)


@pytest.mark.parametrize("covariance", [torch.tensor(0.3), torch.tensor([0.3, 2.0]), torch.tensor([[0.3, 0.1], [0.1, 2.0]])])
def test_a_gaussian_takes_a_matrix_a_diagonal_or_a_variance(covariance):
    x, level, mean = torch.randn(9, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8)), torch.tensor([1.0, -2.0])
    full = covariance if covariance.ndim == 2 else torch.diag(covariance.expand(2))
    wanted = normal(0.6 * mean, 0.36 * full + 0.64 * torch.eye(2)).log_prob(x)
    torch.testing.assert_close(Gaussian(mean, covariance).log_prob(x, level), wanted)


def test_a_density_without_a_level_is_that_of_the_data():
    x, one = torch.randn(9, 2), torch.tensor(1.0)
    torch.testing.assert_close(mixture.log_prob(x), mixture.log_prob(x, sf.Level(one, 0 * one)))


def test_moments_of_a_mixture_are_those_of_its_samples():
    x, _ = mixture.sample(400_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.mean, x.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(mixture.covariance, x.T.cov(), rtol=0, atol=0.02)


MATRIX, SEEN = torch.tensor([[1.0, -0.5], [0.2, 0.7], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0.4, -0.3, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("noise_std", [0.7, torch.tensor([0.2, 1.0, 3.0])], ids=["one", "a row each"])
def test_an_observation_updates_by_bayes(noise_std):
    """log p(x|y) = log p(x) + log p(y|x) - log p(y) at every x."""
    x = torch.randn(50, 2) * 2
    spread = torch.as_tensor(noise_std).expand(3)
    explained = torch.distributions.Normal(x @ MATRIX.T, spread).log_prob(SEEN).sum(1)
    evidence = mixture.observed(MATRIX, noise_std).log_prob(SEEN[None])
    given = mixture.given(MATRIX, SEEN, noise_std)
    torch.testing.assert_close(given.log_prob(x), mixture.log_prob(x) + explained - evidence)


def test_an_observation_by_quadrature():
    """The evidence and the mean of x given y as sums over a fine grid of the plane."""
    line = torch.linspace(-7, 7, 701)
    x = torch.cartesian_prod(line, line)
    joint = (mixture.log_prob(x) + torch.distributions.Normal(x @ MATRIX.T, 0.8).log_prob(SEEN).sum(1)).exp() * 0.02**2
    torch.testing.assert_close(mixture.observed(MATRIX, 0.8).log_prob(SEEN[None]).exp()[0], joint.sum(), rtol=1e-6, atol=0)
    given = mixture.given(MATRIX, SEEN, 0.8)
    mean = joint @ x / joint.sum()
    torch.testing.assert_close(given.mean, mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(given.covariance, torch.einsum("n,ni,nj->ij", joint / joint.sum(), x - mean, x - mean), rtol=1e-6, atol=1e-8)


def test_the_predictor_is_the_mean_given_x_t():
    x_t, level = torch.randn(4, 2), vp(0.3)
    posteriors = [mixture.given(level.alpha * torch.eye(2), row, float(level.sigma)) for row in x_t]
    torch.testing.assert_close(mixture(x_t, level).x0, torch.stack([posterior.mean for posterior in posteriors]))


def test_an_observation_without_noise_holds():
    given = mixture.given(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]), 0.0)
    x, _ = given.sample(20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ torch.tensor([1.0, 2.0]), torch.full((20,), 0.5), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no density"):
        mixture.given(MATRIX, SEEN, 0.0)


def test_an_unlikely_component_stays_in_the_law():
    """Its weight underflows, its logarithm does not."""
    given = mixture.given(torch.eye(2), torch.tensor([60.0, 0.0]), 0.1)
    assert given.log_weights.isfinite().all()
    x, level, labels = torch.randn(3, 2), vp(0.0), torch.tensor([0, 1, 2])
    assert given(x, level, {"labels": labels}).x0.isfinite().all()
    assert given.log_prob(x, level, {"labels": labels}).isfinite().all()


def cloud(n=40, shape=(1, 2, 3)):
    return torch.randn(n, *shape), torch.arange(n) % 3


@pytest.mark.parametrize("cond", [None, {"labels": torch.tensor([0, 1, 2, -1, 1])}], ids=["all", "classes"])
def test_points_are_a_mixture_of_points(cond):
    """Against the Gaussian mixture with a tiny covariance at every point, whose labels are turned into the points' classes."""
    x, labels = cloud()
    x_t, half = torch.randn(5, 1, 2, 3), torch.linspace(-3, 3, 5)
    level = sf.Level(*(scale[:, None, None, None] for scale in sf.vp_scales(2 * half)))
    p, log_prob = EmpiricalDistribution(x, labels)(x_t, level, cond), EmpiricalDistribution(x, labels).log_prob(x_t, level, cond)
    for i in range(5):
        mine = x if cond is None or cond["labels"][i] < 0 else x[labels == cond["labels"][i]]
        law = sf.GaussianMixture(torch.full((len(mine),), 1 / len(mine)), mine.flatten(1), torch.full((len(mine), 6), 1e-18))
        here = sf.Level(level.alpha[i].reshape(()), level.sigma[i].reshape(()))
        torch.testing.assert_close(p.x0[i].flatten(), law(x_t[i : i + 1], here).x0.flatten())
        torch.testing.assert_close(p.eps[i].flatten(), law(x_t[i : i + 1], here).eps.flatten())
        torch.testing.assert_close(log_prob[i], law.log_prob(x_t[i : i + 1], here)[0])


@every_scales
def test_points_score_is_the_gradient_of_their_density(scales):
    x, labels = cloud(shape=(4,))
    points = EmpiricalDistribution(x, labels, weights=torch.arange(1, 41) / 820)
    x_t = torch.randn(6, 4, requires_grad=True)
    level = sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0).level(torch.rand(6), like=x_t)
    (score,) = torch.autograd.grad(points.log_prob(x_t, level).sum(), x_t)
    torch.testing.assert_close(points(x_t, level).score(level), score, rtol=1e-6, atol=1e-8)


def test_points_are_read_in_chunks(monkeypatch):
    x, labels = cloud(50)
    x_t, level = torch.randn(4, 1, 2, 3), vp(0.5)
    whole = (
        EmpiricalDistribution(x, labels)(x_t, level),
        EmpiricalDistribution(x, labels).log_prob(x_t, level),
        EmpiricalDistribution(x).given(torch.ones(1, 6), torch.ones(1), 1.0),
    )
    monkeypatch.setattr("sfumato.oracle.empirical._CHUNK_NUMBERS", 42)
    pieces = (
        EmpiricalDistribution(x, labels)(x_t, level),
        EmpiricalDistribution(x, labels).log_prob(x_t, level),
        EmpiricalDistribution(x).given(torch.ones(1, 6), torch.ones(1), 1.0),
    )
    torch.testing.assert_close(whole[0].x0, pieces[0].x0)
    torch.testing.assert_close(whole[1], pieces[1])
    torch.testing.assert_close(whole[2].log_weights, pieces[2].log_weights)


def test_points_classes_follow_bayes():
    x, labels = cloud(shape=(4,))
    points, x_t, level = EmpiricalDistribution(x, labels), torch.randn(6, 4), vp(0.2)
    share = torch.bincount(labels) / len(labels)
    each = torch.stack([points.log_prob(x_t, level, {"labels": torch.full((6,), j)}) for j in range(3)], 1)
    torch.testing.assert_close(points.log_class(x_t, level), each + share.log() - points.log_prob(x_t, level)[:, None])


def test_points_given_an_observation_are_weighted():
    x, _ = cloud(shape=(2,))
    given, misfit = EmpiricalDistribution(x).given(MATRIX, SEEN, 0.7), torch.distributions.Normal(x @ MATRIX.T, 0.7).log_prob(SEEN).sum(1)
    torch.testing.assert_close(given.log_weights.exp(), misfit.exp() / misfit.exp().sum())
    with pytest.raises(ValueError, match="noise_std must be positive"):
        EmpiricalDistribution(x).given(MATRIX, SEEN, 0.0)


def test_points_are_drawn_by_their_weights():
    x, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 1])
    points = EmpiricalDistribution(x, labels, weights=torch.tensor([0.5, 0.2, 0.3]))
    drawn, classes = points.sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(drawn[:, 0].long()) / 100_000, torch.tensor([0.5, 0.2, 0.3]), rtol=0, atol=0.01)
    assert classes is not None
    assert torch.equal(classes, labels[drawn[:, 0].long()])
    some, _ = points.sample(100_000, torch.Generator().manual_seed(0), labels=torch.ones(100_000, dtype=torch.long))
    assert some[:, 0].mean().item() == pytest.approx(1.6, abs=0.01)


def test_a_point_of_the_set_without_noise_is_itself():
    x, _ = cloud()
    p = EmpiricalDistribution(x)(x[:3], sf.Level(torch.tensor(1.0), torch.tensor(0.0)))
    torch.testing.assert_close(p.x0, x[:3])
    assert p.eps.isfinite().all()


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize("d", [1, 2, 64, 3072])
@pytest.mark.parametrize("kind", ["gaussian", "points"])
def test_float32_is_stable_in_any_dimension(kind, d, sigma):
    """Against formulas in float64 that share nothing: for points, distances of differences; for the Gaussian, one division an axis."""
    x0, eps = torch.randn(20, d).float(), torch.randn(6, d).float()
    level = sf.Level(torch.tensor(1.0, dtype=torch.float32), torch.tensor(sigma, dtype=torch.float32))
    x_t = x0[:6] + level.sigma * eps
    s = level.sigma.double()
    if kind == "points":
        oracle = EmpiricalDistribution(x0)
        logits = -(x_t[:, None].double() - x0.double()).square().sum(2) / (2 * s**2)
        wanted = logits.softmax(1) @ x0.double()
        log_prob = logits.logsumexp(1) - math.log(20) - d / 2 * torch.log(2 * math.pi * s**2)
        wanted_eps = (x_t.double() - wanted) / s
    else:
        variances = torch.linspace(1e-6, 2, d) if d > 1 else torch.tensor([0.3])
        oracle = Gaussian(torch.zeros(d), variances)
        wanted, wanted_eps = x_t.double() * variances / (variances + s**2), x_t.double() * s / (variances + s**2)
        log_prob = torch.distributions.Normal(0.0, (variances + s**2).sqrt()).log_prob(x_t.double()).sum(1)
    p = oracle(x_t, level)
    assert p.x0.dtype == p.eps.dtype == oracle.log_prob(x_t, level).dtype == torch.float32
    torch.testing.assert_close(p.x0.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p.eps.double(), wanted_eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(oracle.log_prob(x_t, level).double(), log_prob, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EmpiricalDistribution(torch.zeros(0, 2)), "at least one row"),
        (lambda: EmpiricalDistribution(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)), "one a row"),
        (lambda: EmpiricalDistribution(torch.zeros(2, 2), weights=torch.ones(2)), "sum to 1"),
        (lambda: EmpiricalDistribution(torch.zeros(2, 2))(torch.zeros(1, 3), vp(0.0)), "shape"),
        (lambda: EmpiricalDistribution(torch.zeros(2, 2)).log_class(torch.zeros(1, 2), vp(0.0)), "no classes"),
        (
            lambda: EmpiricalDistribution(torch.zeros(1, 2), torch.zeros(1).long())(
                torch.zeros(1, 2), vp(0.0), {"labels": torch.ones(1).long()}
            ),
            "some point",
        ),
        (lambda: Gaussian(torch.zeros(1, 2), 1.0), "vector"),
        (lambda: Affine(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 2)), "positive definite"),
        (lambda: Affine(torch.zeros(2, 2), torch.zeros(3), torch.eye(3)), "must agree"),
        (lambda: LinearGaussianChain([]), "at least one link"),
        (lambda: chain.joined([Affine(torch.eye(2), torch.zeros(2), torch.eye(2))] * 2 + [random_affine(1, 3)]), "must take"),
        (lambda: latents()[0].elbo(torch.zeros(1, 3), random_affine(2, 3)), "encoder must map"),
    ],
)
def test_bad_oracles_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def random_affine(m, n):
    root = torch.randn(m, m) / 2
    return Affine(torch.randn(m, n), torch.randn(m), root @ root.T + 0.3 * torch.eye(m))


def latents():
    """z_2 [1] → z_1 [2] → x [3], with x and z drawn from it."""
    made = LinearGaussianChain([random_affine(3, 2), random_affine(2, 1)])
    return made, *made.sample(200_000, torch.Generator().manual_seed(0))


def test_a_chains_evidence_is_its_samples_law():
    made, x, _ = latents()
    torch.testing.assert_close(x.mean(0), made.evidence.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), made.evidence.covariance, rtol=0.02, atol=0.03)


def test_a_chains_posterior_follows_bayes():
    """log p(z | x) = log p(x, z) - log p(x) at every x and z."""
    made, x, z = latents()
    x, z = x[:50], torch.randn(50, 3)
    torch.testing.assert_close(made.posterior.log_prob(z, x), made.log_joint(x, z) - made.log_prob(x))


def test_a_chains_joint_is_the_product_of_its_laws():
    made, x, z = latents()
    x, z = x[:50], z[:50]
    bottom, top = made.links
    wanted = (
        normal(z[:, :2] @ bottom.matrix.T + bottom.offset, bottom.covariance).log_prob(x)
        + normal(z[:, 2:] @ top.matrix.T + top.offset, top.covariance).log_prob(z[:, :2])
        + torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 2])
    )
    torch.testing.assert_close(made.log_joint(x, z), wanted)


def test_the_bound_of_an_encoder_by_simulation():
    """E_q[log p(x, z) - log q(z | x)] over draws of z, for a bottom-up chain of encoders, within four standard errors."""
    made, x, _ = latents()
    first, second = random_affine(2, 3), random_affine(1, 2)
    x = x[:1].expand(100_000, -1)
    z_1 = first.sample(x, torch.Generator().manual_seed(1))
    z_2 = second.sample(z_1, torch.Generator().manual_seed(2))
    draws = made.log_joint(x, torch.cat([z_1, z_2], 1)) - first.log_prob(z_1, x) - second.log_prob(z_2, z_1)
    exact = made.elbo(x[:1], [first, second])[0]
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(len(draws))


def test_the_gap_of_the_bound_is_the_kl_to_the_posterior():
    made, x, _ = latents()
    x, encoder = x[:20], random_affine(3, 3)
    gap = torch.distributions.kl_divergence(
        normal(encoder.mean(x), encoder.covariance.expand(20, 3, 3)),
        normal(made.posterior.mean(x), made.posterior.covariance.expand(20, 3, 3)),
    )
    torch.testing.assert_close(made.log_prob(x) - made.elbo(x, encoder), gap)
    torch.testing.assert_close(made.elbo(x, made.posterior), made.log_prob(x))


def test_a_chain_is_the_predictor_of_its_evidence():
    made, x, _ = latents()
    level = vp(0.4)
    x_t = (level.alpha * x[:5]).requires_grad_()
    (score,) = torch.autograd.grad(made.log_prob(x_t, level).sum(), x_t)
    torch.testing.assert_close(made(x_t, level).score(level), score)
