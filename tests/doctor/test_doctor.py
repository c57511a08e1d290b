"""The doctor names every planted fault and finds nothing on healthy recipes and runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import DIGITS, HEALTHY, RECIPE_FAULTS, RUN_FAULTS, SKIPPED, digits

import sfumato as sf
from sfumato.cli import main
from sfumato.doctor import Plan, Severity, checks
from sfumato.doctor.table import page
from sfumato.model import build_denoiser
from sfumato.recipe import load_recipe

CURED = ["grey-as-rgb", "flip-changes", "clip-cuts-data", "signal-in-noise", "noise-at-the-end", "untrained-levels", "blind-target",
         "few-steps", "average-too-short", "average-too-wide", "warm-up-too-long", "no-checkpoint-on-the-way", "guidance-untaught",
         "guidance-too-strong", "bound-of-floats", "rate-too-low", "batch-above-data", "cropped-away", "enlarged", "unlike-scales",
         "floats-for-images"]  # fmt: skip


@pytest.mark.parametrize("name", RECIPE_FAULTS)
def test_a_fault_of_a_recipe_is_named(name, shelf):
    if SKIPPED.get(name):
        pytest.skip("this machine has what the fault supposes to be missing")
    assert name in {finding.id for finding in sf.doctor.recipe(RECIPE_FAULTS[name](shelf))}


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_a_fault_of_a_run_is_named(name, shelf):
    assert name in {finding.id for finding in sf.doctor.run(RUN_FAULTS[name](shelf))}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_on_the_healthy(name, shelf):
    subject = HEALTHY[name](shelf)
    assert (sf.doctor.recipe if isinstance(subject, Plan) else sf.doctor.run)(subject) == ()


def test_every_check_has_a_planted_fault():
    assert {check.id for check in checks()} == {*RECIPE_FAULTS, *RUN_FAULTS}


@pytest.mark.parametrize("name", CURED)
def test_the_change_that_is_proposed_cures(name, shelf):
    plan = RECIPE_FAULTS[name](shelf)
    (finding,) = (finding for finding in sf.doctor.recipe(plan) if finding.id == name)
    changes = [change.strip("'") for change in re.findall(r"--set (\S+?='[^']*'|[^\s;,()]+)", finding.change)]
    assert changes
    path = shelf.path(".yaml")
    path.write_text(plan.recipe.to_yaml())
    better = Plan(load_recipe(path, [change.replace("='", "=").rstrip("'") for change in changes]), trial_seconds=plan.trial_seconds)
    assert name not in {finding.id for finding in sf.doctor.recipe(better)}


def test_the_worst_come_first(shelf):
    found = sf.doctor.recipe(shelf.digits("sampling.steps=2", "net={kind: dit, width: 100, heads: 7}", "training.warmup=600"))
    assert [finding.severity for finding in found] == [Severity.ERROR, Severity.WARNING, Severity.WARNING]


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_the_command_says_what_to_change_and_exits_with_1(shelf, capsys):
    code, out, _ = call("doctor", shelf.digits_run, "--set", "sampling.steps=1", capsys=capsys)
    assert code == 1
    assert "WARNING  few-steps" in out
    assert "--set sampling.steps=20" in out


def test_the_command_exits_with_0_where_nothing_or_a_note_is_found(shelf, capsys, tmp_path):
    code, out, _ = call("doctor", shelf.toy_run, "--json", capsys=capsys)
    assert (code, json.loads(out)) == (0, {"findings": [], "trial": None})
    np.savez(tmp_path / "data.npz", arr_0=digits()[0])
    run = shelf.train(DIGITS, f"data={{kind: array, path: {tmp_path / 'data.npz'}}}", "training.steps=40", "training.warmup=2",
                      "training.checkpoint_every=40", "training.ema=[0.2]", "sampling.guidance=1", "sampling.log_snr_min=-6")  # fmt: skip
    (tmp_path / "data.npz").unlink()
    code, out, _ = call("doctor", run, "--json", capsys=capsys)
    assert [finding["id"] for finding in json.loads(out)["findings"]] == ["data-elsewhere"]
    assert code == 0


def test_the_command_forecasts_time_and_memory(shelf, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(shelf.digits("training.steps=4000", "training.decay=constant").recipe.to_yaml())
    code, out, _ = call("doctor", tmp_path / "mine.yaml", capsys=capsys)
    assert code == 0
    assert re.search(r"s a step, .* for 4000 steps; [\d.]+ GiB at the peak, [\d.]+ GiB are free", out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digts"], "did you mean digits?"),
        (["digits", "--set", "training.stps=5"], "did you mean training.steps?"),
        (["zoo:nothing"], "there is no zoo:nothing"),
    ],
    ids=["recipe", "option", "zoo"],
)  # fmt: skip
def test_bad_use_exits_with_2(arguments, sentence, capsys):
    code, _, err = call("doctor", *arguments, capsys=capsys)
    assert code == 2
    assert sentence in err


def test_the_trial_tells_what_a_batch_keeps_in_memory(shelf):
    """The forecast grows with the batch by what a forward pass leaves allocated, as the profiler counts it."""
    small, large = (shelf.digits(f"training.batch={n}", "net.width=512", trial=0.5).trial for n in (256, 8192))
    plan = shelf.digits("net.width=512")
    x0, labels = plan.some(1024)
    denoiser = build_denoiser(plan.recipe, plan.form)
    objective = plan.recipe.objective.build_loss(plan.recipe.schedule.build(), 0.7)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = objective(denoiser, x0, torch.ones_like(x0), torch.full((1024,), 0.5), {"labels": labels}).mean()
    kept = sum(event.self_cpu_memory_usage for event in profile.events())
    assert loss.requires_grad  # alive until here, and with it all that the way back needs
    assert (large.peak_bytes - small.peak_bytes) / (8192 - 256) == pytest.approx(kept / 1024, rel=0.35)


def test_the_page_is_that_of_the_registry():
    """docs/doctor.md is written by tests/doctor/margins.py; here only what does not depend on the machine is compared."""
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    for line in page({}).splitlines():
        if line.startswith("| `"):
            first = " | ".join(line.split(" | ")[:4])
            assert first in text, first
