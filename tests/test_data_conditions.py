"""Conditions that come with data: scenes, columns, arrays, paired pictures; dropped, flipped, resumed, and asked for in samples."""

import csv
import zipfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sfumato as sf
from sfumato import data
from sfumato.cli import main as command
from sfumato.condition import Classes, Condition, Map, Numbers
from sfumato.data.scenes import read
from sfumato.data.source import Draw
from sfumato.options import Training
from sfumato.recipe import load_recipe
from sfumato.training.step import orders

EVERY = ["colour", "shape", "size", "place", "numbers", "low", "outline"]
SCENES = {
    "data": {"kind": "scenes", "size": 16, "count": 60},
    "net": {"kind": "patch-unet", "patch": 4, "widths": [8, 8], "depth": 1, "middle": "c", "heads": 1},
    "training": {
        "steps": 4, "batch": 6, "checkpoint_every": 2, "log_every": 2, "warmup": 1, "flip": True, "label_drop": 0.2,
        "drop": {"colour": 0.5, "numbers": 0.5, "low": 0.5}, "trackers": [],
    },
    "runtime": {"precision": "float32"},
    "sampling": {"steps": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def main(arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        command(arguments)
    return stopped.value.code


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array).save(path, **options)


def load(name, *changes):
    return load_recipe(name, changes).data.load()


def bytes_of(one):
    """The bytes of maps [n, c, h, w] as a model sees them."""
    return (one.value * 127.5 + 127.5).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)


def test_scenes_carry_what_their_pictures_show():
    source = load("scenes", "data.count=200", "data.size=32", "data.seed=3")
    cond, shown = source.batch(np.arange(200)).cond, read(source.values)
    assert list(source.spec.conditions) == EVERY
    for name in ("colour", "shape", "size"):
        names = source.spec.conditions[name].names
        said = [names[number] for number in cond[name].value]
        assert np.mean([getattr(scene.objects[0], name) == it for scene, it in zip(shown, said, strict=True)]) >= 0.99
    seen = torch.tensor([[scene.objects[0].x, scene.objects[0].y, scene.objects[0].radius] for scene in shown])
    assert (seen - cond["numbers"].value).abs().max() < 0.05
    assert all(scene.objects[0].colour in text for scene, text in zip(shown, source.captions, strict=True))
    blocks = source.values.reshape(200, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(bytes_of(cond["low"]), blocks, atol=0.51)
    assert cond["outline"].value.shape == (200, 1, 32, 32)


def test_numbers_are_told_with_their_mean_and_deviation():
    source = load("scenes", "data.count=500")
    spec, numbers = source.spec.conditions["numbers"], source.batch(np.arange(500)).cond["numbers"].value.numpy()
    unit = (numbers - spec.shift) / spec.scale
    np.testing.assert_allclose(unit.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(unit.std(axis=0), 1, atol=1e-5)
    assert Numbers.measured(np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 9.0]])) == Numbers(2, (), (2.0, 5.0), (1.0, 1.0))


def test_scenes_carry_what_is_asked_for():
    some = load("scenes", "data.count=9", "data.conditions=[low, colour]")
    assert list(some.spec.conditions) == ["low", "colour"]
    assert load("scenes", "data.count=9", "data.conditions=[]").spec.conditions == {}
    assert "relation" in load("scenes", "data.count=9", "data.objects=2").spec.conditions
    assert some.fingerprint() != load("scenes", "data.count=9", "data.conditions=[colour]").fingerprint()
    with pytest.raises(ValueError, match='scenes have no condition "hue"; theirs are colour, shape, size, place'):
        load("scenes", "data.conditions=[hue]")


TABLE = "x,y,age,city\n1,2,30,Rome\n3,4,40,Oslo\n5,7,50,Rome\n2,2,20,NA\n"


def test_columns_of_a_table_become_conditions(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    source = load("table", f"data.path={tmp_path / 'a.csv'}", "data.conditions=[city, age]")
    assert source.columns == ("x", "y")
    np.testing.assert_array_equal(source.values, [[1, 2], [3, 4], [5, 7], [2, 2]])
    cond = source.batch(np.array([3, 0])).cond
    assert source.spec.conditions["city"] == Classes(("NA", "Oslo", "Rome"))
    assert source.spec.conditions["city"].counts == (1, 1, 2)
    assert (cond["city"].value.tolist(), cond["age"].value.tolist()) == ([0, 2], [[20.0], [30.0]])
    assert source.spec.conditions["age"] == Numbers(1, (), (35.0,), (float(np.std([30, 40, 50, 20])),))


def test_a_missing_cell_of_a_condition_is_refused_or_its_row_dropped(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE.replace("40,Oslo", "nan,Oslo").replace("50,Rome", "50,"))
    with pytest.raises(ValueError, match="column 'age' has 'nan' in line 3; column 'city' has an empty cell in line 4; fill them"):
        data.table(tmp_path / "a.csv", conditions=["age", "city"])
    kept = data.table(tmp_path / "a.csv", conditions=["age", "city"], missing="drop")
    np.testing.assert_array_equal(kept.values, [[1, 2], [2, 2]])
    cond = kept.batch(np.arange(2)).cond
    assert (cond["age"].value[:, 0].tolist(), cond["city"].value.tolist()) == ([30.0, 20.0], [1, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ["agee"]}, "a.csv has no column 'agee'; did you mean 'age'"),
        ({"conditions": ["age", "age"]}, "a column can be a feature, the label, or one condition"),
        ({"conditions": ["age"], "columns": ["age", "x"]}, "a column can be a feature, the label, or one condition"),
        ({"conditions": ["city"], "label": "city"}, "a column can be a feature, the label, or one condition"),
        ({"conditions": ["x", "y", "age"], "label": "city"}, "must be different columns"),
    ],
)
def test_columns_that_cannot_be_conditions(tmp_path, options, message):
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=message):
        data.table(tmp_path / "a.csv", **options)


def test_arrays_beside_the_values_become_conditions(tmp_path):
    known = {
        "cond_kind": np.array([2, -1, 0], np.int32),
        "cond_age": np.array([1.0, np.nan, 3.0]),
        "cond_pair": np.ones((3, 2), np.float32),
        "cond_low": pixels(3, 2, 2, 3),
        "cond_depth": np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32),
        "cond_never": np.full((3, 5), np.nan),
    }
    np.savez(tmp_path / "a.npz", arr_0=pixels(3, 4, 4, 3), **known)
    source = load("scenes", f"data={{kind: array, path: {tmp_path / 'a.npz'}}}")
    spec, cond = source.spec.conditions, source.batch(np.array([2, 1, 0])).cond
    assert spec["kind"] == Classes(("0", "1", "2"))
    assert spec["age"] == Numbers(1, (), (2.0,), (1.0,))
    assert (spec["low"], spec["depth"]) == (Map(3), Map(1))
    assert cond["kind"].given.tolist() == cond["age"].given.tolist() == [True, False, True]
    assert cond["kind"].value[0] == 0
    assert cond["pair"].given.all()
    np.testing.assert_array_equal(bytes_of(cond["low"]), known["cond_low"][::-1])
    np.testing.assert_array_equal(cond["depth"].value, known["cond_depth"][::-1])
    assert "never" not in spec
    assert "the condition never is left out, because no row has one" in source.notes[0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(2, int), "the condition hint must have one row for each of 3 values, got 2 rows"),
        (np.array(["a", "b", "c"]), r"the condition hint must be integers \[n\] \(classes\).*got <U1 \[3\]"),
        (np.zeros((3, 4), np.uint8), r"the condition hint must be integers \[n\] \(classes\).*got uint8 \[3, 4\]"),
        (np.array([1.0, np.inf, 0.0]), "the condition hint must be finite where it is given, got infinity"),
        (np.array([0, -2, 1]), "-1 for none"),
    ],
)
def test_arrays_that_cannot_be_conditions(array, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(pixels(3, 4, 4, 3), conditions={"hint": array})


def test_rows_that_are_dropped_take_their_conditions_along():
    values = np.array([[0.0, 1.0], [np.nan, 1.0], [2.0, 3.0]])
    kept = data.from_arrays(values, conditions={"age": np.array([5.0, 6.0, 7.0])}, missing="drop")
    assert kept.batch(np.arange(2)).cond["age"].value[:, 0].tolist() == [5.0, 7.0]


def test_a_split_takes_the_conditions_along(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.arange(40.0).reshape(40, 1), cond_same=np.arange(40.0), cond_odd=np.arange(40) % 2)
    for part in data.npz(tmp_path / "a.npz").split(0.25, 0):
        cond = part.batch(np.arange(len(part))).cond
        np.testing.assert_array_equal(cond["same"].value, part.values)
        np.testing.assert_array_equal(cond["odd"].value, part.values[:, 0] % 2)


def test_a_data_set_holds_every_row_to_its_spec():
    images = data.from_arrays(pixels(3, 4, 4, 3))
    for array, spec, message in (
        (np.array([0, 1, 2]), Classes(("a", "b")), "must be in 0 … 1"),
        (np.ones((3, 2), np.float32), Numbers(1), r"must be floats \[b, 1\]"),
        (pixels(3, 4, 4, 3), Map(1), r"must be floats \[b, 1, …\]"),
        (pixels(2, 4, 4, 1), Map(1), "must have one row a value"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(images, conditions={"hint": (array, spec)})


@pytest.fixture
def pets(tmp_path):
    """Pictures of 12×20 in class folders, the same ones as maps of another suffix, and grey ones of half the size in a .zip."""
    for i in range(6):
        image, name = pixels(12, 20, 3, seed=i), f"{'cat' if i % 2 else 'dog'}/{i}"
        save(tmp_path / "pets" / f"{name}.png", image)
        save(tmp_path / "same" / f"{name}.bmp", image)
        save(tmp_path / "half" / f"{name}.png", image[::2, ::2, :1])
    save(tmp_path / "same" / "cat" / "of no image.png", pixels(3, 3))
    return tmp_path


@pytest.mark.parametrize("fit", [["data.size=null"], ["data.size=8"], ["data.size=8", "data.fit=pad"], ["data.size=8", "data.fit=stretch"]])
def test_paired_pictures_are_fitted_as_the_images_are(pets, fit):
    source = load("folder", f"data.path={pets / 'pets'}", f"data.maps={{same: {pets / 'same'}, half: {pets / 'half'}}}", *fit)
    height, width = source.values.shape[1:3]
    cond = source.batch(np.arange(6)).cond
    np.testing.assert_array_equal(bytes_of(cond["same"]), source.values)
    assert cond["half"].value.shape == (6, 1, height // 2, width // 2)  # smaller by a whole factor, and still so
    if fit == ["data.size=null"]:
        np.testing.assert_array_equal(bytes_of(cond["half"]), source.values[:, ::2, ::2, :1])
    assert source.classes == ("cat", "dog")
    again = load("folder", f"data.path={pets / 'pets'}", f"data.maps={{same: {pets / 'same'}, half: {pets / 'half'}}}", *fit)
    assert source.fingerprint() == again.fingerprint()


def test_a_crop_cuts_the_same_out_of_a_smaller_map(tmp_path):
    ramp = np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (16, 1, 1))
    save(tmp_path / "x" / "1.png", ramp)
    save(tmp_path / "m" / "1.png", ramp[:8, :20] // 2 * 2 + ramp[:8, :20])  # the same ramp, twice as steep
    source = data.folder(tmp_path / "x", size=16, maps={"low": tmp_path / "m"})
    low = bytes_of(source.batch(np.array([0])).cond["low"])[0]
    assert low.shape == (8, 8, 1)
    middles = source.values[0].reshape(8, 2, 8, 2).mean(axis=(1, 3))
    assert np.abs(middles - low[..., 0]).max() <= 6
    assert source.values[0].min() > 60  # the left was cut off


def test_maps_in_a_zip_and_of_another_scale(pets):
    with zipfile.ZipFile(pets / "maps.zip", "w") as archive:
        for file in sorted((pets / "half").rglob("*.png")):
            archive.write(file, file.relative_to(pets / "half").as_posix())
    zipped = data.folder(pets / "pets", size=8, maps={"half": pets / "maps.zip"})
    plain = data.folder(pets / "pets", size=8, maps={"half": pets / "half"})
    np.testing.assert_array_equal(zipped.conditions["half"][0], plain.conditions["half"][0])
    save(pets / "half" / "cat" / "1.png", pixels(9, 15, seed=1))  # no whole factor any more: all get the size of x
    assert data.folder(pets / "pets", size=8, maps={"half": pets / "half"}).conditions["half"][0].shape == (6, 8, 8, 1)


def test_an_image_that_cannot_be_read_leaves_its_map_out(pets):
    (pets / "pets" / "cat" / "3.png").write_bytes(b"no picture")
    source = data.folder(pets / "pets", maps={"same": pets / "same"})
    assert len(source) == 5
    np.testing.assert_array_equal(source.conditions["same"][0], source.values)


def test_maps_that_do_not_fit_are_refused_by_name(pets):
    def fails(message, **options):
        with pytest.raises(ValueError, match=message):
            data.folder(pets / "pets", maps={"hint": pets / "same"}, **options)

    partner = pets / "same" / "cat" / "3.bmp"
    picture = partner.read_bytes()
    partner.unlink()
    fails(r"data\.maps\.hint\) must contain one picture for cat/3\.png, under the same path with any suffix, but it is missing")
    save(partner.with_suffix(".jpg"), pixels(12, 20, 3))
    save(partner.with_suffix(".webp"), pixels(12, 20, 3))
    fails(r"for cat/3\.png, .*but there are cat/3\.jpg, cat/3\.webp")
    partner.with_suffix(".jpg").unlink()
    partner.with_suffix(".webp").write_bytes(b"no picture")
    fails(r"cat/3\.webp, the map hint of cat/3\.png, cannot be read: not an image of a known format")
    save(partner.with_suffix(".webp"), pixels(12, 12, 3))
    fails(r"the map hint of cat/3\.png, must have the image's aspect.*got 12×12 \(height × width\) for 12×20")
    assert len(data.folder(pets / "pets", size=8, fit="stretch", maps={"hint": pets / "same"})) == 6
    partner.with_suffix(".webp").unlink()
    partner.write_bytes(picture)
    with pytest.raises(ValueError, match=r"nowhere must be a folder or a \.zip of images, got no such path"):
        data.folder(pets / "pets", maps={"hint": pets / "nowhere"})


def test_flips_move_a_picture_and_its_maps_together(pets):
    source = data.folder(pets / "pets", maps={"same": pets / "same", "half": pets / "half"})
    draw, rows = Draw(0, 1, 40, slice(0, 40), flip=True), np.arange(40) % 6
    plain, flipped = source.batch(rows), source.batch(rows, draw)
    assert 5 < draw.flips.sum() < 35
    for row, is_flipped in enumerate(draw.flips):
        was, now = (each.x[row].flip(-1) if is_flipped and each is plain else each.x[row] for each in (plain, flipped))
        torch.testing.assert_close(now, was, rtol=0, atol=0)
    torch.testing.assert_close(flipped.cond["same"].value, flipped.x, rtol=0, atol=0)
    wanted = torch.where(draw.flips[:, None, None, None], plain.cond["half"].value.flip(-1), plain.cond["half"].value)
    torch.testing.assert_close(flipped.cond["half"].value, wanted, rtol=0, atol=0)
    assert torch.equal(source.batch(rows, replace(draw, flip=False)).x, plain.x)


def cond_of(count):
    return {name: Condition(torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)) for name in ("a", "b", "c")}


def test_conditions_are_dropped_together_and_alone_as_often_as_asked():
    count = 40_000
    draw = Draw(7, 3, count, slice(0, count), drop=0.1, drops={"a": 0.5, "b": 0.2, "elsewhere": 1.0})
    given = {name: one.given for name, one in draw.dropped(cond_of(count)).items()}
    error = 4 * 0.5 / count**0.5
    for names, share in (("a", 0.9 * 0.5), ("b", 0.9 * 0.8), ("c", 0.9), ("ab", 0.9 * 0.5 * 0.8), ("abc", 0.9 * 0.5 * 0.8)):
        assert abs(torch.stack([given[name] for name in names]).all(0).float().mean() - share) < error
    none = ~(given["a"] | given["b"] | given["c"])
    assert abs(none.float().mean() - 0.1) < error  # "c" is dropped with all others alone


def test_what_is_dropped_depends_on_seed_step_and_row_alone():
    count, options = 50, {"drop": 0.3, "drops": {"a": 0.5, "b": 0.5}}
    whole = Draw(7, 3, count, slice(0, count), **options).dropped(cond_of(count))
    for cuts in ([0, 50], [0, 1, 17, 50], list(range(51))):
        for start, stop in pairwise(cuts):
            share = Draw(7, 3, count, slice(start, stop), **options).dropped(cond_of(stop - start))
            part = Draw(7, 3, count, slice(0, count), **options)[start:stop].dropped(cond_of(stop - start))
            for name in "abc":
                assert share[name].given.equal(whole[name].given[start:stop])
                assert part[name].given.equal(whole[name].given[start:stop])
    assert not whole["a"].given.equal(whole["b"].given)
    for seed, step in ((8, 3), (7, 4)):
        assert not Draw(seed, step, count, slice(0, count), **options).dropped(cond_of(count))["a"].given.equal(whole["a"].given)


def test_a_row_that_has_no_value_is_never_given():
    given = torch.tensor([True, False] * 20)
    cond = {"a": Condition(torch.zeros(40, dtype=torch.long), given)}
    assert not (Draw(0, 1, 40, slice(0, 40), drops={"a": 0.5}).dropped(cond)["a"].given & ~given).any()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A trained run, shared: tests only read it."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "scenes.yaml").write_text(yaml.safe_dump(SCENES))
    torch.set_default_dtype(torch.float32)
    sf.train(load_recipe(folder / "scenes.yaml"), out=folder / "run")
    return folder / "run"


def test_a_run_with_conditions_resumes_to_the_same_bits(scenes, tmp_path):
    recipe = load_recipe(scenes / "recipe.yaml")
    stop = iter([False, False, True])
    with pytest.raises(sf.Stopped):
        sf.train(recipe, out=tmp_path / "run", callbacks=sf.Callbacks(should_stop=lambda: next(stop)))
    sf.train(recipe, out=tmp_path / "run", resume=True)
    files = sorted(path.name for path in (scenes / "checkpoints" / "00000004").glob("*.safetensors"))
    assert len(files) >= 2
    for name in files:
        one, other = (folder / "checkpoints" / "00000004" / name for folder in (scenes, tmp_path / "run"))
        assert one.read_bytes() == other.read_bytes()


def test_training_drops_and_flips_what_the_network_sees():
    """The very batch of a step: the maps lie as the pictures do."""
    source = load("scenes", "data.count=40", "data.size=16")
    rows = next(orders(40, Training(batch=30, seed=5), 0))
    draw = Draw(5, 1, 30, slice(0, 30), flip=True)
    batch = source.batch(rows, draw)
    low = torch.nn.functional.avg_pool2d(batch.x, 4)
    assert (low - batch.cond["low"].value).abs().max() < 0.01
    assert draw.flips.any()


def sampled(run, tmp_path, *options, out="s.npz"):
    assert main(["sample", str(run), "--count", "4", "--kernels", "torch", "--out", str(tmp_path / out), *options]) == 0
    return np.load(tmp_path / out)


def test_conditions_are_asked_for_on_the_command_line(scenes, tmp_path):
    picture = pixels(4, 4, 3)
    save(tmp_path / "low.png", picture)
    asked = ["--cond", "colour=red,blue", "--cond", "numbers=0.3,0.5,0.2", "--cond", f"low={tmp_path / 'low.png'}", "--cond", "shape=none"]
    found = sampled(scenes, tmp_path, *asked, "--guidance", "colour=3,low=2")
    model = sf.load(scenes)
    names = model.spec.conditions["colour"].names
    assert [names[number] for number in found["cond_colour"]] == ["red", "blue"] * 2
    np.testing.assert_allclose(found["cond_numbers"], [[0.3, 0.5, 0.2]] * 4)
    np.testing.assert_allclose(found["cond_low"] * 127.5 + 127.5, np.tile(picture.transpose(2, 0, 1), (4, 1, 1, 1)), atol=1e-4)
    assert (found["cond_shape"] == -1).all()
    assert np.isnan(found["cond_outline"]).all()
    cond = {"colour": ["red", "blue"], "numbers": [0.3, 0.5, 0.2], "low": picture, "shape": None}
    same = model.sample(4, cond=cond, guidance={"colour": 3.0, "low": 2.0})
    np.testing.assert_array_equal(same.values, found["arr_0"])
    other = model.sample(4, cond=cond, guidance={"colour": 1.0, "low": 1.0})
    assert (other.values != same.values).any()


def test_what_samples_were_asked_for_reads_back_as_data(scenes, tmp_path):
    save(tmp_path / "low.png", pixels(4, 4, 3))
    found = sampled(scenes, tmp_path, "--cond", f"low={tmp_path / 'low.png'}", "--cond", "numbers=0.3,0.5,0.2", "--cond", "size=small")
    source = data.npz(tmp_path / "s.npz")
    assert set(source.spec.conditions) == {"size", "numbers", "low"}  # the others were not given to any
    cond = source.batch(np.arange(4)).cond
    np.testing.assert_array_equal(source.values, found["arr_0"])
    for name in source.spec.conditions:
        assert cond[name].given.all()
        np.testing.assert_array_equal(cond[name].value, found[f"cond_{name}"])
    assert len(source.notes) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cond", "color=red"], 'has no condition "color"; its conditions: colour, shape, size, place, numbers, low, outline.'),
        (["--cond", "colour=pink"], 'there is no class "pink"; there are red'),
        (["--cond", "numbers=0.3"], '"0.3" is not 3 numbers joined by commas (x, y, radius)'),
        (["--cond", "low=nowhere.png"], 'a map must be an image file, got "nowhere.png": there is no such file'),
        (["--cond", "colour"], '--cond needs NAME=VALUE, such as color=red; got "colour"'),
        (["--guidance", "hue=2"], "has no condition hue for guidance; it has colour, shape"),
    ],
)
def test_conditions_that_there_are_not_are_one_sentence(scenes, tmp_path, capsys, options, message):
    assert main(["sample", str(scenes), "--out", str(tmp_path / "s.npz"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "s.npz").exists()


def test_samples_of_a_table_hold_their_conditions(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,age,city\n" + TABLE.split("\n", 1)[1] * 5)
    recipe = load_recipe(
        "table",
        [f"data.path={tmp_path / 'a.csv'}", "data.conditions=[age, city]", "net={kind: mlp, width: 8, depth: 1}", "training.steps=2",
         "training.batch=8", "training.held_out=0", "training.trackers=[]", "sampling.steps=2"],
    )  # fmt: skip
    sf.train(recipe, out=tmp_path / "run")
    sample = ["sample", str(tmp_path / "run"), "--count", "4", "--cond", "age=33", "--cond", "city=Oslo,Rome", "--out"]
    assert main([*sample, str(tmp_path / "s.csv")]) == 0
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["age"], row["city"]) for row in rows] == [("33.0", "Oslo"), ("33.0", "Rome")] * 2
    again = data.table(tmp_path / "s.csv", conditions=["age", "city"])
    np.testing.assert_array_equal(again.values.astype(np.float32), np.array([[row["x"], row["y"]] for row in rows], np.float32))


def with_drops(run, label_drop, **drops):
    """The run, had its training dropped conditions so; its recipe guides nowhere."""
    model = sf.load(run)
    training = model.recipe.training.model_copy(update={"label_drop": label_drop, "drop": drops})
    recipe = model.recipe.model_copy(update={"training": training, "sampling": model.recipe.sampling.model_copy(update={"guidance": 1.0})})
    return sf.Model("it", recipe, model.spec, model.network)


def test_a_condition_that_was_never_dropped_must_be_given_and_guides_nothing(scenes):
    nothing = dict.fromkeys(EVERY)
    run = with_drops(scenes, 0.0, **dict.fromkeys(["shape", "size", "place", "numbers", "low", "outline"], 0.5))
    with pytest.raises(ValueError, match=r"it was never trained without colour \(training\.label_drop=0\), so it cannot draw without it"):
        run.sample(2, cond=nothing)
    assert len(run.sample(2, cond=nothing | {"colour": ["red"]}).values) == 2
    with pytest.raises(ValueError, match="it was never trained without colour .*so guidance has nothing to compare colour with"):
        run.sample(2, cond={"numbers": None}, guidance=2.0)
    with pytest.raises(ValueError, match="never trained without colour"):
        run.sample(2, guidance={"shape": 2.0, "colour": 2.0})
    assert len(run.sample(2, guidance={"shape": 2.0}).values) == 2


def test_a_sheet_shows_what_must_be_given_beside_the_samples(scenes):
    """A model that never ran without its maps is given those of examples; each cell: low, outline, the sample, and words below."""
    model, source = with_drops(scenes, 0.0), load_recipe(scenes / "recipe.yaml").data.load()
    maps = source.batch(np.random.default_rng(0).permutation(len(source))[:64]).cond
    size, scale = source.spec.sizes[-1], round(56 / source.spec.sizes[-1])
    picture = np.asarray(model.sheet(source=source)).astype(int)
    cell, height = scale * (3 * size + 1), picture.shape[0] // 8
    for i in (0, 9, 59):
        top, left = i // 8 * height + scale, i % 8 * cell + scale
        inside = picture[top : top + scale * size : scale, left : left + scale * 3 * size : scale]
        low = (maps["low"].value[i] * 127.5 + 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(inside[:, :size] - low.repeat(size // len(low), 0).repeat(size // len(low), 1)).max() <= 1
        outline = (maps["outline"].value[i] * 127.5 + 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(inside[:, size : 2 * size] - outline).max() <= 1
        words = picture[top + scale * size + 1 : (i // 8 + 1) * height, left : left + cell - scale]
        assert (words < 128).any()  # letters
    assert sf.Map(1).shown(sf.Map(1).nothing(2)).tolist() == [[[[128]]]] * 2


def test_a_condition_that_was_always_dropped_cannot_be_given(scenes):
    run = with_drops(scenes, 0.1, colour=1.0)
    with pytest.raises(ValueError, match=r"it was trained without colour \(training\.drop\.colour=1\), so it cannot draw colour"):
        run.sample(2, cond={"colour": ["red"]})
    with pytest.raises(ValueError, match=r"it was trained without colour \(training\.drop\.colour=1\), so only a classifier can guide it"):
        run.sample(2, guidance={"colour": 2.0})
    drawn = run.sample(2)  # the default leaves it out
    assert (drawn.cond["colour"] == -1).all()
    assert (drawn.cond["shape"] >= 0).all()


def test_guidance_of_a_recipe_needs_conditions_that_are_dropped():
    with pytest.raises(ValueError, match="needs a model trained with dropped labels"):
        load_recipe("scenes", ["training.label_drop=0", f"training.drop={dict.fromkeys(EVERY, 0)}"])
    assert load_recipe("scenes", ["training.label_drop=0"]).sampling.guidance == 1.5


def test_a_row_without_a_class_or_number_has_an_empty_cell(tmp_path):
    spec = sf.DataSpec(
        (1,), data.from_arrays(np.zeros((2, 1))).scaling, {"labels": Classes(("a", "b")), "kind": Classes(("c", "d")), "age": Numbers(1)}
    )
    cond = {"labels": np.array([0, -1]), "kind": np.array([-1, 1]), "age": np.array([[np.nan], [2.5]], np.float32)}
    sf.Samples(np.zeros((2, 1), np.float32), cond, spec).save(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text().splitlines() == ["x1,label,kind,age", "0.0,a,,", "0.0,,d,2.5"]
