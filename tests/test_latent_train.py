"""Recipes of the latent family as runs: they learn, resume to the bit in every stage, load, sample, and refuse what does not fit."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

import sfumato as sf
from sfumato import latent
from sfumato.cli import main
from sfumato.noise import seeded
from sfumato.recipe import load_recipe, recipe_names
from sfumato.storage import CheckpointError, steps_in
from sfumato.tasks import LatentDiffusion, VAETask, VDMTask, autoencoder

TRAINING = {"steps": 6, "batch": 8, "checkpoint_every": 2, "log_every": 2, "warmup": 2, "keep": 10, "trackers": []}
STEM = "ema-0.100"
TREES = {
    "vae": {
        "model": {"kind": "vae", "latents": [3, 2], "widths": [8], "patch": 2, "dropout": 0.1, "hidden": 8, "layers": 1},
        "data": {"kind": "digits"},
        "likelihood": {"kind": "logistic", "values": 17},
        "objective": {"warmup": 4, "free_nats": 0.01},
        "training": TRAINING | {"held_out": 0.1},
    },
    "ladder": {
        "model": {"kind": "ladder", "levels": [[0, 2], [1, 2]], "width": 8, "patch": 1, "dropout": 0.1},
        "data": {"kind": "digits"},
        "likelihood": {"kind": "bernoulli"},
        "training": TRAINING,
    },
    "points": {
        "model": {"kind": "vae", "latents": [2], "hidden": 8, "layers": 1},
        "data": {"kind": "toy", "name": "moons", "count": 100},
        "likelihood": {"kind": "gaussian"},
        "training": TRAINING,
    },
    "vdm": {
        "model": {"kind": "vdm", "log_snr_max": 7.5, "fourier": [3], "values": 17, "width": 4},
        "data": {"kind": "digits"},
        "net": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
        "training": TRAINING,
        "sampling": {"steps": 3},
    },
    "ldm": {
        "model": {"kind": "latent-diffusion"},
        "data": {"kind": "digits"},
        "autoencoder": {"latent": 2, "widths": [8, 8], "patch": 1, "critic_weight": 0.5, "critic_start": 2, "critic_width": 8},
        "autoencoder_training": TRAINING,
        "net": {"kind": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2},
        "training": TRAINING | {"held_out": 0.1, "flip": True},
        "sampling": {"steps": 2},
    },
}
every_kind = pytest.mark.parametrize("name", TREES)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def recipe_of(folder, name, changes=()):
    path = Path(folder) / f"{name}.yaml"
    path.write_text(yaml.safe_dump(TREES[name]))
    return load_recipe(path, changes)


def train(recipe, out, *, resume=False, **calls):
    sf.train(recipe, out=out, resume=resume, callbacks=sf.Callbacks(**calls))
    return out


def steps_of(recipe):
    return sum(each.steps for each in recipe.trainings().values())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One trained run a kind, shared: tests only read them."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("latent")
    return {name: train(recipe_of(folder, name), folder / name) for name in TREES}


def weights(run, step=6):
    folders = [run] if (run / "checkpoints").is_dir() else [run / "autoencoder", run / "diffusion"]
    return {
        f"{folder.name}/{name}": value
        for folder in folders
        for name, value in load_file(folder / "checkpoints" / f"{step:08d}" / f"{STEM}.safetensors").items()
    }


def records(run):
    found = [path.read_text().splitlines() for path in sorted(run.rglob("metrics.jsonl"))]
    return [{k: v for k, v in json.loads(line).items() if "second" not in k and "memory" not in k} for lines in found for line in lines]


@every_kind
@pytest.mark.parametrize("at", [3, 9])
def test_a_stopped_run_ends_in_the_same_bits(runs, tmp_path, name, at):
    """Stopped in whichever stage; the second stop is in the diffusion, of a run that has two."""
    recipe = recipe_of(tmp_path, name)
    if at > steps_of(recipe):
        pytest.skip("this run has no second stage")
    asked = iter([False] * (at - 1) + [True] + [False] * 20)
    with pytest.raises(sf.Stopped, match=f"stopped after step {3 if at in (3, 9) else at} of 6"):
        train(recipe, tmp_path / "cut", should_stop=lambda: next(asked))
    train(recipe, tmp_path / "cut", resume=True)
    ours, theirs = weights(tmp_path / "cut"), weights(runs[name])
    ours = {key.replace("cut/", f"{name}/"): value for key, value in ours.items()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert records(tmp_path / "cut") == records(runs[name])


@every_kind
def test_a_run_is_loaded_and_sampled(runs, name):
    """The i-th sample does not depend on the batch, and a share is a share."""
    run = sf.load(runs[name])
    shape = (2,) if name == "points" else (8, 8, 1)
    whole = run.sample(5, seed=3, batch=5)
    cut = run.sample(5, seed=3, batch=2)
    assert whole.values.shape == (5, *shape)
    assert np.abs(whole.values.astype(float) - cut.values.astype(float)).max() <= (1e-5 if name == "points" else 1)
    share = run.sample(5, seed=3, batch=5, rows=slice(2, 4))
    assert np.abs(whole.values[2:4].astype(float) - share.values.astype(float)).max() <= (1e-5 if name == "points" else 1)
    assert (runs[name] / "samples" / "00000006.png").is_file()


@every_kind
def test_the_networks_of_a_run_are_all_that_it_samples_with(runs, name):
    """So that whoever tells them how to compute (the kernels) leaves none out."""
    run, ran = sf.load(runs[name]), []
    hook = register_module_forward_hook(lambda module, given, out: ran.append(module))
    run.sample(2)
    hook.remove()
    weighty = {module for module in ran if any(True for _ in module.parameters(recurse=False))}
    assert len(weighty) > 1
    assert weighty <= set(run.network.modules())


@every_kind
def test_a_run_repeats_from_its_own_recipe(runs, tmp_path, name):
    recipe = load_recipe(runs[name] / "recipe.yaml")
    assert recipe == recipe_of(tmp_path, name)
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train(recipe, runs[name])
    other = recipe_of(tmp_path, name, ["training.batch=4"])
    with pytest.raises(ValueError, match=r"training\.batch: 8 → 4"):
        train(other, runs[name], resume=True)


def test_the_bound_is_logged_level_by_level(runs):
    (line,) = [record for record in records(runs["vae"]) if record["step"] == 6]
    run = sf.load(runs["vae"])
    _, held_out = run.recipe.divided(run.recipe.data.load())
    x0 = held_out.batch(np.random.default_rng(0).permutation(len(held_out))[:200]).x
    bound = latent.bound(run.network, x0, generator=seeded(0, 0))
    assert line["bits_per_dim"] == pytest.approx(float(bound.total.mean()), rel=1e-6)
    nats = [line["nats_2"], line["nats_1"]]
    assert nats == pytest.approx([64 * math.log(2) * float(part.mean()) for part in (bound.prior, bound.steps[:, 0])], rel=1e-5)
    assert len(latent.level_use(run.network, torch.zeros(4, 1, 8, 8))) == 2


@pytest.mark.parametrize("name", ["vae", "ladder"])
def test_dropout_acts_in_training_alone(runs, name):
    """The same weights without dropout say the same of x, but not while they are trained."""
    run, x0 = sf.load(runs[name]), sf.data.digits().batch(np.arange(4)).x
    plain = run.recipe.model_copy(update={"model": run.recipe.model.model_copy(update={"dropout": 0.0})})
    alike = plain.build(run.spec).eval()
    alike.net.load_state_dict(run.network.net.state_dict())
    said = [model.decode(model.encode(x0)) for model in (run.network, alike)]
    assert torch.equal(*said)
    run.network.train()
    assert not torch.equal(run.network.decode(run.network.encode(x0)), said[1])


def test_the_schedules_ends_are_logged_and_move(runs):
    lines = records(runs["vdm"])
    assert lines[-1]["log_snr_max"] != 7.5
    run = sf.load(runs["vdm"])
    average = load_file(runs["vdm"] / "checkpoints" / "00000006" / f"{STEM}.safetensors")
    assert run.schedule.log_snr_max == average["schedule.log_snr_max"]
    level = run.schedule.level(0.0)
    assert float(level.log_snr) == pytest.approx(float(average["schedule.log_snr_max"]))
    bits = latent.vdm.bound(run.predictor, torch.zeros(2, 1, 8, 8), run.schedule, bin_width=2 / 16, draws=2).total
    assert bits.isfinite().all()


def test_warming_up_charges_less_at_first(tmp_path):
    """With a warm-up as long as a life the divergence is free; the first losses differ by it alone."""
    seen = {}
    for warmup in (0, 10**6):
        recipe = recipe_of(tmp_path, "vae", [f"objective={{warmup: {warmup}}}", "training.steps=1", "model.latents=[3]"])
        train(recipe, tmp_path / str(warmup), on_step=lambda step, loss, w=warmup: seen.setdefault(w, loss))
    assert seen[0] > seen[10**6]


def test_a_collapsed_level_is_said_at_the_end(tmp_path):
    said = []
    train(recipe_of(tmp_path, "ladder", ["training.steps=1", "objective={beta: 1000}"]), tmp_path / "run", on_message=said.append)
    assert any("level 1 has collapsed" in sentence for sentence in said)


def test_a_vae_run_reconstructs_and_walks(runs):
    run = sf.load(runs["vae"])
    values = sf.data.digits().values[:3]
    assert run.reconstruct(values).shape == values.shape
    way = run.sampler.interpolate(values[0], values[1], 4)
    ends = run.reconstruct(values[:2])
    assert np.abs(way[[0, -1]].astype(int) - ends.astype(int)).max() <= 1
    with pytest.raises(ValueError, match=r"needs model\.kind=vae"):
        sf.load(runs["ladder"]).sampler.plane()


def test_a_plane_is_drawn(tmp_path):
    run = sf.load(train(recipe_of(tmp_path, "vae", ["model.latents=[2]", "training.steps=1"]), tmp_path / "run"))
    picture = run.sampler.plane(5)
    assert picture.width > 5 * 8
    assert picture.width == picture.height


@pytest.mark.usefixtures("unchecked")
def test_a_vae_learns(tmp_path):
    """On digits: below what the best law without latents could say, pixel by pixel."""
    changes = ["training={steps: 150, batch: 64, rate: 0.003, log_every: 150, checkpoint_every: 150}", "model.latents=[8]"]
    run = sf.load(train(recipe_of(tmp_path, "vae", [*changes, "objective={warmup: 50}", "model.widths=[16]"]), tmp_path / "run"))
    x0 = sf.data.digits().batch(np.arange(300)).x
    counts = torch.stack([((x0 * 8 + 8).round() == v).double().mean(0) for v in range(17)])
    alone = float(-torch.special.xlogy(counts, counts).sum(0).mean() / math.log(2))
    assert float(latent.bound(run.network, x0, generator=torch.Generator().manual_seed(0)).total.mean()) < alone + 0.35
    assert not latent.level_use(run.network, x0)[0].is_collapsed


def test_the_stages_of_latent_diffusion_lie_in_its_folder(runs):
    out = runs["ldm"]
    assert {"recipe.yaml", "manifest.json", "latents.npz", "latent.json", "autoencoder", "diffusion", "samples"} <= {
        p.name for p in out.iterdir()
    }
    run, inner = sf.load(out), sf.load(out / "diffusion")
    assert run.network.latents == inner.spec
    assert inner.spec.shape == (2, 4, 4)
    with np.load(out / "latents.npz") as latents:
        values, labels = latents["arr_0"], latents["arr_1"]
    kept = len(sf.data.digits().split(0.1, 0)[0])
    assert len(values) == len(labels) == 2 * kept  # both flips, none that is held out
    assert values.mean() == pytest.approx(0, abs=0.2)
    assert values.std() == pytest.approx(1, abs=0.2)
    assert (labels[:kept] == labels[kept:]).all()


def test_latents_are_those_of_their_images(runs):
    """Row for row: the file's latents decode to what the autoencoder makes of the images, and of their mirror images."""
    run = sf.load(runs["ldm"])
    examples = sf.data.digits().split(0.1, 0)[0]
    x0 = examples.batch(np.arange(40)).x
    with np.load(runs["ldm"] / "latents.npz") as latents:
        values = torch.from_numpy(latents["arr_0"])
    law = run.network.autoencoder.posterior(x0)
    shift, scale = run.network.autoencoder.scaling.shift, run.network.autoencoder.scaling.scale
    apart = (values[:40] * scale + shift - law.mean) / (law.log_variance / 2).exp()
    assert apart.square().mean() == pytest.approx(1, abs=0.1)
    mirrored = run.network.autoencoder.posterior(x0.flip(-1))
    apart = (values[len(examples) : len(examples) + 40] * scale + shift - mirrored.mean) / (mirrored.log_variance / 2).exp()
    assert apart.square().mean() == pytest.approx(1, abs=0.1)


def test_samples_are_decoded_latents(runs):
    run = sf.load(runs["ldm"])
    inner = sf.load(runs["ldm"] / "diffusion").sample(3, labels=[1, 2], guidance=2.0)
    ours = run.sample(3, labels=[1, 2], guidance=2.0)
    assert np.array_equal(ours.values, run.spec.codec.decode(run.sampler.decode(torch.from_numpy(inner.values))))
    assert np.array_equal(ours.labels, [1, 2, 1])
    with pytest.raises(ValueError, match=r"do not fit the autoencoder .*, whose latent has shape \(2, 4, 4\)"):
        run.sampler.decode(torch.zeros(1, 3, 4, 4))


def test_a_bound_through_both_stages(runs):
    run = sf.load(runs["ldm"])
    some = sf.data.digits().batch(np.arange(6))
    bound = run.sampler.bound(some.x, some.cond)
    assert bound.total.shape == (6,)
    assert bound.total.isfinite().all()
    assert (bound.reconstruction > 0).all()
    coarse = run.sampler.bound(some.x, some.cond, values=17)  # a grey of 17 holds some sixteen bytes
    saved = bound.reconstruction - coarse.reconstruction
    assert (saved > 1).all()
    assert (saved <= math.log2(255 / 16) + 0.1).all()
    assert torch.equal(coarse.latent, bound.latent)


def test_an_autoencoder_whose_latent_follows_nothing_is_warned_of(runs, caplog):
    model = sf.load(runs["ldm"]).network.autoencoder
    autoencoder.measured(model, sf.data.digits())
    assert "Posterior collapse" not in caplog.text
    torch.nn.init.zeros_(model.encoder.outward.weight)
    autoencoder.measured(model, sf.data.digits())
    assert "Posterior collapse: only" in caplog.text


def test_a_bound_does_not_hang_on_where_a_latent_is_scaled(runs):
    """z = 0.4 + 1.5 (0.3 + 0.5 x) is x scaled once by 0.85 and 0.75: the autoencoder's scaling and the run's are one map."""
    run = sf.load(runs["ldm"])
    some = sf.data.digits().batch(np.arange(4))

    scaling = lambda shift, scale: sf.data.Scaling(shift=shift, scale=scale, dtype="float32")  # noqa: E731

    def bits(outer, inner):
        run.network.autoencoder.scaling = scaling(*outer)
        latents = replace(run.sampler.inner, spec=replace(run.sampler.inner.spec, codec=scaling(*inner)))
        return replace(run.sampler, inner=latents).bound(some.x, some.cond).total

    assert torch.allclose(bits((0.4, 1.5), (0.3, 0.5)), bits((0.85, 0.75), (0.0, 1.0)), rtol=1e-5)


def test_a_ready_autoencoder_takes_the_place_of_the_stage(runs, tmp_path):
    recipe = recipe_of(tmp_path, "ldm", [f"model.path={runs['ldm'] / 'autoencoder'}"])
    assert steps_of(recipe) == 6
    out = train(recipe, tmp_path / "run")
    assert not (out / "autoencoder").exists()
    assert all(torch.equal(a, b) for a, b in zip(weights_of(out / "diffusion"), weights_of(runs["ldm"] / "diffusion"), strict=True))


def weights_of(run):
    return list(load_file(run / "checkpoints" / "00000006" / f"{STEM}.safetensors").values())


def test_diffusers_autoencoder_is_the_first_stage(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=2, scaling_factor=0.5,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    run = sf.load(train(recipe_of(tmp_path, "ldm", [f"model.path={tmp_path / 'theirs'}"]), tmp_path / "run"))
    assert run.network.autoencoder.scaling.scale == 2.0
    assert run.sample(2).values.shape == (2, 8, 8, 1)


def test_an_autoencoder_for_other_data_is_refused(runs, tmp_path):
    """Before anything is written: another range, other channels."""
    path = runs["ldm"] / "autoencoder"
    rng = np.random.default_rng(0)
    np.save(tmp_path / "floats.npy", rng.standard_normal((20, 1, 8, 8)).astype(np.float32))
    np.save(tmp_path / "colours.npy", rng.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8))
    for file, message in (
        ("floats", "the data range of the autoencoder .* differs"),
        ("colours", "takes images with 1 channels, the data have shape"),
    ):
        recipe = recipe_of(tmp_path, "ldm", [f"model.path={path}", f"data={{kind: array, path: {tmp_path / file}.npy}}"])
        with pytest.raises(ValueError, match=message):
            train(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_run_that_is_no_autoencoder_is_refused_by_its_kind(runs, tmp_path):
    inside = re.escape(str(runs["ldm"] / "autoencoder"))
    messages = {
        "vae": r"vae is a VAE, not an autoencoder; name a run of kind autoencoder",
        "ldm": f"is latent diffusion, not an autoencoder; use the one inside it, {inside}",
        "ldm/diffusion": "is a diffusion model, not an autoencoder",
    }
    for name, message in messages.items():
        path = runs["ldm"].parent / name
        with pytest.raises(ValueError, match=message):
            train(recipe_of(tmp_path, "ldm", [f"model.path={path}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_alone_is_trained_and_not_sampled(tmp_path):
    tree = {"model": TREES["ldm"]["autoencoder"] | {"kind": "autoencoder"}, "data": {"kind": "digits"}, "training": TRAINING}
    (tmp_path / "ae.yaml").write_text(yaml.safe_dump(tree))
    seen = []

    def features(x):
        seen.append(x.shape)
        return [x]

    recipe = load_recipe(tmp_path / "ae.yaml").model_copy(update={"features": features})
    out = train(recipe, tmp_path / "run")
    assert sum(len(size) == 4 and size[0] == 8 for size in seen) == 12  # beside the few by which memory is foreseen
    run = sf.load(out)
    assert run.network.residual > 0
    values = sf.data.digits().values[:3]
    assert run.reconstruct(values).shape == values.shape
    with pytest.raises(ValueError, match=f"an autoencoder alone cannot be sampled.* --set model.path={re.escape(str(out))}"):
        run.sample(2)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "vae",
            ["likelihood={kind: bernoulli}", "data={kind: toy, name: moons, count: 50}"],
            r"Bernoulli likelihood is for data in \[0, 1\]",
        ),
        ("vae", ["data={kind: toy, name: moons, count: 50}"], "discretised logistic likelihood is for data in"),
        ("ladder", ["data={kind: toy, name: moons, count: 50}", "likelihood={kind: gaussian}"], "a ladder is for images"),
        ("ladder", ["model.levels=[[1, 2], [0, 2]]"], "none is finer than the one below"),
        ("vdm", ["data={kind: toy, name: moons, count: 50}"], "a vdm needs images"),
        ("vdm", ["data={kind: fashion-small}"], "model.values is 17, but the data are up to .* set model.values=256 for bytes"),
        ("vae", ["data={kind: fashion-small}"], "likelihood.values is 17, but the data are up to"),
        ("ldm", ["data={kind: toy, name: moons, count: 50}"], "an autoencoder needs images"),
        ("ldm", ["sampling.spacing=leading"], "spacing.leading needs the steps of a chain"),
        ("vdm", ["sampling.spacing=leading"], "spacing.leading needs the steps of a chain"),
    ],
    ids=[
        "bernoulli on points",
        "logistic on points",
        "ladder on points",
        "levels",
        "vdm on points",
        "vdm of other values",
        "vae of other values",
        "ldm on points",
        "ldm with the spacing of a chain",
        "vdm with the spacing of a chain",
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        train(recipe_of(tmp_path, name, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vae", ["runtime.precision=bfloat16"], r"bfloat16 is too coarse for a likelihood bound; set runtime\.precision=float32"),
        ("vae", ["model.widths=[12]"], "multiples of its 8 groups"),
        ("vae", ["model.latnets=[2]"], r"did you mean model\.latents\?"),
        ("vdm", ["model.log_snr_max=-9"], "log_snr_min < log_snr_max"),
        ("vdm", ["sampling.log_snr_max=5"], "a learned schedule has its own ends"),
        ("ldm", ["autoencoder_training.held_out=0.5"], r"set training\.held_out"),
        ("ldm", ["model.tile=2"], r"model\.tile got 2"),
        ("ldm", ["model.kind=latent-difusion"], "latent-diffusion"),
    ],
    ids=lambda v: "" if isinstance(v, str) else v[0],
)
def test_options_that_do_not_fit_get_a_sentence(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(tmp_path, name, changes)


def test_a_bound_is_computed_in_float32_where_nothing_else_is_asked_for(tmp_path, monkeypatch):
    """On a processor that multiplies bfloat16, too."""
    monkeypatch.setattr("sfumato.runtime.multiplies_bfloat16", lambda: True)
    changes = ["training.steps=1", "runtime.precision=auto"]
    precision = [
        json.loads((train(recipe_of(tmp_path, name, changes), tmp_path / name) / "manifest.json").read_text())["precision"]
        for name in ("vae", "vdm")
    ]
    assert precision == ["float32", "float32"]


def test_an_unknown_kind_names_the_nearest(tmp_path):
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(TREES["vae"] | {"model": {"kind": "vea"}}))
    with pytest.raises(ValueError, match=r'there is no model\.kind "vea"; did you mean vae\?'):
        load_recipe(tmp_path / "odd.yaml")


@pytest.mark.parametrize("scale", ["0", "NaN"])
def test_a_scale_of_zero_or_nan_stops_a_load(runs, tmp_path, scale):
    import shutil

    shutil.copytree(runs["ldm"], tmp_path / "run")
    (tmp_path / "run" / "latent.json").write_text(f'{{"scaling": {{"shift": 0, "scale": {scale}, "dtype": "float32"}}, "residual": 1}}')
    with pytest.raises(CheckpointError, match=r"latent\.json is missing or damaged \(the scale of a Scaling must be positive"):
        sf.load(tmp_path / "run")


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.split("-")[0] in ("vae", "hvae", "hvae2", "vdm", "ldm")])
def test_shipped_recipes_of_the_family_build(name):
    recipe = load_recipe(name, ["data.path=DATA"] if name in ("ldm", "ldm-flowers") else [])
    assert recipe.about
    size = 64 if name in ("ldm", "ldm-flowers") else 28 if name.endswith("fashion") else 8
    labels = {"labels": sf.Classes(("a", "b"))}
    spec = sf.DataSpec((3 if size == 64 else 1, size, size), sf.data.IMAGES, labels, 0.5)
    if isinstance(recipe, VAETask | VDMTask):
        recipe.build(spec)
    else:
        assert isinstance(recipe, LatentDiffusion)
        shape = recipe.autoencoder.build(spec).latent_shape(spec.sizes)
        assert math.prod(shape) <= math.prod(spec.sizes) / 2
        recipe.net.build(shape, labels)


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_the_commands_train_and_sample_every_kind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vae", "ldm"):
        recipe_of(tmp_path, name)
        code, out, _ = call("train", f"{name}.yaml", "--steps", "8", capsys=capsys)
        assert (code, "Done" in out) == (0, True)
        assert call("sample", f"runs/{name}", "--out", f"{name}.png", "--count", "4", capsys=capsys)[0] == 0
        assert Image.open(f"{name}.png").width > 8
    assert call("sample", "runs/ldm", "--out", "ldm.gif", "--count", "2", "--steps", "3", capsys=capsys)[0] == 0
    assert Image.open("ldm.gif").n_frames >= 2
    code, _, err = call("sample", "runs/vae", "--out", "x.png", "--steps", "3", capsys=capsys)
    assert (code, "a VAE does not support steps; remove it" in err) == (2, True)
    code, _, err = call("sample", "runs/vae", "--out", "x.gif", capsys=capsys)
    assert (code, "sampled in one pass" in err) == (2, True)
    code, _, err = call("sample", "runs/ldm", "--out", "x.gif", "--forward", capsys=capsys)
    assert (code, "adds noise to latents" in err) == (2, True)
    code, out, _ = call("recipes", capsys=capsys)
    assert code == 0
    assert "vae-fashion" in out


@pytest.mark.parametrize(("whole", "stages"), [(24, (16, 8)), (18, (12, 6)), (3, (2, 1)), (2, (1, 1)), (180, (120, 60))])
def test_the_steps_of_two_stages_are_shared_as_their_own_are(tmp_path, whole, stages):
    (tmp_path / "ldm.yaml").write_text(yaml.safe_dump(TREES["ldm"] | {"autoencoder_training": TRAINING | {"steps": 12}}))
    recipe = load_recipe(tmp_path / "ldm.yaml", steps=whole)
    assert tuple(stage.steps for stage in recipe.trainings().values()) == stages
    assert steps_of(recipe) == whole
    with pytest.raises(ValueError, match="for both stages together, so it must be at least 2, got 1"):
        load_recipe(tmp_path / "ldm.yaml", steps=1)
    given = load_recipe(tmp_path / "ldm.yaml", ["model.path=somewhere"], steps=whole)
    assert (steps_of(given), given.training.steps) == (whole, whole)


def test_the_second_stage_of_a_latent_run_is_made_longer_and_the_first_is_not(tmp_path):
    """The latents are those of the first stage as it was."""
    run, said = train(recipe_of(tmp_path, "ldm"), tmp_path / "run"), list[str]()
    latents, before = (run / "latents.npz").read_bytes(), weights(run)
    with pytest.raises(ValueError, match=r"autoencoder_training\.steps: 6 → 8\); keep the steps of the first stage"):
        train(recipe_of(tmp_path, "ldm", ["autoencoder_training.steps=8", "training.steps=8"]), run, resume=True)
    train(recipe_of(tmp_path, "ldm", ["training.steps=8"]), run, resume=True, on_message=said.append)
    assert (run / "latents.npz").read_bytes() == latents
    assert steps_in(run / "autoencoder" / "checkpoints")[-1] == 6
    assert steps_in(run / "diffusion" / "checkpoints")[-1] == 8
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    assert len([sentence for sentence in said if "continues from step 6 to 8" in sentence]) == 1
    assert load_recipe(run / "recipe.yaml").training.steps == 8
    assert sf.load(run).sample(2, steps=2).values.shape == (2, 8, 8, 1)


def test_an_autoencoder_made_longer_is_measured_anew(tmp_path):
    tree = {"model": {"kind": "autoencoder", "latent": 2, "widths": [8]}, "data": {"kind": "digits"}, "training": TRAINING}
    (tmp_path / "ae.yaml").write_text(yaml.safe_dump(tree))
    short, long = (load_recipe(tmp_path / "ae.yaml", steps=steps) for steps in (4, 8))
    run = train(short, tmp_path / "run")
    first = (run / "latent.json").read_text()
    train(short, run, resume=True)
    assert (run / "latent.json").read_text() == first
    train(long, run, resume=True)
    model = sf.load(run).network
    kept = model.residual
    assert kept == pytest.approx(autoencoder.measured(model, sf.data.digits()).residual, rel=1e-6)
    assert (run / "latent.json").read_text() != first
