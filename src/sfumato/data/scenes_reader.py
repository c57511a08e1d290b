"""Recognises what pictures of scenes show, and compares it with what they should show."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from sfumato.data.scenes_captions import Scene, SceneObject
from sfumato.data.scenes_shapes import BACKGROUND, COLOURS, FINE, RELATIONS, SHAPES, SIZES, blocks, place_of, points, relation_of, size_of

if TYPE_CHECKING:
    from sfumato.data.scenes import SceneBatch

_CHUNK = 1 << 17  # pixels read at a time
_INK = np.subtract(BACKGROUND, list(COLOURS.values())).astype(np.float32)  # background minus colour
_STRENGTH = np.linalg.norm(_INK, axis=1)
_RADII = min(low for low, _ in SIZES.values()), max(high for _, high in SIZES.values())

# A spot covers more than this share of the smoothed picture's pixels, and at least this share of the smallest object's area;
# it includes the pixels around it, this many wide.
_COVERED = 0.35
_SMALLEST = 0.35 * min(shape.area for shape in SHAPES.values()) * _RADII[0] ** 2
_BORDER = 2
# It is an object if its mean colour is this close to one of ours (grey levels), its radius within this factor of ours, and the coverage of
# the best shape this close to its own (squared difference, summed, as a share of its area). The shapes are compared without and with more
# and more blur, since generated pictures may be blurred: standard deviations of 0, 0.5, 0.7, 1 and 1.2 pixels.
_COLOUR = 90.0
_RADIUS = 1.3
_MISFIT = 0.45
_BLURS = (0.0, 1 / 8, 1 / 8, 1 / 4, 1 / 4)
# Nothing is recognised in a picture of which more than this share is covered by unknown spots.
_STRAY = 0.2


def read(images: np.ndarray) -> list[Scene]:
    """The objects that each picture shows, from left to right; for two also the relation of the first to the second.

    A picture is smoothed and divided into connected spots of one colour. In the unsmoothed picture, a spot's area and centre of mass give
    the radius and centre of each possible shape, and the shape with the nearest coverage of the pixels is chosen. Spots that fit no shape
    are counted as unknown; nothing is recognised in noise.

    Args:
        images: RGB, uint8 [n, side, side, 3].

    Raises:
        ValueError: for anything but square RGB pictures of bytes, of at least 16 pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not 16 <= images.shape[1] == images.shape[2]:
        raise ValueError(
            f"scenes are read from uint8 images of shape [n, side, side, 3], 16 pixels a side or more; got {images.dtype} {images.shape}."
        )
    chunk = max(1, _CHUNK // images.shape[1] ** 2)
    return [scene for start in range(0, len(images), chunk) for scene in _read(images[start : start + chunk])]


def _read(images: UInt8[np.ndarray, "n s s 3"]) -> list[Scene]:
    """`read` for as many pictures as fit in memory at once."""
    side = images.shape[1]
    ink = np.array(BACKGROUND, np.float32) - images
    spots, covered = _spots(ink)
    of, left, top, ink = _windows(ink, spots)
    at = np.arange(ink.shape[1], dtype=np.float32) + 0.5

    # The background has no ink, so a spot's ink is its area times its colour's, whatever its borders.
    taken = ink.sum(axis=(1, 2))
    colour = (taken @ (_INK / _STRENGTH[:, None]).T).argmax(axis=1)
    coverage = np.einsum("nhwc,nc->nhw", ink, (_INK / _STRENGTH[:, None] ** 2)[colour])
    area = np.maximum(coverage.sum(axis=(1, 2)), 1.0)
    off_colour = np.linalg.norm(taken / area[:, None] - _INK[colour], axis=1)
    x, y = coverage.sum(axis=1) @ at / area, coverage.sum(axis=2) @ at / area

    best = np.full(len(of), np.inf)
    shape, radius, middle = np.zeros(len(of), np.int64), np.zeros(len(of)), np.zeros(len(of))
    fine = points(len(at))
    for number, form in enumerate(SHAPES.values()):
        r = np.sqrt(area / form.area)
        centre = y - form.centroid * r
        across, down = fine - x[:, None, None], fine[:, None] - centre[:, None, None]
        ideal = blocks((form.distance(across, down, r[:, None, None]) <= 0)[..., None], FINE)[..., 0]
        for weight in _BLURS:
            ideal = _smooth(ideal, weight)
            misfit = np.square(ideal - coverage).sum(axis=(1, 2)) / area
            nearer = misfit < best
            best[nearer], shape[nearer], radius[nearer], middle[nearer] = misfit[nearer], number, r[nearer], centre[nearer]
    x, y, radius = (left + x) / side, (top + middle) / side, radius / side
    known = (best < _MISFIT) & (off_colour < _COLOUR) & (radius > _RADII[0] / _RADIUS) & (radius < _RADII[1] * _RADIUS)
    stray = (covered & ~np.append(known, False)[spots]).mean(axis=(1, 2))
    known &= stray[of] <= _STRAY

    objects: list[list[SceneObject]] = [[] for _ in images]
    colours, shapes = list(COLOURS), list(SHAPES)
    for i in np.lexsort((x, of)):
        if known[i]:
            where = float(x[i]), float(y[i])
            sized = size_of(radius[i]), place_of(*where)
            objects[of[i]].append(SceneObject(colours[colour[i]], shapes[shape[i]], *sized, *where, float(radius[i])))
    unknown = np.bincount(of[~known], minlength=len(images))
    return [_scene(found, int(more)) for found, more in zip(objects, unknown, strict=True)]


def _scene(found: list[SceneObject], unknown: int) -> Scene:
    """The scene of the objects that were found."""
    relation = relation_of(*[(it.x or 0.0, it.y or 0.0) for it in found]) if len(found) == 2 else None
    return Scene(tuple(found), relation, unknown)


def _spots(ink: Float32[np.ndarray, "n s s 3"]) -> tuple[Int64[np.ndarray, "n s s"], Bool[np.ndarray, "n s s"]]:
    """The index of the spot of each pixel, or -1; and which pixels are covered at all."""
    length = _smooth(ink) @ (_INK / _STRENGTH[:, None]).T
    colour = length.argmax(axis=-1)
    covered = length.max(axis=-1) > _COVERED * _STRENGTH[colour]

    place = np.full(covered.shape, -1)
    place[covered] = np.arange(covered.sum())
    edges = []
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[..., 1:], np.s_[..., :-1])):
        joined = covered[one] & covered[other] & (colour[one] == colour[other])
        edges.append((place[one][joined], place[other][joined]))
    component = _components(int(covered.sum()), *map(np.concatenate, zip(*edges, strict=True)))

    large = np.bincount(component, minlength=len(component)) >= _SMALLEST * ink.shape[1] ** 2
    spots = np.full(covered.shape, -1)
    spots[covered] = np.where(large, np.cumsum(large) - 1, -1)[component]
    for _ in range(_BORDER):
        padded = np.pad(spots, [(0, 0), (1, 1), (1, 1)], constant_values=-1)
        near = sliding_window_view(padded, (3, 3), (1, 2)).max(axis=(3, 4))
        spots = np.where(spots < 0, near, spots)
    return spots, covered


def _windows(
    ink: Float32[np.ndarray, "n s s 3"], spots: Int64[np.ndarray, "n s s"]
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"], Int64[np.ndarray, "m"], Float32[np.ndarray, "m w w 3"]]:
    """For every spot the picture, the left and top of a window around it that contains the largest object, and its ink there."""
    picture, row, column = np.nonzero(spots >= 0)
    spot = spots[picture, row, column]
    pixels = np.bincount(spot)
    of, top, left = (np.rint(np.bincount(spot, at) / pixels).astype(np.int64) for at in (picture, row, column))
    half = math.ceil(_RADII[1] * _RADIUS * ink.shape[1]) + _BORDER
    top, left = top - half, left - half
    ink = np.pad(ink, [(0, 0), (half, half), (half, half), (0, 0)])
    spots = np.pad(spots, [(0, 0), (half, half), (half, half)], constant_values=-1)
    at = np.arange(2 * half + 1) + half
    window = of[:, None, None], (top[:, None] + at)[:, :, None], (left[:, None] + at)[:, None, :]
    own = spots[window] == np.arange(len(of))[:, None, None]
    return of, left, top, ink[window] * own[..., None]


def _smooth(values: Float32[np.ndarray, "n h w *c"], weight: float = 0.25) -> Float32[np.ndarray, "n h w *c"]:
    """Each pixel's mean with its neighbours along both axes, with this weight for each."""
    for axis in (1, 2) if weight else ():
        padded = np.pad(values, [(int(a == axis),) * 2 for a in range(values.ndim)], mode="edge")
        before, here, after = (np.take(padded, np.arange(values.shape[axis]) + shift, axis) for shift in range(3))
        values = weight * (before + after) + (1 - 2 * weight) * here
    return values


def _components(count: int, one: Int64[np.ndarray, "m"], other: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "count"]:
    """The smallest of the points that each of `count` points is connected with, through the pairs (one, other)."""
    root = np.arange(count)
    while (root[one] != root[other]).any():
        a, b = root[one], root[other]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root != root[root]).any():
            root = root[root]
    return root


def matches(reading: Scene, wanted: Scene) -> dict[str, bool]:
    """Which parts of a wanted scene (a truth, or a parsed caption) a reading has right.

    "count" is whether it shows that many objects and nothing unknown; only then can anything else be right. "colour", "shape", "size",
    "place" and "relation" are present if the wanted scene has them; each refers to all objects. Positions and radii are not compared
    otherwise. Objects are paired with the wanted ones in the way that is best for the reading. "all" is everything together.
    """
    attributes = [name for name in ("colour", "shape", "size", "place") if any(getattr(it, name) is not None for it in wanted.objects)]
    count = len(reading.objects) == len(wanted.objects) and reading.unknown == 0
    best = dict.fromkeys(attributes + ["relation"] * (wanted.relation is not None), False)
    for shown in permutations(reading.objects) if count else ():
        pairs = list(zip(shown, wanted.objects, strict=True))
        right = {name: all(getattr(w, name) in (None, getattr(s, name)) for s, w in pairs) for name in attributes}
        if wanted.relation is not None:
            turned = shown != reading.objects
            right["relation"] = (RELATIONS.get(reading.relation or "") if turned else reading.relation) == wanted.relation
        if sum(right.values()) >= sum(best.values()):
            best = right
    return {"count": count, **best, "all": count and all(best.values())}


@dataclass(frozen=True)
class Share:
    """How many of how many are right."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.count

    @property
    def error(self) -> float:
        """Its binomial standard error, which is 0 if all or none are right."""
        return math.sqrt(self.value * (1 - self.value) / self.count)

    def __str__(self) -> str:
        """The share and its error."""
        return f"{self.value:.4f} ± {self.error:.4f}"


def score(readings: Sequence[Scene], wanted: "SceneBatch | Iterable[Scene]") -> dict[str, Share]:
    """The share of pictures that are right in each property of `matches`, among those where it was wanted.

    Args:
        readings: the results of `read`.
        wanted: the batch that the pictures should show, or a scene for each of them (`map(parse, captions)`).

    Raises:
        ValueError: different numbers of scenes and readings, or none.
    """
    scenes = tuple(wanted if isinstance(wanted, Iterable) else wanted.scenes)
    if not readings or len(readings) != len(scenes):
        raise ValueError(f"score compares as many readings as wanted scenes, at least one; got {len(readings)} and {len(scenes)}.")
    judged = [matches(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
    names = [name for name in ("count", "colour", "shape", "size", "place", "relation", "all") if any(name in one for one in judged)]
    return {name: Share(sum(one.get(name, False) for one in judged), sum(name in one for one in judged)) for name in names}
