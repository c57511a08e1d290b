"""When networks compute by our kernels, and that they then compute the same."""

import json

import numpy as np
import pytest
import torch
import yaml
from runs import train
from safetensors.torch import load_file
from torch import nn

from sfumato import Stopped, load_recipe
from sfumato.cli import main
from sfumato.kernels import build, choice
from sfumato.kernels.build import HasKernel, compiled, kernel_folder
from sfumato.nets import PatchUNet, UNet, UNetLayout


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    if not compiled():
        pytest.skip("the kernels cannot be compiled here; the log says why")


def error(value, truth):
    return float(((value.double() - truth.double()).norm() / truth.norm()).detach())


@pytest.mark.parametrize(
    "net",
    [
        lambda: PatchUNet((3, 24, 20), widths=(32, 48), heads=4),
        lambda: UNet((3, 24, 20), UNetLayout(channels=(32, 48), attention=(False, True), groups=16)),
        lambda: UNet((3, 24, 20), UNetLayout(channels=(32, 48), attention=(False, True), groups=16, scales=False, resample="block")),
        lambda: UNet((3, 24), UNetLayout(channels=(32, 48), attention=(False, True), groups=16)),
    ],
)
def test_a_network_computes_the_same_by_them(net):
    """Its output, and the gradient of every weight."""
    torch.manual_seed(0)
    net = net().float()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    size = (3, 24, 20) if any(p.ndim == 4 for p in net.parameters()) else (3, 24)
    x, log_snr = torch.randn(6, *size).float(), torch.linspace(-5, 5, 6).float()
    found = {}
    for is_on in (False, True):
        choice.use(net, is_on)
        net.zero_grad()
        with torch.no_grad():
            free = net(x, log_snr)
        y = net(x, log_snr)
        assert error(y, free) < 1e-5
        y.square().sum().backward()
        found[is_on] = [y.detach(), *(p.grad.clone() for p in net.parameters())]
    assert all(error(ours, theirs) < 2e-5 for ours, theirs in zip(found[True], found[False], strict=True) if theirs.norm() > 1e-3)
    if len(size) == 3:
        assert not torch.equal(found[True][0], found[False][0])
        assert sum(isinstance(part, HasKernel) for part in net.modules()) > 8


def test_which_way_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "kernel_folder", lambda: tmp_path)
    assert choice.is_faster() in (True, False)
    (path,) = tmp_path.glob(f"seconds-{torch.get_num_threads()}-threads.json")
    seconds = json.loads(path.read_text())
    path.write_text(json.dumps(seconds | {"compiled": 0.0}))
    assert choice.is_faster()
    path.write_text(json.dumps(seconds | {"compiled": 1e9}))
    assert not choice.is_faster()


def test_what_was_compiled_needs_no_compiler_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.were_compiled()
    assert build._loaded(kernel_folder()) is None
    assert "no C++ compiler (no-such-compiler" in build._loaded(tmp_path)
    assert not (tmp_path / build.LIBRARY).exists()


def test_a_library_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / build.LIBRARY).write_bytes(b"half a library")
    assert f"{tmp_path / build.LIBRARY} cannot be loaded; delete it (" in build._loaded(tmp_path)


def test_what_a_run_asks_for():
    cpu, single = torch.device("cpu"), torch.float32
    assert choice.is_wanted("compiled", single, cpu, images=1)
    assert not choice.is_wanted("torch", single, cpu, images=10**9)
    assert not choice.is_wanted("auto", single, cpu, images=choice.ENOUGH_IMAGES - 1)
    assert choice.is_wanted("auto", single, cpu, images=1, waits=False) == choice.is_faster()
    assert not choice.is_wanted("auto", single, cpu, images=0, waits=False)  # a network without a part for them
    assert not choice.is_wanted("auto", torch.bfloat16, cpu, images=10**9)
    with pytest.raises(ValueError, match=r"float32 on CPUs.*set kernels=torch"):
        choice.is_wanted("compiled", torch.bfloat16, cpu, images=1)


def recipe(tmp_path, *changes):
    path = tmp_path / "recipe.yaml"
    training = {"steps": 8, "batch": 32, "checkpoint_every": 4, "log_every": 2, "warmup": 2, "trackers": []}
    net = {"kind": "patch-unet", "patch": 1, "widths": [16, 32], "depth": 1, "middle": "c", "heads": 4}
    parts = {"data": {"kind": "digits"}, "net": net, "training": training, "runtime": {"precision": "float32"}, "sampling": {"steps": 2}}
    path.write_text(yaml.safe_dump(parts))
    return load_recipe(path, changes)


@pytest.fixture
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float32")
def test_a_training_goes_on_as_it_began(tmp_path, monkeypatch):
    """The same bits after an interruption, though what is faster here has come out otherwise since."""
    monkeypatch.setattr(choice, "ENOUGH_IMAGES", 1)
    monkeypatch.setattr(choice, "is_faster", lambda: True)
    said = []
    whole = train(recipe(tmp_path), tmp_path / "whole", on_message=said.append)
    assert json.loads((whole / "manifest.json").read_text())["kernels"] == "compiled"
    assert any("sfumato's kernels" in sentence for sentence in said)
    with pytest.raises(Stopped):
        train(recipe(tmp_path), tmp_path / "cut", should_stop=iter([False] * 4 + [True]).__next__)
    monkeypatch.setattr(choice, "is_faster", lambda: False)
    cut = train(recipe(tmp_path), tmp_path / "cut", resume=True)
    ours, theirs = (load_file(run / "checkpoints/00000008/model.safetensors") for run in (whole, cut))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    direct = train(recipe(tmp_path), tmp_path / "direct")
    assert json.loads((direct / "manifest.json").read_text())["kernels"] == "torch"
    other = load_file(direct / "checkpoints/00000008/model.safetensors")
    assert not all(torch.equal(ours[name], other[name]) for name in ours)
    assert all(error(other[name], ours[name].double()) < 1e-2 for name in ours)


@pytest.mark.usefixtures("_float32")
def test_a_run_that_cannot_go_on_so_says_what_to_do(tmp_path, monkeypatch):
    changes = ["runtime.kernels=compiled"]
    with pytest.raises(Stopped):
        train(recipe(tmp_path, *changes), tmp_path / "run", should_stop=iter([False] * 4 + [True]).__next__)
    monkeypatch.setattr(choice, "compiled", lambda: False)
    with pytest.raises(ValueError, match=r"set kernels=torch"):
        train(recipe(tmp_path), tmp_path / "run", resume=True)
    done = train(recipe(tmp_path, "runtime.kernels=torch"), tmp_path / "run", resume=True)
    assert (done / "checkpoints/00000008").is_dir()


def test_samples_by_it_are_those_without_it(tmp_path):
    """Within one grey level, as the summation's order may move them."""
    for way in ("torch", "compiled"):
        with pytest.raises(SystemExit) as end:
            main(["sample", "zoo:fashion", "--count", "6", "--steps", "6", "--kernels", way, "--out", str(tmp_path / f"{way}.npz")])
        assert end.value.code == 0
    one, two = (np.load(tmp_path / f"{way}.npz")["arr_0"].astype(int) for way in ("torch", "compiled"))
    assert np.abs(one - two).max() <= 1
