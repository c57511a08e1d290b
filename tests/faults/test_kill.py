"""A run killed again and again ends where one that never was does: the same bits, the same lines, nothing twice and nothing left out."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lives import Life, live, recipe_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

KILLS, STEPS = 25, 360  # far more than a fast machine makes between so many kills
VARYING = ("seconds", "images_per_second", "peak_memory_bytes")  # by nature


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run that nobody interrupted, and the one killed at 25 moments."""
    folder = tmp_path_factory.mktemp("kill")
    recipe = recipe_file(folder, steps=STEPS, checkpoint_every=3, snapshot_every=15, log_every=2, trackers=["tensorboard"])
    whole, cut = folder / "whole", folder / "cut"
    assert live(["train", recipe, "--out", whole], folder / "whole.txt") == 0
    rng, killed = np.random.default_rng(4), 0
    for number in range(KILLS):
        life = Life(["train", recipe, "--out", cut, "--resume"], folder / f"{number}.txt")
        wait, delay = MOMENTS[number % len(MOMENTS)]
        wait(life, cut)
        time.sleep(delay * rng.random())
        killed += life.kill()
    assert killed == KILLS, "the run came to its end before it was killed so often; give it more steps"
    assert live(["train", recipe, "--out", cut, "--resume"], folder / "last.txt") == 0
    return whole, cut


def soon(life: Life, run: Path) -> None:
    """Somewhere between its start and its first steps."""


def until(happens: Callable[[Path], object]) -> Callable[[Life, Path], None]:
    """Watches the run folder until this is other than it was."""

    def wait(life: Life, run: Path) -> None:
        before = happens(run)
        while happens(run) == before and not life.is_over:
            time.sleep(2e-4)

    return wait


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in run.glob("checkpoints/[0-9]*")}


def checkpoint_being_written(run: Path) -> bool:
    return any(run.glob("checkpoints/.*.partial/*"))


def sheet_being_written(run: Path) -> bool:
    return any(run.glob("samples/.*.partial"))


def lines_written(run: Path) -> int:
    return (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").is_file() else 0


MOMENTS = [  # what is waited for, and the longest time after it, in seconds
    (soon, 1.0),
    (until(checkpoint_being_written), 0.02),
    (until(checkpoints), 0.1),
    (until(lines_written), 0.05),
    (until(sheet_being_written), 0.002),
    (until(checkpoints), 0.3),
    (until(checkpoint_being_written), 0.0),
]


def final(run: Path) -> Path:
    return run / "checkpoints" / f"{STEPS:08d}"


@pytest.mark.parametrize("file", ["model", "ema-0.100", "ema-0.050", "optimizer", "learned"])
def test_the_last_checkpoint_has_the_same_bits(runs, file):
    whole, cut = (final(run) / f"{file}.safetensors" for run in runs)
    assert whole.read_bytes() == cut.read_bytes()


def test_metrics_have_no_gap_and_no_line_twice(runs):
    whole, cut = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert [line["step"] for line in cut] == list(range(2, STEPS + 1, 2))
    assert [{k: v for k, v in line.items() if k not in VARYING} for line in cut] == [
        {k: v for k, v in line.items() if k not in VARYING} for line in whole
    ]
    assert np.all(np.diff([line["seconds"] for line in cut]) > 0)


def test_tensorboard_has_no_gap_and_no_point_twice(runs):
    def curve(run: Path) -> list[tuple[int, float]]:
        events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")]

    whole, cut = map(curve, runs)
    assert [step for step, _ in cut] == list(range(2, STEPS + 1, 2))
    assert cut == whole


@pytest.mark.parametrize("kept", ["samples/*.png", "snapshots/*/*.safetensors"])
def test_what_is_kept_for_good_is_the_same(runs, kept):
    whole, cut = ({path.relative_to(run): path.read_bytes() for path in run.glob(kept)} for run in runs)
    assert whole
    assert cut == whole


def test_nothing_half_written_is_left(runs):
    assert not [path for path in runs[1].rglob(".*") if path.name != ".lock"]
