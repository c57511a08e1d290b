"""VAEs and ladders of latents: options, the bound as a loss, sampling from the prior downwards."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from sfumato import latent, nets
from sfumato.data.source import Batch, DataSpec, Draw, Source
from sfumato.latent.likelihood import on_grid
from sfumato.noise import row_generators, seeded
from sfumato.options import Options, Size
from sfumato.pictures import sheet
from sfumato.task import LossTerms, Request, Sampler, State, Task, examples_of, register

if TYPE_CHECKING:
    from sfumato.model import Model

JUDGED = 200  # examples whose bound metrics.jsonl tells


class GaussianOptions(Options):
    """`latent.Gaussian`: of a fixed std, or one that the decoder learns; of bins, where the data are images of `values` greys."""

    kind: Literal["gaussian"] = "gaussian"
    std: float | None = Field(default=None, gt=0)
    values: int = Field(default=256, ge=2)

    def build(self, spec: DataSpec) -> latent.Gaussian:
        """The likelihood of such data."""
        return latent.Gaussian(std=self.std, bin_width=2 / (self.values - 1) if spec.is_bytes else None)


class BernoulliOptions(Options):
    """`latent.Bernoulli`, of images from black to white, or of data in [0, 1]."""

    kind: Literal["bernoulli"] = "bernoulli"

    def build(self, spec: DataSpec) -> latent.Bernoulli:
        """The likelihood of such data."""
        return latent.Bernoulli(low=-1.0 if spec.is_bytes else 0.0)


class LogisticOptions(Options):
    """`latent.DiscretisedLogistic`, of images of `values` greys."""

    kind: Literal["logistic"] = "logistic"
    values: int = Field(default=256, ge=2)

    def build(self, spec: DataSpec) -> latent.DiscretisedLogistic:
        """The likelihood of such data."""
        return latent.DiscretisedLogistic(bin_width=2 / (self.values - 1))


LikelihoodOptions = Annotated[GaussianOptions | BernoulliOptions | LogisticOptions, Field(discriminator="kind")]


class VAEModel(Options):
    """`latent.VAE`: a Markov chain of vectors z_1, z_2, … of `latents` entries; one number is the plain VAE.

    Images meet z_1 through convolutions (`widths`, `depth`, `patch`, `attention`, `dropout`), all else and the higher latents through
    perceptrons (`hidden`, `layers`; none are affine maps).
    """

    kind: Literal["vae"] = "vae"
    latents: tuple[Size, ...] = Field(default=(32,), min_length=1)
    widths: tuple[Size, ...] = Field(default=(64, 128), min_length=1)
    depth: int = Field(default=1, ge=1)
    patch: int = Field(default=2, ge=1)
    attention: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    hidden: int = Field(default=256, ge=1)
    layers: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _is_a_layout(self) -> "VAEModel":
        self.layout()
        return self

    def layout(self) -> nets.Layout:
        """Of the convolutions."""
        return nets.Layout(widths=self.widths, depth=self.depth, patch=self.patch, attention=self.attention, dropout=self.dropout)

    def build(self, spec: DataSpec, likelihood: latent.Likelihood) -> latent.VAE:
        """The untrained model of such data."""
        shape, first = spec.sizes, self.latents[0]
        if spec.is_image:
            assert len(shape) == 3
            encoders: list[torch.nn.Module] = [nets.ToVector(shape, 2 * first, self.layout())]
            decoders: list[torch.nn.Module] = [nets.FromVector(first, shape, likelihood.numbers * shape[0], self.layout())]
        else:
            encoders = [nets.Perceptron(shape, (2 * first,), width=self.hidden, depth=self.layers)]
            said = (likelihood.numbers * shape[0], *shape[1:])
            decoders = [nets.Perceptron((first,), said, width=self.hidden, depth=self.layers)]
        for below, above in pairwise(self.latents):
            encoders.append(nets.Perceptron((below,), (2 * above,), width=self.hidden, depth=self.layers))
            decoders.append(nets.Perceptron((above,), (2 * below,), width=self.hidden, depth=self.layers))
        return latent.VAE(encoders, decoders, likelihood, (self.latents[-1],))


class LadderModel(Options):
    """`latent.LadderVAE`: latents z_1, z_2, … as (halvings of the resolution after the patch, channels), for images."""

    kind: Literal["ladder"] = "ladder"
    levels: tuple[tuple[int, Size], ...] = Field(default=((0, 4), (1, 8)), min_length=1)
    width: int = Field(default=64, ge=1)
    depth: int = Field(default=1, ge=1)
    patch: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, spec: DataSpec, likelihood: latent.Likelihood) -> latent.LadderVAE:
        """The untrained model of such data.

        Raises:
            ValueError: data that are no images, or levels that are no ladder.
        """
        if len(spec.sizes) != 3:
            raise ValueError(f"a ladder is for images (c, height, width), got data of shape {spec.sizes}; take model.kind=vae.")
        shape = spec.sizes
        ladder = nets.Ladder(
            shape,
            likelihood.numbers * shape[0],
            levels=self.levels,
            width=self.width,
            patch=self.patch,
            depth=self.depth,
            dropout=self.dropout,
        )
        return latent.LadderVAE(ladder, likelihood)


class VAEObjective(Options):
    """What is charged for: beta on the divergences, warmed up over `warmup` steps; `free_nats` of each level cost nothing more.

    Free nats are granted on a level's mean over the examples that go through the network at once: a part of the batch, where
    runtime.micro_batch, memory or several processes divide it.
    """

    beta: float = Field(default=1.0, ge=0)
    warmup: int = Field(default=0, ge=0)
    free_nats: float = Field(default=0.0, ge=0)


class VAESampling(Options):
    """How it is sampled unless told otherwise: standard deviations times `temperature`; `noisy` draws x from its likelihood."""

    temperature: float = Field(default=1.0, ge=0)
    noisy: bool = False


def refuse_other_values(x: Float[Tensor, "b *x"], values: int, option: str) -> None:
    """Refuses data that are not on a grid of so many values in [-1, 1], half a byte's rounding aside: a bound would count bins twice.

    Raises:
        ValueError: they are not.
    """
    off = (on_grid(x, 2 / (values - 1)) - x).abs().max().item()
    if off > 1 / 255 + 1e-4:
        raise ValueError(
            f"{option} is {values}, but the data have values {off:.3g} off the nearest of so many in [-1, 1]; set {option}=256 for bytes."
        )


@register("vae", "ladder")
class VAETask(Task):
    """A VAE, or a ladder of latents, trained on its bound."""

    is_exact: ClassVar[bool] = True
    model: Annotated[VAEModel | LadderModel, Field(discriminator="kind")]
    likelihood: LikelihoodOptions = LogisticOptions()
    objective: VAEObjective = VAEObjective()
    sampling: VAESampling = VAESampling()

    def build(self, spec: DataSpec, earlier: Any = ()) -> latent.VAE | latent.LadderVAE:
        """The untrained model."""
        return self.model.build(spec, self.likelihood.build(spec))

    def trained(self, model: Any) -> torch.nn.Module:
        """All networks."""
        return model.net

    def loss(self, model: Any, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The bound of each example in bits/dim, at one draw of its latents, with warm-up and free nats."""
        goal = self.objective
        warm = min(1.0, draw.step / goal.warmup) if goal.warmup else 1.0
        trace = model.trace(batch.x, draw.generators())
        return LossTerms(latent.loss(trace, batch.x[0].numel(), beta=goal.beta * warm, free_nats=goal.free_nats))

    def examine(self, model: Any, spec: DataSpec, source: Source) -> None:
        """Refuses values that the likelihood is not for."""
        x = examples_of(source, JUDGED, model).x
        if spec.is_bytes and not isinstance(self.likelihood, BernoulliOptions):
            refuse_other_values(x, self.likelihood.values, "likelihood.values")
        with torch.no_grad():
            model.likelihood.log_prob(model.decode(model.encode(x)), x)

    def metrics(self, model: Any, held_out: Source) -> dict[str, float]:
        """The bound in bits/dim, and each level's divergence in nats."""
        x = examples_of(held_out, JUDGED, model).x
        bound = latent.bound(model, x, generator=seeded(0, 0))
        levels = torch.cat([bound.prior[:, None], bound.steps], 1).mean(0) * x[0].numel() * math.log(2)
        nats = {f"nats_{len(levels) - i}": float(value) for i, value in enumerate(levels)}
        return {"bits_per_dim": float(bound.total.mean()), **dict(sorted(nats.items()))}

    def finish(self, model: Any, examples: Source, held_out: Source, say: Callable[[str], None]) -> dict[str, str]:
        """Names the levels that have collapsed."""
        for use in latent.level_use(model, examples_of(held_out, JUDGED, model).x, generator=seeded(0, 1)):
            if use.is_collapsed:
                say(f"Posterior collapse: {use}")
        return {}

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> "VAESampler":
        """From the prior downwards."""
        return VAESampler(model, spec, self.sampling, name)

    def sheet(self, model: "Model", source: Source) -> Image.Image | None:
        """Of images: eight examples, their reconstructions, and samples."""
        if not model.spec.is_image:
            return model.sheet(source=source)
        some = model.spec.codec.decode(examples_of(source, 8, model.network).x)
        return sheet(np.concatenate([some, model.reconstruct(some), model.sample(48).values]), columns=8)


@dataclass(frozen=True)
class VAESampler(Sampler):
    """Draws samples of a VAE in one pass, reconstructs, and interpolates."""

    model: Any
    spec: DataSpec
    options: VAESampling
    name: str = "this model"
    kind = "a VAE"
    takes = frozenset({"temperature"})

    def __call__(self, request: Request) -> Tensor:
        """x of samples from the prior downwards.

        Raises:
            ValueError: a negative temperature.
        """
        heat = request.options.get("temperature", self.options.temperature)
        return latent.sample(
            self.model, len(request.rows), row_generators(request.seed, request.rows), temperature=heat, noisy=self.options.noisy
        )

    def reconstruct(self, values: Shaped[np.ndarray, "n *value"]) -> Shaped[np.ndarray, "n *value"]:
        """Data through their latents and back."""
        return self.spec.codec.decode(latent.reconstruct(self.model, self._encoded(values)))

    def interpolate(
        self, a: Shaped[np.ndarray, "*value"], b: Shaped[np.ndarray, "*value"], steps: int = 8
    ) -> Shaped[np.ndarray, "n *value"]:
        """From a to b through the latents."""
        ends = self._encoded(np.stack([a, b]))
        return self.spec.codec.decode(latent.interpolate(self.model, ends[0], ends[1], steps))

    def _encoded(self, values: Shaped[np.ndarray, "n *value"]) -> Float[Tensor, "n *x"]:
        """x of values, where the model is."""
        return self.spec.codec.encode(values).to(next(self.model.parameters()).device)

    def plane(self, side: int = 20) -> Image.Image:
        """A picture of the latent plane.

        Raises:
            ValueError: a model whose latent is not one plane, or data without a picture of images.
        """
        if not isinstance(self.model, latent.VAE) or not self.spec.is_image:
            raise ValueError(f"{self.name} has no picture of a plane: that needs model.kind=vae, model.latents=[2], and images.")
        return sheet(self.spec.codec.decode(latent.plane(self.model, side)), columns=side)
