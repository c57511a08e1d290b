import pickle

import numpy as np
import pytest
import torch

from sfumato.data import IMAGES, from_arrays, npy, npz


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 3, 3), dtype=np.uint8)


def test_npy_images_are_mapped(tmp_path, pixels):
    np.save(tmp_path / "pictures.npy", pixels)
    data = npy(tmp_path / "pictures.npy")
    assert isinstance(data.values, np.memmap)
    assert data.scaling == IMAGES
    assert data.name == "pictures"
    np.testing.assert_array_equal(IMAGES.decode(data.batch(np.arange(6))[0]), pixels)


def test_npy_floats_are_mapped_and_standardised_by_feature(tmp_path):
    values = np.random.default_rng(0).normal([3, -100], [0.1, 50], (500, 2)).astype(np.float32)
    np.save(tmp_path / "table.npy", values)
    data = npy(tmp_path / "table.npy")
    assert isinstance(data.values, np.memmap)
    x0, _ = data.batch(np.arange(500))
    np.testing.assert_allclose(x0.mean(dim=0).numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(x0.std(dim=0, correction=0).numpy(), 1, atol=1e-5)
    np.testing.assert_allclose(data.scaling.decode(x0), values, rtol=1e-6, atol=1e-5)


def test_float_images_stay_tensors_under_one_scale():
    values = np.random.default_rng(0).uniform(0, 1, (20, 4, 4, 3))
    data = from_arrays(values)
    assert not data.is_image
    assert data.shape == (4, 4, 3)
    assert data.scaling.shift == pytest.approx(values.mean(), abs=1e-6)
    assert data.scaling.scale == pytest.approx(values.std(), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_become_float32(dtype):
    values = np.arange(12).reshape(6, 2).astype(dtype)
    np.testing.assert_array_equal(from_arrays(values).values, values.astype(np.float32))


def test_grey_images_gain_a_channel(pixels):
    data = from_arrays(pixels[..., 0])
    np.testing.assert_array_equal(data.values, pixels[..., :1])


@pytest.mark.parametrize(("values", "labels"), [("arr_0", "arr_1"), ("values", "labels")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_names(tmp_path, pixels, values, labels, save):
    save(tmp_path / "samples.npz", **{values: pixels, labels: np.array([0, 1, 2, 0, 1, 2], np.uint8), "extra": np.zeros(3)})
    data = npz(tmp_path / "samples.npz")
    np.testing.assert_array_equal(data.values, pixels)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == ("0", "1", "2")
    assert npz(tmp_path / "samples.npz", classes=("a", "b", "c", "d")).classes == ("a", "b", "c", "d")


def test_npz_of_one_array_of_any_name(tmp_path, pixels):
    np.savez(tmp_path / "samples.npz", faces=pixels)
    data = npz(tmp_path / "samples.npz")
    np.testing.assert_array_equal(data.values, pixels)
    assert data.labels is None


def test_decoded_samples_read_back_as_the_same_data(tmp_path, pixels):
    x0 = from_arrays(pixels).batch(torch.arange(6))[0]
    np.savez(tmp_path / "samples.npz", arr_0=IMAGES.decode(x0))
    assert npz(tmp_path / "samples.npz").fingerprint() == from_arrays(pixels).fingerprint()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 3), np.int64), r"uint8 \(images\) or floats \(tensors\), got int64 \[4, 3\]; convert"),
        (np.zeros((4, 3), bool), "got bool"),
        (np.zeros((4, 3), complex), "got complex128"),
        (np.zeros(4), r"at least one feature axis, got \[4\]; try values\[:, None\]"),
        (np.zeros((0, 3)), r"there must be data, got the empty shape \[0, 3\]"),
        (np.zeros((0, 3, 3), np.uint8), "there must be data"),
        (np.zeros((4, 3), np.uint8), r"uint8 values must be images \[n, h, w\].* got \[4, 3\]"),
        (np.zeros((4, 3, 8, 8), np.uint8), "move the channels last"),
        (np.array([[1.0], [np.nan]]), "must be finite, got 1 rows .* from row 1"),
        (np.array([[1.0], [1e300]]), "must be finite"),
    ],
)
def test_values_refused(values, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(values)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4), r"labels must be integers \[n\], got float64"),
        (np.zeros((4, 1), np.int64), r"labels must be integers \[n\], got int64 \[4, 1\]"),
        (np.full(4, 1 << 40), "labels must be below 1000000, got 1099511627776"),
        (np.array([0, -1, 0, 0]), "got -1 to 0"),
        (np.zeros(3, np.int64), "one label for each of 4 values, got 3"),
        (np.zeros(0, np.int64), "one label for each of 4 values, got 0"),
    ],
)
def test_labels_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(np.ones((4, 2)), labels)


def test_npz_refuses_unknown_names(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="or one array, got x, y; save it with"):
        npz(tmp_path / "a.npz")


def test_npy_and_npz_tell_each_other_apart(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    np.savez(tmp_path / "a.npz", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="load it with npy"):
        npz(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="load it with npz"):
        npy(tmp_path / "a.npz")


def test_objects_and_pickles_are_never_run(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    np.savez(tmp_path / "objects.npz", np.array([{}], dtype=object), allow_pickle=True)
    for load, name in [(npy, "objects.npy"), (npy, "pickle.npy"), (npz, "objects.npz")]:
        with pytest.raises(ValueError, match=r"cannot read .* as NumPy data: "):
            load(tmp_path / name)


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_truncated_files_are_refused(tmp_path, pixels, name, cut):
    np.save(tmp_path / "a.npy", pixels)
    np.savez_compressed(tmp_path / "a.npz", pixels)
    (tmp_path / "cut").write_bytes((tmp_path / name).read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cannot read .*cut as NumPy data: "):
        (npy if name == "a.npy" else npz)(tmp_path / "cut")


@pytest.mark.parametrize("load", [npy, npz])
def test_missing_files_are_named(tmp_path, load):
    with pytest.raises(ValueError, match="none is no file; give the path"):
        load(tmp_path / "none")
