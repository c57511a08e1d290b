from importlib import resources

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sfumato.data import FASHION_CLASSES, digits, fashion, fashion_small


def test_fashion_small_is_the_head_of_fashion():
    small = fashion_small()
    assert (len(small), small.shape, small.classes) == (10_000, (1, 28, 28), FASHION_CLASSES)
    try:
        whole = fashion()
    except ValueError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(small.values, whole.values[:10_000])
    np.testing.assert_array_equal(small.labels, whole.labels[:10_000])


def test_fashion_small_ships_with_its_licence():
    files = resources.files("sfumato.data")
    assert "Zalando SE" in files.joinpath("FASHION-MNIST-LICENSE").read_text(encoding="utf-8")
    assert len(files.joinpath("fashion10k.npz").read_bytes()) < 5_000_000


def test_digits_ship_with_their_source_and_licence():
    files = resources.files("sfumato.data")
    note = files.joinpath("DIGITS-LICENSE").read_text(encoding="utf-8")
    assert "Alpaydin" in note
    assert "creativecommons.org/licenses/by/4.0" in note
    assert len(files.joinpath("digits.npz").read_bytes()) < 60_000


def test_digits_keep_their_seventeen_levels():
    data = digits()
    original = load_digits()
    np.testing.assert_array_equal(np.round(data.values[..., 0] * (16 / 255)), original["images"])
    assert len(np.unique(data.values)) == 17
    assert (data.values.min(), data.values.max()) == (0, 255)
    np.testing.assert_array_equal(data.labels, original["target"])
    assert data.classes == tuple("0123456789")
