"""Autoencoders, the first stage of latent diffusion: options, loss, and statistics of the trained latent."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato import latent, nets
from sfumato.data import IMAGES, Scaling
from sfumato.data.source import Batch, DataSpec, Draw, Source, Subset
from sfumato.latent.autoencoder import Autoencoder, Measured
from sfumato.noise import row_generators
from sfumato.options import Options, Size
from sfumato.pictures import sheet
from sfumato.task import LossTerms, Sampler, State, Task, examples_of, register

if TYPE_CHECKING:
    from sfumato.model import Model

MEASURED = "latent.json"  # in the folder of an autoencoder: scaling of the latent, reconstruction error
MOST_MEASURED = 2048  # examples for these measurements
EVALUATED = 64  # examples for the error in metrics.jsonl
COLLAPSED = 0.01  # smallest share of the latent's variance that depends on the images

logger = logging.getLogger(__name__)


class AutoencoderModel(Options):
    """`latent.Autoencoder`: an image becomes `latent` channels at 1/(patch 2^(len(widths) - 1)) of its size.

    `kl_weight` and `critic_weight` as in `latent.autoencoder.loss`; the critic starts after `critic_start` steps, critic_weight=0 disables
    it. Its part is scaled by gradients of the examples that go through the network at once: a part of the batch, where
    runtime.micro_batch, memory or several processes divide it.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    latent: Size = 4
    widths: tuple[Size, ...] = Field(default=(64, 96), min_length=1)
    depth: int = Field(default=1, ge=1)
    patch: int = Field(default=2, ge=1)
    attention: bool = True
    kl_weight: float = Field(default=1e-4, ge=0)
    features_weight: float = Field(default=1.0, ge=0)
    critic_weight: float = Field(default=0.0, ge=0)
    critic_start: int = Field(default=0, ge=0)
    critic_width: int = Field(default=32, ge=8)

    @model_validator(mode="after")
    def _is_a_layout(self) -> "AutoencoderModel":
        self.layout()
        return self

    def layout(self) -> nets.Layout:
        """The layout of the convolutions."""
        return nets.Layout(widths=self.widths, depth=self.depth, patch=self.patch, attention=self.attention)

    def build(self, spec: DataSpec) -> Autoencoder:
        """The untrained model for such images.

        Raises:
            ValueError: data that are not images.
        """
        if not spec.is_bytes:
            raise ValueError(f"an autoencoder needs images of bytes, got {spec.codec.dtype} data of shape {spec.sizes}.")
        critic = nets.PatchCritic(spec.sizes[0], width=self.critic_width) if self.critic_weight else None
        return Autoencoder.build(spec.sizes[0], self.latent, self.layout(), critic=critic)


@register("autoencoder")
class AutoencoderTask(Task):
    """An autoencoder of images. `features` returns feature maps for the perceptual loss; without it there is no such loss."""

    is_exact: ClassVar[bool] = True
    model: AutoencoderModel = AutoencoderModel()
    features: Any = Field(default=None, exclude=True)

    def build(self, spec: DataSpec, earlier: Any = ()) -> Autoencoder:
        """The untrained model."""
        return self.model.build(spec)

    def trained(self, model: Any) -> nn.Module:
        """Encoder, decoder and critic."""
        return model.net

    def loss(self, model: Autoencoder, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """Reconstruction, divergence, features, critic."""
        goal = self.model
        return LossTerms(
            latent.autoencoder.loss(
                model,
                batch.x,
                draw.generators(),
                kl_weight=goal.kl_weight,
                features=self.features,
                features_weight=goal.features_weight,
                critic_weight=goal.critic_weight if draw.step > goal.critic_start else 0.0,
            )
        )

    @torch.no_grad()
    def metrics(self, model: Autoencoder, held_out: Source) -> dict[str, float]:
        """Mean absolute error and PSNR of reconstructed images."""
        x = examples_of(held_out, EVALUATED, model).x
        apart = model.decode(model.encode(x), x.shape[2:]) - x
        return {"residual": float(apart.abs().mean()), "psnr": float(10 * (4 / apart.square().flatten(1).mean(1)).log10().mean())}

    def finish(self, model: Autoencoder, examples: Source, held_out: Source, on_message: Callable[[str], None]) -> dict[str, str]:
        """Measures the latent."""
        return {MEASURED: measured(model, examples).to_json()}

    def restore(self, model: Autoencoder, folder: Path) -> None:
        """Loads the measurements."""
        found = Measured.from_file(folder / MEASURED)
        model.scaling, model.residual = found.scaling, found.residual

    def sampler(self, model: Autoencoder, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> Sampler:
        """Reconstructs; makes no samples."""
        return AutoencoderSampler(model, spec, name)

    def sheet(self, model: "Model", source: Source) -> Image:
        """Rows of eight examples, each above its reconstruction."""
        some = model.spec.codec.decode(examples_of(source, 32, model.network).x)
        pairs = zip(np.split(some, range(8, len(some), 8)), np.split(model.reconstruct(some), range(8, len(some), 8)), strict=True)
        return sheet(np.concatenate([rows for pair in pairs for rows in pair]), columns=8)


@dataclass(frozen=True)
class AutoencoderSampler(Sampler):
    """Reconstructs images; an autoencoder alone cannot sample."""

    model: Autoencoder
    spec: DataSpec
    name: str = "this model"
    kind = "an autoencoder alone"

    def __post_init__(self) -> None:
        """Sets `use`."""
        object.__setattr__(self, "use", f"Use it with: sfumato train ldm --set model.path={self.name} --set data=…")

    @torch.no_grad()
    def reconstruct(self, values: Shaped[np.ndarray, "n *value"]) -> Shaped[np.ndarray, "n *value"]:
        """Reconstructs images."""
        x = self.spec.codec.encode(values).to(next(self.model.parameters()).device)
        return self.spec.codec.decode(self.model.decode(self.model.encode(x), x.shape[2:]).clamp(-1, 1))


def refuse_other(spec: DataSpec, model: Autoencoder, made_for: DataSpec | None, name: str) -> None:
    """Refuses data that do not match those that an autoencoder was trained on.

    Args:
        spec: of the data.
        model: the autoencoder.
        made_for: the data it was trained on; None for one of diffusers, which takes images of any size in [-1, 1].
        name: of the autoencoder.

    Raises:
        ValueError: another range or number of channels.
    """
    channels, codec = model.encoder.channels, IMAGES if made_for is None else made_for.codec
    if spec.codec != codec:
        told = [f"(value - {each.shift}) / {each.scale} of {each.dtype}" for each in (codec, spec.codec) if isinstance(each, Scaling)]
        raise ValueError(
            f"the data range of the autoencoder {name} differs: it takes {told[0]}, the data are {told[-1]}; "
            "convert the data, or train an autoencoder on them."
        )
    if len(spec.shape) != 3 or spec.shape[0] != channels:
        raise ValueError(
            f"the autoencoder {name} takes images with {channels} channels, the data have shape {spec.shape}; "
            "set data.channels, or train an autoencoder on them."
        )


def encoded(model: Autoencoder, examples: Source, *, flipped: bool = False, batch: int = 64) -> Iterator[tuple[Batch, Tensor]]:
    """Examples and draws of their latents at unit scale, batch by batch; the draw of row i depends on (i, flipped) only."""
    device = next(model.parameters()).device
    for first in range(0, len(examples), batch):
        rows = np.arange(first, min(len(examples), first + batch))
        some = examples.batch(rows).to(device)
        some = replace(some, x=some.x.flip(-1)) if flipped else some
        with torch.no_grad():
            yield some, model.encode(some.x, row_generators(int(flipped), rows.tolist()), temperature=1.0)


def measured(model: Autoencoder, examples: Source) -> Measured:
    """The scaling that gives the latents of these examples mean 0 and variance 1, and the reconstruction error.

    Warns if the latent hardly depends on the images.

    Raises:
        ValueError: latents that are constant, or not finite.
    """
    some = Subset(examples, np.sort(np.random.default_rng(0).permutation(len(examples))[:MOST_MEASURED]))
    model.scaling = Scaling(shift=0.0, scale=1.0, dtype="float32")
    latents, means, apart = [], [], []
    for batch, z in encoded(model, some):
        x0 = batch.x
        latents.append(z.cpu())
        with torch.no_grad():
            means.append(model.encode(x0).cpu())
            apart.append((model.decode(z, x0.shape[2:]) - x0).abs().mean((1, 2, 3)).cpu())
    z = torch.cat(latents)
    spread = float(z.std())
    if not spread > 1e-6:
        raise ValueError(f"the autoencoder's latent has a scale of {spread:.3g}: it does not depend on the images; lower kl_weight.")
    follows = float(torch.cat(means).var(0).mean()) / spread**2 if len(z) > 1 else 1.0
    if follows < COLLAPSED:
        logger.warning(
            "Posterior collapse: only %.2g of the variance of the autoencoder's latent depends on the images; lower kl_weight.", follows
        )
    return Measured(Scaling(shift=float(z.mean()), scale=spread, dtype="float32"), float(torch.cat(apart).mean()))


def refuse_misfit(z: Float[Tensor, "b c h w"], model: Autoencoder, name: str, shape: tuple[int, ...]) -> None:
    """Refuses latents of another shape than this autoencoder's for images of this shape.

    Raises:
        ValueError: another shape.
    """
    wanted = model.latent_shape(shape)
    if tuple(z.shape[1:]) != wanted:
        raise ValueError(f"latents of shape {tuple(z.shape[1:])} do not fit the autoencoder {name}, whose latent has shape {wanted}.")
