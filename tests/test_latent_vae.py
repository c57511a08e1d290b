"""VAEs against what is known: probabilistic PCA, the linear-Gaussian chain, the KL that separates bound and evidence."""

import math
from itertools import pairwise

import pytest
import torch
from problems import LOG_2_PI
from torch import nn

import sfumato as sf
from sfumato import latent
from sfumato.nets.autoencoder import FromVector, Layout, Perceptron, ToVector
from sfumato.oracle.chain import Affine, LinearGaussianChain

NATS = math.log(2)


class Law(nn.Module):
    """N(matrix v + offset, diag(variance)) as a network says it: mean and log variance."""

    def __init__(self, matrix, offset, variance):
        super().__init__()
        self.matrix, self.offset = nn.Parameter(matrix), nn.Parameter(offset)
        self.log_variance = nn.Parameter(variance.log())

    def forward(self, v):
        mean = v @ self.matrix.T + self.offset
        return torch.cat([mean, self.log_variance.expand_as(mean)], 1)

    def affine(self):
        return Affine(self.matrix.detach(), self.offset.detach(), self.log_variance.detach().exp().diag())


def exact(law):
    """The network of an affine law with a diagonal covariance."""
    return Law(law.matrix.clone(), law.offset.clone(), law.covariance.diagonal().clone())


def chain_of(depth):
    """A chain whose true encoder q(z_1|x), q(z_2|z_1), … has diagonal covariances: orthogonal columns, diagonal laws."""
    matrices = [torch.diag(0.5 + torch.rand(2)) for _ in range(depth - 1)]
    columns = torch.linalg.qr(torch.randn(4, 2))[0] * torch.tensor([1.5, 0.8])
    links = [Affine(columns, torch.randn(4), 0.3 * torch.eye(4))]
    links += [Affine(matrix, torch.randn(2), torch.diag(0.2 + torch.rand(2))) for matrix in matrices]
    return LinearGaussianChain(links)


def true_encoder(chain):
    """q(z_1 | x), q(z_2 | z_1), … as Bayes' rule gives them, each with its diagonal covariance."""
    laws = []
    for k in range(len(chain.links)):
        above = LinearGaussianChain(chain.links[k:])
        n, m = above.sizes[0], above.sizes[1]
        joint, mean = above._covariance[: n + m, : n + m], above._mean
        gain = torch.linalg.solve(joint[:n, :n], joint[:n, n:]).T
        covariance = joint[n:, n:] - gain @ joint[:n, n:]
        torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-9, rtol=0)
        laws.append(Affine(gain, mean[n : n + m] - gain @ mean[:n], covariance.diagonal().diag()))
    return laws


def vae_of(chain, encoder):
    return latent.VAE([exact(law) for law in encoder], [exact(link) for link in chain.links], latent.Gaussian(), (chain.sizes[-1],))


def nats(bits, x):
    return bits * x[0].numel() * NATS


def trained(model, x, parts, steps=800, draws=2):
    """Adam on the loss of the library, its rate falling to nothing."""
    optimizer = torch.optim.Adam(parts, lr=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 - n / steps) ** 2)
    rows, generator = x.repeat(draws, 1), torch.Generator().manual_seed(0)
    for _ in range(steps):
        value = latent.loss(model.trace(rows, generator), x.shape[1]).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.usefixtures("unchecked")
def test_a_linear_vae_reaches_the_evidence_of_probabilistic_pca():
    """Maximum likelihood in closed form, from the eigenvalues of the data's covariance. Tipping & Bishop (1999), eqs. 3-8."""
    x = torch.randn(300, 2) @ torch.tensor([[1.5, 0.2, -1.0, 0.5], [0.1, 1.0, 0.4, -0.3]]) + 0.4 * torch.randn(300, 4) + 1.0
    centred = x - x.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(x)).flip(0)
    noise = values[2:].mean()
    best = -0.5 * (4 * LOG_2_PI + values[:2].log().sum() + 2 * noise.log() + 4)

    decoder = Law(0.5 * torch.randn(4, 2), x.mean(0), torch.ones(1))  # one variance for all entries of x
    encoder = Law(0.1 * torch.randn(2, 4), torch.zeros(2), torch.ones(2))
    model = trained(latent.VAE([encoder], [decoder], latent.Gaussian(), (2,)), x, [*decoder.parameters(), *encoder.parameters()])
    noise = decoder.log_variance.detach().exp() * torch.eye(4)
    chain = LinearGaussianChain([Affine(decoder.matrix.detach(), decoder.offset.detach(), noise)])
    assert chain.log_prob(x).mean() == pytest.approx(float(best), abs=1e-3)
    assert chain.elbo(x, encoder.affine()).mean() == pytest.approx(float(best), abs=1e-3)
    estimate = -nats(latent.bound(model, x, draws=200, generator=torch.Generator().manual_seed(1)).total.mean(), x)
    assert estimate == pytest.approx(float(best), abs=0.02)


@pytest.mark.usefixtures("unchecked")
def test_a_linear_hierarchical_vae_reaches_the_evidence_of_its_chain():
    chain = chain_of(3)
    x, _ = chain.sample(400, torch.Generator().manual_seed(0))
    start = [Law(0.1 * torch.randn(2, n), torch.zeros(2), torch.ones(2)) for n in (4, 2, 2)]
    model = vae_of(chain, [law.affine() for law in start])
    encoders = model.net["encoders"]
    trained(model, x, list(encoders.parameters()))
    reached = chain.elbo(x, [law.affine() for law in encoders]).mean()
    assert reached == pytest.approx(float(chain.log_prob(x).mean()), abs=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_with_the_posterior_every_draw_gives_the_evidence(depth):
    chain = chain_of(depth)
    x, _ = chain.sample(50, torch.Generator().manual_seed(0))
    trace = vae_of(chain, true_encoder(chain)).trace(x, torch.Generator().manual_seed(1))
    assert len(trace.latents) == depth
    torch.testing.assert_close(trace.log_ratio, chain.log_prob(x))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_gap_is_the_divergence_from_the_posterior(depth):
    """Of an encoder that is off: the estimate's mean is the evidence less KL(q ‖ p(z | x)), both in closed form."""
    chain = chain_of(depth)
    x, _ = chain.sample(3, torch.Generator().manual_seed(77))
    wrong = [Affine(0.8 * law.matrix, law.offset + 0.2, 1.3 * law.covariance) for law in true_encoder(chain)]
    model, rows = vae_of(chain, wrong), x.repeat(20_000, 1)
    bound = latent.bound(model, rows, generator=torch.Generator().manual_seed(1))
    each = -nats(bound.total, x).reshape(20_000, 3)
    q, p = sf.oracle.chain.joined(wrong), chain.posterior
    gap = torch.stack(
        [sf.probability.Joint(q.mean(v[None])[0], q.covariance).kl(sf.probability.Joint(p.mean(v[None])[0], p.covariance)) for v in x]
    )
    assert (gap > 0.05).all()
    error = each.std(0) / math.sqrt(len(each))
    assert ((each.mean(0) - (chain.log_prob(x) - gap)) / error).abs().max() < 4
    assert bound.steps.shape == (len(rows), depth - 1)


def test_the_importance_bound_falls_with_its_draws_to_the_evidence():
    chain = chain_of(2)
    x, _ = chain.sample(200, torch.Generator().manual_seed(77))
    model = vae_of(chain, [Affine(law.matrix, law.offset + 0.3, 1.5 * law.covariance) for law in true_encoder(chain)])
    truth = -chain.log_prob(x).mean()
    bits = [latent.importance_bits(model, x, draws=k, generator=torch.Generator().manual_seed(k)) for k in (1, 4, 16, 64, 512)]
    costs = [float(nats(b, x).mean()) for b in bits]
    assert all(a > b for a, b in pairwise(costs))
    assert costs[-1] == pytest.approx(float(truth), abs=0.01)
    one = nats(latent.bound(model, x, draws=100, generator=torch.Generator().manual_seed(1)).total.mean(), x)
    assert costs[0] == pytest.approx(float(one), abs=0.2)


GRID = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize(
    "law", [latent.DiscretisedLogistic(), latent.Gaussian(std=0.1, bin_width=2 / 255), latent.Gaussian(bin_width=2 / 255)]
)
def test_the_probabilities_of_all_values_sum_to_one(law):
    said = torch.randn(30, law.numbers) * torch.tensor([0.8, 2.0])[: law.numbers] - torch.tensor([0.0, 4.0])[: law.numbers]
    total = torch.stack([law.log_prob(said, v.expand(30, 1)) for v in GRID]).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(30), atol=1e-9, rtol=0)


@pytest.mark.parametrize("law", [latent.DiscretisedLogistic(bin_width=2 / 16), latent.Gaussian(std=0.02, bin_width=2 / 16)])
def test_greys_that_were_rounded_to_bytes_keep_their_bins(law):
    """17 greys, as bytes 0, 16, 32, … 255: their neighbours are not all equally far, and the probabilities still sum to one."""
    greys = (torch.linspace(0, 255, 17)).round() / 127.5 - 1
    said = torch.tensor([[0.065, -4.0]])[:, : law.numbers]
    assert float(torch.stack([law.log_prob(said, v.reshape(1, 1)).exp() for v in greys]).sum()) == pytest.approx(1, abs=1e-6)


def test_the_logistic_is_the_difference_of_its_cumulative():
    law, x, mean, log_scale = latent.DiscretisedLogistic(), GRID[1:-1, None], torch.tensor(0.2), torch.tensor(-2.0)
    said = torch.stack([mean, log_scale]).expand(254, 2)
    cumulative = lambda v: ((v - mean) / log_scale.exp()).sigmoid()  # noqa: E731
    truth = (cumulative(x + 1 / 255) - cumulative(x - 1 / 255)).log()[:, 0]
    torch.testing.assert_close(law.log_prob(said, x), truth)


def test_the_logistic_keeps_its_gradient_far_out():
    said = torch.tensor([[30.0, -7.0]], requires_grad=True)
    value = latent.DiscretisedLogistic().log_prob(said, torch.tensor([[-1.0]]))
    value.backward()
    assert value.isfinite()
    assert said.grad.isfinite().all()
    assert said.grad[0, 0] < 0


@pytest.mark.parametrize(
    ("law", "values"),
    [(latent.DiscretisedLogistic(bin_width=0.5), torch.linspace(-1, 1, 5)), (latent.Bernoulli(low=-1.0), torch.tensor([-1.0, 1.0]))],
)
def test_draws_are_as_frequent_as_they_are_probable(law, values):
    said = torch.tensor([0.3, -0.7])[: law.numbers].expand(40_000, law.numbers)
    x = law.sample(said, torch.Generator().manual_seed(0))
    chances = torch.stack([law.log_prob(said[:1], v.reshape(1, 1)).exp() for v in values])[:, 0]
    shares = torch.stack([(x - v).abs().lt(1e-6).double().mean() for v in values])
    assert chances.sum() == pytest.approx(1)
    assert ((shares - chances).abs() < 4 * (chances * (1 - chances) / len(x)).sqrt() + 1e-9).all()


def test_bernoulli_is_the_cross_entropy():
    logits, x = torch.randn(5, 7), torch.rand(5, 7)
    truth = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    torch.testing.assert_close(latent.Bernoulli().log_prob(logits, x), truth)
    torch.testing.assert_close(latent.Bernoulli(low=-1.0).log_prob(logits, 2 * x - 1), truth)


@pytest.mark.parametrize(
    ("law", "x"),
    [
        (latent.Bernoulli(), torch.tensor([[-0.5]])),
        (latent.Bernoulli(low=-1.0), torch.tensor([[1.5]])),
        (latent.DiscretisedLogistic(), torch.tensor([[1.5]])),
        (latent.Gaussian(std=1.0, bin_width=0.1), torch.tensor([[1.5]])),
    ],
)
def test_data_beyond_the_law_are_refused(law, x):
    with pytest.raises(ValueError, match=r"likelihood is for data in \[.*\], got .* rescale the data"):
        law.log_prob(torch.zeros(1, law.numbers), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: latent.Gaussian(std=0.0), "std of a Gaussian likelihood must be positive, got 0.0"),
        (lambda: latent.Gaussian(bin_width=math.nan), "bin width of a Gaussian likelihood must be positive, got nan"),
        (lambda: latent.DiscretisedLogistic(bin_width=-1.0), "bin width of a discretised logistic must be positive"),
        (lambda: latent.VAE([], [], latent.Gaussian(), (2,)), "as many encoders as decoders"),
        (lambda: latent.bound(small(), torch.zeros(2, 3), draws=0), "draws must be at least 1"),
        (lambda: latent.sample(small(), 0), "count must be at least 1"),
        (lambda: latent.interpolate(small(), torch.zeros(3), torch.zeros(3), 1), "at least 2 steps"),
        (lambda: small().decode([None]), "the topmost None"),
        (lambda: small().decode([torch.zeros(1, 5)]), r"this network takes \[b, 2\], got \(1, 5\); the latent or the data do not fit"),
        (lambda: small().trace(torch.zeros(2, 4)), r"this network takes \[b, 3\], got \(2, 4\)"),
        (lambda: latent.plane(small(depth=2)), "one latent of two entries"),
        (lambda: misfit().trace(torch.zeros(2, 3)), "latent 1 does not fit: its encoder gives shape"),
        (lambda: Layout(widths=(12,)), "multiples of its 8 groups"),
        (lambda: latent.DiscretisedLogistic().log_prob(torch.zeros(1, 3), torch.zeros(1, 1)), "2 numbers for each entry of x"),
        (
            lambda: latent.DiscretisedLogistic().log_prob(torch.zeros(1, 4), torch.zeros(1, 1)),
            r"x of shape \(1, 2\), got",
        ),
        (lambda: latent.Gaussian(std=1.0).log_prob(torch.zeros(1, 1), torch.zeros(1, 3)), r"x of shape \(1, 1\), got"),
        (lambda: latent.Bernoulli().log_prob(torch.zeros(1, 1), torch.zeros(1, 3)), r"x of shape \(1, 1\), got"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_gets_its_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def small(depth=1, width=8):
    sizes = [3, *[2] * depth]
    encoders = [Perceptron((a,), (2 * b,), width=width, depth=1) for a, b in pairwise(sizes)]
    decoders = [Perceptron((b,), (2 * a,), width=width, depth=1) for a, b in pairwise(sizes)]
    return latent.VAE(encoders, decoders, latent.Gaussian(), (2,))


def misfit():
    """A decoder of z_1 for a latent of another size."""
    encoders = [Perceptron((3,), (4,)), Perceptron((2,), (4,))]
    return latent.VAE(encoders, [Perceptron((2,), (6,)), Perceptron((2,), (6,))], latent.Gaussian(), (2,))


def test_free_nats_charge_nothing_below_them():
    """The divergence has no gradient there, and costs what is free."""
    model, x = small(), torch.randn(20, 3)
    trace = model.trace(x, torch.Generator().manual_seed(0))
    spent = float(trace.latents[0].divergence.detach().mean())
    free, charged = (latent.loss(trace, 3, free_nats=f) * 3 * NATS for f in (2 * spent, spent / 2))
    torch.testing.assert_close(free, -trace.log_likelihood + 2 * spent)
    torch.testing.assert_close(charged, -trace.log_likelihood + trace.latents[0].divergence)
    half = latent.loss(trace, 3, beta=0.5) * 3 * NATS
    torch.testing.assert_close(half, -trace.log_likelihood + 0.5 * trace.latents[0].divergence)


def test_without_free_nats_an_example_costs_the_same_in_every_batch():
    """Its own bound, also where the one draw of a divergence is negative, as some are: there is no floor at 0."""
    model, x, negative = small(2), torch.randn(1, 3), 0
    for seed in range(40):
        trace = model.trace(x, torch.Generator().manual_seed(seed))
        divergences = torch.stack([one.divergence for one in trace.latents])
        negative += int((divergences < 0).sum())
        torch.testing.assert_close(latent.loss(trace, 3) * 3 * NATS, -trace.log_likelihood + divergences.sum(0))
    assert negative > 0


class TwoOfThree(nn.Module):
    """An encoder of three entries of which two follow x, whatever network comes after."""

    def forward(self, x):
        mean = torch.cat([x[:, :2], 0 * x[:, :1]], 1)
        return torch.cat([mean, torch.tensor([-3.0, -3.0, 0.0]).expand(len(x), 3)], 1)


def test_entries_that_say_nothing_are_counted():
    model = latent.VAE([TwoOfThree()], [Perceptron((3,), (4,), depth=0)], latent.Gaussian(), (3,))
    (use,) = latent.level_use(model, torch.randn(500, 2), draws=8)
    assert (use.level, use.units, use.active, use.is_collapsed) == (1, 3, 2, False)
    assert "2 of 3 entries active" in str(use)


def test_a_collapsed_level_is_said():
    """A chain whose top encoder says the prior: level 2 has collapsed, level 1 has not."""
    chain = chain_of(2)
    first = true_encoder(chain)[0]
    model = vae_of(chain, [first, Affine(torch.zeros(2, 2), torch.zeros(2), torch.eye(2))])
    x, _ = chain.sample(2000, torch.Generator().manual_seed(0))
    lower, upper = latent.level_use(model, x, draws=16, generator=torch.Generator().manual_seed(1))
    assert (lower.level, upper.level) == (1, 2)
    assert not lower.is_collapsed
    assert upper.is_collapsed
    assert upper.nats == pytest.approx(0, abs=1e-12)
    assert str(upper).startswith("level 2 has collapsed: ")


LAYOUTS = [
    ((1, 13, 22), Layout(widths=(8, 16), patch=2)),
    ((3, 7, 7), Layout(widths=(8,), patch=1, attention=False)),
    ((1, 9, 5), Layout(widths=(8, 8, 8))),
]


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS, ids=["13x22", "7x7", "9x5"])
def test_convolutions_take_any_size(shape, layout):
    model = latent.VAE([ToVector(shape, 8, layout)], [FromVector(4, shape, 2 * shape[0], layout)], latent.DiscretisedLogistic(), (4,))
    awake(model)
    x = (torch.randint(0, 256, (3, *shape)) / 127.5 - 1).requires_grad_()
    said = model.decode(model.encode(x))
    assert said.shape == (3, 2 * shape[0], *shape[1:])
    (reach,) = torch.autograd.grad(said.square().sum(), x)
    assert (reach != 0).all()
    alone = model.decode(model.encode(x[1:2]))
    torch.testing.assert_close(said[1:2], alone)


def awake(model):
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def test_an_interpolation_joins_the_reconstructions():
    model = small(depth=2)
    a, b = torch.randn(2, 3)
    way = latent.interpolate(model, a, b, 5)
    torch.testing.assert_close(way[[0, -1]], latent.reconstruct(model, torch.stack([a, b])))
    assert way.shape == (5, 3)


def test_the_plane_runs_over_the_prior():
    """With a decoder that shows its latent: rows from the top, columns from the left, at quantiles of the prior."""
    show = latent.VAE([Perceptron((2,), (4,))], [nn.Identity()], latent.Gaussian(std=1.0), (2,))
    walk = latent.plane(show, 3, reach=0.5).reshape(3, 3, 2)
    quartile = 0.6744897501960817
    torch.testing.assert_close(walk[:, :, 0], torch.tensor([-quartile, 0.0, quartile]).expand(3, 3))
    torch.testing.assert_close(walk[:, :, 1], torch.tensor([quartile, 0.0, -quartile])[:, None].expand(3, 3))


def test_samples_have_the_law_of_the_model():
    chain = chain_of(2)
    model = vae_of(chain, true_encoder(chain))
    x = latent.sample(model, 20_000, torch.Generator().manual_seed(0), noisy=True)
    spread = chain.evidence.covariances[0]
    assert ((x.mean(0) - chain.evidence.means[0]) / (spread.diagonal() / len(x)).sqrt()).abs().max() < 4.5
    torch.testing.assert_close(x.T.cov(), spread, atol=0.1, rtol=0.05)


def test_a_sample_depends_on_its_own_generator_alone():
    model = small(depth=2)
    awake(model)
    whole = latent.sample(model, 4, sf.row_generators(5, range(4)), noisy=True)
    part = latent.sample(model, 2, sf.row_generators(5, range(2, 4)), noisy=True)
    torch.testing.assert_close(whole[2:], part)


def test_cold_samples_are_the_mean():
    model = small(depth=2)
    awake(model)
    first, second = (latent.sample(model, 3, torch.Generator().manual_seed(k), temperature=0.0) for k in (0, 1))
    torch.testing.assert_close(first, second)
