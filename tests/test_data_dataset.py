import json
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from sfumato.data import IMAGES, Dataset, Scaling, from_arrays, npy
from sfumato.data.source import Block, Group, Random

FLOATS = Scaling(shift=0.0, scale=1.0, dtype="float32")
HOW = {"random": Random, "block": Block}


def images(n=6, h=3, w=5, c=3, seed=0, **changes):
    values = np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    options = {"values": values, "labels": None, "classes": (), "scaling": IMAGES, "name": "pictures"}
    return Dataset(**(options | changes))


def points(n=100, seed=0, **changes):
    values = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    options = {"values": values, "labels": None, "classes": (), "scaling": FLOATS, "name": "points"}
    return Dataset(**(options | changes))


def test_every_grey_level_survives_the_round_trip():
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x0 = IMAGES.encode(greys)
    assert x0.dtype == torch.float32
    assert (x0.min().item(), x0.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(IMAGES.decode(x0), greys)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_grey_levels_survive_other_float_types(dtype):
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(IMAGES.decode(IMAGES.encode(greys).to(dtype)), greys)


def test_encode_moves_channels_first():
    values = images(n=2, h=3, w=5, c=4).values
    x0 = IMAGES.encode(values)
    assert x0.is_contiguous()
    assert x0[1, 2, 0, 4].item() == pytest.approx(values[1, 0, 4, 2] / 127.5 - 1, abs=1e-6)


def test_decode_rounds_and_clamps():
    x0 = torch.tensor([-7.0, -1.0, 0.6 / 127.5 - 1, 1.0, float("inf")]).reshape(1, 1, 1, 5)
    np.testing.assert_array_equal(IMAGES.decode(x0).ravel(), [0, 0, 1, 255, 255])


def test_scaling_by_channel_follows_axis_1_of_x0():
    scaling = Scaling(shift=(0.0, 100.0, 200.0), scale=(1.0, 2.0, 4.0), dtype="uint8")
    values = images().values
    expected = (values.astype(np.float64) - [0, 100, 200]) / [1, 2, 4]
    np.testing.assert_allclose(scaling.encode(values).numpy(), np.moveaxis(expected, -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(scaling.decode(scaling.encode(values)), values)


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 7), (50, 2, 4, 6)])
def test_measured_scaling_standardises_and_inverts(shape):
    values = (np.random.default_rng(0).normal(5, 3, shape) * np.arange(1, shape[-1] + 1)).astype(np.float32)
    scaling = Scaling.measure(values)
    x0 = scaling.encode(values).numpy().astype(np.float64)
    axes = (0, *range(2, len(shape)))
    np.testing.assert_allclose(x0.mean(axis=axes), 0, atol=1e-6)
    np.testing.assert_allclose(x0.std(axis=axes), 1, atol=1e-6)
    np.testing.assert_allclose(scaling.decode(torch.from_numpy(x0)), values, rtol=1e-5, atol=1e-5)


def test_encode_keeps_the_digits_of_data_far_from_zero():
    values = np.float32(1e7) + np.arange(8, dtype=np.float32)[:, None]
    x0 = Scaling.measure(values).encode(values).numpy()
    np.testing.assert_allclose(np.diff(x0[:, 0]), np.diff(x0[:, 0]).mean(), rtol=1e-5)


def test_constant_feature_is_kept():
    values = np.full((1000, 2), 0.1, dtype=np.float32)
    values[:, 1] = np.arange(1000)
    scaling = Scaling.measure(values)
    assert isinstance(scaling.scale, tuple)
    assert scaling.scale[0] == 1.0
    np.testing.assert_allclose(scaling.decode(scaling.encode(values)), values, atol=1e-4)


@pytest.mark.parametrize("scaling", [IMAGES, Scaling(shift=(0.1, -2.0), scale=(1 / 3, 1e-9), dtype="float32")])
def test_scaling_survives_json_and_pickle(scaling):
    assert Scaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling
    assert pickle.loads(pickle.dumps(scaling)) == scaling


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"shift": 0, "scale": 0, "dtype": "uint8"}, "scale of a Scaling must be positive"),
        ({"shift": float("nan"), "scale": 1, "dtype": "uint8"}, "shift of a Scaling must be finite"),
        ({"shift": [0, 1], "scale": [1, 1, 1], "dtype": "float32"}, "as many shifts as scales, got 2 and 3"),
        ({"shift": 0, "scale": 1, "dtype": "int8"}, "must be 'uint8', 'uint16', 'float32' or 'float64', got 'int8'"),
        ({"shift": 0, "scale": 1, "dtype": ["uint8"]}, r"'float32' or 'float64', got \['uint8'\]"),
        ({"shift": "0", "scale": 1, "dtype": "uint8"}, "numbers or lists of numbers, got '0'"),
        ({"shift": 0, "scale": True, "dtype": "uint8"}, "numbers or lists of numbers, got True"),
        ({"shift": 0, "dtype": "uint8"}, "fields shift, scale and dtype, got dtype, shift"),
    ],
)
def test_scaling_refuses(record, message):
    with pytest.raises(ValueError, match=message):
        Scaling.from_json(record)


@pytest.mark.parametrize(
    ("scaling", "values", "message"),
    [
        (IMAGES, np.zeros((2, 3, 3), np.uint8), r"encodes uint8 images \[n, h, w, c\], got uint8 \[2, 3, 3\]"),
        (IMAGES, np.zeros((2, 3, 3, 1), np.float32), "got float32"),
        (FLOATS, np.zeros((2, 3), np.int64), r"encodes floats \[n, ...\], got int64"),
        (Scaling(shift=(0.0, 1.0), scale=1.0, dtype="float32"), np.zeros((2, 3)), "for 2 channels or features, got 3"),
    ],
)
def test_encode_refuses(scaling, values, message):
    with pytest.raises(ValueError, match=message):
        scaling.encode(values)


def test_decode_names_divergence():
    x0 = torch.zeros(3, 1, 2, 2)
    x0[1] = float("nan")
    with pytest.raises(ValueError, match="1 of 3 images with NaN"):
        IMAGES.decode(x0)


def test_decode_refuses_shapes():
    with pytest.raises(ValueError, match=r"decodes \[n, c, h, w\], got x0 of shape \[3, 4\]"):
        IMAGES.decode(torch.zeros(3, 4))


@pytest.mark.parametrize("values", [np.zeros((0, 2), np.float32), np.zeros((3,), np.float32), np.zeros((3, 2), np.uint8)])
def test_measure_refuses(values):
    with pytest.raises(ValueError, match="measured on non-empty float values"):
        Scaling.measure(values)


def test_batch_takes_rows_in_order():
    labels = np.array([2, 1, 0, 2, 1, 0])
    data = images(labels=labels, classes=("a", "b", "c"))
    batch = data.batch(torch.tensor([4, 0, 4]))
    x0, labels = batch.x, batch.cond["labels"]
    np.testing.assert_array_equal(IMAGES.decode(x0), data.values[[4, 0, 4]])
    assert labels.value.tolist() == [1, 2, 1]
    assert labels.given.all()
    assert data.shape == x0.shape[1:] == (3, 3, 5)
    assert data.is_image
    assert len(data) == 6


def test_batch_of_points_has_no_labels():
    data = points()
    batch = data.batch(np.arange(10))
    np.testing.assert_array_equal(batch.x.numpy(), data.values[:10])
    assert batch.cond == {}
    assert data.shape == (2,)
    assert not data.is_image


def test_batch_does_not_share_memory_with_the_data():
    data = points()
    before = data.values.copy()
    data.batch(np.arange(100)).x.zero_()
    np.testing.assert_array_equal(data.values, before)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([6]), "indices 0 to 5, got 6 to 6"),
        (np.array([-1, 2]), "indices 0 to 5, got -1 to 2"),
        (np.array([True, False]), "integer indices"),
        (np.array([[1]]), "integer indices"),
        (torch.tensor([0.5]), "integer indices"),
    ],
)
def test_batch_refuses(indices, message):
    with pytest.raises(ValueError, match=message):
        images().batch(indices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((0, 2, 2, 1), np.uint8)}, "there must be data, got the empty shape"),
        ({"values": np.zeros((2, 0, 2, 1), np.uint8)}, "there must be data"),
        ({"values": np.zeros((2, 2, 2), np.uint8)}, r"images must be \[n, h, w, c\] .* got \[2, 2, 2\]"),
        ({"values": np.zeros((2, 3, 9, 9), np.uint8)}, "with 1, 3 or 4 channels"),
        ({"values": np.zeros((2, 2), np.int64)}, "must be uint8 .* or float64, got int64"),
        ({"values": np.zeros((2, 2), np.float32)}, "values are float32, but the Scaling is for uint8"),
        ({"values": np.zeros(2, np.float32), "scaling": FLOATS}, "at least one feature axis"),
        ({"values": np.array([[0, 1], [0, np.nan], [np.inf, 0]], np.float32), "scaling": FLOATS}, "got 2 rows .* from row 1"),
        ({"scaling": Scaling(shift=(0.0, 1.0), scale=1.0, dtype="uint8")}, "for 2 channels or features, got 3"),
        ({"labels": np.zeros(5, np.int64), "classes": ("a",)}, "one label for each of 6 values, got 5"),
        ({"labels": np.zeros(6, np.int32), "classes": ("a",)}, r"labels must be int64 \[n\], got int32"),
        ({"labels": np.zeros((6, 1), np.int64), "classes": ("a",)}, r"int64 \[n\], got int64 \[6, 1\]"),
        ({"labels": np.arange(6), "classes": ("a", "b")}, "0 to 1 for 2 classes, got 0 to 5"),
        ({"labels": -np.ones(6, np.int64), "classes": ("a", "b")}, "got -1 to -1"),
        ({"labels": np.zeros(6, np.int64), "classes": ("a", "a")}, "class names must differ"),
        ({"classes": ("a",)}, "1 class names but no labels"),
    ],
)
def test_dataset_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        images(**changes)


def test_fingerprint_sees_every_part():
    data = images(labels=np.zeros(6, np.int64), classes=("a", "b"))
    changed = data.values.copy()
    changed[5, 2, 4, 2] ^= 1
    variants = [
        data,
        images(values=changed, labels=data.labels, classes=data.classes),
        images(labels=np.array([0, 0, 0, 0, 0, 1]), classes=data.classes),
        images(),
        images(values=data.values.reshape(6, 5, 3, 3)),
        points(values=data.values.reshape(6, -1).astype(np.float32)),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)


def _fingerprint(path):
    return points(values=np.load(path, mmap_mode="r")).fingerprint()


def test_fingerprint_is_the_same_in_memory_on_disk_and_elsewhere(tmp_path):
    values = np.random.default_rng(0).normal(size=(3000, 40, 60)).astype(np.float32)
    np.save(tmp_path / "values.npy", values)
    expected = points(values=values).fingerprint()
    assert _fingerprint(tmp_path / "values.npy") == expected
    assert points(values=np.asfortranarray(values)).fingerprint() == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_fingerprint, (tmp_path / "values.npy",)) == expected


def test_split_parts_the_data():
    data = images(n=100, labels=np.arange(100) % 3, classes=("a", "b", "c"))
    kept, held = data.split(0.2, seed=1)
    assert (len(kept), len(held)) == (80, 20)
    rows = {row.tobytes(): label for row, label in zip(data.values, data.labels, strict=True)}
    parts = [dict(zip((row.tobytes() for row in part.values), part.labels, strict=True)) for part in (kept, held)]
    assert parts[0] | parts[1] == rows
    assert not parts[0].keys() & parts[1].keys()
    assert held.classes == data.classes


@pytest.mark.parametrize("how", [Random(0.3, 5), Block(0.3, 4), Group("labels", 0.3, 5)], ids=repr)
def test_the_rows_of_a_split_are_those_of_its_parts(how):
    data = images(n=60, labels=np.arange(60) % 6, classes=tuple("abcdef"))
    for part, rows in zip(data.split(how), data.split_rows(how), strict=True):
        np.testing.assert_array_equal(part.values, data.values[rows])


def test_split_depends_on_content_and_seed_alone():
    data = points()
    order = np.random.default_rng(1).permutation(100)
    held = data.split(0.3, seed=7)[1]
    shuffled = points(values=data.values[order]).split(0.3, seed=7)[1]
    other = data.split(0.3, seed=8)[1]
    assert {row.tobytes() for row in held.values} == {row.tobytes() for row in shuffled.values}
    assert {row.tobytes() for row in held.values} != {row.tobytes() for row in other.values}


def test_split_is_a_fair_draw():
    data = points(n=20_000)
    held = data.split(0.5, seed=0)[1].values
    np.testing.assert_allclose(held.mean(axis=0), data.values.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(held.std(axis=0), data.values.std(axis=0), atol=0.03)


def test_split_never_parts_copies():
    values = np.repeat(points(n=10).values, 5, axis=0)
    kept, held = points(values=values).split(0.33, seed=0)
    assert not {row.tobytes() for row in kept.values} & {row.tobytes() for row in held.values}
    assert len(held) % 5 == 0


@pytest.mark.parametrize("held_out", [0.001, 0.999])
def test_split_leaves_a_row_on_each_side(held_out):
    assert all(len(part) >= 1 for part in points(n=3).split(held_out, seed=0))


@pytest.mark.parametrize(
    ("held_out", "seed", "n", "message"),
    [
        (0.0, 0, 10, "between 0 and 1, got 0.0"),
        (1.0, 0, 10, "between 0 and 1, got 1.0"),
        (0.5, -1, 10, "seed must be 0 to"),
        (0.5, 0, 1, "at least two different rows"),
    ],
)
def test_split_refuses(held_out, seed, n, message):
    with pytest.raises(ValueError, match=message):
        points(n=n).split(held_out, seed)


def test_non_finite_row_is_named_in_large_data():
    values = np.zeros((300_000, 16), np.float32)
    values[299_000, 3] = np.inf
    with pytest.raises(ValueError, match=r"got 1 rows .* from row 299000"):
        points(values=values)


def test_a_block_holds_out_the_last_rows():
    data = points(n=100, labels=np.arange(100) % 3, classes=("a", "b", "c"), captions=tuple(map(str, range(100))))
    kept, held = data.split(Block(0.2))
    np.testing.assert_array_equal(kept.values, data.values[:80])
    np.testing.assert_array_equal(held.values, data.values[80:])
    assert held.labels is not None
    assert held.labels.tolist() == (np.arange(80, 100) % 3).tolist()
    assert held.captions == tuple(map(str, range(80, 100)))
    assert [len(part) for part in points(n=3).split(Block(0.001))] == [2, 1]
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        points(n=1).split(Block(0.5))


@pytest.mark.parametrize("by", ["random", "block"])
def test_the_scaling_is_measured_on_the_rows_to_train_on(by):
    values = np.random.default_rng(0).normal(size=(200, 3, 7)) + np.linspace(0, 50, 200)[:, None, None]
    data = from_arrays(values)
    kept, held = data.split(HOW[by](0.3))
    rows, _ = data.split_indices(0.3, 0, by=by)
    for part in (kept, held):
        np.testing.assert_allclose(part.scaling.shift, values[rows].mean(axis=(0, 2)), rtol=1e-12)
        np.testing.assert_allclose(part.scaling.scale, values[rows].std(axis=(0, 2)), rtol=1e-12)
    fixed = data.scaled(data.scaling).split(HOW[by](0.3))
    assert all(part.scaling == data.scaling for part in fixed)


@pytest.mark.parametrize("by", ["random", "block"])
def test_rows_of_a_mapped_file_are_those_in_memory(tmp_path, by):
    values = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    mapped, plain = npy(tmp_path / "a.npy").split(HOW[by](0.3)), from_arrays(values).split(HOW[by](0.3))
    for ours, theirs in zip(mapped, plain, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.values[3:5], theirs.values[3:5])
        assert (ours.fingerprint(), ours.shape, len(ours)) == (theirs.fingerprint(), theirs.shape, len(theirs))
        torch.testing.assert_close(ours.batch(np.array([5, 1])).x, theirs.batch(np.array([5, 1])).x, rtol=0, atol=0)
        again, twice = ours.split(0.5, 1)[0], theirs.split(0.5, 1)[0]
        np.testing.assert_array_equal(again.values, twice.values)


LAZY = """
import resource, sys
import numpy as np
from sfumato.data import npy
from sfumato.data.source import Block, Random

path, rows, megabytes, by = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
values = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, 250, 250, 1))
if by == "block":
    values[0], values[-1] = 1, 7
else:
    values[:, 0, :8, 0] = np.arange(rows).view(np.uint8).reshape(rows, 8)
del values
data = npy(path)
held_now = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10
most = held_now + (megabytes << 20) if by == "random" else megabytes << 20
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
kept, held = data.split({"random": Random, "block": Block}[by](0.4))
assert len(kept) + len(held) == rows and len(kept) > 0 and len(held) > 0
x0 = np.concatenate([kept.batch(np.array([0])).x, held.batch(np.array([len(held) - 1])).x])
if by == "block":
    assert np.allclose(x0.mean((1, 2, 3)), [1 / 127.5 - 1, 7 / 127.5 - 1]), x0.mean((1, 2, 3))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone")
@pytest.mark.parametrize(("rows", "megabytes", "by"), [(320_000, 2000, "block"), (2_400, 50, "random")])
def test_a_split_leaves_a_large_file_on_the_disk(tmp_path, rows, megabytes, by):
    """A sparse file of 20 GB under a limit of 2 GB; one of 150 MB with 50 MB to spare, where each row has to be read."""
    code = [sys.executable, "-c", LAZY, str(tmp_path / "a.npy"), str(rows), str(megabytes), by]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    (tmp_path / "a.npy").unlink()
    assert done.returncode == 0, done.stderr
