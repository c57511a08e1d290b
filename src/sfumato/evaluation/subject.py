"""What is evaluated: a model, which is sampled, or samples that are there already. Both give their rows in parts of one size."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import data
from sfumato.data.dataset import Dataset
from sfumato.data.files import NUMPY_DAMAGE
from sfumato.data.images import SUFFIXES, Canvas
from sfumato.data.scaling import IMAGES, Scaling
from sfumato.data.source import Codec, Source
from sfumato.model import Model
from sfumato.runtime import cache_folder
from sfumato.samples import Samples
from sfumato.storage import aside, weights_fingerprint, write_text

PART = 256  # rows that are drawn, kept and measured at once


@dataclass(frozen=True)
class Part:
    """Some consecutive samples: x0, their labels (-1: none), and how many rows went through the predictor to draw them."""

    x: Tensor
    labels: np.ndarray | None
    evaluations: int = 0


class Drawn:
    """Samples of a model, drawn as they are asked for; kept in a folder, where one is given, so that an interrupted evaluation goes on."""

    def __init__(
        self, model: Model, count: int, options: Mapping[str, Any], conditions: Mapping[str, Any], *, batch: int, ema: float | None
    ) -> None:
        """Checks that they can be drawn.

        Raises:
            ValueError: a kind of model without samples, or options that it cannot be sampled with.
        """
        if model.sampler.use:
            raise ValueError(f"{model.name} is {model.sampler.kind}, which makes no samples. {model.sampler.use}")
        self.model, self.count, self.options, self.conditions = model, count, dict(options), dict(conditions)
        self.batch, self.ema = batch, ema
        model.sampler.check(self.options, model.conditions(range(min(count, PART)), options=self.options, **self.conditions))
        self.name, self.weights = model.name, weights_fingerprint(model.network)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of one x0."""
        return self.model.spec.shape

    def manifest(self) -> dict[str, Any]:
        """The model, its weights and how it is sampled; of samples, all but their seed depends on it."""
        asked = {name: repr(value) if callable(value) else value for name, value in self.conditions.items() if value is not None}
        recipe = self.model.recipe
        widths = getattr(getattr(recipe, "training", None), "ema", (None,))
        return {
            "name": self.name,
            "kind": self.model.sampler.kind,
            "weights": self.weights,
            "ema": self.ema if self.ema is not None else widths[0],
            "sampling": self.model.sampler.settings(self.options),
            "conditions": asked or "every class in turn" if self.model.spec.classes else asked,
        }

    def part(self, rows: range, seed: int, kept: Path | None) -> Part:
        """x0 and labels of these samples, out of the folder where they are kept."""
        path = None if kept is None else kept / f"seed-{seed}" / f"{rows.start:08d}-{rows.stop:08d}.npz"
        if path is not None and (found := _read_part(path)) is not None:
            values, labels, evaluations = found
        else:
            with counted(self.model) as counts:
                drawn = self.model.sample(
                    rows.stop, seed=seed, batch=self.batch, rows=slice(rows.start, rows.stop), **self.options, **self.conditions
                )
            values, labels, evaluations = drawn.values, drawn.labels, sum(counts)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with aside(path) as partial, partial.open("wb") as file:
                    arrays: Any = {"arr_0": values, "evaluations": np.array(evaluations)}
                    np.savez(file, **arrays | ({} if labels is None else {"arr_1": labels}))
        return Part(self.model.spec.codec.encode(values), labels, evaluations)

    def begin_keeping(self, folder: Path) -> None:
        """Makes the folder of kept samples, or empties one whose samples were drawn otherwise."""
        key = json.dumps({**self.manifest(), "name": None}, sort_keys=True, default=repr)
        record = folder / "drawn-as.json"
        if record.is_file() and record.read_text() == key:
            return
        forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(record, key)


def forget(folder: Path) -> None:
    """Removes kept samples: the files that `Drawn` has written, and folders that are empty then."""
    for path in [*folder.glob("seed-*/*.npz"), *folder.glob("seed-*/.*.partial"), folder / "drawn-as.json"]:
        path.unlink(missing_ok=True)
    for path in [*folder.glob("seed-*"), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _read_part(path: Path) -> tuple[np.ndarray, np.ndarray | None, int] | None:
    """Values, labels and evaluations of a kept part; None where it is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays["arr_1"] if "arr_1" in arrays.files else None
            return arrays["arr_0"], labels, int(arrays["evaluations"])
    except (*NUMPY_DAMAGE, KeyError):
        return None


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Gives a list to which each call of the model's predictor adds its rows; one that has none adds nothing."""
    counts: list[int] = []
    try:
        predictor = model.predictor
    except ValueError:
        yield counts
        return
    if not isinstance(predictor, nn.Module):
        yield counts
        return
    handle = predictor.register_forward_pre_hook(lambda module, arguments: counts.append(len(arguments[0])))
    try:
        yield counts
    finally:
        handle.remove()


class Given:
    """Samples that are there: a data set, of which the first `count` rows are taken."""

    def __init__(self, source: Source, count: int | None = None) -> None:
        """Takes the first rows.

        Raises:
            ValueError: fewer rows than asked for.
        """
        if count is not None and count > len(source):
            raise ValueError(f"{source.name} holds {len(source)} samples, fewer than the count of {count}; draw more, or ask for fewer.")
        self.source, self.count, self.name = source, count or len(source), source.name
        self.codec: Codec | None = None  # of the data that they are held against
        self.canvas: Canvas | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of one x0."""
        return self.source.spec.shape

    def manifest(self) -> dict[str, Any]:
        """Their name and fingerprint."""
        return {"name": self.name, "kind": "samples", "fingerprint": self.source.fingerprint()}

    def part(self, rows: range, seed: int, kept: Path | None) -> Part:
        """x0 under the scaling of the data, and labels."""
        numbers = np.arange(rows.start, rows.stop)
        if isinstance(self.source, Dataset):
            values = self.source.values[numbers]
            if self.canvas is not None:
                values = fitted(values, self.canvas)
            labels = None if self.source.labels is None else self.source.labels[numbers]
            codec = self.source.scaling if self.codec is None else self.codec
            if not np.issubdtype(values.dtype, np.integer) and not np.isfinite(values).all():
                raise ValueError(f"{self.name}: samples must be finite, got NaN or infinity in rows {rows.start} to {rows.stop - 1}.")
            return Part(codec.encode(values), labels)
        batch = self.source.batch(numbers)
        labels = batch.cond["labels"].value.numpy() if "labels" in batch.cond else None
        return Part(batch.x, labels)


def fitted(values: np.ndarray, canvas: Canvas) -> np.ndarray:
    """uint8 images [n, h, w, c] at the canvas's size and channels."""
    painted = []
    for value in values:
        buffer = io.BytesIO()
        Image.fromarray(value.squeeze(2) if value.shape[2] == 1 else value).save(buffer, format="PNG")
        painted.append(canvas.paint(buffer.getvalue()))
    stacked = np.stack(painted)
    return stacked[..., None] if stacked.ndim == 3 else stacked


def given_samples(samples: Any) -> Source:
    """Samples as they are given, as a source.

    Args:
        samples: the path of an .npz, .npy, .csv, .zip or a folder of images; `Samples`; an array or tensor, or a pair of it and labels; a
            source.

    Raises:
        ValueError: anything else, or a file that cannot be read; pickled arrays are never loaded.
    """
    if isinstance(samples, Source):
        return samples
    if isinstance(samples, Samples):
        return plain(samples.values, samples.labels, classes=() if samples.spec is None else samples.spec.classes)
    if isinstance(samples, str | Path):
        return _samples_file(Path(samples))
    if isinstance(samples, tuple) and len(samples) == 2:
        return plain(*samples)
    return plain(samples)


def _samples_file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return data.npz(path)
    if suffix == ".npy":
        return data.npy(path)
    if suffix in (".csv", ".tsv"):
        return data.table(path)
    if suffix == ".zip" or path.is_dir():
        found = data.folder(path, captions=False, cache=cache_folder())
        if found.labels is None and (labels := _labels_in_names(path)) is not None and len(labels) == len(found):
            return plain(found.values, labels, name=path.name)
        return found
    raise ValueError(f"{path} is no run folder, zoo:NAME, .npz, .npy, .csv, .zip or folder of images; name one of these.")


def _labels_in_names(path: Path) -> np.ndarray | None:
    """Labels of a folder that `sfumato sample` wrote, whose files are NUMBER_LABEL.png; None of any other."""
    names = sorted(file.stem for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else []
    pairs = [name.split("_") for name in names]
    if not pairs or any(len(pair) not in (1, 2) or not all(part.isdecimal() for part in pair) for pair in pairs):
        return None
    labels = np.array([int(pair[1]) if len(pair) == 2 else -1 for pair in pairs], dtype=np.int64)
    return labels if (labels >= 0).all() else None


def plain(values: Any, labels: Any = None, *, classes: Sequence[str] = (), name: str = "arrays") -> Dataset:
    """Arrays or tensors as a data set: bytes are images, and floats are x0 as they are.

    Raises:
        ValueError: arrays of another kind, or that do not fit each other.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if not isinstance(array, np.ndarray) or array.ndim < 2:
        raise ValueError(
            f"samples and data are a model, a path, a Source, or arrays [n, …], got {type(values).__name__}"
            + (f" of shape {list(array.shape)}." if isinstance(array, np.ndarray) else ".")
        )
    is_bytes = array.dtype == np.uint8
    if is_bytes and array.ndim == 3:
        array = array[..., None]
    if not is_bytes and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"arrays are uint8 images [n, h, w, c] or floats [n, …], got {array.dtype} {list(array.shape)}; convert them.")
    if not is_bytes:
        array = array.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False)
    numbers = None if labels is None else np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).astype(np.int64)
    if numbers is not None and len(numbers) and numbers.min() < 0:
        numbers = None  # some were drawn without a class
    names = tuple(classes) or (() if numbers is None else tuple(map(str, range(int(numbers.max(initial=0)) + 1))))
    names = () if numbers is None else names
    scaling = IMAGES if is_bytes else Scaling(shift=0.0, scale=1.0, dtype="float64" if array.dtype == np.float64 else "float32")
    return Dataset(values=array, labels=numbers, classes=names, scaling=scaling, name=name)


Subject = Drawn | Given
Progress = Callable[[str, int, int], None]  # of a stage, its parts done, and all of them


def rows_of(part: int, count: int) -> range:
    """The rows of a part."""
    return range(part * PART, min((part + 1) * PART, count))


def parts_in(count: int) -> int:
    """How many parts there are."""
    return -(-count // PART)


def check_samples(x: Tensor, name: str) -> None:
    """Refuses x0 that are not finite.

    Raises:
        ValueError: says how many are not.
    """
    finite = x.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(
            f"{name}: samples must be finite, got NaN or infinity in {bad} of {len(x)}; the model or the sampler has diverged."
        )


def constant_rows(x: Tensor) -> int:
    """How many samples are one constant."""
    flat = x.flatten(1)
    return int((flat.amax(1) == flat.amin(1)).sum()) if flat.shape[1] > 1 else 0


def noise_like(shape: Sequence[int], count: int, *, bounded: bool) -> Tensor:
    """Standard normal noise in the place of x0, always the same; cut to [-1, 1] for images."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return noise.clamp(-1, 1) if bounded else noise
