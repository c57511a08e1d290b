"""`training.evaluate_every`: the figure in metrics.jsonl, the best checkpoint kept apart, and no bit of the training moved."""

import json
import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import storage
from sfumato.evaluation.evaluate import evaluate

POINTS = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32) * [3.0, 1.0] + [5.0, 0.0]
TASK = sf.Diffusion(net=sf.nets.options.MLPNet(width=16, depth=1), sampling={"steps": 3})
PLAIN = {"steps": 30, "batch": 32, "warmup": 2, "log_every": 10, "checkpoint_every": 15, "trackers": (), "held_out": 0.3, "rate": 1e-2}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    out = tmp_path_factory.mktemp("watched") / "run"
    told = []
    options = sf.Training(**PLAIN, evaluate_every=6, evaluate_count=60)
    sf.train(TASK, POINTS.astype(np.float32), out, training=options, callbacks=sf.Callbacks(on_message=told.append))
    return out, told


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_figure_stands_in_the_lines_of_its_steps(run):
    out, _ = run
    found = {record["step"]: record["sliced_wasserstein@pixels"] for record in records(out) if "sliced_wasserstein@pixels" in record}
    assert list(found) == [6, 12, 18, 24, 30]
    assert all(math.isfinite(value) for value in found.values())
    assert {record["step"] for record in records(out)} == {6, 10, 12, 18, 20, 24, 30}


def test_the_best_checkpoint_is_a_run_of_its_own_and_says_what_chose_it(run):
    out, told = run
    found = {record["step"]: record["sliced_wasserstein@pixels"] for record in records(out) if "sliced_wasserstein@pixels" in record}
    step = min(found, key=found.get)
    assert storage.steps_in(out / "best" / "checkpoints") == [step]
    best = json.loads((out / "best" / "manifest.json").read_text())["best"]
    assert (best["step"], best["value"], best["chosen_on"]) == (step, found[step], "held-out data")
    assert any(f"Step {step}: sliced_wasserstein@pixels" in line and "on held-out data, the best so far" in line for line in told)
    assert sf.load(out / "best").sample(3).values.shape == (3, 2)


def test_the_value_is_that_of_the_samples_of_this_checkpoint(run):
    """Measured again from the files, by the package's own evaluation of the same samples."""
    out, _ = run
    best = json.loads((out / "best" / "manifest.json").read_text())["best"]
    model = sf.load(out / "best")
    held_out = sf.data.from_arrays(POINTS.astype(np.float32)).split(0.3, 0)[1].scaled_like(model.spec)
    x = model.spec.codec.encode(model.sample(60).values).numpy()
    again = evaluate(x, held_out.batch(np.arange(len(held_out))).x.numpy(), metrics=["sw"])
    assert again.metrics["sliced_wasserstein@pixels"].value == pytest.approx(
        best["value"], rel=0.02
    )  # of 60 of the held-out rows, or other ones


def test_a_report_of_the_best_checkpoint_says_so(run):
    out, _ = run
    model = sf.load(out / "best")
    report = evaluate(model, sf.data.from_arrays(POINTS.astype(np.float32)), metrics=["sw"], count=60)
    assert "the checkpoint is the best by sliced_wasserstein@pixels on held-out data" in report.manifest["chosen"]


def test_the_training_is_the_same_to_the_bit(run, tmp_path):
    out, _ = run
    sf.train(TASK, POINTS.astype(np.float32), tmp_path / "run", training=sf.Training(**PLAIN))
    for name in ("model", "ema-0.100"):
        mine, other = ((folder / "checkpoints" / "00000030" / f"{name}.safetensors").read_bytes() for folder in (out, tmp_path / "run"))
        assert mine == other
    assert not (tmp_path / "run" / "best").exists()


def test_a_resumed_run_keeps_the_same_best(run, tmp_path):
    out, _ = run

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 17:
            raise Stop

    options = sf.Training(**PLAIN, evaluate_every=6, evaluate_count=60)
    with pytest.raises(Stop):
        sf.train(TASK, POINTS.astype(np.float32), tmp_path / "run", training=options, callbacks=sf.Callbacks(on_step=stop))
    sf.train(TASK, POINTS.astype(np.float32), tmp_path / "run", training=options, resume=True)
    for path in ("best/manifest.json",):
        mine, other = (json.loads((folder / path).read_text())["best"] for folder in (out, tmp_path / "run"))
        assert mine == other


class Batches:
    """An iterable of batches, without random access."""

    def __iter__(self):
        yield POINTS[:32].astype(np.float32)


def test_a_stream_is_refused_before_anything_is_written(tmp_path):
    options = sf.Training(steps=2, batch=32, warmup=1, trackers=(), evaluate_every=1)
    with pytest.raises(ValueError, match="which a stream cannot be asked for"):
        sf.train(TASK, Batches(), tmp_path / "run", training=options)
    assert not (tmp_path / "run").exists()
