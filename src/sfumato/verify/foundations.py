"""Ledger rows on the basics of every derivation: tables and Gaussians, Bayes, information theory, Jensen."""

import math

import torch
from torch import Tensor

from sfumato import probability as pr
from sfumato.noise import normal_like
from sfumato.process import Normal
from sfumato.verify.ledger import row, standard_errors, worst

BASICS_000 = "000 Basic Knowledge"
MATHS_004 = "004 Elegant Mathematical"


def table(*shape: int) -> Tensor:
    """A random table of positive probabilities."""
    p = torch.rand(shape) + 0.05
    return p / p.sum()


def joint(d: int) -> pr.Joint:
    """A random Gaussian over d variables."""
    root = torch.randn(d, d)
    return pr.Joint(torch.randn(d), root @ root.T + 0.3 * torch.eye(d))


def line(half_width: float = 14.0, n: int = 20_001) -> Tensor:
    """Points for integrals over the real line."""
    return torch.linspace(-half_width, half_width, n)


@row(
    "reparameterisation",
    "z = μ + σ ε, ε ~ N(0, I)",
    notes=f"000 Reparameterization Trick; {MATHS_004} 8; 003 VAE",
    function="sf.Normal.sample",
    tolerance=1e-12,
)
def reparameterisation() -> float:
    """∂z/∂μ = 1 and ∂z/∂σ = ε, by automatic differentiation through a draw."""
    mean, deviation = torch.randn(50, requires_grad=True), (torch.rand(50) + 0.5).requires_grad_()
    z = Normal(mean, 2 * deviation.log()).sample(torch.Generator().manual_seed(1))
    eps = normal_like(mean.detach(), torch.Generator().manual_seed(1))
    by_mean, by_deviation = torch.autograd.grad(z.sum(), (mean, deviation))
    return max(worst(by_mean, torch.ones(50)), worst(by_deviation, eps), worst(z, mean + deviation * eps))


@row("normal-moments", "E z = μ, Var z = σ²", notes=f"{MATHS_004} 9", function="sf.Normal.sample", tolerance=4.0)
def normal_moments() -> float:
    """mean and variance of 100,000 draws, in standard errors."""
    z = Normal(torch.full((100_000, 1), -0.7), torch.tensor(math.log(2.3))).sample(torch.Generator().manual_seed(0))
    return max(standard_errors(z, -0.7), standard_errors((z + 0.7).square(), 2.3))


@row("normal-density", "f(x) = φ((x - μ)/σ)/σ", notes=f"{MATHS_004} 9", function="sf.Normal.log_prob", tolerance=1e-10)
def normal_density() -> float:
    """torch.distributions at 1,000 points, and an integral of 1."""
    x = line()
    q = Normal(torch.full_like(x, 0.4), torch.tensor(0.6))
    theirs = torch.distributions.Normal(0.4, math.exp(0.3)).log_prob(x)
    return max(worst(q.log_prob(x), theirs), worst(torch.trapezoid(q.log_prob(x).exp(), x), 1.0))


@row(
    "marginalisation-table", "p(x) = Σ_y p(x, y)", notes=f"{BASICS_000}; {MATHS_004} 3", function="sf.probability.marginal", tolerance=1e-14
)
def marginalisation_table() -> float:
    """sums written out over the cells of a 3×4×2×5 table, keeping one or two variables."""
    p = table(3, 4, 2, 5)
    one = torch.tensor([sum(float(p[w, x, y, z]) for w in range(3) for y in range(2) for z in range(5)) for x in range(4)])
    two = torch.tensor([[sum(float(p[w, x, y, z]) for x in range(4) for z in range(5)) for y in range(2)] for w in range(3)])
    return max(worst(pr.marginal(p, [1]), one), worst(pr.marginal(p, [0, 2]), two))


@row("marginalisation-gauss", "p(x) = ∫ p(x, y) dy", notes=f"{MATHS_004} 3", function="sf.probability.Joint.marginal", tolerance=1e-10)
def marginalisation_gauss() -> float:
    """a numerical integral of the joint density over the other variable."""
    p, x, y = joint(2), line(6.0, 41), line(40.0, 20_001)
    density = p.log_prob(torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)).exp()
    return worst(p.marginal([0]).log_prob(x[:, None]).exp(), torch.trapezoid(density, y, dim=1))


@row(
    "conditional-table", "p(x | y*) = p(x, y*)/Σ_x p(x, y*)", notes=f"{MATHS_004} 4", function="sf.probability.conditional", tolerance=1e-14
)
def conditional_table() -> float:
    """columns of a table divided by their sums one at a time, and p(x | y) p(y) = p(x, y)."""
    p = table(4, 3)
    columns = torch.stack([p[:, j] / sum(float(v) for v in p[:, j]) for j in range(3)], 1)
    given = pr.conditional(p, [1])
    return max(worst(given, columns), worst(given * pr.marginal(p, [1]), p))


@row(
    "conditional-gauss",
    "p(x | y*) = p(x, y*)/∫ p(x, y*) dx",
    notes=f"{MATHS_004} 4",
    function="sf.probability.Joint.given",
    tolerance=1e-10,
)
def conditional_gauss() -> float:
    """the joint density along the line y = y*, normalised numerically."""
    p, x, known = joint(3), line(40.0, 40_001), torch.tensor([0.3, -1.1])
    along = p.log_prob(torch.stack([torch.full_like(x, 0.3), x, torch.full_like(x, -1.1)], 1)).exp()
    along = along / torch.trapezoid(along, x)
    near = slice(15_000, 25_001, 50)
    return worst(p.given([0, 2], known).log_prob(x[near, None]).exp(), along[near])


@row(
    "chain-rule",
    "p(w,x,y,z) = p(w|x,y,z) p(x|y,z) p(y|z) p(z)",
    notes=f"{MATHS_004} 4; 003 1.4.1",
    function="sf.probability.conditional",
    tolerance=1e-14,
)
def chain_rule() -> float:
    """the product of the conditionals of a table."""
    p = table(3, 2, 4, 2)
    xyz, yz = pr.marginal(p, [1, 2, 3]), pr.marginal(p, [2, 3])
    product = pr.conditional(p, [1, 2, 3]) * pr.conditional(xyz, [1, 2]) * pr.conditional(yz, [1]) * pr.marginal(p, [3])
    return worst(product, p)


@row(
    "conditional-independence",
    "x → y → z: p(x | y, z) = p(x | y)",
    notes=f"{MATHS_004} 4 and 6",
    function="sf.probability.conditional",
    tolerance=1e-14,
)
def conditional_independence() -> float:
    """a Markov chain of tables conditioned in both directions; the reversed factorisation gives the same joint."""
    start, first, second = table(3), pr.conditional(table(3, 4), [0]), pr.conditional(table(4, 2), [0])
    p = start[:, None, None] * first[:, :, None] * second[None]
    both, one = pr.conditional(p, [1, 2]), pr.conditional(pr.marginal(p, [0, 1]), [1])
    back = one[:, :, None] * pr.conditional(pr.marginal(p, [1, 2]), [1])[None] * pr.marginal(p, [2])
    return max(worst(both, one[:, :, None].expand_as(both)), worst(back, p))


@row(
    "markov-gauss",
    "x_s → x_t → x_u: p(x_s | x_t, x_u) = p(x_s | x_t)",
    notes=f"{MATHS_004} 6; 004 Reverse Diffusion Process",
    function="sf.probability.Joint.then",
    tolerance=1e-12,
)
def markov_gauss() -> float:
    """a Gaussian chain of two affine steps, conditioned on both ends and on the nearer one."""
    chain = joint(1).then(torch.tensor([[0.8]]), torch.tensor([0.1]), torch.tensor([[0.3]]))
    chain = chain.then(torch.tensor([[0.0, 0.6]]), torch.tensor([-0.2]), torch.tensor([[0.5]]))
    both = chain.given([1, 2], torch.tensor([0.4, -0.9]))
    one = chain.marginal([0, 1]).given([1], torch.tensor([0.4]))
    return max(worst(both.mean, one.mean), worst(both.covariance, one.covariance))


@row("bayes-table", "p(y|x) = p(x|y) p(y)/p(x)", notes=f"{BASICS_000}; {MATHS_004} 5", function="sf.probability.bayes", tolerance=1e-14)
def bayes_table() -> float:
    """the example of the notes: 60% boys, all in trousers; half of the girls in skirts: P(girl | trousers) = 1/4."""
    posterior, evidence = pr.bayes(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0.6, 0.4]))
    return max(worst(posterior, torch.tensor([[0.75, 0.0], [0.25, 1.0]])), worst(evidence, torch.tensor([0.8, 0.2])))


@row(
    "bayes-gauss", "p(z|x) = p(x|z) p(z)/p(x)", notes=f"{MATHS_004} 5; 003 (1.4.2)", function="sf.probability.Joint.given", tolerance=1e-10
)
def bayes_gauss() -> float:
    """log-densities of prior, likelihood, evidence and posterior of an affine Gaussian model at 100 points."""
    prior = joint(2)
    matrix, offset, noise = torch.randn(3, 2), torch.randn(3), 0.4 * torch.eye(3)
    both, x = prior.then(matrix, offset, noise), torch.randn(3)
    z = torch.randn(100, 2)
    likelihood = torch.stack([pr.Joint(matrix @ each + offset, noise).log_prob(x) for each in z])
    by_bayes = likelihood + prior.log_prob(z) - both.marginal([2, 3, 4]).log_prob(x)
    return worst(both.given([2, 3, 4], x).log_prob(z), by_bayes)


@row(
    "sum-of-gaussians",
    "a x + b y ~ N(aμ₁ + bμ₂, a²σ₁² + b²σ₂²)",
    notes="001 q(x_t); 004 Forward Diffusion Process",
    function="sf.probability.Joint.then",
    tolerance=1e-12,
)
def sum_of_gaussians() -> float:
    """the convolution of two densities, integrated numerically."""
    a, b, grid = 0.7, -1.3, line(40.0, 40_001)
    pair = pr.Joint(torch.tensor([0.5, -0.2]), torch.diag(torch.tensor([0.8, 0.3])))
    mixed = pair.then(torch.tensor([[a, b]]), torch.zeros(1), torch.zeros(1, 1)).marginal([2])
    x, y = (pair.marginal([i]) for i in range(2))
    points = torch.linspace(-3, 3, 13)
    density = torch.stack(
        [torch.trapezoid((x.log_prob(grid[:, None]) + y.log_prob(((v - a * grid) / b)[:, None])).exp(), grid) for v in points]
    )
    return worst(mixed.log_prob(points[:, None]).exp(), density / abs(b))


@row(
    "expectation-monte-carlo",
    "E_p f(x) ≈ (1/n) Σ f(x_i)",
    notes=f"{BASICS_000}; {MATHS_004} 7; 003 (1.4.6)",
    function="sf.probability.Joint.sample",
    tolerance=4.0,
)
def expectation_monte_carlo() -> float:
    """E x x' of 50,000 draws of a Gaussian, in standard errors."""
    p = joint(3)
    x = p.sample(50_000, torch.Generator().manual_seed(0))
    return standard_errors(torch.einsum("ni,nj->nij", x, x).flatten(1), (p.covariance + torch.outer(p.mean, p.mean)).flatten())


@row("entropy-table", "H(p) = -Σ p log p", notes=f"{MATHS_004} 10.2", function="sf.probability.entropy", tolerance=1e-13)
def entropy_table() -> float:
    """log n for a uniform table, additivity over independent variables, and math.log term by term."""
    p, q = table(5), table(4)
    equal = pr.entropy(torch.full((8,), 1 / 8))
    written = -sum(float(v) * math.log(float(v)) for v in p)
    both = pr.entropy(p[:, None] * q) - pr.entropy(p) - pr.entropy(q)
    return max(worst(equal, math.log(8)), worst(pr.entropy(p), written), abs(float(both)))


@row("entropy-gauss", "H = ½ log(2πe σ²)", notes=f"{MATHS_004} 10.2", function="sf.Normal.entropy", tolerance=1e-10)
def entropy_gauss() -> float:
    """-∫ p log p by quadrature; in three dimensions, the standard normal's entropy plus log |det L|."""
    x = line()
    q = Normal(torch.full_like(x, 0.4), torch.tensor(0.6))
    p = joint(3)
    shifted = 1.5 * (1 + math.log(2 * math.pi)) + torch.linalg.cholesky(p.covariance).diagonal().log().sum()
    return max(worst(-torch.trapezoid(q.log_prob(x).exp() * q.log_prob(x), x), q.entropy()), worst(p.entropy(), shifted))


@row(
    "cross-entropy",
    "H_p(q) = H(p) + KL(p‖q)",
    notes=f"{MATHS_004} 10.2",
    function="sf.probability.cross_entropy; sf.Normal.cross_entropy",
    tolerance=1e-10,
)
def cross_entropy() -> float:
    """tables term by term, Gaussians by quadrature."""
    p, q, x = table(6), table(6), line()
    written = -sum(float(a) * math.log(float(b)) for a, b in zip(p, q, strict=True))
    one, other = Normal(torch.full_like(x, 0.4), torch.tensor(0.6)), Normal(torch.full_like(x, -0.5), torch.tensor(1.1))
    integral = -torch.trapezoid(one.log_prob(x).exp() * other.log_prob(x), x)
    return max(
        worst(pr.cross_entropy(p, q), written),
        worst(pr.cross_entropy(p, q), pr.entropy(p) + pr.kl(p, q)),
        worst(one.cross_entropy(other)[0], integral),
    )


@row("kl-table", "KL(p‖q) = Σ p log(p/q)", notes=f"{BASICS_000}; {MATHS_004} 10.2", function="sf.probability.kl", tolerance=1e-13)
def kl_table() -> float:
    """term by term; a fair coin against one of 3 to 1: log 2 - ½ log 3."""
    p, q = table(6), table(6)
    written = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    coins = pr.kl(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
    return max(worst(pr.kl(p, q), written), worst(coins, math.log(2) - 0.5 * math.log(3)))


@row(
    "kl-gauss",
    "KL = log(σ₂/σ₁) - ½ + (σ₁² + (μ₁-μ₂)²)/(2σ₂²)",
    notes=f"{BASICS_000}; 003 1.4.2.1; 002 VDM",
    function="sf.Normal.kl",
    tolerance=1e-9,
)
def kl_gauss() -> float:
    """∫ p log(p/q) by quadrature, for four pairs of means and variances."""
    x = line(30.0, 60_001)
    errors = []
    for mean, log_variance in ((0.0, 0.0), (1.0, -1.0), (-2.0, 0.7), (0.3, 1.5)):
        p, q = Normal(torch.full_like(x, 0.2), torch.tensor(-0.4)), Normal(torch.full_like(x, mean), torch.tensor(log_variance))
        errors.append(worst(p.kl(q)[0], torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x)))
    return max(errors)


@row(
    "kl-gauss-full",
    "KL of two Gaussians with full covariances",
    notes=f"{BASICS_000}; 002 VDM",
    function="sf.probability.Joint.kl",
    tolerance=1e-10,
)
def kl_gauss_full() -> float:
    """torch.distributions.MultivariateNormal in four dimensions."""
    p, q = joint(4), joint(4)
    theirs = [torch.distributions.MultivariateNormal(each.mean, each.covariance) for each in (p, q)]
    return worst(p.kl(q), torch.distributions.kl_divergence(*theirs))


@row(
    "kl-non-negative",
    "KL(p‖q) >= 0, and 0 for q = p",
    notes=f"{MATHS_004} 10.2; 003 1.4.1.2",
    function="sf.probability.kl; sf.Normal.kl",
    tolerance=1e-12,
)
def kl_non_negative() -> float:
    """the most negative of 2,000 pairs of tables and 2,000 pairs of Gaussians; |KL(p‖p)|."""
    tables = min(float(pr.kl(table(5), table(5))) for _ in range(500))
    p, q = (Normal(torch.randn(2000), torch.randn(2000)) for _ in range(2))
    same = table(5)
    return max(0.0, -tables, -float(p.kl(q).min()), abs(float(pr.kl(same, same))), float(p.kl(p).abs().max()))


@row(
    "jensen",
    "log E w >= E log w",
    notes=f"{BASICS_000} Jensen; {MATHS_004} 10.2; 003 (1.4.5)",
    function="sf.probability.importance_bound; .elbo",
    tolerance=1e-12,
)
def jensen() -> float:
    """the shortfall over 200 random sets of weights; equality where all weights are one; the gap of e^N(0, v) is v/2."""
    w = torch.randn(50, 200)
    shortfall = float((pr.elbo(w, torch.zeros_like(w)) - pr.importance_bound(w, torch.zeros_like(w))).max())
    constant = pr.importance_bound(torch.full((7, 1), 0.3), torch.zeros(7, 1)) - 0.3
    x, weight = hermite(60)
    gap = math.log(float((weight * (0.9 * x).exp()).sum())) - float((weight * 0.9 * x).sum())
    return max(0.0, shortfall, float(constant.abs()), abs(gap - 0.405))


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for integrals against N(0, 1): eigenvalues of the Jacobi matrix (Golub & Welsch 1969)."""
    off = torch.arange(1, n).double().sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values, vectors[0].square()
