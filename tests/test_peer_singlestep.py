"""PLMS, DPM2 and the singlestep DPM-Solver beside diffusers' schedulers, from the same x, outputs and levels, as `test_peer_samplers`."""

import pytest
import torch
from test_peer_samplers import EVEN, LINEAR, OPEN_END, STEPS, eps_and_x, levels_of, ours, scheduler_of, theirs

import sfumato as sf

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # their warnings


def test_plms():
    """They walk on to the level below the last; ours ends at the data there, so the last step is left out."""
    scheduler = scheduler_of(diffusers.PNDMScheduler, **LINEAR, skip_prk_steps=True, timestep_spacing="leading")
    outputs, x = eps_and_x(len(scheduler.timesteps))
    path = theirs(scheduler, outputs, x)[1:-1]  # the first entry is Euler's half of the first step
    levels = sf.grid(sf.Discrete.linear(1000), STEPS, spacing=sf.spacing.leading)[:-1]
    torch.testing.assert_close(ours(sf.steps.PLMS(), levels, outputs, x), path, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ancestral", [False, True])
def test_dpm2(ancestral):
    kind = diffusers.KDPM2AncestralDiscreteScheduler if ancestral else diffusers.KDPM2DiscreteScheduler
    step = sf.steps.Renoised(sf.steps.Singlestep(2)) if ancestral else sf.steps.Singlestep(2)
    scheduler = kind(**EVEN)
    scheduler.set_timesteps(STEPS)
    outputs, x = eps_and_x(2 * STEPS - 1, scale=float(scheduler.sigmas[0]))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2][: STEPS - 1], torch.zeros(1)]).double()
    path = theirs(scheduler, outputs, x, **({"generator": generators[1]} if ancestral else {}))
    levels = [sf.Level(torch.ones_like(sigma), sigma) for sigma in sigmas.unique_consecutive()]
    mine = ours(step, levels, outputs, x, generators[0])
    torch.testing.assert_close(mine, torch.cat([path[1::2], path[-1:]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "on"), [("dpmsolver", "eps"), ("dpmsolver++", "x0")])
def test_singlestep(kind, on):
    """Their step of order 2 goes over two levels of the grid, the middle one half-way in log-SNR on this one."""
    options = {**OPEN_END, "algorithm_type": kind, "solver_order": 2, "solver_type": "midpoint"}
    scheduler = scheduler_of(diffusers.DPMSolverSinglestepScheduler, **options)
    outputs, x = eps_and_x(STEPS)
    levels = levels_of(scheduler)
    whole = 2 * ((len(levels) - 1) // 2)
    path = theirs(scheduler, outputs, x)[1:whole:2]
    torch.testing.assert_close(ours(sf.steps.Singlestep(2, on), levels[: whole + 1 : 2], outputs, x), path, rtol=1e-4, atol=1e-4)
