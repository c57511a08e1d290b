"""The comparison of speed: what it measures is what it says, and what it cannot measure it says."""

import json
import sys
from importlib.util import find_spec

import pytest
from PIL import Image

from sfumato.bench import compare, cost
from sfumato.bench.compare import Question, bench
from sfumato.cli import main

SMALL = (Question("forward, batch 2", "forward", 2, rounds=3, least_ratio=1e-9), Question("sampler alone", "overhead", 2, rounds=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "difusers"], "unknown library difusers; there are diffusers, "),
        (["--only", "batch 17"], 'no question has "batch 17" in its name; they are forward, batch 1; '),
        (["--against", "azula", "--only", "sampler"], "azula is not installed here (no module azula); pip install azula"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_measured_is_a_sentence(arguments, message, capsys):
    if "azula" in arguments and find_spec("azula"):
        pytest.skip("azula is installed here")
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_both_compute_one_function_and_are_counted_alike():
    """The networks of the two libraries have one folder's weights: their outputs agree, and so do their operations."""
    report = bench(["diffusers"], threads=1, questions=SMALL)
    forward = {figure["library"]: figure for figure in report["figures"] if figure["question"] == "forward, batch 2"}
    assert 0 < forward["sfumato"]["error"] < 1e-5
    assert abs(forward["sfumato"]["operations"] / forward["diffusers"]["operations"] - 1) < 0.01
    assert all(figure["low"] <= figure["seconds"] <= figure["high"] for figure in report["figures"])
    assert {figure["library"] for figure in report["figures"] if figure["question"] == "sampler alone"} == {"sfumato", "diffusers"}
    assert all(target["holds"] for target in report["targets"])
    assert report["ceiling"]["float32"] > 1e9
    assert json.loads(json.dumps(report)) == report


def test_a_worker_that_dies_is_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="measuring sfumato failed"):
        bench(threads=1, questions=SMALL)


def test_a_missed_target_is_told():
    figures = [
        compare.Figure("q", "sfumato", "float32", 1.0, 1.0, 1.0, 60, 0, 1e-4),
        compare.Figure("q", "diffusers", "float32", 1.2, 1.2, 1.2, 100, 0, 0.0),
    ]
    targets = compare._targets(Question("q", "step", 64, least_ratio=1.5, most_memory=0.6), figures)
    assert [(target["holds"], target["seen"]) for target in targets] == [(False, 1.2), (True, 0.6), (False, 1e-4)]
    assert compare._targets(Question("q", "step", 64), figures[:1]) == []


def test_a_processor_without_bfloat16_has_to_reach_its_targets_in_float32(monkeypatch):
    wanted = []
    for has_bfloat16 in (True, False):
        monkeypatch.setattr(compare, "multiplies_bfloat16", lambda here=has_bfloat16: here)
        wanted.append({question.name: question.least_ratio for question in compare.questions_here()})
    assert wanted[0]["forward, batch 64"] == 1.3
    assert wanted[0]["forward, batch 64, bfloat16"] == wanted[1]["forward, batch 64"] == 3.0
    assert wanted[1]["sampler alone, 100 steps"] is None
    assert not any("bfloat16" in name for name in wanted[1])


def test_costs_grow_as_they_are_drawn(tmp_path):
    """Steps cost what they are many: a slope of one; the picture shows the four curves."""
    measured = cost.costs(threads=1, rounds=1, axes={"steps": (4, 8, 16)})
    assert [count for count, _ in measured["steps"]] == [4, 8, 16]
    assert cost.slope([(1, 3.0), (2, 6.0), (4, 12.0)]) == pytest.approx(1)
    assert cost.slope([(1, 3.0), (2, 12.0), (4, 48.0)]) == pytest.approx(2)
    cost.draw(measured, tmp_path / "cost.png")
    assert Image.open(tmp_path / "cost.png").size[0] > 300
