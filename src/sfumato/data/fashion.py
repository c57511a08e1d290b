"""Fashion-MNIST: 60,000 + 10,000 grey images of clothing at 28×28, MIT licence. Xiao, Rasul & Vollgraf (2017), arXiv:1708.07747."""

from dataclasses import replace
from pathlib import Path

from sfumato.data.dataset import Dataset
from sfumato.data.idx import idx

FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_SHA256 = {  # of the unpacked files; a .gz depends on the program that packed it
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def fashion(folder: str | Path | None = None, *, train: bool = True) -> Dataset:
    """The 60,000 training or the 10,000 test images.

    Args:
        folder: with the idx files, gzipped or not; by default that of Debian's dataset-fashion-mnist.

    Raises:
        ValueError: for missing files (says where to get them), and for damaged ones.
    """
    root = _DEBIAN_FOLDER if folder is None else Path(folder)
    part = "train" if train else "t10k"
    images, labels = (_find(root, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return replace(idx(images, labels, FASHION_CLASSES), name=f"fashion-mnist-{'train' if train else 'test'}")


def _find(root: Path, stem: str) -> Path:
    """The file with this stem, gzipped or not."""
    for path in (root / f"{stem}.gz", root / stem):
        if path.is_file():
            return path
    raise ValueError(
        f"{root} has no {stem}.gz of Fashion-MNIST; run `apt install dataset-fashion-mnist`, or fetch "
        f"{_URL}{stem}.gz (unpacked, sha256 {_SHA256[stem]}) and its three companions, and give their folder."
    )
