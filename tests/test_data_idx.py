import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from sfumato.data import FASHION_CLASSES, fashion, fashion_small, idx, read_idx

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(array):
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 3, 5), dtype=np.uint8)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx_inverts_writing(tmp_path, dtype, pack):
    array = np.random.default_rng(0).normal(0, 50, (4, 3, 5)).astype(dtype)
    (tmp_path / "file").write_bytes(pack(idx_bytes(array)))
    read = read_idx(tmp_path / "file")
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"is truncated: \[7, 3, 5\] of uint8 needs 105 bytes of data, got 104"),
        (lambda data: data[:16], "needs 105 bytes of data, got 0"),
        (lambda data: data + b"x", "is too long: .* needs 105 bytes of data, got more"),
        (lambda data: data[:9], "its header needs 16 bytes, got 9"),
        (lambda data: data[:3], r"is not an idx file: .* got \[0, 0, 8\]"),
        (lambda data: b"\x89PNG" + data, "is not an idx file"),
        (lambda data: data[:2] + b"\x0a" + data[3:], r"type \(8, 9 or 11 to 14\) and the rank, got \[0, 0, 10, 3\]"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "claims to unpack to"),
        (lambda data: gzip.compress(data)[:-20], "damaged gzip file"),
        (lambda data: gzip.compress(data)[:-8] + b"12345678", "damaged gzip file"),
        (lambda data: b"\x1f\x8b" + data, "damaged gzip file"),
        (lambda data: gzip.compress(data[:-1]), "is truncated"),
        (lambda data: gzip.compress(data + b"x"), "is too long"),
    ],
)
def test_read_idx_refuses(tmp_path, pixels, change, message):
    (tmp_path / "file").write_bytes(change(idx_bytes(pixels)))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file")


def test_read_idx_refuses_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none: No such file"):
        read_idx(tmp_path / "none")


def test_idx_makes_a_data_set(tmp_path, pixels):
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([0, 3, 1, 1, 2, 3, 0], np.uint8)))
    data = idx(tmp_path / "images.gz", tmp_path / "labels")
    np.testing.assert_array_equal(data.values[..., 0], pixels)
    assert data.shape == (1, 3, 5)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 3, 1, 1, 2, 3, 0]
    assert data.classes == ("0", "1", "2", "3")
    assert idx(tmp_path / "images.gz").labels is None


def test_idx_refuses_labels_of_another_length(tmp_path, pixels):
    (tmp_path / "images").write_bytes(idx_bytes(pixels))
    (tmp_path / "labels").write_bytes(idx_bytes(np.zeros(6, np.uint8)))
    with pytest.raises(ValueError, match="one label for each of 7 values, got 6"):
        idx(tmp_path / "images", tmp_path / "labels")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_reads_a_folder(tmp_path, suffix):
    images = np.random.default_rng(1).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    pack = gzip.compress if suffix else bytes
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(np.arange(10, dtype=np.uint8))))
    data = fashion(tmp_path, train=False)
    np.testing.assert_array_equal(data.values[..., 0], images)
    assert data.name == "fashion-mnist-test"
    assert [data.classes[label] for label in data.labels] == list(FASHION_CLASSES)


def test_fashion_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"apt install dataset-fashion-mnist.*amazonaws.com/train-images-idx3-ubyte.gz"):
        fashion(tmp_path)


def test_debian_test_images():
    if not DEBIAN.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = fashion(train=False)
    assert data.shape == (1, 28, 28)
    assert np.bincount(data.labels).tolist() == [1000] * 10
    small = fashion_small()
    bags = [part.values[part.labels == FASHION_CLASSES.index("bag")].mean() for part in (data, small)]
    sandals = [part.values[part.labels == FASHION_CLASSES.index("sandal")].mean() for part in (data, small)]
    np.testing.assert_allclose(bags, bags[0], rtol=0.05)
    np.testing.assert_allclose(sandals, sandals[0], rtol=0.05)
    assert bags[0] > 2 * sandals[0]
