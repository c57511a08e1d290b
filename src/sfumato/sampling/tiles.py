"""Predictors for pictures larger than a model's: its predictions on overlapping tiles, averaged at every level."""

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import Condition, CondLike, as_cond
from sfumato.condition import cat as cat_cond
from sfumato.denoiser import Predictor
from sfumato.prediction import Prediction
from sfumato.schedule import Level

AT_ONCE = 16  # tiles that go through the model together


def tiled(predict: Predictor, size: tuple[int, int], *, overlap: int, align: int = 1) -> Predictor:
    """A predictor of pictures of at least `size`, of one of pictures of `size`.

    x0 is the mean of the tiles' x0, each weighed down linearly towards its borders, so that one sample is drawn and no seam is seen. Maps
    are cut at the same places, whatever their resolution. Bar-Tal et al. (2023), eq. 5, arXiv:2302.08113.

    Args:
        predict: of pictures [b, c, *size].
        size: height and width of a tile.
        overlap: pixels that neighbouring tiles share at least.
        align: tiles begin at multiples of this many pixels; the factor between x and its maps.

    Raises:
        ValueError: a picture smaller than a tile, or whose size or whose maps' size is no multiple of `align`.
    """

    def predict_tiles(x_t: Float[Tensor, "b c h w"], level: Level, cond: CondLike | None = None) -> Prediction:
        (height, width), count = x_t.shape[2:], len(x_t)
        if height < size[0] or width < size[1] or height % align or width % align:
            raise ValueError(f"tiles of {size[0]} × {size[1]} that begin at multiples of {align} do not cover {height} × {width} pixels.")
        places = [(top, left) for top in _starts(height, size[0], overlap, align) for left in _starts(width, size[1], overlap, align)]
        given, window = as_cond(cond) or {}, _window(size, x_t)
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        for first in range(0, len(places), max(1, AT_ONCE // count)):
            some = places[first : first + max(1, AT_ONCE // count)]
            tiles = torch.cat([_cut(x_t, place, size, x_t) for place in some])
            conds = [{name: _of_tile(one, place, size, x_t) for name, one in given.items()} for place in some]
            repeated = level if level.alpha.numel() == 1 else Level(*(_rows(each, len(some)) for each in (level.alpha, level.sigma)))
            x0 = predict(tiles, repeated, cat_cond(*conds) if given else None).x0
            for place, part in zip(some, x0.split(count), strict=True):
                _cut(total, place, size, x_t).add_(window * part)
                _cut(weight, place, size, x_t).add_(window)
        return Prediction.from_x0(total / weight, x_t, level)

    return predict_tiles


def _starts(length: int, tile: int, overlap: int, align: int) -> list[int]:
    """Where tiles begin along an axis: evenly, the last one flush with the end."""
    step = max(align, (tile - overlap) // align * align)
    return [*range(0, length - tile, step), length - tile]


def _window(size: tuple[int, int], like: Tensor) -> Tensor:
    """Weights that fall linearly from the middle of a tile to its borders, where they are above 0."""
    rows, columns = (torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).to(like) / n for n in size)
    return rows[:, None] * columns


def _cut(values: Tensor, place: tuple[int, int], size: tuple[int, int], x: Tensor) -> Tensor:
    """A tile of x, or the same area of a map of another resolution."""
    (top, left), (h, w) = place, values.shape[2:]
    cut = []
    for start, length, have, whole in ((top, size[0], h, x.shape[2]), (left, size[1], w, x.shape[3])):
        if start * have % whole or length * have % whole:
            raise ValueError(f"a map of {h} × {w} cannot be cut where tiles of {list(x.shape[2:])} pixels begin; set align.")
        cut.append(slice(start * have // whole, (start + length) * have // whole))
    return values[:, :, cut[0], cut[1]]


def _of_tile(one: Condition, place: tuple[int, int], size: tuple[int, int], x: Tensor) -> Condition:
    """The condition of a tile: maps are cut, others stay."""
    return Condition(_cut(one.value, place, size, x), one.given, one.mask) if one.value.ndim == x.ndim else one


def _rows(scale: Tensor, times: int) -> Tensor:
    """One value a row, for so many tiles of each row."""
    return scale.repeat(times, *(1,) * (scale.ndim - 1))
