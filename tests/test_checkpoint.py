"""Checkpoints: whole or not there, and damage is seen, said and passed over, with nothing deleted."""

import logging
import shutil
import subprocess

import numpy as np
import pytest
import torch

from sfumato import storage as checkpoint
from sfumato.storage import CheckpointError


@pytest.fixture
def run(tmp_path):
    """Checkpoints at steps 1, 2 and 3, each with its step in its weights."""
    for step in (1, 2, 3):
        write(tmp_path, step)
    return tmp_path


def write(run, step, keep=3):
    tensors = {"model": {"w": torch.full((50, 3), float(step))}, "optimizer": {"m": torch.zeros(4), "n": torch.ones(2, 2)}}
    return checkpoint.write(run / "checkpoints", step, tensors, {"step": step, "seconds": 0.5}, keep=keep)


def read(path):
    """All of a checkpoint, as a resumed run reads it."""
    state = checkpoint.read_state(path)
    tensors = {stem: checkpoint.read_tensors(path / f"{stem}.safetensors") for stem in ("model", "optimizer")}
    assert bool((tensors["model"]["w"] == state["step"]).all())
    return state["step"]


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.b2"]
every_file = pytest.mark.parametrize("file", FILES)


def flip(data, share):
    place = int(share * (8 * len(data) - 1))
    data = bytearray(data)
    data[place // 8] ^= 1 << place % 8
    return bytes(data)


def test_the_newest_checkpoint_is_taken_up(run, caplog):
    assert checkpoint.load_newest_valid(run, read) == 3
    assert not caplog.records


@every_file
@pytest.mark.parametrize("share", [0.0, *np.random.default_rng(0).random(6).round(4).tolist(), 1.0])
def test_a_flipped_bit_is_seen_and_said_and_the_checkpoint_before_taken_up(run, caplog, file, share):
    path = run / "checkpoints" / "00000003" / file
    path.write_bytes(flip(path.read_bytes(), share))
    assert checkpoint.load_newest_valid(run, read) == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "is damaged" in record.message
    assert record.message.endswith("going back to 00000002.")
    assert str(run / "checkpoints" / "00000003") in record.message
    assert "\n" not in record.message


@every_file
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_seen(run, caplog, file, share):
    path = run / "checkpoints" / "00000003" / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert checkpoint.load_newest_valid(run, read) == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize("file", FILES[:-1])
def test_a_missing_file_is_seen(run, caplog, file):
    (run / "checkpoints" / "00000003" / file).unlink()
    assert checkpoint.load_newest_valid(run, read) == 2
    assert file in caplog.records[0].message


def test_files_of_another_checkpoint_are_seen(run):
    """Whole by themselves, and of another step."""
    shutil.copy(run / "checkpoints/00000001/model.safetensors", run / "checkpoints/00000003/model.safetensors")
    assert checkpoint.load_newest_valid(run, read) == 2


def test_a_checkpoint_under_another_number_is_seen(run):
    shutil.copytree(run / "checkpoints/00000001", run / "checkpoints/00000009")
    assert checkpoint.load_newest_valid(run, read) == 3


def test_readers_leave_the_damaged_one_where_it_is_and_the_writer_keeps_it_aside(run, caplog):
    path = run / "checkpoints" / "00000003" / "model.safetensors"
    broken = flip(path.read_bytes(), 0.5)
    path.write_bytes(broken)
    checkpoint.load_newest_valid(run, read)
    assert path.read_bytes() == broken
    assert checkpoint.load_newest_valid(run, read, set_aside=True) == 2
    assert caplog.records[-1].message.endswith("going back to 00000002, and keeping the damaged one as 00000003.damaged.")
    assert (run / "checkpoints" / "00000003.damaged" / "model.safetensors").read_bytes() == broken
    write(run, 3)
    assert checkpoint.load_newest_valid(run, read) == 3


def test_one_damaged_twice_is_kept_twice(run):
    for _ in range(2):
        (run / "checkpoints" / "00000003" / "state.json").write_text("")
        checkpoint.load_newest_valid(run, read, set_aside=True)
        write(run, 3)
    assert {path.name for path in (run / "checkpoints").glob("*.damaged*")} == {"00000003.damaged", "00000003.damaged-2"}


def test_when_none_is_whole_it_says_what_to_do_and_moves_nothing(run):
    for path in run.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(b"")
    before = sorted(run.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"00000003/model\.safetensors is damaged .* has no other valid checkpoint; restore one from a backup"
    ):
        checkpoint.load_newest_valid(run, read, set_aside=True)
    assert sorted(run.rglob("*")) == before


def test_no_checkpoint_yet_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        checkpoint.load_newest_valid(tmp_path, read)


def test_a_checkpoint_that_training_removes_while_it_is_read_is_no_damage(run, caplog):
    def slowly(path):
        if path.name == "00000003" and checkpoint.steps_in(path.parent)[-1] == 3:
            write(run, 4, keep=1)
        return read(path)

    assert checkpoint.load_newest_valid(run, slowly) == 4
    assert not caplog.records


def test_checksums_are_those_of_b2sum(run):
    if shutil.which("b2sum") is None:
        pytest.skip("b2sum is not installed")
    here = run / "checkpoints" / "00000003"
    assert subprocess.run(["b2sum", "-c", "checksums.b2"], cwd=here, capture_output=True, check=False).returncode == 0
    (here / "state.json").write_text("{}")
    assert subprocess.run(["b2sum", "-c", "checksums.b2"], cwd=here, capture_output=True, check=False).returncode == 1


def test_a_checkpoint_without_checksums_is_read_as_it_is(run, caplog):
    """As sfumato 0.1 wrote them; what safetensors and JSON see by themselves is still seen."""
    (run / "checkpoints/00000003/checksums.b2").unlink()
    assert checkpoint.load_newest_valid(run, read) == 3
    (run / "checkpoints/00000003/model.safetensors").write_bytes(b"short")
    assert checkpoint.load_newest_valid(run, read) == 2
    assert "is damaged" in caplog.records[0].message


def test_an_added_file_has_a_checksum_too(run):
    here = run / "checkpoints" / "00000003"
    path = checkpoint.add(here, "ema-0.150", {"w": torch.arange(6.0)})
    assert torch.equal(checkpoint.read_tensors(path)["w"], torch.arange(6.0))
    path.write_bytes(flip(path.read_bytes(), 0.9))
    with pytest.raises(CheckpointError, match="its checksum does not match"):
        checkpoint.read_tensors(path)
    assert checkpoint.load_newest_valid(run, read) == 3


def test_a_file_that_nobody_signed_is_not_read(run):
    here = run / "checkpoints" / "00000003"
    shutil.copy(here / "model.safetensors", here / "ema-0.150.safetensors")
    with pytest.raises(CheckpointError, match=r"checksums\.b2 does not list it"):
        checkpoint.read_tensors(here / "ema-0.150.safetensors")


def test_the_last_few_are_kept_or_all(run):
    write(run, 4, keep=2)
    assert checkpoint.steps_in(run / "checkpoints") == [3, 4]
    checkpoint.write(run / "checkpoints", 5, {}, {"step": 5}, keep=None)
    assert checkpoint.steps_in(run / "checkpoints") == [3, 4, 5]


def test_all_files_may_be_read_by_the_same_people(run):
    modes = {path.stat().st_mode for path in (run / "checkpoints/00000003").iterdir()}
    assert len(modes) == 1


def test_a_file_written_aside_leaves_the_old_one_on_failure(tmp_path):
    path = tmp_path / "letter.txt"
    checkpoint.write_text(path, "dear")

    def interrupted():
        with checkpoint.aside(path) as partial:
            partial.write_text("d")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == "dear"
    assert list(tmp_path.iterdir()) == [path]
