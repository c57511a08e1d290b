"""Models that are made in stages: each stage a run of its own, made from the weights of those before it."""

import json
import shutil

import numpy as np
import pytest
import torch

import sfumato as sf

SMALL = [
    "autoencoder={latent: 2, widths: [8, 8], patch: 1, attention: false}",
    "autoencoder_training={steps: 4, batch: 16, warmup: 1, trackers: []}",
    "net={kind: patch-unet, patch: 1, widths: [8, 8], heads: 2, depth: 1}",
    "training={steps: 4, batch: 16, warmup: 1, held_out: 0.1, trackers: []}",
    "sampling.steps=2",
]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    out = tmp_path_factory.mktemp("pipeline") / "run"
    sf.train(sf.load_recipe("ldm-digits", SMALL), out=out)
    return out


def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def retrained(folder):
    """The autoencoder of a run, trained anew from another seed, and nobody is told."""
    before = (folder / "autoencoder" / "recipe.yaml").read_text()
    recipe = sf.load_recipe(folder / "autoencoder" / "recipe.yaml", ["training.seed=1"])
    shutil.rmtree(folder / "autoencoder")
    sf.train(recipe, out=folder / "autoencoder")
    (folder / "autoencoder" / "recipe.yaml").write_text(before)


def test_a_later_stage_knows_the_weights_it_was_made_from(run):
    made_from = json.loads((run / "diffusion" / "manifest.json").read_text())["made_from"]
    assert made_from == {"autoencoder": sf.storage.weights_fingerprint(sf.load(run / "autoencoder").network)}


def test_a_composite_is_one_model(run):
    model = sf.load(run)
    assert model.sample(3).values.shape == (3, 8, 8, 1)
    assert model.reconstruct(model.sample(3).values).dtype == np.uint8
    assert model.schedule is not None


def test_a_stage_trained_anew_makes_the_later_one_refuse_to_load(run, tmp_path):
    folder = copied(run, tmp_path)
    retrained(folder)
    with pytest.raises(
        ValueError, match=r"diffusion was made from other weights of autoencoder than the present ones .* delete .*diffusion"
    ):
        sf.load(folder)


def test_a_stage_trained_anew_makes_the_later_one_refuse_to_go_on(run, tmp_path):
    folder = copied(run, tmp_path)
    retrained(folder)
    longer = sf.load_recipe("ldm-digits", [*SMALL, "training.steps=6"])
    with pytest.raises(ValueError, match="was made from other weights of autoencoder|were encoded with other weights"):
        sf.train(longer, out=folder, resume=True)


def test_a_stage_goes_on_where_it_was_stopped(run, tmp_path):
    seen = []
    stops = iter([False] * 5 + [True])  # in the second stage
    recipe, out = sf.load_recipe("ldm-digits", SMALL), tmp_path / "parts"
    with pytest.raises(sf.Stopped):
        sf.train(recipe, out=out, callbacks=sf.Callbacks(should_stop=lambda: next(stops), on_step=lambda step, loss: seen.append(step)))
    assert seen == [1, 2, 3, 4, 5, 6]
    sf.train(recipe, out=out, resume=True)
    for stage in ("autoencoder", "diffusion"):
        ours, theirs = (folder / stage / "checkpoints" / "00000004" / "model.safetensors" for folder in (out, run))
        assert ours.read_bytes() == theirs.read_bytes()
