"""Ledger rows on guidance: the guided scores, and the invariants of each wrapper."""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sfumato import guide, oracle, process
from sfumato.denoiser import Predictor
from sfumato.prediction import Prediction
from sfumato.sampling import grid, sample, spacing, steps
from sfumato.schedule import Cosine, Discrete, Flow, Level, flow_scales, sub_vp_scales, ve_scales, vp_scales
from sfumato.verify.ledger import order, row, standard_errors, worst

_WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
_MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
_COVARIANCES = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.1, -0.05], [-0.05, 0.1]]], dtype=torch.float64)
_mixture = oracle.GaussianMixture(_WEIGHTS, _MEANS, _COVARIANCES)
_exact = guide.label_log_prob(_mixture.log_class)
_SCALES = (0.0, 0.5, 1.0, 3.0, 7.5)
_VP = Level(torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))


def _problem() -> tuple[Tensor, Level, Tensor]:
    """x_t, levels and labels over all four scalings and 16 nats of log-SNR, one level a row."""
    log_snr = torch.linspace(8, -8, 50)
    curves = [scales(log_snr) for scales in (vp_scales, ve_scales, flow_scales, sub_vp_scales)]
    alpha, sigma = (torch.cat(parts)[:, None] for parts in zip(*curves, strict=True))
    labels = torch.arange(len(alpha)) % 3
    x0 = _MEANS[labels.flip(0)] + 0.5 * torch.randn(len(alpha), 2)
    return alpha * x0 + sigma * torch.randn(len(alpha), 2), Level(alpha, sigma), labels


def _tilted_score(x_t: Tensor, level: Level, labels: Tensor, scale: float) -> Tensor:
    """∇ [log p(x_t) + scale log p(y | x_t)] by autograd of torch.distributions' densities, which share nothing with the oracle."""
    x = x_t.clone().requires_grad_()
    covariances = level.alpha[:, :, None, None].square() * _COVARIANCES + level.sigma[:, :, None, None].square() * torch.eye(2)
    joint = MultivariateNormal(level.alpha[:, :, None] * _MEANS, covariances).log_prob(x[:, None]) + _WEIGHTS.log()
    marginal = joint.logsumexp(1)
    tilted = marginal + scale * (joint.gather(1, labels[:, None])[:, 0] - marginal)
    return torch.autograd.grad(tilted.sum(), x)[0]


def _consistency(p: Prediction, x_t: Tensor, level: Level) -> float:
    """The residual of alpha x0 + sigma eps = x_t."""
    return worst(level.alpha * p.x0 + level.sigma * p.eps, x_t)


def _worst_score(guided: Predictor, scale: float) -> float:
    x, level, labels = _problem()
    p = guided(x, level, {"labels": labels})
    return max(worst(p.score(level), _tilted_score(x, level, labels, scale)), _consistency(p, x, level))


@row(
    "guidance-bayes",
    "∇ log p(x_t|y) = ∇ log p(x_t) + ∇ log p(y|x_t)",
    notes="002 Classifier Guidance",
    function="GaussianMixture.log_class, guide.label_log_prob",
    tolerance=1e-8,
)
def bayes() -> float:
    """Largest difference between the conditional score and the sum, the classifier's gradient by autograd, at all levels."""
    x, level, labels = _problem()
    leaf = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(_exact(leaf, level, {"labels": labels}).sum(), leaf)
    return worst(_mixture(x, level).score(level) + pull, _mixture(x, level, {"labels": labels}).score(level))


@row(
    "guidance-classifier",
    "ε̂ = ε - γ σ ∇ log p(y|x_t), so that the score is ∇ log p(x_t) + γ ∇ log p(y|x_t)",
    notes="002 Classifier Guidance; 004 Diffusion Models Beat GANs; Dhariwal & Nichol 2021, alg. 2",
    function="guide.classifier",
    tolerance=1e-8,
)
def classifier() -> float:
    """Largest difference to the score by autograd of torch's densities, and to alpha x0 + sigma eps = x_t; four scalings, γ to 7.5."""
    return max(_worst_score(guide.classifier(guide.unconditional(_mixture), _exact, scale), scale) for scale in _SCALES)


@row(
    "guidance-classifier-free",
    "score = (1 - γ) ∇ log p(x_t) + γ ∇ log p(x_t|y)",
    notes="002 CFG; Ho & Salimans 2022, eq. 6",
    function="guide.classifier_free",
    tolerance=1e-8,
)
def classifier_free() -> float:
    """Largest difference to the score by autograd of torch's densities, and to alpha x0 + sigma eps = x_t; four scalings, γ to 7.5."""
    return max(_worst_score(guide.classifier_free(_mixture, scale), scale) for scale in _SCALES)


@row(
    "guidance-equivalence",
    "classifier guidance at γ on the unconditional model = classifier-free guidance at γ",
    notes="002 CFG",
    function="guide.classifier, guide.classifier_free, guide.compose",
    tolerance=1e-8,
)
def equivalence() -> float:
    """Largest difference of x0 between the two and the same guidance by composition, at γ = 2.5, all levels."""
    x, level, labels = _problem()
    free = guide.unconditional(_mixture)
    ways = [guide.classifier(free, _exact, 2.5), guide.classifier_free(_mixture, 2.5), guide.compose(free, [(_mixture, 2.5)])]
    first, second, third = (way(x, level, {"labels": labels}).x0 for way in ways)
    return max(worst(first, second), worst(third, second))


@row(
    "guidance-zero",
    "γ = 0 ignores y, γ = 1 is p(x_t|y), label -1 means not given",
    notes="002 CFG",
    function="guide.classifier, guide.classifier_free, guide.unconditional",
    tolerance=1e-9,
)
def zero() -> float:
    """Largest difference of eps to the unconditional and the conditional oracle."""
    x, level, labels = _problem()
    cond, nobody = {"labels": labels}, {"labels": torch.full_like(labels, -1)}
    free, bound, base = _mixture(x, level).eps, _mixture(x, level, cond).eps, guide.unconditional(_mixture)
    return max(
        worst(guide.classifier(base, _exact, 0.0)(x, level, cond).eps, free),
        worst(guide.classifier_free(_mixture, 0.0)(x, level, cond).eps, free),
        worst(guide.classifier(base, _exact, 3.0)(x, level, nobody).eps, free),
        worst(guide.classifier(base, _exact, 1.0)(x, level, cond).eps, bound),
        worst(guide.classifier_free(_mixture, 1.0)(x, level, cond).eps, bound),
    )


@row(
    "guidance-law",
    "at γ = 1 samples follow p(x|y)",
    notes="002 Classifier Guidance",
    function="guide.classifier, sample",
    tolerance=4.0,
)
def law() -> float:
    """Standard errors between the moments (first and second) of 4,000 samples and those of one component."""
    schedule = Cosine(log_snr_max=9.0, log_snr_min=-9.0)
    levels = grid(schedule, 40, spacing=spacing.log_snr)
    labels = torch.full((4000,), 2)
    guided = guide.classifier(guide.unconditional(_mixture), _exact, 1.0)
    x = sample(guided, torch.randn(4000, 2), levels, steps.Multistep(), {"labels": labels})
    centred = x - _MEANS[2]
    products = centred[:, :, None] * centred[:, None, :]
    return max(standard_errors(centred, 0.0), standard_errors(products.flatten(1), _COVARIANCES[2].flatten()))


@row(
    "guidance-mean-form",
    "N(μ + γ Σ ∇ log p(y|x_t), Σ) → the reverse step at ε̂ for small steps",
    notes="004 Diffusion Models Beat GANs; Dhariwal & Nichol 2021, alg. 1",
    function="guide.classifier, process.reverse",
    tolerance=0.1,
)
def mean_form() -> float:
    """Shortfall from order 1 of |mean - (μ + γ Σ ∇)| / |γ Σ ∇| as the step shrinks, for the small and the large variance."""
    x, labels = torch.randn(64, 2), torch.arange(64) % 3
    schedule, cond, scale = Flow(), {"labels": labels}, 2.0
    t = schedule.level(0.5)
    leaf = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(_exact(leaf, t, cond).sum(), leaf)
    guided, plain = guide.classifier(guide.unconditional(_mixture), _exact, scale)(x, t, cond), _mixture(x, t)

    def gap(length: float, variance: str) -> float:
        s = schedule.level(0.5 - length)
        alg_2, alg_1 = (process.reverse(p, x, t, s, variance=variance) for p in (guided, plain))
        shift = scale * alg_1.log_variance.exp() * pull
        return float((alg_2.mean - alg_1.mean - shift).norm() / shift.norm())

    return max(abs(1 - order([gap(0.01, variance), gap(0.005, variance)])) for variance in ("small", "large"))


@row(
    "guidance-interval",
    "guided where log SNR lies in [a, b], plain elsewhere, row by row",
    notes="beyond the notes; Kynkäänniemi et al. 2024, eq. 5",
    function="guide.interval",
    tolerance=1e-9,
)
def interval() -> float:
    """Largest difference to the score with γ = 3 inside and 1 outside, by autograd of torch's densities."""
    x, level, labels = _problem()
    strong = guide.classifier_free(_mixture, 3.0)
    p = guide.interval(strong, _mixture, -3.0, 2.0)(x, level, {"labels": labels})
    inside = (level.log_snr > -3) & (level.log_snr < 2)
    truth = torch.where(inside, _tilted_score(x, level, labels, 3.0), _tilted_score(x, level, labels, 1.0))
    return worst(p.score(level), truth)


@row(
    "guidance-composition",
    "∇ log p(x_t|y₁,y₂) = ∇ log p(x_t) + Σ (∇ log p(x_t|y_i) - ∇ log p(x_t)) for y₁ ⟂ y₂ given x_t",
    notes="beyond the notes; Liu et al. 2022, eq. 11",
    function="guide.compose",
    tolerance=1e-9,
)
def composition() -> float:
    """Largest difference to the score of the Gaussian posterior of both observations, each of one principal axis of the prior."""
    angle = 0.7
    axes = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mean, variances, noise, seen = torch.tensor([0.4, -0.2]), torch.tensor([1.5, 0.3]), torch.tensor([0.2, 0.5]), torch.tensor([1.0, -2.0])

    def posterior(kept: Tensor) -> oracle.GaussianMixture:
        """Given the observations of the kept axes: precisions add along each."""
        precision = 1 / variances + kept / noise
        centre = (mean / variances + kept * seen / noise) / precision
        return oracle.GaussianMixture(torch.ones(1), (axes @ centre)[None], (axes @ torch.diag(1 / precision) @ axes.T)[None])

    none, first, second, both = (posterior(torch.tensor(kept)) for kept in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]))
    x, level, _ = _problem()
    composed = guide.compose(none, [(first, 1.0), (second, 1.0)])(x, level)
    along = level.alpha.square() / (1 / variances + 1 / noise) + level.sigma.square()
    centre = (mean / variances + seen / noise) / (1 / variances + 1 / noise)
    truth = (-(x @ axes - level.alpha * centre) / along) @ axes.T
    return max(worst(composed.score(level), truth), worst(composed.x0, both(x, level).x0), _consistency(composed, x, level))


@row(
    "guidance-rescale",
    "v' = φ v std(v_y)/std(v) + (1 - φ) v",
    notes="beyond the notes; Lin et al. 2024, eqs. 15-16",
    function="guide.rescale",
    tolerance=1e-9,
)
def rescale() -> float:
    """Largest difference of each example's std to the conditional's at φ = 1, to the mean of both at φ = ½; and of alpha x0 + sigma eps."""
    x, level, labels = _problem()
    cond, strong = {"labels": labels}, guide.classifier_free(_mixture, 6.0)
    deviation = lambda p: p.v(level).std(1)  # noqa: E731
    guided, wanted = deviation(strong(x, level, cond)), deviation(_mixture(x, level, cond))
    full, half = (guide.rescale(strong, _mixture, phi)(x, level, cond) for phi in (1.0, 0.5))
    return max(worst(deviation(full), wanted), worst(deviation(half), (guided + wanted) / 2), _consistency(full, x, level))


@row(
    "guidance-thresholding",
    "x0 ∈ [-1, 1] and α x0 + σ ε = x_t, for static and dynamic thresholds",
    notes="004 Imagen; Saharia et al. 2022, section 2.3",
    function="guide.clip, guide.dynamic_clip",
    tolerance=1e-9,
)
def thresholding() -> float:
    """Excess over 1, the residual of x_t, and rows with few large entries: those are cut at the quantile, the rest divided by it."""
    x0 = torch.linspace(-2, 2, 41).repeat(3, 1) * torch.tensor([[0.4], [1.0], [3.0]])
    x = _VP.alpha * x0 + _VP.sigma * torch.randn(3, 41)
    predict = lambda x_t, level, cond=None: Prediction.from_x0(x0, x_t, level)  # noqa: E731
    static, dynamic = guide.clip(predict)(x, _VP), guide.dynamic_clip(predict, 0.75)(x, _VP)
    s = torch.tensor([[1.0], [1.5], [4.5]])  # |x0| takes 0, 0.1 … 2 twice (0 once), times the row's factor: the 30th of 0 … 40 is 1.5
    truth = torch.where(x0.abs() > s, x0.sign(), x0 / s)
    excess = max(0.0, float(static.x0.abs().max()) - 1)
    return max(
        excess, worst(dynamic.x0, truth), worst(static.x0, x0.clamp(-1, 1)), _consistency(static, x, _VP), _consistency(dynamic, x, _VP)
    )


@row(
    "guidance-ends",
    "without signal (α = 0) the classifier's gradient is zero; without noise (σ = 0) guidance changes nothing",
    notes="beyond the notes; Lin et al. 2024, section 3.2",
    function="guide.classifier, guide.rescale",
    tolerance=1e-12,
)
def ends() -> float:
    """Largest change of x0 and eps at the two ends of a chain with zero terminal SNR."""
    chain, x, cond = Discrete.linear(1000).zero_terminal(), torch.randn(8, 2), {"labels": torch.arange(8) % 3}
    plain = lambda x_t, level, cond=None: Prediction(x_t.cos(), x_t.sin())  # noqa: E731
    guided, errors = guide.classifier(plain, _exact, 4.0), []
    for t in (0.0, 1.0):
        p, q = guided(x, chain.level(t), cond), plain(x, chain.level(t))
        errors += [worst(p.x0, q.x0), worst(p.eps, q.eps)]
    return max(errors)


@row(
    "guidance-differentiable",
    "div of the guided score = Δ log p(x_t) + γ Δ log p(y|x_t)",
    notes="beyond the notes; Song et al. 2021, eq. 39",
    function="guide.classifier",
    tolerance=1e-6,
)
def differentiable() -> float:
    """Largest difference of the divergence by autograd (as likelihoods compute it) to central differences of torch's scores."""
    x, level, labels = _problem()
    inner = level.log_snr[:, 0].abs() < 4
    x, level, labels = x[inner], Level(level.alpha[inner], level.sigma[inner]), labels[inner]
    leaf, h = x.clone().requires_grad_(), 1e-5
    score = guide.classifier(guide.unconditional(_mixture), _exact, 2.0)(leaf, level, {"labels": labels}).score(level)
    ours = sum(torch.autograd.grad(score[:, i].sum(), leaf, retain_graph=True)[0][:, i] for i in range(2))
    sides = [[_tilted_score(x + sign * h * torch.eye(2)[i], level, labels, 2.0)[:, i] for sign in (1, -1)] for i in range(2)]
    truth = sum((above - below) / (2 * h) for above, below in sides)
    return worst(torch.as_tensor(ours), torch.as_tensor(truth))
