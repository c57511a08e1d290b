"""Super-resolution: a diffusion model of pictures given the same pictures at a lower resolution, and a regression network beside it.

The low-resolution picture is the condition `low`, a map; the network sees it beside x_t, brought to its size. Saharia et al. (2021), SR3,
arXiv:2104.07636; Dhariwal & Nichol (2021), section 4.3, arXiv:2105.05233. Noise-conditioning augmentation: Ho et al. (2021), section 4.2,
arXiv:2106.15282.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sfumato.condition import Condition, ConditionSpec, Map, Numbers
from sfumato.data.scaling import Scaling
from sfumato.data.source import Batch, DataSpec, Draw, Source
from sfumato.nets.conditioner import resized
from sfumato.noise import normal_like, seeded
from sfumato.options import Options, Training
from sfumato.sampling.tiles import tiled
from sfumato.task import LossTerms, Recipe, Request, Sampler, State, examples_of, register
from sfumato.tasks.diffusion import Diffusion, DiffusionSampler

LOW, AUGMENTATION = "low", "augmentation"  # names of the conditions
NOISE = 1  # the stream of the noise on the low-resolution picture
JUDGED = 64  # held-out examples whose PSNR metrics.jsonl tells


class UpscaleModel(Options):
    """How much is to be enlarged.

    `factor` is of height and of width. `augmentation` is the largest standard deviation s of the noise that training puts on the
    low-resolution picture, sqrt(1 - s²) low + s noise, with s uniform in [0, augmentation]; the network is told s. `sampled_augmentation`
    is the s of samples unless `augmentation` is asked for as a condition. `projected` replaces the mean over each factor × factor area of a
    sample by the pixel of the low-resolution picture.
    """

    kind: Literal["upscale"] = "upscale"
    factor: int = Field(default=2, ge=2)
    augmentation: float = Field(default=0.0, ge=0, lt=1)
    sampled_augmentation: float = Field(default=0.0, ge=0, lt=1)
    projected: bool = False


def pooled(x: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c _ _"]:
    """The mean over each factor × factor area."""
    return nn.functional.avg_pool2d(x, factor)


def projected(x: Float[Tensor, "b c h w"], low: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b c h w"]:
    """The nearest x whose areas have these means: x + A⁺(low - A x) for A = `pooled`, whose A⁺ repeats pixels."""
    factor = x.shape[-1] // low.shape[-1]
    return x + nn.functional.interpolate(low - pooled(x, factor), scale_factor=factor, mode="nearest")


class Lowered(Source):
    """Images with their low-resolution copies as the condition `low`, rounded as a file of pixels would be."""

    def __init__(self, of: Source, factor: int, *, augmentation: bool = False) -> None:
        """Keeps the source.

        Args:
            of: images.
            factor: of height and of width.
            augmentation: whether models of them are told the noise on `low`.

        Raises:
            ValueError: data that are no images, a size that the factor does not divide, or that have a condition `low` already.
        """
        if not of.spec.is_image:
            raise ValueError(f"{of.name}: super-resolution is for images, got {of.spec.codec.dtype} of shape {of.spec.shape}.")
        height, width = of.spec.sizes[1:]
        if height % factor or width % factor:
            raise ValueError(
                f"{of.name}: the factor {factor} must divide height and width, got {height} × {width}; set data.size, or model.factor."
            )
        if taken := sorted({LOW, AUGMENTATION} & set(of.spec.conditions)):
            raise ValueError(f"{of.name} has a condition {taken[0]} already; leave it out with data.conditions.")
        self.of, self.factor, self.augmentation, self.name = of, factor, augmentation, of.name
        self.notes, self.skipped = of.notes, of.skipped

    @property
    def spec(self) -> DataSpec:
        """That of the images, with the conditions."""
        spec, codec = self.of.spec, self.of.spec.codec
        assert isinstance(codec, Scaling)
        added: dict[str, ConditionSpec] = {LOW: Map(spec.sizes[0], *(float(np.ravel(each)[0]) for each in (codec.shift, codec.scale)))}
        if self.augmentation:
            added[AUGMENTATION] = Numbers(1, scale=(0.2,))
        return replace(spec, conditions={**spec.conditions, **added})

    def __len__(self) -> int:
        """How many images."""
        return len(self.of)

    def batch(self, rows: np.ndarray, draw: Draw | None = None) -> Batch:
        """Images, flipped or not, and their low-resolution copies."""
        batch = self.of.batch(rows, draw)
        spec = self.spec.conditions[LOW]
        assert isinstance(spec, Map)
        pixels = pooled(batch.x * spec.scale + spec.shift, self.factor).round()
        low = Condition((pixels - spec.shift) / spec.scale, torch.ones(len(batch), dtype=torch.bool))
        return Batch(batch.x, {**batch.cond, LOW: low}, batch.mask)

    def fingerprint(self) -> str:
        """That of the images: the factor stands in the recipe."""
        return self.of.fingerprint()

    def scaled_like(self, spec: DataSpec) -> Source:
        """The same images under the codec that a run was begun with."""
        return Lowered(self.of.scaled_like(spec), self.factor, augmentation=self.augmentation)


@register("upscale")
class Upscale(Diffusion):
    """A diffusion model of images given their low-resolution copies."""

    model: UpscaleModel = UpscaleModel()

    def adapt(self, source: Source) -> Source:
        """Images with their low-resolution copies."""
        return Lowered(source, self.model.factor, augmentation=self.model.augmentation > 0)

    def loss(self, model: Any, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The objective of a diffusion, with noise on `low` where that is asked for."""
        if self.model.augmentation:
            normal = draw.normal(torch.empty(len(batch), 1), NOISE + 1)
            amount = (self.model.augmentation * torch.special.ndtr(normal)).to(batch.x.device)  # uniform in [0, augmentation]
            low = batch.cond[LOW]
            batch = replace(batch, cond={**batch.cond, **augmented(low, amount, draw.normal(low.value, NOISE))})
        return super().loss(model, batch, draw, state)

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> "UpscaleSampler":
        """That of a diffusion, given `low`."""
        training = self.training if isinstance(self, Recipe) else None
        return UpscaleSampler(model, spec, self.noise, self.ended, self.sampling, training, name=name, model=self.model).of_run(folder)


def augmented(low: Condition, amount: Float[Tensor, "b 1"], noise: Float[Tensor, "b c h w"]) -> dict[str, Condition]:
    """The low-resolution pictures with noise on them, and how much: sqrt(1 - s²) low + s noise."""
    s = amount.reshape(-1, 1, 1, 1)
    return {
        LOW: replace(low, value=(1 - s * s).sqrt() * low.value + s * noise),
        AUGMENTATION: Condition(amount, torch.ones_like(low.given)),
    }


@dataclass(frozen=True)
class UpscaleSampler(DiffusionSampler):
    """Draws pictures given their low-resolution copies, of the model's size or, in tiles, of any larger one."""

    model: UpscaleModel = field(default_factory=UpscaleModel)
    kind = "a super-resolution model"

    def default(self, name: str, spec: ConditionSpec, options: Mapping[str, Any]) -> Any:
        """The recipe's augmentation; other conditions are not given, where training dropped them."""
        if name == AUGMENTATION:
            return [self.model.sampled_augmentation]
        return None if name == LOW or self._dropped(name) else super().default(name, spec, options)

    def needs(self, name: str) -> bool:
        """The augmentation is always told."""
        return name == AUGMENTATION or super().needs(name)

    def __call__(self, request: Request) -> Tensor:
        """Pictures, whose noise on `low`, too, depends on (seed, row) alone."""
        given, low = dict(request.cond), request.cond[LOW]
        if self.model.augmentation:
            noise = normal_like(low.value, [seeded(request.seed, row, NOISE) for row in request.rows])
            given |= augmented(low, given[AUGMENTATION].value, noise)
        x = super().__call__(replace(request, cond=given))
        return projected(x, low.value) if self.model.projected else x

    def upscale(self, request: Request, *, overlap: int = 8) -> Tensor:
        """Pictures of `low` of any size at least the model's: larger ones in tiles that overlap by so many pixels of `low`, at every level.

        Raises:
            ValueError: `low` smaller than the model's, or an overlap as large as a tile.
        """
        (height, width), factor, channels = self._low_size, self.model.factor, self.spec.sizes[0]
        h, w = request.cond[LOW].value.shape[2:]
        if (h, w) == (height, width):
            return self(request)
        if h < height or w < width:
            raise ValueError(
                f"{self.name} enlarges pictures of at least {height} × {width} pixels, got {h} × {w}; pad it, or train on smaller ones."
            )
        if not 0 <= overlap < min(height, width):
            raise ValueError(f"the overlap must lie in 0 … {min(height, width) - 1} pixels for tiles of {height} × {width}, got {overlap}.")
        predict: Any = tiled(self.denoiser, (factor * height, factor * width), overlap=factor * overlap, align=factor)
        spec = replace(self.spec, shape=(channels, factor * h, factor * w))
        return replace(self, denoiser=predict, spec=spec)(request)

    @property
    def _low_size(self) -> tuple[int, int]:
        """Height and width of the model's low-resolution pictures."""
        height, width = (size // self.model.factor for size in self.spec.sizes[1:])
        return height, width


class RegressionModel(Options):
    """How much is to be enlarged, by a network that returns one picture: the mean of all that fit, where it is perfect."""

    kind: Literal["regression"] = "regression"
    factor: int = Field(default=2, ge=2)


class Regressor(nn.Module):
    """Pictures of their low-resolution copies: linear interpolation, and what the network adds to it."""

    def __init__(self, net: nn.Module, factor: int) -> None:
        """Keeps both."""
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, cond: Mapping[str, Condition]) -> Float[Tensor, "b c h w"]:
        """The pictures."""
        low = cond[LOW].value
        first = resized(low, torch.Size(self.factor * size for size in low.shape[2:]))
        weight = next(self.net.parameters())
        return first + self.net(first.to(weight.dtype), torch.zeros(len(low), device=low.device), cond).to(first.dtype)


@register("regression")
class Regression(Diffusion):
    """The baseline of super-resolution: the same network, trained on the square error of the picture.

    It has the options of a diffusion, so that `task.kind=regression` makes one recipe of the other; those of noise and sampling are unused.
    """

    has_levels: ClassVar[bool] = False
    model: RegressionModel = RegressionModel()

    def check_training(self, training: Training) -> None:
        """It needs its low-resolution pictures."""
        if training.label_drop or training.drop.get(LOW):
            raise ValueError("a regression needs its low-resolution pictures; set training.label_drop=0 and leave low out of training.drop")

    def adapt(self, source: Source) -> Source:
        """Images with their low-resolution copies."""
        return Lowered(source, self.model.factor)

    def build(self, spec: DataSpec, earlier: Any = ()) -> Any:
        """The untrained network."""
        return Regressor(self.net.build(spec.sizes, spec.conditions), self.model.factor)

    def trained(self, model: nn.Module) -> nn.Module:
        """The network."""
        assert isinstance(model, Regressor)
        return model.net

    def begin(self, model: Any) -> State | None:
        """Nothing else learns."""
        return None

    def examine(self, model: Any, spec: DataSpec, source: Source) -> None:
        """Nothing is sampled in steps, so there is nothing to refuse."""

    def loss(self, model: Any, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The mean square error of each picture."""
        return LossTerms((model(draw.dropped(batch.cond)) - batch.x).float().square().flatten(1).mean(1))

    @torch.no_grad()
    def metrics(self, model: Any, held_out: Source) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB of held-out pictures, each by itself."""
        batch = examples_of(held_out, JUDGED, model)
        errors = (model(batch.cond).clamp(-1, 1) - batch.x).square().flatten(1).mean(1)
        return {"psnr": float((-10 * (errors / 4).log10()).mean())}

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> Any:
        """One picture for each low-resolution one."""
        return RegressionSampler(model, name)


@dataclass(frozen=True)
class RegressionSampler(Sampler):
    """Returns the network's picture; without noise."""

    model: Regressor
    name: str = "this model"
    kind = "a regression network"

    def default(self, name: str, spec: ConditionSpec, options: Mapping[str, Any]) -> Any:
        """None: a picture has the conditions that are given with it."""
        return None

    def needs(self, name: str) -> bool:
        """The low-resolution picture is needed."""
        return name == LOW

    def check(self, options: Mapping[str, Any], cond: Mapping[str, Condition]) -> None:
        """Refuses requests without `low`.

        Raises:
            ValueError: it is not given for all.
        """
        super().check(options, cond)
        if LOW in cond and not bool(cond[LOW].given.all()):
            raise ValueError(f"{self.name} needs a low-resolution picture for each sample; give it with --cond {LOW}=FILE.")

    @torch.no_grad()
    def __call__(self, request: Request) -> Tensor:
        """The pictures."""
        return self.model(request.cond)

    def upscale(self, request: Request, *, overlap: int = 8) -> Tensor:
        """Pictures of `low` of any size."""
        return self(request)
