"""The stochastic methods on laws that are closed forms: paths of noise, strong and weak orders, marginals that are kept."""

import itertools
import math

import pytest
import torch
from problems import SCALES, counted, few_steps, label, long_walk, mixture
from test_sample_steps import MEAN, VARIANCE, bell, cdf, line

import sfumato as sf
from sfumato.noise import row_generators
from sfumato.verify.sampling import moments


def walk(predict, x, levels, step, memory=None, generator=None):
    for t, s in itertools.pairwise(levels):
        x, memory = step(predict, x, t, s, memory, generator)
    return x


# the path


HALVES = [-math.inf, -30.0, -2.0, -1.99, 0.0, 0.3, 5.0, math.inf]


def test_a_path_has_the_law_of_an_ornstein_uhlenbeck_process():
    """Cov(N(λ), N(λ')) = exp(-|λ - λ'|) over 40,000 rows, within four standard errors."""
    path = sf.steps.BrownianPath.draw(torch.zeros(40_000, 1), torch.Generator().manual_seed(0))
    values = torch.cat([path.at(half) for half in HALVES[1:-1]], 1)
    at = torch.tensor(HALVES[1:-1])
    wanted = (-(at[:, None] - at).abs()).exp()
    assert ((values.T @ values / 40_000 - wanted).abs() < 4 * ((1 + wanted**2) / 40_000).sqrt()).all()
    near = (values[:, 2] - values[:, 1]).square().mean()  # the increment over 0.01, too small for the bound above
    assert abs(near.item() / (2 - 2 * math.exp(-0.01)) - 1) < 4 * math.sqrt(2 / 40_000)


def test_a_path_is_the_same_however_it_is_read():
    """In any order, alone or in a batch; and it is continuous down to the cells that it ends in."""
    like = torch.zeros(3, 2)
    path, again = (sf.steps.BrownianPath.draw(like, row_generators(7, range(3))) for _ in range(2))
    forwards = [path.at(half) for half in HALVES]
    backwards = [again.at(half) for half in HALVES[::-1]][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    alone = sf.steps.BrownianPath.draw(like[:1], row_generators(7, [2]))
    assert torch.equal(alone.at(0.3)[0], path.at(0.3)[2])
    assert not torch.equal(path.at(0.3)[0], path.at(0.3)[1])
    assert (path.at(0.3 + 1e-9) - path.at(0.3)).abs().max() < 1e-3


class Basis:
    """A path in each row that is one vector of a basis of all paths, so that sums of squares over the rows are variances.

    Row 0 starts at 0 and row 1 at 1, both without noise; the others start at 0, and together their N has the covariance exp(-|λ - λ'|).
    """

    def __init__(self, halves):
        self.halves = torch.tensor(sorted(set(halves)))
        self.root = torch.linalg.cholesky((-(self.halves[:, None] - self.halves).abs()).exp())
        self.start = torch.zeros(len(self.halves) + 2, 1)
        self.start[1] = 1

    def at(self, half):
        i = int((self.halves - half).abs().argmin())
        assert abs(self.halves[i] - half) < 1e-9
        return torch.cat([torch.zeros(2), self.root[i]])[:, None]


def halves(levels, rate):
    at = [level.log_snr.item() / 2 for level in levels]
    return [round(rate * h, 12) for h in (*at, *((a + b) / 2 for a, b in itertools.pairwise(at)))]


def end_of(step, levels, basis):
    memory = (basis, basis.start, -math.inf) if isinstance(step, sf.steps.MultistepSDE) else basis
    return walk(bell, levels[0].sigma * basis.start, levels, step, memory)[:, 0] / levels[-1].sigma


def rate_of(step):
    return step.eta if isinstance(step, sf.steps.MultistepSDE) else 1.0


PATHWISE = [
    sf.steps.SinglestepSDE(),
    sf.steps.SinglestepSDE(eta=0.6),
    sf.steps.MultistepSDE(),
    sf.steps.MultistepSDE(eta=0.5),
    sf.steps.MultistepSDE(eta=2.0),
]


@long_walk
@pytest.mark.parametrize("step", PATHWISE, ids=label)
def test_more_steps_follow_one_path_at_strong_order_one(step):
    """The root mean square, over starts and paths, of the distance between walks with n and 2n steps: a sum of squares over a basis."""
    schedule = sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0)  # between the scalings: `test_the_scales_do_not_matter` of all methods

    def distance(n):
        coarse, fine = sf.grid(schedule, n), sf.grid(schedule, 2 * n)
        basis = Basis(halves(coarse, rate_of(step)) + halves(fine, rate_of(step)))
        apart = end_of(step, coarse, basis) - end_of(step, fine, basis)
        return (apart[0] ** 2 + (apart[1] - apart[0]) ** 2 + (apart[2:] - apart[0]).square().sum()).sqrt().item()

    assert math.log2(distance(32) / distance(64)) > 0.8


@long_walk
@pytest.mark.parametrize(("step", "order"), [(step, 1 if step == PATHWISE[1] else 2) for step in PATHWISE], ids=label)
def test_a_solver_on_a_path_has_its_weak_order(step, order):
    """In mean and variance on a Gaussian, without sampling error; DDIM's eta between 0 and 1 is first order, as no SDE keeps its noise."""
    schedule = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0)

    def errors(n):
        levels = sf.grid(schedule, n)
        end = end_of(step, levels, Basis(halves(levels, rate_of(step))))
        t, s = levels[0], levels[-1]
        start = (t.alpha**2 * VARIANCE + t.sigma**2) / t.sigma**2
        mean = end[0] + (end[1] - end[0]) * t.alpha / t.sigma * MEAN - s.alpha / s.sigma * MEAN
        reached = (end[1] - end[0]) ** 2 * start + (end[2:] - end[0]).square().sum()
        return mean.abs().item(), (reached - (s.alpha**2 * VARIANCE + s.sigma**2) / s.sigma**2).abs().item()

    for coarse, fine in zip(errors(64), errors(128), strict=True):
        assert fine < 1e-9 or math.log2(coarse / fine) > order - 0.2


@long_walk
@pytest.mark.parametrize("step", [sf.steps.SinglestepSDE(), sf.steps.MultistepSDE()], ids=label)
def test_a_seeds_sample_converges_as_steps_are_added(step):
    """The whole of it, on a mixture: with four times the steps a seed's samples are four times as near their limit; not another seed's."""
    schedule, x = sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0), torch.randn(400, 2)
    draw = lambda n, seed: sf.sample(mixture, x, sf.grid(schedule, n), step, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    limit = draw(320, 1)
    coarse, fine, other = ((end - limit).norm(dim=1).median().item() for end in (draw(20, 1), draw(80, 1), draw(80, 2)))
    assert coarse / fine > 3
    assert other > 10 * fine


def test_sde_solvers_agree_with_multistep_where_they_are_the_same():
    """eta = 1 is the reverse SDE for both of their etas; eta = 0 the probability flow."""
    levels = sf.grid(sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0), 20)
    x = torch.randn(16, 2)
    torch.testing.assert_close(
        sf.sample(mixture, x, levels, sf.steps.MultistepSDE(eta=0.0)), sf.sample(mixture, x, levels, sf.steps.Multistep(2))
    )
    torch.testing.assert_close(
        sf.sample(mixture, x, levels, sf.steps.SinglestepSDE(eta=0.0)), sf.sample(mixture, x, levels, sf.steps.Singlestep(2, "x0"))
    )


def test_s_noise_scales_the_noise():
    levels, x = sf.grid(sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0), 1), torch.randn(16, 2)
    point = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2, 2))  # x0 = 0 whatever x is
    for kind in (sf.steps.SinglestepSDE, sf.steps.MultistepSDE, lambda **o: sf.steps.Renoised(sf.steps.DDIM(), **o)):
        none, one, two = (
            sf.sample(point, x, levels, kind(s_noise=scale), generator=torch.Generator().manual_seed(0)) for scale in (0.0, 1.0, 2.0)
        )
        torch.testing.assert_close(two - none, 2 * (one - none))
        assert (one - none).abs().max() > 1e-3


# noise added and taken away


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_renoised_ddim_is_ddim_of_that_eta(eta):
    levels, x = sf.grid(sf.Discrete.linear(1000), 12), torch.randn(16, 2)
    runs = [
        sf.sample(mixture, x, levels, step, generator=torch.Generator().manual_seed(5))
        for step in (sf.steps.Renoised(sf.steps.DDIM(), eta), sf.steps.DDIM(eta))
    ]
    torch.testing.assert_close(*runs, rtol=1e-7, atol=1e-7)


KEEPING = [
    (sf.steps.Renoised(sf.steps.DDIM(), 0.4), 1),
    (sf.steps.Renoised(sf.steps.Singlestep(2)), 1),
    (sf.steps.Renoised(sf.steps.Singlestep(3, "x0"), 3.0), 1),
    (sf.steps.EDM(churn=0.2, s_noise=1.0), 1),
    (sf.steps.EDM(sf.steps.DDIM(), churn=math.sqrt(2) - 1, s_tmin=0.0, s_tmax=1e6, s_noise=1.0), 1),
    (sf.steps.Restart(low=0.5, high=3.0, times=4, steps=2), 4),
    (sf.steps.Restart(sf.steps.Restart(low=0.5, high=1.0, times=2, steps=2), low=1.5, high=3.0, times=2, steps=2), 4),
]


@pytest.mark.parametrize("scales", SCALES[:3], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("step", "draws"), KEEPING, ids=label)
def test_on_a_point_the_marginals_are_kept_exactly(step, draws, scales):
    """There every solver of the flow is exact: what is left is the noise, which must come in and go out in the same amount."""
    levels = sf.grid(sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0), 9)
    mean, variance = moments(step, levels, draws=draws, variance=0.0)
    torch.testing.assert_close(mean / levels[-1].sigma, levels[-1].alpha / levels[-1].sigma * MEAN, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(variance / levels[-1].sigma ** 2, torch.tensor(1.0), rtol=1e-8, atol=1e-8)


@long_walk
@pytest.mark.parametrize(
    "make",
    [
        lambda n: sf.steps.Renoised(sf.steps.Singlestep(2)),
        lambda n: sf.steps.Renoised(sf.steps.Singlestep(2, "x0")),
        lambda n: sf.steps.EDM(churn=10 / n, s_noise=1.0),
    ],
    ids=["dpm2-ancestral", "dpmpp-2s-ancestral", "edm"],
)
def test_added_noise_leaves_the_weak_order_two(make):
    """In the exact variance on a Gaussian; EDM's churn is S_churn / N."""
    schedule = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0)

    def error(n):
        levels = sf.grid(schedule, n)
        s = levels[-1]
        wanted = s.alpha**2 * VARIANCE + s.sigma**2
        return (moments(make(n), levels)[1] / wanted - 1).abs().item()

    assert math.log2(error(64) / error(128)) > 1.8


@few_steps
@pytest.mark.parametrize("ratio", [0.3, 1.0, 5.0])
def test_edm_churns_between_its_limits_alone_and_by_its_share(ratio):
    """One step on a point: the variance of what is added, s_noise² ((1 + γ)² - 1) ratio², shrinks as x does; outside it is Heun's."""
    scale = (1 + ratio**2) ** -0.5
    t, s = sf.Level(torch.tensor(scale), torch.tensor(ratio * scale)), sf.Level(torch.tensor(0.99), torch.tensor(0.1))
    x, point = torch.randn(50_000, 1), sf.GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1, 1))
    step = sf.steps.EDM(churn=0.3, s_tmin=0.5, s_tmax=4.0, s_noise=1.5)
    out, _ = step(point, x, t, s, None, torch.Generator().manual_seed(5))
    plain, _ = sf.steps.Heun()(point, x, t, s, None, None)
    if ratio != 1.0:
        assert torch.equal(out, plain)
        return
    shrink = s.sigma / (1.3 * t.sigma)  # of x, from 1.3 ratio to s, at s's scale
    fresh = 1.5**2 * (1.3**2 - 1) * t.sigma**2 * shrink**2
    spread = (out - shrink * x).var()
    assert abs(spread.item() / fresh.item() - 1) < 4 * math.sqrt(2 / 50_000)


def test_restart_is_its_step_where_the_walk_does_not_pass():
    levels, x = sf.grid(sf.Cosine(log_snr_max=4.0, log_snr_min=-8.0), 10), torch.randn(8, 2)  # ends at sigma/alpha = 0.135
    restart = sf.sample(mixture, x, levels, sf.steps.Restart(sf.steps.Multistep()), generator=torch.Generator())
    assert torch.equal(restart, sf.sample(mixture, x, levels, sf.steps.Multistep()))


def test_restart_goes_between_low_and_high():
    """The levels that it asks at: the walk's, low, and `times` times those from high down, whose roots are even."""
    (predict, asked), levels = counted(mixture), sf.grid(sf.VE(sigma_min=0.01, sigma_max=10.0), 6)
    sf.sample(predict, torch.randn(2, 2), levels, sf.steps.Restart(sf.steps.DDIM(), low=0.2, high=2.0, times=2, steps=3))
    even = torch.linspace(2.0 ** (1 / 7), 0.2 ** (1 / 7), 4) ** 7
    walked = [level.sigma.item() for level in levels]
    before, after = [r for r in walked if r > 0.2], [r for r in walked[:-1] if r < 0.2]
    wanted = [*before, *even[:3].tolist(), *even[:3].tolist(), 0.2, *after]
    torch.testing.assert_close(torch.tensor([(level.sigma / level.alpha).item() for level in asked]), torch.tensor(wanted))


@long_walk
@pytest.mark.parametrize(
    ("step", "steps"),
    [
        (sf.steps.Renoised(sf.steps.Singlestep(2)), 60),
        (sf.steps.Renoised(sf.steps.Singlestep(2, "x0")), 60),
        (sf.steps.Renoised(sf.steps.Singlestep(2), eta=1.5), 60),
        (sf.steps.EDM(s_noise=1.0), 40),
        (sf.steps.Restart(), 40),
        (sf.steps.SinglestepSDE(), 40),
        (sf.steps.SinglestepSDE(eta=0.5), 40),
        (sf.steps.MultistepSDE(), 50),
        (sf.steps.MultistepSDE(eta=2.0), 50),
        (sf.steps.AdaptiveSDE(rtol=0.05, atol=0.02), 2),
    ],
    ids=label,
)
def test_the_law_is_reached(step, steps):
    """Kolmogorov's distance of the samples from a mixture, beyond what chance explains once in a thousand."""
    count = 1_500 if isinstance(step, sf.steps.AdaptiveSDE) else 10_000
    generator, levels = torch.Generator().manual_seed(3), sf.grid(sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0), steps)
    x0, _ = line.sample(count, generator)
    x = sf.sample(line, sf.process.marginal(x0, levels[0]).sample(generator), levels, step, generator=generator)
    distance = (cdf(x, levels[-1]).sort().values - (torch.arange(count) + 0.5) / count).abs().max().item()
    assert distance < 1.95 / math.sqrt(count)


# adaptive steps


def test_the_noise_of_a_refused_step_is_not_chosen_by_its_size():
    """x0 that is next to nothing, but for the tolerance: a step across |u| = 1 is refused and made shorter. The law stays N(0, sigma²).

    Noise that was drawn again for the shorter step would keep to the side where it is: the variance falls far below.
    """
    t, s = (sf.Level(*sf.vp_scales(torch.tensor(log_snr))) for log_snr in (-1.0, 4.0))

    asked = []

    def predict(x_t, level, cond=None):
        asked.append(level)
        return sf.Prediction(1e-7 * (x_t.abs() > 1).to(x_t), x_t / level.sigma)

    count = 2_000
    start = t.sigma * torch.randn(count, 1)
    step = sf.steps.AdaptiveSDE(rtol=1e-12, atol=2e-9)
    out, _ = step(predict, start, t, s, torch.full((count,), 3.0), torch.Generator().manual_seed(5))
    assert len(asked) > 20  # one step each way would be 2
    variance = out.square().mean().item() / s.sigma.item() ** 2
    assert abs(variance - 1) < 4 * math.sqrt(2 / count)


def test_a_long_step_is_not_taken_for_a_good_one():
    """At a tolerance that allows all, the variance of a Gaussian is still within a fifth: x0 would follow the noise of a longer step."""
    levels = sf.grid(sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0), 1)
    t, s = levels[0], levels[-1]
    x = t.alpha * MEAN + (t.alpha**2 * VARIANCE + t.sigma**2).sqrt() * torch.randn(1_000, 1)
    out = sf.sample(bell, x, levels, sf.steps.AdaptiveSDE(rtol=10.0, atol=10.0), generator=torch.Generator().manual_seed(5))
    assert abs((out - s.alpha * MEAN).square().mean().item() / (s.alpha**2 * VARIANCE + s.sigma**2).item() - 1) < 0.2


@long_walk
def test_a_tighter_tolerance_takes_more_steps():
    counts = []
    for tolerance in (0.1, 0.01, 0.001):
        predict, asked = counted(mixture)
        step = sf.steps.AdaptiveSDE(rtol=tolerance, atol=tolerance)
        levels = sf.grid(sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0), 1)
        sf.sample(predict, torch.randn(4, 2), levels, step, generator=torch.Generator().manual_seed(0))
        counts.append(len(asked))
    assert counts == sorted(counts)
    assert counts[2] > 3 * counts[0]


def test_adaptive_steps_have_the_variance_of_a_gaussian():
    levels = sf.grid(sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0, scales=sf.flow_scales), 2)
    t, s = levels[0], levels[-1]
    x = t.alpha * MEAN + (t.alpha**2 * VARIANCE + t.sigma**2).sqrt() * torch.randn(1_000, 1)
    out = sf.sample(bell, x, levels, sf.steps.AdaptiveSDE(), generator=torch.Generator().manual_seed(5))
    wanted = s.alpha**2 * VARIANCE + s.sigma**2
    assert abs((out - s.alpha * MEAN).square().mean().item() / wanted.item() - 1) < 4 * math.sqrt(2 / 1_000)
    assert abs(out.mean().item() - s.alpha.item() * MEAN) < 4 * math.sqrt(wanted.item() / 1_000)
