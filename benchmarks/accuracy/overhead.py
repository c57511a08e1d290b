"""The cost of a sampler without its network: microseconds an evaluation with a network that returns its previous output.

python benchmarks/accuracy/overhead.py, in the peers' environment; run.py writes the same figures into RESULTS.md.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from problems import CHAIN, FIRST, LAST

import sfumato as sf
from sfumato.bench.libraries import k_diffusion as their_modules

CAPTION = (
    "A network that costs nothing (it returns one tensor, made before), batch 16 of 3×32×32 in float32, 100 steps, one thread. "
    "Medians and quartiles of 40 walks, the libraries in turns; the time to make levels or timesteps is left out of all."
)
STEPS, WALKS = 100, 40


def measure() -> list[dict[str, Any]]:
    """One row a sampler."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.no_grad():
        walks = {**ours(), **diffusers(), **k_diffusion(), **azula(), "two operations in place": floor()}
        seconds: dict[str, list[float]] = {name: [] for name in walks}
        for i in range(WALKS + 3):
            for name, walk in walks.items():
                spent = walk()
                if i >= 3:
                    seconds[name].append(spent)
    rows = []
    for name, spent in seconds.items():
        low, median, high = (1e6 * q for q in statistics.quantiles(spent, n=4))
        rows.append({"name": name, "median": median, "low": low, "high": high})
    return rows


def timed(run: Callable[[], Any], evaluations: int = STEPS) -> float:
    """Seconds an evaluation."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / evaluations


X, EPS = torch.randn(16, 3, 32, 32), torch.randn(16, 3, 32, 32)


def ours() -> dict[str, Callable[[], float]]:
    """DDIM, Multistep and Adams."""
    prediction = sf.Prediction(0.1 * torch.randn_like(X), EPS)
    predict = lambda x_t, level, cond=None: prediction  # noqa: E731
    levels = sf.grid(CHAIN, STEPS)
    samplers = {"DDIM": sf.steps.DDIM(), "Multistep": sf.steps.Multistep(), "Adams": sf.steps.Adams()}
    return {f"sfumato {name}": lambda step=step: timed(lambda: sf.sample(predict, X, levels, step)) for name, step in samplers.items()}


def diffusers() -> dict[str, Callable[[], float]]:
    """The loop of a pipeline."""
    import diffusers as d

    def walk(make: Callable[[], Any]) -> float:
        scheduler = make()
        scheduler.set_timesteps(STEPS)

        def run() -> None:
            x = X
            for t in scheduler.timesteps:
                x = scheduler.step(EPS, t, scheduler.scale_model_input(x, t)).prev_sample

        return timed(run)

    return {
        "diffusers DDIM": lambda: walk(lambda: d.DDIMScheduler(clip_sample=False)),
        "diffusers DPMSolverMultistep": lambda: walk(d.DPMSolverMultistepScheduler),
    }


def k_diffusion() -> dict[str, Callable[[], float]]:
    """With a denoiser that returns one tensor, and through the wrapper of a network that returns one tensor."""
    sampling, external = their_modules()
    sigmas = sampling.get_sigmas_karras(STEPS, float(FIRST.sigma / FIRST.alpha), float(LAST.sigma / LAST.alpha))
    wrapped = external.DiscreteEpsDDPMDenoiser(lambda x, t: EPS, torch.cumprod(1 - CHAIN.betas, 0).float(), quantize=False)
    bare = lambda x, sigma: EPS  # noqa: E731
    return {
        f"k-diffusion {name}{with_what}": lambda method=method, model=model: timed(lambda: method(model, X, sigmas, disable=True))
        for name, method in (("euler", sampling.sample_euler), ("dpmpp_2m", sampling.sample_dpmpp_2m))
        for with_what, model in ((", bare denoiser", bare), (", its wrapper of a chain", wrapped))
    }


def azula() -> dict[str, Callable[[], float]]:
    """Its DDIM on a denoiser that returns one tensor."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    posterior = DiracPosterior(mean=EPS)

    class Costless(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> DiracPosterior:
            return posterior

    sampler = DDIMSampler(Costless(), steps=STEPS, silent=True)
    return {"azula DDIM": lambda: timed(lambda: sampler(X))}


def floor() -> Callable[[], float]:
    """x ← a x + b y, two passes over memory: the lower limit for any sampler."""
    x, y = X.clone(), torch.zeros_like(X)

    def run() -> None:
        for _ in range(STEPS):
            x.mul_(0.999).add_(y)

    return lambda: timed(run)


if __name__ == "__main__":
    for row in measure():
        print(f"{row['name']:48} {row['median']:8.1f} µs   {row['low']:.1f} to {row['high']:.1f}")
