"""Diffusion as a hierarchical VAE: one function computes both bounds, to rounding."""

import math

import pytest
import torch
from problems import mixture

import sfumato as sf
from sfumato import latent
from sfumato.latent.chain import as_hierarchical_vae

CHAINS = {"linear": sf.Discrete.linear(40), "cosine": sf.Discrete.cosine(25)}
every_chain = pytest.mark.parametrize("name", CHAINS)


def grid_points(n):
    return ((mixture.sample(n, torch.Generator().manual_seed(77))[0] / 4).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


@every_chain
@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_hierarchical_bound_is_the_diffusion_bound(name, variance):
    """The same noise: equal to rounding in every part, though one is written for VAEs and one for diffusion."""
    chain, x0 = CHAINS[name], grid_points(50)
    ours = latent.bound(as_hierarchical_vae(mixture, chain, variance=variance, jumps=True), x0, generator=torch.Generator().manual_seed(1))
    levels = sf.grid(chain, len(chain), spacing=sf.spacing.uniform)
    theirs = sf.likelihood.vlb(mixture, x0, levels, variance=variance, generator=torch.Generator().manual_seed(1))
    for part in ("prior", "steps", "decoder", "total"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=1e-12, atol=1e-13)


@every_chain
def test_the_walk_along_the_chain_has_the_same_mean(name):
    """Drawn from the posterior at each level rather than in one jump: other draws, one bound."""
    x0 = grid_points(4000)
    jump, walk = (as_hierarchical_vae(mixture, CHAINS[name], jumps=jumps) for jumps in (True, False))
    a, b = (latent.bound(model, x0, generator=torch.Generator().manual_seed(k)) for k, model in enumerate((jump, walk)))
    error = math.hypot(a.standard_error, b.standard_error)
    assert (a.total.mean() - b.total.mean()).abs() < 4 * error
    gap = (a.steps.mean(0) - b.steps.mean(0)).abs() / torch.hypot(a.standard_errors["steps"], b.standard_errors["steps"])
    assert gap.max() < 4.5


def test_the_importance_bound_of_diffusion_falls_to_its_evidence():
    """Of a chain that is a joint Gaussian the evidence is known; more walks come nearer from above."""
    chain = sf.Discrete(torch.linspace(0.05, 0.3, 5))
    oracle = sf.GaussianMixture(torch.ones(1), torch.tensor([[0.2]]), torch.tensor([[[0.3]]]))
    x0, width = torch.linspace(-0.8, 0.8, 9)[:, None], 0.2
    model = as_hierarchical_vae(oracle, chain, variance="large", bin_width=width)
    rows = x0.repeat(400, 1)
    bits = [latent.importance_bits(model, rows, draws=k, generator=torch.Generator().manual_seed(k)).mean() for k in (1, 3, 10, 100)]
    assert bits[0] > bits[1] > bits[2] > bits[3]
    draws = model.sample(torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0)) * 1.0, torch.Generator().manual_seed(1))
    last = model.levels[-2]
    law = sf.process.reverse(
        oracle(torch.zeros(1, 1), last), torch.zeros(1, 1), last, model.levels[-1], variance="large",
        last_log_variance=sf.process.posterior_log_variance(model.levels[-3], last),
    )  # fmt: skip
    chances = torch.stack(
        [sf.Normal(draws, law.log_variance).binned_log_prob(v.expand_as(draws), bin_width=width).exp().mean() for v in x0]
    )
    truth = -chances.log2().mean()
    assert bits[-1] == pytest.approx(float(truth), abs=0.02)
    assert bits[0] > truth + 0.01
    with pytest.raises(ValueError, match="make the model with jumps=False"):
        latent.importance_bits(as_hierarchical_vae(oracle, chain, bin_width=width, jumps=True), x0, draws=2)


def test_sampling_it_is_ancestral_sampling():
    chain = CHAINS["linear"]
    model = as_hierarchical_vae(mixture, chain)
    noise = torch.randn(20, 2)
    ours = model.sample(noise, torch.Generator().manual_seed(3))
    levels = sf.grid(chain, len(chain), spacing=sf.spacing.uniform)
    theirs = sf.sample(mixture, noise, levels, sf.steps.Ancestral("small"), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs)


def test_a_curve_is_cut_into_steps():
    model = as_hierarchical_vae(mixture, sf.Cosine(), steps=12)
    assert model.depth == 12
    bound = latent.bound(model, grid_points(10), generator=torch.Generator().manual_seed(0))
    assert bound.steps.shape == (10, 11)
    uses = latent.level_use(model, grid_points(200), generator=torch.Generator().manual_seed(0))
    assert uses[0].nats > 0.5 > 0.01 > uses[-1].nats


def test_conditions_go_along():
    seen = []

    def predict(x_t, level, cond=None):
        seen.append(cond)
        return mixture(x_t, level)

    cond = {"labels": torch.zeros(3, dtype=torch.long)}
    latent.bound(as_hierarchical_vae(predict, CHAINS["cosine"], cond), grid_points(3))
    assert len(seen) == 25
    assert all(each is cond for each in seen)


@pytest.mark.parametrize(("schedule", "steps"), [(sf.Cosine(), None), (sf.Cosine(), 1), (sf.Discrete.linear(20), 1)])
def test_too_few_steps_are_refused(schedule, steps):
    with pytest.raises(ValueError, match="at least two steps"):
        as_hierarchical_vae(mixture, schedule, steps=steps)
