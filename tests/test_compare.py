"""Reports side by side: what differs comes first, and what cannot be compared is not ranked."""

import copy
import json

import pytest

from sfumato.cli import main
from sfumato.evaluation.compare import best, compare, differences
from sfumato.evaluation.report import VERSION, Figure, Report, read_report

MANIFEST = {
    "samples": {"name": "run", "count": 100, "seeds": [0], "evaluations": 20.0, "resized": "no"},
    "model": {"weights": "a" * 64, "sampling": {"sampler": "adams", "steps": 20}},
    "data": {"name": "digits", "fingerprint": "d" * 64, "split": "all", "count": 500, "scaling": {"shift": 127.5}},
    "features": {"pixels": {"sha256": "f" * 64, "resize": "none"}},
}


def report(value=1.0, error=0.1, **changes):
    manifest = copy.deepcopy(MANIFEST)
    for path, changed in changes.items():
        *groups, last = path.split("__")
        place = manifest
        for group in groups:
            place = place[group]
        place[last] = changed
    return Report({"fd@pixels": Figure(value, error, 100)}, manifest)


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_a_report_reads_back_as_it_was_written(tmp_path):
    told = Report({"fd@pixels": Figure(1.5, None, 100, 0.5, 50, 9.0)}, MANIFEST, ("a note",))
    told.save(tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == told
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["version"] == VERSION
    assert record["metrics"]["fd@pixels"] == {"value": 1.5, "error": None, "count": 100, "floor": 0.5, "floor_count": 50, "ceiling": 9.0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (json.dumps({"version": 2, "metrics": {}, "manifest": {}}), "version 2, and this sfumato reads version 1"),
        ("no JSON", "is not JSON"),
        (json.dumps({"steps": 3, "images": 9}), "is no report of sfumato evaluate"),
        (json.dumps({"version": VERSION, "metrics": {"fd": {"count": 3}}, "manifest": {}}), "is damaged"),
        (None, "cannot be read"),
    ],
    ids=["newer", "no JSON", "a training's report", "damaged", "missing"],
)  # fmt: skip
def test_what_is_no_report_gets_a_sentence(tmp_path, capsys, text, sentence):
    report().save(tmp_path / "a.json")
    if text is not None:
        (tmp_path / "b.json").write_text(text)
    code, _, err = call("compare", tmp_path / "a.json", tmp_path / "b.json", capsys=capsys)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "path",
    [
        "data__fingerprint", "data__split", "data__count", "samples__count", "samples__resized",
        "features__pixels__sha256", "features__pixels__resize",
    ],
)  # fmt: skip
def test_what_must_agree_is_refused_and_named(path):
    with pytest.raises(ValueError, match=f"cannot be compared, as the reports differ in {path.replace('__', '.')}"):
        compare({"a": report(), "b": report(**{path: "other"})})


@pytest.mark.parametrize("path", ["samples__seeds", "samples__evaluations", "model__weights", "model__sampling__steps", "samples__name"])
def test_what_is_compared_may_differ_and_is_shown(path):
    comparison = compare({"a": report(), "b": report(**{path: "other"})})
    assert [difference.path for difference in comparison.differences] == [path.replace("__", ".")]
    assert not comparison.blocking


def test_differences_come_before_any_number_and_anyway_ranks_nothing(tmp_path, capsys):
    report(1.0).save(tmp_path / "a.json")
    report(2.0, data__split="held-out", samples__seeds=[1]).save(tmp_path / "b.json")
    code, out, err = call("compare", tmp_path / "a.json", tmp_path / "b.json", capsys=capsys)
    assert code == 2
    assert "data.split" in err
    assert "data.split (!)" in out
    assert "samples.seeds" in out
    assert "fd@pixels" not in out
    code, out, err = call("compare", tmp_path / "a.json", tmp_path / "b.json", "--anyway", capsys=capsys)
    assert code == 0
    assert out.index("data.split") < out.index("fd@pixels")
    assert "best" not in out.splitlines()[-2]
    assert "none is called the best" in out


def test_the_best_is_told_only_beyond_two_errors():
    near, far = Figure(1.0, 0.1, 9), Figure(2.0, 0.1, 9)
    assert best("fd@pixels", {"a": near, "b": far}) == "a"
    assert best("recall@pixels", {"a": near, "b": far}) == "b"
    assert best("fd@pixels", {"a": near, "b": Figure(1.28, 0.1, 9)}) == "within two errors"
    assert best("fd@pixels", {"a": near, "b": Figure(1.29, 0.1, 9)}) == "a"
    assert best("fd@pixels", {"a": near, "b": Figure(1.2, None, 9)}) == "a, by an unknown error"
    assert best("fd@pixels", {"a": near, "b": None}) == ""


def test_reports_without_a_common_figure_and_single_ones_are_refused():
    other = Report({"fd@grey28": Figure(1.0, None, 100)}, MANIFEST)
    with pytest.raises(ValueError, match=r"share no figure: a has fd@pixels; b has fd@grey28"):
        compare({"a": report(), "b": other})
    with pytest.raises(ValueError, match="at least two reports, got 1"):
        compare({"a": report()})


def test_features_that_only_one_report_has_do_not_block():
    """Reports may share one figure of several."""
    more = report()
    both = {**MANIFEST, "features": {**MANIFEST["features"], "grey28": {"sha256": "9" * 64, "resize": "none"}}}
    comparison = compare({"a": more, "b": Report(more.metrics, both)})
    assert not comparison.blocking
    assert {difference.path for difference in comparison.differences} == {"features.grey28.sha256", "features.grey28.resize"}


def test_differences_of_three_manifests_are_found_wherever_they_lie():
    found = differences([{"a": {"b": 1}, "c": 2}, {"a": {"b": 1}}, {"a": {"b": 3}, "c": 2}])
    assert {difference.path: difference.values for difference in found} == {"a.b": (1, 1, 3), "c": (2, None, 2)}
