"""Normalisation, modulation and activation in one pass, against torch's own in float64."""

import pytest
import torch
from torch import nn

from sfumato.kernels.build import channels_last, compiled, operators
from sfumato.kernels.choice import use
from sfumato.kernels.norm import GroupNorm, ModulatedSiLU, fits


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    if not compiled():
        pytest.skip("the kernels cannot be compiled here; the log says why")


def error(value, truth):
    return float(((value.double() - truth).norm() / truth.norm()).detach())


def drawn(b, c, h, w):
    """A map far from zero in some channels, what modulates it, and a gradient."""
    generator = torch.Generator().manual_seed(b * c + h * w)
    level = 30 * torch.randn(c, 1, 1, generator=generator, dtype=torch.float32)
    x = level + torch.randn(b, c, h, w, generator=generator, dtype=torch.float32)
    beside = [torch.randn(size, generator=generator, dtype=torch.float32) for size in ((c,), (c,), (b, c), (b, c), (b, c))]
    return x, beside, torch.randn(b, c, h, w, generator=generator, dtype=torch.float32)


def by_torch(x, groups, eps, activates, weight, bias, scale, shift, offset):
    """The same as a chain of torch's operations."""
    if offset is not None:
        x = x + offset[:, :, None, None]
    if groups:
        x = nn.functional.group_norm(x, groups, weight, bias, eps)
    if scale is not None:
        x = (1 + scale[:, :, None, None]) * x + shift[:, :, None, None]
    return nn.functional.silu(x) if activates else x


CASES = [(3, 32, 7, 9, 8), (1, 64, 16, 16, 32), (1, 64, 16, 16, 2), (17, 48, 5, 3, 3), (2, 16, 1, 1, 1), (2, 32, 40, 30, 32)]


@pytest.mark.parametrize(
    ("case", "given", "activates", "threads"),
    [
        *((case, "all", True, threads) for case in CASES for threads in (1, 2)),  # how rows and channels are divided
        *((CASES[0], given, activates, 1) for given in ("nothing", "modulation", "offset") for activates in (True, False)),
        (CASES[0], "all", False, 1),
    ],
)
def test_it_is_the_chain_and_its_gradients(case, given, activates, threads):
    """With groups of one channel to all of them, few rows and many, and however many threads divide rows and channels."""
    (*sizes, groups), eps = case, 1e-5
    x, (weight, bias, scale, shift, offset), g = drawn(*sizes)
    scale, shift = (scale, shift) if given in ("modulation", "all") else (None, None)
    offset = offset if given in ("offset", "all") else None
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in (x, weight, bias, scale, shift, offset)]
    norm = GroupNorm(groups, sizes[1], eps).float()
    norm.weight, norm.bias = nn.Parameter(leaves[1].detach()), nn.Parameter(leaves[2].detach())
    use(norm)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = norm(leaves[0], scale=leaves[3], shift=leaves[4], offset=leaves[5], activates=activates)
        y.backward(g)
        with torch.no_grad():
            assert torch.equal(norm(leaves[0], scale=leaves[3], shift=leaves[4], offset=leaves[5], activates=activates), y)
    finally:
        torch.set_num_threads(before)
    truths = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = by_torch(truths[0], groups, eps, activates, *truths[1:])
    truth.backward(g.double())
    assert error(y, truth) < 1e-5
    found = [leaves[0].grad, norm.weight.grad, norm.bias.grad, *(None if leaf is None else leaf.grad for leaf in leaves[3:])]
    for ours, theirs in zip(found, truths, strict=True):
        assert theirs is None or float((ours.double() - theirs.grad).norm()) < 2e-5 * max(float(theirs.grad.norm()), float(g.norm()))


def test_modulation_alone():
    """Without a normalisation."""
    x, (_, _, scale, shift, _), g = drawn(3, 32, 6, 10)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, scale, shift)]
    part = ModulatedSiLU()
    use(part)
    y = part(*leaves)
    y.backward(g)
    truths = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = by_torch(truths[0], 0, 0.0, True, None, None, truths[1], truths[2], None)
    truth.backward(g.double())
    assert error(y, truth) < 1e-6
    assert all(error(ours.grad, theirs.grad) < 1e-6 for ours, theirs in zip(leaves, truths, strict=True))


def test_the_activation_everywhere():
    """From where it is nothing to where it is the identity, its slope too, with nothing but numbers far beyond."""
    z = torch.linspace(-80, 80, 320_000, dtype=torch.float32).reshape(1, 100, 200, 16).permute(0, 3, 1, 2).requires_grad_()
    part, nothing = ModulatedSiLU(), torch.zeros(1, 16, dtype=torch.float32)
    use(part)
    y = part(z, nothing, nothing)
    y.sum().backward()
    truth = z.detach().double().requires_grad_()
    nn.functional.silu(truth).sum().backward()
    assert torch.allclose(y.double(), nn.functional.silu(truth), rtol=1e-6, atol=1e-30)
    assert torch.allclose(z.grad.double(), truth.grad, rtol=2e-6, atol=1e-7)
    assert part(torch.full_like(z, torch.nan), nothing, nothing).isnan().all()
    far = torch.tensor([-1e30, -1e4, 1e4, 1e30], dtype=torch.float32).repeat(4)[None, :, None, None]
    assert torch.equal(part(far, nothing, nothing), nn.functional.silu(far))


def test_nothing_of_the_variance_is_lost_far_from_zero():
    """Constant channels of which one corner stands out, at a level whose square has no digits left for the variance."""
    x = torch.full((2, 16, 8, 8), 4096.0, dtype=torch.float32)
    x[:, 3:, 0, 0] += 0.5
    norm = GroupNorm(16, 16, 1e-6, affine=False)
    _, mean, rstd = operators("norm").forward(channels_last(x).flatten(1, 2), 16, 1e-6, False, *[None] * 5)
    truth = x.double().flatten(2)
    assert torch.allclose(mean.double(), truth.mean(2), rtol=1e-7)
    assert torch.allclose(rstd.double(), (truth.var(2, correction=0) + 1e-6).rsqrt(), rtol=1e-6)
    by_torch = error(norm(x), norm.double()(x.double()))
    use(norm)
    assert error(norm(x), norm.double()(x.double())) <= 1.1 * by_torch


def test_the_gradient_of_a_gradient():
    """As score matching takes it."""
    x, (weight, bias, scale, shift, offset), g = drawn(2, 16, 4, 4)
    norm = GroupNorm(4, 16, 1e-5)
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)

    def slope(dtype):
        part = norm.to(dtype)
        leaf = x.to(dtype).requires_grad_()
        y = part(leaf, scale=scale.to(dtype), shift=shift.to(dtype), offset=offset.to(dtype), activates=True)
        (along,) = torch.autograd.grad((y.square() * g.to(dtype)).sum(), leaf, create_graph=True)
        return torch.autograd.grad(along.square().sum(), [leaf, part.weight])

    truth = slope(torch.float64)
    use(norm)
    assert all(error(ours, theirs) < 1e-4 for ours, theirs in zip(slope(torch.float32), truth, strict=True))


def test_what_does_not_fit_goes_the_other_way():
    x = torch.randn(2, 32, 6, 6, dtype=torch.float32)
    assert not fits(x.double())
    assert not fits(x[:, :8])
    assert not fits(x[:, :, 0])
    norm = GroupNorm(4, 8).float()
    wanted = norm(x[:, :8], activates=True)
    use(norm)
    assert torch.equal(norm(x[:, :8], activates=True), wanted)
