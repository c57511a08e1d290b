"""Networks that read the class of a sample, for label accuracy; other ones than those whose features are measured."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from safetensors.torch import load_file

from sfumato.data.fashion import FASHION_CLASSES
from sfumato.metrics.features import WEIGHTS, Network, digest
from sfumato.metrics.small_cnn import SIDE, SmallCNN
from sfumato.runtime import compute_device


@dataclass(frozen=True)
class Judge:
    """A classifier of samples.

    Args:
        name: of it.
        sha256: of the file of its weights.
        classes: that it tells, in the order of their numbers.
        accuracy: on test images of the data that it has never seen.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    accuracy: float
    network: Network = field(repr=False)

    def probabilities(self, images: Shaped[np.ndarray, "n *x"]) -> Float[np.ndarray, "n k"]:
        """The probability of each class, of bytes [n, h, w, c] or x0 [n, c, h, w].

        Raises:
            ValueError: images of another size or number of channels, or values that are not finite or lie out of [-1, 1].
        """
        return torch.from_numpy(self.network(images)).softmax(dim=1).numpy()

    def __call__(self, images: Shaped[np.ndarray, "n *x"]) -> Int64[np.ndarray, "n"]:
        """The most probable class of each sample.

        Raises:
            ValueError: as `probabilities`.
        """
        return self.network(images).argmax(axis=1)


def load_judge(name: str = "fashion", *, device: torch.device | None = None) -> Judge:
    """The judge of the ten classes of Fashion-MNIST, right on 92.7% of its 10,000 test images.

    Raises:
        ValueError: another name.
    """
    if name != "fashion":
        raise ValueError(f'there is no judge "{name}"; there is fashion, or give a function of your own.')
    path, device = WEIGHTS / "judge-fashion.safetensors", device or compute_device()
    net = SmallCNN.from_weights(load_file(path)).to(device)
    network = Network("judge-fashion", digest(path), len(FASHION_CLASSES), "none", partial(_logits, net), 1, SIDE, device=device)
    return Judge("fashion", network.sha256, FASHION_CLASSES, 0.927, network)


def _logits(net: SmallCNN, x: torch.Tensor) -> tuple[torch.Tensor, None]:
    return net(x), None
