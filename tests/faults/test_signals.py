"""What a person, a scheduler or a second process does to a run: it stops with a checkpoint, says how to go on, and has one writer."""

import json
import os
import shlex
import signal
import time
from itertools import pairwise

import pytest
from lives import Life, live, recipe_file

from sfumato.storage import steps_in


def begun(recipe, run, said):
    """A run that has written its first line."""
    life = Life(["train", recipe, "--out", run], said)
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").stat().st_size:
        assert not life.is_over, said.read_text()
        time.sleep(1e-3)
    return life


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_writes_a_checkpoint_and_says_the_command_that_goes_on(tmp_path, number, code):
    recipe, run, said = recipe_file(tmp_path, steps=60, checkpoint_every=1000, log_every=1), tmp_path / "my run", tmp_path / "said.txt"
    life = begun(recipe, run, said)
    os.kill(life.process.pid, number)
    assert life.end() == code
    last = said.read_text().splitlines()[-1]
    done = steps_in(run / "checkpoints")[-1]
    assert last.startswith(f"sfumato: stopped after step {done} of 60; continue with: sfumato train ")
    command = shlex.split(last.split("continue with: ")[1])
    assert live(command[1:], said) == 0
    assert f"after step {done} of 60" in said.read_text()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(1, 61))


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    recipe, run, said = recipe_file(tmp_path, steps=5000, log_every=1), tmp_path / "run", tmp_path / "second.txt"
    first = begun(recipe, run, tmp_path / "first.txt")
    assert live(["train", recipe, "--out", run, "--resume"], said) == 2
    assert "another process is training into" in said.read_text()
    assert first.kill()  # with no time to tidy up: the system drops its lock
    assert live(["train", recipe, "--out", run, "--resume", "--steps", "5000", "--set", "training.batch=17"], said) == 2
    assert "started with another recipe" in said.read_text()


def test_of_two_that_begin_together_one_goes_on(tmp_path):
    recipe, run = recipe_file(tmp_path), tmp_path / "run"
    lives = [Life(["train", recipe, "--out", run], tmp_path / f"{i}.txt") for i in range(2)]
    codes = [life.end() for life in lives]
    assert sorted(codes) == [0, 2], [life.said.read_text() for life in lives]
    assert steps_in(run / "checkpoints") == [8, 12]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [3, 6, 9, 12]


def test_seconds_do_not_follow_the_clock_on_the_wall(tmp_path, monkeypatch):
    """The wall clock goes back by a day at every look; the seconds of a run grow by what has passed."""
    import torch
    from runs import train

    from sfumato import load_recipe

    torch.set_default_dtype(torch.float32)
    now = iter(range(10**9, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    started = time.perf_counter()
    run = train(load_recipe(recipe_file(tmp_path, log_every=1)), tmp_path / "run")
    passed = time.perf_counter() - started
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [0.0, *(line["seconds"] for line in lines)]
    assert all(before < after for before, after in pairwise(seconds))
    assert seconds[-1] < passed
    assert all(line["images_per_second"] > 0 for line in lines)
