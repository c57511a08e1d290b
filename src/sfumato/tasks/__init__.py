"""The kinds of model that a recipe can ask for (`model.kind`; a plain denoiser where it says none), and what each needs: in one place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sfumato.convert.diffusers import is_pipeline, load_diffusers
from sfumato.model import Run, folder_of
from sfumato.model import load as load_run
from sfumato.tasks import autoencoder, latent_diffusion, vae, vdm
from sfumato.training import loop
from sfumato import recipe as recipes
from sfumato.tasks.autoencoder import AutoencoderRecipe
from sfumato.tasks.latent_diffusion import LatentDiffusionRecipe, LatentRun
from sfumato.recipe import Recipe, Training, model_kind, read_tree
from sfumato.tasks.vae import VAERecipe, VAERun
from sfumato.tasks.vdm import VDMRecipe

AnyRecipe = Recipe | VAERecipe | VDMRecipe | AutoencoderRecipe | LatentDiffusionRecipe
AnyRun = Run | VAERun | LatentRun


@dataclass(frozen=True)
class Kind:
    """How a kind of model is read from a recipe, trained, and loaded; one without `load` cannot be sampled."""

    read: Callable[..., Any]
    train: Callable[..., Path]
    load: Callable[..., Any] | None


DENOISER = Kind(recipes.load_recipe, loop.train, load_run)
KINDS = {
    "denoiser": DENOISER,
    "vae": Kind(vae.read, vae.train, vae.load),
    "ladder": Kind(vae.read, vae.train, vae.load),
    "vdm": Kind(vdm.read, vdm.train, vdm.load),
    "autoencoder": Kind(autoencoder.read, autoencoder.train, None),
    "latent-diffusion": Kind(latent_diffusion.read, latent_diffusion.train, latent_diffusion.load),
}


def kind_of(source: str | Path) -> Kind:
    """What the recipe of this name, or in this file, asks for.

    Raises:
        ValueError: no recipe, or an unknown kind.
    """
    name = model_kind(read_tree(source))
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the kinds are {', '.join(KINDS)}."
        raise ValueError(f'{source}: there is no model.kind "{name}"; {hint}')
    return KINDS[name]


def load_recipe(source: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> AnyRecipe:
    """Reads a recipe of any kind, by name or from a YAML file, with `path=value` changes.

    Raises:
        ValueError: as `train.recipe.load_recipe`.
    """
    return kind_of(source).read(source, changes, steps=steps)


def train_of(recipe: AnyRecipe) -> Callable[..., Path]:
    """The function that trains a recipe; its arguments are those of `loop.train`."""
    return DENOISER.train if type(recipe) is Recipe else KINDS[recipe.model.kind].train  # pyright: ignore[reportAttributeAccessIssue]


def stages_of(recipe: AnyRecipe) -> dict[str, Training]:
    """The trainings that one recipe makes, in order."""
    return recipe.stages if isinstance(recipe, LatentDiffusionRecipe) else {"training": recipe.training}


def steps_of(recipe: AnyRecipe) -> int:
    """How many steps training makes, in all its stages."""
    return sum(stage.steps for stage in stages_of(recipe).values())


def model_of(recipe: AnyRecipe) -> str:
    """What is trained, in a word: the network of a plain denoiser, else the kind."""
    return recipe.net.kind if type(recipe) is Recipe else recipe.model.kind  # pyright: ignore[reportAttributeAccessIssue]


def load(model: str | Path, *, ema: float | None = None) -> AnyRun:
    """Loads a run folder of any kind, or `zoo:NAME`, with the averaged weights of its newest checkpoint; or a pipeline of diffusers.

    Args:
        model: a run folder or `zoo:NAME`, or a folder that diffusers saved a DDPM pipeline to.
        ema: which average, by its width; the recipe's first where not given.

    Raises:
        ValueError: there is no such model or average, or it is an autoencoder, which makes no samples.
        CheckpointError: no checkpoint yet, or none that is whole.
    """
    if is_pipeline(model):
        if ema is not None:
            raise ValueError(f"{model} is a pipeline of diffusers, which has one set of weights; leave --ema out.")
        return load_diffusers(model)
    kind = kind_of(folder_of(model) / "recipe.yaml")
    if kind.load is None:
        raise ValueError(f"{model} is an autoencoder alone, which makes no samples; train a diffusion of its latents: model.path={model}.")
    return kind.load(model, ema=ema)
