import numpy as np
import pytest
from PIL import Image

from sfumato.data import cache_folder
from sfumato.recipe import load_recipe


def load(name, *changes):
    return load_recipe(name, changes).data.load()


@pytest.fixture
def pets(tmp_path):
    for i in range(6):
        path = tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pets"


def test_a_folder_with_every_option(pets):
    data = load("folder", f"data.path={pets}", "data.size=[4, 6]", "data.fit=pad", "data.channels=4", "data.labels=false")
    assert (data.shape, data.labels, len(data)) == ((4, 4, 6), None, 6)
    assert isinstance(data.values, np.memmap)
    assert cache_folder() in data.values.filename.parents


def test_an_empty_cache_variable_keeps_nothing(pets, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", "")
    assert not isinstance(load("folder", f"data.path={pets}", "data.size=4").values, np.memmap)


def test_a_table(tmp_path):
    (tmp_path / "a.tsv").write_text("x\ty\tk\n1\t2\ta\n3\t4\tb\n")
    data = load("table", f"data.path={tmp_path / 'a.tsv'}", "data.columns=[y]", "data.label=k")
    assert (data.values.tolist(), data.classes) == ([[2.0], [4.0]], ("a", "b"))


def test_arrays_with_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4, 1), np.uint8))
    np.save(tmp_path / "labels.npy", np.array([0, 1, 0]))
    here = f"data={{kind: array, path: {tmp_path / 'a.npy'}, labels: {tmp_path / 'labels.npy'}}}"
    assert load("folder", here).classes == ("0", "1")
    np.savez(tmp_path / "a.npz", np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"is for an .npy file, but .*a.npz has its own"):
        load("folder", here.replace("a.npy", "a.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.fit=fill", "data.fit got 'fill', but input should be 'crop', 'pad' or 'stretch'"),
        ("data.channels=2", "data.channels got 2"),
        ("data.filp=true", "there is no option data.filp"),
        ("data.limit_broken=-1", "data.limit_broken got -1"),
    ],
)
def test_options_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("folder", ["data.path=x", change])


@pytest.mark.parametrize("size", ["48x80", "48×80", "[48, 80]"])
def test_a_size_is_height_by_width(size):
    assert load_recipe("folder", ["data.path=x", f"data.size={size}"]).data.size == (48, 80)
    assert load_recipe("folder", ["data.path=x", "data.size=48"]).data.size == 48


@pytest.mark.parametrize("size", ["48x", "x3", "large", "1x2x3"])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"folder: data.size.* got '?(48x|x3|large|1x2x3)'?, but "):
        load_recipe("folder", ["data.path=x", f"data.size={size}"])


def test_missing_cells_channels_and_scaling_are_options(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n,4\n5,7\n")
    assert len(load("table", f"data.path={tmp_path / 'a.csv'}", "data.missing=drop")) == 2
    values = np.random.default_rng(0).normal(size=(9, 4, 5, 3))
    values[3] = np.nan
    for save, name in ((np.save, "a.npy"), (np.savez, "a.npz")):
        save(tmp_path / name, values)
        here = f"data={{kind: array, path: {tmp_path / name}}}"
        data = load("toy", here, "data.missing=drop", "data.channels=last", "data.scaling=all")
        assert (data.shape, len(data)) == ((3, 4, 5), 8)
        assert data.scaling.scale == pytest.approx(np.nanstd(values))
