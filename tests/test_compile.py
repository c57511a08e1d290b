"""torch.compile: what it takes in one graph, and trainings and samples by it."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.cli import main
from sfumato.runtime import compile_networks

GRAPHS = """
import sys
import torch
import sfumato as sf
from sfumato.condition import Classes
from sfumato.nets.unet import UNetLayout

conditions = {"labels": Classes(("a", "b", "c"))}
net = {
    "patch-unet": lambda: sf.nets.PatchUNet((1, 8, 8), widths=(8, 16), depth=1, heads=2, conditions=conditions),
    "unet": lambda: sf.nets.UNet(
        (1, 8, 8), UNetLayout(channels=(8, 16), blocks=1, attention=(False, True), heads=2, groups=4), conditions=conditions
    ),
    "dit": lambda: sf.nets.DiT((1, 8, 8), patch=2, width=16, depth=1, heads=2, conditions=conditions),
}[sys.argv[1]]()
x, eps, t, cond = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.rand(3), {"labels": torch.tensor([0, 2, -1])}
predict, schedule = sf.Denoiser(net, sf.v_target), sf.Cosine()
given = lambda x_t, level, _=None: predict(x_t, level, cond)
levels = sf.grid(schedule, 4)
graphs = {
    "forward": lambda x: predict(x, levels[1], cond).x0,
    "loss": lambda x: sf.loss.simple(predict, x, eps, schedule.level(t, like=x), cond),
    "ddim": lambda x: sf.steps.DDIM()(given, x, levels[1], levels[2], None, None)[0],
    "ancestral": lambda x: sf.steps.Ancestral()(given, x, levels[1], levels[2], None, None)[0],
}
for name, f in graphs.items():
    torch._dynamo.reset()
    found = torch._dynamo.explain(f)(x)
    assert (found.graph_count, found.graph_break_count) == (1, 0), (name, found.break_reasons)
"""


def alone(*arguments: str) -> None:
    """In a process of its own, where shapes are not checked: the compiler does not know beartype."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("net", ["patch-unet", "unet", "dit"])
def test_forward_loss_and_a_step_of_sampling_are_one_graph_each(net):
    alone("-c", GRAPHS, net)


@pytest.mark.slow
def test_a_compiled_training_and_its_samples_are_the_same_but_for_rounding(tmp_path):
    changes = ["net.width=8", "net.depth=1", "training.steps=4", "training.batch=8", "training.log_every=1", "training.trackers=[]"]
    sets = [part for change in changes for part in ("--set", change)]
    for name in ("false", "true"):
        alone("-m", "sfumato", "train", "moons", *sets, "--set", f"runtime.compile={name}", "--out", str(tmp_path / name))
        how = ["--compile"] if name == "true" else []
        alone("-m", "sfumato", "sample", str(tmp_path / "false"), "--count", "8", *how, "--out", str(tmp_path / f"{name}.npz"))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("false", "true")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    plain, compiled = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("false", "true"))
    np.testing.assert_allclose(plain, compiled, rtol=1e-3, atol=1e-3)


def test_what_is_compiled_are_the_networks_and_not_what_holds_them():
    """Weights keep their names, and a copy, as the averaged model is one, is not compiled."""
    holder = torch.nn.ModuleDict(
        {"encoders": torch.nn.ModuleList([torch.nn.Linear(2, 2)]), "decoder": torch.nn.Sequential(torch.nn.Linear(2, 2))}
    )
    names = list(holder.state_dict())
    compile_networks(holder, torch.device("cpu"))
    is_compiled = {name for name, part in holder.named_modules() if part._compiled_call_impl is not None}
    assert is_compiled == {"encoders.0", "decoder"}
    assert list(holder.state_dict()) == names
    assert all(part._compiled_call_impl is None for part in copy.deepcopy(holder).modules())


def test_what_cannot_be_compiled_is_refused(monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"runtime\.compile uses torch's kernels"):
        sf.Runtime(compile=True, kernels="compiled")
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "zoo:digits", "--out", "s.png", "--compile", "--kernels", "compiled"])
    assert "--compile uses torch's kernels" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler for the CPU"):
        compile_networks(torch.nn.Linear(2, 2), torch.device("cpu"))
