"""Training a VAE or a ladder of latents into a run folder, and loading one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from sfumato import latent, nets
from sfumato.denoiser import CondLike
from sfumato.form import Form
from sfumato.latent.likelihood import on_grid
from sfumato.memory import by_parts
from sfumato.noise import row_generators, seeded
from sfumato.pictures import sheet
from sfumato.run import Labels, Samples, folder_of, read_form
from sfumato.train.checkpoint import load_average
from sfumato.train.data_options import Data
from sfumato.train.folder import write_sheet
from sfumato.train.loop import fit
from sfumato.train.opening import opening
from sfumato.train.options import Options, Size
from sfumato.train.recipe import Runtime, Training, read_tree, resolve
from sfumato.train.state import TrainState


class GaussianOptions(Options):
    """`latent.Gaussian`: of a fixed std, or one that the decoder learns; of bins, where the data are images of `values` greys."""

    kind: Literal["gaussian"] = "gaussian"
    std: float | None = Field(default=None, gt=0)
    values: int = Field(default=256, ge=2)

    def build(self, form: Form) -> latent.Gaussian:
        """The likelihood of data of this form."""
        return latent.Gaussian(std=self.std, width=2 / (self.values - 1) if form.is_bytes else None)


class BernoulliOptions(Options):
    """`latent.Bernoulli`, of images from black to white, or of data in [0, 1]."""

    kind: Literal["bernoulli"] = "bernoulli"

    def build(self, form: Form) -> latent.Bernoulli:
        """The likelihood of data of this form."""
        return latent.Bernoulli(low=-1.0 if form.is_bytes else 0.0)


class LogisticOptions(Options):
    """`latent.DiscretisedLogistic`, of images of `values` greys."""

    kind: Literal["logistic"] = "logistic"
    values: int = Field(default=256, ge=2)

    def build(self, form: Form) -> latent.DiscretisedLogistic:
        """The likelihood of data of this form."""
        return latent.DiscretisedLogistic(width=2 / (self.values - 1))


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

    def build(self, form: Form, likelihood: latent.Likelihood) -> latent.VAE:
        """The untrained model of data of this form."""
        shape, first = form.shape, self.latents[0]
        if form.is_image:
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

    def build(self, form: Form, likelihood: latent.Likelihood) -> latent.LadderVAE:
        """The untrained model of data of this form.

        Raises:
            ValueError: data that are no images, or levels that are no ladder.
        """
        if len(form.shape) != 3:
            raise ValueError(f"a ladder is for images (c, height, width), got data of shape {form.shape}; take model.kind=vae.")
        shape = form.shape
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


class VAERecipe(Options):
    """Everything that makes a VAE."""

    about: str = ""
    model: Annotated[VAEModel | LadderModel, Field(discriminator="kind")]
    data: Data
    likelihood: LikelihoodOptions = LogisticOptions()
    objective: VAEObjective = VAEObjective()
    training: Training = Training()
    runtime: Runtime = Runtime(precision="float32")
    sampling: VAESampling = VAESampling()

    @model_validator(mode="after")
    def _keeps_its_digits(self) -> "VAERecipe":
        refuse_low_precision(self.runtime)
        return self


def refuse_low_precision(runtime: Runtime) -> None:
    """A bound is no bound in bfloat16's three digits."""
    if runtime.precision != "float32":
        raise ValueError(f"a bound is computed in float32; set runtime.precision=float32, got {runtime.precision}")


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


def read(path: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> VAERecipe:
    """Reads a recipe, as `train.recipe.load_recipe` does."""
    return resolve(VAERecipe, read_tree(path), changes, steps=steps, source=str(path))


@dataclass(frozen=True)
class Seeds:
    """In the place of training times: a seed an example, for the draws of its latents."""

    def __call__(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """n seeds."""
        return torch.randint(2**32, (n,), generator=generator).double()


@dataclass(frozen=True)
class VAERun:
    """A trained VAE with its recipe and the form of its data."""

    name: str
    recipe: VAERecipe
    form: Form
    model: latent.VAE | latent.LadderVAE

    @property
    def device(self) -> torch.device:
        """Where its network lives."""
        return next(self.model.parameters()).device

    @property
    def networks(self) -> list[torch.nn.Module]:
        """All that it computes with."""
        return [self.model]

    @property
    def has_picture(self) -> bool:
        """Whether its samples are images or points in the plane."""
        return self.form.has_picture

    def columns(self, labels: Labels | None = None, count: int = 64) -> int | None:
        """None: its samples have no classes."""
        return None

    def sample(
        self,
        count: int = 64,
        *,
        seed: int = 0,
        temperature: float | None = None,
        batch: int = 64,
        rows: slice = slice(None),
        on_batch: Callable[[int], None] | None = None,
    ) -> Samples:
        """`count` samples from the prior downwards, or those of them in `rows`; the i-th depends on (model, seed, i) and the temperature.

        Raises:
            ValueError: a count or batch below 1, a negative seed or temperature.
        """
        if count < 1 or batch < 1 or seed < 0:
            raise ValueError(f"count and batch must be at least 1 and seed at least 0, got {count}, {batch} and {seed}.")
        options, mine = self.recipe.sampling, range(count)[rows]
        heat = options.temperature if temperature is None else temperature

        def draw(part: slice) -> Tensor:
            return latent.sample(self.model, len(mine[part]), row_generators(seed, mine[part]), temperature=heat, noisy=options.noisy)

        done = by_parts(draw, len(mine), batch, on_batch)
        return Samples(self.form.scaling.decode(torch.cat([torch.empty(0, *self.form.shape), *done])), None, self.form)

    def to(self, device: torch.device) -> None:
        """Moves its network."""
        self.model.to(device)

    def reconstruct(self, values: Shaped[np.ndarray, "n *value"]) -> Shaped[np.ndarray, "n *value"]:
        """Data through their latents and back."""
        return self.form.scaling.decode(latent.reconstruct(self.model, self._encoded(values)))

    def interpolate(
        self, a: Shaped[np.ndarray, "*value"], b: Shaped[np.ndarray, "*value"], steps: int = 8
    ) -> Shaped[np.ndarray, "n *value"]:
        """From a to b through the latents."""
        ends = self._encoded(np.stack([a, b]))
        return self.form.scaling.decode(latent.interpolate(self.model, ends[0], ends[1], steps))

    def _encoded(self, values: Shaped[np.ndarray, "n *value"]) -> Float[Tensor, "n *x"]:
        """Data as the model takes them, where it is."""
        return self.form.scaling.encode(values).to(self.device)

    def plane(self, side: int = 20) -> Image.Image:
        """A picture of the latent plane.

        Raises:
            ValueError: a model whose latent is not one plane, or data without a picture of images.
        """
        if not isinstance(self.model, latent.VAE) or not self.form.is_image:
            raise ValueError(f"{self.name} has no picture of a plane: that needs model.kind=vae, model.latents=[2], and images.")
        return sheet(self.form.scaling.decode(latent.plane(self.model, side)), columns=side)


def load(model: str | Path, *, ema: float | None = None) -> VAERun:
    """Loads a run folder of this kind with the averaged weights of its newest checkpoint that is whole.

    Raises:
        ValueError: there is no such model.
        CheckpointError: no checkpoint yet, or none that is whole.
    """
    folder = folder_of(model)
    recipe, form = read(folder / "recipe.yaml"), read_form(folder)
    built = build(recipe, form)
    load_average(built, folder, recipe.training.ema, ema)
    return VAERun(str(model), recipe, form, built)


def build(recipe: VAERecipe, form: Form) -> latent.VAE | latent.LadderVAE:
    """The untrained model."""
    return recipe.model.build(form, recipe.likelihood.build(form))


def train(
    recipe: VAERecipe,
    out: Path,
    *,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains a VAE into the run folder `out` and returns it; the arguments are those of `loop.train`.

    metrics.jsonl also says the averaged model's bound of held-out examples (of training ones, where none are held out) in bits/dim, and
    each level's divergence in nats. A level that has collapsed is said at the end.

    Raises:
        ValueError, CheckpointError, FloatingPointError, Stopped: as `loop.train` raises them.
    """
    start = opening(recipe, out, resume=resume, read=read, say=say)
    options, engine, form = recipe.training, start.engine, start.form
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = build(recipe, form).to(engine.device)
    state = TrainState.begin(model, options, Seeds())
    dims, goal = math.prod(form.shape), recipe.objective
    judged = start.held_out or start.examples
    x_judged = judged.batch(np.random.default_rng(0).permutation(len(judged))[:200])[0].to(engine.device)
    if form.is_bytes and not isinstance(recipe.likelihood, BernoulliOptions):
        refuse_other_values(x_judged, recipe.likelihood.values, "likelihood.values")
    with torch.no_grad():  # what does not fit is refused before anything is written
        model.likelihood.log_prob(model.decode(model.encode(x_judged)), x_judged)

    def cost(model: latent.VAE | latent.LadderVAE, x0: Tensor, eps: Tensor, t: Tensor, cond: CondLike | None) -> Tensor:
        generators = [torch.Generator().manual_seed(int(seed)) for seed in t]
        warm = min(1.0, (state.step + 1) / goal.warmup) if goal.warmup else 1.0
        return latent.loss(model.trace(x0, generators), dims, beta=goal.beta * warm, free_nats=goal.free_nats)

    def measure() -> dict[str, float]:
        bound = latent.bound(state.averaged(), x_judged, generator=seeded(0, 0))
        levels = torch.cat([bound.prior[:, None], bound.steps], 1).mean(0) * dims * math.log(2)
        nats = {f"nats_{len(levels) - i}": float(value) for i, value in enumerate(levels)}
        return {"bits_per_dim": float(bound.total.mean()), **dict(sorted(nats.items()))}

    def show(path: Path) -> None:
        run = VAERun(str(out), recipe, form, state.averaged())
        if not run.has_picture:
            return
        values = run.sample(48 if form.is_image else 2000, batch=2000).values
        if form.is_image:
            some = form.scaling.decode(x_judged[:8])
            values = np.concatenate([some, run.reconstruct(some), values])
        write_sheet(path, values, columns=8 if form.is_image else None)

    fit(
        state,
        cost,
        start.examples,
        options,
        out,
        engine=engine,
        schedule=None,
        papers=start.papers,
        measure=measure,
        draw=show,
        on_step=on_step,
        watch=watch,
        say=say,
        should_stop=should_stop,
    )
    for use in latent.level_use(state.averaged(), x_judged, generator=seeded(0, 1)):
        if use.is_collapsed and engine.is_main:
            say(f"Of {out}, {use}")
    return out
