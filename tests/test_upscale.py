"""Super-resolution: the condition `low`, the noise on it, the projection onto it, tiles, the command, and the regression beside it."""

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import data
from sfumato.cli import main
from sfumato.condition import Condition
from sfumato.recipe import load_recipe
from sfumato.sampling.tiles import tiled
from sfumato.tasks.upscale import Lowered, augmented, pooled, projected

SMALL = [
    "data={kind: digits}",
    "net={kind: patch-unet, patch: 1, widths: [8, 16], depth: 1, middle: c, heads: 2}",
    "training={steps: 60, batch: 32, warmup: 3, flip: false, log_every: 20, checkpoint_every: 60, held_out: 0.1, drop: {}}",
    "runtime.micro_batch=32",
    "sampling.steps=4",
]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short trainings of a diffusion, a diffusion with augmentation, and a regression."""
    root = tmp_path_factory.mktemp("upscale")
    torch.set_default_dtype(torch.float32)
    for name, changes in {
        "plain": [],
        "projected": ["task.projected=true", "task.augmentation=0.3", "task.sampled_augmentation=0.1"],
        "regression": ["task.kind=regression", "training.rate=1e-3"],
    }.items():
        sf.train(load_recipe("upscale", [*SMALL, *changes]), out=root / name)
    return root


def picture(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_low_is_the_mean_over_areas_as_a_file_would_hold_it_and_is_flipped_with_its_picture():
    source = Lowered(data.digits(), 4)
    draw = sf.Draw(0, 1, 50, slice(0, 50), flip=True)
    batch = source.batch(np.arange(50), draw)
    pixels = (batch.x * 127.5 + 127.5).numpy().reshape(50, 2, 4, 2, 4).mean((2, 4))
    low = batch.cond["low"].value[:, 0].numpy() * 127.5 + 127.5
    assert np.abs(low - pixels).max() <= 0.5 + 1e-3
    assert np.abs(low - low.round()).max() < 1e-3
    assert draw.flips.any()
    assert source.spec.conditions["low"] == sf.Map(1, 127.5, 127.5)


def test_noise_on_low_keeps_the_scale_of_unit_data_and_the_signal_shrinks_as_its_amount_says():
    generator = torch.Generator().manual_seed(0)
    low = Condition(torch.randn(200_000, 1, 1, 1, generator=generator), torch.ones(200_000, dtype=torch.bool))
    noise = torch.randn(low.value.shape, generator=generator)
    for s in (0.0, 0.3, 0.9):
        noisy = augmented(low, torch.full((200_000, 1), s), noise)
        assert float(noisy["low"].value.var()) == pytest.approx(1.0, abs=0.02)
        assert float((noisy["low"].value * low.value).mean()) == pytest.approx(np.sqrt(1 - s * s), abs=0.02)
        assert bool((noisy["augmentation"].value == s).all())


def test_a_projection_has_the_means_of_low_and_changes_nothing_else():
    x, low = torch.randn(3, 2, 8, 12), torch.randn(3, 2, 4, 6)
    nearest = projected(x, low)
    torch.testing.assert_close(pooled(nearest, 2), low)

    def details(each):
        return each - each.reshape(3, 2, 4, 2, 6, 2).mean((3, 5), keepdim=True).expand(3, 2, 4, 2, 6, 2).reshape(x.shape)

    torch.testing.assert_close(details(nearest), details(x))


class ByMap:
    """Predicts the map `low`, its pixels repeated, plus a multiple of x_t: what tiles must put together to the whole."""

    def __call__(self, x_t, level, cond=None):
        low = sf.as_cond(cond)["low"].value
        factor = x_t.shape[-1] // low.shape[-1]
        return sf.Prediction.from_x0(low.repeat_interleave(factor, 2).repeat_interleave(factor, 3) + 0.5 * x_t, x_t, level)


@pytest.mark.parametrize(("size", "overlap"), [((8, 8), 4), ((8, 12), 2), ((8, 8), 0)])
def test_tiles_of_a_local_predictor_make_the_whole_picture(size, overlap):
    x_t, level = torch.randn(2, 1, 22, 26), sf.Cosine().level(0.4, like=torch.empty(2, 1, 1, 1))
    cond = {"low": torch.randn(2, 1, 11, 13)}
    whole, parts = ByMap()(x_t, level, cond), tiled(ByMap(), size, overlap=overlap, align=2)(x_t, level, cond)
    torch.testing.assert_close(parts.x0, whole.x0)
    torch.testing.assert_close(parts.eps, whole.eps)


def test_tiles_are_averaged_with_more_weight_on_their_middles():
    """A predictor that says how far a tile begins from the left: the mean passes from one answer to the next."""

    def place(x_t, level, cond=None):
        return sf.Prediction.from_x0(x_t[..., :1].expand_as(x_t), x_t, level)

    x_t = torch.arange(12.0).expand(1, 1, 8, 12).contiguous()
    x0 = tiled(place, (8, 8), overlap=4)(x_t, sf.Cosine().level(0.5, like=x_t)).x0[0, 0, 3]
    torch.testing.assert_close(x0[:4], torch.zeros(4))
    torch.testing.assert_close(x0[8:], torch.full((4,), 4.0))
    assert bool((x0[4:8].diff() > 0).all())
    assert float(x0[5] + x0[6]) == pytest.approx(4.0)  # the weights of both tiles mirror each other


def test_pictures_are_enlarged_in_tiles_or_alone_the_same_each_time(runs, tmp_path):
    small = picture(tmp_path / "small.png", np.random.default_rng(0).integers(0, 255, (4, 4), dtype=np.uint8))
    large = picture(tmp_path / "large.png", np.random.default_rng(1).integers(0, 255, (6, 9), dtype=np.uint8))
    for i, path in enumerate((small, large)):
        outs = [tmp_path / f"{i}-{again}.png" for again in range(2)]
        for out in outs:
            assert main_ok("upscale", runs / "plain", path, out, "--overlap", 2)
        a, b = (np.asarray(Image.open(out)) for out in outs)
        assert a.shape == tuple(2 * side for side in np.asarray(Image.open(path)).shape)
        assert np.array_equal(a, b)


def main_ok(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code == 0


def test_a_projected_sample_shrinks_to_the_picture_that_was_given(runs, tmp_path):
    pixels = np.random.default_rng(0).integers(30, 220, (4, 4), dtype=np.uint8)
    low = picture(tmp_path / "low.png", pixels)
    model = sf.load(runs / "projected")
    x = model.sampler(sf.Request(range(3), 0, torch.device("cpu"), model.conditions(range(3), cond={"low": str(low)})))
    shrunk = pooled(x, 2) * 127.5 + 127.5
    assert float((shrunk[:, 0] - torch.from_numpy(pixels.astype(np.float32))).abs().max()) < 1e-3
    other = model.sample(3, cond={"low": str(low), "augmentation": [0.3]}).values
    assert not np.array_equal(other, model.sample(3, cond={"low": str(low)}).values)
    assert np.array_equal(model.sample(3, cond={"low": str(low)}, batch=1).values, model.sample(3, cond={"low": str(low)}, batch=3).values)


def test_a_regression_comes_nearer_than_interpolation(runs):
    model = sf.load(runs / "regression")
    recipe = model.recipe
    _, held_out = recipe.divided(recipe.data.load())
    batch = held_out.batch(np.arange(len(held_out)))
    interpolated = torch.nn.functional.interpolate(batch.cond["low"].value, scale_factor=2, mode="bilinear")
    ours = model.network(batch.cond)
    assert float((ours - batch.x).square().mean()) < 0.8 * float((interpolated - batch.x).square().mean())


def test_training_draws_a_sheet_with_the_low_resolution_picture_beside_each(runs):
    for name in ("plain", "regression"):
        sheet = np.asarray(Image.open(runs / name / "samples" / "00000060.png"))
        scale = round(56 / 8)
        assert sheet.shape[1] == 9 * scale * (2 * 8 + 1) + scale


def test_the_doctor_reads_them(runs, capsys):
    plan = sf.doctor.Plan(load_recipe("upscale", SMALL), trial_seconds=0.2)
    assert not {finding.id for finding in sf.doctor.recipe(plan)} & {"options-refused", "data-refused"}
    assert not {finding.id for finding in sf.doctor.run(runs / "plain", samples=8)} & {
        "options-refused",
        "data-refused",
        "samples-not-finite",
    }


def test_what_cannot_be_is_one_sentence(runs, tmp_path, capsys):
    low = picture(tmp_path / "low.png", np.zeros((3, 4), dtype=np.uint8))
    assert "of at least 4 × 4 pixels, got 3 × 4" in fails(capsys, "upscale", runs / "plain", low, tmp_path / "o.png")
    assert "there is no picture or folder" in fails(capsys, "upscale", runs / "plain", tmp_path / "nothing.png", tmp_path / "o.png")
    assert "is written as .png" in fails(capsys, "upscale", runs / "plain", low, tmp_path / "o.jpg")
    assert "is there already" in fails(capsys, "upscale", runs / "plain", low, low)
    assert "enlarges no pictures" in fails(capsys, "upscale", "zoo:digits", low, tmp_path / "o.png")
    assert "without low" in fails(capsys, "sample", runs / "plain", "--out", tmp_path / "s.npz", "--count", 2)
    assert "must divide height and width, got 8 × 8" in fails(
        capsys, "train", "upscale", "--set", SMALL[0], "--set", "task.factor=3", "--out", tmp_path / "r"
    )
    assert "is for images" in fails(capsys, "train", "upscale", "--set", "data={kind: toy, name: moons}", "--out", tmp_path / "r")
    assert not (tmp_path / "o.png").exists()
    assert not (tmp_path / "r").exists()
