"""The classifier of a run, which guides its sampler: recipe, training, loading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.classifier import Classifier
from sfumato.model import Model
from sfumato.recipe import read_tree, resolve
from sfumato.storage import folder_of, load_average, read_manifest, read_spec
from sfumato.training import Callbacks, train


def recipe_for(model: Model, changes: Sequence[str] = (), *, steps: int | None = None) -> Any:
    """The recipe of a run's classifier, with `path=value` changes: the run's data, split, flips and schedule, and its own network.

    Raises:
        ValueError: a run without classes, or without its own schedule, or a change that does not fit.
    """
    if not model.spec.classes:
        raise ValueError(f"{model.name} has no classes, so there is nothing to classify; use a model of labelled data.")
    shared = model.recipe.model_dump(mode="json", include={"data", "schedule", "runtime"})
    if "schedule" not in shared or model.recipe.stages(Path()):
        raise ValueError(f"{model.name} is {model.sampler.kind}; a classifier can only be trained for a plain denoiser. Name such a run.")
    sizes = model.spec.sizes
    patch = max(1, min(sizes[1:], default=1) // 14)
    net = {"kind": "patch-classifier", "patch": patch} if model.spec.is_image else {"kind": "mlp"}
    theirs = model.recipe.training
    training = {
        "steps": 1000,
        "rate": 1e-3,
        "weight_decay": 0.05,
        "label_drop": 0.0,
        "checkpoint_every": 500,
        "log_every": 100,
        **{name: getattr(theirs, name) for name in ("batch", "flip", "held_out", "held_out_by", "seed")},
    }
    tree = {**shared, "model": "classifier", "net": net, "training": training}
    return resolve(tree, changes, steps=steps, source=model.name)


def train_classifier(
    model: Model, recipe: Any, out: str | Path, *, callbacks: Sequence[Callbacks] | Callbacks = (), resume: bool = False
) -> Classifier:
    """Trains the classifier of a run into the folder `out`, and returns it with its averaged weights; the arguments are those of `train`.

    metrics.jsonl also has its accuracy on held-out examples (on training ones if none are held out) at some noise levels.

    Raises:
        ValueError: data other than the run's, and the errors of `train`.
        CheckpointError, FloatingPointError, Stopped: as `train`.
    """
    source = recipe.data.load()
    begun, now = read_manifest(folder_of(model.name)).get("data", {}).get("fingerprint"), source.fingerprint()
    if begun != now:
        raise ValueError(
            f"{model.name} was trained on other data ({begun} → {now}); restore them, or give their path with --set data.path=…."
        )
    network = train(recipe, source.scaled_like(model.spec), out, callbacks=callbacks, resume=resume).network
    assert isinstance(network, Classifier)
    return network


def load_classifier(folder: str | Path) -> Classifier:
    """The classifier of a run (RUN or RUN/classifier), with EMA weights from its newest valid checkpoint.

    Raises:
        ValueError: there is none.
        CheckpointError: there is no checkpoint, or no valid one.
    """
    place = Path(folder)
    home = folder_of(folder) / "classifier" if str(folder).startswith("zoo:") else place / "classifier"
    found = next((each for each in (home, place) if _is_classifier(each)), None)
    if found is None:
        raise ValueError(f"{folder} holds no classifier; train one with sfumato train-classifier {folder}, or name its own folder.")
    recipe, manifest = resolve(read_tree(found / "recipe.yaml"), source=str(found), kind="classifier"), read_manifest(found)
    network = recipe.build(read_spec(found))
    if "prior" in manifest:  # the format of version 0.1
        network.log_prior.copy_(torch.tensor(manifest["prior"]).log())
    load_average(network.net, found, recipe.training.ema, None)
    return network.eval().requires_grad_(False)


def _is_classifier(folder: Path) -> bool:
    """Whether a folder holds the run of a classifier."""
    path = folder / "recipe.yaml"
    return path.is_file() and (read_tree(path).get("model") == "classifier" or "prior" in read_manifest(folder))
