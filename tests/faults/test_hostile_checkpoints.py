"""Run folders that somebody else made, to do harm or to be read wrongly: each a sentence, quickly, and nothing outside is touched."""

import json
import os
import pickle
import shutil
import struct
import time

import pytest
import torch
import yaml
from lives import recipe_file
from runs import train
from safetensors.torch import load_file, save

import sfumato as sf
from sfumato import load_recipe
from sfumato import storage as checkpoint
from sfumato.cli import main
from sfumato.storage import CheckpointError


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with one checkpoint."""
    folder = tmp_path_factory.mktemp("hostile")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    recipe = load_recipe(recipe_file(folder, keep=1, steps=2, trackers=[]))
    run = train(recipe, folder / "run")
    torch.set_default_dtype(before)
    return recipe, run


@pytest.fixture
def run(trained, tmp_path):
    """A copy to be spoiled."""
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


def last(run):
    return run / "checkpoints" / "00000002"


def sign(path):
    """Whoever makes a hostile checkpoint makes its checksums too."""
    (path / "checksums.b2").write_text(
        "".join(f"{checkpoint._digest(file)}  {file.name}\n" for file in path.iterdir() if file.name != "checksums.b2")
    )


def headed(header, data=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


LIES = {
    "nothing": b"",
    "half a length": b"\x10\0\0",
    "a header of 16 exabytes": headed({}, length=2**64 - 1),
    "a header of 200 megabytes": headed({}, length=200_000_000),
    "a header that is longer than the file": headed({"a": entry(0, 16)}, length=5000),
    "a header that is no JSON": headed(b"\xff\xfe not json"),
    "a header that is a list": headed([1, 2, 3]),
    "a header of brackets": headed(b'{"a":' + b"[" * 100_000),
    "offsets beyond the file": headed({"a": entry(0, 16_000, (4000,))}),
    "offsets backwards": headed({"a": entry(16, 0)}),
    "negative offsets": headed({"a": entry(-16, 0)}),
    "offsets of another size than the shape": headed({"a": entry(0, 16, (5,))}),
    "a shape whose product overflows": headed({"a": entry(0, 0, (2**32, 2**32, 2**32))}, b""),
    "overlapping tensors": headed({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24),
    "a hole between tensors": headed({"a": entry(0, 16), "b": entry(32, 48)}, b"\0" * 48),
    "data that no tensor owns": headed({"a": entry(0, 16)}, b"\0" * 1000),
    "an unknown type": headed({"a": entry(0, 16, dtype="F1024")}),
    "other tensors": save({"a": torch.zeros(4)}),
    "no tensors": save({}),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_a_sentence(run, lie, signed):
    path = last(run) / "ema-0.100.safetensors"
    path.write_bytes(LIES[lie])
    if signed:
        sign(last(run))
    else:
        (last(run) / "checksums.b2").unlink()
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"ema-0\.100\.safetensors is damaged \(.*restore one from a backup") as caught:
        sf.load(run)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("stem", ["model", "ema-0.050", "optimizer", "learned"])
@pytest.mark.parametrize("lie", ["a header of 16 exabytes", "offsets beyond the file", "other tensors"])
def test_no_file_of_a_checkpoint_is_believed(trained, run, stem, lie):
    (last(run) / f"{stem}.safetensors").write_bytes(LIES[lie])
    sign(last(run))
    with pytest.raises(CheckpointError, match=rf"{stem}\.safetensors is damaged"):
        train(trained[0], run, resume=True)


@pytest.mark.parametrize("stem", ["model", "ema-0.100", "optimizer", "learned"])
def test_tensors_of_other_shapes_are_refused(trained, run, stem):
    path = last(run) / f"{stem}.safetensors"
    tensors = {name: torch.zeros(7, 3) for name in load_file(path)}
    path.write_bytes(save(tensors))
    sign(last(run))
    with pytest.raises(CheckpointError, match=rf"{stem}\.safetensors is damaged"):
        train(trained[0], run, resume=True)


GOOD = {"step": 2, "seconds": 1.0}
STATES = {
    "nothing": "",
    "no JSON": "step: 2",
    "no object": "[2]",
    "an empty object": "{}",
    "another step": '{"step": 3}',
    "a step that is a text": '{"step": "2"}',
    "a step that is a list": '{"step": [2]}',
    "brackets": "[" * 100_000,
    "bytes": "\udcff",
    "seconds that are a text": json.dumps(GOOD | {"seconds": "soon"}),
    "seconds that are missing": '{"step": 2}',
    "a window that is a number": json.dumps(GOOD | {"window": 5}),
    "a window of texts": json.dumps(GOOD | {"window": {"losses": ["a"], "norms": [], "rejected": 0, "levels": {}}}),
    "a window that is a list": json.dumps(GOOD | {"window": [[], []]}),
}


@pytest.mark.parametrize("state", STATES)
def test_a_state_of_wrong_types_is_a_sentence(trained, run, state):
    (last(run) / "state.json").write_bytes(STATES[state].encode(errors="surrogateescape"))
    sign(last(run))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged") as caught:
        train(trained[0], run, resume=True)
    assert "\n" not in str(caught.value)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


@pytest.mark.parametrize("dump", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_by_the_name_of_safetensors_does_not_run(run, tmp_path, dump):
    went_off = tmp_path / "went off"
    dump(Bomb(went_off), last(run) / "ema-0.100.safetensors")
    sign(last(run))
    with pytest.raises(CheckpointError, match=r"ema-0\.100\.safetensors is damaged"):
        sf.load(run)
    assert not went_off.exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {path}']",
        "data: !!python/object/apply:os.system ['touch {path}']",
        "about: !!python/object/new:os.system ['touch {path}']",
        "about: !!python/name:os.system",
    ],
)
def test_a_recipe_that_names_python_objects_does_not_run(run, tmp_path, capsys, text):
    went_off = tmp_path / "went-off"
    (run / "recipe.yaml").write_text(text.format(path=went_off))
    with pytest.raises(ValueError, match="is not YAML") as caught:
        sf.load(run)
    assert "\n" not in str(caught.value)
    for command in (["sample", run, "--out", tmp_path / "s.npz"], ["train", run / "recipe.yaml", "--out", tmp_path / "new"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in command])
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    assert not went_off.exists()


def test_a_change_that_names_python_objects_does_not_run(trained, run, tmp_path):
    went_off = tmp_path / "went-off"
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(run / "recipe.yaml", [f"about=!!python/object/apply:os.system ['touch {went_off}']"])
    assert not went_off.exists()


def test_a_recipe_of_nested_aliases_is_refused_quickly(run):
    """A billion laughs."""
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (run / "recipe.yaml").write_text("\n".join(lines))
    started = time.perf_counter()
    with pytest.raises(ValueError, match="data is missing"):
        sf.load(run)
    assert time.perf_counter() - started < 5


def test_a_checkpoint_that_is_a_link_out_of_the_run_is_not_read(run, tmp_path):
    away = tmp_path / "elsewhere" / "00000002"
    away.parent.mkdir()
    last(run).rename(away)
    last(run).symlink_to(away)
    with pytest.raises(CheckpointError, match=r"a link to a place outside"):
        sf.load(run)


def test_a_file_that_is_a_link_out_of_the_run_is_not_read(run, tmp_path):
    path = last(run) / "ema-0.100.safetensors"
    path.rename(tmp_path / "private.safetensors")
    path.symlink_to(tmp_path / "private.safetensors")
    with pytest.raises(CheckpointError, match=r"a link to a place outside"):
        sf.load(run)


def test_a_run_folder_may_itself_be_reached_through_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    (run / "checkpoints").rename(tmp_path / "large disk")
    (run / "checkpoints").symlink_to(tmp_path / "large disk")
    assert sf.load(tmp_path / "link").recipe.training.steps == 2


@pytest.mark.parametrize("name", ["00000001", ".00000001.partial", ".old"])
def test_tidying_up_removes_a_link_and_not_what_it_leads_to(tmp_path, name):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("…")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(precious)
    checkpoint.write(folder, 5, {}, {"step": 5}, keep=1)
    assert not (folder / name).is_symlink()
    assert (precious / "thesis.tex").read_text() == "…"


@pytest.mark.parametrize("name", ["²", "٣", "-1", "1e3", "0x10", "99999999999999999999"])
def test_folders_with_strange_numbers_do_no_harm(run, name, caplog):
    (run / "checkpoints" / name).mkdir()
    assert sf.load(run).recipe.training.steps == 2


@pytest.mark.parametrize(
    "text",
    ["", "../../../etc/passwd", "\0" * 100, "a  model.safetensors\nb  model.safetensors\n", "0" * 128 + "  ../model.safetensors\n"],
)
def test_strange_checksums_are_a_sentence(run, text):
    (last(run) / "checksums.b2").write_text(text)
    with pytest.raises(CheckpointError, match=r"ema-0\.100\.safetensors is damaged") as caught:
        sf.load(run)
    assert "\n" not in str(caught.value)


def test_recipes_are_yaml_without_tags(trained):
    """What a run keeps is plain: it can be read by any YAML reader."""
    assert yaml.safe_load((trained[1] / "recipe.yaml").read_text())["training"]["steps"] == 2
