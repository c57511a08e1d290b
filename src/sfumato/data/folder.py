"""Images in a folder or a .zip of one: the class of an image is the name of its folder.

So `root/cat/1.png` and `root/train/cat/1.png` are both of class "cat"; if all images are in folders with the same name, there are no
labels.
"""

import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import __version__ as pillow

from sfumato.condition import Map
from sfumato.data.cache import Stamp, cached, stamp
from sfumato.data.captions import METADATA, captions_of
from sfumato.data.dataset import Dataset, of_images
from sfumato.data.files import NUMPY_DAMAGE, read_whole, refuse_large
from sfumato.data.images import SUFFIXES, BrokenImageError, Canvas, Fit, Gathered, Picture, broken_limit, gather, size_of
from sfumato.data.rows import Values

# Other files that users may name, and the kind of data that a recipe needs for them.
_OTHER_KINDS = {".parquet": "datasets", ".arrow": "datasets", ".csv": "table", ".tsv": "table", ".npz": "array", ".npy": "array"}


def folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    labels: bool = True,
    captions: bool = True,
    limit_broken: int | None = None,
    maps: Mapping[str, str | Path] | None = None,
    cache: Path | None = None,
) -> Dataset:
    """The PNG, JPEG, WebP, BMP, GIF and TIFF images under a folder, or in a .zip, which is read in place.

    Files are sorted by name; hidden ones and those of other types are ignored. Captions are those of `metadata.csv`
    and `metadata.jsonl` files (see `sfumato.data.captions`).

    Args:
        size: as `Canvas` takes it, like channels and fit.
        channels: as above.
        fit: as above.
        labels: False to ignore the names of the subfolders.
        captions: False to ignore metadata files.
        limit_broken: how many unreadable images are left out (and listed in `Dataset.skipped`) before it is an error; by default
            1% of the files, at least 1.
        maps: more folders or .zips, by name of a condition, with a picture for each image under the same relative path; the suffix may
        differ. They are fitted like the images: smaller by the same whole factor if all of them are, else to the images' size.
        cache: the folder of the cache for decoded images, as `cache_folder()` returns it; None holds them in memory.

    Raises:
        ValueError: for a missing or empty folder, too many broken images, images of several sizes without `size`, images next to
        class folders, captions that do not fit, an image without its map or with one of another aspect ratio, and options out of range.
        OSError: the cache cannot be written.
    """
    canvas, root = Canvas(size=size, channels=channels, fit=fit), Path(path)
    broken_limit(limit_broken, 0)
    files = _walk(root) if root.is_dir() else []
    source = files if files or root.is_dir() else [_zip_file(root)]
    key = ["folder", pillow, str(root.resolve()), source, size, channels, fit, labels, captions, limit_broken]

    def build(into: Path | None) -> Dataset:
        with _open(root, files) as found:
            return _build(found, canvas, path, labels=labels, captions=captions, limit_broken=limit_broken, into=into)

    images = cached(build, cache, key)
    paired = {name: _paired(name, Path(at), (root, files, key), images, fit, cache) for name, at in (maps or {}).items()}
    return replace(images, conditions=paired) if paired else images


def _paired(
    name: str, at: Path, of: tuple[Path, "list[_File]", list[object]], images: Dataset, fit: Fit, cache: Path | None
) -> tuple[Values, Map]:
    """The pictures under `at` that belong to the images of a folder, and their spec as a condition."""
    root, files, key = of
    partners = _walk(at) if at.is_dir() else []

    def build(into: Path | None) -> Dataset:
        with _open(root, files) as found, _open(at, partners) as others:
            pairs = _pairs(_kept(found.names, images.skipped), others.names, f"{at} (data.maps.{name})")
            factors = {_factor(found.read(one), others.read(other), f"{at / other}, the map {name} of {one}", fit) for one, other in pairs}
            height, width = images.values.shape[1:3]
            factor = factors.pop() if len(factors) == 1 else 1
            factor = 1 if height % factor or width % factor else factor
            canvas = Canvas(size=(height // factor, width // factor), fit=fit)
            pictures = [Picture(other, lambda other=other: others.read(other)) for _, other in pairs]
            values = _gather(pictures, canvas, 0, at, into).values
            if values.dtype != np.uint8:
                raise ValueError(f"{at}: maps must be pictures with 8 bits a channel, got {values.dtype}; convert them.")
            return of_images(values, name=name)

    source = partners if partners or at.is_dir() else [_zip_file(at)]
    maps = cached(build, cache, ["maps", key, str(at.resolve()), source, name])
    return maps.values, Map(int(maps.values.shape[3]))


def _kept(names: list[str], skipped: Sequence[str]) -> list[str]:
    """The images that could be read, in the order of the data set."""
    images = [name for name in _ordered(names) if name.rpartition("/")[2] not in METADATA]
    return [name for name in images if not any(line.startswith(f"{name}: ") for line in skipped)]


def _pairs(images: list[str], others: list[str], where: str) -> list[tuple[str, str]]:
    """Each image with the other file of the same path, ignoring suffixes."""
    exact, by_stem = set(others), dict[str, list[str]]()
    for other in others:
        by_stem.setdefault(other.rpartition(".")[0], []).append(other)
    pairs = []
    for image in images:
        found = [image] if image in exact else by_stem.get(image.rpartition(".")[0], [])
        if len(found) != 1:
            what = "it is missing" if not found else f"there are {', '.join(sorted(found))}"
            raise ValueError(f"{where} must contain one picture for {image}, under the same path with any suffix, but {what}.")
        pairs.append((image, found[0]))
    return pairs


def _factor(image: bytes, other: bytes, what: str, fit: Fit) -> int:
    """The whole factor by which the other picture is smaller than the image; 1 if there is none."""
    try:
        (height, width), (low, narrow) = size_of(image), size_of(other)
    except BrokenImageError as error:
        raise ValueError(f"{what}, cannot be read: {error}; repair or replace it.") from None
    if fit != "stretch" and abs(low * width - narrow * height) > max(height, width):  # by more than a pixel of the map
        raise ValueError(
            f"{what}, must have the image's aspect ratio, got {low}×{narrow} (height × width) for {height}×{width}; "
            "correct it, or set data.fit=stretch."
        )
    return height // low if height % low == 0 and width % narrow == 0 and height // low == width // narrow else 1


def _ordered(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name.split("/"))


class _File(NamedTuple):
    """A file under a folder: its relative path, its stamp, and whether it is a link to a file outside the folder."""

    name: str
    stamp: Stamp
    is_outside: bool


@dataclass(frozen=True)
class _Source:
    """Relative paths of images and metadata, how to read the bytes of one, and those outside the folder."""

    names: list[str]
    read: Callable[[str], bytes]
    outside: Collection[str] = ()


def _build(
    source: _Source, canvas: Canvas, path: str | Path, *, labels: bool, captions: bool, limit_broken: int | None, into: Path | None
) -> Dataset:
    """Decodes all images."""
    ordered = _ordered(source.names)
    names = [name for name in ordered if name.rpartition("/")[2] not in METADATA]
    if not names:
        raise ValueError(f"{path} must contain images ({', '.join(sorted(SUFFIXES))}), got none; check the path{_hint(Path(path))}.")
    has_labels = labels and _has_classes(names, path)
    texts = None
    if captions:
        metadata = [name for name in ordered if name.rpartition("/")[2] in METADATA]
        texts = captions_of(names, metadata, source.read, outside=source.outside, source=str(path))
    limit = broken_limit(limit_broken, len(names))
    found = _gather([Picture(name, lambda name=name: source.read(name)) for name in names], canvas, limit, path, into)
    parents = [names[row].rpartition("/")[0].rpartition("/")[2] for row in found.kept] if has_labels else []
    classes = tuple(sorted(set(parents)))
    return of_images(
        found.values,
        labels=_class_numbers(parents, classes) if has_labels else None,
        classes=classes,
        name=Path(path).resolve().stem,
        skipped=found.skipped,
        captions=None if texts is None else tuple(texts[row] for row in found.kept),
    )


def _gather(pictures: list[Picture], canvas: Canvas, limit: int, path: str | Path, into: Path | None) -> Gathered:
    if into is None:
        return gather(pictures, canvas, limit=limit, source=str(path))
    with (into / "values.npy").open("w+b") as file:
        return gather(pictures, canvas, limit=limit, source=str(path), into=file)


def _class_numbers(parents: list[str], classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """The class number of each image's folder."""
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in parents], dtype=np.int64)


def _has_classes(names: list[str], path: str | Path) -> bool:
    """Whether the images are in different class folders."""
    folders = {PurePosixPath(parent) for parent in {name.rpartition("/")[0] for name in names}}
    inner = {folder: ancestor for folder in folders for ancestor in folder.parents if ancestor in folders}
    if inner:
        below, above = min(inner.items())
        raise ValueError(
            f"{path}: images must be either in class folders or in one folder, got some in {above} and some in {below} below it; "
            "move them, or set labels=False."
        )
    return len({folder.name for folder in folders}) > 1


def _is_wanted(name: str) -> bool:
    """Whether a file with this name (without its folder) is a visible image or metadata file."""
    return not _is_hidden(name) and (name[name.rfind(".") :].lower() in SUFFIXES or name in METADATA)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) and name != ".."


@contextmanager
def _open(root: Path, files: list[_File]) -> Iterator[_Source]:
    """The files of a folder, which has been listed already, or of a .zip."""
    if root.is_dir():
        outside = {file.name for file in files if file.is_outside}
        yield _Source([file.name for file in files], lambda name: read_whole(os.path.join(root, name)), outside)
        return
    try:
        archive = zipfile.ZipFile(root)
    except NUMPY_DAMAGE as error:
        raise ValueError(f"cannot read {root} as a .zip: {error}; download it again.") from None
    with archive:
        members = {str(PurePosixPath(info.filename)): info for info in archive.infolist() if not info.filename.endswith("/")}
        names = [name for name in members if _is_wanted(name.rpartition("/")[2]) and not any(map(_is_hidden, name.split("/")))]
        yield _Source(names, lambda name: _read_member(archive, members[name]))


def _zip_file(path: Path) -> Stamp:
    """The stamp of a .zip.

    Raises:
        ValueError: for any other path.
    """
    if not path.exists():
        raise ValueError(f"{path} must be a folder or a .zip of images, got no such path; check the spelling.")
    if not path.is_file() or not zipfile.is_zipfile(path) or path.suffix in _OTHER_KINDS:
        raise ValueError(f"{path} must be a folder or a .zip of images, got something else{_hint(path)}.")
    return stamp(path.stat())


def _hint(path: Path) -> str:
    """Which kind of data to use instead, if known."""
    found = path if path.is_file() else next((file for file in sorted(path.rglob("*")) if file.suffix in _OTHER_KINDS), path)
    kind = _OTHER_KINDS.get(found.suffix)
    return f"; {found.name} is read by data.kind={kind}" if kind else ""


def _walk(root: Path) -> list[_File]:
    """Files under the folder; links to folders are followed, but none twice."""
    found, seen, pending, inside = [], set(), [""], os.path.realpath(root)
    while pending:
        prefix = pending.pop()
        real = os.path.realpath(root / prefix)
        if real in seen:
            continue
        seen.add(real)
        is_outside = os.path.commonpath([inside, real]) != inside
        try:
            with os.scandir(root / prefix) as entries:
                listing = list(entries)
        except OSError as error:
            raise ValueError(f"cannot read {error.filename}: {error.strerror}; change its permissions or move it away.") from None
        below = []
        for entry in listing:
            name = prefix + entry.name
            if entry.is_dir():
                if not _is_hidden(entry.name):
                    below.append(name + "/")
            elif _is_wanted(entry.name):
                leads_out = is_outside or (entry.is_symlink() and os.path.commonpath([inside, os.path.realpath(entry.path)]) != inside)
                found.append(_File(name, _stamp(entry), leads_out))
        pending.extend(sorted(below, reverse=True))
    return sorted(found)


def _stamp(entry: "os.DirEntry[str]") -> Stamp:
    try:
        return stamp(entry.stat())
    except OSError:  # a broken link: reading it will report that
        return 0, 0, 0


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of a file in an archive; nothing is written to the disk."""
    name = PurePosixPath(info.filename)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError("its name points outside the archive")
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    refuse_large(info.file_size)
    return archive.read(info)
