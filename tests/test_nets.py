"""Networks as functions: any size, rows apart, labels that matter and labels that are not given."""

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.nets.dit import _from_tokens, _to_tokens

Layout = sf.nets.UNetLayout
SMALL = {"channels": (16, 32), "attention": (False, True), "blocks": 1}
CASES = {
    "mlp": (lambda: sf.nets.MLP((2,), width=32, depth=2, classes=3), (2,)),
    "unet-2d": (lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL), classes=3), (3, 17, 22)),
    "unet-1d": (lambda: sf.nets.UNet((2, 33), Layout(channels=(16, 32, 32), blocks=1), classes=3), (2, 33)),
    "unet-pool": (lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL, resample="pool", scales=False, groups=8), classes=3), (3, 17, 22)),
    "unet-block": (lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL, resample="block", middle=(False,)), classes=3), (3, 17, 22)),
    "unet-end": (lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL, pads_end=True, attention_up=(True, False)), classes=3), (3, 17, 22)),
    "dit-2d": (lambda: sf.nets.DiT((3, 17, 22), patch=4, width=48, depth=2, heads=3, classes=3), (3, 17, 22)),
    "dit-1d": (lambda: sf.nets.DiT((2, 33), patch=4, width=48, depth=2, heads=3, classes=3), (2, 33)),
    "patch-unet-deep": (
        lambda: sf.nets.PatchUNet((3, 17, 22), patch=1, widths=(8, 16, 32), depth=1, middle="ac", heads=2, classes=3),
        (3, 17, 22),
    ),
    "patch-unet": (lambda: sf.nets.PatchUNet((3, 17, 22), widths=(16, 32), depth=1, middle="cac", heads=2, classes=3), (3, 17, 22)),
}
every_net = pytest.mark.parametrize("name", CASES)


def awake(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with its zeroed layers filled, and an input for it."""
    make, shape = CASES[name]
    net = make()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net.eval(), torch.randn(4, *shape)


@every_net
def test_a_new_network_says_zero(name):
    """So that an untrained v-model is the best linear denoiser of unit data, and training begins calmly."""
    make, shape = CASES[name]
    assert not make()(torch.randn(2, *shape), torch.zeros(2)).any()


@every_net
def test_rows_do_not_see_each_other(name):
    net, x = awake(name)
    log_snr, cond = torch.randn(4), {"labels": torch.tensor([0, 2, -1, 1])}
    whole = net(x, log_snr, cond)
    for i in range(4):
        alone = net(x[i : i + 1], log_snr[i : i + 1], {"labels": cond["labels"][i : i + 1]})
        torch.testing.assert_close(whole[i : i + 1], alone)


@every_net
def test_level_and_label_matter_and_minus_one_is_none(name):
    net, x = awake(name)
    base = net(x, torch.zeros(4), {"labels": torch.zeros(4, dtype=torch.long)})
    assert (net(x, torch.ones(4), {"labels": torch.zeros(4, dtype=torch.long)}) - base).abs().max() > 1e-4
    assert (net(x, torch.zeros(4), {"labels": torch.ones(4, dtype=torch.long)}) - base).abs().max() > 1e-4
    torch.testing.assert_close(net(x, torch.zeros(4), {"labels": torch.full((4,), -1)}), net(x, torch.zeros(4)))


@every_net
def test_every_entry_reaches_the_output(name):
    """Odd and non-square sizes lose nothing at their edges: each input entry has a gradient, each output entry a value."""
    net, x = awake(name)
    x.requires_grad_()
    y = net(x, torch.zeros(4))
    assert y.shape == x.shape
    y.square().sum().backward()
    assert (x.grad != 0).all()
    assert (y != 0).all()


@every_net
def test_muon_gets_matrices_and_not_the_ends(name):
    net, _ = awake(name)
    named = {id(p): key for key, p in net.named_parameters()}
    hidden = [named[id(p)] for p in net.hidden()]
    assert len(hidden) == len(set(hidden)) > 0
    ends = ("condition", "stem", "inward", "outward", "head", "places")
    assert not [key for key in hidden if key.startswith(ends) or "modulation" in key or "norm" in key]


def test_patches_are_cut_and_joined():
    x = torch.randn(2, 3, 8, 12)
    tokens = _to_tokens(x, [2, 3], 4)
    assert torch.equal(tokens[:, 4].reshape(2, 3, 4, 4), x[:, :, 4:8, 4:8])
    assert torch.equal(_from_tokens(tokens, [2, 3], 4), x)


@every_net
def test_labels_out_of_range_are_refused(name):
    net, x = awake(name)
    with pytest.raises(ValueError, match="labels must lie in 0 … 2"):
        net(x, torch.zeros(4), {"labels": torch.tensor([0, 1, 2, 3])})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.nets.UNet((3,)), "for points use MLP"),
        (lambda: Layout(channels=(16, 32)), "one entry a resolution"),
        (lambda: Layout(channels=(16, 30), attention=(False, True)), "4 heads do not divide"),
        (lambda: Layout(channels=(16, 32), attention=(True, False), head_width=32), "heads of 32 channels do not divide"),
        (lambda: Layout(channels=()), "at least one resolution"),
        (lambda: Layout(resample="fir"), "resample must be"),
        (lambda: sf.nets.DiT((3,)), "at least one spatial axis"),
        (lambda: sf.nets.DiT((3, 8, 8), width=50, heads=4), "multiple of heads"),
        (lambda: sf.nets.PatchUNet((3, 8)), "takes images"),
        (lambda: sf.nets.PatchUNet((3, 8, 8), widths=(32,)), "two resolutions at least"),
        (lambda: sf.nets.PatchUNet((3, 8, 8), middle="cxc"), "middle is spelt"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Stub(nn.Module):
    """Returns a fixed share of its input's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x, log_snr, cond=None):
        self.seen = x, log_snr
        return torch.ones(len(x), self.channels, *x.shape[2:])


@pytest.mark.parametrize("t", [0.1, 0.9])
def test_denoiser_shows_the_network_unit_scale(t):
    net = Stub(1)
    x0, eps = 0.3 * torch.randn(10_000, 1), torch.randn(10_000, 1)
    level = sf.Cosine(scales=sf.ve_scales, log_snr_max=8.0, log_snr_min=-8.0).level(t)
    sf.Denoiser(net, data_std=0.3)(level.alpha * x0 + level.sigma * eps, level)
    assert abs(net.seen[0].std().item() - 1) < 0.03
    torch.testing.assert_close(net.seen[1], level.log_snr.expand(10_000))


def test_denoiser_reads_the_variance_from_the_second_half():
    level = sf.Cosine().level(0.5)
    p = sf.Denoiser(Stub(6), sf.eps_target, variance="learned")(torch.randn(2, 3, 4, 4), level)
    assert (p.variance_fraction == 1).all()
    assert (p.eps == 1).all()


@pytest.mark.parametrize(("channels", "variance"), [(4, "fixed"), (3, "learned")])
def test_denoiser_refuses_a_wrong_shape(channels, variance):
    with pytest.raises(ValueError, match="the network returned shape"):
        sf.Denoiser(Stub(channels), variance=variance)(torch.randn(2, 3, 4, 4), sf.Cosine().level(0.5))


@pytest.mark.parametrize("options", [{"data_std": 0.0}, {"variance": "guessed"}])
def test_denoiser_refuses_bad_options(options):
    with pytest.raises(ValueError, match="must be"):
        sf.Denoiser(Stub(1), **options)
