"""Smaller parts where memory does not suffice."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import train
from safetensors.torch import load_file

import sfumato as sf
from sfumato import load_recipe
from sfumato.memory import available_memory, by_parts, halving, kept_for_gradient
from sfumato.training import optim, step

CPU = torch.device("cpu")


def lacking(most):
    """A computation that has memory for so many."""

    def compute(size):
        if size > most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return size

    return compute


def test_halves_until_it_fits(caplog):
    with caplog.at_level(logging.WARNING):
        assert halving(lacking(3), 12, "sample") == (3, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "There is not enough memory for 12 samples at once; continuing with 6.",
        "There is not enough memory for 6 samples at once; continuing with 3.",
    ]
    with pytest.raises(MemoryError, match="not enough memory for a single sample"):
        halving(lacking(0), 4, "sample")


def test_other_errors_are_not_taken_for_it():
    def compute(size):
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({size}x3 and 4x5)")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        halving(compute, 4, "sample")


def test_parts_are_all_and_in_order():
    """With a size that does not divide them, and one that turns out too large on the way."""
    asked = []

    def draw(part):
        asked.append(part.stop - part.start)
        return torch.arange(part.start, part.stop) + 0 * lacking(3 if part.start >= 5 else 5)(part.stop - part.start)

    told = []
    assert torch.cat(by_parts(draw, 13, 5, told.append)).tolist() == list(range(13))
    assert (asked, told) == ([5, 5, 3, 3, 2], [5, 8, 11, 13])


def test_what_autograd_keeps():
    """A product keeps both factors; weights are there anyway."""
    x, y = torch.randn(1000, requires_grad=True), torch.randn(1000, requires_grad=True)
    value, kept = kept_for_gradient(lambda: (x * y).sum(), [y])
    assert kept == x.nbytes
    assert torch.equal(value, (x * y).sum())


def test_a_limit_on_addresses_counts():
    """As `ulimit -v` and schedulers set it."""
    code = (
        "import resource, torch; from sfumato.memory import available_memory;"
        "held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 2**29, held + 2**29)); print(available_memory(torch.device('cpu')))"
    )
    told = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 0 < told <= 2**29
    assert told < available_memory(CPU)


def recipe(tmp_path, *changes):
    options = [
        "training.steps=3",
        "training.batch=32",
        "training.warmup=1",
        "training.trackers=[]",
        "runtime.precision=float32",
        "sampling.steps=1",
    ]
    return load_recipe("digits", [*options, *changes])


@pytest.fixture
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float32")
def test_a_batch_that_would_not_fit_is_parted(tmp_path, monkeypatch, caplog):
    """Foreseen from a few examples, and the steps are the same up to the order of summation."""
    monkeypatch.setattr(optim, "multiplies_bfloat16", lambda: False)  # else the rounding of Muon's products shows
    whole = train(recipe(tmp_path), tmp_path / "whole")
    monkeypatch.setattr(step, "available_memory", lambda device: 1_000_000)
    with caplog.at_level(logging.WARNING):
        parted = train(recipe(tmp_path), tmp_path / "parted")
    assert any("going in parts of" in record.getMessage() for record in caplog.records)
    ours, theirs = (load_file(run / "checkpoints/00000003/model.safetensors") for run in (parted, whole))
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5) for name in ours)


@pytest.mark.usefixtures("_float32")
def test_a_step_that_did_not_fit_is_made_in_halves(tmp_path, monkeypatch, caplog):
    """What its first part had added to the gradient is gone."""
    whole = train(recipe(tmp_path, "runtime.micro_batch=8"), tmp_path / "whole")
    loss, calls = sf.loss.simple, []

    def poor(predict, x0, *others, **options):
        calls.append(len(x0))
        if len(x0) > 8 or len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(predict, x0, *others, **options)

    monkeypatch.setattr(sf.loss, "simple", poor)
    with caplog.at_level(logging.WARNING):
        parted = train(recipe(tmp_path, "runtime.micro_batch=16"), tmp_path / "parted")
    assert calls[:4] == [4, 16, 8, 8]
    assert calls[4:8] == [4, 4, 4, 4]
    lines = [json.loads(line) for run in (whole, parted) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) % 2 == 0
    np.testing.assert_allclose(losses[: len(losses) // 2], losses[len(losses) // 2 :], rtol=1e-4)
