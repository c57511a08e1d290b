"""3×3 convolutions by Winograd's filtering, against torch's own in float64."""

import pytest
import torch
from torch import nn

from sfumato.kernels.build import compiled
from sfumato.kernels.choice import use
from sfumato.kernels.winograd import Conv3x3, conv3x3, fits
from sfumato.nets import PatchUNet
from sfumato.options import Training
from sfumato.training.optim import Optimizer

# The last three leave 3, 1 and 5 tiles after whole blocks of six.
CASES = [
    (3, 16, 32, 8, 8),
    (1, 64, 16, 16, 16),
    (5, 32, 48, 7, 13),
    (2, 16, 16, 1, 30),
    (1, 48, 80, 29, 4),
    (20, 32, 32, 3, 2),
    (7, 16, 32, 4, 12),
    (19, 16, 16, 3, 4),
    (23, 16, 16, 4, 4),
]


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    if not compiled():
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
    plus = g.flip(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, plus)]
        y = conv3x3(*ours)
        y.backward(g)
    finally:
        torch.set_num_threads(before)
    theirs = [tensor.double().requires_grad_() for tensor in (x, weight, bias, plus)]
    truth = nn.functional.conv2d(*theirs[:3], padding=1) + theirs[3]
    truth.backward(g.double())
    assert error(y, truth) < 1e-5
    assert all(error(a.grad, b.grad) < 1e-5 for a, b in zip(ours, theirs, strict=True))


def test_layouts_and_a_missing_bias_make_no_difference():
    """Nor to the gradients."""
    x, weight, _, g = drawn(4, 32, 48, 8, 12)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [tensor.clone(memory_format=layout).requires_grad_() for tensor in (x, weight)]
        y = conv3x3(*leaves, None)
        y.backward(g.to(memory_format=layout))
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert error(found[0][0], nn.functional.conv2d(x.double(), weight.double(), padding=1)) < 1e-5


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
    assert layer.by_kernel
    assert torch.equal(layer(x[:, :8]), wanted)


def test_what_is_kept_of_a_weight_follows_it():
    x, weight, _, _ = drawn(4, 16, 16, 8, 8)
    layer = Conv3x3(16, 16).float().requires_grad_(False)
    use(layer)
    for scale in (1.0, 2.0):
        layer.weight.copy_(scale * weight)
        assert error(layer(x), nn.functional.conv2d(x.double(), scale * weight.double(), layer.bias.double(), padding=1)) < 1e-5
        assert layer(x).equal(layer(x))
    layer.weight = nn.Parameter(-weight, requires_grad=False)
    assert error(layer(x), nn.functional.conv2d(x.double(), -weight.double(), layer.bias.double(), padding=1)) < 1e-5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_network_in_training_is_asked_with_its_weights_of_now(optimizer):
    """Neither optimiser counts up the version of a weight."""
    net = PatchUNet((1, 8, 8), patch=1, widths=(16, 16), depth=1, middle="c", heads=1).float()
    moving = Optimizer(net, Training(optimizer=optimizer, rate=0.01, muon_rate=0.01, warmup=0))
    x, log_snr = torch.randn(4, 1, 8, 8, dtype=torch.float32), torch.zeros(4, dtype=torch.float32)
    for step in range(1, 4):
        found = []
        for by_kernel in (True, False):
            use(net, by_kernel)
            with torch.no_grad():
                found.append(net(x, log_snr))
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
        net(x, log_snr).sub(1).square().sum().backward()
        moving.step(step)
