"""Checks on image files: what the loader changes silently."""

import math
from collections.abc import Sequence

from sfumato.data.options import FolderData
from sfumato.doctor.check import NOTE, WARNING, Reading, above, check, share
from sfumato.doctor.files import Picture
from sfumato.doctor.plan import Plan


@check("alpha-on-white", NOTE, above(0, "any transparent pixel is replaced, which the owner should know"))
def alpha_on_white(plan: Plan) -> Reading | None:
    """Share of the image files with transparent pixels."""
    if not plan.pictures:
        return None
    clear = 0 if plan.x0.shape[1] == 4 else sum(picture.is_transparent for picture in plan.pictures)
    return Reading(
        clear / len(plan.pictures),
        f"{clear} of {len(plan.pictures)} files have transparent pixels.",
        "They are put on a white background, which the model will learn.",
        "--set data.channels=4 also learns the transparency; for another background, put the images on it yourself.",
    )


MOST_LOST = 0.2  # share of an image


@check("cropped-away", WARNING, above(MOST_LOST, "a square cut from 5:4 loses 20%; from 4:3, 25%; from 16:9, 44%"))
def cropped_away(plan: Plan) -> Reading | None:
    """Mean share of an image that is cropped away to fit the size."""
    options = plan.recipe.data
    if not plan.pictures or not isinstance(options, FolderData) or options.fit != "crop":
        return None
    height, width = plan.x0.shape[2:]
    lost = [_lost(picture, height, width) for picture in plan.pictures]
    mean = sum(lost) / len(lost)
    change = "--set data.fit=pad keeps the whole of every image, on white"
    left, size = _better(plan.pictures, height, width)
    if left <= MOST_LOST:
        change = f"--set data.size='[{size[0]}, {size[1]}]' (height, width) crops {share(left)}; {change}"
    return Reading(
        mean,
        f"On average {share(mean)} of an image is cropped away to fit {width}×{height}; at most {share(max(lost))}.",
        "The centre is kept: heads, feet and everything at the sides is never seen, so it is never sampled.",
        change,
    )


@check("enlarged", WARNING, above(0.2, "a few small files do no harm; a fifth makes the model learn blur"))
def enlarged(plan: Plan) -> Reading | None:
    """Share of the image files that are enlarged by more than 10% to fit the size."""
    options = plan.recipe.data
    if not plan.pictures or not isinstance(options, FolderData):
        return None
    height, width = plan.x0.shape[2:]
    factor = min if options.fit == "pad" else max
    small = sum(factor(width / picture.width, height / picture.height) > 1.1 for picture in plan.pictures) / len(plan.pictures)
    smallest = min(min(picture.width, picture.height) for picture in plan.pictures)
    return Reading(
        small,
        f"{share(small)} of the files are smaller than {width}×{height}; the smallest side is {smallest} pixels.",
        "They are enlarged, and the model learns their blur.",
        f"--set data.size={8 * (smallest // 8)}, or remove the small files" if smallest >= 8 else "Remove the small files.",
    )


def _better(pictures: Sequence[Picture], height: int, width: int) -> tuple[float, tuple[int, int]]:
    """The smallest cropped share, and its size, over sizes with sides that are multiples of 8 and about as many pixels as now."""
    sides = range(8, 2 * max(height, width) + 8, 8)
    sizes = [(h, w) for h in sides for w in sides if abs(math.log(h * w / (height * width))) < math.log(2)]

    def cost(size: tuple[int, int]) -> tuple[float, float]:
        left = sum(_lost(picture, *size) for picture in pictures) / len(pictures)
        return left + abs(math.log(size[0] * size[1] / (height * width))) / 4, left

    best = min(sizes, key=cost, default=(height, width))
    return cost(best)[1], best


def _lost(picture: Picture, height: int, width: int) -> float:
    """The share of a picture outside the largest centred rectangle of this aspect ratio."""
    scale = min(picture.width / width, picture.height / height)
    return 1 - scale * width * scale * height / (picture.width * picture.height)
