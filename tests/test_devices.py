"""On a device that is not the CPU: nothing is left behind, nothing is float64, and nothing waits but the guard (`far` says how)."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from far import DEVICE, Far, FarTensor
from problems import label

import sfumato as sf
from sfumato import runtime
from sfumato.condition import Classes, Map, Numbers, to
from sfumato.data.source import DataSpec
from sfumato.data.wrapped import as_source
from sfumato.engine import Engine
from sfumato.likelihood import TruncatedNormal, bits_per_dim, flow_density
from sfumato.nets.layers import LearnedTimesteps, TimestepSinusoids
from sfumato.nets.unet import UNetLayout
from sfumato.noise import row_generators
from sfumato.recipe import load_recipe
from sfumato.sampling.flow import flow
from sfumato.sampling.path import interpolate, invert
from sfumato.tasks.options import SAMPLERS
from sfumato.training.state import TrainState
from sfumato.training.step import TrainStep

CONDITIONS = {"labels": Classes(("a", "b", "c")), "size": Numbers(2), "outline": Map(1)}
VECTORS = {name: CONDITIONS[name] for name in ("labels", "size")}
COND = {"labels": torch.tensor([0, 2, -1]), "size": torch.tensor([[0.5, 1.0], [2.0, 0.0], [0.1, 0.2]]), "outline": torch.rand(3, 1, 8, 8)}
KNOTS = sf.Discrete.linear(20).log_snr(torch.arange(1, 21, dtype=torch.float64) / 20)
ATTENTIVE = UNetLayout(channels=(8, 16), attention=(False, True), heads=2, groups=4)
PLAIN = UNetLayout(channels=(8,), attention=(False,), groups=4)
NETS = {
    "mlp": lambda: sf.nets.MLP((2,), width=8, depth=1, conditions=VECTORS),
    "patch-unet": lambda: sf.nets.PatchUNet((1, 8, 8), widths=(8, 16), heads=2, conditions=CONDITIONS),
    "unet": lambda: sf.nets.UNet((1, 8, 8), ATTENTIVE, conditions=CONDITIONS),
    "unet-sinusoids": lambda: sf.nets.UNet((1, 8, 8), PLAIN, features=TimestepSinusoids(8, KNOTS)),
    "unet-timesteps": lambda: sf.nets.UNet((1, 8, 8), PLAIN, features=LearnedTimesteps(8, KNOTS)),
    "dit": lambda: sf.nets.DiT((1, 8, 8), patch=2, width=16, depth=1, heads=2, conditions=VECTORS),
}


@pytest.fixture(autouse=True)
def _single():
    """As in use: a float64 of torch's own choice would be a fault of the test."""
    torch.set_default_dtype(torch.float32)


def far(tensor: torch.Tensor) -> torch.Tensor:
    return runtime.moved(tensor, DEVICE)


def near(value: Any) -> torch.Tensor:
    return value.near.detach() if isinstance(value, FarTensor) else value.detach()


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """The network with no layer at zero, so that everything in it shows."""
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def on_both(f: Any, *modules: torch.nn.Module, waits: int = 0) -> None:
    """f(modules, to where) on the CPU and on the device: the same numbers, and at most so many waits."""
    wanted = f(*modules, lambda tensor: tensor)
    there = [copy.deepcopy(module) for module in modules]
    with Far() as seen:
        there = [module.to(DEVICE) for module in there]
        seen.waits.clear()
        found = f(*there, far)
        assert len(seen.waits) <= waits, seen.waits
    for a, b in zip(found, wanted, strict=True):
        assert isinstance(a, FarTensor)
        torch.testing.assert_close(near(a), near(b), rtol=1e-3, atol=1e-4)


def cond_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: COND[name] for name in net.condition.conditions}


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, sf.v_target) for name in NETS), *(("mlp", target) for target in (sf.eps_target, sf.x0_target, sf.edm_target))],
    ids=label,
)
def test_forward_and_loss_and_gradients_stay_on_the_device(name, target):
    """With levels of a batch, computed on the CPU, and with one of a grid."""
    net = awake(NETS[name]())
    x0, eps, t = torch.randn(3, *net.shape), torch.randn(3, *net.shape), torch.rand(3)

    def f(net, there):
        denoiser, x = sf.Denoiser(net, target, data_std=0.5), there(x0)
        cond = {key: there(value) for key, value in cond_of(net).items()} or None
        one = denoiser(x, sf.Cosine().level(0.4), cond)
        loss = sf.loss.simple(denoiser, x, there(eps), sf.Cosine().level(t, like=x), cond)
        loss.sum().backward()
        return one.x0, one.eps, loss, *(p.grad for p in net.parameters())

    on_both(f, net)


def denoiser(variance: str = "fixed") -> sf.Denoiser:
    net = sf.nets.MLP((2,), width=8, depth=1, conditions=VECTORS, out_channels=4 if variance == "learned" else None)
    return sf.Denoiser(awake(net), sf.v_target, variance=variance)


POINTS = {name: COND[name] for name in VECTORS}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_waits_once(name):
    """After its last step, to see that it was finite; a method that chooses its own steps waits for each of them."""
    model, levels = denoiser("learned" if "learned" in name else "fixed"), sf.grid(sf.Discrete.linear(100), 6)
    noise = torch.randn(3, 2)

    def f(model, there):
        cond = {key: there(value) for key, value in POINTS.items()}
        x = sf.sample(model, there(noise), levels, SAMPLERS[name], cond, generator=row_generators(0, range(3)))
        return (x,)

    on_both(f, model, waits=10_000 if name == "adaptive-sde" else 1)


GUIDES = {
    "classifier-free": lambda p, c: sf.guide.classifier_free(p, 2.0),
    "by name": lambda p, c: sf.guide.classifier_free(p, {"size": 2.0, "labels": 3.0}),
    "classifier": lambda p, c: sf.guide.classifier(sf.guide.unconditional(p), c, 2.0),
    "clip": lambda p, c: sf.guide.clip(p),
    "dynamic clip": lambda p, c: sf.guide.dynamic_clip(p),
    "rescale": lambda p, c: sf.guide.rescale(sf.guide.classifier_free(p, 2.0), p),
    "interval": lambda p, c: sf.guide.interval(sf.guide.classifier_free(p, 2.0), p, -3.0, 3.0),
    "compose": lambda p, c: sf.guide.compose(sf.guide.unconditional(p), [(p, 1.5)]),
}


def classifier() -> torch.nn.Module:
    spec = DataSpec((2,), sf.data.Scaling(shift=0.0, scale=1.0, dtype="float32"), {"labels": CONDITIONS["labels"]}, 1.0)
    return sf.classifier.Classifier(awake(sf.nets.MLP((2,), width=8, depth=1, out_channels=3)), spec, torch.ones(3))


@pytest.mark.parametrize("name", GUIDES)
def test_guidance_waits_for_nothing(name):
    noise, levels = torch.randn(3, 2), sf.grid(sf.Cosine(), 4)

    def f(model, judge, there):
        cond = {key: there(value) for key, value in POINTS.items()}
        cond = {"labels": cond["labels"]} if name == "classifier" else cond
        return (sf.sample(GUIDES[name](model, judge), there(noise), levels, sf.steps.DDIM(), cond),)

    on_both(f, denoiser(), classifier(), waits=1)


def test_what_chooses_its_own_steps_and_what_walks_both_ways():
    x, levels = torch.randn(3, 2), sf.grid(sf.Cosine(), 5)
    start, end = sf.Cosine().level(0.9), sf.Cosine().level(0.1)

    def f(model, there):
        cond, data = {key: there(value) for key, value in POINTS.items()}, there(x)
        up, between = invert(model, data, levels, cond), interpolate(model, data, data.flip(0), 0.3, levels)
        return flow(model, data, start, end, cond, rtol=1e-3, atol=1e-3).x, up, between

    on_both(f, denoiser(), waits=1000)


@pytest.mark.parametrize("kind", ["bound", "flow", "bits", "vdm", "latent"])
def test_likelihoods(kind):
    x, chain = torch.rand(3, 2) * 2 - 1, sf.Discrete.linear(20)
    curve = sf.Cosine(log_snr_max=6.0, log_snr_min=-6.0)

    def f(model, there):
        cond, data = {key: there(value) for key, value in POINTS.items()}, there(x)
        generator = torch.Generator().manual_seed(0)
        if kind == "bound":
            bound = sf.likelihood.vlb(model, data, sf.grid(chain, 5), cond, generator=generator)
            return bound.total, bound.steps
        if kind == "flow":
            density = flow_density(model, data, curve, cond, tolerance=1e-2)
            return density.log_prob, density.step_error
        if kind == "bits":
            return (bits_per_dim(model, data, curve, cond, dequantise=TruncatedNormal(), tolerance=1e-2, generator=generator).total,)
        if kind == "vdm":
            times = torch.Generator().manual_seed(1)
            return (sf.latent.vdm.bound(model, data, curve, cond, draws=2, generator=generator, times=times).total,)
        return (sf.latent.diffusion.density_bits(model, data, curve, cond, generator=generator, times=torch.Generator().manual_seed(1)),)

    on_both(f, denoiser(), waits=10_000)


COMMON = ("training.seed=0", "training.trackers=[]", "runtime.kernels=torch", "runtime.precision=float32", "training.batch=4")
SMALL = ("net.widths=[8, 16]", "net.depth=1", "net.heads=2")
UNET = "net={kind: unet, channels: [8], blocks: 1, attention: [false], groups: 4, dropout: 0.1}"
CHAIN = "schedule={kind: discrete, betas: cosine, steps: 20}"
LEARNED = "sampling={sampler: ancestral-learned, spacing: leading, steps: 10, log_snr_max: null, log_snr_min: null}"
TIMES = "objective.times={kind: importance, history: 2, bins: 10}"
HYBRID = "objective={target: eps, weight: eps, loss: hybrid, variance: learned, values: 17}"
KINDS = {
    "denoiser": ("digits", SMALL, 1),
    "points": ("swiss-roll", ("data.count=100", "net.width=8", "net.depth=1", "objective.times={kind: fitted, bins: 8}"), 1),
    "hybrid": ("digits", (UNET, CHAIN, LEARNED, HYBRID, TIMES), 1),
    "vae": ("vae-digits", ("model.widths=[8]", "model.latents=[4]", "objective.free_nats=0.5"), 1),
    "hierarchical": ("hvae-digits", ("model.width=8", "model.levels=[[0, 2], [1, 2]]"), 1),
    "vdm": ("vdm-digits", (*SMALL, "model.width=8"), 5),  # the schedule's gradients come back to the CPU, where it is
    "autoencoder": ("ldm-digits", ("autoencoder.widths=[8]", "autoencoder.critic_weight=0.1", "autoencoder.critic_width=8"), 1),
    "latent diffusion": ("ldm-digits", SMALL, 1),
    "classifier": ("digits", (), 1),
}


def recipe_and_source(kind: str) -> tuple[Any, Any]:
    """What trains a model of a kind, and on what."""
    name, changes, _ = KINDS[kind]
    recipe = load_recipe(name, [*COMMON, *changes])
    source = recipe.data.load()
    if kind == "autoencoder":
        return recipe.stages(Path("run"))[0].recipe, source
    if kind == "latent diffusion":
        return recipe.stages(Path("run"))[1].recipe, as_source(np.random.default_rng(0).normal(size=(20, 4, 4, 4)).astype(np.float32))
    if kind == "classifier":
        options = {"schedule": recipe.schedule, "net": {"kind": "patch-classifier", "widths": [8, 8]}, "data": recipe.data}
        training = recipe.training.model_copy(update={"label_drop": 0.0, "optimizer": "adamw"})
        return sf.task.recipe_class(sf.tasks.classifier.ClassifierTask)(**options, training=training, runtime=recipe.runtime), source
    return recipe, source


class FarEngine(Engine):
    """This process, on the device."""

    device = property(lambda self: DEVICE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_waits_at_the_guard_alone(kind):
    """And makes the same step as on the CPU; the first one, which measures memory, may wait more."""
    recipe, source = recipe_and_source(kind)
    spec = replace(source.spec, data_std=0.6)
    seen: list[Any] = []
    for engine in (Engine(Engine.begin().accelerator), FarEngine(Engine.begin().accelerator)):
        with Far() as mode, torch.random.fork_rng():
            torch.manual_seed(0)
            model = recipe.build(spec).to(engine.device)
            state = TrainState.begin(recipe, model, recipe.training)
            step = TrainStep(state, source, recipe.training, engine)
            step.size = recipe.training.batch
            losses = [step().loss]
            mode.waits.clear()
            losses.append(step().loss)
            assert len(mode.waits) <= KINDS[kind][2], mode.waits
            seen.append((losses, [near(p) for p in state.net.parameters()], [near(e) for e in state.emas[0].tensors.values()]))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-4)


def test_conditions_and_batches_go_there_without_a_wait():
    with Far() as mode:
        there = to({name: COND[name] for name in CONDITIONS}, DEVICE)
        assert not mode.waits
        assert all(isinstance(one.value, FarTensor) for one in there.values())


def test_faults_are_found():
    """What this file relies on."""
    with Far() as mode:
        x = far(torch.ones(3))
        mode.waits.clear()
        with pytest.raises(AssertionError, match="meets the device"):
            x + torch.ones(3)
        with pytest.raises(AssertionError, match="float64 on the device"):
            x.double()
        assert not mode.waits
        bool(x.any())
        x.cpu()
        x[x > 0]
        assert len(mode.waits) == 3
