"""Variational diffusion: a denoiser and its schedule, trained together on the bound. Sampled like any diffusion model."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from sfumato import latent, loss, nets
from sfumato.data.source import Batch, DataSpec, Draw, Source
from sfumato.denoiser import Denoiser
from sfumato.nets.options import Net
from sfumato.noise import seeded
from sfumato.options import Options, Training
from sfumato.schedule import LearnedSchedule
from sfumato.task import LossTerms, Recipe, State, Task, examples_of, register
from sfumato.tasks.diffusion import DiffusionSampler, denoiser_bits, refuse_guidance, refuse_learned_variance, target_of
from sfumato.tasks.options import Sampling
from sfumato.tasks.vae import refuse_other_values

EVALUATED = 64  # examples for the bound in metrics.jsonl


class VDMModel(Options):
    """`latent.VDM`: the initial ends of its schedule, and the Fourier features of its network.

    `fourier` lists the n of the features sin and cos of 2^n pi x; `values` is the number of evenly spaced values of the data in [-1, 1].
    """

    kind: Literal["vdm"] = "vdm"
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    width: int = Field(default=64, ge=1)
    fourier: tuple[Annotated[int, Field(ge=-4, le=12)], ...] = (7, 8)
    values: int = Field(default=256, ge=2)
    target: Literal["eps", "v", "edm", "x0"] = "v"

    @model_validator(mode="after")
    def _is_a_range(self) -> "VDMModel":
        self.schedule()
        return self

    @property
    def bin_width(self) -> float:
        """Distance of neighbouring values of the data in [-1, 1]."""
        return 2 / (self.values - 1)

    def schedule(self) -> LearnedSchedule:
        """The untrained schedule."""
        return LearnedSchedule(log_snr_max=self.log_snr_max, log_snr_min=self.log_snr_min, width=self.width)


@register("vdm")
class VDMTask(Task):
    """A variational diffusion model; its loss is the whole bound in bits/dim."""

    is_exact: ClassVar[bool] = True
    model: VDMModel = VDMModel()
    net: Net
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _has_its_own_ends(self) -> "VDMTask":
        if self.sampling.log_snr_max is not None or self.sampling.log_snr_min is not None:
            raise ValueError("a learned schedule has its own ends; remove sampling.log_snr_max and log_snr_min")
        refuse_learned_variance(self.sampling, "a vdm", "set sampling.sampler=ancestral, or another that needs none")
        return self

    def check_training(self, training: Training) -> None:
        """Refuses guidance of a model that never sees dropped conditions."""
        refuse_guidance(self.sampling, training)

    def build(self, spec: DataSpec, earlier: Any = ()) -> latent.VDM:
        """The untrained model.

        Raises:
            ValueError: data that are not images of bytes: the bound's decoder is for values on a grid in [-1, 1].
        """
        if not spec.is_bytes:
            raise ValueError(f"a vdm needs images of bytes, whose values lie on a grid; got {spec.codec.dtype} of shape {spec.shape}.")
        channels, powers = spec.sizes[0], self.model.fourier
        net = self.net.build((channels * (1 + 2 * len(powers)), *spec.sizes[1:]), spec.conditions, channels)
        if powers:
            net = nets.Fourier(net, powers)
        # data_std=1 leaves x_t unscaled: only then do its Fourier features fit the grid of values.
        denoiser = Denoiser(net, target_of(self.model.target), data_std=1.0)
        return latent.VDM(denoiser, self.model.schedule(), bin_width=self.model.bin_width)

    def trained(self, model: Any) -> nn.Module:
        """The network and the schedule."""
        return model.net

    def loss(self, model: latent.VDM, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The bound of each example, each at its own time."""
        t = draw.whole(loss.Stratified(model.schedule))
        bits = model.loss(batch.x, draw.normal(batch.x), t, draw.dropped(batch.cond) or None)
        return LossTerms(bits, log_snr=model.schedule.log_snr(t).detach())

    def examine(self, model: latent.VDM, spec: DataSpec, source: Source) -> None:
        """Refuses values that are not on the grid."""
        super().examine(model, spec, source)
        refuse_other_values(examples_of(source, EVALUATED, model).x, self.model.values, "model.values")

    def metrics(self, model: latent.VDM, held_out: Source) -> dict[str, float]:
        """The bound in bits/dim, given the conditions, and the current ends of the schedule."""
        batch = examples_of(held_out, EVALUATED, model)
        bits = latent.vdm.bound(
            model.denoiser,
            batch.x,
            model.schedule,
            batch.cond or None,
            draws=4,
            bin_width=model.bin_width,
            generator=seeded(0, 0),
            times=seeded(0, 1),
        ).total
        ends = {"log_snr_max": model.schedule.log_snr_max.item(), "log_snr_min": model.schedule.log_snr_min.item()}
        return {"bits_per_dim": float(bits.mean()), **ends}

    def bits_per_dim(
        self, model: latent.VDM, spec: DataSpec, batch: Batch, *, generator: torch.Generator, times: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The bound that it is trained on, and the flow."""
        return denoiser_bits(model.denoiser, batch, model.schedule, bin_width=model.bin_width, generator=generator, times=times)

    def sampler(self, model: latent.VDM, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> DiffusionSampler:
        """The sampler of diffusion, with the learned schedule."""
        training = self.training if isinstance(self, Recipe) else None
        return DiffusionSampler(model.denoiser, spec, model.schedule, model.schedule, self.sampling, training, name=name).of_run(folder)
