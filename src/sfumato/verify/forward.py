"""Ledger rows on the forward process: schedules, marginals, transitions, posteriors, SDEs, and prediction targets."""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sfumato import process
from sfumato.oracle import GaussianMixture
from sfumato.prediction import (
    Prediction,
    Target,
    edm_target,
    eps_target,
    flow_target,
    previous_target,
    score_target,
    v_target,
    x0_target,
)
from sfumato.probability import Joint
from sfumato.process import Normal
from sfumato.sampling import grid, spacing
from sfumato.schedule import (
    VE,
    Cosine,
    Discrete,
    Flow,
    LearnedSchedule,
    Level,
    LinearVP,
    Schedule,
    SubVP,
    flow_scales,
    sub_vp_scales,
    ve_scales,
    vp_scales,
)
from sfumato.verify.foundations import line
from sfumato.verify.ledger import row, standard_errors, worst

FORWARD = "004 Forward Diffusion Process"
REVERSE = "004 Reverse Diffusion Process"
SCALES = (vp_scales, ve_scales, flow_scales, sub_vp_scales)
TARGETS: tuple[Target, ...] = (x0_target, eps_target, v_target, score_target, flow_target, edm_target)


def curves() -> list[Schedule]:
    """One of each continuous schedule, and a learned one with bends."""
    learned = LearnedSchedule()
    with torch.no_grad():
        learned.outward.add_(8)
    return [Cosine(), LinearVP(), SubVP(), VE(), Flow(), learned]


def raw_chain(steps: int = 40) -> tuple[Discrete, Tensor, Tensor]:
    """A chain with its betas, and ᾱ as the cumulative product that the papers use."""
    betas = torch.linspace(0.005, 0.2, steps)
    return Discrete(betas), betas, torch.cumprod(1 - betas, 0)


def pairs(n: int = 64) -> list[tuple[Level, Level]]:
    """Levels t noisier than s, under every scaling."""
    found = []
    for scales in SCALES:
        schedule = Cosine(scales=scales, log_snr_max=9.0, log_snr_min=-9.0)
        times = torch.rand(n, 2).sort(1).values
        found.append((schedule.level(times[:, 1] * 0.98 + 0.02), schedule.level(times[:, 0] * 0.98)))
    return found


@row("schedule-linear", "β_t linear from 1e-4 to 0.02, T = 1000", notes="004 DDPM", function="sf.Discrete.linear", tolerance=1e-12)
def schedule_linear() -> float:
    """ᾱ as the product of 1 - β written out, and the ends of the paper."""
    chain = Discrete.linear(1000)
    product, alphas = 1.0, []
    for k in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        alphas.append(product)
    return worst(chain.level(torch.arange(1, 1001) / 1000).alpha.square(), torch.tensor(alphas))


@row(
    "schedule-cosine",
    "ᾱ_t = f(t)/f(0), f = cos²((t/T + s)/(1 + s) π/2)",
    notes="004 Improved DDPM",
    function="sf.Discrete.cosine",
    tolerance=1e-12,
)
def schedule_cosine() -> float:
    """f at three levels computed by hand, and β clipped at 0.999."""
    chain = Discrete.cosine(100)
    f = [math.cos((k / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in (0, 1, 50, 98)]
    ours = chain.level(torch.tensor([0.01, 0.5, 0.98])).alpha.square()
    return max(worst(ours, torch.tensor(f[1:]) / f[0]), worst(chain.betas[-1], 0.999))


@row(
    "schedule-sigmoid",
    "ᾱ from a sigmoid between two ends",
    notes="004 Parameterization of β_t",
    function="sf.Discrete.sigmoid",
    tolerance=1e-12,
)
def schedule_sigmoid() -> float:
    """γ(t) of Jabri et al. (2022), alg. 1, at five levels computed by hand."""
    chain, sigmoid = Discrete.sigmoid(50), lambda x: 1 / (1 + math.exp(-x))
    truth = [(sigmoid(3) - sigmoid(6 * k / 50 - 3)) / (sigmoid(3) - sigmoid(-3)) for k in (1, 10, 25, 40, 49)]
    return worst(chain.level(torch.tensor([1, 10, 25, 40, 49]) / 50).alpha.square(), torch.tensor(truth))


@row("schedule-sqrt", "ᾱ_t = 1 - √(t/T + s)", notes="004 Parameterization of β_t", function="sf.Discrete.sqrt", tolerance=1e-12)
def schedule_sqrt() -> float:
    """four levels computed by hand."""
    truth = [1 - math.sqrt(k / 200 + 1e-4) for k in (1, 20, 100, 198)]
    return worst(Discrete.sqrt(200).level(torch.tensor([1, 20, 100, 198]) / 200).alpha.square(), torch.tensor(truth))


@row(
    "schedule-zero-terminal",
    "√ᾱ shifted and scaled: ᾱ_T = 0, ᾱ_1 kept",
    notes="beyond the notes (Lin et al. 2024, alg. 1)",
    function="sf.Discrete.zero_terminal",
    tolerance=1e-10,
)
def schedule_zero_terminal() -> float:
    """both ends, and that the new √ᾱ is an affine function of the old one."""
    old, new = Discrete.linear(100), Discrete.linear(100).zero_terminal()
    k = torch.arange(1, 101) / 100
    before, after = old.level(k).alpha, new.level(k).alpha
    slope = (after[1:] - after[:-1]) / (before[1:] - before[:-1])
    return max(worst(after[0], before[0]), float(after[-1].abs()), worst(slope, slope[0].expand_as(slope)))


@row("schedule-inverse", "t(log SNR(t)) = t", notes="002 VDM", function="sf.Schedule.time", tolerance=1e-6)
def schedule_inverse() -> float:
    """every schedule at 200 times: time(log_snr(t)) = t."""
    t = torch.linspace(0.01, 0.99, 200)
    every = [*curves(), Discrete.linear(1000), Discrete.cosine(100), Discrete.linear(50).zero_terminal()]
    return max(worst(schedule.time(schedule.log_snr(t)), t) for schedule in every)


@row(
    "schedule-scales",
    "α² + σ² = 1; α = 1; α + σ = 1; σ = 1 - α²",
    notes="002 VDM; 004 SDEs",
    function="sf.vp_scales; .ve_scales; .flow_scales; .sub_vp_scales",
    tolerance=1e-12,
)
def schedule_scales() -> float:
    """each rule, and α²/σ² = exp(log SNR), from -20 to 20 nats."""
    log_snr = torch.linspace(-20, 20, 401)
    (a, s), (b, r), (c, q), (d, p) = (scales(log_snr) for scales in SCALES)
    ratios = max(worst(2 * (x.log() - y.log()), log_snr) for x, y in ((a, s), (b, r), (c, q), (d, p)))
    rules = (a.square() + s.square(), b, c + q, p + d.square())
    return max(ratios, *(worst(rule, torch.ones_like(log_snr)) for rule in rules))


@row("schedule-learned", "log SNR monotone in t between learned ends", notes="002 VDM", function="sf.LearnedSchedule", tolerance=1e-9)
def schedule_learned() -> float:
    """both ends, that it decreases everywhere, and that d log SNR/d(end) = 1 at that end only."""
    schedule = curves()[-1]
    assert isinstance(schedule, LearnedSchedule)
    values = schedule.log_snr(torch.linspace(0, 1, 301))
    by_top = torch.autograd.grad(values[0], schedule.log_snr_max, retain_graph=True)[0]
    rises = float(values.detach().diff().max().clamp(min=0))
    return max(rises, worst(values[0], 13.3), worst(values[-1], -5.0), worst(by_top, 1.0))


@row(
    "marginal",
    "q(x_t|x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I)",
    notes=f"001 q(x_t); 002 VDM; {FORWARD}",
    function="sf.process.marginal",
    tolerance=1e-12,
)
def marginal() -> float:
    """the chain x_k = √(1-β_k) x_{k-1} + √β_k z over 40 steps: mean and variance by recursion."""
    chain, betas, _ = raw_chain()
    mean, variance, errors = torch.tensor([0.7]), torch.zeros(()), []
    for k, beta in enumerate(betas, start=1):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        q = process.marginal(torch.tensor([0.7]), chain.level(k / 40))
        errors += [worst(q.mean, mean), worst(q.log_variance.exp(), variance)]
    return max(errors)


@row("marginal-simulated", "x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε", notes=f"{FORWARD}", function="sf.process.transition", tolerance=4.0)
def marginal_simulated() -> float:
    """20,000 simulated chains of 40 noisy steps: mean and variance in standard errors."""
    chain, _, alphas = raw_chain()
    generator = torch.Generator().manual_seed(0)
    x = torch.full((20_000, 1), 1.5)
    for k in range(40):
        x = process.transition(x, chain.level(k / 40), chain.level((k + 1) / 40)).sample(generator)
    mean = 1.5 * alphas[-1].sqrt()
    return max(standard_errors(x, mean), standard_errors((x - mean).square(), 1 - alphas[-1]))


@row(
    "transition",
    "q(x_t|x_s) q(x_s|x_0) → q(x_t|x_0) for any s < t",
    notes="001 Forward; 002 VDM",
    function="sf.process.transition",
    tolerance=1e-12,
)
def transition() -> float:
    """the moments of the two steps combined, at 64 pairs of levels under four scalings."""
    errors = []
    for t, s in pairs():
        step = process.transition(s.alpha * 0.8, s, t)
        variance = step.log_variance.exp() + (t.alpha / s.alpha * s.sigma).square()
        errors += [worst(step.mean, t.alpha * 0.8), worst(variance / t.sigma.square(), torch.ones_like(variance))]
    return max(errors)


@row(
    "transition-beta",
    "σ²_{t|t-1} = β_t, α_{t|t-1} = √(1-β_t)",
    notes=f"001 Forward; {FORWARD}",
    function="sf.process.transition_log_variance",
    tolerance=1e-12,
)
def transition_beta() -> float:
    """the betas that the chain was built from, and those of a respaced chain as 1 - ᾱ_t/ᾱ_s."""
    chain, betas, alphas = raw_chain()
    levels = [chain.level(k / 40) for k in range(41)]
    ours = torch.stack([process.transition_log_variance(s, t).exp() for s, t in pairwise(levels)])
    respaced = torch.stack([process.transition_log_variance(levels[k], levels[k + 5]).exp() for k in range(5, 36, 5)])
    truth = torch.stack([1 - alphas[k + 4] / alphas[k - 1] for k in range(5, 36, 5)])
    return max(worst(ours, betas), worst(respaced, truth))


@row(
    "posterior",
    "q(x_s|x_t,x_0) = q(x_t|x_s,x_0) q(x_s|x_0)/q(x_t|x_0)",
    notes=f"001 Posterior; 002 (84); {REVERSE}",
    function="sf.process.posterior",
    tolerance=1e-9,
)
def posterior() -> float:
    """the joint Gaussian of (x_s, x_t) given x_0, conditioned by linear algebra; 64 pairs, four scalings."""
    errors = []
    for t, s in pairs():
        for i in range(len(t.alpha)):
            ratio = t.alpha[i] / s.alpha[i]
            start = Joint((s.alpha[i] * 0.6)[None], s.sigma[i].square()[None, None])
            noise = (t.sigma[i].square() - (ratio * s.sigma[i]).square())[None, None]
            truth = start.then(ratio[None, None], torch.zeros(1), noise).given([1], torch.tensor([-0.4]))
            ours = process.posterior(torch.tensor(0.6), torch.tensor(-0.4), Level(t.alpha[i], t.sigma[i]), Level(s.alpha[i], s.sigma[i]))
            errors += [worst(ours.mean, truth.mean[0]), worst(ours.log_variance.exp(), truth.covariance[0, 0])]
    return max(errors)


@row(
    "posterior-bayes",
    "log q(x_s|x_t,x_0) = log q(x_t|x_s) + log q(x_s|x_0) - log q(x_t|x_0)",
    notes=f"001 Posterior; {REVERSE}",
    function="sf.process.posterior",
    tolerance=1e-9,
)
def posterior_bayes() -> float:
    """the four log-densities at 50 points of one step."""
    chain, _, _ = raw_chain()
    t, s = chain.level(0.5), chain.level(0.475)
    x0, x_t, x_s = torch.tensor(0.3), torch.tensor(-0.2), torch.linspace(-1.5, 1.5, 50)
    likelihood = process.transition(x_s, s, t).log_prob(x_t.expand_as(x_s))
    by_bayes = likelihood + process.marginal(x0.expand_as(x_s), s).log_prob(x_s) - process.marginal(x0, t).log_prob(x_t)
    return worst(process.posterior(x0.expand_as(x_s), x_t.expand_as(x_s), t, s).log_prob(x_s), by_bayes)


@row(
    "posterior-mean-x0",
    "μ̃ = √ᾱ_{t-1}β_t/(1-ᾱ_t) x_0 + √α_t(1-ᾱ_{t-1})/(1-ᾱ_t) x_t",
    notes=f"001 Posterior; 002 (84); {REVERSE}",
    function="sf.process.posterior",
    tolerance=1e-12,
)
def posterior_mean_x0() -> float:
    """the paper's coefficients, computed from betas and their products, over a chain."""
    chain, betas, alphas = raw_chain()
    x0, x_t, errors = torch.randn(8), torch.randn(8), []
    for k in range(2, 41):
        a, before, beta = alphas[k - 1], alphas[k - 2], betas[k - 1]
        truth = before.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - a) * x_t
        errors.append(worst(process.posterior(x0, x_t, chain.level(k / 40), chain.level((k - 1) / 40)).mean, truth))
    return max(errors)


@row(
    "posterior-mean-eps",
    "μ̃ = (x_t - β_t/√(1-ᾱ_t) ε)/√α_t",
    notes=f"001 Posterior; 002 (125); {REVERSE}",
    function="sf.process.posterior",
    tolerance=1e-12,
)
def posterior_mean_eps() -> float:
    """the second form of the mean, computed from the noise that was added."""
    chain, betas, alphas = raw_chain()
    x0, eps, errors = torch.randn(8), torch.randn(8), []
    for k in range(1, 41):
        a, beta = alphas[k - 1], betas[k - 1]
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
        truth = (x_t - beta / (1 - a).sqrt() * eps) / (1 - beta).sqrt()
        errors.append(worst(process.posterior(x0, x_t, chain.level(k / 40), chain.level((k - 1) / 40)).mean, truth))
    return max(errors)


@row(
    "posterior-variance",
    "β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t) β_t",
    notes=f"001 Posterior; 002 (84); {REVERSE}",
    function="sf.process.posterior_log_variance",
    tolerance=1e-12,
)
def posterior_variance() -> float:
    """the paper's ratio over a chain; 0 in the step to the data."""
    chain, betas, alphas = raw_chain()
    ours = torch.stack([process.posterior_log_variance(chain.level(k / 40), chain.level((k - 1) / 40)).exp() for k in range(1, 41)])
    truth = (1 - torch.cat([torch.ones(1), alphas[:-1]])) / (1 - alphas) * betas
    return worst(ours, truth)


@row(
    "respaced-chain",
    "any subset of levels is a chain: β, β̃ from ᾱ_t/ᾱ_s",
    notes="001 Accelerated generation; 004 Improved DDPM",
    function="sf.Discrete.through",
    tolerance=1e-12,
)
def respaced_chain() -> float:
    """the chain through 25 of 1000 levels has their ᾱ and 1 - ᾱ_t/ᾱ_s as betas."""
    chain = Discrete.linear(1000)
    levels = grid(chain, 25, spacing=spacing.openai_sections())
    short, alphas = Discrete.through(levels), torch.stack([level.alpha for level in levels]).square().flip(0)
    truth = 1 - alphas[1:] / alphas[:-1]
    return max(worst(short.betas, truth), worst(short.level(torch.arange(1, 26) / 25).alpha.square(), alphas[1:]))


@row("sde-moments", "dm = f m dt, dV = (2fV + g²) dt", notes="004 SDEs; 002 SGM", function="sf.process.sde", tolerance=1e-6)
def sde_moments() -> float:
    """the moment equations integrated by Runge-Kutta from t = 0.1 to 0.9, against α and σ² of six schedules."""
    errors = []
    for schedule in curves():
        times = torch.linspace(0.1, 0.9, 801)
        level = schedule.level(times)
        f, g2 = process.sde(schedule, times)
        mid_f, mid_g2 = process.sde(schedule, (times[1:] + times[:-1]) / 2)
        h = float(times[1] - times[0])
        state = torch.stack([level.alpha[0], level.sigma[0].square()]).detach()
        for i in range(800):
            slope = lambda y, a, b: torch.stack([a * y[0], 2 * a * y[1] + b])  # noqa: E731
            k1 = slope(state, f[i], g2[i])
            k2 = slope(state + h / 2 * k1, mid_f[i], mid_g2[i])
            k3 = slope(state + h / 2 * k2, mid_f[i], mid_g2[i])
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(state + h * k3, f[i + 1], g2[i + 1]))
        errors += [worst(state[0], level.alpha[-1]), worst(state[1], level.sigma[-1].square())]
    return max(errors)


@row("sde-vp", "f = -β/2, g² = β", notes="004 SDEs", function="sf.process.sde; sf.LinearVP", tolerance=1e-9)
def sde_vp() -> float:
    """the linear β of the paper, times the schedule's stretch factor (it is cut at both ends)."""
    schedule, t = LinearVP(), torch.linspace(0.05, 0.95, 50)
    f, g2 = process.sde(schedule, t)
    start, stop = schedule.inverse(torch.tensor([schedule.log_snr_max, schedule.log_snr_min]))
    beta = (stop - start) * (0.1 + 19.9 * (start + (stop - start) * t))
    return max(worst(f, -beta / 2), worst(g2, beta))


@row(
    "sde-sub-vp",
    "f = -β/2, g² = β(1 - exp(-2∫β))",
    notes="beyond the notes (Song et al. 2021, eq. 29)",
    function="sf.process.sde; sf.SubVP",
    tolerance=1e-9,
)
def sde_sub_vp() -> float:
    """the paper's formula, times the schedule's stretch factor (it is cut at both ends)."""
    schedule, t = SubVP(), torch.linspace(0.05, 0.95, 50)
    f, g2 = process.sde(schedule, t)
    start, stop = schedule.inverse(torch.tensor([schedule.log_snr_max, schedule.log_snr_min]))
    u = start + (stop - start) * t
    beta = (stop - start) * (0.1 + 19.9 * u)
    return max(worst(f, -beta / 2), worst(g2, beta * (1 - torch.exp(-2 * (0.1 * u + 19.9 / 2 * u**2)))))


@row("sde-ve", "f = 0, g² = dσ²/dt", notes="004 SDEs", function="sf.process.sde; sf.VE", tolerance=1e-9)
def sde_ve() -> float:
    """σ_min (σ_max/σ_min)^t √(2 log(σ_max/σ_min)) squared."""
    t = torch.linspace(0, 1, 50)
    f, g2 = process.sde(VE(), t)
    ratio = 80 / 0.002
    return max(float(f.abs().max()), worst(g2, (0.002 * ratio**t).square() * 2 * math.log(ratio)))


def gaussian() -> GaussianMixture:
    """One Gaussian in the plane."""
    return GaussianMixture(torch.ones(1), torch.tensor([[0.5, -1.0]]), torch.tensor([[[0.8, 0.3], [0.3, 0.5]]]))


@row("probability-flow", "dx/dt = f x - ½ g² ∇log p(x)", notes="004 SDEs; 002 SGM", function="sf.process.flow_velocity", tolerance=1e-5)
def probability_flow() -> float:
    """a Gaussian: the flow keeps standard scores along its axes, so the path is exact; it is differentiated numerically."""
    oracle, errors = gaussian(), []
    axes, variances, mean = oracle.axes[0], oracle.variances[0], oracle.means[0]
    z = torch.randn(32, 2)

    def path(level: Level) -> Tensor:
        return level.alpha * mean + (z * (level.alpha**2 * variances + level.sigma**2).sqrt()) @ axes.T

    for schedule in (Cosine(log_snr_max=8.0, log_snr_min=-8.0), VE(), Flow(log_snr_max=8.0, log_snr_min=-8.0)):
        for t in (0.2, 0.5, 0.8):
            level, h = schedule.level(t), 1e-5
            f, g2 = process.sde(schedule, torch.tensor(t))
            ours = process.flow_velocity(oracle(path(level), level), path(level), level, f, g2)
            errors.append(worst(ours, (path(schedule.level(t + h)) - path(schedule.level(t - h))) / (2 * h)))
    return max(errors)


@row("reverse-sde", "dx = (f x - g² ∇log p) dt + g dw̄", notes="004 SDEs", function="sf.process.reverse_drift", tolerance=1e-5)
def reverse_sde() -> float:
    """the covariance of a Gaussian integrated backwards with the moment equation of the reverse drift, against the schedule's."""
    oracle, schedule = gaussian(), Cosine(log_snr_max=6.0, log_snr_min=-6.0)
    times = torch.linspace(0.9, 0.1, 4001)
    level = schedule.level(times)
    f, g2 = process.sde(schedule, times)
    variances, mean = oracle.variances[0], oracle.means[0] @ oracle.axes[0]
    h = float(times[1] - times[0])

    def slope(state: Tensor, at: Level, a: Tensor, b: Tensor) -> Tensor:
        x = torch.stack([state[0], state[0] + 1]) @ oracle.axes[0].T
        drift = process.reverse_drift(oracle(x, at), x, at, a, b) @ oracle.axes[0]
        return torch.stack([drift[0], 2 * (drift[1] - drift[0]) * state[1] - b])

    total = level.alpha[:, None].square() * variances + level.sigma[:, None].square()
    state = torch.stack([level.alpha[0] * mean, total[0]])
    for i in range(0, 4000, 8):
        at, to = Level(level.alpha[i], level.sigma[i]), Level(level.alpha[i + 4], level.sigma[i + 4])
        half = state + 4 * h * slope(state, at, f[i], g2[i])
        state = state + 8 * h * slope(half, to, f[i + 4], g2[i + 4])
    return max(worst(state[0], level.alpha[-1] * mean), worst(state[1], total[-1]))


def halves(n: int = 256) -> tuple[Tensor, Tensor]:
    """x0 and eps."""
    return torch.randn(n, 3), torch.randn(n, 3)


@row(
    "targets",
    "y = a x_0 + b ε and x_t = α x_0 + σ ε determine (x_0, ε)",
    notes="002 (69), (115), (133); 004 Optimize Diffusion Models",
    function="sf.Prediction.solve",
    tolerance=1e-9,
)
def targets() -> float:
    """six targets under four scalings at 256 levels: y built from its definition, x_0 and ε recovered."""
    x0, eps = halves()
    errors = []
    for scales in SCALES:
        level = Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0).level(torch.rand(256), like=x0)
        x_t, r = level.alpha * x0 + level.sigma * eps, torch.hypot(level.alpha, level.sigma)
        c_in = (level.sigma / level.alpha).square() + 0.25
        outputs: list[tuple[Target, Tensor]] = [
            (x0_target, x0),
            (eps_target, eps),
            (v_target, (level.alpha * eps - level.sigma * x0) / r),
            (score_target, -eps / level.sigma),
            (flow_target, eps - x0),
            (edm_target, (x0 - 0.25 / c_in * x_t / level.alpha) * c_in.sqrt() / (level.sigma / level.alpha * 0.5)),
        ]
        for target, y in outputs:
            p = Prediction.solve(y, x_t, level, target)
            errors += [worst(p.x0, x0), worst(p.eps, eps)]
    return max(errors)


@row("target-x0-eps", "x_0 = (x_t - √(1-ᾱ_t) ε)/√ᾱ_t", notes="001 Reverse (f_θ); 002 (115)", function="sf.eps_target", tolerance=1e-12)
def target_x0_eps() -> float:
    """the formula from ᾱ of a chain."""
    chain, _, alphas = raw_chain()
    eps, x_t = torch.randn(40, 3), torch.randn(40, 3)
    p = Prediction.solve(eps, x_t, chain.level(torch.arange(1, 41) / 40, like=x_t), eps_target)
    return worst(p.x0, (x_t - (1 - alphas[:, None]).sqrt() * eps) / alphas[:, None].sqrt())


@row("target-score", "∇log q(x_t|x_0) = -ε/σ", notes="002 SGM (151)", function="sf.Prediction.score", tolerance=1e-9)
def target_score() -> float:
    """automatic differentiation of log q(x_t | x_0)."""
    x0, eps = halves()
    level = VE().level(torch.rand(256) * 0.9 + 0.1, like=x0)
    x_t = (level.alpha * x0 + level.sigma * eps).requires_grad_()
    (gradient,) = torch.autograd.grad(process.marginal(x0, level).log_prob(x_t).sum(), x_t)
    return worst(Prediction(x0, eps).score(level), gradient)


@row(
    "target-v",
    "v = dx/dφ on the circle x = cos φ x_0 + sin φ ε",
    notes="beyond the notes (Salimans & Ho 2022, appendix D)",
    function="sf.Prediction.v",
    tolerance=1e-8,
)
def target_v() -> float:
    """a numerical derivative along the circle, and the same v from any scaling of the level."""
    x0, eps = halves()
    phi, h = torch.rand(256, 1) * 1.4 + 0.05, 1e-6
    move = lambda angle: angle.cos() * x0 + angle.sin() * eps  # noqa: E731
    truth = (move(phi + h) - move(phi - h)) / (2 * h)
    level = Level(phi.cos(), phi.sin())
    scaled = Level(3 * level.alpha, 3 * level.sigma)
    p = Prediction(x0, eps)
    return max(worst(p.v(level), truth), worst(p.v(scaled), truth))


@row(
    "target-edm",
    "x_0 = c_skip x + c_out F, Var F = 1",
    notes="beyond the notes (Karras et al. 2022, appendix B.6)",
    function="sf.edm_target",
    tolerance=1e-9,
)
def target_edm() -> float:
    """the variance of F over data of variance s² and unit noise, and its independence of x_t: closed forms of a and b."""
    errors = []
    for data_std in (0.3, 0.5, 1.7):
        level = VE().level(torch.linspace(0, 1, 100))
        a, b = edm_target(level, data_std=data_std)
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        variance = a.square() * data_std**2 + b.square()
        covariance = a * level.alpha * data_std**2 + b * level.sigma
        errors += [worst(variance, torch.ones(100)), float((covariance / level.sigma.clamp(min=1)).abs().max())]
    return max(errors)


@row("target-previous", "y = μ̃(x_t, x_0)", notes="002 (92); 004 Optimize Diffusion Models", function="sf.previous_target", tolerance=1e-9)
def target_previous() -> float:
    """the posterior mean as the network's output: x_0 is recovered at every level, including the step to the data."""
    chain, errors = raw_chain()[0], []
    x0, eps = halves(16)
    for k in range(1, 41):
        t, s = chain.level(k / 40), chain.level((k - 1) / 40)
        x_t = t.alpha * x0 + t.sigma * eps
        y = process.posterior(x0, x_t, t, s).mean
        errors.append(worst(Prediction.solve(y, x_t, t, partial(previous_target, chain=chain)).x0, x0))
    return max(errors)


@row(
    "reverse-mean",
    "μ_θ = μ̃(x_t, x̂_0) = (x_t - β_t/√(1-ᾱ_t) ε_θ)/√α_t",
    notes=f"001 Loss; 002 (94), (125); {REVERSE}",
    function="sf.process.reverse",
    tolerance=1e-10,
)
def reverse_mean() -> float:
    """the eps form of the model's mean, from a network that predicts eps."""
    chain, betas, alphas = raw_chain()
    x_t, raw, errors = torch.randn(8, 3), torch.randn(8, 3), []
    for k in range(1, 41):
        t, s = chain.level(k / 40), chain.level((k - 1) / 40)
        ours = process.reverse(Prediction.solve(raw, x_t, t, eps_target), x_t, t, s)
        truth = (x_t - betas[k - 1] / (1 - alphas[k - 1]).sqrt() * raw) / (1 - betas[k - 1]).sqrt()
        errors.append(worst(ours.mean, truth))
    return max(errors)


@row("reverse-mean-score", "μ_θ = (x_t + β_t s_θ)/√α_t", notes="002 SGM (139)", function="sf.process.reverse", tolerance=1e-10)
def reverse_mean_score() -> float:
    """the score form of the model's mean, from a network that predicts the score."""
    chain, betas, _ = raw_chain()
    x_t, score, errors = torch.randn(8, 3), torch.randn(8, 3), []
    for k in range(1, 41):
        t, s = chain.level(k / 40), chain.level((k - 1) / 40)
        ours = process.reverse(Prediction.solve(score, x_t, t, score_target), x_t, t, s)
        errors.append(worst(ours.mean, (x_t + betas[k - 1] * score) / (1 - betas[k - 1]).sqrt()))
    return max(errors)


@row(
    "reverse-variance",
    "Σ_θ = β̃, β, or exp(v log β + (1-v) log β̃)",
    notes="001 Loss; 004 Improved DDPM",
    function="sf.process.reverse",
    tolerance=1e-10,
)
def reverse_variance() -> float:
    """the three choices from betas and ᾱ; in the last step, the log β̃ of the previous step."""
    chain, betas, alphas = raw_chain()
    x_t, fraction = torch.zeros(4, 2), torch.rand(4, 2)
    p = Prediction(x_t, x_t, fraction)
    tilde = (1 - torch.cat([torch.ones(1), alphas[:-1]])) / (1 - alphas) * betas
    last, errors = tilde[1].log(), []
    for k in range(1, 41):
        t, s = chain.level(k / 40), chain.level((k - 1) / 40)
        low, high = (tilde[k - 1].log() if k > 1 else last), betas[k - 1].log()
        truths = {"small": low, "large": high if k > 1 else last, "learned": fraction * high + (1 - fraction) * low}
        for kind, truth in truths.items():
            errors.append(worst(process.reverse(p, x_t, t, s, variance=kind, last_log_variance=last).log_variance, truth))
    return max(errors)


@row(
    "terminal-law",
    "q(x_T|x_0) → N(0, I) as ᾱ_T → 0",
    notes=f"001 Forward; 002 VDM; {FORWARD}",
    function="sf.process.marginal",
    tolerance=1e-10,
)
def terminal_law() -> float:
    """KL(q(x_T|x_0) ‖ N(0, I)) of the linear chain by quadrature over x_T, and exactly 0 for zero terminal SNR."""
    x, end, none = line(), Discrete.linear(1000).level(1.0), Discrete.linear(100).zero_terminal().level(1.0)
    q, standard = process.marginal(torch.full_like(x, 0.9), end), Normal(torch.zeros_like(x), torch.zeros(()))
    integral = torch.trapezoid(q.log_prob(x).exp() * (q.log_prob(x) - standard.log_prob(x)), x)
    nothing = process.marginal(torch.full_like(x, 0.9), none).kl(standard)
    return max(abs(float(q.kl(standard)[0] - integral)), float(nothing.abs().max()))
