"""Every deterministic sampler of diffusers and k-diffusion, in every setting of solver, grid and end, as functions of one network.

The network gives the exact eps of the mixture at any level of the chain. Where diffusers rounds a level to a whole timestep, each setting
also runs with the network at the scheduler's own sigma, which can only help it; k-diffusion interpolates, as its wrappers do.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any

import torch
from problems import CHAIN, FIRST, LAST
from torch import Tensor

import sfumato as sf
from sfumato.bench.libraries import k_diffusion


class Unfit(Exception):
    """This setting cannot run with so few evaluations, or makes no sense."""


@dataclass
class Network:
    """eps of x at a level, for a limited number of evaluations."""

    predict: sf.Predictor
    allowed: int
    calls: int = 0

    def at(self, x: Tensor, level: sf.Level) -> Tensor:
        """eps at a level."""
        self.calls += 1
        if self.calls > self.allowed:
            raise Unfit
        return self.predict(x.double(), level).eps

    def at_step(self, x: Tensor, index: Tensor) -> Tensor:
        """eps at the papers' timestep 0 … 999, whole or between."""
        return self.at(x, CHAIN.level((index.double().reshape(-1)[0].clamp(0, 999) + 1) / 1000))

    def at_ratio(self, x: Tensor, ratio: Tensor) -> Tensor:
        """eps at sigma/alpha."""
        alpha = (1 + ratio.double().square()).rsqrt()
        return self.at(x, sf.Level(alpha, ratio.double() * alpha))


@dataclass(frozen=True)
class Setting:
    """One peer's sampler with its options; `run` returns the endpoint and whether it is at the data or at the chain's first level."""

    library: str
    name: str
    run: Callable[[Network, Tensor, int], tuple[Tensor, bool]]
    is_default: bool = False
    is_at_sigma: bool = False


def settings() -> Iterator[Setting]:
    """All of them."""
    yield from diffusers_settings()
    yield from k_diffusion_settings()


def versions() -> dict[str, str]:
    """Of the peers."""
    return {name: version(name) for name in ("diffusers", "k-diffusion", "torch")}


GRIDS: dict[str, dict[str, Any]] = {
    **{name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")},
    **{name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta", "flow")},
    "lu": {"use_lu_lambdas": True},
}
ENDS: dict[str, dict[str, Any]] = {
    "": {},
    "not lower at the end": {"lower_order_final": False},
    "Euler at the end": {"euler_at_final": True},
    "to sigma_min": {"final_sigmas_type": "sigma_min"},
    "to sigma_min, not lower": {"final_sigmas_type": "sigma_min", "lower_order_final": False},
}


def diffusers_settings() -> Iterator[Setting]:
    """Its schedulers for a chain with deterministic steps."""
    import diffusers as d

    order_2 = [{"solver_order": 2, "solver_type": rule} for rule in ("midpoint", "heun")]
    multistep = [{**o, "algorithm_type": kind} for kind in ("dpmsolver++", "dpmsolver") for o in [*order_2, {"solver_order": 3}]]
    unipc = [*({"solver_order": order} for order in (1, 2, 3)), {"solver_order": 2, "solver_type": "bh1"}]
    families: list[tuple[Any, list[dict[str, Any]]]] = [
        (d.DDIMScheduler, [{"clip_sample": False}, {"clip_sample": False, "set_alpha_to_one": False}]),
        (d.PNDMScheduler, [{}, {"skip_prk_steps": True}]),
        (d.EulerDiscreteScheduler, [{}]),
        (d.HeunDiscreteScheduler, [{}]),
        (d.LMSDiscreteScheduler, [{}]),
        (d.KDPM2DiscreteScheduler, [{}]),
        (d.DEISMultistepScheduler, [{"solver_order": order} for order in (2, 3)]),
        (d.UniPCMultistepScheduler, unipc),
        (d.DPMSolverMultistepScheduler, multistep),
        (d.DPMSolverSinglestepScheduler, [*order_2, {"solver_order": 3}]),
    ]
    for scheduler, variants in families:
        known = inspect.signature(scheduler.__init__).parameters
        for options, (grid, grid_options), (end, end_options) in product(variants, GRIDS.items(), ENDS.items()):
            chosen = {**options, **grid_options, **end_options}
            if not chosen.keys() <= known.keys() or (end and scheduler in (d.EulerDiscreteScheduler,) and "lower" in end):
                continue
            if chosen.get("algorithm_type") == "dpmsolver" and chosen.get("final_sigmas_type") != "sigma_min":
                continue
            words = [
                scheduler.__name__.removesuffix("Scheduler"),
                *(str(v) for v in options.values() if not isinstance(v, bool)),
                grid,
                end,
            ]
            name = " ".join(w for w in words if w)
            is_default = all(v == known[k].default or k == "clip_sample" for k, v in chosen.items())
            for whole in (True,) if "timestep_spacing" in grid_options else (True, False):  # those are whole timesteps as they are
                run = partial(_run_scheduler, partial(scheduler, **chosen), whole=whole)
                yield Setting("diffusers", name + ("" if whole else ", network at sigma"), run, is_default and whole, not whole)


def _run_scheduler(make: Callable[..., Any], network: Network, x: Tensor, steps: int, *, whole: bool) -> tuple[Tensor, bool]:
    """A pipeline's loop; takes as many steps as stay within `steps` evaluations."""
    scheduler, used = _fitting(make, steps)
    is_ratio_space = hasattr(scheduler, "scale_model_input") and float(scheduler.init_noise_sigma) != 1
    sigmas = getattr(scheduler, "sigmas", None)
    if not whole and (sigmas is None or not used):
        raise Unfit
    if is_ratio_space:
        x = x / LAST.alpha
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        if whole:
            eps = network.at_step(scaled, t)
        else:
            scheduler.step_index is None and scheduler._init_step_index(t)
            eps = network.at_ratio(scaled, scheduler.sigmas[scheduler.step_index])
        x = scheduler.step(eps, t, x).prev_sample.double()
    at_data = _ends_at_data(scheduler)
    return (x if not is_ratio_space or at_data else x * FIRST.alpha), at_data


def _fitting(make: Callable[..., Any], evaluations: int) -> tuple[Any, int]:
    """The scheduler with the most steps whose timesteps (one evaluation each) are within the number of evaluations."""
    most = (evaluations + 1) // 2 if make.func.order == 2 else evaluations  # type: ignore[attr-defined]
    for steps in range(most, 0, -1):
        scheduler = make(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ZeroDivisionError):
            raise Unfit from None
        if len(scheduler.timesteps) <= evaluations:
            return scheduler, len(scheduler.timesteps)
    raise Unfit


def _ends_at_data(scheduler: Any) -> bool:
    if (sigmas := getattr(scheduler, "sigmas", None)) is not None and len(sigmas) < 1000:
        return float(sigmas[-1]) == 0
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1


def k_diffusion_settings() -> Iterator[Setting]:
    """Its samplers without noise on every grid it has."""
    sampling, external = k_diffusion()
    ends = (float(FIRST.sigma / FIRST.alpha), float(LAST.sigma / LAST.alpha))
    alphas = torch.cumprod(1 - CHAIN.betas, 0)
    grids: dict[str, Callable[[Any, int], Tensor]] = {
        "linear": lambda model, n: model.get_sigmas(n),
        **{f"Karras {rho:g}": lambda model, n, rho=rho: sampling.get_sigmas_karras(n, *ends, rho=rho) for rho in (3.0, 5.0, 7.0, 12.0)},
        "exponential (uniform log-SNR)": lambda model, n: sampling.get_sigmas_exponential(n, *ends),
        **{
            f"polyexponential {rho:g}": lambda model, n, rho=rho: sampling.get_sigmas_polyexponential(n, *ends, rho=rho)
            for rho in (0.7, 0.85, 1.2, 1.5)
        },
        "vp": lambda model, n: sampling.get_sigmas_vp(n),
    }
    still: dict[str, Any] = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    methods: dict[str, tuple[Callable[..., Tensor], Callable[[int], int]]] = {
        "euler": (sampling.sample_euler, lambda n: n),
        "heun": (sampling.sample_heun, lambda n: (n + 1) // 2),
        "dpm_2": (sampling.sample_dpm_2, lambda n: (n + 1) // 2),
        **{f"lms {order}": (partial(sampling.sample_lms, order=order), lambda n: n) for order in (2, 3, 4)},
        "dpmpp_2s": (partial(sampling.sample_dpmpp_2s_ancestral, **still), lambda n: (n + 1) // 2),
        "dpmpp_sde, eta 0": (partial(sampling.sample_dpmpp_sde, **still), lambda n: (n + 1) // 2),
        "dpmpp_2m": (sampling.sample_dpmpp_2m, lambda n: n),
        "dpmpp_2m_sde midpoint, eta 0": (partial(sampling.sample_dpmpp_2m_sde, **still), lambda n: n),
        "dpmpp_2m_sde heun, eta 0": (partial(sampling.sample_dpmpp_2m_sde, solver_type="heun", **still), lambda n: n),
        "dpmpp_3m_sde, eta 0": (partial(sampling.sample_dpmpp_3m_sde, **still), lambda n: n),
    }

    def model(network: Network) -> Any:
        return external.DiscreteEpsDDPMDenoiser(network.at_step, alphas, quantize=False)

    def on_grid(method: Callable[..., Tensor], steps: Callable[[int], int], grid: Callable[..., Tensor], to_zero: bool, *args: Any) -> Any:
        network, x, n = args
        wrapped = model(network)
        sigmas = grid(wrapped, steps(n) if to_zero else steps(n) + 1).double()
        x = method(wrapped, x / LAST.alpha, sigmas if to_zero else sigmas[:-1], disable=True)
        return (x, True) if to_zero else (x * FIRST.alpha, False)

    for (name, (method, steps)), (grid, sigmas), to_zero in product(methods.items(), grids.items(), (True, False)):
        run = partial(on_grid, method, steps, sigmas, to_zero)
        if grid == "vp" and not to_zero:
            continue
        yield Setting("k-diffusion", f"{name} {grid}{'' if to_zero else ' to sigma_min'}", run, grid == "linear" and to_zero)

    def fast(denoise: bool, network: Network, x: Tensor, n: int) -> tuple[Tensor, bool]:
        wrapped = model(network)
        x = sampling.sample_dpm_fast(wrapped, x / LAST.alpha, *ends, n - denoise, disable=True)
        return (wrapped(x, x.new_full((len(x),), ends[0])), True) if denoise else (x * FIRST.alpha, False)

    def adaptive(order: int, rtol: float, network: Network, x: Tensor, n: int) -> tuple[Tensor, bool]:
        x = sampling.sample_dpm_adaptive(model(network), x / LAST.alpha, *ends, order=order, rtol=rtol, atol=rtol / 6, disable=True)
        return x * FIRST.alpha, False

    yield Setting("k-diffusion", "dpm_fast", partial(fast, False), is_default=True)
    yield Setting("k-diffusion", "dpm_fast, then x0", partial(fast, True))
    for order, rtol in product((2, 3), (0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0)):
        yield Setting("k-diffusion", f"dpm_adaptive {order} rtol {rtol:g}", partial(adaptive, order, rtol), order == 3 and rtol == 0.05)
