"""Training an autoencoder, the first stage of latent diffusion, into a run folder, and loading one of ours or of diffusers."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sfumato import latent, nets
from sfumato.data import IMAGES, Dataset, Scaling
from sfumato.denoiser import CondLike
from sfumato.form import Form
from sfumato.latent.autoencoder import Autoencoder, Features, Measured
from sfumato.noise import row_generators
from sfumato.run import read_form
from sfumato.train.checkpoint import load_average, write_text
from sfumato.train.data_options import Data
from sfumato.train.folder import write_sheet
from sfumato.train.loop import fit
from sfumato.train.opening import opening
from sfumato.train.options import Options, Size
from sfumato.train.recipe import Runtime, Training, model_kind, read_tree, resolve
from sfumato.train.state import TrainState
from sfumato.train.vae import Seeds, refuse_low_precision

MEASURED = "latent.json"  # in the folder of an autoencoder: its latent's scaling, its residual
MOST_MEASURED = 2048  # examples that these are measured on
COLLAPSED = 0.01  # of a latent's variance, what follows the images at least

logger = logging.getLogger(__name__)


class AutoencoderModel(Options):
    """`latent.Autoencoder`: an image becomes `latent` channels at 1/(patch 2^(len(widths) - 1)) of its size.

    `kl_weight` and `critic_weight` are those of `latent.autoencoder.loss`; a critic joins after `critic_start` steps, 0 leaves it out.
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
        """Of the convolutions."""
        return nets.Layout(widths=self.widths, depth=self.depth, patch=self.patch, attention=self.attention)

    def build(self, form: Form) -> Autoencoder:
        """The untrained model of images of this form.

        Raises:
            ValueError: data that are no images.
        """
        if not form.is_bytes:
            raise ValueError(f"an autoencoder is for images of bytes, got {form.scaling.dtype} data of shape {form.shape}.")
        critic = nets.PatchCritic(form.shape[0], width=self.critic_width) if self.critic_weight else None
        return Autoencoder.build(form.shape[0], self.latent, self.layout(), critic=critic)


class AutoencoderRecipe(Options):
    """Everything that makes an autoencoder."""

    about: str = ""
    model: AutoencoderModel = AutoencoderModel()
    data: Data
    training: Training = Training()
    runtime: Runtime = Runtime(precision="float32")

    @model_validator(mode="after")
    def _keeps_its_digits(self) -> "AutoencoderRecipe":
        refuse_low_precision(self.runtime)
        return self


def read(path: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> AutoencoderRecipe:
    """Reads a recipe, as `train.recipe.load_recipe` does."""
    return resolve(AutoencoderRecipe, read_tree(path), changes, steps=steps, source=str(path))


@dataclass(frozen=True)
class AutoencoderRun:
    """A trained autoencoder with the form of its images; `residual` is the mean distance of a decoded image from its own."""

    name: str
    form: Form | None  # None for one of diffusers, which takes images of any size in [-1, 1]
    model: Autoencoder
    residual: float | None

    def refuse_other(self, form: Form) -> None:
        """Refuses data that this autoencoder was not made for.

        Raises:
            ValueError: another range or number of channels.
        """
        channels = self.model.encoder.channels
        scaling = IMAGES if self.form is None else self.form.scaling
        if form.scaling != scaling:
            raise ValueError(
                f"the data range of the autoencoder {self.name} differs: it takes (value - {scaling.shift}) / {scaling.scale} of "
                f"{scaling.dtype}, the data are (value - {form.scaling.shift}) / {form.scaling.scale} of {form.scaling.dtype}; "
                "convert the data, or train an autoencoder on them."
            )
        if len(form.shape) != 3 or form.shape[0] != channels:
            raise ValueError(
                f"the autoencoder {self.name} takes images of {channels} channels, the data have shape {form.shape}; "
                "set data.channels, or train an autoencoder on them."
            )


def load(folder: str | Path, *, ema: float | None = None) -> AutoencoderRun:
    """Loads an autoencoder: a run folder of this kind, or a folder that diffusers saved an `AutoencoderKL` in.

    Raises:
        ValueError: it is neither.
        CheckpointError: no checkpoint yet, none that is whole, or a latent that was not measured.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return AutoencoderRun(str(folder), None, latent.load_diffusers(folder), None)
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no autoencoder: neither recipe.yaml of a run nor config.json of diffusers is there.")
    tree = read_tree(path)
    if (kind := model_kind(tree)) != "autoencoder":
        inside = f"; take the one inside it, {folder / 'autoencoder'}" if (folder / "autoencoder").is_dir() else ""
        raise ValueError(f"{folder} is a run of kind {kind}, not of an autoencoder{inside}.")
    recipe, form = resolve(AutoencoderRecipe, tree, source=str(path)), read_form(folder)
    model = recipe.model.build(form)
    load_average(model, folder, recipe.training.ema, ema)
    measured = Measured.from_file(folder / MEASURED)
    model.scaling = measured.scaling
    return AutoencoderRun(str(folder), form, model, measured.residual)


def train(
    recipe: AutoencoderRecipe,
    out: Path,
    *,
    resume: bool = False,
    features: Features | None = None,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains an autoencoder into the run folder `out`, measures its latent, and returns the folder.

    Args:
        recipe: what to train.
        out: the run folder.
        resume: as `loop.train` takes it, like the rest.
        features: maps of an image for the perceptual part of the loss; without them there is none.
        on_step: as above.
        watch: as above.
        say: as above.
        should_stop: as above.

    Raises:
        ValueError, CheckpointError, FloatingPointError, Stopped: as `loop.train` raises them.
    """
    start = opening(recipe, out, resume=resume, read=read, say=say)
    options, engine, form, goal = recipe.training, start.engine, start.form, recipe.model
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = goal.build(form).to(engine.device)
    if start.papers and engine.is_main:
        (out / MEASURED).unlink(missing_ok=True)  # of fewer steps, where a run is made longer
    state = TrainState.begin(model, options, Seeds())
    judged = start.held_out or start.examples
    x_judged = judged.batch(np.random.default_rng(0).permutation(len(judged))[:64])[0].to(engine.device)

    def cost(model: Autoencoder, x0: Tensor, eps: Tensor, t: Tensor, cond: CondLike | None) -> Tensor:
        return latent.autoencoder.loss(
            model,
            x0,
            [torch.Generator().manual_seed(int(seed)) for seed in t],
            kl_weight=goal.kl_weight,
            features=features,
            features_weight=goal.features_weight,
            critic_weight=goal.critic_weight if state.step >= goal.critic_start else 0.0,
        )

    @torch.no_grad()
    def measure() -> dict[str, float]:
        apart = model.decode(model.encode(x_judged), x_judged.shape[2:]) - x_judged
        return {"residual": float(apart.abs().mean()), "psnr": float(10 * (4 / apart.square().flatten(1).mean(1)).log10().mean())}

    def show(path: Path) -> None:
        some, rest = x_judged[:32], state.averaged()
        with torch.no_grad():
            pairs = torch.cat(
                [torch.cat([a, b]) for a, b in zip(some.split(8), rest.decode(rest.encode(some), some.shape[2:]).split(8), strict=True)]
            )
        write_sheet(path, form.scaling.decode(pairs), columns=8)

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
    if engine.is_main and not (out / MEASURED).exists():
        write_text(out / MEASURED, measured(state.averaged(), start.examples).to_json())
    engine.wait()
    return out


def encoded(model: Autoencoder, examples: Dataset, *, flipped: bool = False, batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """x0 and a draw of its latent at unit scale, batch by batch; the draw of row i depends on (i, flipped) alone."""
    device = next(model.parameters()).device
    for first in range(0, len(examples), batch):
        rows = np.arange(first, min(len(examples), first + batch))
        x0 = examples.batch(rows)[0].to(device)
        x0 = x0.flip(-1) if flipped else x0
        with torch.no_grad():
            yield x0, model.encode(x0, row_generators(int(flipped), rows.tolist()), temperature=1.0)


def measured(model: Autoencoder, examples: Dataset) -> Measured:
    """The scaling that brings the latents of these examples to mean 0 and variance 1, and how far their images are off.

    A latent that hardly follows the images is warned of.

    Raises:
        ValueError: latents that are all one constant, or not finite.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(examples))[:MOST_MEASURED])
    some = Dataset(
        values=np.asarray(examples.values[rows]), labels=None, classes=(), scaling=examples.scaling, name=examples.name
    )  # fmt: skip
    model.scaling = Scaling(shift=0.0, scale=1.0, dtype="float32")
    latents, means, apart = [], [], []
    for x0, z in encoded(model, some):
        latents.append(z.cpu())
        with torch.no_grad():
            means.append(model.encode(x0).cpu())
            apart.append((model.decode(z, x0.shape[2:]) - x0).abs().mean((1, 2, 3)).cpu())
    z = torch.cat(latents)
    spread = float(z.std())
    if not spread > 1e-6:
        raise ValueError(f"the autoencoder's latent has a scale of {spread:.3g}: it says nothing of its images; lower kl_weight.")
    follows = float(torch.cat(means).var(0).mean()) / spread**2 if len(z) > 1 else 1.0
    if follows < COLLAPSED:
        logger.warning(
            "The autoencoder's latent has collapsed: %.2g of its variance follows the images, the rest is noise; lower kl_weight.", follows
        )
    return Measured(Scaling(shift=float(z.mean()), scale=spread, dtype="float32"), float(torch.cat(apart).mean()))


def refuse_misfit(z: Float[Tensor, "b c h w"], model: Autoencoder, name: str, shape: tuple[int, ...]) -> None:
    """Refuses latents that are not this autoencoder's, of images of this shape.

    Raises:
        ValueError: another shape.
    """
    wanted = model.latent_shape(shape)
    if tuple(z.shape[1:]) != wanted:
        raise ValueError(f"latents of shape {tuple(z.shape[1:])} do not fit the autoencoder {name}, whose latent has the shape {wanted}.")
