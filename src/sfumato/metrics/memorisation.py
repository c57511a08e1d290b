"""Whether samples are copies of the training data: how near they lie to it, beside how near held-out data lie to it.

A sample's ratio is its distance to its nearest training example over that to the second nearest: a copy's is near zero, whatever the scale
of the data and however smooth the sample (Yoon et al. (2023), section 3, who call a sample a copy below 1/3). Held-out examples, which no
model has copied, say how often a small ratio comes by itself: those of data with near-duplicates do now and then.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from sfumato.metrics.chance import beta_binomial
from sfumato.metrics.checks import matrix
from sfumato.metrics.features import CHUNK, as_x0
from sfumato.metrics.neighbours import nearest

EXPECTED = 0.01  # share of held-out examples whose ratio counts as small
MARGIN = 0.01  # share of copies below which a model is not accused: samples are seldom exactly as held-out data
CHANCE = 1e-4  # of an accusation where samples are as held-out data
CANDIDATES = 16  # training images that an image is held against pixel by pixel
FREQUENCIES = 6  # along each axis, by whose magnitudes they are found


@dataclass(frozen=True)
class Memorisation:
    """How near samples lie to the training data.

    Args:
        share: of the samples with a ratio as small as one in a hundred of held-out data have.
        expected: the share of held-out data, one in a hundred; more where many of their ratios are equal.
        error: the standard error of `share`, of both counts, if samples are as held-out data.
        p_value: the chance of such a share or a greater one if they are, exactly.
        copies: an estimate of the share of copies, (share - expected) / (1 - expected), at least 0.
        has_copies: whether `copies` is above one in a hundred and `p_value` below one in 10,000.
        threshold: the ratio that `expected` of held-out data have at most.
        ratios: of each sample.
        held_out_ratios: of each held-out example.
        pairs: samples and their nearest training examples, the smallest ratios first.
    """

    share: float
    expected: float
    error: float
    p_value: float
    copies: float
    has_copies: bool
    threshold: float
    ratios: Float64[np.ndarray, "n"]
    held_out_ratios: Float64[np.ndarray, "m"]
    pairs: Int64[np.ndarray, "k 2"]

    @property
    def sentence(self) -> str:
        """The verdict, for people."""
        said = f"{self.share:.1%} of the samples are as near to a training example as {self.expected:.1%} of held-out data are"
        if self.has_copies:
            return f"{said}: about {self.copies:.1%} (± {self.error:.1%}) are copies; look at the nearest pairs."
        return f"{said}: no sign of copies (± {self.error:.1%})."


def memorisation(samples: np.ndarray, training: np.ndarray, held_out: np.ndarray, *, pairs: int = 16, shift: int = 1) -> Memorisation:
    """Compares the ratios of samples with those of held-out data.

    Rows [n, d] are compared as they are. Of images (bytes [n, h, w, c], or x0 [n, c, h, w]), the sixteen nearest training images are found
    by the magnitudes of their lowest frequencies, which a shift leaves as they are, and held against the image pixel by pixel, each shifted
    by up to `shift` pixels either way as fits best. So a shifted copy is found as one.

    Args:
        samples: at least one.
        training: what the model was trained on, at least two.
        held_out: what it was not, at least 100.
        pairs: how many nearest pairs are named.
        shift: in pixels; 0 for none.

    Raises:
        ValueError: sets of other shapes or types, too few examples, or values that are not finite.
    """
    if len(samples) < 1 or len(training) < 2 or len(held_out) < 100:
        counts = f"{len(samples)}, {len(training)} and {len(held_out)}"
        raise ValueError(f"memorisation needs at least 1 sample, 2 training examples and 100 held-out ones, got {counts}.")
    if len({(each.dtype.kind, each.shape[1:]) for each in (samples, training, held_out)}) > 1:
        shapes = ", ".join(f"{each.dtype} {each.shape[1:]}" for each in (samples, training, held_out))
        raise ValueError(f"samples, training and held-out data must be of one shape and type, got {shapes}.")
    distances_of = _distances_to_images(training, shift) if training.ndim == 4 else _distances_to_rows(training)
    (ratios, places), (held, _) = (_ratios(*distances_of(queries)) for queries in (samples, held_out))
    rank = max(round(EXPECTED * len(held)), 1)
    threshold = float(np.partition(held, rank - 1)[rank - 1])
    ties = int((held <= threshold).sum()) - rank  # as many small ratios more than expected, as in data full of duplicates
    rank, found, expected = rank + ties, int((ratios <= threshold).sum()), (rank + ties) / len(held)
    share = found / len(ratios)
    copies = max((share - expected) / (1 - expected), 0.0) if expected < 1 else 0.0
    error = float(np.sqrt(expected * (1 - expected) * (1 / len(ratios) + 1 / len(held))))
    p_value = min(sum(beta_binomial(j, len(ratios), rank, len(held) - rank + 1) for j in range(found, len(ratios) + 1)), 1.0)
    first = np.argsort(ratios, kind="stable")[:pairs]
    nearest_pairs = np.stack([first, places[first]], axis=1)
    has_copies = copies > MARGIN and p_value < CHANCE
    return Memorisation(share, expected, error, p_value, copies, has_copies, threshold, ratios, held, nearest_pairs)


Found = tuple[np.ndarray, np.ndarray]  # distances to the two nearest training examples, ascending, and which these are


def _ratios(distances: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ratio of each query (0 where both distances are zero), and its nearest training example."""
    return np.divide(distances[:, 0], distances[:, 1], out=np.zeros(len(distances)), where=distances[:, 1] > 0), places[:, 0]


def _distances_to_rows(training: np.ndarray) -> Callable[[np.ndarray], Found]:
    rows = matrix(training, "training data")

    def found(queries: np.ndarray) -> Found:
        squared, places = nearest(matrix(queries, "samples"), rows, k=2)
        return np.sqrt(squared), places

    return found


def _distances_to_images(training: np.ndarray, shift: int) -> Callable[[np.ndarray], Found]:
    images = torch.from_numpy(as_x0(training, np.float32))
    height, width = images.shape[2:]
    if min(height, width) <= 2 * shift:
        raise ValueError(f"images of {height}×{width} cannot be shifted by {shift} pixels; give a smaller shift.")
    known, count = _magnitudes(images), min(CANDIDATES, len(images))
    offsets = range(2 * shift + 1)

    @torch.no_grad()
    def found(queries: np.ndarray) -> Found:
        x = torch.from_numpy(as_x0(queries, np.float32))
        _, candidates = nearest(_magnitudes(x), known, k=count)
        inner = x[:, None, :, shift : height - shift, shift : width - shift]
        distances = []
        for start in range(0, len(x), CHUNK):
            near = images[torch.from_numpy(candidates[start : start + CHUNK])]  # [b, count, c, h, w]
            shifted = (near[..., i : i + inner.shape[3], j : j + inner.shape[4]] for i in offsets for j in offsets)
            squared = [(inner[start : start + CHUNK] - each).square().sum(dim=(2, 3, 4)) for each in shifted]
            distances.append(torch.stack(squared).amin(dim=0).double().sqrt())
        values, order = torch.cat(distances).topk(2, dim=1, largest=False)
        return values.numpy(), np.take_along_axis(candidates, order.numpy(), axis=1)

    return found


def _magnitudes(x: Tensor) -> Float32[np.ndarray, "n d"]:
    """Of the lowest frequencies of each channel."""
    low = min(FREQUENCIES, (min(x.shape[2:]) - 1) // 2)
    parts = []
    for part in x.split(1024):
        spectrum = torch.fft.rfft2(part, norm="ortho").abs()[..., : low + 1]
        parts.append(torch.cat([spectrum[..., : low + 1, :], spectrum[..., x.shape[2] - low :, :]], dim=2).flatten(1))
    return torch.cat(parts).numpy()
