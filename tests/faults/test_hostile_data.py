"""Data made to harm: each is one sentence; nothing runs, nothing is written, nothing outside is read, and memory stays small.

Another process opens them all: it says what it heard, how much memory it took at most, and what it started.
"""

import io
import json
import os
import pickle
import select
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import cifar_files
import numpy as np
import pytest
from PIL import Image

SECRET = "the secret of somebody else"
WATCHED = """
import json, resource, sys
from sfumato import data

STARTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class"}
started = []
sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    asked = json.loads(line)
    started.clear()
    try:
        dataset = getattr(data, asked["loader"])(asked["path"], **asked["options"])
        heard = {"skipped": dataset.skipped, "rows": len(dataset)}
    except (ValueError, OSError) as error:
        heard = {"error": str(error)}
    heard |= {"started": started, "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
    print(json.dumps(heard), flush=True)
"""


@pytest.fixture(scope="module")
def hear():
    """What another process says of a path; it must neither start anything nor ever take much memory."""
    command = [sys.executable, "-c", WATCHED]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(loader, path, **options):
            process.stdin.write(json.dumps({"loader": loader, "path": str(path), "options": options}) + "\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 100)[0], "no answer"
            heard = json.loads(process.stdout.readline())
            assert heard["started"] == []
            assert heard["megabytes"] < 700
            assert "\n" not in heard.get("error", "")
            assert SECRET not in heard.get("error", "")
            return heard

        yield ask
        process.kill()


@pytest.fixture
def home(tmp_path):
    """A folder for the data beside one with a secret, which must both stay as they are."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_text(SECRET)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "outside" / "private.png")
    (tmp_path / "data").mkdir()
    yield tmp_path / "data"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "outside"]
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["private.png", "secret.png"]


def pictures(root, count=3):
    for i in range(count):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / f"{i}.png")
    return root


def png_claiming(width, height):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


class Bomb:
    """What unpickles to a call of the system."""

    def __reduce__(self):
        return os.system, ("touch bombed",)


IMAGES = np.zeros((2, 3072), np.uint8)
BOMBS = {
    "system": b"cposix\nsystem\n(S'touch bombed'\ntR.",
    "python 3": pickle.dumps(Bomb(), 4),
    "protocol 2": pickle.dumps({b"data": Bomb()}, 2),
    "beside good data": cifar_files.batch(IMAGES, {b"labels": [0, 1]})[:-2]
    + cifar_files.text(b"x")
    + pickle.dumps(Bomb(), 2)[2:-1]
    + b"u.",
    "eval": b"\x80\x02c__builtin__\neval\nU\x04exit\x85R.",
    "numpy's own": b"\x80\x02cnumpy.testing._private.utils\nrunstring\nU\x04exit\x85R.",
    "instance": b"\x80\x02(iposix\nsystem\np0\n.",
    "objects": cifar_files.batch(IMAGES, {b"labels": [0, 1]}, dtype=b"O8"),
    "another shape": cifar_files.batch(IMAGES, {b"labels": [0, 1]}).replace(
        cifar_files.number(3072) + b"\x86", cifar_files.number(-9) + b"\x86"
    ),
    "a huge shape": cifar_files.batch(IMAGES, {b"labels": [0, 1]}).replace(cifar_files.number(3072) + b"\x86", b"J\xff\xff\xff\x7f\x86"),
    "a length that lies": b"\x80\x02}(U\x04dataT\xff\xff\xff\x7fabc",
    "call of a type": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",
    "loop": b"\x80\x02]q\x00h\x00a.",
    "empty stack": b"\x80\x02R.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_of_cifar_are_read_without_being_run(hear, home, name):
    (home / "test_batch").write_bytes(BOMBS[name])
    error = hear("cifar10", home, train=False)["error"]
    assert "test_batch is not a CIFAR file" in error
    assert "cifar-10-python.tar.gz again" in error


def test_the_bombs_would_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(BOMBS["protocol 2"])
    assert (tmp_path / "bombed").exists()


def test_archives_of_cifar_write_nothing(hear, home):
    with tarfile.open(home / "cifar.tar.gz", "w:gz") as archive:
        for name, content in [("../outside/new", b"x"), ("/tmp/sfumato-was-here", b"x"), ("a/test_batch", BOMBS["system"])]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "asks for posix.system" in hear("cifar10", home / "cifar.tar.gz", train=False)["error"]
    assert not Path("/tmp/sfumato-was-here").exists()


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_arrays_of_objects_are_not_unpickled(hear, home, form):
    array = np.array([Bomb(), 1], dtype=object)
    np.save(home / "a.npy", array, allow_pickle=True) if form == "npy" else np.savez(home / "a.npz", values=array)
    assert "Python objects" in hear(form, home / f"a.{form}")["error"]


def header(shape, descr="'|u1'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


HEADERS = {
    "larger": header("(1000, 4, 4, 3)"),
    "huge": header("(1000000000, 64, 64, 3)"),
    "overflowing": header("(4294967296, 4294967296, 4294967296)"),
    "negative": header("(-1, 4, 4, 3)"),
    "code": header("__import__('os').system('touch bombed')"),
    "objects": header("(2, 2)", "'|O'"),
    "deep": header("(" * 400 + ")" * 400),
    "a length that lies": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{}",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_headers_that_lie(hear, home, name, form):
    content = HEADERS[name] + bytes(96)
    if form == "npy":
        (home / "a.npy").write_bytes(content)
    else:
        with zipfile.ZipFile(home / "a.npz", "w") as archive:
            archive.writestr("values.npy", content)
    assert f"a.{form}" in hear(form, home / f"a.{form}")["error"]


def test_npz_bombs_are_refused_by_their_size(hear, home):
    content = header("(4000000000, 1, 1, 1)") + bytes(100)
    with zipfile.ZipFile(home / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(64):
            archive.writestr(f"{i}.npy", content)
    packed = bytearray((home / "a.npz").read_bytes())
    at = 0
    while (at := packed.find(b"PK\x01\x02", at)) >= 0:
        packed[at + 24 : at + 28] = struct.pack("<I", (1 << 32) - 2)
        at += 4
    (home / "a.npz").write_bytes(packed)
    assert "claims to unpack to 274.9 GB" in hear("npz", home / "a.npz")["error"]


def test_idx_bombs_are_refused_by_their_size(hear, home):
    (home / "images").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 1 << 31, 1 << 10, 1 << 10) + bytes(100))
    assert "claims to unpack to" in hear("idx", home / "images")["error"]
    (home / "images").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 4, 1 << 14, 1 << 14) + bytes(100))
    assert "truncated" in hear("idx", home / "images")["error"]


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_claim_more_than_they_hold(hear, home, packed):
    pictures(home)
    (home / "1.png").write_bytes(png_claiming(100_000, 100_000))
    if packed:
        with zipfile.ZipFile(home / "a.zip", "w") as archive:
            for file in home.glob("*.png"):
                archive.write(file, file.name)
    heard = hear("folder", home / "a.zip" if packed else home)
    assert heard["rows"] == 2
    assert "decompression bomb" in heard["skipped"][0]


def test_zip_bombs_stay_small(hear, home):
    """Members of 250 MB of zeros, which is read, and of 270 MB, which is not."""
    pictures(home)
    with zipfile.ZipFile(home / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(home / "0.png", "0.png")
        archive.writestr("1.png", bytes(250_000_000))
        archive.writestr("2.png", bytes(270_000_000))
    assert (home / "a.zip").stat().st_size < 20_000_000
    heard = hear("folder", home / "a.zip", limit_broken=10)
    assert heard["rows"] == 1
    assert "at most 268435456 bytes, got 270000000" in heard["skipped"][1]


def test_a_picture_whose_text_is_a_bomb(hear, home):
    pictures(home)
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(200_000_000))
    content = (home / "0.png").read_bytes()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (home / "1.png").write_bytes(content[:33] + chunk + content[33:])
    assert len(hear("folder", home)["skipped"]) <= 1


def test_paths_that_climb_out_of_an_archive(hear, home):
    pictures(home)
    with zipfile.ZipFile(home / "a.zip", "w") as archive:
        for name in ("good.png", "../outside/private.png", "/tmp/sfumato-was-here.png", "../../outside/new.png"):
            archive.writestr(zipfile.ZipInfo(name), (home / "0.png").read_bytes())
    heard = hear("folder", home / "a.zip", labels=False, limit_broken=10)
    assert heard["rows"] == 1
    assert all(line.endswith("its name points outside the archive") for line in heard["skipped"])
    assert not Path("/tmp/sfumato-was-here.png").exists()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("name", ["../outside/private.png", "../../../../etc/passwd", "/etc/passwd", "a/../../outside/private.png"])
def test_metadata_that_point_outside(hear, home, form, name):
    pictures(home)
    lines = ["file_name,text", f"{name},a"] if form == "csv" else [json.dumps({"file_name": name, "text": "a"})]
    (home / f"metadata.{form}").write_text("\n".join(lines))
    assert f"names '{name}', which points outside the folder" in hear("folder", home)["error"]


def test_metadata_that_point_at_a_link_to_outside(hear, home):
    pictures(home)
    (home / "link.png").symlink_to(home.parent / "outside" / "private.png")
    (home / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n2.png,c\nlink.png,d\n")
    assert "names link.png, which is a link to a file outside the folder" in hear("folder", home)["error"]


def test_metadata_in_a_linked_folder(hear, home):
    pictures(home)
    (home / "more").symlink_to(home.parent / "outside")
    (home / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n2.png,c\nmore/private.png,d\n")
    assert "names more/private.png, which is a link to a file outside the folder" in hear("folder", home, labels=False)["error"]


def test_metadata_that_are_a_link_to_outside(hear, home):
    pictures(home)
    (home / "metadata.csv").symlink_to(home.parent / "outside" / "secret.png")
    assert "metadata.csv is a link to a file outside the folder" in hear("folder", home)["error"]


@pytest.mark.parametrize("kind", ["pipe", "device", "gone"])
def test_files_that_are_none(hear, home, kind):
    pictures(home)
    if kind == "pipe":
        os.mkfifo(home / "x.png")
    else:
        (home / "x.png").symlink_to("/dev/zero" if kind == "device" else home / "nothing")
    heard = hear("folder", home)
    assert heard["rows"] == 3
    assert ("it is not a regular file" if kind != "gone" else "No such file") in heard["skipped"][0]


@pytest.mark.parametrize("keep", [0, 4, 0.3, 0.9, -1])
def test_truncated_parquet(hear, home, keep):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures(home)
    cells = [(home / f"{i % 3}.png").read_bytes() + os.urandom(500) for i in range(200)]
    parquet.write_table(pyarrow.table({"image": cells}), home / "a.parquet")
    content = (home / "a.parquet").read_bytes()
    (home / "a.parquet").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert "a.parquet" in hear("from_datasets", home / "a.parquet")["error"]


def test_parquet_whose_pages_are_damaged(hear, home):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures(home)
    cells = [(home / "0.png").read_bytes()] * 200
    parquet.write_table(pyarrow.table({"image": cells, "label": list(range(200))}), home / "a.parquet")
    content = bytearray((home / "a.parquet").read_bytes())
    content[4:60] = bytes(56)
    (home / "a.parquet").write_bytes(content)
    assert "cannot read" in hear("from_datasets", home / "a.parquet")["error"]


def test_parquet_that_points_outside(hear, home):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures(home)
    paths = ["0.png", "/etc/passwd", "../outside/private.png", str(home.parent / "outside" / "private.png")]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = pyarrow.array([{"bytes": None, "path": path} for path in paths], kind)
    parquet.write_table(pyarrow.table({"image": cells}), home / "a.parquet")
    heard = hear("from_datasets", home / "a.parquet", limit_broken=10)
    assert heard["rows"] == 1
    assert len(heard["skipped"]) == 3
    assert all("only a path" in line for line in heard["skipped"])


TABLES = {
    "text": ("a,b\n1,2\n3,high\n", "column 'b' has 'high' in line 3; correct"),
    "nan": ("a,b\n1,NaN\n", "column 'b' has 'NaN' in line 2; fill"),
    "empty": ("", "must start with a line of column names"),
    "no rows": ("a,b\n", "no rows below it"),
    "no end": ("a," * 10_000_000, "has a line of more than"),
    "nul": ("a,b\n1,\0\n", "in line 2; correct"),
    "quote without end": ('a,b\n1,"' + "2\n" * 200_000, "a.csv, line"),
    "many columns": (",".join(map(str, range(100_000))) + ",x\n1,2\n", "expected 100001 cells"),
}


@pytest.mark.parametrize("name", TABLES)
def test_broken_tables(hear, home, name):
    content, message = TABLES[name]
    (home / "a.csv").write_text(content)
    assert message in hear("table", home / "a.csv")["error"]


def test_a_table_without_its_label(hear, home):
    (home / "a.csv").write_text("a,b\n1,2\n")
    assert "has no column 'kind'; its columns are a, b" in hear("table", home / "a.csv", label="kind")["error"]


def test_captions_missing_for_some(hear, home):
    pictures(home)
    (home / "metadata.csv").write_text("file_name,text\n0.png,a\n2.png,c\n")
    assert "1 of 3 images have no caption, 1.png the first" in hear("folder", home)["error"]
