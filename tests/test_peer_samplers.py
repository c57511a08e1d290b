"""Our steps beside diffusers' schedulers: from the same x, with the same outputs of a network, at the same levels, step by step.

Their tables of sigmas and alphas are float32; both sides read them in float64 here, so what is compared is the arithmetic. Where theirs
differs, the test says in what and, where it is a known report, under which number of their tracker.
"""

import math

import pytest
import torch

import sfumato as sf
from sfumato.sampling import invert

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # their warnings

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
EVEN = {**LINEAR, "use_exponential_sigmas": True}  # uniform in log-SNR, so that no step is too long to extrapolate over
CHAIN = sf.Discrete.linear(1000)
STEPS = 12


def scheduler_of(kind, **options):
    """A scheduler with its tables in float64, taken from our chain where it indexes one."""
    scheduler = kind(**options)
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    scheduler.alphas_cumprod = torch.cumprod(1 - CHAIN.betas, 0)
    scheduler.betas, scheduler.alphas, scheduler.one = CHAIN.betas, 1 - CHAIN.betas, torch.tensor(1.0)
    return scheduler


def levels_of(scheduler, *, vp=True):
    """The levels of its sigmas, each once (Heun's come twice); theirs are sigma/alpha of a VP process, or sigma at alpha = 1."""
    sigmas = scheduler.sigmas.unique_consecutive()
    alphas = (1 + sigmas**2).rsqrt() if vp else torch.ones_like(sigmas)
    return [sf.Level(alpha, alpha * sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]


def played(outputs):
    """A predictor whose network returns the given eps, one a call."""
    calls = iter(outputs)
    return lambda x_t, level, cond=None: sf.Prediction.solve(next(calls), x_t, level, sf.eps_target)


def eps_and_x(count, scale=1.0):
    return torch.randn(count, 4, 3), scale * torch.randn(4, 3)


def theirs(scheduler, outputs, x, **options):
    path = []
    for t, eps in zip(scheduler.timesteps, outputs, strict=True):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(eps, t, x, **options).prev_sample
        path.append(x)
    return torch.stack(path)


def ours(step, levels, outputs, x, generator=None):
    path = []
    sf.sample(played(outputs), x, levels, step, generator=generator, on_step=lambda i, x: path.append(x))
    return torch.stack(path)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta):
    scheduler = scheduler_of(diffusers.DDIMScheduler, **LINEAR, clip_sample=False)
    outputs, x = eps_and_x(STEPS)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    levels = sf.grid(CHAIN, STEPS, spacing=sf.spacing.leading)
    torch.testing.assert_close(
        ours(sf.steps.DDIM(eta), levels, outputs, x, generators[0]),
        theirs(scheduler, outputs, x, eta=eta, generator=generators[1]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_ddim_with_linspace_lands_elsewhere_there():
    """Their #11347 and #12633: with "linspace" the list of times goes by 999/11, `step` by 1000 // 12; ours goes where the list does."""
    scheduler = scheduler_of(diffusers.DDIMScheduler, **LINEAR, clip_sample=False, timestep_spacing="linspace")
    first, second = scheduler.timesteps[:2].tolist()
    outputs, x = eps_and_x(1)
    landed = scheduler.step(outputs[0], first, x).prev_sample
    at = lambda index: CHAIN.level((index + 1) / 1000)  # noqa: E731
    one_step = lambda s: sf.sample(played(outputs), x, [at(first), at(s)], sf.steps.DDIM())  # noqa: E731
    assert second == 908
    torch.testing.assert_close(landed, one_step(first - 1000 // STEPS), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(landed, one_step(second), rtol=1e-2)


def test_inversion_is_a_stride_behind_there():
    """Their #10695: DDIMInverseScheduler.step at time t goes from t - stride to t, with the network's output at t, where it arrives.

    The algebra is ours for that pair of levels; ours asks the network where it stands, as improved-diffusion does.
    """
    scheduler = scheduler_of(diffusers.DDIMInverseScheduler, **LINEAR, clip_sample=False)
    outputs, x = eps_and_x(1)
    t, stride = scheduler.timesteps[3].item(), 1000 // STEPS
    landed = scheduler.step(outputs[0], t, x).prev_sample
    levels = [CHAIN.level((t + 1) / 1000), CHAIN.level((t + 1 - stride) / 1000)]
    torch.testing.assert_close(invert(played(outputs), x, levels), landed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral(variance):
    scheduler = scheduler_of(diffusers.DDPMScheduler, **LINEAR, clip_sample=False, variance_type=f"fixed_{variance}")
    outputs, x = eps_and_x(STEPS)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    levels = sf.grid(CHAIN, STEPS, spacing=sf.spacing.leading)
    torch.testing.assert_close(
        ours(sf.steps.Ancestral(variance), levels, outputs, x, generators[0]),
        theirs(scheduler, outputs, x, generator=generators[1]),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("kind", "step", "calls"),
    [("EulerDiscreteScheduler", sf.steps.DDIM(), STEPS), ("HeunDiscreteScheduler", sf.steps.Heun(), 2 * STEPS - 1)],
)
def test_variance_exploding_solvers(kind, step, calls):
    """Their Heun returns x twice a step: after Euler's half, and corrected."""
    scheduler = scheduler_of(getattr(diffusers, kind), **EVEN)
    outputs, x = eps_and_x(calls, scale=float(scheduler.sigmas[0]))
    path = theirs(scheduler, outputs, x)
    whole = path if calls == STEPS else torch.cat([path[1::2], path[-1:]])
    torch.testing.assert_close(ours(step, levels_of(scheduler, vp=False), outputs, x), whole, rtol=1e-5, atol=1e-5)


OPEN_END = {**EVEN, "lower_order_final": False, "final_sigmas_type": "sigma_min"}


def without_repeats(scheduler):
    """With final_sigmas_type="sigma_min" the last sigma can stand twice, a step that goes nowhere; it is left out on both sides."""
    scheduler.timesteps = scheduler.timesteps[: len(scheduler.sigmas.unique_consecutive()) - 1]
    return scheduler


@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (2, 0.0), (1, 1.0), (2, 1.0)])
def test_multistep(order, eta):
    kind = "dpmsolver++" if eta == 0 else "sde-dpmsolver++"
    scheduler = without_repeats(
        scheduler_of(diffusers.DPMSolverMultistepScheduler, **OPEN_END, algorithm_type=kind, solver_order=order, solver_type="midpoint")
    )
    outputs, x = eps_and_x(len(scheduler.timesteps))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.testing.assert_close(
        ours(sf.steps.Multistep(order, eta), levels_of(scheduler), outputs, x, generators[0]),
        theirs(scheduler, outputs, x, generator=generators[1]),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order):
    scheduler = without_repeats(scheduler_of(diffusers.UniPCMultistepScheduler, **OPEN_END, solver_order=order, solver_type="bh2"))
    outputs, x = eps_and_x(len(scheduler.timesteps))
    torch.testing.assert_close(
        ours(sf.steps.UniPC(order), levels_of(scheduler), outputs, x), theirs(scheduler, outputs, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("UniPCMultistepScheduler", sf.steps.UniPC(2)),
        ("UniPCMultistepScheduler", sf.steps.UniPC(3)),
        ("DPMSolverMultistepScheduler", sf.steps.Multistep(2)),
    ],
    ids=str,
)
def test_lower_order_final(kind, step):
    """Their flag, which they heed below 15 steps."""
    scheduler = without_repeats(scheduler_of(getattr(diffusers, kind), **{**OPEN_END, "lower_order_final": True}, solver_order=step.order))
    outputs, x = eps_and_x(len(scheduler.timesteps))
    path = theirs(scheduler, outputs, x)
    torch.testing.assert_close(ours(sf.steps.LowerOrderFinal(step), levels_of(scheduler), outputs, x)[-3:], path[-3:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours(step, levels_of(scheduler), outputs, x)[-1], path[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_is_unipcs_predictor(order):
    """Also at order 3, where their DPM-Solver++ differs (below)."""
    scheduler = without_repeats(
        scheduler_of(diffusers.UniPCMultistepScheduler, **OPEN_END, solver_order=order, disable_corrector=list(range(STEPS)))
    )
    outputs, x = eps_and_x(len(scheduler.timesteps))
    torch.testing.assert_close(
        ours(sf.steps.Multistep(order), levels_of(scheduler), outputs, x), theirs(scheduler, outputs, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_bashforth_is_deis(order):
    """Their DEIS lays eps through the last levels in log(sigma/alpha) and integrates it over sigma/alpha, with an antiderivative."""
    scheduler = without_repeats(scheduler_of(diffusers.DEISMultistepScheduler, **{**EVEN, "lower_order_final": False}, solver_order=order))
    outputs, x = eps_and_x(len(scheduler.timesteps))
    torch.testing.assert_close(
        ours(sf.steps.AdamsBashforth(order), levels_of(scheduler), outputs, x), theirs(scheduler, outputs, x), rtol=1e-4, atol=1e-4
    )


def test_the_third_order_of_dpm_solver_is_the_second_there():
    """Their last term has half its weight (as in the authors' code), so the order is 2; no report of it is known to us.

    On one Gaussian, whose flow keeps standard scores; in the first two steps, of lower order, both agree.
    """
    variance = 0.3
    predict = sf.GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([[[variance]]]))

    def errors(steps):
        scheduler = diffusers.DPMSolverMultistepScheduler(**OPEN_END, algorithm_type="dpmsolver++", solver_order=3, use_karras_sigmas=False)
        scheduler.set_timesteps(steps)
        scheduler.sigmas = scheduler.sigmas.double().unique_consecutive()
        levels, x = levels_of(scheduler), torch.ones(1, 1)
        spread = lambda level: (level.alpha**2 * variance + level.sigma**2).sqrt()  # noqa: E731
        end = x
        for t, level in zip(scheduler.timesteps, levels[:-1], strict=False):
            end = scheduler.step(predict(end, level).eps, t, end).prev_sample
        exact = spread(levels[-1]) / spread(levels[0])
        return (end - exact).abs().item(), (sf.sample(predict, x, levels, sf.steps.Multistep(3)) - exact).abs().item()

    coarse, fine = errors(40), errors(80)
    assert 1.7 < math.log2(coarse[0] / fine[0]) < 2.4
    assert math.log2(coarse[1] / fine[1]) > 2.8
