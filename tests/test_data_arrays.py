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
    np.testing.assert_array_equal(IMAGES.decode(data.batch(np.arange(6)).x), pixels)


def test_npy_floats_are_mapped_and_standardised_by_feature(tmp_path):
    values = np.random.default_rng(0).normal([3, -100], [0.1, 50], (500, 2)).astype(np.float32)
    np.save(tmp_path / "table.npy", values)
    data = npy(tmp_path / "table.npy")
    assert isinstance(data.values, np.memmap)
    x0 = data.batch(np.arange(500)).x
    np.testing.assert_allclose(x0.mean(dim=0).numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(x0.std(dim=0, correction=0).numpy(), 1, atol=1e-5)
    np.testing.assert_allclose(data.scaling.decode(x0), values, rtol=1e-6, atol=1e-5)


def test_float_images_stay_tensors_with_a_scale_a_channel_unless_told():
    values = np.random.default_rng(0).normal(0, 1, (20, 3, 4, 5)) * np.array([1, 1e5, 1e-3])[:, None, None] + 7
    data = from_arrays(values)
    assert not data.is_image
    assert data.shape == (3, 4, 5)
    np.testing.assert_allclose(data.scaling.shift, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.scaling.scale, values.std(axis=(0, 2, 3)), rtol=1e-12)
    told = from_arrays(values, scaling="all")
    assert (told.scaling.shift, told.scaling.scale) == (pytest.approx(values.mean()), pytest.approx(values.std()))


def test_channels_may_be_last():
    values = np.random.default_rng(0).normal(0, 1, (20, 6, 5, 3)) * [1, 10, 100]
    (note,) = from_arrays(values).notes
    assert "are read with 6 channels, on axis 1; if these are images with channels last, set data.channels=last" in note
    data = from_arrays(values, channels="last")
    assert (data.shape, data.notes) == ((3, 6, 5), ())
    x0 = data.batch(np.arange(20)).x
    np.testing.assert_allclose(data.scaling.scale, values.std(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(x0[4, 2, 1, 3].item(), (values[4, 1, 3, 2] - data.scaling.shift[2]) / data.scaling.scale[2], rtol=1e-6)
    np.testing.assert_allclose(data.scaling.decode(x0), values, rtol=1e-5, atol=1e-5)
    assert from_arrays(values, channels="first").notes == ()
    assert from_arrays(values.transpose(0, 3, 1, 2)).notes == ()


@pytest.mark.parametrize(("dtype", "kept"), [(np.float16, "float32"), (np.float64, "float64"), (">f4", "float32"), (">f8", "float64")])
def test_floats_keep_what_they_say(dtype, kept):
    values = np.arange(12).reshape(6, 2).astype(dtype)
    data = from_arrays(values)
    assert data.values.dtype == kept
    np.testing.assert_array_equal(data.values, values)
    assert data.scaling.decode(data.batch(np.arange(6)).x).dtype == kept


def test_data_far_from_zero_keep_their_digits():
    values = 1.7e9 + 30 * np.random.default_rng(0).normal(size=(500, 2))
    data = from_arrays(values)
    np.testing.assert_allclose(data.scaling.scale, (values - 1.7e9).std(axis=0), rtol=1e-9)
    x0 = data.batch(np.arange(500)).x
    assert len(np.unique(x0[:, 0].numpy())) == 500
    np.testing.assert_allclose(x0.double().mean(0).numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(data.scaling.decode(x0), values, rtol=0, atol=1e-5)


def test_16_bits_are_kept_and_written_back(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 5, 4, 3)).astype(">u2")
    np.save(tmp_path / "a.npy", values)
    for data in (from_arrays(values), npy(tmp_path / "a.npy")):
        x0 = data.batch(np.arange(20)).x
        assert (data.shape, data.is_image, data.is_bytes) == ((3, 5, 4), True, False)
        np.testing.assert_allclose([x0.mean(), x0.std(correction=0)], [0, 1], atol=1e-5)
        back = data.scaling.decode(x0)
        assert back.dtype == np.uint16
        np.testing.assert_array_equal(back, values)
        np.testing.assert_array_equal(data.scaling.decode(torch.full((1, 3, 1, 1), 1e9)), 65535)
    assert from_arrays(values[..., 0]).shape == (1, 5, 4)


def test_torch_tensors_are_arrays():
    values = torch.randn(9, 2, requires_grad=True)
    data = from_arrays(values, torch.arange(9) % 3)
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([0, 1, 2] * 3, ("0", "1", "2"))
    np.testing.assert_array_equal(data.values, values.detach().numpy())
    np.testing.assert_array_equal(from_arrays(values.to(torch.bfloat16)).values, values.detach().to(torch.bfloat16).float().numpy())
    assert from_arrays(torch.zeros(3, 4, 4, dtype=torch.uint8)).is_bytes


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_with_nan_are_dropped(tmp_path, mapped):
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    values[[2, 7], 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "labels.npy", np.arange(10))
    cached = {"cache": tmp_path / "cache"}
    take = lambda: npy(tmp_path / "a.npy", tmp_path / "labels.npy", missing="drop", **cached)  # noqa: E731
    data = take() if mapped else from_arrays(values, np.arange(10), missing="drop")
    kept = [0, 1, 3, 4, 5, 6, 8, 9]
    np.testing.assert_array_equal(data.values, values[kept])
    assert data.labels is not None
    assert data.labels.tolist() == kept
    assert "left out 2 of 10 rows with NaN" in data.notes[0]
    assert not mapped or take().notes == data.notes
    with pytest.raises(ValueError, match="got 2 rows with NaN or infinity from row 2 on; .*data.missing=drop"):
        from_arrays(values)
    values[0] = np.inf
    with pytest.raises(ValueError, match="got 1 rows"):
        from_arrays(values, missing="drop")


@pytest.mark.parametrize(
    ("shape", "options", "found"),
    [
        ((4, 9), {"dims": 1}, (1, 9)),
        ((4, 2, 9), {"dims": 1}, (2, 9)),
        ((4, 9, 2), {"dims": 1, "channels": "last"}, (2, 9)),
        ((4, 5, 6, 7), {"dims": 3}, (1, 5, 6, 7)),
        ((4, 5, 6, 7), {"dims": 3, "channels": "last"}, (1, 5, 6, 7)),
        ((4, 2, 5, 6, 7), {"dims": 3}, (2, 5, 6, 7)),
        ((4, 6, 7), {"dims": 2}, (1, 6, 7)),
    ],
)
def test_signals_and_volumes_gain_an_axis_of_channels(shape, options, found):
    values = np.random.default_rng(0).normal(size=shape)
    data = from_arrays(values, **options)
    assert data.shape == found
    np.testing.assert_allclose(data.scaling.decode(data.batch(np.arange(4)).x).reshape(shape), values, rtol=1e-5, atol=1e-6)


def test_other_numbers_of_axes_are_refused():
    with pytest.raises(ValueError, match=r"with data.dims=3 values must be \[n, depth, height, width\] or .*, got \[4, 9\]; reshape"):
        from_arrays(np.zeros((4, 9)), dims=3)


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
    x0 = from_arrays(pixels).batch(torch.arange(6)).x
    np.savez(tmp_path / "samples.npz", arr_0=IMAGES.decode(x0))
    assert npz(tmp_path / "samples.npz").fingerprint() == from_arrays(pixels).fingerprint()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 3), np.int64), r"uint8 or uint16 \(images\) or floats \(tensors\), got int64 \[4, 3\]; convert"),
        (np.zeros((4, 3), bool), "got bool"),
        (np.zeros((4, 3), complex), "got complex128"),
        (np.zeros(4), r"at least one feature axis, got \[4\]; try values\[:, None\]"),
        (np.zeros((0, 3)), r"there must be data, got the empty shape \[0, 3\]"),
        (np.zeros((0, 3, 3), np.uint8), "there must be data"),
        (np.zeros((4, 3), np.uint8), r"uint8 values must be images \[n, h, w\].* got \[4, 3\]"),
        (np.zeros((4, 3, 8, 8), np.uint8), "move the channels last"),
        (np.array([[1.0], [np.nan]]), "must be finite, got 1 rows .* from row 1"),
        (np.array([[1.0], [1e300]]), "reach from 1 to 1e.300, whose squares overflow"),
        ([[1.0], [2.0]], "must be a NumPy array or a torch tensor, got list"),
        (np.zeros((4, 3, 8, 8), np.uint16), "uint16 values must be images"),
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
    with pytest.raises(ValueError, match="none is not a file; give the path"):
        load(tmp_path / "none")
