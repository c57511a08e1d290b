"""The bound against closed forms: Gaussian data whose entropy is known, bins that sum to one, numbers of another implementation."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import likelihood, process

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


REFERENCE = Path(os.environ.get("SFUMATO_TEST_REFERENCE", Path(__file__).parents[2] / "shared" / "reference" / "improved_diffusion.npz"))


@pytest.mark.skipif(not REFERENCE.is_file(), reason="numbers of another implementation are not here")
@pytest.mark.parametrize("case", ["linear1000", "cosine1000", "cosine1000_respaced_25", "linear1000_ddim50"])
def test_reverse_steps_are_those_of_improved_diffusion(case):
    """Chains, posteriors, three parameterisations, four variances, both clips, the bound's terms, DDIM and its inversion, in float64."""
    file = np.load(REFERENCE)
    r = {key.removeprefix(f"{case}/"): torch.from_numpy(file[key]) for key in file.files if key.startswith(f"{case}/")}
    chain = sf.Discrete(r["base_betas"])
    ks = [0, *(r["kept_timesteps"] + 1).tolist()]
    levels = [chain.level(k / len(chain)) for k in ks]
    close = lambda ours, key: torch.testing.assert_close(ours, r[key], rtol=1e-9, atol=1e-11, msg=lambda m: f"{key}: {m}")  # noqa: E731
    stack = lambda f: torch.stack([f(levels[i + 1], levels[i]) for i in range(len(ks) - 1)])  # noqa: E731
    close(stack(lambda t, s: t.alpha**2), "alphas_cumprod")
    close(stack(lambda t, s: process.transition_log_variance(s, t).exp()), "betas")
    close(stack(lambda t, s: process.posterior_log_variance(t, s).exp()), "posterior_variance")
    one, none = torch.ones(()), torch.zeros(())
    close(stack(lambda t, s: process.posterior(one, none, t, s).mean), "posterior_mean_coef_x0")
    close(stack(lambda t, s: process.posterior(none, one, t, s).mean), "posterior_mean_coef_xt")
    last = process.posterior_log_variance(levels[2], levels[1])
    for row, i in enumerate(r["t"].tolist()):
        t, s = levels[i + 1], levels[i]
        x0, eps, x_t, noise, raw, v = (
            r[key][row : row + 1] for key in ("x0", "eps", "x_t", "noise", "network_mean_output", "network_var_output")
        )
        row_close = lambda ours, key: torch.testing.assert_close(ours, r[key][row : row + 1], rtol=1e-9, atol=1e-10)  # noqa: B023, E731
        row_close(t.alpha * x0 + t.sigma * eps, "x_t")
        row_close(process.posterior(x0, x_t, t, s).mean, "posterior_mean")
        row_close(likelihood.prior_bits(x0, levels[-1]), "prior_bpd")
        p = sf.Prediction.solve(raw, x_t, t, sf.eps_target)
        for eta in ("0.0", "0.5", "1.0"):
            variance = float(eta) ** 2 * process.posterior_log_variance(t, s).exp()
            deterministic, _ = sf.steps.DDIM(0.0)(lambda *_: p, x_t, t, s, None, None)  # noqa: B023
            if eta == "0.0":
                row_close(deterministic, "ddim/eta0.0")
            else:
                shrunk = s.alpha * p.x0 + (s.sigma.square() - variance).clamp(min=0).sqrt() * p.eps
                row_close(shrunk + variance.sqrt() * noise, f"ddim/eta{eta}")
        for name, fraction in (("fixed_small", None), ("fixed_large", None), ("learned_range", (v + 1) / 2)):
            kind = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}[name]
            for clip in (0, 1):
                for how in ("eps", "x0"):
                    base = sf.Prediction.solve(raw, x_t, t, sf.eps_target) if how == "eps" else sf.Prediction.from_x0(0.5 * raw, x_t, t)
                    x0_hat = base.x0.clamp(-1, 1) if clip else base.x0
                    prediction = sf.Prediction.from_x0(x0_hat, x_t, t, fraction)
                    model = process.reverse(prediction, x_t, t, s, variance=kind, last_log_variance=last)
                    key = f"{how}/{name}/clip{clip}"
                    row_close(prediction.x0, f"{key}/pred_x0")
                    row_close(model.mean, f"{key}/mean")
                    row_close(model.log_variance.expand_as(model.mean), f"{key}/log_variance")
                    term = likelihood.term_bits(prediction, x0, x_t, t, s, variance=kind, last_log_variance=last)
                    if i > 0:
                        row_close(term, f"{key}/vlb_term_bpd")
                    elif (theirs := r[f"{key}/vlb_term_bpd"][row]) < 2:  # they approximate the integral by a tanh and cut it at 1e-12
                        assert abs(term.item() - theirs.item()) < 5e-3
