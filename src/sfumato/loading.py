"""Loading trained models: run folders, `zoo:NAME`, folders of diffusers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.convert.diffusers import is_pipeline, load_diffusers
from sfumato.convert.first_stage import is_autoencoder, load_autoencoder
from sfumato.model import Model
from sfumato.nets.options import OwnNet
from sfumato.recipe import load_recipe
from sfumato.storage import folder_of, load_average, read_manifest, read_spec, weights_fingerprint
from sfumato.task import Task


def load(
    model: str | Path, *, ema: float | None = None, module: nn.Module | Task | None = None, device: torch.device | str | None = None
) -> Model:
    """Loads a run folder of any kind, or `zoo:NAME`, with EMA weights from its newest valid checkpoint; or a folder of diffusers.

    A damaged checkpoint is skipped in favour of the one before it, with a warning in the log.

    Args:
        model: a run folder, `zoo:NAME`, or a folder with a DDPM pipeline or an `AutoencoderKL` of diffusers.
        ema: width of the average; by default the first of the recipe.
        module: the network, for a run trained with a module of your own; or its task.
        device: to move it to.

    Raises:
        ValueError: there is no such model or average; `module` is missing or does not fit; a stage that was trained again after a
        later stage was made from it.
        CheckpointError: there is no valid checkpoint.
    """
    if is_pipeline(model) or is_autoencoder(model):
        if ema is not None:
            raise ValueError(f"{model} is a diffusers model, which has only one set of weights; remove --ema.")
        loaded = load_diffusers(model) if is_pipeline(model) else load_autoencoder(model)
        return loaded if device is None else loaded.to(device)
    folder = folder_of(model)
    recipe, spec = _with_own(load_recipe(folder / "recipe.yaml"), module, folder), read_spec(folder)
    stages = recipe.stages(folder)
    if stages:
        earlier = [load(path) for path in recipe.needs()]
        for stage in stages:
            earlier.append(load(folder / stage.name, ema=ema if stage is stages[-1] else None))
            _refuse_stale(folder / stage.name, earlier[:-1], folder)
        network = recipe.build(spec, earlier)
    else:
        network = recipe.build(spec)
        load_average(recipe.trained(network), folder, recipe.training.ema, ema)
    recipe.restore(network, folder)
    network.eval().requires_grad_(False)
    loaded = Model(str(model), recipe, spec, network, folder)
    return loaded if device is None else loaded.to(device)


def _with_own(recipe: Any, module: nn.Module | Task | None, folder: Path) -> Any:
    """The recipe with the user's own parts, which a file cannot hold.

    Raises:
        ValueError: parts that are missing.
    """
    if isinstance(module, Task):
        own = {name: value for name in type(module).model_fields if (value := getattr(module, name)) != getattr(recipe, name, value)}
        recipe = recipe.model_copy(update=own)
    elif module is not None:
        recipe = recipe.model_copy(update={"net": OwnNet(module=module)})
    missing = [name for name in type(recipe).model_fields if getattr(getattr(recipe, name), "is_missing", False)]
    if missing:
        what, how = {"net": ("network", "module=NETWORK")}.get(missing[0], (missing[0], "module=TASK"))
        raise ValueError(
            f"{folder} was trained with your own {what}, which a file cannot hold: load it in Python, with sf.load({str(folder)!r}, {how})."
        )
    return recipe


def _refuse_stale(stage: Path, earlier: Sequence[Model], folder: Path) -> None:
    """Refuses a stage that was made from weights of an earlier stage that have changed since.

    Raises:
        ValueError: an earlier stage was trained again.
    """
    now = {model.name: weights_fingerprint(model.network) for model in earlier}
    for name, weights in read_manifest(stage).get("made_from", {}).items():
        there = now.get(str(folder / name), now.get(name))
        if there != weights:
            raise ValueError(
                f"{stage} was made from other weights of {name} than the present ones ({weights[:12]} → {str(there)[:12]}); restore those, "
                f"or delete {stage} and train with --resume to make it again."
            )
