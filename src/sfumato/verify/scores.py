"""Ledger rows on scores, the exact oracles, and the probability flow: its marginals and its likelihood."""

import math

import torch
from torch import Tensor

from sfumato import likelihood
from sfumato.denoiser import CondLike
from sfumato.oracle import Affine, EmpiricalDistribution, Gaussian, GaussianMixture, LinearGaussianChain
from sfumato.prediction import Prediction
from sfumato.sampling import grid, sample
from sfumato.schedule import Cosine, Level, flow_scales, sub_vp_scales, ve_scales, vp_scales
from sfumato.verify.ledger import row, standard_errors, worst

SGM = "002 SGM (Score-based Generative Models)"
CLASSIFIER = "002 Classifier Guidance"
ELBO = "003 1.4.1 ELBO; 000 2.2 Hierarchical Variational Autoencoders"
BAYES = "004 Bayes's Rule"
BEYOND = "beyond the notes"


def _mixture() -> GaussianMixture:
    """Three components in the plane, none aligned with the axes."""
    return GaussianMixture(
        torch.tensor([0.3, 0.5, 0.2]),
        torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.05], [0.05, 0.4]], [[0.1, -0.05], [-0.05, 0.1]]]),
    )


def _plane() -> tuple[Tensor, float]:
    """The points of a fine grid of the plane, and the area of a cell."""
    line = torch.linspace(-6, 6, 301)
    return torch.cartesian_prod(line, line), 0.04**2


def _levels(x: Tensor) -> list[Level]:
    """Levels of four kinds of scales, one a row of x."""
    t = torch.linspace(0.15, 0.85, len(x))
    return [Cosine(scales=scales).level(t, like=x) for scales in (vp_scales, ve_scales, flow_scales, sub_vp_scales)]


def _score(oracle: GaussianMixture | EmpiricalDistribution, x_t: Tensor, level: Level) -> Tensor:
    """∇ log p(x_t) by automatic differentiation of the density."""
    x_t = x_t.detach().requires_grad_()
    return torch.autograd.grad(oracle.log_prob(x_t, level).sum(), x_t)[0]


@row("tweedie", "E[x0|x_t] = (x_t + σ² ∇log p(x_t)) / α", notes=SGM, function="oracle.GaussianMixture(x_t, level).x0", tolerance=1e-8)
def tweedie() -> float:
    """Against the gradient of the closed-form density under VP, VE, flow and sub-VP scales; Efron (2011)."""
    mixture, x = _mixture(), torch.randn(60, 2)
    return max(worst(mixture(x, level).x0, (x + level.sigma.square() * _score(mixture, x, level)) / level.alpha) for level in _levels(x))


@row("score-is-minus-eps", "∇log p(x_t) = -E[ε|x_t] / σ", notes=SGM, function="Prediction.score", tolerance=1e-10)
def score_is_minus_eps() -> float:
    """Against the gradient of the closed-form density under four kinds of scales."""
    mixture, x = _mixture(), torch.randn(60, 2)
    return max(worst(level.sigma * mixture(x, level).score(level), level.sigma * _score(mixture, x, level)) for level in _levels(x))


@row(
    "posterior-mean-by-quadrature",
    "E[x0|x_t] = ∫ x0 p(x0) N(x_t; αx0, σ²) dx0 / p(x_t)",
    notes=f"{BAYES}; {SGM}",
    function="oracle.GaussianMixture(x_t, level)",
    tolerance=1e-8,
)
def posterior_mean_by_quadrature() -> float:
    """Against sums over 90,601 points of the plane: x0, ε and the density p(x_t)."""
    mixture, (x0, cell) = _mixture(), _plane()
    level, x_t = Level(torch.tensor(0.8), torch.tensor(0.6)), torch.tensor([0.7, -0.4])
    eps = (x_t - level.alpha * x0) / level.sigma
    joint = (mixture.log_prob(x0) - 0.5 * eps.square().sum(1)).exp() * cell / (2 * math.pi * level.sigma**2)
    ours = mixture(x_t[None], level)
    density = worst(mixture.log_prob(x_t[None], level).exp(), joint.sum())
    return max(density, worst(ours.x0, joint @ x0 / joint.sum()), worst(ours.eps, joint @ eps / joint.sum()))


@row(
    "posterior-covariance",
    "Cov[x0|x_t] = σ²/α² (I + σ² ∇² log p(x_t))",
    notes=BEYOND,
    function="oracle.GaussianMixture.given(α I, x_t, σ).covariance",
    tolerance=1e-8,
)
def posterior_covariance() -> float:
    """Tweedie of second order, against the Hessian of the closed-form density; Meng et al. (2021), arXiv:2111.04726."""
    mixture, x_t = _mixture(), torch.tensor([0.3, 0.2])
    level = Level(torch.tensor(0.8), torch.tensor(0.6))
    hessian = torch.autograd.functional.hessian(lambda x: mixture.log_prob(x[None], level)[0], x_t)
    assert isinstance(hessian, Tensor)
    truth = level.sigma.square() / level.alpha.square() * (torch.eye(2) + level.sigma.square() * hessian)
    return worst(mixture.given(level.alpha * torch.eye(2), x_t, float(level.sigma)).covariance, truth)


@row(
    "denoising-score-matching",
    "argmin_s E|s(x_t) + ε/σ|² = ∇log p(x_t)",
    notes=f"{SGM}; Vincent (2011), eq. 11",
    function="oracle.GaussianMixture(x_t, level).score(level)",
    tolerance=4.0,
)
def denoising_score_matching() -> float:
    """The error of the score is orthogonal to nine functions of x_t over 100,000 draws, in standard errors."""
    mixture, level = _mixture(), Level(torch.tensor(0.8), torch.tensor(0.6))
    x0, _ = mixture.sample(100_000)
    eps = torch.randn_like(x0)
    x_t = level.alpha * x0 + level.sigma * eps
    off = mixture(x_t, level).score(level) + eps / level.sigma
    functions = [torch.ones(len(x_t)), *x_t.T, *x_t.square().T, *x_t.sin().T, *(2 * x_t).cos().T]
    return standard_errors(torch.cat([f[:, None] * off for f in functions], 1), 0.0)


@row("oracle-integrates-to-one", "∫ p(x_t) dx_t = 1", notes=SGM, function="oracle.GaussianMixture.log_prob", tolerance=1e-8)
def oracle_integrates_to_one() -> float:
    """Against one: sums over the plane of three noised densities, and of one given its class."""
    mixture, (x, cell) = _mixture(), _plane()
    levels = [Level(torch.tensor(a), torch.tensor(s)) for a, s in ((1.0, 0.1), (0.8, 0.6), (0.1, 0.9))]
    sums = [mixture.log_prob(x, level).exp().sum() * cell for level in levels]
    given = mixture.log_prob(x, levels[1], {"labels": torch.ones(len(x), dtype=torch.long)}).exp().sum() * cell
    return worst(torch.stack([*sums, given]), 1.0)


@row(
    "points-are-a-softmax",
    "E[x0|x_t] = Σ softmax_i(-|x_t - αx_i|² / 2σ²) x_i",
    notes=f"{SGM}; Karras et al. (2022), eq. 57",
    function="oracle.EmpiricalDistribution(x_t, level)",
    tolerance=1e-6,
)
def points_are_a_softmax() -> float:
    """Against sums of differences at sigma from 1e-4 to 1e4, for float32 points and inputs, in 2 and 768 dimensions."""
    errors = []
    for shape in ((2,), (3, 16, 16)):
        x0 = torch.randn(30, *shape, dtype=torch.float32)
        for sigma in (1e-4, 1e-1, 1.0, 1e4):
            level = Level(torch.tensor(1.0), torch.tensor(sigma))
            x_t = x0[:5] + sigma * torch.randn_like(x0[:5])
            logits = -(x_t[:, None].double() - x0.double()).flatten(2).square().sum(2) / (2 * sigma**2)
            ours = EmpiricalDistribution(x0)(x_t, level)
            truth = (logits.softmax(1) @ x0.double().flatten(1)).reshape(x_t.shape)
            errors += [worst(ours.x0, truth), worst(ours.eps, (x_t.double() - truth) / sigma)]
    return max(errors)


@row(
    "points-are-a-mixture",
    "log p(x_t) = log Σ w_i N(x_t; αx_i, σ²I), ∇log p(x_t) = -E[ε|x_t]/σ",
    notes=SGM,
    function="oracle.EmpiricalDistribution.log_prob",
    tolerance=1e-8,
)
def points_are_a_mixture() -> float:
    """Against the Gaussian mixture with a covariance of 1e-18 at every point, and the density's gradient."""
    x0, weights, x_t = torch.randn(40, 3), torch.rand(40), torch.randn(20, 3)
    weights = weights / weights.sum()
    points, mixture = EmpiricalDistribution(x0, weights=weights), GaussianMixture(weights, x0, torch.full((40, 3), 1e-18))
    errors = []
    for level in _levels(x_t):
        errors.append(worst(points.log_prob(x_t, level), mixture.log_prob(x_t, level)))
        errors.append(worst(level.sigma * points(x_t, level).score(level), level.sigma * _score(points, x_t, level)))
    return max(errors)


@row(
    "bayes-of-a-class",
    "log p(y|x_t) = log p(x_t|y) + log p(y) - log p(x_t)",
    notes=f"{BAYES}; {CLASSIFIER}",
    function="oracle.GaussianMixture.log_class",
    tolerance=1e-10,
)
def bayes_of_a_class() -> float:
    """Against the conditional densities of the mixture's components and of labelled points, each for its own oracle."""
    mixture, x = _mixture(), torch.randn(30, 2)
    cloud = torch.randn(24, 2)
    points, level = EmpiricalDistribution(cloud, torch.arange(24) % 3), Level(torch.tensor(0.8), torch.tensor(0.6))
    errors = []
    for oracle, share in ((mixture, mixture.weights), (points, torch.full((3,), 1 / 3))):
        each = torch.stack([oracle.log_prob(x, level, {"labels": torch.full((30,), y)}) for y in range(3)], 1)
        truth = each + share.log() - oracle.log_prob(x, level)[:, None]
        errors.append(worst(oracle.log_class(x, level), truth))
    return max(errors)


@row(
    "class-scores-add-up",
    "∇log p(x_t|y) = ∇log p(x_t) + ∇log p(y|x_t)",
    notes=CLASSIFIER,
    function="oracle.GaussianMixture(x_t, level, cond)",
    tolerance=1e-8,
)
def class_scores_add_up() -> float:
    """The prediction given a label against the unconditional one plus the gradient of the exact classifier, at 60 points and levels."""
    mixture, labels = _mixture(), torch.arange(60) % 3
    x = torch.randn(60, 2, requires_grad=True)
    level = _levels(x)[0]
    log_class = mixture.log_class(x, level).gather(1, labels[:, None]).sum()
    (slope,) = torch.autograd.grad(log_class, x)
    ours = level.sigma * mixture(x.detach(), level, {"labels": labels}).score(level)
    return worst(ours, level.sigma * (mixture(x.detach(), level).score(level) + slope))


@row(
    "linear-observation",
    "p(x0|y) ∝ p(x0) N(y; Hx0, s²I) is a mixture again",
    notes=f"{BAYES}; Bishop (2006), eqs. 2.115 to 2.117",
    function="oracle.GaussianMixture.given",
    tolerance=1e-8,
)
def linear_observation() -> float:
    """Against sums over the plane: evidence, mean and covariance; and Bayes for the weights of points."""
    mixture, (x, cell) = _mixture(), _plane()
    matrix, y = torch.tensor([[1.0, -0.5], [0.2, 0.7], [0.0, 1.0]]), torch.tensor([0.4, -0.3, 0.9])
    explained = -0.5 * ((y - x @ matrix.T) / 0.8).square().sum(1) - 1.5 * math.log(2 * math.pi * 0.64)
    joint = (mixture.log_prob(x) + explained).exp() * cell
    share, given = joint / joint.sum(), mixture.given(matrix, y, 0.8)
    apart = x - share @ x
    some = x[::911]
    weights = EmpiricalDistribution(some).given(matrix, y, 0.8).log_weights.exp()
    return max(
        worst(mixture.observed(matrix, 0.8).log_prob(y[None]).exp(), joint.sum()),
        worst(given.mean, share @ x),
        worst(given.covariance, (share[:, None] * apart).T @ apart),
        worst(weights, explained[::911].exp() / explained[::911].exp().sum()),
    )


def _chain() -> LinearGaussianChain:
    """z_2 [1] → z_1 [2] → x [3]."""
    return LinearGaussianChain([_affine(3, 2), _affine(2, 1)])


def _affine(m: int, n: int) -> Affine:
    root = torch.randn(m, m) / 2
    return Affine(torch.randn(m, n), torch.randn(m), root @ root.T + 0.3 * torch.eye(m))


@row(
    "chain-evidence",
    "log p(x) = log p(x,z) - log p(z|x), for every z",
    notes=f"{ELBO}; {BAYES}",
    function="oracle.LinearGaussianChain.log_prob, .posterior",
    tolerance=1e-8,
)
def chain_evidence() -> float:
    """The product of the links' densities over the posterior's against the marginal Gaussian of x, composed link by link."""
    chain = _chain()
    bottom, top = chain.links
    covariance = bottom.matrix @ (top.matrix @ top.matrix.T + top.covariance) @ bottom.matrix.T + bottom.covariance
    truth = torch.distributions.MultivariateNormal(bottom.mean(top.offset[None])[0], covariance)
    x, z = torch.randn(40, 3), torch.randn(40, 3)
    bayes = chain.log_joint(x, z) - chain.posterior.log_prob(z, x)
    return max(worst(bayes, truth.log_prob(x)), worst(chain.log_prob(x), truth.log_prob(x)))


@row(
    "chain-bound-gap",
    "log p(x) - ELBO = KL(q(z|x) ‖ p(z|x)), zero at the posterior",
    notes=ELBO,
    function="oracle.LinearGaussianChain.elbo",
    tolerance=1e-8,
)
def chain_bound_gap() -> float:
    """Against torch's KL of two Gaussians, for one random encoder of all latents."""
    chain, encoder, x = _chain(), _affine(3, 3), torch.randn(40, 3)
    law = lambda q: torch.distributions.MultivariateNormal(q.mean(x), q.covariance.expand(40, 3, 3))  # noqa: E731
    gap = torch.distributions.kl_divergence(law(encoder), law(chain.posterior))
    tight = worst(chain.elbo(x, chain.posterior), chain.log_prob(x))
    return max(tight, worst(chain.log_prob(x) - chain.elbo(x, encoder), gap))


@row(
    "chain-bound-by-draws",
    "ELBO = E_q[log p(x,z_1,z_2) - log q(z_1|x) - log q(z_2|z_1)]",
    notes=ELBO,
    function="oracle.LinearGaussianChain.elbo",
    tolerance=4.0,
)
def chain_bound_by_draws() -> float:
    """Against 50,000 draws of a bottom-up chain of two encoders, in standard errors."""
    chain, first, second = _chain(), _affine(2, 3), _affine(1, 2)
    x = torch.randn(1, 3).expand(50_000, 3)
    z_1 = first.sample(x)
    z_2 = second.sample(z_1)
    draws = chain.log_joint(x, torch.cat([z_1, z_2], 1)) - first.log_prob(z_1, x) - second.log_prob(z_2, z_1)
    return standard_errors(draws, chain.elbo(x[:1], [first, second])[0])


def _deep() -> Cosine:
    """From 7 nats to a last level whose marginal is N(0, I) to 1e-6."""
    return Cosine(log_snr_max=7.0, log_snr_min=-28.0)


def _first(schedule: Cosine) -> Level:
    """The level of x_t/α at the first level of the schedule."""
    level = schedule.level(0.0)
    return Level(torch.ones(()), level.sigma / level.alpha)


@row(
    "flow-likelihood",
    "log p(x) = log p_T(x_T) + ∫ div f dt along dx = f dt",
    notes=f"{BEYOND}: Song et al. (2021), eq. 39, arXiv:2011.13456",
    function="likelihood.flow_log_prob",
    tolerance=1e-4,
)
def flow_likelihood() -> float:
    """Against the mixture's own log-density at six draws, with and without classes, in nats."""
    mixture, schedule = _mixture(), _deep()
    x, labels = mixture.sample(6)
    errors = []
    for cond in (None, {"labels": labels}):
        nats = likelihood.flow_log_prob(mixture, x, schedule, cond, tolerance=1e-5)
        errors.append((nats - mixture.log_prob(x, _first(schedule), cond)).abs().max())
    return float(torch.stack(errors).max())


@row(
    "hutchinson",
    "E[eᵀ J e] = tr J, and the spread over probes estimates the error",
    notes=f"{BEYOND}: Grathwohl et al. (2019), eq. 8, arXiv:1810.01367",
    function="likelihood.Hutchinson",
    tolerance=4.0,
)
def hutchinson() -> float:
    """The log-density with four probes against the exact one over 200 points, in its own standard errors; and their mean square."""
    mixture, schedule = _mixture(), Cosine(log_snr_max=4.0, log_snr_min=-12.0)
    x, _ = mixture.sample(200)
    exact = mixture.log_prob(x, _first(schedule))
    drawn = likelihood.flow_density(mixture, x, schedule, tolerance=1e-3, divergence=likelihood.Hutchinson(4))
    off = drawn.log_prob - exact
    return max(standard_errors(off, 0.0), standard_errors(off.square() - drawn.probe_error.square(), 0.0))


@row(
    "flow-has-the-marginals",
    "the flow carries p_T to p_t: Fokker-Planck with half the score and no noise",
    notes=f"{SGM}; Song et al. (2021), eq. 13, arXiv:2011.13456",
    function="sample(…, steps.Heun()) of Prediction.v",
    tolerance=4.0,
)
def flow_has_the_marginals() -> float:
    """8,000 points of N(0, I) carried to three levels against the mixture's exact moments there, in standard errors."""
    from sfumato.sampling import steps

    mixture, schedule = _mixture(), Cosine(log_snr_max=4.0, log_snr_min=-14.0)
    levels, x, errors = grid(schedule, 60), torch.randn(8000, 2), []
    for here in (levels[:41], levels[40:51], levels[50:]):
        x, level = sample(mixture, x, here, steps.Heun()), here[-1]
        noised = mixture.covariance * level.alpha.square() + level.sigma.square() * torch.eye(2)
        apart = x - level.alpha * mixture.mean
        errors += [standard_errors(apart, 0.0), standard_errors(apart[:, :, None] * apart[:, None], noised)]
    return max(errors)


@row(
    "flow-velocity",
    "du/dλ = -ασ v, u = x_t/√(α²+σ²), λ = log(α/σ); ∂p/∂λ = -div(p du/dλ)",
    notes=f"{BEYOND}: Salimans & Ho (2022), appendix D, arXiv:2202.00512",
    function="Prediction.v",
    tolerance=1e-6,
)
def flow_velocity() -> float:
    """The continuity equation at 20 points: the change of the density with λ by differences against minus the divergence of its flux."""
    mixture, u, half = _mixture(), torch.randn(20, 2), torch.tensor(0.4)
    at = lambda half: Level(*vp_scales(2 * half))  # noqa: E731
    change = (mixture.log_prob(u, at(half + 1e-4)) - mixture.log_prob(u, at(half - 1e-4))) / 2e-4
    level = at(half)

    def flux(u: Tensor) -> Tensor:
        return -level.alpha * level.sigma * mixture(u[None], level).v(level)[0]

    jacobians = [torch.autograd.functional.jacobian(flux, point) for point in u]
    divergence = torch.stack([jacobian.trace() for jacobian in jacobians if isinstance(jacobian, Tensor)])
    along = (torch.stack([flux(point) for point in u]) * mixture(u, level).score(level)).sum(1)
    return worst(change, -divergence - along)


@row(
    "dequantisation",
    "P(x0) = E_q[p(x) / q(x|x0)], so log P(x0) ≥ E_q[log p(x) - log q(x|x0)]",
    notes=f"{BEYOND}: Theis et al. (2016), section 3.1, arXiv:1511.01844; Zheng et al. (2023), arXiv:2305.03935",
    function="likelihood.bits_per_dim",
    tolerance=4.0,
)
def dequantisation() -> float:
    """The mean of 2^-bits over draws against the Gaussian's probability of a bin, uniform and truncated-normal, in standard errors."""
    schedule, bin_width, exact = Cosine(log_snr_max=5.0, log_snr_min=-14.0), 0.4, Gaussian(torch.tensor([0.1]), 0.25)
    law = torch.distributions.Normal(0.1, (0.25 + _first(schedule).sigma.square()).sqrt())
    x0 = torch.full((150, 1), -0.4)
    mass = law.cdf(x0[0] + bin_width / 2) - law.cdf(x0[0] - bin_width / 2)
    errors = []
    for dequantise in (likelihood.Uniform(), likelihood.TruncatedNormal()):
        bound = likelihood.bits_per_dim(exact, x0, schedule, bin_width=bin_width, dequantise=dequantise, tolerance=1e-3)
        errors.append(standard_errors(torch.exp2(-bound.total), mass[0]))
    return max(errors)


def _always_zero(x_t: Tensor, level: Level, cond: CondLike | None = None) -> Prediction:
    """The output of a network that always predicts x0 = 0."""
    return Prediction.from_x0(torch.zeros_like(x_t), x_t, level)


@row(
    "flow-of-a-point",
    "prediction x0 = 0 everywhere: du/dλ = -α² u, p(x) = N(x; 0, σ_0² / (α_0² σ_T²))",
    notes=BEYOND,
    function="likelihood.flow_log_prob",
    tolerance=1e-4,
)
def flow_of_a_point() -> float:
    """A predictor that is not an oracle: the flow scales u by σ, so x is N(0, σ_0² / (α_0² σ_T²)), in nats."""
    schedule, x = Cosine(log_snr_max=4.0, log_snr_min=-3.0), torch.randn(6, 4) / 8
    first, last = schedule.level(0.0), schedule.level(1.0)
    truth = torch.distributions.Normal(0.0, first.sigma / (first.alpha * last.sigma)).log_prob(x).sum(1)
    return float((likelihood.flow_log_prob(_always_zero, x, schedule, tolerance=1e-6) - truth).abs().max())
