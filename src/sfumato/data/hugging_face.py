"""Images from Hugging Face's `datasets`: parquet files, folders of `save_to_disk`, names on the hub. `pip install 'sfumato[data]'`.

Local files are read in the order of their rows, and no code that comes with data is run. An image is the bytes in its row. If a row holds
only a path (`to_parquet` writes such rows for images that it found in files, `save_to_disk` does not), it is read only if it is inside the
folder of the data, or the library's cache folder.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import __version__ as pillow

from sfumato.data.cache import cached, stamp
from sfumato.data.dataset import Dataset, of_images
from sfumato.data.files import read_whole
from sfumato.data.images import Canvas, Fit, Picture, broken_limit, gather

if TYPE_CHECKING:
    import datasets

_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"}
_ROWS = 64  # rows read at a time
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def from_datasets(
    source: "str | Path | datasets.Dataset",
    *,
    split: str = "train",
    subset: str | None = None,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    limit_broken: int | None = None,
    cache: Path | None = None,
) -> Dataset:
    """The images of a .parquet file, of several ("data/train-*.parquet", or a folder of them), of a folder that `save_to_disk` wrote, of a
    name on the hub, or of a `datasets.Dataset`.

    Args:
        split: for a name on the hub, or a folder that has several: parquet files have theirs in their names.
        subset: for a name on the hub.
        image: the column of the images; by default the only one of their type.
        label: the column of the labels; by default the only `ClassLabel`, or "label"; "" for none. Classes are named and numbered as in the
        file; texts are numbered in alphabetical order.
        caption: the column of the captions; by default "text" or "caption"; "" for none.
        size: as `Canvas` takes it, like channels and fit.
        channels: as above.
        fit: as above.
        limit_broken: as `folder` takes it.
        cache: as `folder` takes it; not for a `datasets.Dataset`.

    Raises:
        ValueError: for a source that cannot be read, missing columns, rows without label or caption, and the errors of `folder`.
        OSError: the cache cannot be written.
    """  # fmt: skip
    canvas = Canvas(size=size, channels=channels, fit=fit)
    broken_limit(limit_broken, 0)
    if not isinstance(source, str | Path):
        if cache is not None:
            raise ValueError("a datasets.Dataset has no files that show whether it has changed; remove cache, or pass its path.")
        opened = _Rows.of(source, "the data set", ["/"])
        return _build(opened, canvas, image, label, caption, limit_broken, None)
    files, open_rows = _local(Path(source), split) or _hub(str(source), subset, split)
    key = ["datasets", pillow, files, split, subset, image, label, caption, size, channels, fit, limit_broken]
    return cached(lambda into: _build(open_rows(), canvas, image, label, caption, limit_broken, into), cache, key)


@dataclass(frozen=True)
class _Rows:
    """Rows of a table: their number, their columns with types, and an iterator of some columns in batches."""

    name: str
    count: int
    features: Mapping[str, Any]
    batches: Callable[[list[str]], Iterator[Mapping[str, Sequence[Any]]]]
    roots: Sequence[str] = ()  # the folders that files named in a row must be in

    @classmethod
    def of(cls, dataset: "datasets.Dataset", name: str, roots: Sequence[str] = ()) -> "_Rows":
        """The rows of a `datasets.Dataset`, with images as undecoded bytes."""
        library = _library()

        def batches(columns: list[str]) -> Iterator[Mapping[str, Sequence[Any]]]:
            rows = dataset.with_format(None).select_columns(columns)
            for column in columns:
                if isinstance(dataset.features[column], library.Image):
                    rows = rows.cast_column(column, library.Image(decode=False))
            found: Any = rows.iter(_ROWS)  # untyped in the library
            return found

        return cls(name, len(dataset), dataset.features, batches, roots)


def _build(
    rows: _Rows, canvas: Canvas, image: str | None, label: str | None, caption: str | None, limit_broken: int | None, into: Path | None
) -> Dataset:
    """Decodes all images."""
    image, label, caption = _image_column(rows, image), _label_column(rows, label), _caption_column(rows, caption)
    columns = [column for column in (image, label, caption) if column]
    labels: list[Any] = []
    captions: list[Any] = []

    def pictures() -> Iterator[Picture]:
        for batch in _reading(rows.batches(columns), rows.name):
            labels.extend(batch[label] if label else ())
            captions.extend(batch[caption] if caption else ())
            for cell in batch[image]:
                yield Picture(f"row {next(numbers)}", lambda cell=cell: _bytes_of(cell, rows.roots))

    numbers, limit = iter(range(rows.count)), broken_limit(limit_broken, rows.count)
    if not rows.count:
        raise ValueError(f"{rows.name} has no rows; check the path and the split.")
    if into is None:
        found = gather(pictures(), canvas, limit=limit, source=rows.name)
    else:
        with (into / "values.npy").open("w+b") as file:
            found = gather(pictures(), canvas, limit=limit, source=rows.name, into=file)
    classes = _classes(rows, label, labels)
    return of_images(
        found.values,
        labels=_class_numbers([labels[row] for row in found.kept], classes, rows.name) if label else None,
        classes=classes,
        name=Path(rows.name).stem,
        skipped=found.skipped,
        captions=_texts([captions[row] for row in found.kept], found.kept, rows.name) if caption else None,
    )


def _reading(batches: Iterator[Mapping[str, Sequence[Any]]], name: str) -> Iterator[Mapping[str, Sequence[Any]]]:
    """The batches; turns pyarrow's errors on a damaged file into a clear message."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except _damage() as error:
            raise _unreadable(name, error) from None
        yield batch


def _bytes_of(cell: object, roots: Sequence[str]) -> bytes:
    """The bytes of an image's cell."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, bytes):
        return content
    if not isinstance(path, str):
        raise ValueError("it contains no bytes")
    for root in map(os.path.realpath, roots):
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, real]) == root:
            return read_whole(real)
    raise ValueError(f"it is only a path, {path}, outside the data's folder; write the data with save_to_disk, which stores images")


def _image_column(rows: _Rows, wanted: str | None) -> str:
    if wanted:
        return _present(rows, wanted, "image")
    library = _library()
    found = [name for name, feature in rows.features.items() if isinstance(feature, library.Image)]
    found = found or [name for name in ("image", "img") if name in rows.features]
    if len(found) != 1:
        raise ValueError(
            f"{rows.name} must have one column of images, got {_listed(found)}; name it with image=, among {_listed(rows.features)}."
        )
    return found[0]


def _label_column(rows: _Rows, wanted: str | None) -> str | None:
    if wanted is not None:
        return _present(rows, wanted, "label") if wanted else None
    library = _library()
    found = [name for name, feature in rows.features.items() if isinstance(feature, library.ClassLabel)]
    found = found or [name for name in ("label",) if name in rows.features]
    if len(found) > 1:
        raise ValueError(f'{rows.name} has several columns of labels, {_listed(found)}; choose one with label=, or label="" for none.')
    return found[0] if found else None


def _caption_column(rows: _Rows, wanted: str | None) -> str | None:
    if wanted is not None:
        return _present(rows, wanted, "caption") if wanted else None
    return next(
        (name for name in ("text", "caption") if getattr(rows.features.get(name), "dtype", None) in ("string", "large_string")), None
    )


def _present(rows: _Rows, column: str, what: str) -> str:
    if column not in rows.features:
        raise ValueError(f"{rows.name} has no column {column!r} for {what}; its columns are {_listed(rows.features)}.")
    return column


def _classes(rows: _Rows, label: str | None, labels: list[Any]) -> tuple[str, ...]:
    """Names of the classes: the file's own, or from its labels."""
    if label is None:
        return ()
    names = getattr(rows.features[label], "names", None)
    if names:
        return tuple(names)
    given = {value for value in labels if value is not None}
    if all(type(value) is str for value in given):
        return tuple(sorted(given))
    if all(type(value) is int and 0 <= value < 1_000_000 for value in given):
        return tuple(map(str, range(max(given, default=-1) + 1)))
    odd = next(value for value in labels if type(value) is not int or not 0 <= value < 1_000_000)
    raise ValueError(f"{rows.name}: column {label!r} must contain texts, or integers from 0, got {odd!r}; choose another with label=.")


def _class_numbers(labels: list[Any], classes: tuple[str, ...], name: str) -> np.ndarray:
    numbers = {text: number for number, text in enumerate(classes)}
    found = [numbers.get(value) if isinstance(value, str) else value for value in labels]
    for row, number in enumerate(found):
        if type(number) is not int or not 0 <= number < len(classes):
            raise ValueError(f'{name}: every row needs a label of 0 to {len(classes) - 1}, got {labels[row]!r}; fill it, or set label="".')
    return np.array(found, dtype=np.int64)


def _texts(captions: list[Any], rows: list[int], name: str) -> tuple[str, ...]:
    for row, text in zip(rows, captions, strict=True):
        if not isinstance(text, str) or not text:
            raise ValueError(f'{name}: every row needs a caption, got {text!r} in row {row}; fill it, or set caption="".')
    return tuple(captions)


def _local(path: Path, split: str) -> tuple[object, Callable[[], _Rows]] | None:
    """The stamps of the files at a path, and a function that reads them; None if there are none."""
    if path.is_dir():
        saved = _saved(path, split)
        if saved is not None:
            return _stamps(sorted(saved.iterdir())), lambda: _Rows.of(_load_saved(saved), str(path), [str(saved)])
        files = _of_split(sorted(path.rglob("*.parquet")), path, split)
    elif path.exists():
        files = [path]
    elif has_magic(str(path)):
        files = sorted(map(Path, glob(str(path), recursive=True)))
        if not files:
            raise ValueError(f"{path} matches no file; check the spelling.")
    else:
        return None
    other = next((file for file in files if file.suffix != ".parquet"), None)
    if other is not None:
        raise ValueError(
            f"{other} must be a .parquet file, a folder that save_to_disk wrote, or a name on the hub; images are data.kind=folder."
        )
    root = path if path.is_dir() else files[0].parent
    return _stamps(files), lambda: _parquet(files, str(path), root)


def _stamps(files: Sequence[Path]) -> list[object]:
    return [(str(file.resolve()), stamp(file.stat())) for file in files]


def _of_split(files: list[Path], root: Path, split: str) -> list[Path]:
    """The files of a split: those with its name in theirs; all files if none names a split and the training data are asked for."""
    words = {file: set(re.split(r"[^a-z]+", file.relative_to(root).as_posix().lower())) for file in files}
    named = [file for file in files if split.lower() in words[file]]
    if named or (split == "train" and files and not any(found & _SPLITS for found in words.values())):
        return named or files
    if not files:
        raise ValueError(f"{root} must contain .parquet files or be a save_to_disk folder; folders of images are data.kind=folder.")
    raise ValueError(f"{root} has no .parquet file with {split!r} in its name, got {_listed([file.name for file in files])}; set split.")


def _saved(path: Path, split: str) -> Path | None:
    """The folder of one split in a folder of `save_to_disk`; None if it is not such a folder."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        if split not in splits:
            raise ValueError(f"{path} has no split {split!r}; it has {_listed(splits)}.")
        return path / split
    return path if (path / "state.json").is_file() and (path / "dataset_info.json").is_file() else None


def _load_saved(folder: Path) -> "datasets.Dataset":
    library = _library()
    try:
        dataset = library.load_from_disk(str(folder))
    except (*_damage(), KeyError, TypeError) as error:
        raise _unreadable(str(folder), error) from None
    assert isinstance(dataset, library.Dataset)
    return dataset


def _parquet(files: list[Path], name: str, root: Path) -> _Rows:
    """The rows of parquet files, concatenated."""
    library = _library()
    from pyarrow import parquet

    tables = []
    for file in files:
        try:
            tables.append(parquet.ParquetFile(file))
        except _damage() as error:
            raise _unreadable(str(file), error) from None
    features = library.Features.from_arrow_schema(tables[0].schema_arrow)

    def batches(columns: list[str]) -> Iterator[Mapping[str, Sequence[Any]]]:
        batches = chain.from_iterable(table.iter_batches(batch_size=_ROWS, columns=columns) for table in tables)
        return (batch.to_pydict() for batch in batches)

    return _Rows(name, sum(table.metadata.num_rows for table in tables), features, batches, [str(root)])


def _hub(name: str, subset: str | None, split: str) -> tuple[object, Callable[[], _Rows]]:
    """What the library has for a name on the hub, now or in its cache."""
    if not _HUB_NAME.fullmatch(name) or Path(name).suffix == ".parquet":
        raise ValueError(f"{name} is neither an existing path nor a name on the hub (user/name); check the spelling.")
    library = _library()
    try:
        dataset = library.load_dataset(name, subset, split=split)
    except (*_damage(), RuntimeError) as error:
        raise ValueError(f"there is no path {name}, and {name} cannot be read from the hub: {_one_line(error)}") from None
    from huggingface_hub.constants import HF_HUB_CACHE

    roots = [str(library.config.HF_DATASETS_CACHE), str(library.config.DOWNLOADED_DATASETS_PATH), HF_HUB_CACHE]
    return [name, dataset._fingerprint], lambda: _Rows.of(dataset, name, roots)


def _library() -> Any:
    """The `datasets` library, which only this module needs."""
    try:
        import datasets
    except ImportError:
        raise ValueError("parquet files, arrow folders and names on the hub need `datasets`: pip install 'sfumato[data]'.") from None
    return datasets


def _damage() -> tuple[type[Exception], ...]:
    """What pyarrow and `datasets` are known to raise on damaged files."""
    from pyarrow import ArrowException

    return (OSError, ValueError, ArrowException)


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(f"cannot read {name}: {_one_line(error)} Download it again.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."


def _listed(names: Sequence[str] | Mapping[str, Any], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"
