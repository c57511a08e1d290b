"""`sweep`: every setting's own report, a table and a picture, going on, and the record of what was chosen."""

import json

import pytest
import torch

import sfumato as sf
from sfumato.cli import main
from sfumato.evaluation.evaluate import evaluate
from sfumato.evaluation.report import read_report

SETTINGS = {"samplers": ["ddim", "adams"], "steps": [2, 3], "count": 70, "metrics": ["mind", "prdc", "accuracy"]}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, sf.sweep("zoo:digits", "digits", out, **SETTINGS)


def test_each_report_is_that_of_evaluate(made):
    out, sweep = made
    assert len(sweep.rows) == 4
    alone = evaluate("zoo:digits", "digits", sampler="adams", steps=3, count=70, metrics=["mind"])
    kept = read_report(out / "adams-3-steps.json")
    assert kept.metrics["mind@pixels"].value == pytest.approx(alone.metrics["mind@pixels"].value, rel=1e-9)
    assert kept.manifest["model"]["sampling"]["sampler"] == "adams"


def test_the_table_has_samplers_as_rows_and_steps_as_columns(made):
    out, sweep = made
    lines = sweep.table("mind@pixels").splitlines()
    assert lines[0] == "| mind@pixels, steps | 2 | 3 |"
    value = read_report(out / "ddim-3-steps.json").metrics["mind@pixels"].value
    assert lines[2].startswith("| ddim | ")
    assert lines[2].endswith(f"| {value:.4g} |")
    text = (out / "table.md").read_text()
    assert "real data" in text
    assert "another seed" in text


def test_a_later_report_says_whether_its_setting_was_chosen_on_these_samples(made):
    same = evaluate("zoo:digits", "digits", sampler="adams", steps=3, count=70, metrics=["mind"])
    assert "part of a sweep of 4 settings" in same.manifest["chosen"]
    other = evaluate("zoo:digits", "digits", sampler="adams", steps=3, count=70, seed=9, metrics=["mind"])
    assert "of other samples or data than these" in other.manifest["chosen"]
    unswept = evaluate("zoo:digits", "digits", sampler="adams", steps=4, count=70, metrics=["mind"])
    assert "part of a sweep" not in unswept.manifest["chosen"]


def test_a_sweep_goes_on_with_the_reports_that_are_there(made, tmp_path, monkeypatch):
    _, sweep = made
    drawn, sample = [], sf.Model.sample

    def stopped(self, count, **options):
        drawn.append((options["sampler"], options["steps"]))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return sample(self, count, **options)

    monkeypatch.setattr(sf.Model, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        sf.sweep("zoo:digits", "digits", tmp_path / "out", **SETTINGS)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["done"] is False
    again = sf.sweep("zoo:digits", "digits", tmp_path / "out", **SETTINGS)
    assert drawn == [("ddim", 2), ("ddim", 3), ("adams", 2), ("adams", 2), ("adams", 3)]
    assert [report.metrics for _, report in again.rows] == [report.metrics for _, report in sweep.rows]
    with pytest.raises(ValueError, match=r"holds this sweep, finished; name another folder, or add --force"):
        sf.sweep("zoo:digits", "digits", tmp_path / "out", **SETTINGS)
    with pytest.raises(ValueError, match="holds a sweep of other settings"):
        sf.sweep("zoo:digits", "digits", tmp_path / "out", **{**SETTINGS, "steps": [4, 5]})


def test_a_sampler_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", "zoo:digits", "--data", "digits", "--sampler", "ddim,dim", "--steps", "2,3", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert 'there is no sampler "dim"; did you mean ddim?' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
