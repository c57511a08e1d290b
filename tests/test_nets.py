"""Networks as functions: any size, rows apart, labels that matter and labels that are not given."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.condition import Classes, Condition, Map, Numbers, Sequence, Tokens, as_cond, class_labels, drop
from sfumato.nets.conditioner import resized
from sfumato.nets.dit import _from_tokens, _to_tokens

Layout = sf.nets.UNetLayout
LABELS = class_labels(3)
SMALL = {"channels": (16, 32), "attention": (False, True), "blocks": 1}
CASES = {
    "mlp": (lambda: sf.nets.MLP((2,), width=32, depth=2, conditions=LABELS), (2,)),
    "unet-2d": (lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL), conditions=LABELS), (3, 17, 22)),
    "unet-1d": (lambda: sf.nets.UNet((2, 33), Layout(channels=(16, 32, 32), blocks=1), conditions=LABELS), (2, 33)),
    "unet-pool": (
        lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL, resample="pool", scales=False, groups=8), conditions=LABELS),
        (3, 17, 22),
    ),
    "unet-block": (
        lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL, resample="block", middle=(False,)), conditions=LABELS),
        (3, 17, 22),
    ),
    "unet-end": (
        lambda: sf.nets.UNet((3, 17, 22), Layout(**SMALL, pads_end=True, attention_up=(True, False)), conditions=LABELS),
        (3, 17, 22),
    ),
    "dit-2d": (lambda: sf.nets.DiT((3, 17, 22), patch=4, width=48, depth=2, heads=3, conditions=LABELS), (3, 17, 22)),
    "dit-1d": (lambda: sf.nets.DiT((2, 33), patch=4, width=48, depth=2, heads=3, conditions=LABELS), (2, 33)),
    "patch-unet-deep": (
        lambda: sf.nets.PatchUNet((3, 17, 22), patch=1, widths=(8, 16, 32), depth=1, middle="ac", heads=2, conditions=LABELS),
        (3, 17, 22),
    ),
    "patch-unet": (
        lambda: sf.nets.PatchUNet((3, 17, 22), widths=(16, 32), depth=1, middle="cac", heads=2, conditions=LABELS),
        (3, 17, 22),
    ),
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
        (lambda: Layout(channels=(16, 32)), "one entry for each resolution"),
        (lambda: Layout(channels=(16, 30), attention=(False, True)), "4 heads do not divide"),
        (lambda: Layout(channels=(16, 32), attention=(True, False), head_width=32), "heads of 32 channels do not divide"),
        (lambda: Layout(channels=()), "at least one resolution"),
        (lambda: Layout(resample="fir"), "resample must be"),
        (lambda: sf.nets.DiT((3,)), "at least one spatial axis"),
        (lambda: sf.nets.DiT((3, 8, 8), width=50, heads=4), "multiple of heads"),
        (lambda: sf.nets.PatchUNet((3, 8)), "takes images"),
        (lambda: sf.nets.PatchUNet((3, 8, 8), widths=(32,)), "at least two widths"),
        (lambda: sf.nets.PatchUNet((3, 8, 8), middle="cxc"), "middle must consist of"),
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


ALL = {
    "color": Classes(("red", "green", "blue")),
    "size.x": Numbers(2, shift=(1.0, 0.0), scale=(2.0, 1.0)),
    "outline": Map(2),
    "type": Numbers(1),
}
NO_MAPS = {name: spec for name, spec in ALL.items() if not isinstance(spec, Map)}
CONDITIONED = {
    "mlp": (lambda conditions: sf.nets.MLP((2,), width=16, depth=1, conditions=conditions), (2,)),
    "unet-2d": (lambda conditions: sf.nets.UNet((3, 9, 6), Layout(**SMALL), conditions=conditions), (3, 9, 6)),
    "unet-1d": (lambda conditions: sf.nets.UNet((2, 9), Layout(**SMALL), conditions=conditions), (2, 9)),
    "dit-2d": (lambda conditions: sf.nets.DiT((3, 9, 6), patch=4, width=16, depth=1, heads=2, conditions=conditions), (3, 9, 6)),
    "dit-1d": (lambda conditions: sf.nets.DiT((2, 9), patch=4, width=16, depth=1, heads=2, conditions=conditions), (2, 9)),
    "patch-unet": (
        lambda conditions: sf.nets.PatchUNet((3, 9, 6), widths=(8, 16), depth=1, middle="c", heads=2, conditions=conditions),
        (3, 9, 6),
    ),
}
every_conditioned = pytest.mark.parametrize("name", CONDITIONED)
with_maps = pytest.mark.parametrize("name", [name for name in CONDITIONED if name != "mlp"])


def conditioned(name: str, *, backwards: bool = False) -> tuple[nn.Module, torch.Tensor, torch.Tensor, dict[str, Condition]]:
    """The network for every condition that it takes, with its zeroed layers filled; an input of four rows, and their conditions."""
    make, shape = CONDITIONED[name]
    torch.manual_seed(1)
    specs = NO_MAPS if name == "mlp" else ALL
    net = make(dict(reversed(specs.items())) if backwards else specs)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    values = {
        "color": torch.tensor([0, 2, 1, 1]),
        "size.x": torch.randn(4, 2),
        "outline": torch.randn(4, 2, *(2 * n for n in shape[1:])),
        "type": torch.randn(4, 1),
    }
    return net, torch.randn(4, *shape), torch.randn(4), as_cond({key: values[key] for key in specs})


@every_conditioned
def test_each_condition_matters_where_it_is_given_and_only_there(name):
    """Another value moves its own row alone, and none where the condition is dropped, alone or with the others."""
    net, x, log_snr, cond = conditioned(name)
    base = net(x, log_snr, cond)
    for key, one in cond.items():
        other = one.value.clone()
        other[1] = 0
        changed = cond | {key: replace(one, value=other)}
        moved = (net(x, log_snr, changed) - base).abs().flatten(1).amax(1)
        assert moved[1] > 1e-4, key
        assert not moved[[0, 2, 3]].any(), key
        dropped = net(x, log_snr, drop(cond, names=[key]))
        assert torch.equal(net(x, log_snr, drop(changed, names=[key])), dropped), key
        torch.testing.assert_close(net(x, log_snr, {other: cond[other] for other in cond if other != key}), dropped)
        assert torch.equal(net(x, log_snr, drop(changed)), net(x, log_snr, drop(cond))), key
    torch.testing.assert_close(net(x, log_snr, drop(cond)), net(x, log_snr))
    half = torch.tensor([True, False, True, False])
    mixed = net(x, log_snr, drop(cond, half))
    torch.testing.assert_close(mixed, torch.where(half.reshape(-1, *(1,) * (x.ndim - 1)), net(x, log_snr), base))


@every_conditioned
def test_what_is_not_given_never_leaks(name):
    """NaN and classes far out of range in rows that are not given: the same output and gradients as with zeros there, all finite."""
    net, x, log_snr, cond = conditioned(name)
    some = drop(cond, torch.tensor([False, True, False, True]))
    found = []
    for bad in (True, False):
        filled = {}
        for key, one in some.items():
            nothing = (
                (torch.full_like(one.value, 10**6) if key == "color" else torch.full_like(one.value, torch.nan)) if bad else 0 * one.value
            )
            value = one.value.where(one.given.reshape(-1, *(1,) * (one.value.ndim - 1)), nothing)
            filled[key] = replace(one, value=value.requires_grad_() if value.is_floating_point() else value)
        net.zero_grad()
        y = net(x, log_snr, filled)
        y.square().sum().backward()
        inputs = [one.value.grad for one in filled.values() if one.value.grad is not None]
        found.append([y, *inputs, *(parameter.grad for parameter in net.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert len(found[0]) > len(cond)


@every_conditioned
def test_the_order_of_conditions_means_nothing(name):
    """Neither where the network is built (the same draws, the same names) nor where it is called."""
    net, x, log_snr, cond = conditioned(name)
    again, *_ = conditioned(name, backwards=True)
    assert list(again.state_dict()) == list(net.state_dict())
    assert torch.equal(again(x, log_snr, dict(reversed(cond.items()))), net(x, log_snr, cond))


@with_maps
def test_a_map_of_another_resolution_is_scaled(name):
    """Twice as fine: the mean of each two (or two by two). Half as fine: linear between the middles of its entries."""
    net, x, log_snr, cond = conditioned(name)
    fine = cond["outline"].value
    axes = list(range(2, fine.ndim))
    mean = fine.unflatten(2, (-1, 2)).mean(3) if fine.ndim == 3 else fine.unflatten(2, (-1, 2)).mean(3).unflatten(3, (-1, 2)).mean(4)
    same = cond | {"outline": replace(cond["outline"], value=mean)}
    torch.testing.assert_close(net(x, log_snr, cond), net(x, log_snr, same))
    ramp = sum(torch.arange(6.0).reshape(-1, *(1,) * (fine.ndim - 1 - axis)) for axis in axes).expand(1, 1, *(6,) * len(axes))
    grown = resized(ramp, torch.Size((12,) * len(axes)))
    places = (torch.arange(12.0) + 0.5) / 2 - 0.5
    wanted = sum(places.clamp(0, 5).reshape(-1, *(1,) * (fine.ndim - 1 - axis)) for axis in axes)
    torch.testing.assert_close(grown[0, 0], wanted.expand(grown.shape[2:]))


def test_an_axis_may_shrink_where_another_grows():
    maps = torch.arange(8.0).reshape(1, 1, 4, 2)
    torch.testing.assert_close(resized(maps, torch.Size((2, 4)))[0, 0], torch.tensor([[1.0, 1.25, 1.75, 2.0], [5.0, 5.25, 5.75, 6.0]]))


def test_a_map_is_concatenated_to_x():
    """The first layers of x and of the map are one layer over both."""
    net, x, _, cond = conditioned("unet-2d")
    ((stem, shown),) = net.condition.maps(x, cond)
    joined = nn.functional.conv2d(torch.cat([x, shown], 1), torch.cat([net.stem.weight, stem.weight], 1), net.stem.bias, padding=1)
    torch.testing.assert_close(net.stem(x) + stem(shown), joined)


@every_conditioned
def test_conditions_that_begin_at_zero_change_nothing_and_learn(name):
    net, x, log_snr, cond = conditioned(name)
    make, _ = CONDITIONED[name]
    without = make({"color": ALL["color"]})
    without.load_state_dict({key: value for key, value in net.state_dict().items() if key in without.state_dict()})
    rest = [key for key in cond if key != "color"]
    net.condition.begin_at_zero(*rest)
    base = without(x, log_snr, {"color": cond["color"]})
    torch.testing.assert_close(net(x, log_snr, cond), base)
    torch.testing.assert_close(net(x, log_snr, drop(cond, names=rest)), base)
    net(x, log_snr, cond).square().sum().backward()
    with torch.no_grad():
        for parameter in net.condition.parameters():
            parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad.sign())
    for key in rest:
        assert (net(x, log_snr, cond) - net(x, log_snr, drop(cond, names=[key]))).abs().max() > 1e-4, key


LEARNERS = {
    "mlp": (sf.nets.MLP, {"width": 32, "depth": 1, "waves": 0}, (2,)),
    "unet": (sf.nets.UNet, {"layout": Layout(channels=(16,), attention=(False,), blocks=1, middle=(), groups=4)}, (1, 4, 4)),
    "dit": (sf.nets.DiT, {"patch": 2, "width": 32, "depth": 1, "heads": 2}, (1, 4, 4)),
    "patch-unet": (sf.nets.PatchUNet, {"widths": (16, 16), "depth": 1, "middle": "c", "heads": 2}, (1, 4, 4)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_network_learns_what_each_condition_says(name):
    """y is the sum of a class's sign, a number and (of images) a map, each of variance 1: without one of them at least 1 is left.

    After a few steps less than half of that is left, on examples that were not seen.
    """
    torch.set_default_dtype(torch.float32)
    make, options, shape = LEARNERS[name]
    specs = {"color": Classes(("+", "-")), "size": Numbers(1)} | ({"outline": Map(1)} if len(shape) > 1 else {})
    net = make(shape, conditions=specs, **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def error(count: int) -> torch.Tensor:
        sign, number, shown = torch.randint(0, 2, (count,)), torch.randn(count, 1), torch.randn(count, 1, *shape[1:])
        wanted = ((1 - 2 * sign)[:, None] + number).reshape(count, *(1,) * len(shape)) + (shown if "outline" in specs else 0)
        values = {"color": sign, "size": number, "outline": shown}
        y = net(torch.zeros(count, *shape), torch.zeros(count), {key: values[key] for key in specs})
        return (y - wanted).square().mean()

    for _ in range(80):
        optimizer.zero_grad()
        error(64).backward()
        optimizer.step()
    with torch.no_grad():
        assert error(512) < 0.5


def test_weights_keep_the_names_that_checkpoints_have():
    """With labels alone nothing is called otherwise than before there were other conditions; a name may be anything."""
    labels = [key for key in sf.nets.MLP((2,), conditions=LABELS).state_dict() if key.startswith("condition")]
    assert labels == [*(f"condition.level.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")), "condition.label.weight"]
    parts = {key.split(".")[1] for key in conditioned("unet-2d")[0].state_dict() if key.startswith("condition")}
    assert parts == {"level", "on_color", "on_size%2Ex", "on_outline", "on_type"}


COMPILED = """
import torch, sfumato as sf
from sfumato.condition import Classes, Map, Numbers, as_cond
specs = {"color": Classes(("a", "b")), "size": Numbers(1), "outline": Map(1)}
cond = {"color": torch.tensor([0, -1]), "size": torch.randn(2, 1), "outline": torch.randn(2, 1, 4, 4)}
x, level = torch.randn(2, 1, 8, 8), sf.Cosine().level(torch.tensor(0.5))
nets = [
    sf.nets.DiT((1, 8, 8), width=16, depth=1, heads=2, conditions=specs),
    sf.nets.UNet((1, 8, 8), sf.nets.UNetLayout(channels=(16,), attention=(True,), blocks=1, middle=()), conditions=specs),
    sf.nets.PatchUNet((1, 8, 8), widths=(8, 16), depth=1, heads=2, conditions=specs),
]
for net in nets:
    denoiser = sf.Denoiser(net)
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    for given in (cond, as_cond(cond)):
        torch.testing.assert_close(compiled(x, level, given).x0, denoiser(x, level, given).x0)
"""


@pytest.mark.slow
def test_conditions_go_through_the_compiler_in_one_graph():
    """In a process of its own, where shapes are not checked: the compiler does not know beartype."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=120)


@every_conditioned
def test_values_are_not_looked_at_off_the_cpu(name):
    """On a device that has shapes and no values, where looking at one is an error as waiting for it would be slow elsewhere."""
    net, x, log_snr, cond = conditioned(name)
    far = {key: one.value.to("meta") for key, one in cond.items()}
    for given in (far, drop(far, names=["color"]), None):
        assert net.to("meta")(x.to("meta"), log_snr.to("meta"), given).shape == x.shape


def test_a_class_that_must_be_given_is_asked_for(monkeypatch):
    net = sf.nets.UNet((1, 8), Layout(**SMALL), conditions=LABELS, given=True)
    x, log_snr = torch.randn(2, 1, 8), torch.zeros(2)
    for cond in (None, {}, {"labels": torch.tensor([0, -1])}):
        with pytest.raises(ValueError, match="never trained without a label"):
            net(x, log_snr, cond)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # where values are not looked at
    unseen = net.condition(log_snr, {"labels": torch.tensor([0, -1])})
    assert unseen.isnan().all(1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: sf.nets.MLP((2,), conditions={"outline": Map(1)}),
            'MLP cannot take the condition "outline" of kind map; it takes classes, numbers',
        ),
        (
            lambda: sf.nets.PatchUNet((1, 8, 8), conditions={"text": Tokens(4, 9)}),
            "PatchUNet cannot .* kind tokens; it takes classes, numbers, map",
        ),
        (lambda: sf.nets.UNet((1, 8, 8), conditions={"text": Sequence(4, 9)}), "UNet cannot .* kind sequence"),
        (lambda: sf.nets.DiT((1, 8, 8), conditions={"text": Sequence(4, 9)}), "DiT cannot .* kind sequence"),
        (
            lambda: conditioned("mlp")[0].condition.begin_at_zero("colour"),
            'this network has no condition "colour"; it has color, size.x, type',
        ),
    ],
)
def test_a_condition_that_a_network_cannot_take_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"colour": torch.zeros(4)}, 'this network has no condition "colour"; it has color, outline, size.x, type'),
        ({"color": torch.zeros(4)}, r'"color" must be integers \[b\], one class for each example, got float32 \[4\]'),
        ({"color": torch.tensor([0, 1, 2, 3])}, r"color must lie in 0 … 2 \(or be -1 for none\), got 0 to 3"),
        ({"size.x": torch.zeros(4, 3)}, r'"size.x" must be floats \[b, 2\], got float32 \[4, 3\]'),
        ({"size.x": torch.zeros(4, 2, dtype=torch.long)}, "got int64"),
        ({"outline": torch.zeros(4, 1, 9, 6)}, r'"outline" must be floats \[b, 2, …, …\], got float32 \[4, 1, 9, 6\]'),
        ({"outline": torch.zeros(4, 2, 9)}, r"got float32 \[4, 2, 9\]"),
    ],
)
def test_values_of_another_form_are_refused(wrong, sentence):
    net, x, log_snr, _ = conditioned("unet-2d")
    with pytest.raises(ValueError, match=sentence):
        net(x, log_snr, wrong)
