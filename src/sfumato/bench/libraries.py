"""The calls to measure for each library: each does the work once.

All use the same model: the folder of a diffusers pipeline (a U-Net of 64, 128, 128 channels on 3×32×32, attention at the lowest
resolution), or, if a library has no such network, its own with the same channels.
"""

import math
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from sfumato.convert import load_diffusers
from sfumato.kernels import choice
from sfumato.model import Model
from sfumato.prediction import Prediction
from sfumato.runtime import keep_memory, multiplies_bfloat16
from sfumato.sampling import grid, sample, steps
from sfumato.schedule import Discrete

SHAPE, CHAIN_STEPS = (3, 32, 32), 1000
OVERHEAD_STEPS, OVERHEAD_BATCH = 100, 16
SLICE = 16  # rows of a slice in our training step: their feature maps fit in the cache, and memory is reused
Call = Callable[[], object]


class Unasked(Exception):
    """The library has no such function, or its network is not this one."""


class Library(Protocol):
    """One library. A call does its work once; `folder` holds the pipeline."""

    def forward(self, folder: Path, batch: int, precision: str) -> Call:
        """The network on a batch, without gradients; the call returns its output if it is the pipeline's network."""
        ...

    def step(self, folder: Path, batch: int, precision: str) -> Call:
        """A training step on a batch: the network, the mean square, its gradients, AdamW."""
        ...

    def draw(self, folder: Path, batch: int, precision: str) -> Call:
        """A batch of samples in 20 steps."""
        ...

    def overhead(self, folder: Path, batch: int, precision: str) -> Call:
        """100 steps of DDIM or similar on a batch, with a network that costs nothing."""
        ...


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """x and step indices, the same for all libraries."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *SHAPE, generator=generator), torch.randint(0, CHAIN_STEPS, (batch,), generator=generator)


def stepping(net: nn.Module, forward: Callable[[slice], Tensor], batch: int, rows: int | None = None, **options: Any) -> Call:
    """A training step of a network, `rows` rows at a time (all by default); options of AdamW."""
    optimizer, rows = torch.optim.AdamW(net.parameters(), lr=1e-4, **options), rows or batch

    def call() -> None:
        for first in range(0, batch, rows):
            part = forward(slice(first, first + rows)).float()
            (part.square().mean() * (len(part) / batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


class Ours:
    """sfumato: freed memory is kept, feature maps are channels-last, convolutions use the fastest kernels here."""

    def _run(self, folder: Path, precision: str) -> Model:
        if precision == "bfloat16" and not multiplies_bfloat16():
            raise Unasked("this processor has no bfloat16 products")
        keep_memory()
        run = load_diffusers(folder)
        run.network.net.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[precision])
        if precision == "float32" and choice.is_faster():
            choice.use(run.network.net)
            register_flop_formula(torch.ops.sfumato_winograd.forward)(lambda x, u, *_, **__: _direct_operations(x, u[1] * u[3]))
            register_flop_formula(torch.ops.sfumato_winograd.backward)(lambda x, g, *_, **__: _direct_operations(x, g[3]))
        return run

    def _net(self, folder: Path, batch: int, precision: str) -> tuple[nn.Module, Tensor, Tensor]:
        """The network, a batch, and the log-SNR of its steps."""
        run, (x, t) = self._run(folder, precision), inputs(batch)
        dtype = next(run.network.net.parameters()).dtype
        log_snr = run.schedule.log_snr((t.double() + 1) / CHAIN_STEPS).float()
        return run.network.net, x.to(dtype, memory_format=torch.channels_last), log_snr

    def forward(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        net, x, log_snr = self._net(folder, batch, precision)
        return torch.inference_mode()(lambda: net(x, log_snr))

    def step(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        net, x, log_snr = self._net(folder, batch, precision)
        net.requires_grad_(True)
        return stepping(net, lambda rows: net(x[rows], log_snr[rows]), batch, SLICE, fused=True)

    def draw(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        run = self._run(folder, precision)
        noise, levels = inputs(batch)[0].to(memory_format=torch.channels_last), grid(run.schedule, 20)
        return torch.inference_mode()(lambda: sample(run.predictor, levels[0].sigma * noise, levels, steps.Adams()))

    def overhead(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        x, eps = torch.randn(batch, *SHAPE), torch.randn(batch, *SHAPE)
        prediction = Prediction(0.1 * x, eps)
        levels = grid(Discrete.linear(CHAIN_STEPS), OVERHEAD_STEPS)
        return torch.no_grad()(lambda: sample(lambda x_t, level, cond=None: prediction, x, levels, steps.DDIM()))


def _direct_operations(x: Sequence[int], outward: int) -> int:
    """Operations of a direct 3×3 convolution of x [b, h, w, c], or of the gradient of its weight."""
    return 2 * 9 * math.prod(x) * outward


class Diffusers:
    """diffusers, as its examples use it: eager, float32."""

    def _net(self, folder: Path, precision: str) -> Any:  # diffusers has no types
        from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

        if precision != "float32":
            raise Unasked("its training example and pipelines use float32 on a CPU")
        return UNet2DModel.from_pretrained(folder / "unet")

    def forward(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        net, (x, t) = self._net(folder, precision).eval(), inputs(batch)
        return torch.no_grad()(lambda: net(x, t).sample)

    def step(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        net, (x, t) = self._net(folder, precision).train(), inputs(batch)
        return stepping(net, lambda rows: net(x[rows], t[rows]).sample, batch)

    def draw(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`; uses DPMSolverMultistepScheduler, one evaluation a step."""
        from diffusers import DPMSolverMultistepScheduler  # pyright: ignore[reportPrivateImportUsage]

        net, (x, _) = self._net(folder, precision).eval(), inputs(batch)
        scheduler: Any = DPMSolverMultistepScheduler(num_train_timesteps=1000)

        def call() -> Tensor:
            scheduler.set_timesteps(20)
            image = x
            for t in scheduler.timesteps:
                image = scheduler.step(net(scheduler.scale_model_input(image, t), t).sample, t, image).prev_sample
            return image

        return torch.no_grad()(call)

    def overhead(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        from diffusers import DDIMScheduler  # pyright: ignore[reportPrivateImportUsage]

        x, eps = torch.randn(batch, *SHAPE), torch.randn(batch, *SHAPE)
        scheduler: Any = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(OVERHEAD_STEPS)

        def call() -> None:
            image = x
            for t in scheduler.timesteps:
                image = scheduler.step(eps, t, scheduler.scale_model_input(image, t)).prev_sample

        return torch.no_grad()(call)


class DenoisingDiffusionPytorch:
    """denoising-diffusion-pytorch: its own U-Net of the same channels."""

    def _net(self, precision: str) -> Any:
        if precision != "float32":
            raise Unasked("its trainer uses float32 on a CPU")
        stand_in_for_torchvision()
        from denoising_diffusion_pytorch import Unet  # type: ignore[import-not-found]

        return Unet(dim=64, dim_mults=(1, 2, 2), channels=SHAPE[0])

    def forward(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        net, (x, t) = self._net(precision).eval(), inputs(batch)
        return torch.no_grad()(lambda: net(x, t))

    def step(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        net, (x, t) = self._net(precision).train(), inputs(batch)
        return stepping(net, lambda rows: net(x[rows], t[rows]), batch)

    def draw(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`; uses its DDIM."""
        net = self._net(precision).eval()
        from denoising_diffusion_pytorch import GaussianDiffusion  # type: ignore[import-not-found]

        diffusion = GaussianDiffusion(net, image_size=SHAPE[1], timesteps=1000, sampling_timesteps=20)
        return torch.no_grad()(lambda: diffusion.sample(batch_size=batch))

    def overhead(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        raise Unasked("its sampler takes no other network")


class KDiffusion:
    """k-diffusion: its samplers around a denoiser."""

    def forward(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        raise Unasked("its networks differ: only its samplers are compared")

    step = draw = forward

    def overhead(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`; uses its Euler method, which is DDIM on these levels, around a bare denoiser."""
        sampling, _ = k_diffusion()
        x = torch.randn(batch, *SHAPE)
        sigmas = sampling.get_sigmas_karras(OVERHEAD_STEPS, 0.01, 80.0)
        return torch.no_grad()(lambda: sampling.sample_euler(lambda x_t, sigma: x, x, sigmas, disable=True))


class Azula:
    """azula: its samplers around a denoiser."""

    def forward(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`."""
        raise Unasked("its networks differ: only its samplers are compared")

    step = draw = forward

    def overhead(self, folder: Path, batch: int, precision: str) -> Call:
        """See `Library`; uses its DDIM."""
        from azula.denoise import Denoiser, DiracPosterior  # type: ignore[import-not-found]
        from azula.noise import VPSchedule  # type: ignore[import-not-found]
        from azula.sample import DDIMSampler  # type: ignore[import-not-found]

        x = torch.randn(batch, *SHAPE)
        posterior = DiracPosterior(mean=0.1 * x)

        class Costless(Denoiser):
            """Returns its previous output."""

            def __init__(self) -> None:
                super().__init__()
                self.schedule = VPSchedule()

            def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
                return posterior

        sampler = DDIMSampler(Costless(), steps=OVERHEAD_STEPS, silent=True)
        return torch.no_grad()(lambda: sampler(x))


def k_diffusion() -> tuple[Any, Any]:
    """`k_diffusion.sampling` and `.external`, without the package's `__init__`, which needs its training dependencies."""
    spec = find_spec("k_diffusion")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'k_diffusion'", name="k_diffusion")
    if find_spec("diffusers") is not None:
        import diffusers  # noqa: F401 - checks for torchvision when imported, and must not find the stand-in
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["k_diffusion"] = package
    stand_in_for_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from k_diffusion import external, sampling  # type: ignore[import-not-found]
    return sampling, external


def stand_in_for_torchvision() -> None:
    """Installs empty modules if torchvision is missing: two libraries import it at the top for functions not used here."""
    if find_spec("torchvision") is not None:
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.utils")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    sys.modules |= modules


LIBRARIES: dict[str, Library] = {
    "sfumato": Ours(),
    "diffusers": Diffusers(),
    "denoising-diffusion-pytorch": DenoisingDiffusionPytorch(),
    "k-diffusion": KDiffusion(),
    "azula": Azula(),
}
