"""3×3 convolutions by Winograd's filtering, against torch's own in float64."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from sfumato.cli import main
from sfumato.kernels import winograd
from sfumato.kernels.winograd import Conv3x3, conv3x3, fits, use
from sfumato.nets import PatchUNet
from sfumato.train.loop import Stopped, train
from sfumato.train.recipe import load_recipe

CASES = [(3, 16, 32, 8, 8), (1, 64, 16, 16, 16), (5, 32, 48, 7, 13), (2, 16, 16, 1, 30), (1, 48, 80, 29, 4), (20, 32, 32, 3, 2)]


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    if not winograd.compiled():
        pytest.skip("the kernel cannot be compiled here; the log says why")


def drawn(b, c, d, h, w):
    generator = torch.Generator().manual_seed(b * c + h * w)
    sizes = ((b, c, h, w), (d, c, 3, 3), (d,), (b, d, h, w))
    return tuple(torch.randn(size, generator=generator, dtype=torch.float32) for size in sizes)


def error(value, truth):
    return float(((value.double() - truth).norm() / truth.norm()).detach())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_convolution_and_its_gradients(case, threads):
    """On sizes that four does not divide, too, and however many threads divide the tiles."""
    x, weight, bias, g = drawn(*case)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = conv3x3(*ours)
        y.backward(g)
    finally:
        torch.set_num_threads(before)
    theirs = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    truth = nn.functional.conv2d(*theirs, padding=1)
    truth.backward(g.double())
    assert error(y, truth) < 1e-5
    assert all(error(a.grad, b.grad) < 1e-5 for a, b in zip(ours, theirs, strict=True))


def test_layouts_and_a_missing_bias_make_no_difference():
    x, weight, _, _ = drawn(4, 32, 32, 8, 12)
    a, b = conv3x3(x, weight, None), conv3x3(x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last), None)
    assert torch.equal(a, b)
    assert error(a, nn.functional.conv2d(x.double(), weight.double(), padding=1)) < 1e-5


def test_the_gradient_of_a_gradient():
    """As score matching takes it: of |∂y/∂x|² in the weights."""
    x, weight, bias, g = drawn(3, 16, 16, 8, 8)

    def slope(dtype, conv):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
        (along,) = torch.autograd.grad((conv(*leaves).square() * g.to(dtype)).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(along.square().sum(), leaves[1])[0]

    truth = slope(torch.float64, lambda *leaves: nn.functional.conv2d(*leaves, padding=1))
    assert error(slope(torch.float32, conv3x3), truth) < 1e-5


def test_what_does_not_fit_goes_the_other_way():
    x, weight, _, _ = drawn(3, 16, 32, 8, 8)
    assert not fits(x.double(), weight.double())
    assert not fits(x[:, :8], weight[:, :8])
    assert not fits(x[:1], weight)
    layer = Conv3x3(8, 24).float()
    wanted = layer(x[:, :8])
    use(nn.Sequential(layer))
    assert layer.by_winograd
    assert torch.equal(layer(x[:, :8]), wanted)


def test_a_network_computes_the_same_by_it():
    torch.manual_seed(0)
    net = PatchUNet((3, 24, 20), widths=(32, 48), heads=4).float()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, log_snr = torch.randn(6, 3, 24, 20).float(), torch.linspace(-5, 5, 6).float()
    with torch.no_grad():
        direct = net(x, log_snr)
        use(net)
        ours = net(x, log_snr)
    assert 0 < error(ours, direct.double()) < 1e-5


def test_what_is_kept_of_a_weight_follows_it():
    x, weight, _, _ = drawn(4, 16, 16, 8, 8)
    layer = Conv3x3(16, 16).float().requires_grad_(False)
    use(layer)
    for scale in (1.0, 2.0):
        layer.weight.copy_(scale * weight)
        assert error(layer(x), nn.functional.conv2d(x.double(), scale * weight.double(), layer.bias.double(), padding=1)) < 1e-5
        assert layer(x).equal(layer(x))
    layer.weight = nn.Parameter(-weight)
    assert error(layer(x), nn.functional.conv2d(x.double(), -weight.double(), layer.bias.double(), padding=1)) < 1e-5


def test_which_way_is_measured_once():
    assert winograd.is_faster() in (True, False)
    (path,) = winograd.kernel_folder().glob(f"seconds-{torch.get_num_threads()}-threads.json")
    seconds = json.loads(path.read_text())
    path.write_text(json.dumps(seconds | {"winograd": 0.0}))
    assert winograd.is_faster()
    path.write_text(json.dumps(seconds | {"winograd": 1e9}))
    assert not winograd.is_faster()
    path.write_text(json.dumps(seconds))


def test_what_a_run_asks_for():
    cpu, single = torch.device("cpu"), torch.float32
    assert winograd.is_wanted("winograd", single, cpu, images=1)
    assert not winograd.is_wanted("direct", single, cpu, images=10**9)
    assert not winograd.is_wanted("auto", single, cpu, images=winograd.ENOUGH_IMAGES - 1)
    assert not winograd.is_wanted("auto", torch.bfloat16, cpu, images=10**9)
    with pytest.raises(ValueError, match=r"float32 on CPUs.*take convolution=direct"):
        winograd.is_wanted("winograd", torch.bfloat16, cpu, images=1)


def recipe(tmp_path, *changes):
    path = tmp_path / "recipe.yaml"
    training = {"steps": 8, "batch": 32, "checkpoint_every": 4, "log_every": 2, "warmup": 2, "precision": "float32", "trackers": []}
    net = {"kind": "patch-unet", "patch": 1, "widths": [16, 32], "depth": 1, "middle": "c", "heads": 4}
    path.write_text(yaml.safe_dump({"data": {"kind": "digits"}, "net": net, "training": training, "sampling": {"steps": 2}}))
    return load_recipe(path, changes)


@pytest.fixture
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float32")
def test_a_training_goes_on_as_it_began(tmp_path, monkeypatch):
    """The same bits after an interruption, though what is faster here has come out otherwise since."""
    monkeypatch.setattr(winograd, "ENOUGH_IMAGES", 1)
    monkeypatch.setattr(winograd, "is_faster", lambda: True)
    said = []
    whole = train(recipe(tmp_path), tmp_path / "whole", say=said.append)
    assert json.loads((whole / "manifest.json").read_text())["convolution"] == "winograd"
    assert any("Winograd" in sentence for sentence in said)
    with pytest.raises(Stopped):
        train(recipe(tmp_path), tmp_path / "cut", should_stop=iter([False] * 4 + [True]).__next__)
    monkeypatch.setattr(winograd, "is_faster", lambda: False)
    cut = train(recipe(tmp_path), tmp_path / "cut", resume=True)
    ours, theirs = (load_file(run / "checkpoints/00000008/model.safetensors") for run in (whole, cut))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    direct = train(recipe(tmp_path), tmp_path / "direct")
    assert json.loads((direct / "manifest.json").read_text())["convolution"] == "direct"
    other = load_file(direct / "checkpoints/00000008/model.safetensors")
    assert not all(torch.equal(ours[name], other[name]) for name in ours)
    assert all(error(other[name], ours[name].double()) < 1e-2 for name in ours)


@pytest.mark.usefixtures("_float32")
def test_a_run_that_cannot_go_on_so_says_what_to_do(tmp_path, monkeypatch):
    changes = ["training.convolution=winograd"]
    with pytest.raises(Stopped):
        train(recipe(tmp_path, *changes), tmp_path / "run", should_stop=iter([False] * 4 + [True]).__next__)
    monkeypatch.setattr(winograd, "compiled", lambda: False)
    with pytest.raises(ValueError, match=r"take convolution=direct"):
        train(recipe(tmp_path), tmp_path / "run", resume=True)
    done = train(recipe(tmp_path, "training.convolution=direct"), tmp_path / "run", resume=True)
    assert (done / "checkpoints/00000008").is_dir()


def test_samples_by_it_are_those_without_it(tmp_path):
    """Within one grey level, as the summation's order may move them."""
    for choice in ("direct", "winograd"):
        with pytest.raises(SystemExit) as end:
            main(
                ["sample", "zoo:fashion", "--count", "6", "--steps", "6", "--convolution", choice, "--out", str(tmp_path / f"{choice}.npz")]
            )
        assert end.value.code == 0
    one, two = (np.load(tmp_path / f"{choice}.npz")["arr_0"].astype(int) for choice in ("direct", "winograd"))
    assert np.abs(one - two).max() <= 1
