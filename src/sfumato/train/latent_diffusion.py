"""Latent diffusion in one run folder: an autoencoder, the latents of the data, a diffusion model of those.

RUN/recipe.yaml, manifest.json    of the whole
RUN/autoencoder/                  a run of its own (none where the recipe names a ready one)
RUN/latents.npz, latent.json      the data as the diffusion sees them; their scale, and how far decoded images are off
RUN/diffusion/                    a run of its own: whatever samples, guides or tunes a run does so with this one
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from sfumato import guide
from sfumato.data import Scaling
from sfumato.form import Form
from sfumato.latent import diffusion
from sfumato.latent.autoencoder import Autoencoder, Features, Measured, float_of
from sfumato.noise import seeded
from sfumato.pictures import gif, sheet
from sfumato.run import Labels, Run, Samples, folder_of, read_form
from sfumato.run import load as load_run
from sfumato.sample import Step
from sfumato.train import autoencoder, loop
from sfumato.train.autoencoder import MEASURED, AutoencoderModel, AutoencoderRecipe, AutoencoderRun, encoded, measured
from sfumato.train.checkpoint import aside, write_text, writing
from sfumato.train.data_options import ArrayData
from sfumato.train.folder import only_writer, write_sheet
from sfumato.train.opening import Opening, opening
from sfumato.train.options import Options
from sfumato.train.recipe import Recipe, Training, read_tree, resolve


def _to_path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(str(value)).expanduser()


class LatentDiffusionModel(Options):
    """Which autoencoder, and how it decodes.

    `path` names a ready one (a run of kind autoencoder, the `autoencoder` folder of another run, a folder of diffusers) in the place of the
    stage that trains one. `tile` decodes in tiles of so many positions of the latent.
    """

    kind: Literal["latent-diffusion"] = "latent-diffusion"
    path: Annotated[Path | None, BeforeValidator(_to_path)] = None
    tile: int | None = Field(default=None, ge=4)


class LatentDiffusionRecipe(Recipe):
    """Everything that makes both stages: the options of a recipe are those of the diffusion, and those of the data's division."""

    model: LatentDiffusionModel = LatentDiffusionModel()
    autoencoder: AutoencoderModel = AutoencoderModel()
    autoencoder_training: Training = Training()

    @model_validator(mode="after")
    def _stages_agree(self) -> "LatentDiffusionRecipe":
        if self.autoencoder_training.held_out:
            raise ValueError("both stages leave out the same examples: set training.held_out, not autoencoder_training.held_out")
        return self

    def first(self) -> AutoencoderRecipe:
        """The recipe of the autoencoder, which divides the data as the whole run does."""
        division = {"held_out": self.training.held_out, "seed": self.training.seed, "flip": self.training.flip}
        training = self.autoencoder_training.model_copy(update=division)
        runtime = self.runtime.model_copy(update={"precision": "float32"})
        return AutoencoderRecipe(about=self.about, model=self.autoencoder, data=self.data, training=training, runtime=runtime)

    def second(self, latents: Path) -> Recipe:
        """The recipe of the diffusion on a file of latents, from which nothing more is held out and which is flipped already."""
        return Recipe(
            about=self.about,
            data=ArrayData(path=latents, scaling="all"),
            net=self.net,
            schedule=self.schedule,
            objective=self.objective,
            training=self.training.model_copy(update={"held_out": 0.0, "flip": False}),
            runtime=self.runtime,
            sampling=self.sampling,
        )

    @property
    def stages(self) -> dict[str, Training]:
        """What is trained, in order; the autoencoder is not where it is given."""
        return ({"autoencoder": self.autoencoder_training} if self.model.path is None else {}) | {"diffusion": self.training}

    def in_steps(self, steps: int) -> "LatentDiffusionRecipe":
        """The same with so many steps in all, divided between the stages as its own are.

        Raises:
            ValueError: fewer steps than stages.
        """
        if steps < len(self.stages):
            raise ValueError(f"--steps is for both stages together, so it must be at least {len(self.stages)}, got {steps}.")
        whole = sum(stage.steps for stage in self.stages.values())
        second = min(max(1, round(steps * self.training.steps / whole)), steps - len(self.stages) + 1)
        first = steps - second if self.model.path is None else self.autoencoder_training.steps
        return self.model_copy(
            update={
                "training": self.training.model_copy(update={"steps": second}),
                "autoencoder_training": self.autoencoder_training.model_copy(update={"steps": first}),
            }
        )


def read(path: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> LatentDiffusionRecipe:
    """Reads a recipe, as `train.recipe.load_recipe` does; `steps` are those of both stages together."""
    recipe = resolve(LatentDiffusionRecipe, read_tree(path), changes, source=str(path))
    return recipe if steps is None else recipe.in_steps(steps)


@dataclass(frozen=True)
class LatentRun:
    """A trained latent diffusion: `inner` is the diffusion's own run, whose samples are latents; here they are images."""

    name: str
    recipe: LatentDiffusionRecipe
    form: Form
    autoencoder: AutoencoderRun
    inner: Run
    residual: float

    @property
    def device(self) -> torch.device:
        """Where both networks live."""
        return self.inner.device

    @property
    def networks(self) -> list[nn.Module]:
        """All that it computes with."""
        return [*self.inner.networks, self.autoencoder.model]

    @property
    def has_picture(self) -> bool:
        """Always: it makes images."""
        return True

    def columns(self, labels: Labels | None = None, count: int = 64) -> int | None:
        """As `Run.columns`."""
        return self.inner.columns(labels, count)

    def sample(
        self,
        count: int = 64,
        *,
        steps: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        guidance: float | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
        batch: int = 64,
        rows: slice = slice(None),
        on_batch: Callable[[int], None] | None = None,
    ) -> Samples:
        """`count` samples of the diffusion, decoded; the arguments are those of `Run.sample`."""
        latents = self.inner.sample(
            count,
            steps=steps,
            labels=labels,
            seed=seed,
            guidance=guidance,
            sampler=sampler,
            classifier=classifier,
            batch=batch,
            rows=rows,
            on_batch=on_batch,
        )
        parts = range(0, max(1, len(latents.values)), batch)
        images = [self.decode(torch.from_numpy(latents.values[first : first + batch])) for first in parts]
        return Samples(np.concatenate(images), latents.labels)

    def reverse_gif(
        self,
        path: str | Path,
        count: int = 64,
        *,
        steps: int | None = None,
        labels: Labels | None = None,
        seed: int = 0,
        guidance: float | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
    ) -> None:
        """Writes a GIF of the reverse process, every moment of it decoded; the arguments are those of `Run.reverse_gif`."""
        walk = self.inner.walk(steps=steps, guidance=guidance, sampler=sampler, classifier=classifier)
        wanted, frames = self.inner.labels(range(count), labels, classifier=classifier), []

        def keep(i: int, x: Tensor) -> None:
            level = walk.levels[i + 1]
            frames.append(self.decode(torch.from_numpy(self.inner.form.scaling.decode(x / torch.hypot(level.alpha, level.sigma)))))

        walk(range(count), seed, wanted, keep)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        gif([sheet(values, columns=self.columns(labels, count)) for values in frames], Path(path))

    def to(self, device: torch.device) -> None:
        """Moves both networks."""
        self.autoencoder.model.to(device)
        self.inner.to(device)

    def decode(self, z: Float[Tensor, "n c h w"]) -> np.ndarray:
        """uint8 images of latents at the autoencoder's unit scale.

        Raises:
            ValueError: latents of another shape.
        """
        model = self.autoencoder.model
        autoencoder.refuse_misfit(z, model, self.autoencoder.name, self.form.shape)
        with torch.no_grad():
            x0 = model.decode(z.to(self.device), self.form.shape[1:], tile=self.recipe.model.tile)
        return self.form.scaling.decode(x0.clamp(-1, 1))

    def bound(
        self, x0: Float[Tensor, "b c h w"], labels: Tensor | None = None, *, draws: int = 8, values: int = 256, seed: int = 0
    ) -> diffusion.LatentBound:
        """The bound on -log2 p(x) through both stages, in bits/dim of the images; x0 on a grid of so many values in [-1, 1]."""
        unit, model = self.inner.form.scaling, self.autoencoder.model  # a run measures its data once more: about 0 and 1
        shift, scale = float_of(model.scaling.shift), float_of(model.scaling.scale)
        seen = Scaling(shift=shift + scale * float_of(unit.shift), scale=scale * float_of(unit.scale), dtype="float32")
        return diffusion.bound(
            Autoencoder(model.encoder, model.decoder, seen),
            self.inner.predictor,
            self.inner.schedule,
            x0,
            None if labels is None else {"labels": labels},
            residual=self.residual,
            draws=draws,
            width=2 / (values - 1),
            generator=seeded(seed, 0),
            times=seeded(seed, 1),
        )


def load(model: str | Path, *, ema: float | None = None) -> LatentRun:
    """Loads a run folder of this kind: the autoencoder, and the diffusion with the averaged weights of its newest whole checkpoint.

    Raises:
        ValueError: there is no such model.
        CheckpointError: a stage without a checkpoint, or a damaged one.
    """
    folder = folder_of(model)
    recipe, form = read(folder / "recipe.yaml"), read_form(folder)
    first = autoencoder.load(recipe.model.path or folder / "autoencoder")
    found = Measured.from_file(folder / MEASURED)
    first.model.scaling = found.scaling
    return LatentRun(str(model), recipe, form, first, load_run(folder / "diffusion", ema=ema), found.residual)


def train(
    recipe: LatentDiffusionRecipe,
    out: Path,
    *,
    resume: bool = False,
    features: Features | None = None,
    on_step: Callable[[int, float], None] | None = None,
    watch: Callable[[Mapping[str, float | int]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains both stages into the run folder `out` and returns it; stopped in either, it goes on there.

    The arguments are those of `loop.train`, and `features` for the autoencoder's loss; `on_step` counts through both stages.

    Raises:
        ValueError: an autoencoder for other data, and what `loop.train` refuses.
        CheckpointError, FloatingPointError, Stopped: as `loop.train` raises them.
    """
    said: set[str] = set()

    def say_once(text: str) -> None:  # the stages open the same data on the same machine
        if text not in said:
            said.add(text)
            say(text)

    start = opening(recipe, out, resume=resume, read=read, say=say_once)
    if recipe.model.path is not None:
        autoencoder.load(recipe.model.path).refuse_other(start.form)  # before anything is written
    else:
        recipe.first().model.build(start.form)
    if start.engine.is_main:
        with only_writer(out):
            for name, text in start.papers.items():
                write_text(out / name, text)
    start.engine.wait()
    if recipe.model.path is None:
        autoencoder.train(
            recipe.first(),
            out / "autoencoder",
            resume=True,
            features=features,
            on_step=on_step,
            watch=watch,
            say=say_once,
            should_stop=should_stop,
        )
    first, done = autoencoder.load(recipe.model.path or out / "autoencoder"), 0 if recipe.model.path else recipe.autoencoder_training.steps
    if start.engine.is_main and not (out / "latents.npz").exists():
        _encode(first, start, out, flips=recipe.training.flip, say=say)
    start.engine.wait()
    loop.train(
        recipe.second(out / "latents.npz"),
        out / "diffusion",
        resume=True,
        on_step=None if on_step is None else lambda step, loss: on_step(done + step, loss),
        watch=watch,
        say=say_once,
        should_stop=should_stop,
    )
    if start.engine.is_main:
        loop.draw_or_warn(lambda path: _draw(load(out), path), out / "samples" / f"{recipe.training.steps:08d}.png")
    return out


def _draw(run: LatentRun, path: Path) -> None:
    """The sheet of samples."""
    columns = run.columns()
    write_sheet(path, run.sample(8 * columns if columns else 64).values, columns=columns)


def _encode(first: AutoencoderRun, start: Opening, out: Path, *, flips: bool, say: Callable[[str], None]) -> None:
    """Writes the latents of all examples (and of their mirror images), then what is known of them."""
    model = first.model.to(start.engine.device)
    if first.residual is None:  # of diffusers: its own scaling, our measure of its images
        scaling = model.scaling
        residual = measured(model, start.examples).residual
        model.scaling = scaling
    else:
        residual = first.residual
    latents = [
        z.cpu().numpy() for flipped in ((False, True) if flips else (False,)) for _, z in encoded(model, start.examples, flipped=flipped)
    ]
    values = np.concatenate(latents)
    labels = None if start.examples.labels is None else np.concatenate([start.examples.labels] * (2 if flips else 1))
    write_text(out / MEASURED, Measured(model.scaling, residual).to_json())
    with writing(out / "latents.npz"), aside(out / "latents.npz") as partial, partial.open("wb") as file:
        if labels is None:
            np.savez(file, arr_0=values)
        else:
            np.savez(file, arr_0=values, arr_1=labels)
    say(f"Encoded {len(values)} images to {out / 'latents.npz'}, {values.shape[1]} × {values.shape[2]} × {values.shape[3]} each.")
