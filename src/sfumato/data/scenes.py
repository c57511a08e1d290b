"""Rendered scenes: coloured shapes on a plain background, with all their properties, and a reader that recognises them.

They test conditions: whether a model follows a class, a number, a map or a caption can be measured exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from sfumato.condition import Classes, ConditionSpec, Map, Numbers
from sfumato.data.dataset import Dataset, of_images
from sfumato.data.scenes_captions import Scene, SceneObject, parse, phrasings
from sfumato.data.scenes_reader import Share, matches, read, score
from sfumato.data.scenes_shapes import (
    ASIDE,
    BACKGROUND,
    COLOURS,
    FINE,
    GAP,
    MARGIN,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    THIRDS,
    blocks,
    points,
)

__all__ = [
    "BACKGROUND",
    "COLOURS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Combination",
    "Scene",
    "SceneBatch",
    "SceneObject",
    "Scenes",
    "Share",
    "matches",
    "parse",
    "phrasings",
    "read",
    "score",
]

# (colour, shape), or for two objects (colour, shape, relation, colour, shape).
Combination = tuple[str, ...]

_CLASSES = {
    1: ("colour", "shape", "size", "place"),
    2: ("colour", "shape", "size", "relation", "colour2", "shape2", "size2"),
}  # by the number of objects
_CHUNK = 1 << 22  # points drawn at a time


@dataclass(frozen=True)
class SceneBatch:
    """Scenes and their properties, as arrays whose first axis counts the scenes.

    Attributes:
        images: RGB.
        classes: name → its number in `class_names[name]`: colour, shape, size and place of one object; colour, shape, size, relation,
            colour2, shape2 and size2 of two.
        class_names: name → the names of its numbers.
        numbers: `number_names` in their order, as shares of the picture's side: centre (x, y) from the top left and radius of each object's
            bounding box.
        low: the mean of each block of 4×4 pixels.
        outline: a line of one pixel's width along the borders, 255 where it covers a pixel.
        captions: one true caption each, of varying form and detail.
        scenes: the truth, for `score`.
    """

    images: UInt8[np.ndarray, "n s s 3"]
    classes: dict[str, Int64[np.ndarray, "n"]]
    class_names: dict[str, tuple[str, ...]]
    numbers: Float32[np.ndarray, "n k"]
    number_names: tuple[str, ...]
    low: UInt8[np.ndarray, "n q q 3"]
    outline: UInt8[np.ndarray, "n s s 1"]
    captions: tuple[str, ...]
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class Scenes:
    """Options of the scenes. Scene i depends only on these options and on i.

    Two objects differ in colour. Combinations of colour and shape (for two objects: of both, with their relation) can be held out: they are
    drawn only on request. Which ones depends on the names and on `held_out`, not on the seed, so another seed gives fresh scenes of the
    same split. A relation and its inverse ("a red circle above a blue square", "a blue square below a red circle") are held out together,
    because they are the same picture.

    Attributes:
        size: side of the picture in pixels, 16 to 64, a multiple of 4.
        objects: 1 or 2 in every picture.
        colours, shapes, sizes, places: those that occur, equally often; places are for one object.
        held_out: the share of combinations (rounded, at least one if above 0), spread evenly over the names; or the combinations: (colour,
        shape) of any object, or (colour, shape, relation, colour, shape) of two.
        seed: at least 0.

    Raises:
        ValueError: for anything else.
    """

    size: int = 32
    objects: int = 1
    colours: Sequence[str] = tuple(COLOURS)
    shapes: Sequence[str] = tuple(SHAPES)
    sizes: Sequence[str] = tuple(SIZES)
    places: Sequence[str] = ("top left", "top right", "centre", "bottom left", "bottom right")
    held_out: float | Sequence[Sequence[str]] = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options and keeps lists as tuples."""
        if not 16 <= self.size <= 64 or self.size % 4:
            raise ValueError(f"the size of scenes must be 16 to 64 pixels and a multiple of 4, got {self.size}.")
        if self.objects not in (1, 2):
            raise ValueError(f"scenes must have 1 or 2 objects, got {self.objects}.")
        if self.seed < 0:
            raise ValueError(f"the seed of scenes must be at least 0, got {self.seed}.")
        for option, known in (("colours", COLOURS), ("shapes", SHAPES), ("sizes", SIZES), ("places", PLACES)):
            names = tuple(getattr(self, option))
            if not names or len(set(names)) < len(names) or not set(names) <= set(known):
                raise ValueError(f"the {option} of scenes must be some of {', '.join(known)}, each once; got {', '.join(names) or 'none'}.")
            object.__setattr__(self, option, names)
        if self.objects == 2 and len(self.colours) < 2:
            raise ValueError(f"two objects differ in colour; give at least two colours, got only {self.colours[0]}.")
        if not isinstance(self.held_out, int | float):
            object.__setattr__(self, "held_out", tuple(map(tuple, self.held_out)))
        _ = self._split  # checks the held-out combinations

    def combinations(self, *, held_out: bool = False) -> tuple[Combination, ...]:
        """The combinations that `draw` draws, equally often."""
        return self._split[held_out]

    @cached_property
    def _split(self) -> tuple[tuple[Combination, ...], tuple[Combination, ...]]:
        """The combinations seen and those held out."""
        every: list[Combination] = [(colour, shape) for colour in self.colours for shape in self.shapes]
        if self.objects == 2:
            every = [(*one, relation, *two) for one in every for relation in RELATIONS for two in every if one[0] != two[0]]
        held = _share_of(every, self.held_out) if isinstance(self.held_out, int | float) else _listed(every, self.held_out)
        return tuple(it for it in every if _canonical(it) not in held), tuple(it for it in every if _canonical(it) in held)

    def draw(self, count: int, start: int = 0, *, held_out: bool = False) -> SceneBatch:
        """Scenes start to start + count - 1, of the seen or of the held-out combinations (two independent series).

        Raises:
            ValueError: for fewer than one scene, a negative start, or held-out combinations if there are none.
        """
        if count < 1 or start < 0:
            raise ValueError(f"draw at least one scene, from number 0 on; got count={count}, start={start}.")
        combinations = self.combinations(held_out=held_out)
        if not combinations:
            raise ValueError("these scenes hold out no combinations; set held_out to a share such as 0.2.")
        u = np.stack([np.random.default_rng([self.seed, int(held_out), i]).random(10) for i in range(start, start + count)])
        chosen = [combinations[k] for k in _pick(u[:, 0], len(combinations))]
        size = _pick(u[:, 1 : 1 + self.objects], len(self.sizes))
        low, high = np.moveaxis(np.array([SIZES[name] for name in self.sizes])[size], -1, 0)
        radius = low + (high - low) * u[:, 3 : 3 + self.objects]
        if self.objects == 1:
            places = [self.places[int(k)] for k in _pick(u[:, 5], len(self.places))]
            centre = _placed(radius, u[:, 6:8], places)
        else:
            places = [None] * count
            centre = _related(radius, u[:, 5:9], [combination[2] for combination in chosen])
        numbers = np.concatenate([centre, radius[..., None]], axis=2)
        sizes = [[self.sizes[int(k)] for k in row] for row in size]
        scenes = tuple(map(_scene, chosen, sizes, places, numbers.tolist()))
        forms = [phrasings(scene) for scene in scenes]
        kinds, names = _classes(self, scenes)
        images, outline = _drawn(scenes, numbers, self.size)
        return SceneBatch(
            images=images,
            classes=kinds,
            class_names=names,
            numbers=numbers.reshape(count, -1).astype(np.float32),
            number_names=("x", "y", "radius", "x2", "y2", "radius2")[: 3 * self.objects],
            low=blocks(images.astype(np.float32), 4).round().astype(np.uint8),
            outline=outline,
            captions=tuple(form[int(at * len(form))] for form, at in zip(forms, u[:, 9], strict=True)),
            scenes=scenes,
        )

    def dataset(self, count: int, *, conditions: Sequence[str] | None = None, held_out: bool = False) -> Dataset:
        """The first `count` scenes as a data set, with their properties as conditions and one caption each.

        Args:
            count: how many.
            conditions: names, as in `SceneBatch`: the classes (colour, shape, …), `numbers`, `low` and `outline`; all by default.
            held_out: draw the held-out combinations.

        Raises:
            ValueError: as `draw`, and for unknown names.
        """
        every = (*_CLASSES[self.objects], "numbers", "low", "outline")
        names = every if conditions is None else tuple(conditions)
        if wrong := [name for name in names if name not in every]:
            raise ValueError(f'these scenes have no condition "{wrong[0]}"; theirs are {", ".join(every)}.')
        drawn = self.draw(count, held_out=held_out)
        known: dict[str, tuple[np.ndarray, ConditionSpec]] = {
            name: (numbers, Classes(drawn.class_names[name], tuple(np.bincount(numbers, minlength=len(drawn.class_names[name])).tolist())))
            for name, numbers in drawn.classes.items()
        }
        known |= {
            "numbers": (drawn.numbers, Numbers.measured(drawn.numbers, drawn.number_names)),
            "low": (drawn.low, Map(3)),
            "outline": (drawn.outline, Map(1)),
        }
        return of_images(drawn.images, name="scenes", captions=drawn.captions, conditions={name: known[name] for name in names})


def _scene(combination: Combination, sizes: list[str], place: str | None, numbers: list[list[float]]) -> Scene:
    """A scene of the combination, with these sizes and (x, y, radius) of its objects."""
    names = zip(combination[::3], combination[1::3], sizes, numbers, strict=True)
    objects = tuple(SceneObject(colour, shape, size, place, *at) for colour, shape, size, at in names)
    return Scene(objects, combination[2] if len(combination) == 5 else None)


def _pick(u: Float[np.ndarray, "*n"], count: int) -> Int64[np.ndarray, "*n"]:
    """0 to count - 1, equally often, from uniform numbers in [0, 1)."""
    return (u * count).astype(np.int64)


def _canonical(combination: Combination) -> Combination:
    """The canonical one of the two equivalent forms of a combination."""
    if len(combination) == 5 and combination[2] in ("below", "right of"):
        return (*combination[3:], RELATIONS[combination[2]], *combination[:2])
    return combination


def _share_of(every: list[Combination], share: float) -> set[Combination]:
    """A share of the combinations in which the names are held out about equally often."""
    if not 0 <= share < 1:
        raise ValueError(f"the share of combinations held out must be at least 0 and below 1, got {share}.")
    kinds = sorted({_canonical(it) for it in every})
    kinds = [kinds[k] for k in np.random.default_rng(0).permutation(len(kinds))]
    columns = [np.unique(column, return_inverse=True)[1] for column in zip(*kinds, strict=True)]
    taken = np.zeros(len(kinds), bool)
    for _ in range(max(1, round(share * len(kinds))) if share else 0):
        often = sum((np.bincount(column, taken) / np.bincount(column))[column] for column in columns)
        taken[np.where(taken, np.inf, often).argmin()] = True
    for column in columns:
        if (np.bincount(column, ~taken) == 0).any():
            raise ValueError(f"holding out {share} of the combinations leaves some colour or shape unseen; hold out fewer.")
    return {kind for kind, held in zip(kinds, taken, strict=True) if held}


def _listed(every: list[Combination], listed: Sequence[Sequence[str]]) -> set[Combination]:
    """The combinations in the list, or with an object in it."""
    held = set[Combination]()
    for entry in map(tuple, listed):
        matching = {_canonical(it) for it in every if entry in (it, it[:2])}  # as either object, because both forms are in the list
        if not matching:
            raise ValueError(f"held_out names the combination {entry}, which these scenes do not have; a valid one is {every[0]}.")
        held |= matching
    if held >= {_canonical(it) for it in every}:
        raise ValueError("held_out names every combination; some must be left.")
    return held


def _placed(radius: Float[np.ndarray, "n 1"], u: Float[np.ndarray, "n 2"], places: list[str]) -> Float[np.ndarray, "n 1 2"]:
    """Centres of one object a picture, uniform within its place."""
    low, high = np.moveaxis(np.array(THIRDS)[np.array([PLACES[name][:2] for name in places])], -1, 0)
    low, high = np.maximum(low, MARGIN + radius), np.minimum(high, 1 - MARGIN - radius)
    return (low + (high - low) * u)[:, None]


def _related(radius: Float[np.ndarray, "n 2"], u: Float[np.ndarray, "n 4"], relations: list[str]) -> Float[np.ndarray, "n 2 2"]:
    """Centres of two objects a picture in the relation, with disjoint bounding boxes."""
    nearest, room = radius.sum(axis=1) + GAP, 1 - 2 * MARGIN - radius.sum(axis=1)
    apart = nearest + (room - nearest) * u[:, 0]
    inverted = np.isin(relations, ("below", "right of"))
    first = np.where(inverted, radius[:, 1], radius[:, 0])
    along = MARGIN + first + (room - apart) * u[:, 1]
    along = np.stack([np.where(inverted, along + apart, along), np.where(inverted, along, along + apart)], axis=1)

    low, high = MARGIN + radius, 1 - MARGIN - radius
    across = low[:, 0] + (high - low)[:, 0] * u[:, 2]
    aside = np.maximum(low[:, 1], across - ASIDE * apart), np.minimum(high[:, 1], across + ASIDE * apart)
    across = np.stack([across, aside[0] + (aside[1] - aside[0]) * u[:, 3]], axis=1)
    upright = np.isin(relations, ("above", "below"))[:, None]
    return np.stack([np.where(upright, across, along), np.where(upright, along, across)], axis=2)


def _classes(options: Scenes, scenes: Sequence[Scene]) -> tuple[dict[str, Int64[np.ndarray, "n"]], dict[str, tuple[str, ...]]]:
    """Numbers and names of every class."""
    names = {"colour": tuple(options.colours), "shape": tuple(options.shapes), "size": tuple(options.sizes)}
    told = {name: [getattr(scene.objects[0], name) for scene in scenes] for name in names}
    if options.objects == 1:
        names["place"], told["place"] = tuple(options.places), [scene.objects[0].place for scene in scenes]
    else:
        second = {f"{name}2": [getattr(scene.objects[1], name) for scene in scenes] for name in names}
        told |= {"relation": [scene.relation for scene in scenes], **second}
        names |= {"relation": tuple(RELATIONS), **{f"{name}2": values for name, values in names.items()}}
    return {name: np.array([names[name].index(it) for it in values], np.int64) for name, values in told.items()}, names


def _drawn(
    scenes: Sequence[Scene], numbers: Float[np.ndarray, "n m 3"], size: int
) -> tuple[UInt8[np.ndarray, "n s s 3"], UInt8[np.ndarray, "n s s 1"]]:
    """Images and outlines of the scenes."""
    images = np.full((len(scenes), size, size, 3), BACKGROUND, np.float32)
    outline = np.zeros((len(scenes), size, size, 1), np.float32)
    # An object is drawn in a window that contains the largest object and its outline.
    side = math.ceil(2 * size * max(high for _, high in SIZES.values())) + 3
    at = points(side)
    step = max(1, _CHUNK // at.size**2)
    for j in range(numbers.shape[1]):
        shapes = np.array([scene.objects[j].shape for scene in scenes])
        ink = np.array([COLOURS[scene.objects[j].colour or ""] for scene in scenes], np.float32) - np.array(BACKGROUND, np.float32)
        for name, shape in SHAPES.items():
            rows = np.flatnonzero(shapes == name)
            for some in np.split(rows, range(step, len(rows), step)):
                x, y, radius = size * numbers[some, j].T
                left, top = (np.clip(np.floor(to - radius).astype(np.int64) - 1, 0, size - side) for to in (x, y))
                distance = shape.distance(
                    at - (x - left)[:, None, None].astype(np.float32),
                    at[:, None] - (y - top)[:, None, None].astype(np.float32),
                    radius[:, None, None].astype(np.float32),
                )
                across, down = (start[:, None] + np.arange(side) for start in (left, top))
                window = some[:, None, None], down[:, :, None], across[:, None, :]
                images[window] += blocks((distance <= 0)[..., None], FINE) * ink[some, None, None]
                outline[window] += blocks((np.abs(distance) <= 0.5)[..., None], FINE)
    return images.round().astype(np.uint8), (255 * outline).round().astype(np.uint8)
