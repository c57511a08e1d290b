"""Ledger rows on training losses: equivalent weights, the bound as a loss, learned variances, distributions of training times."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sfumato import likelihood, loss, process
from sfumato.denoiser import CondLike, Denoiser
from sfumato.oracle import GaussianMixture
from sfumato.prediction import Prediction, edm_target
from sfumato.schedule import Cosine, Discrete, Flow, Level, LinearVP
from sfumato.verify.forward import gaussian, raw_chain
from sfumato.verify.foundations import hermite
from sfumato.verify.ledger import row, standard_errors, worst
from sfumato.verify.parts import constant

OPTIMIZE = "004 Optimize Diffusion Models"
SIMPLE_004 = "004 DDPM L_simple"


def errors_at(n: int = 200) -> tuple[Tensor, Tensor, Level, Prediction]:
    """x0, eps, a level a row, and a prediction that is wrong by a random amount."""
    x0, eps = torch.randn(n, 3), torch.randn(n, 3)
    level = Cosine(log_snr_max=8.0, log_snr_min=-8.0).level(torch.rand(n), like=x0)
    x_t = level.alpha * x0 + level.sigma * eps
    return x0, eps, level, Prediction.from_x0(x0 + 0.3 * torch.randn(n, 3), x_t, level)


def of_weight(weight: loss.Weight, error: Callable[[Prediction, Tensor, Tensor, Level], Tensor]) -> float:
    """Our loss under a weight against an explicit mean of squares."""
    x0, eps, level, wrong = errors_at()
    return worst(loss.simple(constant(wrong), x0, eps, level, weight=weight), error(wrong, x0, eps, level).mean(1))


@row(
    "loss-simple",
    "L_simple = E |ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)|²",
    notes=f"001 Loss; 002 VDM training; {OPTIMIZE}",
    function="sf.loss.simple",
    tolerance=1e-10,
)
def loss_simple() -> float:
    """the mean square of the error in eps."""
    return of_weight(loss.eps_weight, lambda p, x0, eps, level: (p.eps - eps).square())


@row("loss-x0", "|x_0 - x̂_0|²", notes="002 VDM (99)", function="sf.loss.x0_weight", tolerance=1e-10)
def loss_x0() -> float:
    """the mean square of the error in x0."""
    return of_weight(loss.x0_weight, lambda p, x0, eps, level: (p.x0 - x0).square())


@row(
    "loss-equivalence",
    "SNR |x_0 - x̂_0|² = |ε - ε_θ|² = σ² |s - s_θ|²",
    notes="002 (99), (130), (148)",
    function="sf.loss.simple; .score_matching",
    tolerance=1e-10,
)
def loss_equivalence() -> float:
    """the three losses of the notes, each computed from its own quantity."""
    x0, eps, level, wrong = errors_at()
    by_x0 = level.log_snr.exp().squeeze(1) * (wrong.x0 - x0).square().mean(1)
    by_score = level.sigma.square().squeeze(1) * (wrong.score(level) + eps / level.sigma).square().mean(1)
    ours = loss.simple(constant(wrong), x0, eps, level)
    return max(worst(ours, by_x0), worst(ours, by_score), worst(loss.score_matching(constant(wrong), x0, eps, level), by_score))


@row(
    "loss-v",
    "|v - v_θ|² = (SNR + 1) |x_0 - x̂_0|²",
    notes="beyond the notes (Salimans & Ho 2022, section 4)",
    function="sf.loss.v_weight",
    tolerance=1e-10,
)
def loss_v() -> float:
    """the mean square of the error in x0, with its weight."""
    return of_weight(loss.v_weight, lambda p, x0, eps, level: (level.log_snr.exp() + 1) * (p.x0 - x0).square())


@row(
    "loss-min-snr",
    "min(SNR, γ) |x_0 - x̂_0|²",
    notes="beyond the notes (Hang et al. 2023, eq. 4)",
    function="sf.loss.min_snr_weight",
    tolerance=1e-10,
)
def loss_min_snr() -> float:
    """the mean square of the error in x0, with its weight."""
    return of_weight(loss.min_snr_weight, lambda p, x0, eps, level: level.log_snr.exp().clamp(max=5) * (p.x0 - x0).square())


@row(
    "loss-truncated-snr",
    "max(SNR, 1) |x_0 - x̂_0|² = max(|ε - ε_θ|², |x_0 - x̂_0|²)",
    notes="beyond the notes (Salimans & Ho 2022, section 4)",
    function="sf.loss.truncated_snr_weight",
    tolerance=1e-10,
)
def loss_truncated_snr() -> float:
    """the larger of the two mean squares."""
    x0, eps, level, wrong = errors_at()
    larger = torch.maximum((wrong.eps - eps).square().mean(1), (wrong.x0 - x0).square().mean(1))
    return worst(loss.simple(constant(wrong), x0, eps, level, weight=loss.truncated_snr_weight), larger)


@row(
    "loss-edm",
    "λ(σ) c_out² = 1: the loss of the network's own output",
    notes="beyond the notes (Karras et al. 2022, eq. 8)",
    function="sf.loss.edm_weight",
    tolerance=1e-10,
)
def loss_edm() -> float:
    """the mean square of F - F_θ, both recovered from the preconditioning."""

    def output(p: Prediction, level: Level) -> Tensor:
        a, b = edm_target(level, data_std=0.7)
        return a * p.x0 + b * p.eps

    def error(p: Prediction, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        return (output(p, level) - output(Prediction(x0, eps), level)).square()

    return of_weight(partial(loss.edm_weight, data_std=0.7), error)


def kl_terms() -> list[tuple[float, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Along a chain at variance β̃: the KL in nats, then β, ᾱ_t, ᾱ_{t-1}, and the errors in x0 and eps."""
    chain, betas, alphas = raw_chain()
    terms = []
    for k in range(2, 41):
        t, s = chain.level(k / 40), chain.level((k - 1) / 40)
        x0, eps = torch.randn(1), torch.randn(1)
        x_t = t.alpha * x0 + t.sigma * eps
        wrong = Prediction.from_x0(x0 + 0.3, x_t, t)
        kl = process.posterior(x0, x_t, t, s).kl(process.reverse(wrong, x_t, t, s))
        terms.append((float(kl), betas[k - 1], alphas[k - 1], alphas[k - 2], wrong.x0 - x0, wrong.eps - eps))
    return terms


@row(
    "kl-as-mean",
    "L_{t-1} = |μ̃ - μ_θ|²/(2σ_t²)",
    notes=f"001 Loss; 002 (92); {OPTIMIZE}",
    function="sf.process.reverse; sf.Normal.kl",
    tolerance=1e-9,
)
def kl_as_mean() -> float:
    """the distance of the two means over twice β̃ (from the paper's betas), for every step of a chain."""
    terms, truth = kl_terms(), []
    for _, beta, a, before, by_x0, _ in terms:
        shift = before.sqrt() * beta / (1 - a) * by_x0
        truth.append(float(shift.square() / (2 * (1 - before) / (1 - a) * beta)))
    return worst(torch.tensor([term[0] for term in terms]), torch.tensor(truth))


@row(
    "kl-as-snr",
    "L_{t-1} = ½ (SNR_{t-1} - SNR_t) |x_0 - x̂_0|²",
    notes="002 VDM (99) and after",
    function="sf.process.reverse; sf.Normal.kl",
    tolerance=1e-9,
)
def kl_as_snr() -> float:
    """the difference of ᾱ/(1-ᾱ), for every step of a chain."""
    terms = kl_terms()
    truth = [float(0.5 * (before / (1 - before) - a / (1 - a)) * by_x0.square()) for _, _, a, before, by_x0, _ in terms]
    return worst(torch.tensor([term[0] for term in terms]), torch.tensor(truth))


@row(
    "kl-as-eps",
    "L_{t-1} = β²/(2σ²α_t(1-ᾱ_t)) |ε - ε_θ|²",
    notes=f"001 Loss; 002 (130); {OPTIMIZE}",
    function="sf.process.reverse; sf.Normal.kl",
    tolerance=1e-9,
)
def kl_as_eps() -> float:
    """the paper's weight on the error in eps, σ² = β̃."""
    terms, truth = kl_terms(), []
    for _, beta, a, before, _, by_eps in terms:
        variance = (1 - before) / (1 - a) * beta
        truth.append(float(beta**2 / (2 * variance * (1 - beta) * (1 - a)) * by_eps.square()))
    return worst(torch.tensor([term[0] for term in terms]), torch.tensor(truth))


@row("kl-as-score", "L_{t-1} = β²/(2σ²α_t) |s - s_θ|²", notes="002 SGM (148)", function="sf.process.reverse; sf.Normal.kl", tolerance=1e-9)
def kl_as_score() -> float:
    """the weight on the error in the score, -eps/√(1-ᾱ), σ² = β̃."""
    terms, truth = kl_terms(), []
    for _, beta, a, before, _, by_eps in terms:
        variance = (1 - before) / (1 - a) * beta
        truth.append(float(beta**2 / (2 * variance * (1 - beta)) * (by_eps / (1 - a).sqrt()).square()))
    return worst(torch.tensor([term[0] for term in terms]), torch.tensor(truth))


@row(
    "loss-random-term",
    "E_t[T · L_t] = Σ L_{t-1} + L_0",
    notes="002 VDM training; 004 Improved DDPM",
    function="sf.loss.vlb",
    tolerance=1e-10,
)
def loss_random_term() -> float:
    """the sum of the terms of the whole bound, on the same noise; every t of the chain once."""
    chain = Discrete.cosine(12)
    x0 = (torch.randint(0, 256, (1, 5)) / 127.5 - 1).expand(12, 5)
    eps, t = torch.randn(12, 5), torch.arange(1, 13) / 12
    last = process.posterior_log_variance(chain.level(2 / 12), chain.level(1 / 12))
    now, below = chain.level(t, like=x0), chain.level(torch.arange(12) / 12, like=x0)
    predict = constant(Prediction.from_x0(0.8 * x0, now.alpha * x0 + now.sigma * eps, now))
    ours = loss.vlb(predict, x0, eps, now, below, steps=12, last_log_variance=last).mean()
    total = torch.zeros(())
    for k in range(1, 13):
        high, low = chain.level(k / 12), chain.level((k - 1) / 12)
        x_t = high.alpha * x0[:1] + high.sigma * eps[k - 1 : k]
        p = Prediction.from_x0(0.8 * x0[:1], x_t, high)
        total = total + likelihood.term_bits(p, x0[:1], x_t, high, low, last_log_variance=last)[0]
    return worst(ours, total)


class _Half(nn.Module):
    """A network with two outputs: one for the mean, one for the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.variance = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-0.2))

    def forward(self, x: Tensor, log_snr: Tensor, cond: CondLike | None = None) -> Tensor:
        return torch.cat([self.mean * x, self.variance.expand_as(x)], dim=1)


def _hybrid_gradients() -> tuple[dict[str, Tensor], ...]:
    """Gradients of L_hybrid, L_simple and the bound, with respect to the mean's and the variance's parameter."""
    chain, x0, eps = Discrete.cosine(20), torch.rand(6, 2, 3) * 2 - 1, torch.randn(6, 2, 3)
    t = torch.tensor([1, 2, 5, 9, 14, 20]) / 20
    now, below = chain.level(t, like=x0), chain.level((t - 1 / 20).clamp(min=0), like=x0)
    last = process.posterior_log_variance(chain.level(2 / 20), chain.level(1 / 20))
    denoiser = Denoiser(_Half(), variance="learned")
    parameters = list(denoiser.net.parameters())
    values = (
        loss.hybrid(denoiser, x0, eps, now, below, steps=20, last_log_variance=last),
        loss.simple(denoiser, x0, eps, now),
        loss.vlb(denoiser, x0, eps, now, below, steps=20, variance="learned", last_log_variance=last),
    )
    found = []
    for value in values:
        gradients = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
        found.append({name: torch.zeros(()) if g is None else g for name, g in zip(("mean", "variance"), gradients, strict=True)})
    return tuple(found)


@row(
    "loss-hybrid",
    "L_hybrid = L_simple + λ L_vlb, the mean's gradient stopped in L_vlb",
    notes="004 Improved DDPM",
    function="sf.loss.hybrid",
    tolerance=1e-10,
)
def loss_hybrid() -> float:
    """gradients: for the mean those of L_simple only, for the variance λ times those of the bound."""
    hybrid, simple, bound = _hybrid_gradients()
    return max(worst(hybrid["mean"], simple["mean"]), worst(hybrid["variance"], 1e-3 * bound["variance"]))


@row("learned-variance-optimum", "the best log Σ_θ is log E(x_s - μ_θ)²", notes="004 Improved DDPM", function="sf.loss.vlb", tolerance=1e-4)
def learned_variance_optimum() -> float:
    """the fraction at which the bound's gradient vanishes, against the closed form β̃ + c₀² E(x_0 - x̂_0)² on a Gaussian."""
    chain = raw_chain()[0]
    t, s = chain.level(20 / 40), chain.level(19 / 40)
    deviation = 0.5
    node, weight = hermite(40)
    x0, eps = (each.reshape(-1, 1) for each in torch.meshgrid(deviation * node, node, indexing="ij"))
    share = (weight[:, None] * weight).reshape(-1)
    x_t = t.alpha * x0 + t.sigma * eps
    total = t.alpha.square() * deviation**2 + t.sigma.square()
    exact = Prediction.from_x0(t.alpha * deviation**2 / total * x_t, x_t, t)
    posterior_variance = deviation**2 * t.sigma.square() / total
    small, large = process.posterior_log_variance(t, s), process.transition_log_variance(s, t)
    reach = process.posterior(torch.ones(()), torch.zeros(()), t, s).mean.square() * posterior_variance
    best = ((small.exp() + reach).log() - small) / (large - small)

    def bound(fraction: Tensor) -> Tensor:
        p = Prediction(exact.x0, exact.eps, fraction.expand_as(x_t))
        return (share * likelihood.term_bits(p, x0, x_t, t, s, variance="learned")).sum()

    fraction = torch.zeros((), requires_grad=True)
    for _ in range(30):
        (slope,) = torch.autograd.grad(bound(fraction), fraction, create_graph=True)
        (bend,) = torch.autograd.grad(slope, fraction)
        fraction = (fraction - slope / bend).detach().requires_grad_()
    return worst(fraction, best)


@row("loss-vdm", "L_∞ = ½ E_t[-d log SNR/dt |ε - ε_θ|²]", notes="002 VDM (99), T → ∞", function="sf.loss.vdm", tolerance=1e-5)
def loss_vdm() -> float:
    """the discrete bound ½ Σ (SNR_s - SNR_t) |x_0 - x̂_0|² of 4,000 steps on a Gaussian, by quadrature."""
    oracle, schedule = gaussian(), Cosine(log_snr_max=6.0, log_snr_min=-6.0)
    return worst(_vdm_total(schedule), _snr_total(oracle, 6.0, -6.0))


def _vdm_total(schedule: Cosine | LinearVP | Flow) -> Tensor:
    """The mean of loss.vdm over t (4,000 midpoints) on `gaussian`; its exact mean square error replaces the draws of noise."""
    oracle, n = gaussian(), 4000
    t = (torch.arange(n) + 0.5) / n
    level = schedule.level(t, like=torch.empty(n, 2))
    share = level.alpha.square() / (level.alpha.square() * oracle.variances[0] + level.sigma.square())
    # E(eps_hat - eps)² = SNR E(x0_hat - x0)² = SNR (variance σ²/total), the same in every eigenvector direction
    square = share * oracle.variances[0]
    x0, eps = torch.zeros(n, 2), torch.zeros(n, 2)
    wrong = Prediction(x0, square.sqrt())
    return loss.vdm(constant(wrong), x0, eps, t, schedule).mean()


def _snr_total(oracle: GaussianMixture, top: float, bottom: float) -> Tensor:
    """½ ∫ E|x_0 - x̂_0|² dSNR of a Gaussian, a closed form: ½ mean log((1 + v SNR_top)/(1 + v SNR_bottom)), in bits/dim."""
    v = oracle.variances[0]
    return (0.5 * (torch.log1p(v * math.exp(top)) - torch.log1p(v * math.exp(bottom))) / math.log(2)).mean()


@row(
    "loss-vdm-invariance",
    "L_∞ depends on the schedule's ends only",
    notes="beyond the notes (Kingma et al. 2021, eq. 18)",
    function="sf.loss.vdm",
    tolerance=1e-5,
)
def loss_vdm_invariance() -> float:
    """three curves and scalings with the same ends, against the closed form in the ends."""
    truth = _snr_total(gaussian(), 5.0, -5.0)
    return max(worst(_vdm_total(curve(log_snr_max=5.0, log_snr_min=-5.0)), truth) for curve in (Cosine, LinearVP, Flow))


@row(
    "score-matching",
    "E|s_θ - ∇log q(x_t|x_0)|² = E|s_θ - ∇log q(x_t)|² + const",
    notes="002 SGM; 004 NCSN",
    function="sf.loss.score_matching",
    tolerance=1e-8,
)
def score_matching() -> float:
    """differences of two predictors' losses on a Gaussian by quadrature: the constant cancels."""
    node, weight = hermite(50)
    x0, eps = (each.reshape(-1, 1) for each in torch.meshgrid(0.8 * node, node, indexing="ij"))
    share, level = (weight[:, None] * weight).reshape(-1), Level(torch.tensor(0.7), torch.tensor(0.9))
    x_t = level.alpha * x0 + level.sigma * eps
    true = -x_t / (level.alpha.square() * 0.64 + level.sigma.square())
    losses, distances = [], []
    for guess in (-0.4 * x_t, 0.3 * torch.sin(x_t)):
        p = Prediction.from_x0((x_t + level.sigma.square() * guess) / level.alpha, x_t, level)
        losses.append((share * loss.score_matching(constant(p), x0, eps, level, weight=lambda level: torch.ones(()))).sum())
        distances.append((share * (guess - true).square().squeeze(1)).sum())
    return worst(losses[0] - losses[1], distances[0] - distances[1])


@row(
    "sliced-score-matching",
    "E[v'∇(v's) + ½|s|²] = ½ E|s - s*|² - ½ E|s*|²",
    notes="004 NCSN",
    function="sf.loss.sliced_score_matching",
    tolerance=4.0,
)
def sliced_score_matching() -> float:
    """closed form for a linear score on a Gaussian, 20,000 draws, in standard errors."""
    oracle, level = gaussian(), Level(torch.tensor(0.8), torch.tensor(0.6))
    generator = torch.Generator().manual_seed(0)
    x0, _ = oracle.sample(20_000, generator)
    x = level.alpha * x0 + level.sigma * torch.randn(20_000, 2, generator=generator)
    probe = torch.randn(20_000, 2, generator=generator)

    def predict(x_t: Tensor, level: Level, cond: CondLike | None = None) -> Prediction:
        score = -0.7 * x_t
        return Prediction((x_t + level.sigma.square() * score) / level.alpha, -level.sigma * score)

    values = loss.sliced_score_matching(predict, x, level, probe=probe)
    total = level.alpha.square() * oracle.variances[0] + level.sigma.square()
    second = total.sum() + (level.alpha * oracle.means[0]).square().sum()
    return standard_errors(values[:, None], -0.7 * 2 + 0.5 * 0.49 * second)


@row(
    "importance-sampling",
    "E_{t~p}[L_t/p_t] = Σ L_t, p_t ∝ √E L_t²",
    notes="004 Improved DDPM",
    function="sf.loss.Importance",
    tolerance=1e-9,
)
def importance_sampling() -> float:
    """probabilities from known second moments, and the weighted loss summed over all levels against the plain mean."""
    chain = Discrete.linear(50, beta_max=0.02)
    times, generator = loss.Importance(chain, history=2, uniform_share=0.0), torch.Generator().manual_seed(0)
    t, losses = torch.arange(1, 51) / 50, torch.rand(50, generator=generator) + 0.1
    uniform = worst(times.chances, torch.full((50,), 1 / 50))
    times.update(t, losses)
    times.update(t, 2 * losses)
    size = ((losses.square() + 4 * losses.square()) / 2).sqrt()
    unbiased = (times.chances * times.weight(t) * losses).sum()
    drawn = times(20_000, generator)
    counts = torch.bincount((drawn * 50).round().long() - 1, minlength=50) / 20_000
    far = float(((counts - times.chances) / (times.chances / 20_000).sqrt()).abs().max())
    return max(uniform, worst(times.chances, size / size.sum()), worst(unbiased, losses.mean()), 0.0 if far < 4.5 else far)


@row(
    "fitted-density",
    "p(log SNR) ∝ E L(log SNR)",
    notes="beyond the notes (Dieleman et al. 2022, section 4.3)",
    function="sf.loss.Fitted",
    tolerance=0.02,
)
def fitted_density() -> float:
    """a loss that doubles halfway: the share of times in each half, and the weighted mean against the uniform one."""
    schedule = Cosine(log_snr_max=8.0, log_snr_min=-8.0)
    times, generator = loss.Fitted(schedule, bins=16, uniform_share=0.0), torch.Generator().manual_seed(0)
    t = schedule.time(torch.linspace(7.9, -7.9, 400))
    losses = 1 + (schedule.log_snr(t) < 0).double()
    times.update(t, losses)
    drawn = times(20_000, generator)
    noisy = schedule.log_snr(drawn) < 0
    weighted = (times.weight(drawn) * (1 + noisy.double())).mean()
    return max(abs(float(noisy.double().mean()) - 2 / 3), abs(float(weighted) - 1.5))


@row(
    "stratified-levels",
    "one level in each n-th of the range: unbiased, with less variance",
    notes="beyond the notes (Kingma et al. 2021, appendix I.1)",
    function="sf.loss.Stratified",
    tolerance=4.0,
)
def stratified_levels() -> float:
    """E t² over 2,000 batches in standard errors; 100 if the batch means vary as much as independent ones."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([loss.Stratified(Flow())(16, generator).square().mean() for _ in range(2000)])
    return standard_errors(batches[:, None], 1 / 3) if float(batches.var()) < (4 / 45) / 16 / 4 else 100.0


@row(
    "log-normal-levels",
    "log σ/α ~ N(P_mean, P_std²)",
    notes="beyond the notes (Karras et al. 2022, table 1)",
    function="sf.loss.LogNormal",
    tolerance=0.01,
)
def log_normal_levels() -> float:
    """mean and std of 20,000 stratified draws."""
    schedule = Cosine(log_snr_max=30.0, log_snr_min=-30.0)
    ratio = -schedule.log_snr(loss.LogNormal(schedule)(20_000, torch.Generator().manual_seed(0))) / 2
    return max(abs(float(ratio.mean()) + 1.2), abs(float(ratio.std()) - 1.2))


@row("oracle-loss", "min E|x_0 - x̂_0|² = E Var[x_0|x_t]", notes="002 SGM; 000 Diffusion", function="sf.loss.simple", tolerance=4.0)
def oracle_loss() -> float:
    """the closed-form posterior variance of a Gaussian, 50,000 draws, in standard errors."""
    oracle, level, generator = gaussian(), Level(*(torch.tensor(v) for v in (0.6, 0.8))), torch.Generator().manual_seed(0)
    x0, _ = oracle.sample(50_000, generator)
    eps = torch.randn(50_000, 2, generator=generator)
    values = loss.simple(oracle, x0, eps, level, weight=loss.x0_weight)
    v = oracle.variances[0]
    return standard_errors(values[:, None], (v * level.sigma**2 / (level.alpha**2 * v + level.sigma**2)).mean())
