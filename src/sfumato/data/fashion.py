"""Fashion-MNIST: 60,000 + 10,000 grey images of clothing at 28×28, MIT licence. Xiao, Rasul & Vollgraf (2017), arXiv:1708.07747."""

from dataclasses import replace
from pathlib import Path

from sfumato.data.dataset import Dataset
from sfumato.data.idx import idx

FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def fashion(folder: str | Path | None = None, *, train: bool = True) -> Dataset:
    """The 60,000 training or the 10,000 test images.

    Args:
        folder: with the idx files, gzipped or not; by default where Debian's dataset-fashion-mnist puts them.

    Raises:
        ValueError: for missing files, saying where to get them, and for damaged ones.
    """
    root = _DEBIAN_FOLDER if folder is None else Path(folder)
    part = "train" if train else "t10k"
    images, labels = (_find(root, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return replace(idx(images, labels, FASHION_CLASSES), name=f"fashion-mnist-{'train' if train else 'test'}")


def _find(root: Path, stem: str) -> Path:
    """The file of this stem, gzipped or not."""
    for path in (root / f"{stem}.gz", root / stem):
        if path.is_file():
            return path
    raise ValueError(
        f"{root} must hold {stem}.gz of Fashion-MNIST, got no such file; run `apt install dataset-fashion-mnist`, or fetch "
        f"{_URL}{stem}.gz (and its three companions) and give their folder."
    )
