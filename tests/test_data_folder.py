import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import folder


def shared(name):
    where = os.environ.get("SFUMATO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    path = Path(where) / name
    if not path.exists():
        pytest.skip(f"{name} is not here; set SFUMATO_TEST_DATA to its folder")
    return path


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def zipped(root, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, prefix + file.relative_to(root).as_posix())
    return path


def png_claiming(width, height):
    """A PNG whose header promises far more pixels than it holds."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.fixture
def classes(tmp_path):
    root = tmp_path / "pets"
    for split, kind, i in [("train", "dog", 0), ("train", "cat", 1), ("train", "cat", 2), ("test", "dog", 3), ("test", "owl", 4)]:
        save(root / split / kind / f"{i}.png", pixels(5, 7, 3, seed=i))
    return root


def test_classes_are_the_folders_that_images_lie_in(classes):
    data = folder(classes)
    order = [3, 4, 1, 2, 0]
    np.testing.assert_array_equal(data.values, np.stack([pixels(5, 7, 3, seed=i) for i in order]))
    assert data.classes == ("cat", "dog", "owl")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2, 0, 0, 1]
    assert data.shape == (3, 5, 7)
    assert (data.name, data.skipped) == ("pets", ())


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_zip_equals_folder(classes, tmp_path, prefix):
    (classes / ".DS_Store").write_text("hidden")
    from_folder, from_zip = folder(classes), folder(zipped(classes, tmp_path / "pets.zip", prefix))
    assert from_zip.fingerprint() == from_folder.fingerprint()
    assert from_zip.classes == from_folder.classes


@pytest.mark.parametrize("prefix", ["", "flat/"])
def test_images_in_one_folder_have_no_labels(tmp_path, prefix):
    root = tmp_path / "flat"
    for i in range(3):
        save(root / f"{i}.png", pixels(4, 4, 3, seed=i))
    for path in (root, zipped(root, tmp_path / "flat.zip", prefix)):
        data = folder(path)
        assert data.labels is None
        np.testing.assert_array_equal(data.values[2], pixels(4, 4, 3, seed=2))


def test_labels_can_be_left_out(classes):
    assert folder(classes, labels=False).labels is None


def test_hidden_and_other_files_are_ignored(classes):
    before = folder(classes).fingerprint()
    (classes / "readme.txt").write_text("no image")
    (classes / "train" / "cat" / ".hidden.png").write_bytes(b"no image")
    save(classes / ".git" / "cat" / "0.png", pixels(5, 7, 3))
    assert folder(classes).fingerprint() == before


def test_linked_folders_are_followed_but_not_in_circles(classes, tmp_path):
    root = tmp_path / "links"
    root.mkdir()
    (root / "cat").symlink_to(classes / "train" / "cat")
    (root / "dog").symlink_to(classes / "train" / "dog")
    (classes / "train" / "cat" / "up").symlink_to(root)
    assert len(folder(root)) == 3


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".TIFF", ".webp", ".jpg", ".JPEG"])
def test_formats(tmp_path, suffix):
    array = np.repeat(np.repeat(pixels(3, 4, 3) // 128 * 255, 16, axis=0), 16, axis=1)
    options = {"lossless": True} if suffix == ".webp" else {"quality": 95, "subsampling": 0} if suffix.lower()[1] == "j" else {}
    save(tmp_path / "in" / f"a{suffix}", array, **options)
    np.testing.assert_allclose(folder(tmp_path / "in", channels=3).values[0].astype(int), array, atol=8)


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(folder(tmp_path).values[0, 0, 0], [255, 0, 0])


def test_grey_stays_grey(tmp_path):
    grey = pixels(5, 4)
    save(tmp_path / "a.png", grey)
    Image.fromarray(grey).save(tmp_path / "b.gif")
    data = folder(tmp_path)
    np.testing.assert_array_equal(data.values, np.stack([grey, grey])[..., None])


def test_one_colour_image_makes_all_rgb(tmp_path):
    grey, colour = pixels(5, 4), pixels(5, 4, 3)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "b.png", colour)
    data = folder(tmp_path)
    np.testing.assert_array_equal(data.values[0], np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(data.values[1], colour)
    assert folder(tmp_path, channels=1).shape == (1, 5, 4)


def test_transparency_is_laid_on_white(tmp_path):
    array = np.zeros((1, 3, 4), np.uint8)
    array[..., 0] = 200
    array[0, :, 3] = [0, 128, 255]
    save(tmp_path / "a.png", array)
    expected = np.array([[255, 255, 255], [227, 127, 127], [200, 0, 0]])
    np.testing.assert_allclose(folder(tmp_path).values[0, 0].astype(int), expected, atol=1)


def test_transparent_grey_stays_grey(tmp_path):
    save(tmp_path / "a.png", np.array([[[0, 0], [0, 255], [90, 255]]], np.uint8))
    np.testing.assert_array_equal(folder(tmp_path).values[0, 0, :, 0], [255, 0, 90])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_kept(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257 * 100, 257 * 254, 65535]], np.uint16)
    save(tmp_path / f"a{suffix}", levels)
    np.testing.assert_array_equal(folder(tmp_path).values[0, ..., 0], levels)


def test_float_pixels_are_refused_by_name(tmp_path):
    save(tmp_path / "a.tif", np.ones((2, 2), np.float32))
    save(tmp_path / "b.tif", pixels(2, 2))
    assert folder(tmp_path).skipped == ("a.tif: pixels of 32-bit floats have no standard range",)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK"])
def test_other_modes_are_converted(tmp_path, mode):
    image = Image.fromarray(pixels(6, 6, 3)).convert(mode)
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(folder(tmp_path, channels=3).values[0], np.asarray(image.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path):
    array = np.zeros((16, 32), np.uint8)
    array[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", array, exif=exif)
    turned = folder(tmp_path).values[0, ..., 0]
    assert turned.shape == (32, 16)
    assert turned[:16].min() > 200
    assert turned[16:].max() < 50


@pytest.mark.parametrize(("shape", "size", "expected"), [((9, 5), 4, (4, 4)), ((5, 9), (3, 7), (3, 7)), ((3, 4), (8, 5), (8, 5))])
def test_size_covers_and_crops(tmp_path, shape, size, expected):
    save(tmp_path / "a.png", pixels(*shape, 3))
    assert folder(tmp_path, size=size).values.shape == (1, *expected, 3)


def test_size_cuts_out_the_centre(tmp_path):
    array = pixels(7, 12)
    save(tmp_path / "a.png", array)
    np.testing.assert_array_equal(folder(tmp_path, size=(7, 6)).values[0, ..., 0], array[:, 3:9])


def test_size_antialiases(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    save(tmp_path / "a.png", stripes)
    small = folder(tmp_path, size=8).values[0, 1:-1, 1:-1].astype(int)
    np.testing.assert_allclose(small, 127.5, atol=6)


def test_size_keeps_a_ramp_a_ramp(tmp_path):
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (30, 1))
    save(tmp_path / "a.png", ramp)
    small = folder(tmp_path, size=10).values[0, 5, :, 0].astype(int)
    centres = 15 + 3 * (np.arange(10) + 0.5) - 0.5
    np.testing.assert_allclose(small, 4 * centres, atol=1.5)


def test_several_sizes_need_a_size(tmp_path):
    save(tmp_path / "a.png", pixels(4, 4))
    save(tmp_path / "b.png", pixels(4, 6))
    with pytest.raises(ValueError, match=r"got 4×4 \(height × width\) in a.png and 4×6 in b.png; set size"):
        folder(tmp_path)
    assert folder(tmp_path, size=4).shape == (1, 4, 4)


@pytest.fixture
def damaged(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", pixels(20, 20, 3, seed=i))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    return tmp_path


def test_one_broken_image_is_skipped_and_named(damaged):
    data = folder(damaged)
    assert len(data) == 5
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith("1.png: ")
    np.testing.assert_array_equal(data.values[1], pixels(20, 20, 3, seed=2))


def test_more_broken_images_than_the_limit_are_an_error(damaged):
    (damaged / "4.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more than 1 images are broken: .*1.png: .*; 4.png: not an image of a known format; repair"):
        folder(damaged)
    assert len(folder(damaged, limit_broken=2)) == 4
    with pytest.raises(ValueError, match="more than 0 images are broken"):
        folder(damaged, limit_broken=0)


def test_all_broken_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of its 1 images can be read: a.png: not an image"):
        folder(tmp_path)


@pytest.mark.parametrize("side", [100_000, 11_000])
def test_decompression_bombs_are_broken(damaged, side):
    (damaged / "1.png").write_bytes(png_claiming(side, side))
    assert "decompression bomb" in folder(damaged).skipped[0]


def test_bomb_guard_leaves_pillow_as_it_was(damaged):
    before = Image.MAX_IMAGE_PIXELS
    folder(damaged)
    assert before == Image.MAX_IMAGE_PIXELS


def test_files_of_another_format_are_not_opened(damaged):
    (damaged / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert folder(damaged).skipped == ("1.png: not an image of a known format",)


def test_names_outside_the_archive_are_refused(tmp_path):
    image = save(tmp_path / "a.png", pixels(3, 3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("good/a.png", "../evil.png"):
            archive.write(image, name)
    data = folder(tmp_path / "a.zip")
    assert data.skipped == ("../evil.png: its name points outside the archive",)
    assert len(data) == 1


def test_damaged_member_is_skipped(tmp_path):
    root = tmp_path / "in"
    for i in range(3):
        save(root / f"{i}.bmp", pixels(9, 9, 3, seed=i))
    path = zipped(root, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("1.bmp").header_offset
    data[at + 100] ^= 255
    path.write_bytes(data)
    skipped = folder(path).skipped
    assert len(skipped) == 1
    assert skipped[0].startswith("1.bmp: ")


def test_images_beside_class_folders_are_refused(classes):
    save(classes / "train" / "stray.png", pixels(5, 7, 3))
    with pytest.raises(ValueError, match="some in train and some in train/cat below it; move them, or set labels=False"):
        folder(classes)
    assert len(folder(classes, labels=False)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, r"channels must be 1 \(grey\), 3 \(RGB\), 4 \(RGBA\) or None .* got 2"),
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"size": (4, -1)}, "at least 1 pixel"),
        ({"limit_broken": -1}, "limit_broken must be 0 or more files, got -1"),
    ],
)
def test_options_refused(classes, options, message):
    with pytest.raises(ValueError, match=message):
        folder(classes, **options)


def test_paths_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must contain images .* got none; check the path"):
        folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="got no such path; check the spelling"):
        folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"text.zip must be a folder or a .zip of images, got something else"):
        folder(tmp_path / "text.zip")


def test_flowers(tmp_path):
    path = shared("flowers64.zip")
    few = tmp_path / "few.zip"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(few, "w") as part:
        names = [name for name in archive.namelist() if not name.endswith("/")][::40]
        for name in names:
            part.writestr(name, archive.read(name))
    data = folder(few)
    assert len(data) == len(names)
    assert data.shape == (3, 64, 64)
    assert data.labels is not None
    found = [data.classes[label] for label in data.labels]
    assert found == [name.split("/")[1] for name in sorted(names, key=lambda name: name.split("/"))]


def test_damaged_archive_is_refused(tmp_path):
    image = save(tmp_path / "a.png", pixels(3, 3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "a.png")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02")] = 0
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read .*a.zip as a .zip: .*; download it again"):
        folder(tmp_path / "a.zip")


def test_encrypted_members_are_broken(tmp_path):
    image = save(tmp_path / "a.png", pixels(3, 3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.write(image, name)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert folder(tmp_path / "a.zip").skipped == ("a.png: it is encrypted",)
