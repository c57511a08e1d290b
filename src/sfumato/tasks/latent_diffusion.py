"""Latent diffusion in one run folder: an autoencoder, the latents of the data, a diffusion model of those.

RUN/recipe.yaml, manifest.json    of the whole model
RUN/autoencoder/                  its own run (none if the recipe names a trained one)
RUN/latents.npz, latent.json      the training data of the diffusion; their scale, and the reconstruction error
RUN/diffusion/                    its own run: everything that samples, guides or tunes a run works with it
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from sfumato import data, storage
from sfumato.condition import Cond, ConditionSpec
from sfumato.data import Scaling
from sfumato.data.options import ArrayData
from sfumato.data.source import Batch, DataSpec, Source
from sfumato.denoiser import Predictor
from sfumato.latent import diffusion
from sfumato.latent.autoencoder import Autoencoder, Measured, float_of
from sfumato.noise import seeded
from sfumato.options import Options, Training
from sfumato.schedule import Schedule
from sfumato.task import Recipe, Request, Sampler, Stage, recipe_class, register
from sfumato.tasks.autoencoder import MEASURED, AutoencoderModel, AutoencoderTask, encoded, measured, refuse_misfit, refuse_other
from sfumato.tasks.diffusion import Diffusion, DiffusionSampler, levels_of
from sfumato.tuning import TuningResult

if TYPE_CHECKING:
    from sfumato.model import Model


def _to_path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(str(value)).expanduser()


class LatentDiffusionModel(Options):
    """Which autoencoder, and how it decodes.

    `path` names a trained one (a run of kind autoencoder, the `autoencoder` folder of another run, a folder of diffusers) instead of the
    stage that trains one. `tile` decodes in tiles of this many positions of the latent.
    """

    kind: Literal["latent-diffusion"] = "latent-diffusion"
    path: Annotated[Path | None, BeforeValidator(_to_path)] = None
    tile: int | None = Field(default=None, ge=4)


@register("latent-diffusion")
class LatentDiffusion(Diffusion):
    """Both stages: the options of a diffusion are those of the second stage; those of the autoencoder are beside them."""

    has_levels: ClassVar[bool] = False  # its levels are those of its second stage
    model: LatentDiffusionModel = LatentDiffusionModel()
    autoencoder: AutoencoderModel = AutoencoderModel()
    autoencoder_training: Training = Training()
    features: Any = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _stages_agree(self) -> "LatentDiffusion":
        if self.autoencoder_training.held_out:
            raise ValueError("both stages hold out the same examples: set training.held_out, not autoencoder_training.held_out")
        return self

    def with_steps(self, steps: int) -> Any:
        """The same task with this many steps in all, divided between the stages in the same proportion.

        Raises:
            ValueError: fewer steps than stages.
        """
        trainings = self.trainings()
        if steps < len(trainings):
            raise ValueError(f"--steps is for both stages together, so it must be at least {len(trainings)}, got {steps}.")
        whole, second = sum(each.steps for each in trainings.values()), trainings["diffusion"]
        of_second = min(max(1, round(steps * second.steps / whole)), steps - len(trainings) + 1)
        update = {"training": second.model_copy(update={"steps": of_second})}
        if "autoencoder" in trainings:
            update["autoencoder_training"] = self.autoencoder_training.model_copy(update={"steps": steps - of_second})
        return self.model_copy(update=update)

    def trainings(self) -> dict[str, Training]:
        """The options of both stages; a given autoencoder is not trained."""
        assert isinstance(self, Recipe)
        return ({"autoencoder": self.autoencoder_training} if self.model.path is None else {}) | {"diffusion": self.training}

    def stages(self, out: Path) -> Sequence[Stage]:
        """The autoencoder, unless it is given, and the diffusion on the latents of the training examples and of flipped ones."""
        assert isinstance(self, Recipe)
        division = {name: getattr(self.training, name) for name in ("held_out", "held_out_by", "seed", "flip")}
        first = recipe_class(AutoencoderTask)(
            about=self.about,
            model=self.autoencoder,
            features=self.features,
            data=self.data,
            training=self.autoencoder_training.model_copy(update=division),
            runtime=self.runtime.model_copy(update={"precision": "float32"}),
        )
        second = recipe_class(Diffusion)(
            about=self.about,
            data=ArrayData(path=out / "latents.npz", scaling="all"),
            net=self.net,
            schedule=self.schedule,
            objective=self.objective,
            training=self.training.model_copy(update={"held_out": 0.0, "flip": False}),
            runtime=self.runtime,
            sampling=self.sampling,
        )
        diffusing = Stage("diffusion", second, self._latents)
        return [diffusing] if self.model.path is not None else [Stage("autoencoder", first, lambda source, *_: source), diffusing]

    def needs(self) -> Sequence[Path]:
        """The given autoencoder, if any."""
        return [] if self.model.path is None else [self.model.path]

    def examine(self, model: Any, spec: DataSpec, source: Source) -> None:
        """Refuses data that do not fit the autoencoder, or a spacing that does not fit the schedule; `model`: the models of `needs`."""
        levels_of(self.ended, self.sampling, self.sampling.steps)
        if others := sorted(set(spec.conditions) - {"labels"}):
            raise ValueError(f"latent diffusion supports labels, but no other conditions yet; remove {', '.join(others)}.")
        if self.model.path is None:
            self.autoencoder.build(spec)
        for first in model:
            if not isinstance(first.network, Autoencoder):
                inside = Path(first.name) / "autoencoder"
                hint = f"use the one inside it, {inside}" if inside.is_dir() else "name a run of kind autoencoder"
                raise ValueError(f"{first.name} is {first.sampler.kind}, not an autoencoder; {hint}, with model.path=….")
            refuse_other(spec, first.network, first.spec, first.name)

    def _latents(self, source: Source, earlier: "Sequence[Model]", out: Path, on_message: Callable[[str], None]) -> Source:
        """The latents of the training examples, from RUN/latents.npz, which is written if it does not exist."""
        assert isinstance(self, Recipe)
        path, first = out / "latents.npz", earlier[0]
        weights = storage.weights_fingerprint(first.network)
        if path.exists() and Measured.from_file(out / MEASURED).made_from not in ("", weights):
            raise ValueError(
                f"{path} were encoded with other weights of {first.name} than the present ones; restore those, or delete {path} and "
                f"{out / 'diffusion'} to make them again."
            )
        if not path.exists():
            model = first.network
            refuse_other(source.spec, model, first.spec, first.name)
            examples, _ = self.divided(source)
            if model.residual is None:  # of diffusers: its own scaling, our measured reconstruction error
                scaling = model.scaling
                model.residual = measured(model, examples).residual
                model.scaling = scaling
            values, labels = [], []
            for flipped in (False, True) if self.training.flip else (False,):
                for batch, z in encoded(model, examples, flipped=flipped):
                    values.append(z.cpu().numpy())
                    labels += [batch.cond["labels"].value.cpu().numpy()] if "labels" in batch.cond else []
            arrays: dict[str, Any] = {"arr_0": np.concatenate(values)} | ({"arr_1": np.concatenate(labels)} if labels else {})
            storage.write_text(out / MEASURED, Measured(model.scaling, model.residual, weights).to_json())
            with storage.writing(path), storage.aside(path) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)
            on_message(f"Encoded {len(arrays['arr_0'])} images to {path}, {' × '.join(map(str, arrays['arr_0'].shape[1:]))} each.")
        return data.npz(path, scaling="all", channels="first")

    def build(self, spec: DataSpec, earlier: "Sequence[Model]" = ()) -> Any:
        """Both networks as one."""
        first, second = earlier
        return Composite(first.network, second.network, second.spec, first.name)

    def trained(self, model: nn.Module) -> nn.Module:
        """Both networks; each is trained in its stage."""
        return model

    def restore(self, model: Any, folder: Path) -> None:
        """Loads the latent's scaling, measured when the latents were made."""
        found = Measured.from_file(folder / MEASURED)
        model.autoencoder.scaling, model.autoencoder.residual = found.scaling, found.residual

    def bits_per_dim(
        self, model: Any, spec: DataSpec, batch: Batch, *, generator: torch.Generator, times: torch.Generator
    ) -> dict[str, Tensor]:
        """The bound through both stages, in bits/dim of the images."""
        found = self.sampler(model, spec).bound(batch.x, batch.cond or None, generator=generator, times=times)
        return {"bound": found.total}

    def sampler(self, model: Any, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> Any:
        """Samples of the diffusion, decoded."""
        inner = super().sampler(model.denoiser, model.latents, None if folder is None else folder / "diffusion", name)
        return LatentSampler(inner, model.autoencoder, spec, self.model.tile, model.name, name)


class Composite(nn.Module):
    """An autoencoder and a denoiser of its latents; `latents` is the denoiser's training data."""

    def __init__(self, autoencoder: Autoencoder, denoiser: nn.Module, latents: DataSpec, name: str) -> None:
        """Combines the two; `name` is the autoencoder's name."""
        super().__init__()
        self.autoencoder, self.denoiser, self.latents, self.name = autoencoder, denoiser, latents, name


@dataclass(frozen=True)
class LatentSampler(Sampler):
    """Draws latents with the diffusion's own sampler, and decodes them."""

    inner: DiffusionSampler
    autoencoder: Autoencoder
    spec: DataSpec
    tile: int | None
    autoencoder_name: str
    name: str = "this model"
    kind = "latent diffusion"
    takes = DiffusionSampler.takes

    @property
    def predicts_data(self) -> bool:
        """No: it denoises latents."""
        return False

    @property
    def predictor(self) -> Predictor:
        """The denoiser of latents."""
        return self.inner.predictor

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the latents."""
        return self.inner.schedule

    def evaluations(self, options: Mapping[str, Any]) -> int:
        """The denoiser's."""
        return self.inner.evaluations(options)

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """As the diffusion's."""
        return self.inner.settings(options)

    def default(self, name: str, spec: ConditionSpec, options: Mapping[str, Any]) -> Any:
        """As the diffusion's."""
        return self.inner.default(name, spec, options)

    def needs(self, name: str) -> bool:
        """As the diffusion's."""
        return self.inner.needs(name)

    def check(self, options: Mapping[str, Any], cond: Cond) -> None:
        """As the diffusion's."""
        self.inner.check(options, cond)

    def __call__(self, request: Request) -> Tensor:
        """Images in [-1, 1]; `on_step` gets latents."""
        return self.decode(self._values(self.inner(request)))

    def film(self, request: Request) -> list[Tensor]:
        """The reverse process of the latents, decoded at every step."""
        return [self.decode(self._values(frame)) for frame in self.inner.film(request)[1:]]

    def forward_film(self, x: Tensor, frames: int, seed: int) -> list[Tensor]:
        """Refuses: the noise is on latents."""
        raise ValueError(f"--forward adds noise to pixels, but {self.name} adds noise to latents; remove --forward.")

    def tune(self, steps: int, cond: Cond, *, guidance: float | None = None, rows: int = 96, seed: int = 0) -> TuningResult:
        """As the diffusion's."""
        return self.inner.tune(steps, cond, guidance=guidance, rows=rows, seed=seed)

    def save_tuned(self, folder: Path, steps: int, guidance: float | None, tuned: TuningResult) -> Path:
        """Saves them in the diffusion's folder."""
        return self.inner.save_tuned(folder / "diffusion", steps, guidance, tuned)

    @torch.no_grad()
    def reconstruct(self, values: np.ndarray) -> np.ndarray:
        """Reconstructs images with the autoencoder."""
        x = self.spec.codec.encode(values).to(next(self.autoencoder.parameters()).device)
        return self.spec.codec.decode(self.decode(self.autoencoder.encode(x)))

    def _values(self, x: Tensor) -> Tensor:
        """Latents at the autoencoder's unit scale, from latents as the diffusion takes them (it has its own scaling)."""
        return torch.from_numpy(self.inner.spec.codec.decode(x)).to(x)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Images in [-1, 1] of latents at the autoencoder's unit scale.

        Raises:
            ValueError: latents of another shape.
        """
        refuse_misfit(z, self.autoencoder, self.autoencoder_name, self.spec.sizes)
        return self.autoencoder.decode(z, self.spec.sizes[1:], tile=self.tile).clamp(-1, 1)

    def bound(
        self,
        x: Float[Tensor, "b c h w"],
        cond: Cond | None = None,
        *,
        draws: int = 8,
        values: int = 256,
        seed: int = 0,
        generator: torch.Generator | None = None,
        times: torch.Generator | None = None,
    ) -> diffusion.LatentBound:
        """The bound on -log2 p(x) through both stages, in bits/dim of the images; x on a grid of this many values in [-1, 1].

        Without `generator` and `times`, noise and times are drawn by generators of `seed`.
        """
        unit, model = self.inner.spec.codec, self.autoencoder
        assert isinstance(unit, Scaling)
        assert model.residual is not None
        shift, scale = float_of(model.scaling.shift), float_of(model.scaling.scale)
        seen = Scaling(shift=shift + scale * float_of(unit.shift), scale=scale * float_of(unit.scale), dtype="float32")
        return diffusion.bound(
            Autoencoder(model.encoder, model.decoder, seen),
            self.inner.predictor,
            self.inner.schedule,
            x,
            cond,
            residual=model.residual,
            draws=draws,
            bin_width=2 / (values - 1),
            generator=seeded(seed, 0) if generator is None else generator,
            times=seeded(seed, 1) if times is None else times,
        )
