"""OpenAI's UNetModel beside ours, held against a reference that is driven by nothing but the names in the weights' file.

The reference reads `input_blocks`, `middle_block` and `output_blocks` in order and does what each name stands for with plain functions.
"""

import math

import pytest
import torch
from torch.nn import functional as F

import sfumato as sf
from sfumato.convert import load_openai, openai_weights
from sfumato.storage import CheckpointError


class Reference:
    """Their network as a function of its weights: [b, c, h, w] and steps [b] to [b, d, h, w]."""

    def __init__(self, weights, *, blocks, heads=None, head_width=None, interleaved=True):
        self.w, self.every, self.heads, self.head_width, self.interleaved = weights, blocks + 1, heads, head_width, interleaved

    def has(self, name):
        return f"{name}.weight" in self.w

    def conv(self, name, x, **options):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **options)

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name, x):
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def block(self, name, x, emb, resize=None):
        h = F.silu(self.norm(f"{name}.in_layers.0", x))
        if resize is not None:
            h, x = resize(h), resize(x)
        h = self.conv(f"{name}.in_layers.2", h, padding=1)
        said = self.linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if said.shape[1] == 2 * h.shape[1]:
            h = self.norm(f"{name}.out_layers.0", h) * (1 + said[:, : h.shape[1]]) + said[:, h.shape[1] :]
        else:
            h = self.norm(f"{name}.out_layers.0", h + said)
        h = self.conv(f"{name}.out_layers.3", F.silu(h), padding=1)
        return h + (self.conv(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection") else x)

    def attention(self, name, x):
        c = x.shape[1]
        heads = self.heads or c // self.head_width
        qkv = F.conv1d(self.norm(f"{name}.norm", x).flatten(2), self.w[f"{name}.qkv.weight"], self.w[f"{name}.qkv.bias"])
        out = []
        for i in range(heads):
            d = c // heads
            if self.interleaved:
                q, k, v = qkv[:, 3 * d * i : 3 * d * (i + 1)].split(d, dim=1)
            else:
                q, k, v = (part[:, d * i : d * (i + 1)] for part in qkv.split(c, dim=1))
            out.append(torch.einsum("bts,bcs->bct", torch.einsum("bct,bcs->bts", q, k).div(math.sqrt(d)).softmax(-1), v))
        mixed = F.conv1d(torch.cat(out, dim=1), self.w[f"{name}.proj_out.weight"], self.w[f"{name}.proj_out.bias"])
        return x + mixed.reshape(x.shape)

    def __call__(self, x, steps, labels=None):
        half = self.w["time_embed.0.weight"].shape[1] // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = steps[:, None].float() * rates
        emb = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        emb = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", emb)))
        if labels is not None:
            emb = emb + self.w["label_emb.weight"][labels]
        stack = [h := self.conv("input_blocks.0.0", x, padding=1)]
        count = 1 + max(int(name.split(".")[1]) for name in self.w if name.startswith("output_blocks"))
        for i in range(1, count):
            name = f"input_blocks.{i}.0"
            if self.has(f"{name}.op"):
                h = self.conv(f"{name}.op", h, stride=2, padding=1)
            elif i % self.every == 0:
                h = self.block(name, h, emb, lambda h: F.avg_pool2d(h, 2)) if self.has(f"{name}.in_layers.0") else F.avg_pool2d(h, 2)
            else:
                h = self.block(name, h, emb)
                h = self.attention(f"input_blocks.{i}.1", h) if self.has(f"input_blocks.{i}.1.qkv") else h
            stack.append(h)
        h = self.block("middle_block.2", self.attention("middle_block.1", self.block("middle_block.0", h, emb)), emb)
        twice = lambda h: F.interpolate(h, scale_factor=2, mode="nearest")  # noqa: E731
        for i in range(count):
            h = self.block(f"output_blocks.{i}.0", torch.cat([h, stack.pop()], dim=1), emb)
            last = 1
            if self.has(f"output_blocks.{i}.1.qkv"):
                h, last = self.attention(f"output_blocks.{i}.1", h), 2
            if (i + 1) % self.every == 0 and i + 1 < count:
                name = f"output_blocks.{i}.{last}"
                if self.has(f"{name}.in_layers.0"):
                    h = self.block(name, h, emb, twice)
                else:
                    h = self.conv(f"{name}.conv", twice(h), padding=1) if self.has(f"{name}.conv") else twice(h)
        return self.conv("out.2", F.silu(self.norm("out.0", h)), padding=1)


def weights_of(*, channels=(32, 64), blocks=1, attention=(False, True), scales=True, resample="conv", classes=0, out=3, model=32):
    """Random weights under the names that their constructor gives, written out from its loops over the resolutions."""
    made, width = {}, 4 * model

    def layer(name, *shape):
        made[f"{name}.weight"] = torch.randn(*shape) / math.sqrt(math.prod(shape[1:]))
        made[f"{name}.bias"] = 0.2 * torch.randn(shape[0])

    def norm(name, c):
        made[f"{name}.weight"], made[f"{name}.bias"] = 1 + 0.2 * torch.randn(c), 0.2 * torch.randn(c)

    def block(name, c, d):
        norm(f"{name}.in_layers.0", c)
        layer(f"{name}.in_layers.2", d, c, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * d if scales else d, width)
        norm(f"{name}.out_layers.0", d)
        layer(f"{name}.out_layers.3", d, d, 3, 3)
        if c != d:
            layer(f"{name}.skip_connection", d, c, 1, 1)

    def attend(name, c):
        norm(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    layer("time_embed.0", width, model)
    layer("time_embed.2", width, width)
    if classes:
        made["label_emb.weight"] = torch.randn(classes, width)
    layer("input_blocks.0.0", channels[0], 3, 3, 3)
    skips, now, i = [channels[0]], channels[0], 0
    for level, c in enumerate(channels):
        for _ in range(blocks):
            i += 1
            block(f"input_blocks.{i}.0", now, c)
            now = c
            if attention[level]:
                attend(f"input_blocks.{i}.1", c)
            skips.append(c)
        if level < len(channels) - 1:
            i += 1
            if resample == "block":
                block(f"input_blocks.{i}.0", c, c)
            elif resample == "conv":
                layer(f"input_blocks.{i}.0.op", c, c, 3, 3)
            skips.append(c)
    block("middle_block.0", now, now)
    attend("middle_block.1", now)
    block("middle_block.2", now, now)
    i = 0
    for level in reversed(range(len(channels))):
        c = channels[level]
        for k in range(blocks + 1):
            block(f"output_blocks.{i}.0", now + skips.pop(), c)
            now = c
            if attention[level]:
                attend(f"output_blocks.{i}.1", c)
            if level and k == blocks:
                name = f"output_blocks.{i}.{1 + attention[level]}"
                if resample == "block":
                    block(name, c, c)
                elif resample == "conv":
                    layer(f"{name}.conv", c, c, 3, 3)
            i += 1
    norm("out.0", now)
    layer("out.2", out, now, 3, 3)
    return made


CONFIGS = {  # of the weights, and of the heads
    "improved-diffusion": ({"scales": False, "blocks": 2}, {"heads": 4}),
    "one resolution": ({"channels": (32,), "attention": (True,)}, {"heads": 1}),
    "guided-diffusion": (
        {"channels": (32, 64, 64), "attention": (False, True, True), "resample": "block", "classes": 6, "out": 6},
        {"head_width": 16},
    ),
    "new order": ({"attention": (True, True)}, {"heads": 2, "interleaved": False}),
    "no convolution in resampling": ({"resample": "pool", "channels": (32, 32, 64), "attention": (False, False, False)}, {"heads": 4}),
    "half the channels at first (512 pixels)": ({"model": 64, "channels": (32, 64, 64), "attention": (False, False, True)}, {"heads": 4}),
}
every_config = pytest.mark.parametrize("name", CONFIGS)
CHAIN = sf.Discrete.linear(1000)


def made(name, folder):
    """The weights, the reference on them, and our run of their file."""
    weights, heads = CONFIGS[name]
    tensors = weights_of(**weights)
    torch.save(tensors, folder / "model.pt")
    run = load_openai(folder / "model.pt", (3, 8, 8), CHAIN, **heads)
    return tensors, Reference(tensors, blocks=weights.get("blocks", 1), **heads), run


@every_config
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_outputs_are_equal(name, dtype, tolerance, tmp_path):
    tensors, reference, run = made(name, tmp_path)
    reference.w = {name: value.to(dtype) for name, value in tensors.items()}
    run.network.to(dtype)
    x, steps = torch.randn(4, 3, 8, 8, dtype=dtype), torch.tensor([0, 1, 500, 999])
    labels = torch.arange(4) if "label_emb.weight" in tensors else None
    wanted = reference(x, steps, labels)
    ours = run.network.net(x, CHAIN.log_snr((steps + 1).double() / 1000).to(dtype), None if labels is None else {"labels": labels})
    scale = float(wanted.abs().max())
    assert scale > 0.1
    assert float((ours - wanted).abs().max()) < tolerance * max(1.0, scale)


@every_config
def test_weights_come_back(name, tmp_path):
    tensors, _, run = made(name, tmp_path)
    again = openai_weights(run.network.net, interleaved=CONFIGS[name][1].get("interleaved", True))
    assert again.keys() == tensors.keys()
    assert [key for key, value in tensors.items() if not torch.equal(value, again[key])] == []


def test_steps_can_count_in_thousandths(tmp_path):
    """Their rescale_timesteps: step 30 of 50 is shown as 600."""
    torch.save(tensors := weights_of(), tmp_path / "model.pt")
    chain = sf.Discrete.cosine(50)
    run = load_openai(tmp_path / "model.pt", (3, 8, 8), chain, rescaled=True)
    x = torch.randn(1, 3, 8, 8)
    ours = run.network.net(x, chain.log_snr(torch.tensor([31 / 50], dtype=torch.float64)).float())
    torch.testing.assert_close(ours, Reference(tensors, blocks=1, heads=4)(x, torch.tensor([600])), rtol=1e-5, atol=1e-5)


def test_a_learned_variance_is_sampled_with(tmp_path):
    _, _, run = made("guided-diffusion", tmp_path)
    assert run.recipe.sampling.sampler == "ancestral-learned"
    assert run.sample(3, steps=3).values.shape == (3, 8, 8, 3)
    assert len(run.spec.classes) == 6


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda w: w.pop("output_blocks.1.0.in_layers.2.bias"), {}, CheckpointError, "lacks output_blocks.1.0.in_layers.2.bias"),
        (lambda w: w.update({"ema.step": torch.ones(1)}), {}, CheckpointError, "contains ema.step, which this architecture does not have"),
        (
            lambda w: w.update({"middle_block.0.in_layers.2.bias": torch.ones(7)}),
            {},
            CheckpointError,
            r"middle_block.0.in_layers.2.bias has",
        ),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("output")], {}, ValueError, "not a UNetModel.* lacks output_blocks"),
        (lambda w: w.pop("time_embed.0.weight"), {}, ValueError, "not a UNetModel.* lacks time_embed.0.weight"),
        (lambda w: None, {"shape": (1, 8, 8)}, ValueError, "maps 3 channels to 3, which does not fit images of shape"),
        (lambda w: None, {"heads": 5}, ValueError, "5 heads do not divide"),
        (lambda w: None, {"target": sf.flow_target}, ValueError, "eps_target, x0_target or v_target"),
    ],
    ids=["lacking", "unknown", "shape", "a classifier", "another network", "grey", "heads", "target"],
)
def test_what_does_not_fit_is_refused(change, options, error, message, tmp_path):
    weights = weights_of()
    change(weights)
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(error, match=message):
        load_openai(tmp_path / "model.pt", **{"shape": (3, 8, 8), "chain": CHAIN, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"eps": 1e-6}, "eps=1e-06 cannot"), ({"middle": ()}, "middle="), ({"pads_end": True}, "pads_end=True"), ({}, "features are others")],
    ids=lambda value: str(value),
)
def test_what_theirs_cannot_be_is_refused(options, message):
    net = sf.nets.UNet((3, 8, 8), sf.nets.UNetLayout(channels=(32, 64), attention=(False, True), **options))
    with pytest.raises(ValueError, match=message):
        openai_weights(net)


def test_conditions_that_theirs_do_not_know_are_refused():
    net = sf.nets.UNet((3, 8, 8), conditions={"size": sf.condition.Numbers(1)})
    with pytest.raises(ValueError, match='"size" cannot be exported'):
        openai_weights(net)
