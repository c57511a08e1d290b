"""The data that samples are held against: opening them, their features (kept in the cache), and what a model was trained on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from sfumato import data
from sfumato.data.cache import kept_array
from sfumato.data.dataset import Dataset
from sfumato.data.images import Canvas
from sfumato.data.options import DATA_KINDS, FolderData, data_union
from sfumato.data.source import DataSpec, Source
from sfumato.data.wrapped import as_source
from sfumato.evaluation.subject import PART, Given, fitted, given_samples, parts_in, plain, rows_of
from sfumato.metrics.features import Features, Own, Pixels
from sfumato.model import Model
from sfumato.options import unknown
from sfumato.runtime import cache_folder

OWN_SPLITS = ("held-out", "training")  # what DATA may name of the run that is evaluated


@dataclass(frozen=True)
class Reference:
    """Data to hold samples against.

    Args:
        source: the rows.
        split: which part of the data they are: "all", "held-out" or "training" of the run.
    """

    source: Source
    split: str = "all"

    @property
    def spec(self) -> DataSpec:
        """What they are."""
        return self.source.spec

    def __len__(self) -> int:
        """How many rows."""
        return len(self.source)

    def manifest(self) -> dict[str, Any]:
        """Name, fingerprint, split, count, scaling."""
        spec = self.source.spec
        return {
            "name": self.source.name,
            "fingerprint": self.source.fingerprint(),
            "split": self.split,
            "count": len(self.source),
            "shape": list(spec.shape),
            "scaling": dict(spec.codec.to_json()),
        }

    def features(self, features: Features, engine: Any, on_part: Callable[[int, int], None]) -> np.ndarray:
        """Features of all rows [n, d], from the cache where an earlier evaluation has left them; the work is shared by the processes.

        Args:
            features: which.
            engine: the processes.
            on_part: called with the parts done and all of them, of this process.
        """
        key = ["features", self.source.fingerprint(), self.source.spec.codec.to_json(), features.name, features.sha256, features.resize]

        def compute() -> np.ndarray:
            mine = range(parts_in(len(self)))[engine.share(parts_in(len(self)))]
            found = []
            for done, part in enumerate(mine, start=1):
                rows = rows_of(part, len(self))
                x = self.source.batch(np.arange(rows.start, rows.stop)).x
                found.append(np.asarray(features(x.numpy()), dtype=np.float32))
                on_part(done, len(mine))
            return np.concatenate([rows for each in engine.all_of(found) for rows in each])  # a process may have no part of few

        folder = None if isinstance(features, Pixels | Own) else cache_folder()  # a function of the user's own may change unseen
        return kept_array(compute, folder, "features", key, any_of=engine.any, writes=engine.is_main)


def open_reference(given: Any, model: Model | None) -> Reference:
    """The data that are asked for.

    Args:
        given: a data set's name (`digits`, `fashion`, `swiss-roll`), its options (`{kind: fashion, train: false}`), a path, "held-out" or
            "training" of the model's run; or a source, arrays, a pair of arrays and labels.
        model: that is evaluated, where it is one.

    Raises:
        ValueError: there are no such data.
    """
    if isinstance(given, Reference):
        return given
    if not isinstance(given, str | Path):
        source = _plain(given) if _is_arrays(given) else as_source(given)
        if not isinstance(source, Source):
            raise ValueError(f"{source.name} is a stream, which cannot be held against samples; give a Source.")
        return Reference(source if model is None else source.scaled_like(model.spec))
    text = str(given)
    if text in OWN_SPLITS:
        return own_split(text, model)
    source = _named(text, model)
    return Reference(source if model is None else source.scaled_like(model.spec))


def own_split(split: str, model: Model | None) -> Reference:
    """The held-out or the training rows of a model's run.

    Raises:
        ValueError: no model, data that cannot be opened, or nothing held out.
    """
    if model is None:
        raise ValueError(f'"{split}" names rows of the run that is evaluated, but samples have none; give --data a data set.')
    source = model.recipe.data.load()
    training, held_out = model.recipe.divided(source.scaled_like(model.spec))
    chosen = held_out if split == "held-out" else training
    if chosen is None:
        raise ValueError(f"{model.name} was trained with nothing held out (training.held_out=0); give --data a data set of its own.")
    return Reference(chosen.scaled_like(model.spec), split)


def _is_arrays(given: Any) -> bool:
    return isinstance(given, np.ndarray) or hasattr(given, "detach") or isinstance(given, tuple)


def _plain(given: Any) -> Dataset:
    return plain(*given) if isinstance(given, tuple) else plain(given)


def _named(text: str, model: Model | None) -> Source:
    """A data set by its name, its options or its path."""
    kinds = {str(options.model_fields["kind"].default): options for options in DATA_KINDS}
    if text.lstrip().startswith("{"):
        return _from_options(text)
    if text in data.TOYS:
        return data.toy(text, 50_000, 1)
    if text in kinds and not any(field.is_required() for field in kinds[text].model_fields.values()):
        return kinds[text]().load()  # pyright: ignore[reportAttributeAccessIssue] - every kind of data loads
    path = Path(text).expanduser()
    if not path.exists():
        names = [*data.TOYS, *(name for name, options in kinds.items() if not any(f.is_required() for f in options.model_fields.values()))]
        raise ValueError(unknown(text, names, "data set") + " DATA may also be a path, or held-out of the run.")
    if path.suffix.lower() in (".parquet", ".arrow"):
        return data.from_datasets(path, cache=cache_folder())
    if path.is_dir() and any(path.glob("*-ubyte*")):
        return data.fashion(path)
    options = getattr(model.recipe, "data", None) if model is not None else None
    if isinstance(options, FolderData) and (path.is_dir() or path.suffix.lower() == ".zip"):
        return options.model_copy(update={"path": path}).load()  # as the run read its images
    return given_samples(path)


def _from_options(text: str) -> Source:
    try:
        tree = yaml.safe_load(text)
        return TypeAdapter(data_union()).validate_python(tree).load()
    except yaml.YAMLError:
        raise ValueError(f"the options of the data are no YAML: {text}; write {{kind: fashion, train: false}}, say.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "kind"
        raise ValueError(f"the options of the data do not fit at {where} ({first['msg'].lower().rstrip('.')}); got {text}.") from None


def training_rows(model: Model | None, reference: Reference) -> tuple[Source, Source | None, str]:
    """What memorisation is looked for in: rows that were trained on, rows held out where there are any, and in words what they are."""
    if model is None:
        return reference.source, None, "the data"
    try:
        source = model.recipe.data.load()
        training, held_out = model.recipe.divided(source.scaled_like(model.spec))
    except ValueError as error:
        reason = str(error).rstrip(".")
        return reference.source, None, f"the data, as those of the run cannot be opened ({reason})"
    training = training.scaled_like(model.spec)
    return training, None if held_out is None else held_out.scaled_like(model.spec), "the run's training rows"


def alike(subject: Given, reference: Reference, resize: bool) -> tuple[Reference, str]:
    """Gives samples the data's scaling; brings the data to the samples' size where that is allowed.

    Raises:
        ValueError: another kind, size or number of channels.
    """
    note = ""
    if subject.shape != reference.spec.shape:
        reference, note = fitted_reference(subject.shape, reference, resize)
    mine, theirs = subject.source.spec, reference.spec
    if mine.codec.dtype != theirs.codec.dtype and "uint" in mine.codec.dtype + theirs.codec.dtype:
        raise ValueError(
            f"samples are {mine.codec.dtype} and data {theirs.codec.dtype}: their values have other ranges; save both in one type "
            "(uint8 for images)."
        )
    subject.codec = theirs.codec
    return reference, note


def fitted_reference(shape: tuple[int | None, ...], reference: Reference, resize: bool) -> tuple[Reference, str]:
    """The data at the samples' size and channels."""
    theirs, source = reference.spec.shape, reference.source
    if len(shape) != 3 or len(theirs) != 3 or not (isinstance(source, Dataset) and source.is_bytes):
        raise ValueError(f"samples are of shape {list(shape)} and data of shape {list(theirs)}; they must be alike.")
    channels, height, width = (int(size or 0) for size in shape)
    said = {1: "grey", 3: "RGB", 4: "RGBA"}
    how = (
        f"the data, {theirs[1]}×{theirs[2]} {said.get(theirs[0] or 0)}, brought to the samples' {height}×{width} {said.get(channels)} by "
        "Pillow's antialiased bicubic, the centre cut out"
    )
    if not resize:
        raise ValueError(
            f"samples are {height}×{width} {said.get(channels)}, data {theirs[1]}×{theirs[2]} {said.get(theirs[0] or 0)}; "
            f"with --resize the figures are of {how}."
        )
    canvas = Canvas(size=(height, width), channels=channels, fit="crop")
    values = np.concatenate([fitted(source.values[start : start + PART], canvas) for start in range(0, len(source), PART)])
    return replace(reference, source=replace(source, values=values, metadata=None)), how
