"""The guard of a training: what cannot be applied is not, and a run goes back rather than on in ruins."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import torch
from runs import train

import sfumato as sf
from sfumato import Stopped, Training, load_recipe
from sfumato import storage as checkpoint
from sfumato.data import digits
from sfumato.training.accumulator import Accumulator
from sfumato.training.guard import Diverged, Guard
from sfumato.training.optim import rate_at

SCHEDULE = sf.Cosine(log_snr_max=8.0, log_snr_min=-8.0)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def course(out, faults, *, should_stop=None, resume=False, **changes):
    """A short training of digits, whose losses break on chosen calls (times a number, so that gradients break too); what was said."""
    calls = 0

    class Faulty(sf.Diffusion):
        def loss(self, model, batch, draw, state):
            nonlocal calls
            calls += len(batch) == 16  # not the few by which memory is foreseen
            terms = super().loss(model, batch, draw, state)
            return dataclasses.replace(terms, per_example=terms.per_example * faults.get(calls, 1.0))

    task = Faulty.model_validate(
        {
            "net": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
            "schedule": {"kind": "cosine", "log_snr_max": 8.0, "log_snr_min": -8.0},
            "objective": {"times": {"kind": "uniform"}},
            "sampling": {"steps": 1},
        }
    )
    said = []
    callbacks = sf.Callbacks(on_message=said.append, should_stop=should_stop)
    sf.train(task, digits(), out, training=options(**changes), runtime=FLOAT32, callbacks=callbacks, resume=resume)
    return said


FLOAT32 = sf.Runtime(precision="float32", kernels="torch")


def options(**changes):
    return Training(**{"steps": 10, "batch": 16, "checkpoint_every": 4, "log_every": 1, "warmup": 2, **changes})


def returns(out, step=10):
    """How often a run had gone back, as its checkpoint has it."""
    return checkpoint.read_state(out / "checkpoints" / f"{step:08d}")["guard"]["returns"]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def weights(out, step, stem="model"):
    return checkpoint.read_tensors(out / "checkpoints" / f"{step:08d}" / f"{stem}.safetensors")


@pytest.mark.parametrize("fault", [math.nan, math.inf, 1e30], ids=["nan", "infinite", "gradient"])
def test_a_step_that_is_not_finite_moves_nothing(tmp_path, fault):
    """Weights, averages and the optimiser after it are those of before; the batch is kept, the run goes on."""
    said = course(tmp_path, {5: fault}, checkpoint_every=1, keep=20)
    for stem in ("model", "ema-0.100", "optimizer"):
        assert same(weights(tmp_path, 4, stem), weights(tmp_path, 5, stem))
        assert not same(weights(tmp_path, 5, stem), weights(tmp_path, 6, stem))
    assert [line["rejected"] for line in lines(tmp_path)] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    kept = np.load(tmp_path / "rejected" / "00000005.npz")
    batch = digits().batch(kept["rows"])
    assert np.array_equal(kept["x0"], batch.x.numpy())
    assert np.array_equal(kept["labels"], batch.cond["labels"].value.numpy())
    assert len(kept["log_snr"]) == len(kept["losses"]) == 16
    assert not np.isfinite(kept["losses"]).all() or fault == 1e30
    assert len(said) == 1
    assert "Step 5 of 10" in said[0]


def test_a_run_goes_back_to_its_last_good_state_at_half_the_rate(tmp_path):
    said = course(tmp_path, {6: math.nan, 7: math.nan, 8: math.nan})
    assert checkpoint.latest(tmp_path).name == "00000010"
    assert returns(tmp_path) == 1
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates[4] == pytest.approx(0.5 * 1e-3 * rate_at(options(), 5))
    assert rates[3] == pytest.approx(1e-3 * rate_at(options(), 4))
    assert "going back to step 4, at 0.5 of the recipe's learning rate" in said[-1]
    assert [line["rejected"] for line in lines(tmp_path)] == [0] * 10


def test_going_back_goes_on_as_a_run_of_half_the_rate_would(tmp_path):
    """From the first checkpoint on, the weights are those of a run whose guard had halved the rate there."""
    course(tmp_path / "back", {6: math.nan, 7: math.nan, 8: math.nan}, keep=20)
    course(tmp_path / "straight", {}, steps=10, keep=20)
    state_file = tmp_path / "straight" / "checkpoints" / "00000004" / "state.json"
    state = json.loads(state_file.read_text())
    state["guard"]["returns"] = 1
    state_file.write_text(json.dumps(state))
    (state_file.parent / checkpoint.CHECKSUMS).unlink(missing_ok=True)
    for step in (8, 10):
        checkpoint._remove(tmp_path / "straight" / "checkpoints" / f"{step:08d}")
    course(tmp_path / "straight", {}, resume=True, keep=20)
    assert same(weights(tmp_path / "back", 10), weights(tmp_path / "straight", 10))


def test_before_the_first_checkpoint_a_run_begins_anew(tmp_path):
    said = course(tmp_path / "back", {1: math.nan, 2: math.nan, 3: math.nan})
    assert "going back to step 0" in said[-1]
    course(tmp_path / "straight", {}, rate=5e-4)
    assert same(weights(tmp_path / "back", 10), weights(tmp_path / "straight", 10))


def test_a_run_that_never_recovers_stops_and_says_so(tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"up to step 7 could not be applied, at 0\.25 of the recipe's learning rate, too; the batches are in",
    ):
        course(tmp_path, dict.fromkeys(range(6, 100), math.nan))
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [4]
    assert all(value.isfinite().all() for value in weights(tmp_path, 4).values())


def test_a_resumed_run_is_judged_as_an_uninterrupted_one(tmp_path):
    """Two faults before the cut and one after it are three in a row."""
    asked = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        course(tmp_path, {4: math.nan, 5: math.nan}, should_stop=lambda: next(asked), checkpoint_every=100)
    said = course(tmp_path, {1: math.nan}, resume=True, checkpoint_every=100)
    assert returns(tmp_path) == 1
    assert "going back to step 5" in said[-1]


@pytest.mark.parametrize(
    ("loss", "norm", "objection"),
    [
        (1.2, 1.0, None),
        (50.0, 1.0, None),  # a tiny batch strays
        (99.0, 1.0, None),
        (150.0, 1.0, "the loss is 150, but the recent median is 1"),
        (math.nan, 1.0, "the loss is nan"),
        (1.0, math.inf, "the gradient's norm is inf"),
    ],
)
def test_what_the_guard_objects_to(loss, norm, objection):
    guard = Guard(patience=3)
    for value in [1.0, 0.8, 1.2] * 17:
        guard.accept(value)
    assert guard.objection(loss, norm) == objection


def test_a_tracker_that_is_not_there_is_named_before_anything_is_written(tmp_path):
    recipe = load_recipe("digits", ["training.trackers=[tensorboard,clearml]"], steps=1)
    with pytest.raises(ValueError, match="clearml is not installed; run pip install clearml, or train without it"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_every_number_and_the_sheets(tmp_path):
    """Those of metrics.jsonl at their steps; a sheet of samples at each checkpoint; nothing twice after a resumption."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = ["net={kind: dit, patch: 4, width: 16, depth: 1, heads: 2}", "training.optimizer=adamw", "training.log_every=2"]
    recipe = load_recipe(
        "digits", [*changes, "training.checkpoint_every=4", "sampling.steps=2", "training.trackers=[tensorboard]"], steps=8
    )
    asked = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "run", should_stop=lambda: next(asked))
    time.sleep(1.1)  # TensorBoard names and orders its files by the second
    train(recipe, tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "gradient_norm", "rejected", "peak_memory_bytes"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines(tmp_path / "run")]
        assert told == wanted
    assert [image.step for image in events.Images("samples")] == [4, 8]


def test_losses_that_always_stray_are_usual():
    guard = Guard(patience=3)
    for i in range(60):
        guard.accept(1000.0 if i % 20 == 0 else 1.0)
    assert guard.objection(2000.0, 1.0) is None
    assert guard.objection(20_000.0, 1.0) is not None


def test_patience_counts_steps_in_a_row():
    guard = Guard(patience=2)
    guard.reject()
    guard.accept(1.0)
    guard.reject()
    with pytest.raises(Diverged):
        guard.reject()


def test_an_example_counts_for_the_nearest_level():
    accumulator = Accumulator()
    accumulator.add_examples(torch.tensor([-math.inf, -9.0, -5.9, 1.9, 2.1, math.inf]), {"loss": torch.arange(6.0)})
    assert accumulator.means() == {"loss@-8": 0.5, "loss@-4": 2.0, "loss@+0": 3.0, "loss@+4": 4.0, "loss@+8": 5.0}


def test_bits_by_level_integrate_to_the_bound():
    """Mean over uniform log-SNR of the bits a nat costs, times the nats, is VDM's continuous bound: for a Gaussian, in closed form.

    For x0 ~ N(0, v) the best eps has mean square error alpha² v/(alpha² v + sigma²), whose integral over log-SNR is log(1 + v e^λ)."""
    torch.set_default_dtype(torch.float64)
    v, low, high, count = 0.25, -8.0, 8.0, 20_000
    data = sf.Gaussian(torch.zeros(3), torch.full((3,), v))

    class Best(sf.Denoiser):
        def forward(self, x_t, level, cond=None):
            return data(x_t, level)

    class Uniform(sf.Diffusion):
        @property
        def times(self):
            return lambda n, generator: SCHEDULE.time(low + (high - low) * torch.rand(n, generator=generator))

    task = Uniform.model_validate(
        {
            "net": {"kind": "mlp"},
            "schedule": {"kind": "cosine", "log_snr_max": high, "log_snr_min": low},
            "objective": {"weight": "min-snr"},
        }
    )
    batch = sf.Batch(data.sample(count, torch.Generator().manual_seed(0))[0])
    bits = task.loss(Best(torch.nn.Identity()), batch, sf.Draw(0, 1, count, slice(0, count)), None).parts["bits"]
    wanted = (math.log1p(v * math.exp(high)) - math.log1p(v * math.exp(low))) / (2 * math.log(2))
    error = (high - low) * bits.std() / math.sqrt(len(bits))
    assert abs((high - low) * bits.mean() - wanted) < 3 * error
