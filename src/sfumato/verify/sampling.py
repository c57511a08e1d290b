"""Ledger rows on sampling: the DDIM family, orders of solvers, laws of stochastic steps, inversion and encode-decode."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.oracle import GaussianMixture
from sfumato.process import marginal
from sfumato.sampling import encode_decode, flow, invert, progressive, slerp, steps
from sfumato.sampling.loop import Step, sample
from sfumato.sampling.spacing import grid, shifted
from sfumato.schedule import Cosine, Discrete, Level
from sfumato.verify.ledger import order, row, standard_errors, worst
from sfumato.verify.parts_step import SCALES, kolmogorov, line, quantile, quantile_order, strays

DDIM_001 = "001 DDIM, denoise (p)"
FASTER_001 = "001 DDIM, accelerated generation"
REVERSE_004 = "004 Reverse Diffusion Process"
SGM_002 = "002 SGM"
LANGEVIN_004 = "004 Optimize Diffusion Models, Langevin dynamics"
BEYOND = "beyond the notes"

MEAN, VARIANCE = 0.5, 0.3


def bell(variance: float = VARIANCE) -> GaussianMixture:
    """One Gaussian in one dimension; a point if its variance is zero."""
    return GaussianMixture(torch.ones(1), torch.tensor([[MEAN]]), torch.tensor([[[variance]]]))


def moments(step: Step, levels: Sequence[Level], *, draws: int = 1, variance: float = VARIANCE) -> tuple[Tensor, Tensor]:
    """Mean and variance of a sampler's output from the exact law of levels[0] on `bell`, without sampling error.

    A run there is linear: a + b x + Σ c_k z_k. More rows than draws, and the same seed for the noise, determine a, b and c.
    """
    count = draws * (len(levels) - 1)
    generator, rows = torch.Generator().manual_seed(1), count + 40
    start = torch.randn(rows, 1, generator=generator)
    before = generator.get_state()
    end = sample(bell(variance), start, levels, step, generator=generator)
    generator.set_state(before)
    noise = [torch.randn(rows, 1, generator=generator) for _ in range(count)]
    weights = torch.linalg.lstsq(torch.cat([torch.ones(rows, 1), start, *noise], 1), end).solution[:, 0]
    t = levels[0]
    reached = weights[1] ** 2 * (t.alpha**2 * variance + t.sigma**2) + weights[2:].square().sum()
    return weights[0] + weights[1] * t.alpha * MEAN, reached


def short_of(step: Step, levels: Sequence[Level], draws: int = 1) -> float:
    """The difference between the variance that a sampler reaches and that of its last level."""
    s = levels[-1]
    return float((moments(step, levels, draws=draws)[1] - (s.alpha**2 * VARIANCE + s.sigma**2)).abs())


def even(n: int, end: float = 8.0) -> list[Level]:
    """n steps uniform in log-SNR from -end to end."""
    return grid(Cosine(log_snr_max=end, log_snr_min=-end), n)


@row(
    "ddim-marginals",
    "q_σ(x_T | x0) Π q_σ(x_{t-1} | x_t, x0) has the marginals N(α_t x0, σ_t²) for every η",
    notes=DDIM_001,
    function="sf.steps.DDIM",
    tolerance=1e-9,
)
def ddim_marginals() -> float:
    """the composed Gaussians, moment by moment, on data of one point, for five chain lengths and η = 0.3, 0.7, 1."""
    chain, errors = Discrete.linear(1000), []
    for eta, last in itertools.product((0.3, 0.7, 1.0), (900, 600, 300, 100, 20)):
        levels = [chain.level(k / 1000) for k in range(1000, last - 1, -20)]
        mean, variance = moments(steps.DDIM(eta), levels, variance=0.0)
        errors.append(max(worst(mean, levels[-1].alpha * MEAN), worst(variance, levels[-1].sigma ** 2)))
    return max(errors)


@row(
    "ddim-subset",
    "any increasing sub-sequence τ of 1 … T has the same marginals",
    notes=FASTER_001,
    function="sf.sample over any levels",
    tolerance=1e-9,
)
def ddim_subset() -> float:
    """the composed Gaussians on data of one point over twenty random sub-sequences, at η = 0.5."""
    chain, errors = Discrete.cosine(1000), []
    for _ in range(20):
        kept = sorted({1000, *torch.randint(1, 1000, (12,)).tolist()}, reverse=True)
        levels = [chain.level(k / 1000) for k in kept]
        mean, variance = moments(steps.DDIM(0.5), levels, variance=0.0)
        errors.append(max(worst(mean, levels[-1].alpha * MEAN), worst(variance, levels[-1].sigma ** 2)))
    return max(errors)


@row(
    "ddim-eta-one",
    "η = 1: σ_t² = (1-α_{t-1})/(1-α_t) (1-α_t/α_{t-1}), the DDPM posterior",
    notes=DDIM_001,
    function="sf.steps.DDIM(1.0)",
    tolerance=1e-9,
)
def ddim_eta_one() -> float:
    """x_s given x_t and x0 by conditioning the joint Gaussian of (x_s, x_t), without either method's formula."""
    chain = Discrete.linear(1000)
    t, s = chain.level(0.3), chain.level(0.2)
    ratio = t.alpha / s.alpha
    gain = ratio * s.sigma**2 / (ratio**2 * s.sigma**2 + (t.sigma**2 - ratio**2 * s.sigma**2))
    x = torch.randn(50, 1)
    wanted_mean, wanted_variance = s.alpha * MEAN + gain * (x - t.alpha * MEAN), s.sigma**2 - gain * ratio * s.sigma**2
    seeds = [torch.Generator().manual_seed(2) for _ in range(3)]
    noise = torch.randn(50, 1, generator=seeds[0])
    wanted = wanted_mean + wanted_variance.sqrt() * noise
    return max(
        worst(step(bell(0.0), x, t, s, None, g)[0], wanted) for step, g in ((steps.DDIM(1.0), seeds[1]), (steps.Ancestral(), seeds[2]))
    )


@row(
    "ddim-eta",
    "σ_t(η)² = η² (1-α_{t-1})/(1-α_t) (1-α_t/α_{t-1}). Song et al. (2021), eq. 16",
    notes=DDIM_001,
    function="sf.steps.DDIM",
    tolerance=1e-9,
)
def ddim_eta() -> float:
    """the fresh noise of one step, recovered from a draw with the same seed, against the betas of the chain."""
    chain, x = Discrete.linear(1000), torch.zeros(20, 1)
    t, s, products = chain.level(0.3), chain.level(0.2), torch.cumprod(1 - chain.betas, 0)
    wanted = (1 - products[199]) / (1 - products[299]) * (1 - products[299] / products[199])
    noise, errors = torch.randn(20, 1, generator=torch.Generator().manual_seed(2)), []
    for eta in (0.3, 0.7, 1.0):
        out, _ = steps.DDIM(eta)(bell(0.0), x, t, s, None, torch.Generator().manual_seed(2))
        fresh = (out[1:] - out[:1]) / (noise[1:] - noise[:1])
        errors.append(worst(fresh, (eta * wanted.sqrt()).expand(19, 1)))
    return max(errors)


@row(
    "ddim-euler",
    "d(x/α) = ε d(σ/α): DDIM is Euler's rule on the probability flow",
    notes=f"{FASTER_001}; Song et al. (2021), eq. 14, arXiv:2010.02502",
    function="sf.steps.DDIM",
    tolerance=1e-10,
)
def ddim_euler() -> float:
    """the slope of a step to a nearby level against the closed-form flow of a Gaussian, and linearity of the step in σ/α."""
    schedule, x = Cosine(), torch.randn(40, 1)
    t = schedule.level(0.6)
    ends = [schedule.level(at) for at in (0.5, 0.3, 0.1)]
    slopes = torch.stack(
        [(steps.DDIM()(bell(), x, t, s, None, None)[0] / s.alpha - x / t.alpha) / (s.sigma / s.alpha - t.sigma / t.alpha) for s in ends]
    )
    rho, y = t.sigma / t.alpha, x / t.alpha
    exact = rho * (y - MEAN) / (VARIANCE + rho**2)  # of y(ρ) = m + (y - m) sqrt((c + ρ²)/(c + ρ_t²))
    return worst(slopes, exact.expand_as(slopes))


def _order_row(name: str, step: Step, nominal: int, source: str, from_steps: int) -> None:
    @row(f"order-{name}", f"error = O(h^{nominal}): {source}", notes=BEYOND, function=f"sf.steps.{step!r}", tolerance=0.2)
    def order_shortfall() -> float:
        """nominal minus measured order, on the quantiles of a mixture, which the flow keeps, under VP, VE and flow scales."""
        return nominal - min(quantile_order(step, scales, from_steps) for scales in SCALES)


_order_row("ddim", steps.DDIM(), 1, "Song et al. (2021), eq. 12", 24)
_order_row("heun", steps.Heun(), 2, "Karras et al. (2022), alg. 1", 32)
_order_row("multistep-2", steps.Multistep(2), 2, "DPM-Solver++(2M), Lu et al. (2022), alg. 2", 32)
_order_row("multistep-3", steps.Multistep(3), 3, "DPM-Solver++(3M) with the whole last term", 48)
_order_row("unipc-1", steps.UniPC(1), 2, "UniPC-1 gains one, Zhao et al. (2023), theorem 3.1", 32)
_order_row("unipc-2", steps.UniPC(2), 3, "UniPC-2 gains one, Zhao et al. (2023), theorem 3.1", 48)
_order_row("unipc-3", steps.UniPC(3), 4, "UniPC-3 gains one, Zhao et al. (2023), theorem 3.1", 48)
_order_row("adams-bashforth-2", steps.AdamsBashforth(2), 2, "Zhang & Chen (2023), eq. 15", 48)
_order_row("adams-bashforth-3", steps.AdamsBashforth(3), 3, "Zhang & Chen (2023), eq. 15", 64)
_order_row("adams-bashforth-4", steps.AdamsBashforth(4), 4, "Zhang & Chen (2023), eq. 15", 32)
_order_row("singlestep-2", steps.Singlestep(2), 2, "DPM-Solver-2, Lu et al. (2022), alg. 1, arXiv:2206.00927", 32)
_order_row("singlestep-3", steps.Singlestep(3), 3, "DPM-Solver-3, Lu et al. (2022), alg. 2, arXiv:2206.00927", 48)
_order_row("singlestep-x0", steps.Singlestep(2, "x0"), 2, "DPM-Solver++(2S), Lu et al. (2022), alg. 1", 32)
_order_row("plms", steps.PLMS(), 2, "Liu et al. (2022), eqs. 9 and 12, arXiv:2202.09778, on unequal steps", 32)


def _weak_row(name: str, step: Step, nominal: int, equation: str, notes: str) -> None:
    @row(f"weak-order-{name}", equation, notes=notes, function=f"sf.steps.{step!r}", tolerance=0.2)
    def weak_order_shortfall() -> float:
        """nominal minus measured order, of the exact variance reached on a Gaussian."""
        return nominal - order([short_of(step, even(n)) for n in (64, 128)])


_weak_row(
    "ancestral",
    steps.Ancestral(),
    1,
    "x_{t-1} = μ_θ + σ_t z reaches q(x_0) as T grows, error O(1/T)",
    f"{REVERSE_004}; 001 DDPM, denoise (p)",
)
_weak_row("ancestral-large", steps.Ancestral("large"), 1, "the same with σ_t² = β_t", REVERSE_004)
_weak_row("euler-maruyama", steps.EulerMaruyama(), 1, "dx = [f - g² ∇log p] dt + g dw by Euler-Maruyama", SGM_002)
_weak_row("sde-multistep", steps.Multistep(2, 1.0), 2, "SDE-DPM-Solver++(2M), Lu et al. (2022), eq. 18", BEYOND)


@row(
    "multistep-eta",
    "SDE-DPM-Solver++(1) is DDIM's q_σ: exp(-κh) = sqrt(1 - η²(1 - exp(-2h)))",
    notes=f"{DDIM_001}; Lu et al. (2022), eq. 18",
    function="sf.steps.Multistep(1, eta)",
    tolerance=1e-9,
)
def multistep_eta() -> float:
    """the marginals that q_σ must have on data of one point, which no solver is given, at η = 0.3, 0.7, 1."""
    levels, errors = even(20), []
    for eta in (0.3, 0.7, 1.0):
        mean, variance = moments(steps.Multistep(1, eta), levels, variance=0.0)
        errors.append(max(worst(mean, levels[-1].alpha * MEAN), worst(variance, levels[-1].sigma ** 2)))
    return max(errors)


def _law_row(name: str, step: Step, count: int, equation: str, notes: str) -> None:
    @row(f"law-{name}", equation, notes=notes, function=f"sf.steps.{step!r}", tolerance=1.95)
    def law_distance() -> float:
        """Kolmogorov distance of 5,000 samples from a mixture's exact law, in units of 1/sqrt(5,000)."""
        return kolmogorov(step, count, count=5_000)


_law_row("ancestral", steps.Ancestral(), 250, "p_θ(x_0) = q(x_0) for an exact predictor", REVERSE_004)
_law_row("euler-maruyama", steps.EulerMaruyama(), 100, "the reverse SDE ends in p(x_0)", SGM_002)
_law_row("sde-multistep", steps.Multistep(2, 1.0), 50, "the reverse SDE ends in p(x_0)", BEYOND)
_law_row(
    "predictor-corrector",
    steps.PredictorCorrector(),
    80,
    "predictor to s, Langevin at s: p(x_s). Song et al. (2021), alg. 1, arXiv:2011.13456",
    SGM_002,
)


_law_row("sde-singlestep", steps.SinglestepSDE(), 40, "DPM++ SDE on a Brownian path ends in p(x_0)", BEYOND)
_law_row("sde-eta", steps.MultistepSDE(2.0), 50, "twice the Langevin dynamics of the reverse SDE end in p(x_0)", BEYOND)


@row(
    "renoised",
    "down the flow to σ_s sqrt(1 - v), then up to σ_s with fresh noise: q(x_s) is kept for every v",
    notes=f"{BEYOND}; Karras et al. (2022), alg. 2, Xu et al. (2023), alg. 1, k-diffusion's ancestral samplers",
    function="sf.steps.Renoised, sf.steps.EDM, sf.steps.Restart",
    tolerance=1e-8,
)
def renoised() -> float:
    """mean and variance reached on data of one point, where every solver of the flow is exact, in units of σ."""
    levels, errors = even(9, 6.0), []
    for step, draws in (
        (steps.Renoised(steps.Singlestep(2)), 1),
        (steps.Renoised(steps.DDIM(), 3.0), 1),
        (steps.EDM(churn=0.4, s_tmin=0.0, s_noise=1.0), 1),
        (steps.Restart(low=0.5, high=3.0, times=4, steps=2), 4),
    ):
        mean, variance = moments(step, levels, draws=draws, variance=0.0)
        errors += [worst(mean / levels[-1].sigma, levels[-1].alpha / levels[-1].sigma * MEAN)]
        errors += [worst(variance / levels[-1].sigma ** 2, torch.ones(()))]
    return max(errors)


@row(
    "brownian-path",
    "N(λ) = ∫ exp(l - λ) sqrt(2) dW(l): Cov(N(λ), N(λ')) = exp(-|λ - λ'|)",
    notes=BEYOND,
    function="sf.steps.BrownianPath",
    tolerance=4.0,
)
def brownian_path() -> float:
    """covariances over 20,000 rows at six half log-SNRs, in standard errors."""
    path, halves = steps.BrownianPath.draw(torch.zeros(20_000, 1), torch.Generator().manual_seed(0)), (-9.0, -2.0, -1.9, 0.0, 0.4, 5.0)
    values = {half: path.at(half) for half in halves}
    pairs = itertools.combinations_with_replacement(halves, 2)
    return max(standard_errors(values[a] * values[b], math.exp(-abs(a - b))) for a, b in pairs)


@row(
    "sde-strong-order",
    "E|x^n - x^2n|² = O(h²) on one Brownian path",
    notes=BEYOND,
    function="sf.steps.SinglestepSDE, sf.steps.MultistepSDE",
    tolerance=0.2,
)
def sde_strong_order() -> float:
    """nominal minus measured order: root mean square difference over 2,000 seeds, from 16 and 32 steps to twice as many."""
    lacking = []
    for step in (steps.SinglestepSDE(), steps.MultistepSDE()):
        x = torch.randn(2_000, 1)
        ends = [sample(bell(), x, even(n, 6.0), step, generator=torch.Generator().manual_seed(1)) for n in (16, 32, 64)]
        lacking.append(1 - order([float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(ends)]))
    return max(lacking)


@row(
    "adaptive-sde",
    "the reverse SDE ends in p(x_0), whichever steps are rejected",
    notes=f"{BEYOND}; Jolicoeur-Martineau et al. (2021), alg. 1, arXiv:2105.14080",
    function="sf.steps.AdaptiveSDE",
    tolerance=1.95,
)
def adaptive_sde() -> float:
    """Kolmogorov distance of 1,000 samples from a mixture's exact law, in units of 1/sqrt(1,000)."""
    return kolmogorov(steps.AdaptiveSDE(rtol=0.05, atol=0.02), 2, count=1_000)


@row(
    "flow-shift",
    "t' = shift t / (1 + (shift - 1) t), t = σ/(α + σ): σ/α becomes shift σ/α. Esser et al. (2024), eq. 23, arXiv:2403.03206",
    notes=BEYOND,
    function="sf.spacing.shifted",
    tolerance=1e-9,
)
def flow_shift() -> float:
    """σ/α of the inner levels against `shift` times that of uniform t, on a cosine schedule."""
    ratios = [torch.stack([lv.sigma / lv.alpha for lv in grid(Cosine(), 12, spacing=shifted(k))[1:-1]]) for k in (1.0, 3.0)]
    t = ratios[0] / (1 + ratios[0])
    return max(worst(ratios[1] / ratios[0], torch.full((11,), 3.0)), worst(t.diff(), t.diff()[:1].expand(10)))


@row(
    "langevin-stationary",
    "x ← x + δ ∇log p(x) + sqrt(2δ) z tends to p, on N(m, c) with variance c / (1 - δ/(2c))",
    notes=f"{SGM_002}; {LANGEVIN_004}",
    function="sf.steps.langevin",
    tolerance=4.0,
)
def langevin_stationary() -> float:
    """mean and variance of 50,000 chains after 60 steps, in standard errors."""
    x = steps.langevin(
        lambda x: -(x - MEAN) / VARIANCE,
        torch.zeros(50_000, 1),
        step_size=0.1,
        steps=60,
        generator=torch.Generator().manual_seed(0),
    )
    return max(standard_errors(x, MEAN), standard_errors((x - MEAN).square(), VARIANCE / (1 - 0.1 / (2 * VARIANCE))))


@row(
    "annealed-langevin",
    "x ← x + α_i/2 s(x, σ_i) + sqrt(α_i) z, α_i = ε σ_i²/σ_L². Song & Ermon (2019), alg. 1, arXiv:1907.05600",
    notes=f"{SGM_002}; {LANGEVIN_004}",
    function="sf.steps.Langevin",
    tolerance=1e-8,
)
def annealed_langevin() -> float:
    """a recursion for the variance over all levels and steps on a Gaussian, and its mean."""
    levels, size = even(12, 6.0), 0.1
    variance, wanted = levels[0].alpha ** 2 * VARIANCE + levels[0].sigma ** 2, torch.tensor(0.0)
    for t, s in itertools.pairwise(levels):
        variance, wanted = variance * (s.alpha / t.alpha) ** 2, s.alpha**2 * VARIANCE + s.sigma**2
        for _ in range(5):
            variance = (1 - size * s.sigma**2 / wanted) ** 2 * variance + 2 * size * s.sigma**2
    mean, reached = moments(steps.Langevin(5, size), levels, draws=5)
    return max(worst(reached, variance), worst(mean, levels[-1].alpha * MEAN))


@row(
    "corrector",
    "at s: x ← x + δ ∇log p_s(x) + sqrt(2δ) z, δ = 2 (r σ_s)². Song et al. (2021), alg. 1 and 4, arXiv:2011.13456",
    notes=SGM_002,
    function="sf.steps.PredictorCorrector",
    tolerance=1e-9,
)
def corrector() -> float:
    """on one point, where DDIM keeps w = Var(x)/σ²: the recursion w ← (1 - 2r²)² w + 4r² at each level, and the mean."""
    levels, rate = [Cosine().level(at) for at in (0.9, 0.7, 0.5, 0.3)], 0.3
    share = 1.0
    for _ in range(2 * (len(levels) - 1)):
        share = (1 - rate) ** 2 * share + 2 * rate
    corrected = steps.PredictorCorrector(steps.DDIM(), steps.Langevin(2, rate))
    mean, variance = moments(corrected, levels, draws=2, variance=0.0)
    return max(worst(variance, share * levels[-1].sigma ** 2), worst(mean, levels[-1].alpha * MEAN))


def _spread(level: Level) -> Tensor:
    return (level.alpha**2 * VARIANCE + level.sigma**2).sqrt()


@row(
    "flow-gaussian",
    "dx/dt = f - ½ g² ∇log p keeps (x - α m)/sqrt(α² c + σ²) on a Gaussian, downwards and upwards",
    notes=SGM_002,
    function="sf.flow",
    tolerance=1e-6,
)
def flow_gaussian() -> float:
    """the closed-form flow, from noise to data and back, at tolerances of 1e-8, under VP, VE and flow scales."""
    x, errors = torch.randn(32, 1), []
    for scales, down in itertools.product(SCALES, (True, False)):
        noise, data = grid(Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0), 1)
        t, s = (noise, data) if down else (data, noise)
        here = t.alpha * MEAN + _spread(t) * x
        errors.append(worst(flow(bell(), here, t, s, rtol=1e-8, atol=1e-8).x / s.sigma, (s.alpha * MEAN + _spread(s) * x) / s.sigma))
    return max(errors)


@row(
    "flow-quantiles",
    "the probability flow has the SDE's marginals: P(x_t <= x) is constant along it",
    notes=SGM_002,
    function="sf.flow",
    tolerance=1e-6,
)
def flow_quantiles() -> float:
    """the distribution function of a mixture in one dimension, at both ends of the adaptive flow."""
    t, s = even(1)
    x = torch.linspace(-2.5, 2.5, 61)[:, None]
    return worst(quantile(flow(line(), x, t, s, rtol=1e-8, atol=1e-8).x, s), quantile(x, t))


@row(
    "ddim-inversion",
    "x_{t+1} = α_{t+1} x0(x_t) + σ_{t+1} ε(x_t): the flow upwards, to first order",
    notes=f"{FASTER_001}; Song et al. (2021), section 5.4, arXiv:2010.02502",
    function="sf.invert",
    tolerance=0.2,
)
def ddim_inversion() -> float:
    """nominal minus measured order (1), against the closed-form flow of a Gaussian upwards, and of the round trip."""
    up, back = [], []
    for n in (64, 128):
        levels = even(n)
        x = levels[-1].alpha * MEAN + _spread(levels[-1]) * torch.linspace(-2, 2, 21)[:, None]
        noise = invert(bell(), x, levels)
        exact = levels[0].alpha * MEAN + _spread(levels[0]) * torch.linspace(-2, 2, 21)[:, None]
        up.append(float((noise - exact).abs().mean()))
        back.append(float((sample(bell(), noise, levels, steps.DDIM()) - x).abs().mean()))
    return 1 - min(order(up), order(back))


@row(
    "slerp",
    "x_T = sin((1-w)θ)/sin θ a + sin(wθ)/sin θ b. Song et al. (2021), eq. 67, arXiv:2010.02502",
    notes=BEYOND,
    function="sf.slerp",
    tolerance=1e-10,
)
def slerp_check() -> float:
    """the rotation by wθ in the plane of a and b, as a matrix exponential."""
    a, b = (x / x.norm(dim=1, keepdim=True) for x in torch.randn(2, 6, 5))
    errors = []
    for p, q in zip(a, b, strict=True):
        across = q - (q @ p) * p
        across = across / across.norm()
        angle = (q @ p).acos()
        turned = torch.linalg.matrix_exp(0.3 * angle * (torch.outer(across, p) - torch.outer(p, across))) @ p
        errors.append(worst(slerp(p[None], q[None], 0.3)[0], turned))
    return max(errors)


@row(
    "progressive",
    "x̂0 = (x_t - σ_t ε)/α_t at any step is E[x0 | x_t]",
    notes=f"{REVERSE_004}; Ho et al. (2020), eq. 15",
    function="sf.progressive",
    tolerance=4.0,
)
def progressive_check() -> float:
    """E[(x0 - x̂0) x̂0] = 0 over joint draws of x0 and x_t at every level of a run that starts there, in standard errors."""
    levels, errors, generator = even(6, 4.0), [], torch.Generator().manual_seed(0)
    x0 = line().sample(20_000, generator)[0]
    for t, s in itertools.pairwise(levels):
        x_t = marginal(x0, t).sample(generator)
        first, last = progressive(line(), x_t, [t, s], steps.DDIM())
        if not torch.equal(first.x, x_t) or torch.equal(last.x, x_t):
            return math.inf
        errors.append(standard_errors((x0 - first.x0) * first.x0, 0.0))
    return max(errors)


@row(
    "encode-decode",
    "x0 ~ q, x_t ~ q(x_t | x0), x̃0 ~ p(x0 | x_t): the law is kept, Cov(x0, x̃0) = α² c²/(α² c + σ²)",
    notes="004 Reverse Diffusion Process; Ho et al. (2020), section 4.3",
    function="sf.encode_decode",
    tolerance=4.0,
)
def encode_decode_check() -> float:
    """variance and covariance of 20,000 pairs on a Gaussian, in standard errors; decoding in one step gives the same covariance."""
    levels, generator = [Cosine().level(at) for at in torch.linspace(0.45, 0, 61).tolist()], torch.Generator().manual_seed(0)
    x0 = bell().sample(20_000, generator)[0]
    again = encode_decode(bell(), x0, levels, steps.Multistep(2, 1.0), generator=generator)
    share = levels[0].alpha ** 2 * VARIANCE**2 / (levels[0].alpha ** 2 * VARIANCE + levels[0].sigma ** 2)
    at_once = encode_decode(bell(), x0, [levels[0], Discrete.linear(1000).level(0.0)], steps.DDIM(), generator=generator)
    return max(
        standard_errors((again - MEAN).square(), VARIANCE),
        *(standard_errors((x - MEAN) * (x0 - MEAN), float(share)) for x in (again, at_once)),
    )


@row(
    "both-ends",
    "x_0 = x̂0 at σ = 0, and a finite step from α = 0",
    notes=f"{FASTER_001}; Lin et al. (2024), section 3, arXiv:2305.08891",
    function="sf.steps",
    tolerance=0.05,
)
def both_ends() -> float:
    """the share of samples, by every method, over a chain from α = 0 to σ = 0, that end outside the data."""
    chain = Discrete(torch.cat([torch.linspace(1e-3, 0.1, 99), torch.ones(1)]))
    methods = [
        steps.Ancestral(),
        steps.DDIM(0.5),
        steps.Heun(),
        steps.EulerMaruyama(),
        steps.PredictorCorrector(),
        steps.Singlestep(3),
        steps.PLMS(),
        steps.Renoised(),
        steps.EDM(),
        steps.Restart(),
        steps.SinglestepSDE(),
        steps.MultistepSDE(),
        steps.AdaptiveSDE(),
        *(kind(k) for kind in (steps.Multistep, steps.UniPC, steps.AdamsBashforth) for k in (1, 2, 3)),
    ]
    return max(strays(step, chain) for step in methods)
