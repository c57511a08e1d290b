import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_folder import shared

from sfumato.data import folder, from_datasets

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
CELLS = [{"bytes": png(array), "path": None} for array in PIXELS]


def made(features=None, **columns):
    """A data set of nine images with these columns beside."""
    kinds = {"image": datasets.Image()} | (features or {})
    return datasets.Dataset.from_dict({"image": CELLS} | columns, features=datasets.Features(kinds))


@pytest.fixture
def pets():
    features = {"label": datasets.ClassLabel(names=["owl", "cat", "dog"]), "text": datasets.Value("string"), "id": datasets.Value("int64")}
    return made(features, label=[0, 1, 2] * 3, text=[f"it is {i}" for i in range(9)], id=list(range(9)))


def save_parquet(dataset, root):
    dataset.to_parquet(root / "pets.parquet")
    return root / "pets.parquet"


def save_shards(dataset, root):
    for i in range(3):
        (root / "data").mkdir(exist_ok=True)
        dataset.shard(3, i, contiguous=True).to_parquet(root / "data" / f"train-0000{i}-of-00003.parquet")
    dataset.select([0]).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


def save_pattern(dataset, root):
    save_shards(dataset, root)
    return str(root / "data" / "train-*.parquet")


def save_arrow(dataset, root):
    dataset.save_to_disk(root / "pets")
    return root / "pets"


def save_splits(dataset, root):
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(root / "pets")
    return root / "pets"


def keep(dataset, root):
    return dataset


@pytest.mark.parametrize("save", [save_parquet, save_shards, save_pattern, save_arrow, save_splits, keep])
def test_every_form_gives_the_same_data(pets, tmp_path, save):
    data = from_datasets(save(pets, tmp_path))
    np.testing.assert_array_equal(data.values, PIXELS)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2] * 3
    assert data.classes == ("owl", "cat", "dog")
    assert data.captions == tuple(f"it is {i}" for i in range(9))


@pytest.mark.parametrize("save", [save_shards, save_splits])
def test_a_split_is_chosen_by_name(pets, tmp_path, save):
    path = save(pets, tmp_path)
    assert len(from_datasets(path, split="test")) == 1
    with pytest.raises(ValueError, match="'validation'"):
        from_datasets(path, split="validation")


@pytest.mark.parametrize("save", [save_parquet, save_arrow])
def test_the_cache_gives_the_same_and_notices_changes(pets, tmp_path, save, monkeypatch):
    path, cache = save(pets, tmp_path), tmp_path / "cache"
    plain = from_datasets(path)
    assert from_datasets(path, cache=cache).fingerprint() == plain.fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr("sfumato.data.hugging_face._library", lambda: pytest.fail("the files were read"))
        again = from_datasets(path, cache=cache)
    assert (again.fingerprint(), again.captions, again.classes) == (plain.fingerprint(), plain.captions, plain.classes)
    if save is save_parquet:
        save(pets.select(range(8)), tmp_path)
        assert len(from_datasets(path, cache=cache)) == 8


def test_columns_by_name(pets, tmp_path):
    fine, coarse, said = datasets.ClassLabel(names=["a", "b", "c"]), datasets.ClassLabel(names=["x"]), datasets.Value("string")
    two = made({"fine": fine, "coarse": coarse, "said": said}, fine=[2, 1, 0] * 3, coarse=[0] * 9, said=list("abcdefghi"))
    with pytest.raises(ValueError, match='several columns of labels, fine, coarse; choose one with label=, or label="" for none'):
        from_datasets(two)
    data = from_datasets(two, label="fine", caption="said")
    assert data.labels is not None
    assert (data.labels[:3].tolist(), data.captions) == ([2, 1, 0], tuple("abcdefghi"))
    bare = from_datasets(pets, label="", caption="")
    assert (bare.labels, bare.classes, bare.captions) == (None, (), None)
    with pytest.raises(ValueError, match="no column 'kind' for label; its columns are image, label, text, id"):
        from_datasets(pets, label="kind")


@pytest.mark.parametrize(
    ("label", "classes", "numbers"),
    [(["b", "a", "b"], ("a", "b"), [1, 0, 1]), ([2, 0, 2], ("0", "1", "2"), [2, 0, 2])],
    ids=["texts", "integers"],
)
def test_labels_without_names(label, classes, numbers):
    kind = datasets.Value("string" if isinstance(label[0], str) else "int16")
    data = from_datasets(made({"label": kind}, label=label * 3))
    assert data.labels is not None
    assert (data.classes, data.labels[:3].tolist()) == (classes, numbers)


def test_parquet_of_another_library(tmp_path):
    """Bytes under a column's name, without the features that `datasets` writes."""
    table = pyarrow.table({"img": [cell["bytes"] for cell in CELLS], "label": [0, 1, 0] * 3})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = from_datasets(tmp_path / "a.parquet", size=3)
    assert (data.shape, data.classes, len(data)) == ((3, 3, 3), ("0", "1"), 9)


def test_broken_images_are_left_out_with_their_labels(pets):
    cells = [{"bytes": b"no image", "path": None} if i == 4 else cell for i, cell in enumerate(CELLS)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "text": datasets.Value("string")}
    )
    data = from_datasets(
        datasets.Dataset.from_dict({"image": cells, "label": [0, 0, 0, 0, 1, 0, 0, 0, 0], "text": list("abcdefghi")}, features=features)
    )
    np.testing.assert_array_equal(data.values, np.delete(PIXELS, 4, axis=0))
    assert data.labels is not None
    assert (data.labels.tolist(), data.captions, data.skipped) == ([0] * 8, tuple("abcdfghi"), ("row 4: not an image of a known format",))


@pytest.mark.parametrize(
    ("features", "columns", "message"),
    [
        ({"label": "class"}, {"label": [0, 1, None] * 3}, "every row needs a label of 0 to 1, got None"),
        ({"label": "class"}, {"label": [0, 1, -1] * 3}, "every row needs a label of 0 to 1, got -1"),
        ({"label": "float32"}, {"label": [0.5] * 9}, "must contain texts, or integers from 0, got 0.5"),
        ({"text": "string"}, {"text": ["a"] * 7 + [None, "b"]}, "every row needs a caption, got None in row 7"),
        ({"other": "image"}, {"other": CELLS}, "one column of images, got image, other; name it with image=, among image, other"),
    ],
    ids=["no label", "-1", "float", "caption", "two images"],
)
def test_tables_that_do_not_fit_are_refused(features, columns, message):
    kinds = {"class": datasets.ClassLabel(names=["a", "b"]), "image": datasets.Image()}
    dataset = made({name: kinds.get(kind) or datasets.Value(kind) for name, kind in features.items()}, **columns)
    with pytest.raises(ValueError, match=message):
        from_datasets(dataset)


def test_sources_refused(tmp_path, pets):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("a\n1\n")
    for path, message in [
        (tmp_path / "none.parquet", "is neither an existing path nor a name on the hub"),
        (tmp_path / "*.parquet", "matches no file"),
        (tmp_path / "empty", "must contain .parquet files or be a save_to_disk folder; folders of images are data.kind=folder"),
        (tmp_path / "a.csv", "must be a .parquet file"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_datasets(path)
    with pytest.raises(ValueError, match="has no rows"):
        from_datasets(pets.select([]))
    with pytest.raises(ValueError, match="no files that show whether it has changed"):
        from_datasets(pets, cache=tmp_path)


def test_a_name_on_the_hub_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="there is no path nobody/nothing, and nobody/nothing cannot be read from the hub: "):
        from_datasets("nobody/nothing")


def test_folder_zip_and_parquet_are_one_data_set(tmp_path):
    """A part of the flowers in the three forms that a person may have them in."""
    with zipfile.ZipFile(shared("flowers64.zip")) as archive:
        for name in [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][::100]:
            archive.extract(name, tmp_path / "flowers")
    root = tmp_path / "flowers"
    with zipfile.ZipFile(tmp_path / "flowers.zip", "w") as archive:
        for file in sorted(root.rglob("*.jpg"), reverse=True):
            archive.write(file, file.relative_to(root))
    files = sorted(root.rglob("*.jpg"))
    classes = sorted({file.parent.name for file in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    rows = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "arrow")
    table.to_parquet(tmp_path / "flowers.parquet")
    ours = [folder(root), folder(tmp_path / "flowers.zip"), from_datasets(tmp_path / "arrow"), from_datasets(tmp_path / "flowers.parquet")]
    assert len({data.fingerprint() for data in ours}) == 1
    assert {data.classes for data in ours} == {tuple(classes)}
    assert len(files) > 50
    with pytest.raises(ValueError, match="flowers.parquet is read by data.kind=datasets"):
        folder(tmp_path / "flowers.parquet")


def test_rows_that_hold_only_paths_are_followed_inside_the_data_alone(tmp_path):
    for where in ("data", "elsewhere"):
        (tmp_path / where).mkdir()
        for i, array in enumerate(PIXELS):
            Image.fromarray(array).save(tmp_path / where / f"{i}.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "elsewhere" / "0.png")

    def read(*paths):
        kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        table = pyarrow.table({"image": pyarrow.array([{"bytes": None, "path": str(path)} for path in paths], kind)})
        parquet.write_table(table, tmp_path / "data" / "a.parquet")
        return from_datasets(tmp_path / "data" / "a.parquet", limit_broken=10)

    data = read(tmp_path / "data" / "3.png", "4.png", tmp_path / "elsewhere" / "1.png", "../elsewhere/1.png", "/etc/passwd", "link.png")
    np.testing.assert_array_equal(data.values, PIXELS[3:5])
    assert [line.split(",")[0] for line in data.skipped] == [f"row {i}: it is only a path" for i in (2, 3, 4, 5)]


def test_nothing_is_written_beside_the_data(pets, tmp_path):
    path = save_parquet(pets, tmp_path)
    before = sorted(Path(tmp_path).rglob("*"))
    from_datasets(path)
    assert sorted(Path(tmp_path).rglob("*")) == before
    assert json.loads(json.dumps(from_datasets(path).name)) == "pets"
