"""Scenes in words: all true captions of a scene, and what a caption asks for."""

import re
from dataclasses import dataclass

from sfumato.data.scenes_shapes import COLOURS, PLACES, RELATIONS, SHAPES, SIZES


@dataclass(frozen=True)
class SceneObject:
    """One object; None means unknown, or not asked for.

    Attributes:
        colour, shape, size, place: names of `COLOURS`, `SHAPES`, `SIZES`, `PLACES`.
        x, y: centre of the bounding box, as shares of the picture's side, from the top left.
        radius: half the side of the bounding box, as a share of the picture's side.
    """

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    place: str | None = None
    x: float | None = None
    y: float | None = None
    radius: float | None = None

    def named(self, *, size: bool = True) -> str:
        """Size (if known and wanted), colour and shape in words."""
        return " ".join(filter(None, ("a", self.size if size else None, self.colour, self.shape or "thing")))


@dataclass(frozen=True)
class Scene:
    """What a picture shows (truth or reading), or what a caption asks for; `str` gives it in words.

    Attributes:
        objects: the objects; those of a truth or a caption in the order of the relation.
        relation: of the first to the second of two objects, a name of `RELATIONS`.
        unknown: number of other spots that the reader did not recognise; 0 in a truth.
    """

    objects: tuple[SceneObject, ...] = ()
    relation: str | None = None
    unknown: int = 0

    def __str__(self) -> str:
        """Everything but the numbers in words, as a caption if captions can express it."""
        if not self.objects:
            return "nothing recognised"
        if len(self.objects) == 2 and self.relation is not None:
            text = f" {_WORDS[self.relation]} ".join(it.named() for it in self.objects)
        else:
            text = ", ".join(it.named() + (f" {PLACES[it.place][2]}" if it.place else "") for it in self.objects)
        return text + (f", and {self.unknown} more not recognised" if self.unknown else "")


def phrasings(scene: Scene) -> tuple[str, ...]:
    """All captions of a scene of one object, or of two with a relation, that `parse` can read; the most detailed one first.

    Colours and shapes are always given; sizes (of all objects or none) and the place of a single object in some.

    Raises:
        ValueError: for a scene without objects, with an object without colour or shape, or with more than one object and no relation.
    """
    if not 1 <= len(scene.objects) <= 2 or (len(scene.objects) == 2) != (scene.relation is not None):
        raise ValueError(
            f"captions describe one object, or two and their relation; got {len(scene.objects)} and relation={scene.relation!r}."
        )
    if any(it.colour is None or it.shape is None for it in scene.objects):
        raise ValueError("a caption needs every object's colour and shape; give both.")
    bare = [it.named(size=False) for it in scene.objects]
    sized = [bare] if any(it.size is None for it in scene.objects) else [[it.named() for it in scene.objects], bare]
    captions = []
    for names in sized:
        if len(names) == 2:
            first, second = names
            relation, inverse = _WORDS[scene.relation or ""], _WORDS[RELATIONS[scene.relation or ""]]
            captions += [f"{first} {relation} {second}", f"{first} is {relation} {second}", f"{first} with {second} {inverse} it"]
        elif place := scene.objects[0].place:
            where = PLACES[place][2]
            captions += [f"{names[0]} {where}", f"{where}, {names[0]}", f"there is {names[0]} {where}"]
    return (*captions, *(names[0] for names in sized if len(names) == 1))


def parse(caption: str) -> Scene:
    """What a caption of the grammar of `phrasings` asks for; the rest is None. Case and a final full stop do not matter.

    Raises:
        ValueError: for a caption of another form.
    """
    text = re.sub(r"\s+", " ", caption.strip().lower()).removesuffix(".")
    for form, inverted in _FORMS:
        if found := form.fullmatch(text):
            part = found.groupdict()
            place = next((name for name, place in PLACES.items() if place[2] == part.get("place")), None)
            first = SceneObject(part["colour"], part["shape"], part["size"], place)
            if "relation" not in part:
                return Scene((first,))
            relation = next(name for name, words in _WORDS.items() if words.endswith(part["relation"]))
            second = SceneObject(part["colour2"], part["shape2"], part["size2"])
            return Scene((first, second), RELATIONS[relation] if inverted else relation)
    raise ValueError(
        f"cannot read the caption {caption!r}; write one like 'a small red circle at the top left' or 'a blue triangle above a yellow "
        f"circle', of the sizes {', '.join(SIZES)}, the colours {', '.join(COLOURS)} and the shapes {', '.join(SHAPES)}."
    )


_WORDS = {"above": "above", "below": "below", "left of": "to the left of", "right of": "to the right of"}


def _any(names: list[str], group: str) -> str:
    return f"(?P<{group}>{'|'.join(names)})"


def _object(number: str = "") -> str:
    return f"a (?:{_any([*SIZES], 'size' + number)} )?{_any([*COLOURS], 'colour' + number)} {_any([*SHAPES], 'shape' + number)}"


_PLACE = _any([place[2] for place in PLACES.values()], "place")
_RELATION = f"(?:to the )?{_any([*RELATIONS], 'relation')}"
# Each form, and whether its relation is that of the second object to the first.
_FORMS = [
    (re.compile(f"(?:there is )?{_object()}(?: {_PLACE})?"), False),
    (re.compile(f"{_PLACE}, {_object()}"), False),
    (re.compile(f"{_object()} (?:is )?{_RELATION} {_object('2')}"), False),
    (re.compile(f"{_object()} with {_object('2')} {_RELATION} it"), True),
]
