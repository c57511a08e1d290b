"""VAEs and ladder VAEs: options, the bound as a loss, sampling from the prior."""

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

EVALUATED = 200  # examples for the bound in metrics.jsonl


class GaussianOptions(Options):
    """`latent.Gaussian`: with a fixed std, or one that the decoder learns; of bins, if the data are images of `values` grey levels."""

    kind: Literal["gaussian"] = "gaussian"
    std: float | None = Field(default=None, gt=0)
    values: int = Field(default=256, ge=2)

    def build(self, spec: DataSpec) -> latent.Gaussian:
        """The likelihood of such data."""
        return latent.Gaussian(std=self.std, bin_width=2 / (self.values - 1) if spec.is_bytes else None)


class BernoulliOptions(Options):
    """`latent.Bernoulli`, for images from black to white, or for data in [0, 1]."""

    kind: Literal["bernoulli"] = "bernoulli"

    def build(self, spec: DataSpec) -> latent.Bernoulli:
        """The likelihood of such data."""
        return latent.Bernoulli(low=-1.0 if spec.is_bytes else 0.0)


class LogisticOptions(Options):
    """`latent.DiscretisedLogistic`, for images of `values` grey levels."""

    kind: Literal["logistic"] = "logistic"
    values: int = Field(default=256, ge=2)

    def build(self, spec: DataSpec) -> latent.DiscretisedLogistic:
        """The likelihood of such data."""
        return latent.DiscretisedLogistic(bin_width=2 / (self.values - 1))


LikelihoodOptions = Annotated[GaussianOptions | BernoulliOptions | LogisticOptions, Field(discriminator="kind")]


class VAEModel(Options):
    """`latent.VAE`: a Markov chain of vectors z_1, z_2, … with `latents` entries; one number is the plain VAE.

    For images, convolutions connect x and z_1 (`widths`, `depth`, `patch`, `attention`, `dropout`); other data and the higher latents use
    perceptrons (`hidden`, `layers`; layers=0 is an affine map).
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
        """The layout of the convolutions."""
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
    """`latent.LadderVAE`, for images: latents z_1, z_2, … as (halvings of the resolution after the patch, channels)."""

    kind: Literal["ladder"] = "ladder"
    levels: tuple[tuple[int, Size], ...] = Field(default=((0, 4), (1, 8)), min_length=1)
    width: int = Field(default=64, ge=1)
    depth: int = Field(default=1, ge=1)
    patch: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, spec: DataSpec, likelihood: latent.Likelihood) -> latent.LadderVAE:
        """The untrained model of such data.

        Raises:
            ValueError: data that are not images, or levels that do not form a ladder.
        """
        if len(spec.sizes) != 3:
            raise ValueError(f"a ladder is for images (c, height, width), got data of shape {spec.sizes}; use model.kind=vae.")
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
    """The loss: beta weights the divergences, warmed up over `warmup` steps; the first `free_nats` of each level are not penalised.

    Free nats apply to a level's mean over the examples that go through the network together: a part of the batch if runtime.micro_batch,
    memory or several processes divide it.
    """

    beta: float = Field(default=1.0, ge=0)
    warmup: int = Field(default=0, ge=0)
    free_nats: float = Field(default=0.0, ge=0)


class VAESampling(Options):
    """The defaults for sampling: `temperature` multiplies all standard deviations; `noisy` draws x from its likelihood."""

    temperature: float = Field(default=1.0, ge=0)
    noisy: bool = False


def refuse_other_values(x: Float[Tensor, "b *x"], values: int, option: str) -> None:
    """Refuses data that are not on a grid of this many values in [-1, 1], up to half a byte: a bound would count bins twice.

    Raises:
        ValueError: they are not on the grid.
    """
    off = (on_grid(x, 2 / (values - 1)) - x).abs().max().item()
    if off > 1 / 255 + 1e-4:
        raise ValueError(
            f"{option} is {values}, but the data are up to {off:.3g} off a grid of that many values in [-1, 1]; set {option}=256 for bytes."
        )


@register("vae", "ladder")
class VAETask(Task):
    """A VAE or ladder VAE, trained on its bound."""

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
        """Refuses data that the likelihood cannot represent."""
        x = examples_of(source, EVALUATED, model).x
        if spec.is_bytes and not isinstance(self.likelihood, BernoulliOptions):
            refuse_other_values(x, self.likelihood.values, "likelihood.values")
        with torch.no_grad():
            model.likelihood.log_prob(model.decode(model.encode(x)), x)

    def metrics(self, model: Any, held_out: Source) -> dict[str, float]:
        """The bound in bits/dim, and each level's divergence in nats."""
        x = examples_of(held_out, EVALUATED, model).x
        bound = latent.bound(model, x, generator=seeded(0, 0))
        levels = torch.cat([bound.prior[:, None], bound.steps], 1).mean(0) * x[0].numel() * math.log(2)
        nats = {f"nats_{len(levels) - i}": float(value) for i, value in enumerate(levels)}
        return {"bits_per_dim": float(bound.total.mean()), **dict(sorted(nats.items()))}

    def bits_per_dim(
        self, model: Any, spec: DataSpec, batch: Batch, *, generator: torch.Generator, times: torch.Generator
    ) -> dict[str, Tensor]:
        """The evidence lower bound, negated."""
        return {"bound": latent.bound(model, batch.x, draws=4, generator=generator).total}

    def finish(self, model: Any, examples: Source, held_out: Source, on_message: Callable[[str], None]) -> dict[str, str]:
        """Reports collapsed levels."""
        for use in latent.level_use(model, examples_of(held_out, EVALUATED, model).x, generator=seeded(0, 1)):
            if use.is_collapsed:
                on_message(f"Posterior collapse: {use}")
        return {}

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> "VAESampler":
        """From the prior downwards."""
        return VAESampler(model, spec, self.sampling, name)

    def sheet(self, model: "Model", source: Source) -> Image.Image | None:
        """For images: eight examples, their reconstructions, and samples."""
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
        """x of samples from the prior.

        Raises:
            ValueError: a negative temperature.
        """
        heat = request.options.get("temperature", self.options.temperature)
        return latent.sample(
            self.model, len(request.rows), row_generators(request.seed, request.rows), temperature=heat, noisy=self.options.noisy
        )

    def reconstruct(self, values: Shaped[np.ndarray, "n *value"]) -> Shaped[np.ndarray, "n *value"]:
        """Reconstructs data."""
        return self.spec.codec.decode(latent.reconstruct(self.model, self._encoded(values)))

    def interpolate(
        self, a: Shaped[np.ndarray, "*value"], b: Shaped[np.ndarray, "*value"], steps: int = 8
    ) -> Shaped[np.ndarray, "n *value"]:
        """From a to b through the latents."""
        ends = self._encoded(np.stack([a, b]))
        return self.spec.codec.decode(latent.interpolate(self.model, ends[0], ends[1], steps))

    def _encoded(self, values: Shaped[np.ndarray, "n *value"]) -> Float[Tensor, "n *x"]:
        """x of values, on the model's device."""
        return self.spec.codec.encode(values).to(next(self.model.parameters()).device)

    def plane(self, side: int = 20) -> Image.Image:
        """A picture of the latent plane.

        Raises:
            ValueError: the latent is not one plane, or the data are not images.
        """
        if not isinstance(self.model, latent.VAE) or not self.spec.is_image:
            raise ValueError(f"{self.name} has no latent plane to draw: that needs model.kind=vae, model.latents=[2], and images.")
        return sheet(self.spec.codec.decode(latent.plane(self.model, side)), columns=side)
