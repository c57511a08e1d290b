"""The bound against closed forms: Gaussian data whose entropy is known, bins that sum to one."""

import math

import pytest
import torch

import sfumato as sf
from sfumato import latent, likelihood, process

GRID = torch.linspace(-1, 1, 256, dtype=torch.float64)


@pytest.mark.parametrize("log_variance", [-20.0, -9.0, -3.0, 2.0])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.37, 1.0])
def test_bins_share_out_all_the_mass(mean, log_variance):
    q = sf.Normal(torch.full((256,), mean), torch.tensor(log_variance))
    assert q.binned_log_prob(GRID).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_a_bin_is_an_integral_of_the_density():
    q = sf.Normal(torch.tensor([0.1]), torch.tensor(-4.0))
    for x in (GRID[120], GRID[141], GRID[200]):
        inside = torch.linspace(float(x) - 1 / 255, float(x) + 1 / 255, 2001)
        mass = torch.trapezoid(sf.Normal(torch.full_like(inside, 0.1), torch.tensor(-4.0)).log_prob(inside).exp(), inside)
        torch.testing.assert_close(q.binned_log_prob(x.reshape(1)).exp().squeeze(), mass, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("off", [-1e-3, 1e-3])
def test_the_bins_next_to_the_outermost_are_closed_even_for_rounded_data(side, off):
    width, q = 2 / 255, torch.distributions.Normal(side * 0.99, 0.02)
    x = side * (1 - width * (1 + torch.tensor([off])))
    mass = q.cdf(x + width / 2) - q.cdf(x - width / 2)
    ours = sf.Normal(torch.tensor([side * 0.99]), torch.tensor(2 * math.log(0.02))).binned_log_prob(x, bin_width=width)
    torch.testing.assert_close(ours, mass.log(), rtol=1e-9, atol=0)


def test_far_bins_stay_finite():
    """A hundred standard deviations away: log-density times width, to the width's curvature."""
    q = sf.Normal(torch.zeros(1), torch.tensor(2 * math.log(0.005)))
    x = GRID[192:193]
    wanted = torch.special.log_ndtr(-(x - 1 / 255) / 0.005)
    torch.testing.assert_close(q.binned_log_prob(x), wanted, rtol=1e-6, atol=0)


def quantised_gaussian(n):
    """8-bit draws of N(0.1, 0.3²), and the exact predictor of the unquantised law."""
    raw = (0.1 + 0.3 * torch.randn(n, 1)).clamp(-1, 1)
    x0 = ((raw + 1) * 127.5).round() / 127.5 - 1
    return x0, sf.GaussianMixture(torch.ones(1), torch.tensor([[0.1]]), torch.tensor([[[0.09]]]))


def test_the_bound_of_a_gaussian_is_its_entropy():
    """With the exact predictor and a fine chain the bound comes down to the entropy of the bins, log(σ sqrt(2πe)) + log(127.5) nats."""
    x0, exact = quantised_gaussian(1500)
    entropy = (math.log(0.3 * math.sqrt(2 * math.pi * math.e)) + math.log(127.5)) / math.log(2)
    chain = sf.Discrete.linear(1000)
    totals = []
    for steps in (50, 1000):
        bound = likelihood.vlb(exact, x0, sf.grid(chain, steps, spacing=sf.spacing.uniform), variance="large")
        totals.append(bound.total.mean().item())
        assert bound.prior.mean().item() < 1e-3
        assert totals[-1] > entropy - 3 * bound.standard_error
    assert totals[0] > totals[1]
    assert totals[1] < entropy + 0.15


def test_a_worse_predictor_has_a_larger_bound():
    x0, exact = quantised_gaussian(400)
    wrong = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3]]), torch.tensor([[[0.09]]]))
    levels = sf.grid(sf.Discrete.linear(1000), 100, spacing=sf.spacing.uniform)
    bounds = [likelihood.vlb(p, x0, levels, generator=torch.Generator().manual_seed(0)) for p in (exact, wrong)]
    assert (bounds[0].total.mean() < bounds[1].total.mean()).item()


def test_the_prior_term_is_a_kl_to_the_standard_normal():
    level, x0 = sf.Discrete.linear(100).level(1.0), torch.randn(3, 2)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(level.alpha * x0, level.sigma.expand(3, 2)),
        torch.distributions.Normal(torch.zeros(3, 2), torch.ones(3, 2)),
    )
    torch.testing.assert_close(likelihood.prior_bits(x0, level), wanted.mean(1) / math.log(2), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "levels", [[sf.Cosine().level(t) for t in (1.0, 0.5, 0.0)], [sf.Discrete.linear(10, beta_max=0.002).level(t) for t in (1.0, 0.0)]]
)
def test_chains_without_an_end_are_refused(levels):
    with pytest.raises(ValueError, match="end at the data"):
        likelihood.vlb(quantised_gaussian(2)[1], torch.zeros(2, 1), levels)


@pytest.mark.parametrize("terms", [0, 20])
def test_more_terms_than_there_are_is_refused(terms):
    x0, exact = quantised_gaussian(2)
    with pytest.raises(ValueError, match="terms must lie in 1 … 9"):
        likelihood.vlb(exact, x0, sf.grid(sf.Discrete.linear(1000), 10, spacing=sf.spacing.uniform), terms=terms)


def test_all_terms_drawn_are_all_terms():
    x0, exact = quantised_gaussian(4)
    levels = sf.grid(sf.Discrete.linear(1000), 10, spacing=sf.spacing.uniform)
    whole, drawn = (likelihood.vlb(exact, x0, levels, terms=terms, generator=torch.Generator().manual_seed(0)) for terms in (None, 9))
    torch.testing.assert_close(drawn.total, whole.total)
    assert drawn.weights.tolist() == [1.0] * 9


def test_rows_at_the_decoder_and_above_it_mix():
    chain, x0 = sf.Discrete.cosine(5), quantised_gaussian(3)[0]
    t, s = chain.level(torch.tensor([0.2, 0.6, 1.0]), like=x0), chain.level(torch.tensor([0.0, 0.4, 0.8]), like=x0)
    last = process.posterior_log_variance(chain.level(0.4), chain.level(0.2))
    x_t = t.alpha * x0 + 0.1
    p = sf.Prediction.from_x0(0.9 * x0, x_t, t)
    mixed = likelihood.term_bits(p, x0, x_t, t, s, last_log_variance=last)
    for i in range(3):
        row = slice(i, i + 1)
        alone = likelihood.term_bits(
            sf.Prediction(p.x0[row], p.eps[row]),
            x0[row],
            x_t[row],
            sf.Level(t.alpha[row], t.sigma[row]),
            sf.Level(s.alpha[row], s.sigma[row]),
            last_log_variance=last,
        )
        torch.testing.assert_close(mixed[row], alone)


def test_standard_errors_are_those_of_means():
    bound = likelihood.Bound(torch.tensor([1.0, 3.0]), torch.tensor([[0.0, 2.0], [4.0, 2.0]]), torch.tensor([5.0, 5.0]), torch.ones(2))
    errors = bound.standard_errors
    torch.testing.assert_close(errors["prior"], torch.tensor(1.0))
    torch.testing.assert_close(errors["steps"], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(errors["decoder"], torch.tensor(0.0))
    assert bound.standard_error == pytest.approx(3.0)


ZERO = torch.zeros(2, dtype=torch.float64)
BOUNDS = {
    "chain": lambda total: likelihood.Bound(ZERO[: len(total)], total[:, None], ZERO[: len(total)], torch.ones(1, dtype=torch.float64)),
    "flow": lambda total: likelihood.FlowBound(total, ZERO[: len(total)], ZERO[: len(total)]),
    "latent": lambda total: latent.diffusion.LatentBound(total, ZERO[: len(total)]),
}


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize(("total", "wanted"), [([3.0], math.inf), ([3.0, 5.0], 1.0)])
@pytest.mark.filterwarnings("error")
def test_the_standard_error_of_one_example_is_infinite(kind, total, wanted):
    """And of two, half their distance."""
    bound = BOUNDS[kind](torch.tensor(total, dtype=torch.float64))
    assert bound.standard_error == pytest.approx(wanted)
    if kind == "chain":
        assert {name: value.shape for name, value in bound.standard_errors.items()} == {"prior": (), "steps": (1,), "decoder": ()}
        assert float(bound.standard_errors["steps"]) == pytest.approx(wanted)
