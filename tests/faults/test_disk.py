"""A disk that is full, read-only or rots: one sentence, the previous good state, and a run that goes on when there is room again."""

import json
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lives import Life, live, recipe_file
from runs import train

import sfumato as sf
from sfumato import Training, load_recipe
from sfumato import storage as checkpoint
from sfumato.training.trackers import Trackers, raised_once


@pytest.fixture
def disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one; the limit on a file's size is tested below")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


STEPS = 80
WRITERS = {  # what alone is written before the disk is full: which file appears first, and options that leave the others out
    "metrics": ("metrics.jsonl", {"checkpoint_every": 1000, "log_every": 1, "trackers": []}),
    "tensorboard": ("metrics.jsonl", {"checkpoint_every": 1000, "log_every": 1, "trackers": ["tensorboard"]}),
    "sheet": ("checkpoints/0*", {"checkpoint_every": 5, "log_every": 1000, "trackers": []}),
    "checkpoint": ("checkpoints/0*", {"checkpoint_every": 1, "log_every": 1000, "trackers": [], "keep": 1}),
    "snapshot": ("snapshots/0*", {"checkpoint_every": 50, "log_every": 1000, "trackers": [], "snapshot_every": 10}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(disk, tmp_path, writer):
    first, options = WRITERS[writer]
    recipe, run, said = recipe_file(tmp_path, steps=STEPS, **options), disk / "run", tmp_path / "said.txt"
    if writer == "checkpoint":  # without pictures
        np.save(tmp_path / "points.npy", np.random.default_rng(0).standard_normal((200, 3), dtype=np.float32))
        tree = yaml.safe_load(recipe.read_text())
        tree |= {
            "data": {"kind": "array", "path": str(tmp_path / "points.npy")},
            "net": {"kind": "mlp", "width": 8, "depth": 1, "waves": 0},
        }
        recipe.write_text(yaml.safe_dump(tree))
    life = Life(["train", recipe, "--out", run], said)
    while not any(run.glob(first)):
        assert not life.is_over, said.read_text()
        time.sleep(1e-3)
    filler = fill(disk)
    assert life.end() == 1, said.read_text()
    last = said.read_text().splitlines()[-1]
    assert last.startswith(f"sfumato: cannot write {run}"), said.read_text()
    assert "no space left on device" in last
    assert last.endswith("free space or fix the permissions, then continue with --resume.")
    assert "Traceback" not in said.read_text()
    for step in checkpoint.steps_in(run / "checkpoints"):  # what was there is whole
        checkpoint.read_state(run / "checkpoints" / f"{step:08d}")
        checkpoint.read_tensors(run / "checkpoints" / f"{step:08d}" / "optimizer.safetensors")
    filler.unlink()
    assert live(["train", recipe, "--out", run, "--resume"], said) == 0, said.read_text()
    whole = tmp_path / "whole"
    assert live(["train", recipe, "--out", whole], said) == 0
    name = f"checkpoints/{STEPS:08d}/optimizer.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()
    steps = [[json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (run, whole)]
    assert steps[0] == steps[1]


def test_what_tensorboard_could_not_write_is_raised_and_not_printed_by_its_thread(disk, capfd):
    with raised_once():
        trackers = Trackers.begin(disk / "run", Training(trackers=("tensorboard",)), 0)
        trackers.log({"step": 1, "loss": 1.0})
        fill(disk)

        def on() -> None:
            for step in range(2, 1000):
                trackers.log({"step": step, "loss": 1.0})

        with pytest.raises(OSError, match="No space left on device"):
            on()
        with suppress(OSError):
            trackers.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_limit_on_the_size_of_files_is_one_sentence(tmp_path):
    """The optimiser's file is too large, those before it are not."""
    recipe, run, said = recipe_file(tmp_path, trackers=[]), tmp_path / "run", tmp_path / "said.txt"
    assert Life(["train", recipe, "--out", run], said, limit=16_000).end() == 1
    assert f"sfumato: cannot write {run / 'checkpoints' / '00000004'} (" in said.read_text().splitlines()[-1], said.read_text()
    assert "file too large" in said.read_text().lower()
    assert checkpoint.steps_in(run / "checkpoints") == []
    assert live(["train", recipe, "--out", run, "--resume"], said) == 0


def test_a_read_only_run_can_be_sampled_and_is_not_trained_into(disk, tmp_path):
    recipe, run, said = recipe_file(tmp_path), disk / "run", tmp_path / "said.txt"
    assert live(["train", recipe, "--out", run], said) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert live(["train", recipe, "--out", run, "--resume"], said) == 1
    assert said.read_text().splitlines()[-1].endswith("read-only file system.")
    assert "Traceback" not in said.read_text()
    assert live(["sample", run, "--count", "2", "--out", tmp_path / "s.npz"], said) == 0, said.read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("rot")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    recipe = load_recipe(recipe_file(folder, keep=3))
    run = train(recipe, folder / "run")
    torch.set_default_dtype(before)
    return recipe, run


FILES = ["model", "ema-0.100", "ema-0.050", "optimizer", "learned"]


def damages(rng):
    """Flips and cuts, at places drawn anew for each file."""
    for file in [*(f"{stem}.safetensors" for stem in FILES), "state.json", "checksums.b2"]:
        for share in rng.random(2).round(3).tolist():
            yield file, "flip", share
        yield file, "cut", round(rng.random(), 3)


@pytest.mark.parametrize(("file", "how", "share"), list(damages(np.random.default_rng(1))), ids=str)
def test_a_rotten_checkpoint_is_said_and_the_one_before_it_goes_on_to_the_same_bits(trained, tmp_path, caplog, file, how, share):
    torch.set_default_dtype(torch.float32)
    recipe, whole = trained
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "checkpoints" / "00000012" / file
    data = bytearray(path.read_bytes())
    if how == "flip":
        place = int(share * 8 * len(data))
        data[place // 8] ^= 1 << place % 8
    rotten = bytes(data if how == "flip" else data[: int(share * len(data))])
    path.write_bytes(rotten)
    said = []
    train(recipe, run, resume=True, on_message=said.append)
    assert said == [f"Resuming {run} after step 8 of 12."]
    (warning,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert warning.startswith(str(path.parent if file == "checksums.b2" else path))
    assert warning.endswith("going back to 00000008, and keeping the damaged one as 00000012.damaged.")
    assert (run / "checkpoints/00000012.damaged" / file).read_bytes() == rotten
    for stem in FILES:
        name = f"checkpoints/00000012/{stem}.safetensors"
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""], ids=["cut", "flip", "empty"]
)
def test_loading_a_run_passes_over_a_rotten_average(trained, tmp_path, caplog, damage):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    path = run / "checkpoints" / "00000012" / "ema-0.100.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    loaded = sf.load(run)
    before = checkpoint.read_tensors(run / "checkpoints" / "00000008" / "ema-0.100.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in loaded.network.net.state_dict().items())
    (record,) = caplog.records
    assert f"{path} is damaged" in record.message
    assert record.message.endswith("going back to 00000008.")
    assert path.exists()


def test_a_run_whose_averages_are_all_rotten_says_what_to_do(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    for path in run.glob("checkpoints/*/ema-0.100.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match=r"00000012/ema-0\.100\.safetensors is damaged .*restore one from a backup"):
        sf.load(run)
