import errno
import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sfumato.data import Dataset, cache_folder, folder, from_arrays, npy
from sfumato.data.cache import cached


@pytest.fixture
def pets(tmp_path):
    for i in range(12):
        path = tmp_path / "pets" / ("cat" if i % 3 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pets" / "cat" / "broken.png").write_bytes(b"no image")
    return tmp_path / "pets"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entries(cache):
    return sorted(path for path in (cache / "data").iterdir() if path.is_dir())


def write_captions(pets):
    names = [file.relative_to(pets).as_posix() for file in pets.rglob("*.png")]
    (pets / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},it is {name}\n" for name in names))


def same(a, b):
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert (a.classes, a.skipped, a.name, a.captions, a.scaling) == (b.classes, b.skipped, b.name, b.captions, b.scaling)
    assert a.fingerprint() == b.fingerprint()
    for ours, theirs in zip(a.split_indices(0.3, 5), b.split_indices(0.3, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_first_and_second_opening_equal_no_cache(pets, cache):
    write_captions(pets)
    plain, first, second = folder(pets), folder(pets, cache=cache), folder(pets, cache=cache)
    same(plain, first)
    same(plain, second)
    same(plain, folder(pets, cache=cache))  # with the ranks that the split has left
    assert plain.captions is not None
    assert isinstance(second.values, np.memmap)


def test_second_opening_reads_no_image(pets, cache, monkeypatch):
    folder(pets, cache=cache).split_indices(0.3, 5)
    expected = folder(pets).fingerprint()
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    monkeypatch.setattr("sfumato.data.dataset.chunks", lambda values: pytest.fail("all values were read") if len(values) > 64 else [values])
    again = folder(pets, cache=cache)
    again.split_indices(0.3, 5)
    assert again.fingerprint() == expected


def rewrite(pets):
    """Another image of as many bytes under the old modification time."""
    path = pets / "cat" / "1.png"
    status, size = path.stat(), path.stat().st_size
    content = bytearray(path.read_bytes())
    other = Image.fromarray(np.full((5, 4, 3), 9, np.uint8))
    other.save(path, compress_level=0)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * max(0, size - len(content)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        lambda pets: (pets / "cat" / "1.png").unlink(),
        lambda pets: shutil.copy(pets / "cat" / "1.png", pets / "cat" / "x.png"),
        lambda pets: (pets / "cat" / "1.png").rename(pets / "dog" / "1.png"),
        write_captions,
    ],
    ids=["content", "removed", "added", "moved", "captions"],
)
def test_a_changed_folder_is_noticed(pets, cache, change):
    before = folder(pets, cache=cache).fingerprint()
    change(pets)
    assert folder(pets, cache=cache).fingerprint() == folder(pets).fingerprint() != before


@pytest.mark.parametrize("options", [{"size": 3}, {"size": 3, "fit": "stretch"}, {"channels": 1}, {"labels": False}, {"limit_broken": 2}])
def test_options_make_entries_of_their_own(pets, cache, options):
    folder(pets, cache=cache)
    same(folder(pets, cache=cache, **options), folder(pets, **options))
    assert len(entries(cache)) == 2


def cut(entry):
    path = entry / "values.npy"
    path.write_bytes(path.read_bytes()[:-1])


def flip(entry):
    content = bytearray((entry / "values.npy").read_bytes())
    content[-1] ^= 1
    (entry / "values.npy").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        lambda entry: (entry / "values.npy").unlink(),
        lambda entry: (entry / "record.json").write_text("{"),
        lambda entry: (entry / "record.json").write_text("{}"),
        lambda entry: (entry / "labels.npy").write_bytes(b"\x93NUMPY nonsense"),
        lambda entry: np.save(entry / "labels.npy", np.zeros(3, np.int64)),
        lambda entry: np.save(entry / "ranks-5.npy", np.zeros(3, np.uint64)),
        lambda entry: (entry / "ranks-5.npy").write_bytes(b""),
    ],
    ids=["cut", "flipped", "gone", "record", "empty record", "labels", "fewer labels", "fewer ranks", "no ranks"],
)
def test_a_damaged_entry_is_made_again(pets, cache, damage):
    folder(pets, cache=cache).split_indices(0.3, 5)
    damage(*entries(cache))
    same(folder(pets, cache=cache), folder(pets))
    same(folder(pets, cache=cache), folder(pets))


def test_what_a_killed_process_left_is_removed(pets, cache):
    folder(pets, cache=cache)
    (entry,) = entries(cache)
    partial = entry.with_suffix(".partial")
    entry.rename(partial)
    (partial / "record.json").unlink()
    same(folder(pets, cache=cache), folder(pets))
    assert entries(cache) == [entry]


def test_a_failed_build_leaves_nothing(pets, cache):
    (pets / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="more than 1 images are broken"):
        folder(pets, cache=cache)
    assert entries(cache) == []


def _open(arguments):
    data = folder(*arguments[:1], cache=arguments[1])
    data.split_indices(0.3, 5)
    return data.fingerprint()


def test_processes_that_open_at_once_agree(pets, cache):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_open, [(pets, cache)] * 6, chunksize=1)
    assert set(found) == {folder(pets).fingerprint()}
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "no space left on device; free disk space"), (errno.EACCES, "permission denied; .* SFUMATO_CACHE")]
)
def test_a_cache_that_cannot_be_written_is_an_error_of_one_sentence(cache, code, message):
    def build(into):
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=message):
        cached(build, cache, "key")
    assert entries(cache) == []


def test_ranks_need_no_writable_cache(pets, cache):
    data = folder(pets, cache=cache)
    shutil.rmtree(cache)
    np.testing.assert_array_equal(data.split_indices(0.3, 5)[1], folder(pets).split_indices(0.3, 5)[1])


def test_the_longest_unused_entries_go_first(tmp_path, cache, monkeypatch):
    def keep(number):
        return cached(lambda into: from_arrays(np.full((1000, 10, 10), number, np.uint8)), cache, number)

    monkeypatch.setenv("SFUMATO_CACHE_GB", str(2.5e5 / 1e9))  # two entries of 100 kB, not three
    for number in (1, 2):
        keep(number)
        os.utime(entries(cache)[-1] if number == 1 else max(entries(cache), key=lambda path: path.stat().st_mtime_ns), (number, number))
    keep(1)  # used again
    keep(3)
    assert {int(np.load(entry / "values.npy")[0, 0, 0, 0]) for entry in entries(cache)} == {1, 3}
    monkeypatch.setenv("SFUMATO_CACHE_GB", "0")
    assert len(keep(4)) == 1000
    assert len(entries(cache)) == 1
    monkeypatch.setenv("SFUMATO_CACHE_GB", "much")
    with pytest.raises(ValueError, match="SFUMATO_CACHE_GB must be a number of gigabytes, got 'much'"):
        keep(5)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("SFUMATO_CACHE", "")
    assert cache_folder() is None
    monkeypatch.delenv("SFUMATO_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "sfumato"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(200, 6, 5), (200, 6, 5, 3)])
def test_npy_is_measured_once(tmp_path, cache, dtype, shape, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "labels.npy", np.arange(200, dtype=np.uint16) % 3)
    plain = npy(tmp_path / "a.npy", tmp_path / "labels.npy")
    same(plain, npy(tmp_path / "a.npy", tmp_path / "labels.npy", cache=cache))
    monkeypatch.setattr("sfumato.data.dataset.chunks", lambda values: pytest.fail("all values were read") if len(values) > 64 else [values])
    again = npy(tmp_path / "a.npy", tmp_path / "labels.npy", cache=cache)
    assert isinstance(again.values, np.memmap)
    again.fingerprint()
    (entry,) = entries(cache)
    assert (entry / "values.npy").exists() == (dtype == np.float16)  # what can be used as it lies is not copied
    monkeypatch.undo()
    same(plain, again)
    np.save(tmp_path / "a.npy", values[::-1])
    changed = npy(tmp_path / "a.npy", tmp_path / "labels.npy", cache=cache)
    np.testing.assert_array_equal(np.squeeze(changed.values), values[::-1])


def test_what_is_known_goes_with_the_values_alone(pets, cache):
    data = folder(pets, cache=cache)
    changed = {field: getattr(data, field) for field in ("values", "labels", "classes", "scaling", "name", "metadata")}
    assert Dataset(**changed).metadata is data.metadata
    other = Dataset(**(changed | {"values": 255 - data.values}))
    assert other.metadata is None
    assert other.fingerprint() != data.fingerprint()


def test_the_record_is_json(pets, cache):
    folder(pets, cache=cache)
    (entry,) = entries(cache)
    assert json.loads((entry / "record.json").read_text())["skipped"] == ["cat/broken.png: not an image of a known format"]
