"""Progress: each stage with a rate and an end of its own."""

import re
import time

import pytest

from sfumato.cli.progress import Stage, reporter


def test_each_stage_has_its_own_rate_and_end(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with reporter(Stage("autoencoder", 10, 16), Stage("diffusion", 4, 64), unit="images") as report:
        for step in range(1, 15):  # ten seconds a step of the first stage, five of the second
            now += 10 if step <= 10 else 5
            report(step, "loss 1.000")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert lines[4] == "autoencoder 5/10, loss 1.000, 2 images/s, 0:50 left"
    assert lines[9].startswith("autoencoder 10/10")
    assert lines[10] == "diffusion 1/4, loss 1.000"  # no rate yet
    assert lines[12] == "diffusion 3/4, loss 1.000, 13 images/s, 0:05 left"


def test_a_run_that_goes_on_in_its_second_stage_counts_from_there(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with reporter(Stage("autoencoder", 10, 16), Stage("diffusion", 4, 64), unit="images") as report:
        for step in (12, 13):
            now += 8
            report(step)
    assert capsys.readouterr().out.splitlines() == ["diffusion 2/4", "diffusion 3/4, 8 images/s, 0:08 left"]


@pytest.mark.parametrize("slow", range(2, 9))
def test_one_slow_step_moves_the_guess_by_nothing(monkeypatch, capsys, slow):
    """A machine that slept through one of the steps, whichever."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with reporter(Stage("training", 100, 16), unit="images") as report:
        for step in range(1, 11):
            now += 10 if step != slow else 3600
            report(step)
    assert capsys.readouterr().out.splitlines()[-1] == "training 10/100, 2 images/s, 15:00 left"


def test_what_comes_regularly_counts(monkeypatch, capsys):
    """A sheet of samples every tenth step, in more steps than are remembered."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with reporter(Stage("training", 5000), unit="steps") as report:
        for step in range(1, 4002):
            now += 1 if step % 10 else 11
            report(step)
    said = capsys.readouterr().out.splitlines()[-1]
    minutes, seconds = map(int, re.findall(r"(\d+):(\d\d) left", said)[0])
    assert 60 * minutes + seconds == pytest.approx(2 * 999, rel=0.01)
