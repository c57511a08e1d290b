"""Pictures of samples: sheets of images, scatter plots of points, GIFs of either. All return Pillow images."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

LETTER = (6, 11)  # pixels of width and height of a letter of Pillow's default bitmap font


def sheet(
    values: Shaped[np.ndarray, "n h w c"], *, columns: int | None = None, scale: int | None = None, captions: Sequence[str] = ()
) -> Image.Image:
    """Images in rows of `columns`, enlarged if they are small, separated by a thin light line.

    Captions, one for each image if given, are below the images, truncated to their width.

    Images of 16 bits are shown in 8, from the darkest to the brightest of their values, ignoring 0.1% at each end.
    """
    values = _in_bytes(values)
    n, h, w, c = values.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows, scale = -(-n // columns), scale or max(1, round(56 / max(h, w)))
    canvas = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, c), 224, dtype=np.uint8)
    for i, value in enumerate(values):
        top, left = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
        canvas[top : top + h, left : left + w] = value
    image = Image.fromarray(canvas.squeeze(2) if c == 1 else canvas)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    return _captioned(image, captions, columns, rows) if any(captions) else image


def _captioned(image: Image.Image, captions: Sequence[str], columns: int, rows: int) -> Image.Image:
    """A sheet with a caption below each image."""
    width, height = image.width // columns, image.height // rows
    page = Image.new(image.mode, (image.width, rows * (height + LETTER[1] + 2)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default_imagefont()
    for row in range(rows):
        top = row * (height + LETTER[1] + 2)
        page.paste(image.crop((0, row * height, image.width, (row + 1) * height)), (0, top))
        for column, caption in enumerate(captions[row * columns : (row + 1) * columns]):
            text = caption.encode("latin-1", "replace").decode("latin-1")[: max(1, width // LETTER[0])]
            draw.text((column * width + 2, top + height), text, fill="black", font=font)
    return page


def beside(several: Sequence[UInt8[np.ndarray, "n _ _ _"]]) -> UInt8[np.ndarray, "n _ _ _"]:
    """Pictures of one example side by side, scaled to the size of the last by repeating pixels; if one has colour, all become colour."""
    h, w, _ = several[-1].shape[1:]
    channels = max(values.shape[-1] for values in several)
    sized = []
    for values in several:
        rows, columns = (np.arange(size) * found // size for size, found in zip((h, w), values.shape[1:3], strict=True))
        values = values[:, rows][:, :, columns]
        sized.append(np.repeat(values, channels, -1) if values.shape[-1] < channels else values)
    return np.concatenate(sized, axis=2)


def _in_bytes(values: Shaped[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    if values.dtype == np.uint8:
        return values
    low, high = np.quantile(values, [0.001, 0.999])
    return ((values - low) / max(high - low, 1) * 255).round().clip(0, 255).astype(np.uint8)


def cloud(points: Shaped[np.ndarray, "n d"], *, limits: tuple[float, float, float, float] | None = None, title: str = "") -> Image.Image:
    """A scatter plot of points in the plane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=max(0.5, min(8.0, 8000 / len(points))), color="#30507a", alpha=0.5, linewidths=0)
    axes.set_aspect("equal", adjustable="box")
    if limits is not None:
        axes.set_xlim(limits[0], limits[1])
        axes.set_ylim(limits[2], limits[3])
    if title:
        axes.set_title(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def picture(values: Shaped[np.ndarray, "n *value"], *, columns: int | None = None, title: str = "") -> Image.Image:
    """A sheet of images [n, h, w, c], or a scatter plot of points [n, 2].

    Raises:
        ValueError: data of another shape, which cannot be drawn.
    """
    if values.ndim == 4 and np.issubdtype(values.dtype, np.integer):
        return sheet(values, columns=columns)
    if values.ndim == 2 and values.shape[1] == 2:
        return cloud(values, limits=limits_of(values), title=title)
    raise ValueError(f"{values.dtype} samples of shape {values.shape[1:]} cannot be drawn; save them as .npz.")


def limits_of(points: Shaped[np.ndarray, "n 2"]) -> tuple[float, float, float, float]:
    """The limits of both axes, around all but the farthest points, with a margin."""
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    margin = 0.08 * float((high - low).max()) + 1e-6
    return low[0] - margin, high[0] + margin, low[1] - margin, high[1] + margin


def gif(frames: Sequence[Image.Image], path: Path, *, seconds: float = 4.0) -> None:
    """Writes the frames as a GIF that holds its last frame longer."""
    each = max(20, round(1000 * seconds / len(frames)))
    palette = [frame.quantize(256) if frame.mode == "RGB" else frame for frame in frames]
    palette[0].save(path, save_all=True, append_images=palette[1:], duration=[each] * (len(frames) - 1) + [1500], loop=0, format="GIF")
