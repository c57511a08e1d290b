"""The parts of scenes: colours, shapes, sizes, places and relations, with the names that captions and readings use."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Shaped

BACKGROUND = (235, 235, 235)
FINE = 4  # points for each pixel along an axis; the share inside a shape is the pixel's coverage

# At least 30° apart as seen from the background, so that a half-covered pixel still shows its colour.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 205, 40),
    "purple": (165, 50, 185),
    "cyan": (50, 205, 215),
}


@dataclass(frozen=True)
class Shape:
    """A shape of radius 1: half the side of its bounding box, whose centre is the shape's centre.

    Attributes:
        distance: signed distance to the border, negative inside, of (x, y) from the centre (y downwards) and a radius, all in one unit.
            Outside near a corner it is the distance to the farther side's line, so that a band around the border has sharp corners.
        area: of the shape of radius 1.
        perimeter: of the shape of radius 1.
        centroid: distance of the centre of mass below the centre, in radii.
    """

    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    area: float
    perimeter: float
    centroid: float = 0.0


def _circle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _square(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Corners (0, -1), (-1, 1) and (1, 1) times the radius."""
    return np.maximum((2 * np.abs(x) - y - radius) / math.sqrt(5), y - radius)


SHAPES: Mapping[str, Shape] = {
    "circle": Shape(_circle, math.pi, 2 * math.pi),
    "square": Shape(_square, 4.0, 8.0),
    "triangle": Shape(_triangle, 2.0, 2 + 2 * math.sqrt(5), centroid=1 / 3),
}

# Ranges of the radius, as a share of the picture's side; a reader uses the middle of the gap as threshold.
SIZES: Mapping[str, tuple[float, float]] = {"small": (0.13, 0.15), "large": (0.19, 0.21)}

# Ranges of one coordinate of the centre (share of the side): near 0, middle, near 1. An object keeps MARGIN from the picture's edge.
THIRDS = ((0.0, 0.38), (0.46, 0.54), (0.62, 1.0))
MARGIN = 0.03
# Two objects: free space between their bounding boxes, and their largest sideways offset, as a share of their distance along the relation.
GAP = 0.09
ASIDE = 0.6

# A place's name, its column and row among THIRDS, and its words in a caption.
PLACES: Mapping[str, tuple[int, int, str]] = {
    "top left": (0, 0, "at the top left"),
    "top": (1, 0, "at the top"),
    "top right": (2, 0, "at the top right"),
    "left": (0, 1, "on the left"),
    "centre": (1, 1, "in the centre"),
    "right": (2, 1, "on the right"),
    "bottom left": (0, 2, "at the bottom left"),
    "bottom": (1, 2, "at the bottom"),
    "bottom right": (2, 2, "at the bottom right"),
}

# A relation, and the same relation seen from the other object.
RELATIONS: Mapping[str, str] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


def size_of(radius: float) -> str:
    """The size whose range is nearest to the radius (share of the picture's side)."""
    return min(SIZES, key=lambda name: max(SIZES[name][0] - radius, radius - SIZES[name][1]))


def place_of(x: float, y: float) -> str:
    """The place of a centre (shares of the side, y downwards)."""
    column, row = (min(range(3), key=lambda i: max(THIRDS[i][0] - at, at - THIRDS[i][1])) for at in (x, y))
    return next(name for name, place in PLACES.items() if place[:2] == (column, row))


def relation_of(first: tuple[float, float], second: tuple[float, float]) -> str:
    """The relation of the first centre to the second, by the larger of the two distances."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def blocks(values: Shaped[np.ndarray, "n h w c"], side: int) -> Float32[np.ndarray, "n q p c"]:
    """The mean of every block of side × side pixels."""
    n, h, w, c = values.shape
    return values.reshape(n, h // side, side, w // side, side, c).mean(axis=(2, 4), dtype=np.float32)


def points(count: int) -> Float32[np.ndarray, "m"]:
    """The points along an axis of `count` pixels, FINE for each pixel; the share inside a shape is a pixel's coverage."""
    return (np.arange(count * FINE, dtype=np.float32) + 0.5) / FINE
