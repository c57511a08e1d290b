import csv
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from sfumato.data import IMAGES, Dataset, folder

NAMES = ["cat/1.png", "cat/2.png", "dog/3.png"]


@pytest.fixture
def pets(tmp_path):
    for i, name in enumerate(NAMES):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3), i).save(path)
    return tmp_path / "pets"


def write_csv(path, rows, columns=("file_name", "text")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write_jsonl(path, rows, columns=("file_name", "text")):
    path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n\n" for row in rows))


writers = pytest.mark.parametrize(("write", "name"), [(write_csv, "metadata.csv"), (write_jsonl, "metadata.jsonl")])


@writers
@pytest.mark.parametrize("column", ["text", "caption"])
def test_captions_go_with_their_images(pets, write, name, column):
    write(pets / name, [(NAMES[2], 'a dog, "Rex"'), (NAMES[0], "a cat\non a mat"), (NAMES[1], "två katter")], ("file_name", column))
    data = folder(pets)
    assert data.captions == ("a cat\non a mat", "två katter", 'a dog, "Rex"')
    assert data.classes == ("cat", "dog")


def test_metadata_speak_of_their_own_folder_and_nested_ones(pets):
    write_csv(pets / "cat" / "metadata.csv", [("1.png", "one"), ("./2.png", "two")])
    write_jsonl(pets / "metadata.jsonl", [(NAMES[2], "three")])
    assert folder(pets).captions == ("one", "two", "three")


def test_captions_in_a_zip(pets, tmp_path):
    write_csv(pets / "metadata.csv", [(name, f"it is {name}") for name in NAMES])
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file in pets.rglob("*.*"):
            archive.write(file, f"root/{file.relative_to(pets)}")
    assert folder(tmp_path / "pets.zip").captions == folder(pets).captions == tuple(f"it is {name}" for name in NAMES)


def test_captions_follow_split_and_broken_files(pets):
    for i in range(20):
        Image.new("L", (3, 3), 10 + i).save(pets / "dog" / f"{10 + i}.png")
    (pets / "cat" / "2.png").write_bytes(b"no image")
    names = sorted(file.relative_to(pets).as_posix() for file in pets.rglob("*.png"))
    write_csv(pets / "metadata.csv", [(name, f"it is {name}") for name in names])
    data = folder(pets)
    assert "it is cat/2.png" not in data.captions
    levels = {0: "cat/1.png", 2: "dog/3.png"} | {10 + i: f"dog/{10 + i}.png" for i in range(20)}
    for part in data.split(0.4, seed=0):
        assert part.captions == tuple(f"it is {levels[value]}" for value in part.values[:, 0, 0, 0])


def test_captions_count_in_the_fingerprint(pets):
    before = folder(pets).fingerprint()
    write_csv(pets / "metadata.csv", [(name, "a") for name in NAMES])
    one = folder(pets)
    write_csv(pets / "metadata.csv", [(name, "b") for name in NAMES])
    assert len({before, one.fingerprint(), folder(pets).fingerprint()}) == 3
    assert folder(pets, captions=False).fingerprint() == before


def test_metadata_without_captions_are_left_alone(pets):
    write_csv(pets / "metadata.csv", [("elsewhere.png", "3")], ("file_name", "width"))
    assert folder(pets).captions is None


@writers
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(name, "a") for name in NAMES[:2]], "1 of 3 images have no caption, dog/3.png the first; add them to metadata"),
        ([*((name, "a") for name in NAMES), ("cat/9.png", "b")], "names cat/9.png, which is not an image there"),
        ([*((name, "a") for name in NAMES), (NAMES[0], "b")], "gives cat/1.png a second caption"),
        ([(NAMES[0], ""), (NAMES[1], "a"), (NAMES[2], "a")], "has no caption for cat/1.png"),
        ([("", "a")], "has no file_name"),
    ],
)
def test_captions_that_do_not_fit_are_refused(pets, write, name, rows, message):
    write(pets / name, rows)
    with pytest.raises(ValueError, match=message) as refusal:
        folder(pets)
    assert "captions=False" in str(refusal.value)
    assert folder(pets, captions=False).captions is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", b"{", "line 1 is not JSON"),
        ("metadata.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("metadata.jsonl", b"[1]", "must be a JSON object with file_name, got list"),
        ("metadata.csv", b"file_name,text\n\xff,a\n", "cannot be read"),
        ("metadata.csv", b"file_name,text\n" + b"a" * 200_000, "line 2 is not CSV"),
    ],
    ids=["cut", "deep", "list", "bytes", "long"],
)
def test_damaged_metadata_are_refused(pets, name, content, message):
    (pets / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        folder(pets)


def test_a_data_set_needs_a_caption_a_row():
    with pytest.raises(ValueError, match="one caption for each of 2 values, got 1"):
        Dataset(values=np.zeros((2, 1, 1, 1), np.uint8), labels=None, classes=(), scaling=IMAGES, name="it", captions=("a",))
