"""Ledger rows on the variational bound of data: its terms, its decoder, long and short chains."""

import math

import torch
from torch import Tensor

from sfumato import likelihood, process
from sfumato.oracle import GaussianMixture
from sfumato.process import Normal
from sfumato.sampling import grid, spacing
from sfumato.schedule import Discrete, Level
from sfumato.verify.foundations import line
from sfumato.verify.ledger import row, standard_errors, worst

BOUND = "001 Loss; 004 Optimize Diffusion Models"


WIDTH = 2 / 16


def seventeen_values(n: int) -> tuple[Tensor, GaussianMixture, float]:
    """n examples on seventeen values in their exact shares, the exact predictor of that discrete law, and its entropy in bits."""
    points = torch.linspace(-1, 1, 17)
    weights = torch.exp(-0.5 * ((points - 0.1) / 0.3).square()) + 0.02
    weights = weights / weights.sum()
    rows = torch.searchsorted(weights.cumsum(0), (torch.arange(n) + 0.5) / n).clamp(max=16)
    oracle = GaussianMixture(weights, points[:, None], torch.zeros(17, 1, 1))
    return points[rows][:, None], oracle, float(-(weights * weights.log2()).sum())


def bound_of(n: int, steps: int) -> tuple[likelihood.Bound, float]:
    """The bound of n such examples over a chain of `steps` with variance β, and their entropy."""
    x0, oracle, entropy = seventeen_values(n)
    levels, noise = grid(Discrete.linear(1000), steps, spacing=spacing.trailing), torch.Generator().manual_seed(0)
    return likelihood.vlb(oracle, x0, levels, variance="large", bin_width=WIDTH, generator=noise), entropy


@row("prior-term", "L_T = KL(q(x_T|x_0) ‖ p(x_T))", notes=BOUND, function="sf.likelihood.prior_bits", tolerance=1e-9)
def prior_term() -> float:
    """the KL by quadrature, averaged over entries, in bits."""
    x, level, x0 = line(), Level(torch.tensor(0.3), torch.tensor(math.sqrt(0.91))), torch.tensor([[0.9, -0.4]])
    truth = []
    for value in (0.9, -0.4):
        q, p = Normal(torch.full_like(x, 0.3 * value), torch.tensor(0.91).log()), Normal(torch.zeros_like(x), torch.zeros(()))
        truth.append(torch.trapezoid(q.log_prob(x).exp() * (q.log_prob(x) - p.log_prob(x)), x))
    return worst(likelihood.prior_bits(x0, level), torch.stack(truth).mean() / math.log(2))


@row(
    "decoder-mass",
    "Σ_x p(x|x_1) = 1 over the 256 values",
    notes=f"{BOUND}; 004 DDPM decoder",
    function="sf.Normal.binned_log_prob",
    tolerance=1e-9,
)
def decoder_mass() -> float:
    """the sum over all bins, for narrow and wide Gaussians inside and outside of the range; and over seventeen values."""
    errors = []
    for values in (256, 17):
        points = torch.linspace(-1, 1, values)
        for mean in (-1.3, 0.0, 0.37, 1.0):
            for log_variance in (-14.0, -6.0, 2.0):
                mass = (
                    Normal(torch.full((values,), mean), torch.tensor(log_variance))
                    .binned_log_prob(points, bin_width=2 / (values - 1))
                    .exp()
                    .sum()
                )
                errors.append(worst(mass, 1.0))
    return max(errors)


@row(
    "decoder-bin",
    "p(x|x_1) = ∫_{x-1/255}^{x+1/255} N(u; μ, σ²) du",
    notes="004 DDPM decoder; 001 Loss (L_0)",
    function="sf.Normal.binned_log_prob",
    tolerance=1e-6,
)
def decoder_bin() -> float:
    """the density integrated over bins, at three values."""
    points, errors = torch.linspace(-1, 1, 256), []
    for i in (40, 128, 220):
        inside = torch.linspace(float(points[i]) - 1 / 255, float(points[i]) + 1 / 255, 4001)
        q = Normal(torch.full_like(inside, 0.1), torch.tensor(-2.0))
        ours = Normal(torch.tensor([0.1]), torch.tensor(-2.0)).binned_log_prob(points[i : i + 1]).exp()
        errors.append(worst(ours, torch.trapezoid(q.log_prob(inside).exp(), inside)))
    return max(errors)


@row("decoder-term", "L_0 = -log p(x_0|x_1)", notes=BOUND, function="sf.likelihood.term_bits", tolerance=1e-9)
def decoder_term() -> float:
    """mean and variance of the last step by hand: x̂_0 and the β̃ of the previous step; bins as differences of erf."""
    chain, x0 = Discrete.linear(1000), torch.tensor([[0.2549019607843137]])
    one, two, data = chain.level(0.001), chain.level(0.002), chain.level(0.0)
    oracle = GaussianMixture(torch.ones(1), torch.tensor([[0.1]]), torch.tensor([[[0.09]]]))
    x_1 = one.alpha * x0 + one.sigma * 0.4
    beta, alphas = chain.betas[1], torch.cumprod(1 - chain.betas[:2], 0)
    variance = (1 - alphas[0]) / (1 - alphas[1]) * beta
    mean = 0.1 + 0.09 * one.alpha / (0.09 * one.alpha**2 + one.sigma**2) * (x_1 - one.alpha * 0.1)
    cdf = lambda v: 0.5 * (1 + torch.erf((v - mean) / (2 * variance).sqrt()))  # noqa: E731
    truth = -(cdf(x0 + 1 / 255) - cdf(x0 - 1 / 255)).log() / math.log(2)
    last = process.posterior_log_variance(two, one)
    return worst(likelihood.term_bits(oracle(x_1, one), x0, x_1, one, data, last_log_variance=last), truth[0])


@row("bound-is-above", "E L_VLB >= H(x_0), and falls as the chain grows", notes=BOUND, function="sf.likelihood.vlb", tolerance=3.0)
def bound_is_above() -> float:
    """a discrete law of known entropy, exact predictor: shortfall in standard errors; infinite if 4, 16, 128 steps do not decrease."""
    found = [bound_of(4000, steps) for steps in (4, 16, 128)]
    means = [float(bound.total.mean()) for bound, _ in found]
    if not means[0] > means[1] > means[2]:
        return math.inf
    return max(0.0, *((entropy - float(bound.total.mean())) / bound.standard_error for bound, entropy in found))


@row("bound-is-tight", "L_VLB → H(x_0) as T → ∞", notes=BOUND, function="sf.likelihood.vlb", tolerance=3.0)
def bound_is_tight() -> float:
    """a discrete law of known entropy, exact predictor, the full chain of 3,000 with variance β̃: distance in standard errors."""
    x0, oracle, entropy = seventeen_values(150)
    levels, noise = grid(Discrete.linear(3000), 3000, spacing=spacing.trailing), torch.Generator().manual_seed(0)
    bound = likelihood.vlb(oracle, x0, levels, bin_width=WIDTH, generator=noise)
    return abs(float(bound.total.mean()) - entropy) / bound.standard_error


@row(
    "bound-some-terms",
    "E over drawn terms of the weighted sum = Σ L_{t-1}",
    notes="002 VDM training; 004 Improved DDPM",
    function="sf.likelihood.vlb(terms=…)",
    tolerance=4.0,
)
def bound_some_terms() -> float:
    """60 draws of 4 of 12 terms against all terms, in standard errors of the difference."""
    x0, oracle, _ = seventeen_values(16)
    levels, noise, choice = (
        grid(Discrete.linear(1000), 13, spacing=spacing.trailing),
        torch.Generator().manual_seed(1),
        torch.Generator().manual_seed(2),
    )
    few, whole = [], []
    for _ in range(60):
        drawn = likelihood.vlb(oracle, x0, levels, variance="large", terms=4, generator=noise, choice=choice)
        every = likelihood.vlb(oracle, x0, levels, variance="large", generator=noise)
        few.append((drawn.steps @ drawn.weights).mean())
        whole.append(every.steps.sum(1).mean())
    return standard_errors((torch.stack(few) - torch.stack(whole))[:, None], 0.0)


@row("bound-total", "L_VLB = L_T + Σ L_{t-1} + L_0", notes=BOUND, function="sf.likelihood.Bound.total", tolerance=1e-9)
def bound_total() -> float:
    """the terms of a chain of eight recomputed one by one from KLs and the decoder, on the same noise."""
    x0, oracle, _ = seventeen_values(5)
    levels = grid(Discrete.linear(1000), 8, spacing=spacing.trailing)
    bound = likelihood.vlb(oracle, x0, levels, generator=torch.Generator().manual_seed(3))
    generator, total = torch.Generator().manual_seed(3), process.marginal(x0, levels[0]).kl(Normal(torch.zeros_like(x0), torch.zeros(())))
    for i in range(8):
        t, s = levels[i], levels[i + 1]
        x_t = t.alpha * x0 + t.sigma * torch.randn(x0.shape, generator=generator)
        if i < 7:
            total = total + process.posterior(x0, x_t, t, s).kl(process.reverse(oracle(x_t, t), x_t, t, s))
        else:
            last = process.posterior_log_variance(levels[6], levels[7])
            total = total - Normal(oracle(x_t, t).x0, last).binned_log_prob(x0)
    return worst(bound.total, total[:, 0] / math.log(2))


@row(
    "bound-standard-error",
    "the standard error of the mean bound",
    notes="beyond the notes",
    function="sf.likelihood.Bound.standard_error",
    tolerance=0.2,
)
def bound_standard_error() -> float:
    """the spread of 100 bounds over fresh noise and data, relative to the mean of the errors they report."""
    x0, oracle, _ = seventeen_values(997)
    levels, generator = grid(Discrete.linear(1000), 4, spacing=spacing.trailing), torch.Generator().manual_seed(0)
    means, stated = [], []
    for _ in range(100):
        rows = torch.randint(0, 997, (60,), generator=generator)
        bound = likelihood.vlb(oracle, x0[rows], levels, variance="large", bin_width=WIDTH, generator=generator)
        means.append(float(bound.total.mean()))
        stated.append(bound.standard_error)
    return abs(float(torch.tensor(means).std()) / float(torch.tensor(stated).mean()) - 1)
