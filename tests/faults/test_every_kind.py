"""Every kind of model, those of `tests/kinds` too: killed and resumed it ends in the same bits, and two processes train as one does."""

import json
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from lives import TINY, Life, live
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

OWN = Path(__file__).parents[1] / "kinds"
STEPS = 24
TRAINING = {
    "steps": STEPS, "batch": 9, "checkpoint_every": 4, "log_every": 1, "warmup": 2, "keep": 100, "trackers": [], "optimizer": "adamw",
    "held_out": 0.1,
}  # fmt: skip
CPU = {"precision": "float32", "kernels": "torch"}
DIT = {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}
KINDS = {
    "denoiser": {"net": DIT, "objective": {"times": {"kind": "fitted", "bins": 4}}, "sampling": {"steps": 1}},
    "vae": {
        "model": {"kind": "vae", "latents": [3, 2], "widths": [8], "patch": 2, "hidden": 8, "layers": 1},
        "likelihood": {"kind": "logistic", "values": 17},
        "objective": {"warmup": 4},
    },
    "hierarchical-vae": {
        "model": {"kind": "ladder", "levels": [[0, 2], [1, 2]], "width": 8, "patch": 1},
        "likelihood": {"kind": "bernoulli"},
    },
    "vdm": {
        "model": {"kind": "vdm", "log_snr_max": 7.5, "fourier": [3], "values": 17, "width": 4},
        "net": DIT,
        "sampling": {"steps": 1},
    },
    "autoencoder": {"model": {"kind": "autoencoder", "latent": 2, "widths": [8, 8], "patch": 1}},
    "latent-diffusion": {
        "model": {"kind": "latent-diffusion"},
        "autoencoder": {"latent": 2, "widths": [8, 8], "patch": 1},
        "autoencoder_training": {key: value for key, value in TRAINING.items() if key != "held_out"},
        "net": DIT | {"patch": 2},
        "sampling": {"steps": 1},
    },
    "classifier": {"model": "classifier", "schedule": {"kind": "cosine"}, "net": {"kind": "patch-classifier", "widths": [8, 8]}},
    "bernoulli-tokens": {"model": "bernoulli-tokens", "data": {"kind": "bernoulli-tokens"}},
    "point-sets": {"model": "point-sets", "data": {"kind": "point-sets"}},
}
FILES = {"bernoulli-tokens": OWN / "bernoulli_tokens.py", "point-sets": OWN / "point_sets.py"}
every_kind = pytest.mark.parametrize("kind", KINDS)


def arguments(kind: str, folder: Path, out: Path) -> list[object]:
    """The command that trains a kind into `out`, or goes on with it."""
    recipe = folder / f"{kind}.yaml"
    training = TRAINING | ({"held_out": 0} if kind in FILES else {}) | ({"label_drop": 0.0} if kind == "classifier" else {})
    recipe.write_text(yaml.safe_dump({"data": TINY["data"], "training": training, "runtime": CPU, **KINDS[kind]}))
    return [*(["--import", FILES[kind]] if kind in FILES else []), "train", recipe, "--out", out, "--resume"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function from a kind to its run by one process that nobody interrupted, made once."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def of(kind: str) -> Path:
        if kind not in made:
            said, made[kind] = folder / f"{kind}.txt", folder / kind
            assert live(arguments(kind, folder, made[kind]), said) == 0, said.read_text()
        return made[kind]

    return of


def checkpoints(run: Path) -> list[Path]:
    """Those of all stages, by their place in the run."""
    return sorted(path.relative_to(run) for path in run.rglob("checkpoints/[0-9]*"))


def lines(run: Path) -> dict[Path, list[dict[str, float]]]:
    """The lines of every metrics.jsonl, without what varies by nature."""
    varying = ("seconds", "images_per_second", "peak_memory_bytes")
    return {
        path.relative_to(run): [{k: v for k, v in json.loads(line).items() if k not in varying} for line in path.read_text().splitlines()]
        for path in run.rglob("metrics.jsonl")
    }


@every_kind
def test_killed_and_resumed_it_ends_in_the_same_bits(whole, kind, tmp_path):
    """Killed in each stage, a moment after a checkpoint appeared, at a moment that the seed of the kind decides."""
    truth, out, rng = whole(kind), tmp_path / "cut", np.random.default_rng(sorted(KINDS).index(kind))
    stages = sorted({path.parent for path in checkpoints(truth)})
    for number, stage in enumerate(stages):
        for _ in range(9):  # a busy machine may kill it only when it is done: then it begins that stage again
            life = Life(arguments(kind, tmp_path, out), tmp_path / f"{number}.txt")
            while not any((out / stage).glob("[0-9]*")) and not life.is_over:
                time.sleep(2e-4)
            time.sleep(0.02 * rng.random())
            if life.kill() and not (out / stage / f"{STEPS:08d}").exists():
                break
            assert life.process.exitcode in (0, -9), life.said.read_text()
            shutil.rmtree(out if number == 0 else (out / stage).parent)
        else:
            pytest.fail("it always came to its end before it was killed; give it more steps")
    said = tmp_path / "last.txt"
    assert live(arguments(kind, tmp_path, out), said) == 0, said.read_text()
    assert "Resuming" in said.read_text()
    assert checkpoints(out) == checkpoints(truth)
    for path in checkpoints(truth):
        for file in sorted((truth / path).glob("*.safetensors")):
            assert (out / path / file.name).read_bytes() == file.read_bytes(), path / file.name
    assert lines(out) == lines(truth)
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(kind: str, folder: Path, out: Path, *changes: str) -> None:
    """Trains a kind in two processes, with the environment that torchrun gives them."""
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [*arguments(kind, folder, out), *(word for change in changes for word in ("--set", change))]
    lives = [Life(command, folder / f"{r}.txt", environment=group | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [life.end() for life in lives] == [0, 0], "\n".join(life.said.read_text() for life in lives)


@every_kind
def test_two_processes_train_as_one(whole, kind, tmp_path):
    """A batch that they cannot halve; but for the order of sums, which Adam's first steps enlarge, the same figures and weights."""
    truth, out = whole(kind), tmp_path / "both"
    together(kind, tmp_path, out)
    assert checkpoints(out) == checkpoints(truth)
    ours, theirs = lines(out), lines(truth)
    assert ours.keys() == theirs.keys()
    for path, records in theirs.items():
        for mine, record in zip(ours[path], records, strict=True):
            assert mine.keys() == record.keys()
            np.testing.assert_allclose([*mine.values()], [*record.values()], rtol=1e-3, atol=1e-4, err_msg=f"{path} {[*mine]}")
    for path in checkpoints(truth):
        for file in (truth / path).glob("*.safetensors"):
            mine, wanted = (np.concatenate([v.ravel() for _, v in sorted(load_file(f / path / file.name).items())]) for f in (out, truth))
            assert np.linalg.norm(mine - wanted) < 5e-3 * np.linalg.norm(wanted), path / file.name


def test_processes_whose_shares_reach_other_parameters_train_together(tmp_path):
    """Free nats are granted on a process's share, so at some steps one process has a gradient of a prior where the other has none."""
    together("vae", tmp_path, tmp_path / "run", "objective.free_nats=0.2")
    assert len(checkpoints(tmp_path / "run")) == STEPS // TRAINING["checkpoint_every"]
