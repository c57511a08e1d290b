"""The doctor names every planted fault and finds nothing on healthy recipes and runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BY_HAND, BY_SAMPLING, BY_TRAINING, DIGITS, HEALTHY, LONGER, MORE_FAULTS, RECIPE_FAULTS, RUN_FAULTS, SKIPPED, digits

import sfumato as sf
from sfumato.cli import main
from sfumato.doctor import Outcome, Plan, Severity, checks
from sfumato.doctor.table import page
from sfumato.recipe import load_recipe

IN_BOTH_FORMS = ["floats-for-images"]  # an option, or work on the data
BY_OPTIONS = [name for name in RECIPE_FAULTS if name not in BY_HAND or name in IN_BOTH_FORMS]
MAY_HAVE_NO_OPTION = ["enlarged"]


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


OPTION = r"--(?:set|guidance|steps|sampler) (?:\S+?='[^']*'|[^\s;,()]+)"
PLACES = {"--set": "", "--guidance": "sampling.guidance=", "--steps": "sampling.steps=", "--sampler": "sampling.sampler="}


def ways(change):
    """The ways that a finding's advice names, as changes of the options; the options that each begins with."""
    for part in re.split(r"; (?:or )?|, or ", change):
        found = re.match(rf"(?:[Ss]tart again with |with |use )?((?:{OPTION} ?)+)", part)
        if found:
            words = [word.split(" ", 1) for word in re.findall(OPTION, found[1])]
            yield [PLACES[flag] + value.replace("='", "=").rstrip("'") for flag, value in words]


def finding_of(name, subject):
    """What the check of this name finds, which is all that the whole doctor would find of it."""
    check = next(check for check in checks() if check.id == name)
    return check(subject if isinstance(subject, check.subject) else subject.plan)


def planted(name, subject):
    if SKIPPED.get(name):
        pytest.skip("this machine has what the fault supposes to be missing")
    finding = finding_of(name, subject)
    assert finding is not None
    return finding


def changed(plan, changes, shelf):
    """A plan with its advice followed, which must say something else than the plan."""
    path = shelf.path(".yaml")
    path.write_text(plan.recipe.to_yaml())
    better = Plan(load_recipe(path, changes), trial_seconds=plan.trial_seconds)
    assert better.recipe != plan.recipe
    return better


def test_the_advice_on_every_finding_is_tried():
    """In one of three forms: options of a recipe, options or commands for a run, work on the data."""
    assert {*RECIPE_FAULTS, *RUN_FAULTS} == {*BY_OPTIONS, *BY_HAND, *BY_TRAINING, *BY_SAMPLING}


@pytest.mark.parametrize(("name", "make"), [*((name, RECIPE_FAULTS[name]) for name in BY_OPTIONS), *MORE_FAULTS])
def test_the_options_that_are_advised_make_the_finding_go(name, make, shelf):
    """Each way that is named, by itself; where none is, the words must not name an option."""
    plan = make(shelf)
    change = planted(name, plan).change
    tried = list(ways(change))
    assert tried or (name in MAY_HAVE_NO_OPTION and "--set" not in change)
    for changes in tried:
        assert finding_of(name, changed(plan, changes, shelf)) is None, changes


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_advised_in_words_makes_the_finding_go(name, shelf):
    subject = {**RECIPE_FAULTS, **RUN_FAULTS}[name](shelf)
    finding = planted(name, subject)
    assert not list(ways(finding.change)) or name in IN_BOTH_FORMS
    assert finding_of(name, BY_HAND[name](shelf, subject)) is None


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LONGER else name for name in BY_TRAINING])
def test_the_training_that_is_advised_makes_the_finding_go(name, shelf):
    """A run that goes on, or begins anew, as the first way that is named says."""
    outcome = RUN_FAULTS[name](shelf)
    change = planted(name, outcome).change
    command = re.match(r"sfumato train (\S+)/recipe.yaml --out \1 (?:--steps (\d+) )?--resume", change)
    if command:
        assert Path(command[1]) == outcome.folder
        run = shelf.copy(outcome.folder)
        sf.train(load_recipe(run / "recipe.yaml", steps=int(command[2]) if command[2] else None), out=run, resume=True)
    else:
        run = shelf.run_of(changed(outcome.plan, next(ways(change)), shelf).recipe)
    assert finding_of(name, Outcome(run, samples=outcome.count)) is None


@pytest.mark.parametrize("name", BY_SAMPLING)
def test_the_sampling_that_is_advised_makes_the_finding_go(name, shelf):
    outcome = RUN_FAULTS[name](shelf)
    run, changes = shelf.copy(outcome.folder), next(ways(planted(name, outcome).change))
    (run / "recipe.yaml").write_text(outcome.recipe.to_yaml())
    better = Outcome(run, changes, samples=outcome.count)
    assert better.recipe != outcome.recipe
    assert finding_of(name, better) is None


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
    assert re.search(r"s a step, .* for 4000 steps; [\d.]+ GiB at the peak, [\d.]+ GiB free", out)


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
    denoiser = plan.recipe.build(plan.spec)
    objective = plan.recipe.objective.build_loss(plan.recipe.schedule.build(), 0.7)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        t, schedule = torch.full((1024,), 0.5), plan.recipe.schedule.build()
        loss = objective(denoiser, x0, torch.ones_like(x0), t, schedule.level(t, like=x0), {"labels": labels}).mean()
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
