import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sfumato.data import folder
from sfumato.data.writing import write_png


def save(path, array):
    Image.fromarray(array).save(path)


def png_of_16_bits(levels):
    """A PNG of [h, w, c] levels of 16 bits, written by the format's definition."""
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_kept_whatever_the_channels(tmp_path, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (6, 5, channels))
    if channels in (2, 4):
        levels[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png_of_16_bits(levels))
    colours = levels[..., : 3 if channels > 2 else 1]
    data = folder(tmp_path, channels=3)
    assert data.scaling.dtype == data.values.dtype == np.uint16
    np.testing.assert_array_equal(data.values[0], np.broadcast_to(colours, (6, 5, 3)))
    np.testing.assert_array_equal(folder(tmp_path).values[0], colours)
    np.testing.assert_array_equal(folder(tmp_path, channels=4).values[0, ..., 3], 65535)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_16_bits_lie_on_white(tmp_path, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (6, 5, channels))
    (tmp_path / "a.png").write_bytes(png_of_16_bits(levels))
    alpha = levels[..., -1:] / 65535
    np.testing.assert_allclose(folder(tmp_path).values[0], alpha * levels[..., :-1] + (1 - alpha) * 65535, atol=0.5)
    np.testing.assert_array_equal(folder(tmp_path, channels=4).values[0, ..., 3], levels[..., -1])


def test_16_bits_come_to_a_size_as_8_do(tmp_path):
    bytes_ = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    save(tmp_path / "8.png", bytes_)
    (tmp_path / "16").mkdir()
    (tmp_path / "16" / "a.png").write_bytes(png_of_16_bits(bytes_.astype(int) * 257))
    for fit in ("crop", "pad", "stretch"):
        deep = folder(tmp_path / "16", size=(4, 5), fit=fit).values[0]
        (tmp_path / fit).mkdir()
        save(tmp_path / fit / "8.png", bytes_)
        np.testing.assert_allclose(deep / 257, folder(tmp_path / fit, size=(4, 5), fit=fit).values[0], atol=1)


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_bytes_beside_16_bits_are_spread_over_them(tmp_path, names):
    grey = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    levels = np.random.default_rng(1).integers(0, 65536, (6, 5, 3))
    for name in "0123":
        save(tmp_path / f"{names[0]}{name}.png", grey)
    (tmp_path / f"{names[1]}.png").write_bytes(png_of_16_bits(levels))
    values = folder(tmp_path, cache=tmp_path / "cache").values
    first = names[0] == "a"
    np.testing.assert_array_equal(values[-1 if first else 0], levels)
    for image in values[:-1] if first else values[1:]:
        np.testing.assert_array_equal(image, np.repeat(grey[..., None].astype(int) * 257, 3, axis=2))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_are_written_with_all_their_bits(tmp_path, channels, dtype):
    value = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 5, channels), endpoint=True).astype(dtype)
    write_png(tmp_path / "a.png", value)
    np.testing.assert_array_equal(folder(tmp_path, channels=channels).values[0], value)


@pytest.fixture
def wide(tmp_path):
    """An image of 4 rows and 8 columns, black on its left half and red on its right."""
    array = np.zeros((4, 8, 3), np.uint8)
    array[:, 4:, 0] = 200
    save(tmp_path / "wide.png", array)
    return tmp_path


def test_crop_leaves_out_the_sides(wide):
    np.testing.assert_array_equal(folder(wide, size=4).values[0, 0, :, 0], [0, 0, 200, 200])


def test_pad_keeps_all_and_adds_white(wide):
    values = folder(wide, size=8, fit="pad").values[0]
    np.testing.assert_array_equal(values[2:6, :, 0], np.tile([0] * 4 + [200] * 4, (4, 1)))
    assert (values[:2] == 255).all()
    assert (values[6:] == 255).all()


def test_padding_is_transparent_where_there_is_transparency(wide):
    values = folder(wide, size=8, fit="pad", channels=4).values[0]
    np.testing.assert_array_equal(values[:, 0, 3], [0, 0, 255, 255, 255, 255, 0, 0])


def test_stretch_fills_the_size_with_the_whole_image(wide):
    values = folder(wide, size=(8, 2), fit="stretch").values[0]
    np.testing.assert_allclose(values[:, :, 0].astype(int), np.tile([0, 200], (8, 1)), atol=25)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(7, 3), (1, 9), (5, 5)])
def test_every_fit_gives_the_size(tmp_path, fit, shape):
    save(tmp_path / "a.png", np.full((*shape, 3), 90, np.uint8))
    values = folder(tmp_path, size=(6, 4), fit=fit).values
    assert values.shape == (1, 6, 4, 3)
    assert set(np.unique(values)) <= ({90, 255} if fit == "pad" else {90})


def test_a_fit_without_a_size_is_refused(wide):
    with pytest.raises(ValueError, match="fit=pad needs a size"):
        folder(wide, fit="pad")


def test_rgba_keeps_its_transparency(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    save(tmp_path / "a.png", array)
    save(tmp_path / "b.png", array[..., :3])
    save(tmp_path / "c.png", array[..., 0])
    values = folder(tmp_path, channels=4).values
    np.testing.assert_array_equal(values[0], array)
    np.testing.assert_array_equal(values[1], np.dstack([array[..., :3], np.full((5, 4), 255)]))
    np.testing.assert_array_equal(values[2, ..., 1], array[..., 0])


@pytest.mark.parametrize("colour", [0, 3, 6, None])
@pytest.mark.parametrize("cached", [False, True])
def test_grey_rows_gain_channels_with_the_first_colour(tmp_path, colour, cached):
    """Also in a cache's file, where they have been written already."""
    images = [np.random.default_rng(i).integers(0, 256, (5, 4, 3) if i == colour else (5, 4), dtype=np.uint8) for i in range(7)]
    (tmp_path / "in").mkdir()
    for i, image in enumerate(images):
        save(tmp_path / "in" / f"{i}.png", image)
    values = folder(tmp_path / "in", cache=tmp_path / "cache" if cached else None).values
    channels = 1 if colour is None else 3
    expected = [image if image.ndim == 3 else np.repeat(image[..., None], channels, axis=2) for image in images]
    np.testing.assert_array_equal(values, np.stack(expected))
