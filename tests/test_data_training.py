"""From a user's files to samples in the same form: what training says of the data, and what samples are written as."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import train
from test_data_images import png_of_16_bits

import sfumato as sf
from sfumato import DataSpec, Samples, load_recipe
from sfumato.cli import main
from sfumato.data import folder, table
from sfumato.training.prepare import prepare

SHORT = ["training.steps=2", "training.batch=16", "training.checkpoint_every=2", "training.trackers=[]", "training.warmup=0"]
SMALL = [*SHORT, "net={kind: mlp, width: 8, depth: 1, waves: 4}", "sampling.steps=2"]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def arrays(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    return [f"data={{kind: array, path: {tmp_path / 'a.npy'}}}"]


def opened(recipe, out, **options):
    said = []
    return prepare(recipe, recipe.data.load(), out, on_message=said.append, made_from={}, **{"resume": False, **options}), said


def sample(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", *map(str, arguments)])
    return stopped.value.code


def test_training_says_that_channels_seem_last_and_that_rows_were_dropped(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 6, 5, 3))
    values[3] = np.nan
    here = [*arrays(tmp_path, values), "data.missing=drop", *SMALL]
    said = []
    train(load_recipe("toy", here), tmp_path / "first", on_message=said.append)
    assert any("are read with 6 channels" in text and "data.channels=last" in text for text in said)
    assert any("left out 1 of 20 rows with NaN" in text for text in said)
    start, said = opened(load_recipe("toy", [*here, "data.channels=last"]), tmp_path / "mended")
    assert start.spec.shape == (3, 6, 5)
    assert not any("channels" in text for text in said)


def test_a_block_is_held_out_and_the_rest_measured(tmp_path):
    values = np.arange(100.0)[:, None] * [1, 2]
    block = ["training.held_out=0.25", "training.held_out_by=block"]
    start, _ = opened(load_recipe("toy", [*arrays(tmp_path, values), *block]), tmp_path / "run")
    assert start.held_out is not None
    np.testing.assert_array_equal(start.held_out.values, values[75:])
    np.testing.assert_allclose(start.spec.codec.shift, values[:75].mean(0))
    np.testing.assert_allclose(start.spec.codec.scale, values[:75].std(0))
    assert json.loads(start.texts["manifest.json"])["data"]["held_out_by"] == "block"


def test_a_run_goes_on_with_the_scaling_that_it_began_with(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 2, 6)) * np.array([[1.0], [9.0]])
    recipe, out = load_recipe("toy", [*arrays(tmp_path, values), *SMALL]), tmp_path / "run"
    train(recipe, out)
    manifest = json.loads((out / "manifest.json").read_text())
    scaling = {"shift": 1.0, "scale": 2.0, "dtype": "float32"}  # as version 0.1 wrote it
    manifest["form"] = {"shape": [2, 6], "classes": [], "scaling": scaling, "data_std": manifest.pop("spec")["data_std"]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    start, said = opened(recipe, out, resume=True)
    assert any("keep the scaling of the run in" in text for text in said)
    torch.testing.assert_close(start.examples.batch(np.arange(40)).x.double().numpy(), (values - 1) / 2, check_dtype=False)
    run = sf.load(out)
    assert run.sample(3).values.dtype == np.float32
    assert run.spec == DataSpec.from_json(manifest["form"])


def test_samples_of_a_table_come_back_as_a_table(tmp_path):
    seconds = 1.7e9 + np.arange(0, 60, 0.5)
    rows = [f"{t!r},{'early' if i < 60 else 'late'},{i / 7}" for i, t in enumerate(seconds.tolist())]
    (tmp_path / "log.csv").write_text("\n".join(["time,part,speed", *rows]))
    recipe = load_recipe("table", [f"data.path={tmp_path / 'log.csv'}", "data.label=part", *SMALL])
    train(recipe, tmp_path / "run")
    assert sample(tmp_path / "run", "--out", tmp_path / "s.csv", "--count", 30) == 0
    drawn = table(tmp_path / "s.csv", label="part")
    assert (tmp_path / "s.csv").read_text().startswith("time,speed,part\n")
    assert (drawn.columns, drawn.classes) == (("time", "speed"), ("early", "late"))
    # Two steps have taught nothing: x0 is about unit noise, and the values keep the fractions of a second that float32 has not.
    np.testing.assert_allclose(drawn.values[:, 0], seconds.mean(), atol=10 * seconds.std())
    assert len(np.unique(drawn.values[:, 0])) == 30
    assert sample(tmp_path / "run", "--out", tmp_path / "s.npz", "--count", 30) == 0
    with np.load(tmp_path / "s.npz") as file:
        assert file["columns"].tolist() == ["time", "speed"]
        np.testing.assert_array_equal(file["arr_0"], drawn.values)
    run = sf.load(tmp_path / "run")
    np.testing.assert_array_equal(run.sample(30).values, drawn.values)


def test_points_have_a_csv_and_images_none(tmp_path, capsys):
    assert sample("zoo:digits", "--out", tmp_path / "s.csv") == 2
    assert "a CSV holds rows of numbers, but these samples are not" in " ".join(capsys.readouterr().err.split())
    train(load_recipe("moons", SMALL), tmp_path / "run")
    assert sample(tmp_path / "run", "--out", tmp_path / "s.csv", "--count", 5) == 0
    drawn = table(tmp_path / "s.csv")
    assert drawn.columns == ("x1", "x2")
    np.testing.assert_array_equal(drawn.values.astype(np.float32), sf.load(tmp_path / "run").sample(5).values)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_images_come_back_with_16_bits(tmp_path, channels):
    levels = np.random.default_rng(0).integers(300, 4096, (20, 8, 8, channels))
    (tmp_path / "images").mkdir()
    for i, image in enumerate(levels):
        (tmp_path / "images" / f"{i:02d}.png").write_bytes(png_of_16_bits(image))
    net = "net={kind: patch-unet, patch: 2, widths: [8, 8], depth: 1, middle: c, heads: 1}"
    train(load_recipe("folder", [f"data.path={tmp_path / 'images'}", "data.size=8x8", *SHORT, net]), tmp_path / "run")
    samples = sf.load(tmp_path / "run").sample(4, steps=2)
    assert samples.values.dtype == np.uint16
    assert 300 < np.median(samples.values) < 4096  # bytes would lie below 256
    samples.save(tmp_path / "drawn")
    np.testing.assert_array_equal(folder(tmp_path / "drawn").values, samples.values)
    samples.save(tmp_path / "s.npz")
    np.testing.assert_array_equal(sf.data.npz(tmp_path / "s.npz").values, samples.values)
    samples.save(tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        shown = np.asarray(sheet.convert("RGB"))
    assert shown[(shown != 224).any(axis=2)].max() > 150  # between the lines; twelve bits of sixteen would show black


def test_floats_of_four_axes_are_no_pngs(tmp_path):
    samples = Samples(np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(ValueError, match="only images can be written as a folder of PNGs"):
        samples.save(tmp_path / "drawn")


@pytest.mark.usefixtures("unchecked")
def test_the_recipe_signals_learns_the_frequency_of_its_signals(tmp_path):
    rng = np.random.default_rng(0)
    signals = np.sin(2 * np.pi * 2 * np.arange(16) / 16 + rng.uniform(0, 2 * np.pi, (500, 1))) * 40 + 1000
    np.save(tmp_path / "a.npy", signals)
    small = ["net={channels: [16], attention: [false], middle: [true], heads: 2}", "training.trackers=[]", "training.batch=32"]
    short = ["training.steps=60", "training.warmup=5", "training.log_every=60", "training.rate=0.005"]
    recipe = load_recipe("signals", [f"data.path={tmp_path / 'a.npy'}", *small, *short])
    train(recipe, tmp_path / "run")
    drawn = sf.load(tmp_path / "run").sample(64, steps=10).values
    assert drawn.shape == (64, 1, 16)
    power = np.abs(np.fft.rfft(drawn[:, 0] - 1000, axis=1)) ** 2
    assert power[:, 2].sum() > 0.5 * power.sum()  # noise would have an eighth there
    np.testing.assert_allclose(drawn.std(), 40 / np.sqrt(2), rtol=0.25)


def test_the_recipe_volumes_takes_volumes(tmp_path):
    volumes = np.random.default_rng(0).normal(300, 5, (20, 4, 6, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", volumes)
    net = "net={patch: 2, width: 12, depth: 1, heads: 2}"
    train(load_recipe("volumes", [f"data.path={tmp_path / 'a.npy'}", *SHORT, net]), tmp_path / "run")
    drawn = sf.load(tmp_path / "run").sample(8, steps=2).values
    assert drawn.shape == (8, 1, 4, 6, 8)
    np.testing.assert_allclose(drawn.mean(), 300, atol=5)
    other = "net={kind: unet, channels: [8], attention: [false]}"
    with pytest.raises(ValueError, match=r"UNet takes .*, got shape \(1, 4, 6, 8\); for points use MLP, for volumes DiT"):
        train(load_recipe("volumes", [f"data.path={tmp_path / 'a.npy'}", *SHORT, other]), tmp_path / "unet")
