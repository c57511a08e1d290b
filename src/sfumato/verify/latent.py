"""Ledger rows on latent variables: two forms of the evidence lower bound, the VAE's split of it, hierarchies, diffusion as one of them."""

import math

import torch
from torch import Tensor, nn

from sfumato import latent, likelihood, loss, process
from sfumato import probability as pr
from sfumato.latent import vdm
from sfumato.oracle import GaussianMixture
from sfumato.oracle.chain import Affine, LinearGaussianChain
from sfumato.process import Normal
from sfumato.sampling.spacing import grid, uniform
from sfumato.schedule import Discrete, LearnedSchedule, Level, vp_scales
from sfumato.verify.foundations import hermite, joint
from sfumato.verify.ledger import row, standard_errors, worst


def model() -> tuple[pr.Joint, pr.Joint, Tensor, pr.Joint]:
    """p(z), p(z, x) of an affine Gaussian model of three latents and four observations, one x, and a q(z | x) that is not the posterior."""
    prior = pr.Joint(torch.zeros(3), torch.eye(3))
    both = prior.then(torch.randn(4, 3), torch.randn(4), 0.5 * torch.eye(4))
    x = torch.randn(4)
    true = both.given([3, 4, 5, 6], x)
    return prior, both, x, pr.Joint(true.mean + 0.3, 1.4 * true.covariance + 0.05 * torch.eye(3))


def draws(both: pr.Joint, x: Tensor, q: pr.Joint, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z) at draws of q."""
    z = q.sample(math.prod(shape), torch.Generator().manual_seed(0)).reshape(*shape, -1)
    return both.log_prob(torch.cat([z, x.expand(*shape, -1)], -1)), q.log_prob(z)


def evidence(both: pr.Joint, x: Tensor) -> Tensor:
    """log p(x)."""
    return both.marginal([3, 4, 5, 6]).log_prob(x)


@row(
    "evidence",
    "p(x) = ∫ p(x, z) dz = p(x, z)/p(z|x)",
    notes="000 VAE; 002 ELBO; 003 (1.4.1), (1.4.2)",
    function="sf.probability.Joint",
    tolerance=1e-10,
)
def evidence_check() -> float:
    """both expressions, the second at ten values of z."""
    _, both, x, q = model()
    z = q.sample(10)
    ratio = both.log_prob(torch.cat([z, x.expand(10, -1)], 1)) - both.given([3, 4, 5, 6], x).log_prob(z)
    return worst(ratio, evidence(both, x).expand(10))


@row(
    "elbo-jensen",
    "log p(x) >= E_q[log p(x, z)/q(z|x)]",
    notes="000 ELBO; 002 ELBO; 003 (1.4.5)",
    function="sf.probability.elbo",
    tolerance=4.0,
)
def elbo_jensen() -> float:
    """log p(x) - KL(q ‖ p(z|x)) in closed form, 50,000 draws, in standard errors."""
    _, both, x, q = model()
    log_joint, log_q = draws(both, x, q, (50_000,))
    truth = evidence(both, x) - q.kl(both.given([3, 4, 5, 6], x))
    return max(standard_errors((log_joint - log_q)[:, None], truth), worst(pr.elbo(log_joint, log_q), (log_joint - log_q).mean()))


@row(
    "elbo-gap",
    "log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))",
    notes="003 (1.4.10); 002 ELBO",
    function="sf.probability.elbo; .Joint.kl",
    tolerance=1e-9,
)
def elbo_gap() -> float:
    """if q is the posterior, the bound equals the evidence at every draw; otherwise the gap is the KL, with closed-form expectations."""
    prior, both, x, q = model()
    true = both.given([3, 4, 5, 6], x)
    exact = pr.elbo(*draws(both, x, true, (20,)))
    likelihood = expected_log_likelihood(both, prior, x, q)
    return max(worst(exact, evidence(both, x)), worst(likelihood - q.kl(prior) + q.kl(true), evidence(both, x)))


def expected_log_likelihood(both: pr.Joint, prior: pr.Joint, x: Tensor, q: pr.Joint) -> Tensor:
    """E_q log p(x | z) of the affine model, in closed form: minus the cross-entropy of its noise."""
    cross = torch.linalg.solve(prior.covariance, both.covariance[:3, 3:]).T
    noise = both.covariance[3:, 3:] - cross @ both.covariance[:3, 3:]
    residual = x - both.mean[3:] - cross @ (q.mean - prior.mean)
    spread = residual.outer(residual) + cross @ q.covariance @ cross.T
    return -0.5 * (torch.linalg.solve(noise, spread).diagonal().sum() + torch.logdet(noise) + len(x) * math.log(2 * math.pi))


@row(
    "vae-split",
    "ELBO = E_q log p(x|z) - KL(q(z|x) ‖ p(z))",
    notes="003 (1.4.12); 002 VAE; 000 VAE",
    function="sf.probability.elbo; .Joint.kl",
    tolerance=4.0,
)
def vae_split() -> float:
    """reconstruction and prior-matching terms in closed form against the Monte Carlo bound, in standard errors."""
    prior, both, x, q = model()
    log_joint, log_q = draws(both, x, q, (50_000,))
    return standard_errors((log_joint - log_q)[:, None], expected_log_likelihood(both, prior, x, q) - q.kl(prior))


@row(
    "vae-monte-carlo",
    "E_q log p(x|z) ≈ (1/L) Σ log p(x|z_l)",
    notes="003 (1.4.13)",
    function="sf.Normal.sample; sf.Normal.log_prob",
    tolerance=4.0,
)
def vae_monte_carlo() -> float:
    """a decoder N(2z, ½) under q(z) = N(0.3, 0.2): 50,000 reparameterised draws against the closed form, in standard errors."""
    x, q = torch.tensor(0.9), Normal(torch.full((50_000, 1), 0.3), torch.tensor(math.log(0.2)))
    z = q.sample(torch.Generator().manual_seed(0))
    closed = -0.5 * (math.log(2 * math.pi * 0.5) + ((0.9 - 0.6) ** 2 + 4 * 0.2) / 0.5)
    return standard_errors(Normal(2 * z, torch.tensor(math.log(0.5))).log_prob(x.expand_as(z)), closed)


@row(
    "vae-kl", "KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² - 1 - log σ²)", notes="003 1.4.2.1; 002 VAE", function="sf.Normal.kl", tolerance=1e-12
)
def vae_kl() -> float:
    """the sum over entries, written out."""
    mean, log_variance = torch.randn(20), torch.randn(20)
    truth = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return worst(Normal(mean, log_variance).kl(Normal(torch.zeros(20), torch.zeros(20))), truth)


@row(
    "importance-bound",
    "log (1/K) Σ p(x, z_k)/q(z_k|x) rises with K to log p(x)",
    notes="beyond the notes (Burda et al. 2016, theorem 1)",
    function="sf.probability.importance_bound",
    tolerance=4.0,
)
def importance_bound() -> float:
    """the mean weight is p(x) (in standard errors); the bounds for K = 1, 4, 16, 64 on the same draws increase and stay below it."""
    _, both, x, q = model()
    log_joint, log_q = draws(both, x, q, (64, 2000))
    truth = evidence(both, x)
    bounds = [pr.importance_bound(a.reshape(k, -1), b.reshape(k, -1)).mean() for k in (1, 4, 16, 64) for a, b in [(log_joint, log_q)]]
    if not all(a < b for a, b in zip(bounds, [*bounds[1:], truth + 0.01], strict=True)):
        return math.inf
    return standard_errors((log_joint - log_q - truth).exp().reshape(-1, 1), 1.0)


def hierarchy() -> tuple[pr.Joint, Tensor, pr.Joint]:
    """A Markov chain z_2 → z_1 → x of affine Gaussians, one x, and a Markov encoder q(z_1|x) q(z_2|z_1) that is not the posterior."""
    top = pr.Joint(torch.zeros(2), torch.eye(2))
    middle = top.then(torch.randn(2, 2), torch.randn(2), 0.4 * torch.eye(2))
    whole = middle.then(torch.cat([torch.zeros(3, 2), torch.randn(3, 2)], 1), torch.randn(3), 0.3 * torch.eye(3))
    x = torch.randn(3)
    true = whole.given([4, 5, 6], x)
    first = pr.Joint(true.mean[2:] + 0.1, true.covariance[2:, 2:] + 0.1 * torch.eye(2))
    return whole, x, first.then(0.5 * torch.randn(2, 2), torch.zeros(2), 0.5 * torch.eye(2))


@row(
    "hierarchical-elbo",
    "E_q[log p(x, z_1:T)/q(z_1:T|x)] <= log p(x)",
    notes="002 HVAE; 000 2.2",
    function="sf.probability.elbo",
    tolerance=4.0,
)
def hierarchical_elbo() -> float:
    """the evidence minus KL(q(z_1, z_2) ‖ p(z_1, z_2|x)) of two levels in closed form, 50,000 draws, in standard errors."""
    whole, x, q = hierarchy()
    z = q.sample(50_000, torch.Generator().manual_seed(0))
    log_joint = whole.log_prob(torch.cat([z[:, 2:], z[:, :2], x.expand(50_000, -1)], 1))
    true = whole.given([4, 5, 6], x).marginal([2, 3, 0, 1])
    truth = whole.marginal([4, 5, 6]).log_prob(x) - q.kl(true)
    return standard_errors((log_joint - q.log_prob(z))[:, None], truth)


@row(
    "hierarchical-split",
    "E log p(x|z_1) - E KL(q(z_1|x)‖p(z_1|z_2)) - E KL(q(z_2|z_1)‖p(z_2))",
    notes="002 HVAE",
    function="sf.probability.Joint.kl",
    tolerance=4.0,
)
def hierarchical_split() -> float:
    """the bound split by level with the chain rule, each part from its conditionals, in standard errors."""
    whole, x, q = hierarchy()
    z = q.sample(150, torch.Generator().manual_seed(0))
    parts = []
    for z1, z2 in zip(z[:, :2], z[:, 2:], strict=True):
        reconstruction = whole.given([0, 1, 2, 3], torch.cat([z2, z1])).log_prob(x)
        coming = q.marginal([0, 1]).log_prob(z1) - whole.marginal([0, 1, 2, 3]).given([0, 1], z2).log_prob(z1)
        top = q.given([0, 1], z1).kl(whole.marginal([0, 1]))
        parts.append(reconstruction - coming - top)
    true = whole.given([4, 5, 6], x).marginal([2, 3, 0, 1])
    return standard_errors(torch.stack(parts)[:, None], whole.marginal([4, 5, 6]).log_prob(x) - q.kl(true))


def diffusion(steps: int = 6) -> tuple[Discrete, GaussianMixture, Tensor, pr.Joint, pr.Joint]:
    """A chain on one variable with the exact predictor of N(0.2, 0.5): q(x_1:T | x_0) and the model's p(x_1:T, x_0) as joint Gaussians."""
    chain = Discrete(torch.linspace(0.1, 0.5, steps))
    oracle = GaussianMixture(torch.ones(1), torch.tensor([[0.2]]), torch.tensor([[[0.5]]]))
    x0 = torch.tensor([0.9])
    q = pr.Joint(torch.zeros(0), torch.zeros(0, 0))
    for k in range(1, steps + 1):  # x_k after x_1 … x_{k-1}
        step = process.transition(torch.ones(1), chain.level((k - 1) / steps), chain.level(k / steps))
        matrix = torch.zeros(1, k - 1)
        if k > 1:
            matrix[0, -1] = step.mean
        offset = step.mean * x0 if k == 1 else torch.zeros(1)
        q = q.then(matrix, offset, step.log_variance.exp().reshape(1, 1))
    p = pr.Joint(torch.zeros(1), torch.ones(1, 1))
    for k in range(steps, 0, -1):  # x_T, …, x_1, x_0
        t, s = chain.level(k / steps), chain.level((k - 1) / steps)
        at = torch.tensor([[0.0], [1.0]])
        model = process.reverse(oracle(at, t), at, t, s, variance="large")
        matrix = torch.zeros(1, steps - k + 1)
        matrix[0, -1] = model.mean[1, 0] - model.mean[0, 0]
        p = p.then(matrix, model.mean[0], model.log_variance.exp().reshape(1, 1))
    return chain, oracle, x0, q, p


@row(
    "vlb",
    "L_VLB = E_q log q(x_1:T|x_0)/p(x_0:T) = L_T + Σ L_{t-1} + L_0",
    notes="002 (58); 004 Optimize Diffusion Models; 001 Loss",
    function="sf.process.posterior; .reverse; sf.Normal.kl",
    tolerance=1e-9,
)
def vlb() -> float:
    """left side: a KL of two joint Gaussians minus log p(x_0); right side: term by term, each expectation by quadrature."""
    chain, oracle, x0, q, p = diffusion()
    steps = len(chain)
    latents = list(range(steps - 1, -1, -1))  # the joint p lists x_T first
    left = q.kl(p.given([steps], x0).marginal(latents)) - p.marginal([steps]).log_prob(x0)
    node, weight = hermite(30)
    end = chain.level(1.0)
    total = process.marginal(x0, end).kl(Normal(torch.zeros(1), torch.zeros(()))).sum()
    for k in range(steps, 0, -1):
        t, s = chain.level(k / steps), chain.level((k - 1) / steps)
        x_t = (t.alpha * x0 + t.sigma * node)[:, None]
        here = x0.expand_as(x_t)
        model = process.reverse(oracle(x_t, t), x_t, t, s, variance="large")
        term = -model.log_prob(here) if k == 1 else process.posterior(here, x_t, t, s).kl(model)
        total = total + (weight * term[:, 0]).sum()
    return worst(total, left)


@row(
    "vlb-is-a-bound",
    "L_VLB >= -log p(x_0), the gap KL(q(x_1:T|x_0) ‖ p(x_1:T|x_0))",
    notes="004 Optimize Diffusion Models; 002 VDM",
    function="sf.process.reverse",
    tolerance=1e-12,
)
def vlb_is_a_bound() -> float:
    """the gap between the joint Gaussians is not negative, and is zero if q is the model's own posterior."""
    chain, _, x0, q, p = diffusion()
    true = p.given([len(chain)], x0).marginal(list(range(len(chain) - 1, -1, -1)))
    return max(0.0, -float(q.kl(true)), abs(float(true.kl(true))))


@row(
    "diffusion-is-hierarchical",
    "the diffusion bound is the hierarchical bound with z_t = x_t and a fixed encoder",
    notes="002 VDM; 000 2.2",
    function="sf.probability.elbo",
    tolerance=4.0,
)
def diffusion_is_hierarchical() -> float:
    """the same bound from whole sampled chains x_1:T ~ q, weighted with p, against the closed form, in standard errors."""
    chain, _, x0, q, p = diffusion()
    steps = len(chain)
    z = q.sample(50_000, torch.Generator().manual_seed(0))
    log_joint = p.log_prob(torch.cat([z.flip(1), x0.expand(50_000, 1)], 1))
    closed = p.marginal([steps]).log_prob(x0) - q.kl(p.given([steps], x0).marginal(list(range(steps - 1, -1, -1))))
    return standard_errors((log_joint - q.log_prob(z))[:, None], closed)


@row(
    "chain-factorises",
    "q(x_1:T|x_0) = Π q(x_t|x_{t-1}) = q(x_T|x_0) Π q(x_{t-1}|x_t, x_0)",
    notes="002 VDM; 004 Reverse Diffusion Process; 001 DDIM",
    function="sf.process.transition; .posterior",
    tolerance=1e-10,
)
def chain_factorises() -> float:
    """log-densities of both factorisations for ten chains, and of the joint Gaussian."""
    chain, _, x0, q, _ = diffusion()
    z = q.sample(10)
    steps, xs = len(chain), [x0.expand(10), *z.unbind(1)]
    levels = [chain.level(k / steps) for k in range(steps + 1)]
    forward = sum(process.transition(xs[k], levels[k], levels[k + 1]).log_prob(xs[k + 1]) for k in range(steps))
    back = process.marginal(xs[0], levels[-1]).log_prob(xs[-1])
    back = back + sum(process.posterior(xs[0], xs[k + 1], levels[k + 1], levels[k]).log_prob(xs[k]) for k in range(1, steps))
    assert isinstance(forward, Tensor)
    return max(worst(forward, q.log_prob(z)), worst(back, q.log_prob(z)))


@row(
    "gaussian-posterior-given-class",
    "mixtures of posteriors: p(z|x) of an affine model is Gaussian",
    notes="003 (1.4.2); 002 ELBO",
    function="sf.probability.Joint.given",
    tolerance=4.0,
)
def gaussian_posterior_given_class() -> float:
    """importance-weighted draws from the prior: mean of z given x, in standard errors of the ratio estimate."""
    prior = joint(1)
    both, x = prior.then(torch.tensor([[0.7]]), torch.zeros(1), torch.tensor([[0.5]])), torch.tensor([0.4])
    z = prior.sample(50_000, torch.Generator().manual_seed(0))
    weight = (-(x - 0.7 * z).square()).exp()
    mean = both.given([1], x).mean
    return standard_errors(weight * (z - mean), 0.0)


class AffineNet(nn.Module):
    """A network that outputs an affine law exactly: mean and log variance, with an optional error in each."""

    def __init__(self, law: Affine, *, shift: float = 0.0, spread: float = 1.0) -> None:
        """Keeps the law."""
        super().__init__()
        self.law, self.shift = law, shift
        self.log_variance = (spread * law.covariance.diagonal()).log()

    def forward(self, v: Tensor) -> Tensor:
        """Mean and log variance at v."""
        mean = self.law.mean(v) + self.shift
        return torch.cat([mean, self.log_variance.expand_as(mean)], 1)

    def affine(self) -> Affine:
        """The affine law that the output describes."""
        return Affine(self.law.matrix, self.law.offset + self.shift, self.log_variance.exp().diag())


def two_levels() -> tuple[LinearGaussianChain, list[Affine], Tensor]:
    """A chain z_2 → z_1 → x whose exact q(z_1|x) and q(z_2|z_1) have diagonal covariances; these two laws; and some x."""
    columns = torch.linalg.qr(torch.randn(3, 2))[0] * torch.tensor([1.4, 0.7])
    chain = LinearGaussianChain(
        [
            Affine(columns, torch.randn(3), 0.3 * torch.eye(3)),
            Affine(torch.diag(torch.tensor([0.9, 0.5])), torch.randn(2), 0.4 * torch.eye(2)),
        ]
    )
    laws = []
    for k in range(2):
        above = LinearGaussianChain(chain.links[k:])
        n, posterior = above.sizes[0], above.posterior
        laws.append(Affine(posterior.matrix[:2], posterior.offset[:2], posterior.covariance[:2, :2].diagonal().diag()))
        assert posterior.matrix.shape[1] == n
    return chain, laws, chain.sample(40, torch.Generator().manual_seed(0))[0]


def vae_of(chain: LinearGaussianChain, encoders: list[AffineNet]) -> latent.VAE:
    """The chain as a VAE with these encoders."""
    return latent.VAE(encoders, [AffineNet(link) for link in chain.links], latent.Gaussian(), (chain.sizes[-1],))


@row(
    "vae-evidence",
    "max ELBO of a linear VAE = max log p(x) of probabilistic PCA",
    notes="003 1.4.2; 002 VAE",
    function="sf.latent.VAE; sf.latent.importance_bits",
    tolerance=1e-9,
)
def vae_evidence() -> float:
    """at the maximum-likelihood weights of Tipping & Bishop (1999), eqs. 7 and 8: every draw against the likelihood by eigenvalues."""
    x = torch.randn(60, 4) @ torch.randn(4, 4)
    centred = x - x.mean(0)
    values, axes = (part.flip(-1) for part in torch.linalg.eigh(centred.T @ centred / len(x)))
    noise = values[2:].mean()
    columns = axes[:, :2] * (values[:2] - noise).sqrt()
    best = -0.5 * (4 * math.log(2 * math.pi) + values[:2].log().sum() + 2 * noise.log() + 4)
    chain = LinearGaussianChain([Affine(columns, x.mean(0), noise * torch.eye(4))])
    model = vae_of(chain, [AffineNet(Affine(chain.posterior.matrix, chain.posterior.offset, chain.posterior.covariance.diagonal().diag()))])
    bits = latent.importance_bits(model, x, draws=1, generator=torch.Generator().manual_seed(0))
    return worst(-bits.mean() * 4 * math.log(2), best)


@row(
    "hierarchical-evidence",
    "E_q log p(x, z_1, z_2)/(q(z_1|x) q(z_2|z_1)) = log p(x) - KL(q ‖ p(z_1, z_2|x))",
    notes="002 HVAE; 000 2.2",
    function="sf.latent.bound; sf.latent.VAE",
    tolerance=4.0,
)
def hierarchical_evidence() -> float:
    """with exact posteriors, the evidence at every draw; with others, the chain's closed-form bound, 20,000 draws, in standard errors."""
    chain, laws, x = two_levels()
    true = vae_of(chain, [AffineNet(law) for law in laws]).trace(x, torch.Generator().manual_seed(0)).log_ratio
    if worst(true, chain.log_prob(x)) > 1e-10:
        return math.inf
    wrong = [AffineNet(law, shift=0.2, spread=1.4) for law in laws]
    bits = latent.bound(vae_of(chain, wrong), x[:1].expand(20_000, 3), generator=torch.Generator().manual_seed(0)).total
    return standard_errors(-bits[:, None] * 3 * math.log(2), chain.elbo(x[:1], [net.affine() for net in wrong]))


@row(
    "consistency-term",
    "E log q(z_1|x)/p(z_1|z_2) over q(z_1, z_2|x) is not E KL(q(z_1|x) ‖ p(z_1|z_2)): z_2 depends on z_1",
    notes="002 HVAE (the term as the notes print it, from Luo 2022, eq. 41)",
    function="sf.latent.LatentDraw.divergence",
    tolerance=4.0,
)
def consistency_term() -> float:
    """the ratio at the draws gives the chain's closed-form bound, in standard errors; the KL in its place must be wrong by 0.1 nat."""
    chain, laws, x = two_levels()
    model, rows = vae_of(chain, [AffineNet(law) for law in laws]), x[:1].expand(20_000, 3)
    trace = model.trace(rows, torch.Generator().manual_seed(0))
    top, low = trace.latents
    ratio = trace.log_likelihood - top.divergence - low.divergence
    divergence = trace.log_likelihood - top.divergence - low.q.kl(low.p).sum(1)
    truth = chain.log_prob(x[:1])
    return math.inf if abs(float(divergence.mean() - truth)) < 0.1 else standard_errors(ratio[:, None], truth)


@row(
    "diffusion-bound-by-the-vae",
    "hierarchical bound with q(z_k|z_{k+1}, x) fixed = L_T + Σ L_{t-1} + L_0, number for number",
    notes="002 VDM; 000 2.2",
    function="sf.latent.as_hierarchical_vae; sf.latent.bound; sf.likelihood.vlb",
    tolerance=1e-12,
)
def diffusion_bound_by_the_vae() -> float:
    """the VAE code against the diffusion bound on the same noise, part by part."""
    chain = Discrete.cosine(12)
    oracle = GaussianMixture(torch.ones(1), torch.tensor([[0.2]]), torch.tensor([[[0.1]]]))
    x = (torch.rand(30, 1) * 255).round() / 127.5 - 1
    model = latent.as_hierarchical_vae(oracle, chain, jumps=True)
    ours = latent.bound(model, x, generator=torch.Generator().manual_seed(0))
    theirs = likelihood.vlb(oracle, x, grid(chain, 12, spacing=uniform), generator=torch.Generator().manual_seed(0))
    return max(worst(getattr(ours, part), getattr(theirs, part)) for part in ("prior", "steps", "decoder", "total"))


@row(
    "logistic-bin",
    "P(x|z) = σ((x + ½w - μ)/s) - σ((x - ½w - μ)/s) = ∫ of the density over the bin",
    notes="beyond the notes (Salimans et al. 2017, eq. 2)",
    function="sf.latent.DiscretisedLogistic",
    tolerance=1e-8,
)
def logistic_bin() -> float:
    """20-point Gauss-Legendre quadrature of the density over each inner bin, and the sum of all 256 probabilities."""
    law, mean, log_scale = latent.DiscretisedLogistic(), torch.tensor(0.1), torch.tensor(-3.0)
    output = torch.stack([mean, log_scale]).expand(256, 2)
    values = torch.arange(256)[:, None] / 127.5 - 1
    ours = law.log_prob(output, values).exp()
    node, weight = (torch.tensor(part) for part in LEGENDRE)
    inside = (values + node / 255 - mean) / log_scale.exp()
    density = inside.sigmoid() * (-inside).sigmoid() / log_scale.exp()
    return max(worst(ours[1:-1], (density @ (weight / 255))[1:-1]), abs(float(ours.sum()) - 1))


LEGENDRE = ([-0.9061798459386640, -0.5384693101056831, 0.0, 0.5384693101056831, 0.9061798459386640],
            [0.2369268850561891, 0.4786286704993665, 0.5688888888888889, 0.4786286704993665, 0.2369268850561891])  # fmt: skip


def known_points() -> tuple[GaussianMixture, Tensor]:
    """An exact predictor, its data on a fine grid, and the grid spacing."""
    oracle = GaussianMixture(torch.ones(1), torch.tensor([[0.1]]), torch.tensor([[[0.05]]]))
    x = oracle.sample(8000, torch.Generator().manual_seed(0))[0].clamp(-1, 1)
    return oracle, ((x + 1) * 511.5).round() / 511.5 - 1


@row(
    "vdm-bound",
    "-log p(x) = KL(q(z_1|x) ‖ N(0, I)) + ½ E[-dλ/dt |ε - ε̂|²] - E log p(x|z_0) at the exact model",
    notes="002 VDM; beyond the notes (Kingma et al. 2021, eqs. 7, 11, 17)",
    function="sf.latent.vdm.bound; sf.LearnedSchedule",
    tolerance=4.0,
)
def vdm_bound() -> float:
    """the probability of each value of a grid of 1024, from the density, against the bound, in standard errors of their difference."""
    oracle, x = known_points()
    bits = vdm.bound(
        oracle, x, LearnedSchedule(log_snr_max=11.0, log_snr_min=-10.0), draws=64, bin_width=2 / 1023,
        generator=torch.Generator().manual_seed(3), times=torch.Generator().manual_seed(1),
    ).total  # fmt: skip
    truth = -(oracle.log_prob(x) + math.log(2 / 1023)) / math.log(2)
    return standard_errors((bits - truth)[:, None], 0.0)


@row(
    "vdm-discrete",
    "L_T(x) falls to L_∞(x) as T grows: T/2 E[expm1(λ_s - λ_t) |ε - ε̂|²] → ½ E[-dλ/dt |ε - ε̂|²]",
    notes="beyond the notes (Kingma et al. 2021, eqs. 13, 14 and 17)",
    function="sf.latent.vdm.bound",
    tolerance=0.1,
)
def vdm_discrete() -> float:
    """the excess of T = 64, 128, 256 over T → ∞ on one variable, by quadrature over noise: it halves each time (1/T); shortfall."""
    oracle, _ = known_points()
    schedule, x0 = LearnedSchedule(log_snr_max=8.0, log_snr_min=-6.0), torch.tensor([[0.4]])
    node, weight = hermite(40)

    def error_at(t: Tensor) -> Tensor:
        level = schedule.level(t)
        x_t = level.alpha[:, None] * x0 + level.sigma[:, None] * node
        flat = Level(level.alpha.repeat_interleave(40)[:, None], level.sigma.repeat_interleave(40)[:, None])
        eps = oracle(x_t.reshape(-1, 1), flat).eps.reshape(x_t.shape)
        return ((eps - node).square() * weight).sum(1)

    def discrete(steps: int) -> Tensor:
        times = torch.arange(steps + 1) / steps
        rise = torch.expm1(-schedule.log_snr(times).detach().diff())
        return 0.5 * (rise * error_at(times[1:])).sum().detach()

    fine = torch.arange(8192).add(0.5) / 8192
    endless = 7.0 * error_at(fine).mean().detach()  # this schedule decreases linearly, by 14 nats
    excess = [float(discrete(steps) - endless) for steps in (64, 128, 256)]
    if not excess[0] > excess[1] > excess[2] > 0:
        return math.inf
    return abs(excess[1] / excess[2] - 2)


@row(
    "vdm-variance",
    "∇ Var L = ∇ E L² for the schedule's curve, ∇ E L for its ends, from one backward pass",
    notes="beyond the notes (Kingma et al. 2021, section 4.1 and appendix I)",
    function="sf.latent.vdm.diffusion_bits",
    tolerance=1e-10,
)
def vdm_variance() -> float:
    """the gradients against those of two separate backward passes, through the loss and through its square."""
    oracle, x = known_points()
    schedule, x0 = LearnedSchedule(), x[:50]
    eps, t = torch.randn(x0.shape), torch.rand(50)
    curve, ends = [schedule.slope, schedule.inward, schedule.bias, schedule.outward], [schedule.log_snr_max, schedule.span]
    ours = torch.autograd.grad(vdm.diffusion_bits(oracle, x0, eps, t, schedule).mean(), [*curve, *ends])
    plain = loss.vdm(oracle, x0, eps, t, schedule)
    squared, straight = torch.autograd.grad(plain.square().mean(), curve, retain_graph=True), torch.autograd.grad(plain.mean(), ends)
    return max(worst(mine, theirs) for mine, theirs in zip(ours, [*squared, *straight], strict=True))


@row(
    "vdm-decoder",
    "p(x|z_0) = q(z_0|x)/Σ_v q(z_0|v) over the values v",
    notes="beyond the notes (Kingma et al. 2021, eq. 8)",
    function="sf.latent.vdm.decoder_bits",
    tolerance=1e-9,
)
def vdm_decoder() -> float:
    """the sum of its probabilities over all values, for two grids, at 20 values of z_0 and three levels."""
    error = 0.0
    for log_snr, count in ((1.0, 16), (4.0, 16), (13.0, 255)):
        level = Level(*vp_scales(torch.tensor(log_snr)))
        z = (level.alpha * (2 * torch.rand(20, 1) - 1)).repeat(count + 1, 1)
        values = torch.arange(count + 1).repeat_interleave(20)[:, None] * (2 / count) - 1
        logs = -vdm.decoder_bits(values, z, level, bin_width=2 / count).reshape(count + 1, 20) * math.log(2)
        error = max(error, float((logs.logsumexp(0).exp() - 1).abs().max()))
    return error
