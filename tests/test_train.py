"""Training as a promise: it learns what can be known, and an interrupted run ends where an uninterrupted one does."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import train
from safetensors.torch import load_file

import sfumato as sf
from sfumato import Stopped, Training, load_recipe
from sfumato import storage as checkpoint
from sfumato.runtime import precision
from sfumato.training.step import orders

TINY = {
    "data": {"kind": "digits"},
    "net": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
    "training": {"steps": 12, "batch": 16, "checkpoint_every": 4, "log_every": 3, "warmup": 2, "keep": 10},
    "runtime": {"precision": "float32"},
    "sampling": {"steps": 2},
}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.mark.slow
def test_a_learned_variance_is_learned(recipe_file, tmp_path):
    """With L_hybrid the bound of a short run falls below that of its own two fixed variances."""
    changes = ["schedule={kind: discrete, betas: cosine, steps: 20}", "objective={target: eps, weight: eps, times: {kind: uniform}}"]
    changes += ["objective.loss=hybrid", "objective.variance=learned", "objective.values=17", "training.steps=250", "training.batch=64"]
    changes += ["net={patch: 2, width: 32, depth: 2}", "training.rate=0.003", "training.checkpoint_every=250"]
    recipe = load_recipe(recipe_file, changes)
    run = sf.load(train(recipe, tmp_path / "learned"))
    batch = recipe.data.load().batch(np.arange(200))
    levels = sf.grid(run.schedule, 20, spacing=sf.spacing.uniform)
    bits = {
        kind: float(
            sf.likelihood.vlb(
                run.predictor, batch.x, levels, batch.cond, variance=kind, bin_width=2 / 16, generator=torch.Generator().manual_seed(0)
            ).total.mean()
        )
        for kind in ("small", "large", "learned")
    }
    assert bits["learned"] < min(bits["small"], bits["large"])
    assert run.sample(4, sampler="ancestral-learned", steps=20).values.shape == (4, 8, 8, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective.loss=hybrid"], "learned variance"),
        (["objective.variance=learned"], "does not train a variance"),
        (["objective.loss=vlb"], "schedule.kind=discrete"),
    ],
    ids=lambda v: v if isinstance(v, str) else "; ".join(v),
)
def test_objectives_that_do_not_fit_are_refused(recipe_file, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, changes)


def weights(run, step=12, stem="model"):
    return load_file(run / "checkpoints" / f"{step:08d}" / f"{stem}.safetensors")


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


CHAIN = ["schedule={kind: discrete, betas: cosine, steps: 8}", "objective.target=eps"]


@pytest.mark.parametrize(
    "changes",
    [
        [f"training.optimizer={optimizer}", f"runtime.precision={number}"]
        for optimizer in ("adamw", "muon")
        for number in ("float32", "bfloat16")
    ]
    + [
        ["objective.times={kind: importance, bins: 4, history: 2}"],
        ["objective.times={kind: fitted, bins: 4}"],
        [*CHAIN, "objective.loss=hybrid", "objective.variance=learned", "objective.times={kind: importance, history: 1}"],
        [*CHAIN, "objective.loss=vlb", "objective.times={kind: uniform}"],
    ],
    ids="; ".join,
)
def test_a_resumed_run_ends_in_the_same_bits(recipe_file, tmp_path, changes):
    recipe = load_recipe(recipe_file, ["training.ema=[0.1,0.05]", *changes])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(recipe, whole)

    class Cut(Exception):
        pass

    def stop(record):
        if record["step"] == 6:
            raise Cut

    with pytest.raises(Cut):
        train(recipe, cut, on_log=stop)
    assert checkpoint.steps_in(cut / "checkpoints") == [4]
    train(recipe, cut, resume=True)
    for stem in ("model", "ema-0.100", "ema-0.050", "optimizer"):
        ours, theirs = weights(cut, stem=stem), weights(whole, stem=stem)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    varying = ("seconds", "images_per_second", "peak_memory_bytes")
    strip = lambda run: [{k: v for k, v in line.items() if k not in varying} for line in lines(run)]  # noqa: E731
    assert strip(cut) == strip(whole)
    assert [line["step"] for line in lines(cut)] == [3, 6, 9, 12]


@pytest.mark.slow
def test_training_learns_what_can_be_known(tmp_path):
    """On Gaussian points the best loss is known: E (v_hat - v)² at the exact predictor, averaged over the same times."""
    rng = np.random.default_rng(0)
    points = (rng.standard_normal((50_000, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]]) + 3).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    tree = {
        "data": {"kind": "array", "path": str(tmp_path / "points.npy")},
        "net": {"kind": "mlp", "width": 64, "depth": 2, "waves": 0},
        "training": {
            "steps": 600,
            "batch": 512,
            "rate": 3e-3,
            "warmup": 20,
            "log_every": 100,
            "checkpoint_every": 600,
        },
        "runtime": {"precision": "float32"},
    }
    path = tmp_path / "gaussian.yaml"
    path.write_text(yaml.safe_dump(tree))
    run = sf.load(train(load_recipe(path), tmp_path / "run"))
    x0 = run.spec.codec.encode(points).double()
    exact = sf.GaussianMixture(torch.ones(1), x0.mean(0, keepdim=True), x0.T.cov()[None])
    level = run.schedule.level(torch.linspace(0.02, 0.98, len(x0)), like=x0)
    eps = torch.randn(x0.shape, dtype=torch.float64)
    learnt = sf.loss.simple(run.network.double(), x0, eps, level, weight=sf.loss.v_weight).mean()
    best = sf.loss.simple(exact, x0, eps, level, weight=sf.loss.v_weight).mean()
    assert best < learnt < 1.02 * best


def test_each_epoch_sees_every_row_once():
    seen = orders(10, Training(batch=4, steps=1), 0)
    rows = np.concatenate([next(seen) for _ in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])


def test_a_batch_may_be_larger_than_the_data():
    rows = next(orders(3, Training(batch=8, steps=1), 0))
    assert sorted(np.bincount(rows)) == [2, 3, 3]


def test_dropped_labels_and_noise_depend_on_the_step_alone(recipe_file, tmp_path):
    """Two runs of other lengths agree for as long as their rates do."""
    short = load_recipe(recipe_file, ["training.decay=constant", "training.steps=4"])
    long = load_recipe(recipe_file, ["training.decay=constant"])
    a, b = train(short, tmp_path / "a"), train(long, tmp_path / "b")
    ours, theirs = weights(a, 4), weights(b, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_run_folder_holds_what_it_should(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    held = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    last = "checkpoints/00000012/"
    assert {
        "recipe.yaml", "manifest.json", "metrics.jsonl", "report.json", "samples/00000012.png",
        f"{last}model.safetensors", f"{last}ema-0.100.safetensors", f"{last}optimizer.safetensors", f"{last}state.json",
    } <= held  # fmt: skip
    assert not any(name.startswith("tensorboard/") for name in held)  # unless training.trackers asks for it
    assert load_recipe(run / "recipe.yaml") == load_recipe(recipe_file)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["fingerprint"] == sf.data.digits().fingerprint()


def test_old_checkpoints_are_removed(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file, ["training.keep=1"]), tmp_path / "run")
    assert checkpoint.steps_in(run / "checkpoints") == [12]


def test_half_written_checkpoints_are_not_seen(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    (run / "checkpoints" / ".00000099.partial").mkdir()
    assert checkpoint.latest(run).name == "00000012"


def test_resume_with_another_recipe_says_what_differs(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    with pytest.raises(ValueError, match=r"training\.rate: 0\.001 → 0\.5"):
        train(load_recipe(recipe_file, ["training.rate=0.5"]), run, resume=True)


def test_a_folder_in_use_is_left_alone(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train(load_recipe(recipe_file), run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not a run folder"):
        train(load_recipe(recipe_file), tmp_path / "other")


def test_a_non_finite_loss_stops_the_run(recipe_file, tmp_path):
    with pytest.raises(FloatingPointError, match="could not be applied, at 0.25 of the recipe's learning rate, too; the batches are in"):
        train(load_recipe(recipe_file, ["training.rate=1e30", "training.clip=1e30", "training.steps=60"]), tmp_path / "run")


def test_a_non_finite_step_leaves_only_good_checkpoints(recipe_file, tmp_path):
    changes = ["training.rate=1e30", "training.clip=1e30", "training.checkpoint_every=1", "training.steps=60", "training.log_every=50"]
    with pytest.raises(FloatingPointError):
        train(load_recipe(recipe_file, changes), tmp_path / "run")
    for step in checkpoint.steps_in(tmp_path / "run" / "checkpoints"):
        assert all(value.isfinite().all() for value in weights(tmp_path / "run", step).values())


def test_two_writers_are_refused(recipe_file, tmp_path):
    seen = []

    def second(step, loss):
        if step == 2:
            with pytest.raises(ValueError, match="another process is training"):
                train(load_recipe(recipe_file), tmp_path / "run", resume=True)
            seen.append(step)

    train(load_recipe(recipe_file), tmp_path / "run", on_step=second)
    assert seen == [2]


def test_stopping_writes_a_checkpoint_and_resuming_ends_in_the_same_bits(recipe_file, tmp_path):
    whole, cut = train(load_recipe(recipe_file), tmp_path / "whole"), tmp_path / "cut"
    asked = iter([False] * 6 + [True])
    with pytest.raises(Stopped, match="stopped after step 7 of 12"):
        train(load_recipe(recipe_file), cut, should_stop=lambda: next(asked))
    assert checkpoint.steps_in(cut / "checkpoints")[-1] == 7
    train(load_recipe(recipe_file), cut, resume=True)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(cut).items())
    assert [line["loss"] for line in lines(cut)] == [line["loss"] for line in lines(whole)]


def test_other_data_are_refused_on_resume(tmp_path):
    path = tmp_path / "images.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": {"kind": "array", "path": str(tmp_path / "images.npy")}}))
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    run = train(load_recipe(path, steps=4), tmp_path / "run")
    np.save(tmp_path / "images.npy", images[::-1])
    with pytest.raises(ValueError, match="started with another data"):
        train(load_recipe(path, steps=4), run, resume=True)


def test_resuming_what_is_done_changes_nothing(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "tensorboard" not in str(path)}
    train(load_recipe(recipe_file), run, resume=True)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "tensorboard" not in str(path)}


def test_an_average_that_is_not_there_is_named(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    with pytest.raises(ValueError, match=r"no average of width 0\.05; it has 0\.1"):
        sf.load(run, ema=0.05)


def test_constant_data_are_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.full((10, 4, 4), 7, dtype=np.uint8))
    path = tmp_path / "flat.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": {"kind": "array", "path": str(tmp_path / "flat.npy")}}))
    with pytest.raises(ValueError, match="the same constant value"):
        train(load_recipe(path), tmp_path / "run")


def test_precision_by_name():
    cpu = torch.device("cpu")
    assert precision("float32", cpu) == torch.float32
    assert precision("bfloat16", cpu) == torch.bfloat16
    assert precision("auto", cpu) in (torch.float32, torch.bfloat16)


def test_a_sheet_that_cannot_be_drawn_is_a_warning_and_the_checkpoint_is_there(recipe_file, tmp_path, caplog):
    """At such a rate one step throws the weights so far that no sample is finite; the steps after it are not applied."""
    changes = ["training.rate=1e25", "training.clip=1e30", "training.warmup=0", "training.patience=100", "training.checkpoint_every=5"]
    run = train(load_recipe(recipe_file, changes), tmp_path / "run")
    assert checkpoint.steps_in(run / "checkpoints") == [5, 10, 12]
    said = [record.getMessage() for record in caplog.records if "could not be drawn" in record.getMessage()]
    assert [int(re.findall(r"samples/(\d+)\.png", sentence)[0]) for sentence in said] == [5, 10, 12]
    assert all("the checkpoint is saved" in sentence and "finite" in sentence for sentence in said)
    assert (run / "report.json").is_file()
    assert not list((run / "samples").glob("*")) if (run / "samples").exists() else True


def test_a_checkpoint_is_there_before_its_sheet_and_a_missing_sheet_is_drawn(recipe_file, tmp_path):
    """As after a kill between the two."""
    whole, cut = train(load_recipe(recipe_file), tmp_path / "whole"), tmp_path / "cut"
    asked = iter([False] * 7 + [True])
    with pytest.raises(Stopped):
        train(load_recipe(recipe_file), cut, should_stop=lambda: next(asked))
    sheets = {number: cut / "samples" / f"{number:08d}.png" for number in (4, 8)}
    made = {number: (cut / "checkpoints" / f"{number:08d}").stat().st_mtime_ns for number in sheets}
    assert all(made[number] <= sheet.stat().st_mtime_ns for number, sheet in sheets.items())
    sheets[8].unlink()
    train(load_recipe(recipe_file), cut, resume=True)
    for sheet in (whole / "samples").glob("*.png"):
        assert sheet.read_bytes() == (cut / "samples" / sheet.name).read_bytes()


def test_a_run_of_constant_rate_made_longer_is_the_longer_run(recipe_file, tmp_path):
    """To the bit, where the rate is that of the longer run all along; and it may be cut and gone on with."""
    constant = ["training.decay=constant", "training.log_every=4"]
    long, short = load_recipe(recipe_file, constant), load_recipe(recipe_file, [*constant, "training.steps=8"])
    whole, grown = train(long, tmp_path / "whole"), train(short, tmp_path / "grown")
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="stopped after step 11 of 12"):
        train(long, grown, resume=True, should_stop=lambda: next(asked))
    train(long, grown, resume=True)
    for stem in ("model", "ema-0.100", "optimizer"):
        ours, theirs = weights(grown, stem=stem), weights(whole, stem=stem)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [(line["step"], line["loss"]) for line in lines(grown)] == [(line["step"], line["loss"]) for line in lines(whole)]


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_finished_run_is_made_longer_at_the_rate_of_the_longer_run(recipe_file, tmp_path, decay):
    said: list[str] = []
    changes = [f"training.decay={decay}", "training.log_every=1"]
    long, short = load_recipe(recipe_file, changes), load_recipe(recipe_file, [*changes, "training.steps=8"])
    run = train(short, tmp_path / "run")
    assert json.loads((run / "report.json").read_text())["steps"] == 8
    train(long, run, resume=True, on_message=said.append)
    whole = {line["step"]: line["learning_rate"] for line in lines(train(long, tmp_path / "whole"))}
    rates = {line["step"]: line["learning_rate"] for line in lines(run)}
    assert rates[8] == 0
    assert rates[12] == 0
    assert {step: rates[step] for step in range(9, 13)} == {step: whole[step] for step in range(9, 13)}
    told = next(sentence for sentence in said if "continues from step 8 to 12 instead of 8" in sentence)
    assert f"it changes from 0 to {rates[9]:.2g}, and decays to zero at step 12" in told
    assert load_recipe(run / "recipe.yaml") == long  # the next --resume needs no --steps
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["extended"] == [{"after_step": 8, "from_steps": 8, "to_steps": 12}]
    assert manifest["data"] == json.loads((tmp_path / "whole" / "manifest.json").read_text())["data"]
    assert json.loads((run / "report.json").read_text())["steps"] == 12
    assert (run / "samples" / "00000012.png").is_file()
    said.clear()
    train(long, run, resume=True, on_message=said.append)
    assert said == [f"Resuming {run} after step 12 of 12."]


def test_a_run_is_not_made_shorter_nor_another_while_it_is_made_longer(recipe_file, tmp_path):
    run = train(load_recipe(recipe_file), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"started with training\.steps=12; a run can be made longer, not shorter\. Got 8"):
        train(load_recipe(recipe_file, steps=8), run, resume=True)
    with pytest.raises(ValueError, match=r"another recipe \(training\.batch: 16 → 8\)"):
        train(load_recipe(recipe_file, ["training.batch=8"], steps=20), run, resume=True)
    assert before == {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}


def test_captions_that_are_not_used_are_said_to_be(recipe_file, tmp_path):
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(photos / f"{i}.png")
    (photos / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,number {i}\n" for i in range(20)))
    for captions in (True, False):
        said: list[str] = []
        changes = [f"data={{kind: folder, path: {photos}, size: 8, captions: {captions}}}"]
        train(load_recipe(recipe_file, changes, steps=1), tmp_path / f"{captions}", on_message=said.append)
        assert len([sentence for sentence in said if "have captions" in sentence and "ignored" in sentence]) == captions
