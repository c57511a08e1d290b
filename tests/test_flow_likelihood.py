"""The flow's density against the oracles' own; its dequantisation against probabilities that are known."""

import math

import pytest
import torch
from problems import every_scales, gaussian, gaussian_flow, long_walk, mixture

import sfumato as sf
from sfumato import likelihood
from sfumato.likelihood import Exact, Hutchinson, TruncatedNormal, Uniform
from sfumato.ode import dormand_prince
from sfumato.oracle import EmpiricalDistribution, Gaussian


def deep(scales=sf.vp_scales):
    """A schedule whose last level is N(0, I) to 1e-8."""
    return sf.Cosine(scales=scales, log_snr_max=12.0, log_snr_min=-36.0)


def blurred(schedule):
    """The level of x_t/alpha at the first level of a schedule."""
    level = schedule.level(0.0)
    return sf.Level(torch.tensor(1.0), level.sigma / level.alpha)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@long_walk
@every_scales
@pytest.mark.parametrize("exact", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_the_flow_has_the_density_of_the_data(exact, scales):
    schedule = deep(scales)
    x, _ = exact.sample(16, seeded())
    density = likelihood.flow_density(exact, x, schedule, tolerance=1e-6)
    wanted = exact.log_prob(x, blurred(schedule))
    torch.testing.assert_close(density.log_prob, wanted, rtol=0, atol=1e-5)
    assert ((density.log_prob - wanted).abs() < 3 * density.step_error + 1e-7).all()


@long_walk
@pytest.mark.parametrize(
    "schedule",
    [
        sf.LinearVP(log_snr_max=8.0),
        sf.VE(sigma_max=1e5),
        sf.Flow(log_snr_min=-30.0),
        sf.Discrete(torch.cat([torch.linspace(1e-4, 0.5, 99), torch.ones(1)])),
    ],
    ids=["LinearVP", "VE", "Flow", "zero terminal SNR"],
)
def test_the_ends_come_from_the_schedule(schedule):
    """Gaussian data: the flow's law is Gaussian whatever the ends, as the flow is linear and ends in N(0, I) at unit scale."""
    x, _ = gaussian.sample(8, seeded())
    chain = isinstance(schedule, sf.Discrete)
    first, last = (schedule.level(t) for t in ((0.01, 0.99) if chain else (0.0, 1.0)))
    one = lambda level: sf.Level(level.alpha / level.alpha.hypot(level.sigma), level.sigma / level.alpha.hypot(level.sigma))  # noqa: E731
    first, last = one(first), one(last)
    spread = lambda level: level.alpha**2 * gaussian.variances[0] + level.sigma**2  # noqa: E731
    stretch = 0.5 * (spread(last) / spread(first)).log().sum() + 2 * first.alpha.log()
    end = gaussian_flow(first.alpha * x, first, last)
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(end).sum(1) + stretch
    torch.testing.assert_close(likelihood.flow_log_prob(gaussian, x, schedule, tolerance=1e-8), wanted, rtol=0, atol=1e-6)


def test_a_smaller_tolerance_brings_the_error_down():
    x, _ = mixture.sample(32, seeded())
    schedule = deep()
    wanted = mixture.log_prob(x, blurred(schedule))
    errors, calls = [], []
    for tolerance in (1e-4, 1e-5, 1e-6):
        density = likelihood.flow_density(mixture, x, schedule, tolerance=tolerance)
        errors.append((density.log_prob - wanted).abs().median().item())
        calls.append(density.evaluations.double().mean().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert calls[0] < calls[1] < calls[2] < 500


def test_an_example_does_not_depend_on_its_batch():
    """Rows that have arrived leave the batch; labels and probes stay with those that go on. The flow ends where labels still matter."""
    schedule, divergence = sf.Cosine(log_snr_max=10.0, log_snr_min=-1.0), Hutchinson(2)
    x, labels = mixture.sample(5, seeded())

    def density(rows):
        cond, probes = {"labels": labels[rows]}, sf.row_generators(0, rows)
        return likelihood.flow_density(mixture, x[rows], schedule, cond, divergence=divergence, tolerance=1e-6, generator=probes)

    together, alone = density(list(range(5))), [density([i]) for i in range(5)]
    assert len(set(together.evaluations.tolist())) > 1
    torch.testing.assert_close(together.log_prob, torch.cat([each.log_prob for each in alone]), rtol=1e-10, atol=1e-10)
    assert torch.equal(together.evaluations, torch.cat([each.evaluations for each in alone]))


@pytest.mark.parametrize("gaussian_probes", [False, True], ids=["signs", "normal"])
def test_hutchinson_is_unbiased_and_knows_its_error(gaussian_probes):
    x, _ = mixture.sample(400, seeded())
    exact = likelihood.flow_density(mixture, x, sf.Cosine(), tolerance=1e-4, divergence=Exact())
    drawn = likelihood.flow_density(
        mixture, x, sf.Cosine(), tolerance=1e-4, divergence=Hutchinson(4, gaussian=gaussian_probes), generator=seeded(1)
    )
    off = drawn.log_prob - exact.log_prob
    assert abs(off.mean()) < 3 * off.std() / math.sqrt(len(off))
    assert (drawn.probe_error.square().mean() / off.square().mean()).item() == pytest.approx(1.0, abs=0.25)
    assert (exact.probe_error == 0).all()


class _SameInEveryRow:
    """A uniform dequantiser whose place in the bin is drawn once a call, for all rows alike."""

    def __init__(self):
        self.generator = seeded(7)

    def __call__(self, x0, width, blur, generator):
        place = torch.rand(x0[0].shape, generator=self.generator) - 0.5
        return x0 + width * place, torch.full((len(x0),), -x0[0].numel() * math.log(width))


def test_several_draws_carry_the_error_of_their_probes():
    """Rows that differ by their probes alone scatter by what `probe_error` says, although log-mean-exp joins three draws."""
    correlated = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 4), (0.05 * torch.eye(4) + 0.1)[None])
    schedule = sf.Cosine(log_snr_max=6.0, log_snr_min=-12.0)
    options = {"bin_width": 0.5, "dequantise": _SameInEveryRow(), "draws": 3, "divergence": Hutchinson(16), "tolerance": 1e-3}
    bound = likelihood.bits_per_dim(correlated, torch.full((300, 4), 0.1), schedule, generator=seeded(), **options)
    assert bound.probe_error.shape == (300,)
    assert bound.probe_error.square().mean().sqrt().item() == pytest.approx(bound.total.std().item(), rel=0.15)


def test_signs_trace_a_diagonal_jacobian_exactly():
    """e·J e = tr J for every vector of signs, and for one probe the error is not known."""
    diagonal = Gaussian(torch.zeros(40), torch.linspace(0.1, 2.0, 40))
    x, _ = diagonal.sample(3, seeded())
    density = likelihood.flow_density(diagonal, x, deep(), divergence=Hutchinson(1), tolerance=1e-6, generator=seeded())
    torch.testing.assert_close(density.log_prob, diagonal.log_prob(x, blurred(deep())), rtol=0, atol=1e-4)
    assert density.probe_error.isnan().all()


def test_beyond_32_dimensions_the_divergence_is_drawn():
    wide, narrow = Gaussian(torch.zeros(33), torch.linspace(0.1, 2.0, 33)), Gaussian(torch.zeros(32), torch.linspace(0.1, 2.0, 32))
    schedule = sf.Cosine(log_snr_max=4.0, log_snr_min=-4.0)
    count = lambda oracle, n: likelihood.flow_density(oracle, torch.zeros(1, n), schedule, generator=seeded())  # noqa: E731
    assert count(wide, 33).probe_error.isfinite().all()
    assert (count(narrow, 32).probe_error == 0).all()


def test_labels_condition_the_flow_row_by_row():
    x, labels = mixture.sample(12, seeded())
    schedule = deep()
    nats = likelihood.flow_log_prob(mixture, x, schedule, {"labels": labels}, tolerance=1e-7)
    torch.testing.assert_close(nats, mixture.log_prob(x, blurred(schedule), {"labels": labels}), rtol=0, atol=1e-5)


def test_the_mean_over_samples_is_minus_the_entropy():
    """One dimension: the entropy of the blurred mixture by quadrature."""
    line = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.2]], [[0.5]]]))
    schedule = sf.Cosine(log_snr_max=9.0, log_snr_min=-20.0)
    x = torch.linspace(-8, 9, 100_001)[:, None]
    log_p = line.log_prob(x, blurred(schedule))
    entropy = -torch.trapezoid(log_p.exp() * log_p, x[:, 0])
    x0, _ = line.sample(1500, seeded())
    nats = likelihood.flow_log_prob(line, x0 + blurred(schedule).sigma * torch.randn(x0.shape), schedule, tolerance=1e-4)
    assert abs(nats.mean() + entropy) < 3 * nats.std() / math.sqrt(1500)


def test_images_and_float32_pass_through():
    images = EmpiricalDistribution(torch.rand(5, 1, 2, 2))
    x = torch.rand(3, 1, 2, 2)
    schedule = sf.Cosine(log_snr_max=4.0, log_snr_min=-20.0)
    exact = likelihood.flow_density(images, x, schedule, tolerance=1e-6)
    torch.testing.assert_close(exact.log_prob, images.log_prob(x, blurred(schedule)), rtol=0, atol=1e-4)
    single = likelihood.flow_density(images, x.float(), schedule, tolerance=1e-4)
    assert single.log_prob.dtype == torch.float32
    torch.testing.assert_close(single.log_prob.double(), exact.log_prob, rtol=0, atol=1e-2)


def test_a_float32_network_is_followed_down_to_15_nats():
    """At sigma = 5.5e-4 a path in float32 would be rounded by ten times what a step may miss."""
    net = sf.nets.MLP((2,), width=16, depth=1).float()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    nats = [likelihood.flow_log_prob(sf.Denoiser(net, sf.edm_target), x, sf.Cosine()) for x in (torch.ones(2, 2).float(), torch.ones(2, 2))]
    assert nats[0].dtype == torch.float32
    torch.testing.assert_close(nats[0].double(), nats[1], rtol=0, atol=1e-2)


def test_a_step_of_the_pair_has_its_orders():
    """y' = -y² t from y(0) = 1: y = 2 / (2 + t²). The error after one step falls by 2⁶, the difference of the pair by 2⁵."""
    slope = lambda t, state: (-state[0].square() * t,)  # noqa: E731
    errors = []
    for h in (0.1, 0.05):
        t, y = torch.tensor(1.0), (torch.tensor([2 / 3]),)
        new, difference, last = dormand_prince(slope, t, y, slope(t, y), torch.tensor(h))
        torch.testing.assert_close(last[0], slope(t + h, new)[0])
        errors.append(((new[0] - 2 / (2 + (1 + h) ** 2)).abs().item(), difference[0].abs().item()))
    (fifth, fourth), (fifth_half, fourth_half) = errors
    assert math.log2(fifth / fifth_half) == pytest.approx(6, abs=0.4)
    assert math.log2(fourth / fourth_half) == pytest.approx(5, abs=0.4)


WIDTH = 0.25
GRID = torch.arange(-6, 7) * WIDTH
STAIRS = torch.linspace(1, 4, 13) / torch.linspace(1, 4, 13).sum()


@long_walk
@pytest.mark.parametrize("dequantise", [Uniform(), TruncatedNormal(), TruncatedNormal(std=0.1)], ids=["uniform", "matched", "narrow"])
def test_dequantisation_bounds_what_the_bins_hold(dequantise):
    """Smooth Gaussian data on a grid: the mass of each bin is known, and the bound lies above -log2 of it by little."""
    density = Gaussian(torch.tensor([0.1]), torch.tensor([0.25]))
    schedule = sf.Cosine(log_snr_max=6.0, log_snr_min=-20.0)
    level = blurred(schedule)
    law = torch.distributions.Normal(0.1, (0.25 + level.sigma**2).sqrt())
    x0 = GRID.repeat(150)[:, None]
    mass = law.cdf(x0 + WIDTH / 2) - law.cdf(x0 - WIDTH / 2)
    wanted = -mass[:, 0].log2()
    bound = likelihood.bits_per_dim(density, x0, schedule, bin_width=WIDTH, dequantise=dequantise, tolerance=1e-3, generator=seeded())
    gap = bound.total - wanted
    error = gap.std() / math.sqrt(len(gap))
    assert -3 * error < gap.mean() < 0.15 if dequantise == Uniform() else gap.mean() > -3 * error
    tighter = likelihood.bits_per_dim(
        density, x0, schedule, bin_width=WIDTH, dequantise=dequantise, draws=8, tolerance=1e-3, generator=seeded()
    )
    assert -3 * error < (tighter.total - wanted).mean() < gap.mean() + 3 * error


@pytest.mark.parametrize("dequantise", [Uniform(), TruncatedNormal(), TruncatedNormal(std=0.05)], ids=["uniform", "matched", "narrow"])
def test_a_dequantiser_has_the_density_that_it_says(dequantise):
    """E_q[f(x)/q(x)] over a bin is ∫ f, here for f = exp."""
    x0 = torch.full((200_000, 1), 0.3)
    x, log_q = dequantise(x0, WIDTH, 0.2, seeded())
    assert ((x - x0).abs() <= WIDTH / 2).all()
    weighed = (x[:, 0] - log_q).exp()
    wanted = math.exp(0.3 + WIDTH / 2) - math.exp(0.3 - WIDTH / 2)
    assert abs(weighed.mean() - wanted) < 4 * weighed.std() / math.sqrt(len(x0))
    assert weighed.mean() == pytest.approx(wanted, rel=0.05)


def test_log_q_adds_up_over_dimensions():
    x0 = torch.zeros(4, 3, 2)
    _, uniform = Uniform()(x0, WIDTH, 0.1, seeded())
    torch.testing.assert_close(uniform, torch.full((4,), -6 * math.log(WIDTH)))
    x, normal = TruncatedNormal()(x0, 1e6, 0.1, seeded())
    torch.testing.assert_close(normal, torch.distributions.Normal(0.0, 0.1).log_prob(x).sum((1, 2)))


def test_uniform_noise_on_steps_of_a_stair_is_exact():
    """A predictor whose law is flat in every bin has P(bin) = p(x) · width: here a mixture of many narrow Gaussians stands for it."""
    fine = torch.arange(-6.5 * WIDTH, 6.5 * WIDTH, WIDTH / 20) + WIDTH / 40
    stair = sf.GaussianMixture(STAIRS.repeat_interleave(20) / 20, fine[:, None], torch.full((260, 1), (WIDTH / 20) ** 2))
    schedule = sf.Cosine(log_snr_max=9.0, log_snr_min=-20.0)
    inner = torch.arange(1, 12)
    bound = likelihood.bits_per_dim(stair, GRID[inner, None], schedule, bin_width=WIDTH, draws=8, tolerance=1e-3, generator=seeded())
    torch.testing.assert_close(bound.total, -STAIRS[inner].log2(), rtol=0, atol=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: likelihood.flow_log_prob(mixture, torch.zeros(1, 2), sf.Cosine(), tolerance=0.0), "tolerance must be positive"),
        (lambda: likelihood.flow_log_prob(no_gradient, torch.zeros(1, 2), sf.Cosine()), "no gradient"),
        (lambda: likelihood.flow_log_prob(no_number, torch.zeros(1, 2), sf.Cosine()), "cannot be followed"),
        (lambda: likelihood.bits_per_dim(mixture, torch.zeros(1, 2), sf.Cosine(), bin_width=0.0), "bin_width positive"),
        (lambda: likelihood.bits_per_dim(mixture, torch.zeros(1, 2), sf.Cosine(), draws=0), "draws must be"),
        (lambda: Hutchinson(0), "at least one probe"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def no_gradient(x_t, level, cond=None):
    with torch.no_grad():
        p = mixture(x_t, level, cond)
    return sf.Prediction(p.x0, p.eps)


def no_number(x_t, level, cond=None):
    return sf.Prediction(x_t * math.nan, x_t * math.nan)


def test_the_truncated_normal_takes_the_noise_of_the_first_level():
    schedule, x0 = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), torch.tensor([[0.2], [-0.4], [0.0]])
    first = schedule.level(0.0)
    exact = sf.Gaussian(torch.zeros(1), 0.2)
    by_itself, told = (
        likelihood.bits_per_dim(exact, x0, schedule, bin_width=0.2, dequantise=how, generator=torch.Generator().manual_seed(0)).total
        for how in (likelihood.TruncatedNormal(), likelihood.TruncatedNormal(std=float(first.sigma / first.alpha)))
    )
    torch.testing.assert_close(by_itself, told)
