"""`sf.restore` and `sfumato restore`: draws of their own, nothing changed in place, one sentence for what cannot be, and the files."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import restoration
from sfumato.cli import main
from sfumato.restoration.diagnosis import diagnose, strangeness
from sfumato.restoration.restore import Restored

ORACLE = sf.GaussianMixture(
    torch.tensor([0.6, 0.4], dtype=torch.float64),
    torch.tensor([[-1.0] * 4, [1.0] * 4], dtype=torch.float64),
    torch.full((2, 4), 0.1, dtype=torch.float64),
)
METHODS = {
    "moment matching": restoration.MomentMatching(),
    "pigdm": restoration.PiGDM(),
    "ddrm": restoration.DDRM(),
    "ddnm": restoration.DDNM(),
    "dps": restoration.DPS(),
    "repaint": restoration.RePaint(resamplings=2),
    "diffpir": restoration.DiffPIR(),
    "split gibbs": restoration.SplitGibbs(inner=2, tail=1),
    "particles": restoration.TwistedSMC(particles=8),
}


def own(seed, count, b):
    return sf.row_generators(seed, range(count * b))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "particles"])
def test_a_draw_depends_on_its_own_generator_and_observation(name):
    y, operator, levels = torch.randn(3, 2), restoration.Matrix(torch.randn(2, 4)), restoration.default_levels(5)
    options = {"levels": levels, "method": METHODS[name]}
    both = sf.restore(ORACLE, y, operator, 0.2, count=2, generator=own(0, 2, 3), **options)
    one = sf.restore(ORACLE, y[2:], operator, 0.2, count=1, generator=own(0, 2, 3)[5:], **options)
    torch.testing.assert_close(both[1, 2], one[0, 0])


@pytest.mark.parametrize("name", METHODS)
def test_neither_y_nor_the_model_is_changed_and_the_shape_is_as_asked(name):
    mask = torch.tensor([[True, False], [True, True]])
    operator = restoration.Mask(mask, shape=(1, 2, 2))
    y = torch.randn(3, 1, 2, 2)
    before = y.clone()
    x = sf.restore(ORACLE, y, operator, 0.2, method=METHODS[name], count=2, levels=restoration.default_levels(5), generator=own(0, 2, 3))
    assert x.shape == (2, 3, 1, 2, 2)
    assert torch.isfinite(x).all()
    assert torch.equal(y, before)


def test_particles_depend_on_their_number_and_seed_alone():
    y, operator = torch.randn(1, 2), restoration.Matrix(torch.randn(2, 4))
    draw = lambda particles, seed, count=3: sf.restore(  # noqa: E731
        ORACLE, y, operator, 0.2, method=restoration.TwistedSMC(particles=particles, batch=5), count=count,
        levels=restoration.default_levels(5), generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    assert torch.equal(draw(16, 0), draw(16, 0))
    assert not torch.equal(draw(16, 0), draw(16, 1))
    assert not torch.equal(draw(16, 0), draw(17, 0))


def test_conditions_reach_the_predictor():
    y = torch.zeros(2, 1)
    operator = restoration.Matrix(torch.tensor([[1.0, -1.0, 0.0, 0.0]]))
    for method in (restoration.MomentMatching(), restoration.TwistedSMC(particles=32), restoration.DDRM()):
        x = sf.restore(ORACLE, y, operator, 0.2, method=method, count=8, cond={"labels": torch.tensor([0, 1])}, generator=own(0, 8, 2))
        assert (x[:, 0, 2:] < 0).all()
        assert (x[:, 1, 2:] > 0).all()


EYE = torch.eye(4)
REFUSED = {
    "y with NaN": (dict(y=torch.tensor([[0.0, torch.nan]])), "1 of 1 observations hold NaN"),
    "y of another size": (dict(y=torch.zeros(1, 3)), r"got y of shape \[3\]"),
    "negative noise": (dict(noise_std=-1.0), "at least 0, .* got -1"),
    "noise of other rows": (dict(noise_std=torch.ones(3)), "one for each of the 1"),
    "no noise in a noisy y": (
        dict(operator=restoration.Matrix(torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])), y=torch.tensor([[0.0, 1.0]]), noise_std=0.0),
        "no x gives this y",
    ),
    "particles without noise": (dict(noise_std=0.0, method=restoration.TwistedSMC(particles=4)), "noise_std above 0"),
    "the class of a method": (dict(method=restoration.DDRM), "an instance"),
    "no draws": (dict(count=0), "count must be at least 1"),
    "rising levels": (dict(levels=restoration.default_levels(4)[::-1]), "cleaner"),
    "a level without signal": (
        dict(levels=[sf.Level(torch.tensor(0.0), torch.tensor(1.0)), *restoration.default_levels(4)]),
        "alpha above 0",
    ),
    "a condition of other rows": (dict(cond={"labels": torch.tensor([0, 1])}), "row"),
    "an operator for another shape": (dict(operator=restoration.Matrix(EYE), shape=(5,), y=torch.zeros(1, 4)), r"shape \[4\]"),
    "too few generators": (dict(generator=own(0, 1, 1), count=2), "generators"),
}


@pytest.mark.parametrize("case", REFUSED, ids=list(REFUSED))
def test_what_cannot_be_is_refused_in_a_sentence(case):
    options, words = REFUSED[case]
    given = {"y": torch.zeros(1, 2), "operator": restoration.Matrix(EYE[:2]), "noise_std": 0.1, **options}
    y, operator, noise_std = (given.pop(name) for name in ("y", "operator", "noise_std"))
    with pytest.raises(ValueError, match=words):
        sf.restore(ORACLE, y, operator, noise_std, **given)


def test_a_method_that_needs_an_svd_says_so_where_there_is_none():
    blur = restoration.Blur(torch.rand(3, 4), padding="zeros")
    oracle = sf.Gaussian(torch.zeros(1600), 1.0)
    with pytest.raises(ValueError, match="take MomentMatching"):
        sf.restore(oracle, torch.zeros(1, 1, 40, 40), blur, 0.1, method=restoration.DDRM(), count=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: restoration.MomentMatching(renoise=2.0),
        lambda: restoration.MomentMatching(iterations=0),
        lambda: restoration.PiGDM(data_std=0.0),
        lambda: restoration.DPS(zeta=0.0),
        lambda: restoration.DDRM(eta=1.5),
        lambda: restoration.RePaint(resamplings=0),
        lambda: restoration.DiffPIR(zeta=-0.1),
        lambda: restoration.SplitGibbs(inner=0),
        lambda: restoration.TwistedSMC(particles=1),
        lambda: restoration.TwistedSMC(threshold=2.0),
        lambda: restoration.default_levels(3),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must|at least"):
        make()


def restored(chi, ess=None):
    ess = None if ess is None else torch.tensor([ess])
    return Restored(torch.zeros(4, 1, 3), torch.tensor([0.1]), torch.full((4, 1), chi), ess, None if ess is None else torch.zeros(1))


@pytest.mark.parametrize(
    ("chi", "options", "words"),
    [
        (4.0, {}, "fit 0.2"),
        (0.25, {}, "about 0.05"),
        (1.1, {"strangeness": 9.0}, "9.0 standard deviations"),
    ],
)
def test_findings_say_what_is_out_of_line(chi, options, words):
    assert diagnose(restored(1.1), 500, strangeness=0.5) == []
    (finding,) = diagnose(restored(chi), 500, **options)
    assert words in finding


def test_few_particles_are_a_finding():
    (finding,) = diagnose(restored(1.0, [900.0, 3.0]), 500)
    assert "3.0 particles" in finding


def test_draws_of_the_model_are_not_strange_and_others_are():
    own_draws, _ = ORACLE.sample(64, torch.Generator().manual_seed(1))
    keys = tuple(torch.Generator().manual_seed(i) for i in range(3))
    assert abs(strangeness(ORACLE, own_draws, generators=keys)) < 1.5
    assert strangeness(ORACLE, 3 * own_draws.roll(1, 1) * torch.tensor([1.0, -1, 1, -1]), generators=keys) > 4


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with damaged digits, in float32 as the command line is."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    values = sf.data.digits().values[40, :, :, 0]
    noisy = (values + np.random.default_rng(0).normal(0, 0.05 * 127.5, (8, 8))).round().clip(0, 255).astype(np.uint8)
    mask = np.full((8, 8), 255, dtype=np.uint8)
    mask[2:5, 2:6] = 0
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(np.where(mask > 0, noisy, 0).astype(np.uint8)).save("damaged.png")
    Image.fromarray(noisy).save("noisy.png")
    Image.fromarray(noisy.reshape(4, 2, 4, 2).mean((1, 3)).round().astype(np.uint8)).save("small.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("black.png")
    Image.fromarray(np.full((9, 9), 255, dtype=np.uint8)).save("nine.png")
    a = np.random.default_rng(1).normal(size=(20, 64)) / 8
    np.save("a.npy", a)
    np.save("y.npy", a @ (noisy.flatten() / 127.5 - 1))
    np.save("narrow.npy", a[:, :50])
    np.save("kernel.npy", np.array([[1.0, -1.0]]))
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_a_damaged_picture_is_restored_in_one_command(here, capsys):
    code, out, err = call(
        "restore", "zoo:digits", "damaged.png", "--task", "inpaint", "--mask", "mask.png", "--draws", 3, "--steps", 8, "--out", "there",
        capsys=capsys,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Wrote there" in out
    assert sorted(path.name for path in (here / "there").iterdir()) == [
        "000.png", "001.png", "002.png", "mean.png", "report.json", "std.png",
    ]  # fmt: skip
    truth, seen = sf.data.digits().values[40, :, :, 0] / 127.5 - 1, np.asarray(Image.open("mask.png")) > 0
    mean = np.asarray(Image.open("there/mean.png")) / 127.5 - 1
    assert np.sqrt(np.square(mean - truth)[seen].mean()) < 0.1
    std = np.asarray(Image.open("there/std.png"))
    assert std[~seen].mean() > 2 * std[seen].mean()
    report = json.loads((here / "there" / "report.json").read_text())
    assert report["noise_std"] == pytest.approx(0.05)
    assert 0.3 < report["chi_squared"]["mean"] < 3
    code, _, err = call("restore", "zoo:digits", "damaged.png", "--task", "inpaint", "--mask", "mask.png", "--out", "there", capsys=capsys)
    assert code == 2
    assert "--force" in err


def test_draws_do_not_depend_on_the_batch_or_their_number(here, capsys):
    for folder, draws, batch in (("a", 3, 16), ("b", 2, 1)):
        call(
            "restore", "zoo:digits", "noisy.png", "--task", "denoise", "--draws", draws, "--batch", batch, "--steps", 5, "--out", folder,
            capsys=capsys,
        )  # fmt: skip
    for name in ("000.png", "001.png"):
        ours, theirs = (np.asarray(Image.open(here / folder / name)).astype(int) for folder in ("a", "b"))
        assert np.abs(ours - theirs).max() <= 1


def test_the_command_estimates_the_noise(here, capsys, monkeypatch):
    """By draws of the real model, fewer than usual."""
    fewer = partial(restoration.estimate_noise, count=2, steps=6, rounds=5)
    monkeypatch.setattr(sf.restoration, "estimate_noise", fewer)
    options = ["--noise", "estimate", "--method", "ddrm", "--steps", 6, "--draws", 2]
    code, out, err = call("restore", "zoo:digits", "noisy.png", "--task", "denoise", *options, "--out", "there", capsys=capsys)
    assert (code, err) == (0, "")
    assert "The noise of noisy.png is about" in out
    assert 0.01 < json.loads((here / "there" / "report.json").read_text())["noise_std"] < 0.3


@pytest.mark.parametrize(
    "task",
    [
        ["small.png", "--task", "upscale", "--factor", "2"],
        ["noisy.png", "--task", "deblur", "--kernel", "gaussian:0.5"],
        ["y.npy", "--task", "matrix", "--matrix", "a.npy"],
        ["noisy.png", "--task", "denoise", "--exact", "--particles", "16"],
    ],
    ids=lambda task: task[2],
)
def test_every_task_has_its_files_and_report(task, here, capsys):
    code, _, err = call("restore", "zoo:digits", *task, "--draws", 2, "--steps", 6, "--out", "there", capsys=capsys)
    assert (code, err) == (0, "")
    report = json.loads((here / "there" / "report.json").read_text())
    assert 0.001 < report["noise_std"] < 1
    assert ("log_evidence" in report) == ("--exact" in task)
    assert Image.open(here / "there" / "001.png").size == (8, 8)


BAD = {
    "no mask": (["damaged.png", "--task", "inpaint"], "needs --mask"),
    "an unknown task": (["damaged.png", "--task", "sharpen"], "inpaint, upscale"),
    "a mask of another size": (["damaged.png", "--task", "inpaint", "--mask", "nine.png"], "9 × 9"),
    "a mask that hides all": (["damaged.png", "--task", "inpaint", "--mask", "black.png"], "hides everything"),
    "a picture of another size": (["nine.png", "--task", "denoise"], "must be 8 × 8"),
    "a small picture that is none": (["noisy.png", "--task", "upscale", "--factor", "2"], "must be 4 × 4"),
    "a factor that does not divide": (["small.png", "--task", "upscale", "--factor", "3"], "3 does not divide"),
    "a kernel that sums to nothing": (["noisy.png", "--task", "deblur", "--kernel", "kernel.npy"], "not sum to 0"),
    "an unknown kernel": (["noisy.png", "--task", "deblur", "--kernel", "disk:3"], "gaussian:SIGMA"),
    "a matrix of other width": (["y.npy", "--task", "matrix", "--matrix", "narrow.npy"], "50 columns"),
    "a picture for a matrix": (["noisy.png", "--task", "matrix", "--matrix", "a.npy"], "as .npy"),
    "colours of a grey model": (["noisy.png", "--task", "colourise"], "x has 1"),
    "noise in words": (["noisy.png", "--task", "denoise", "--noise", "little"], "a number or estimate"),
    "negative noise": (["noisy.png", "--task", "denoise", "--noise", "-0.1"], "at least 0"),
    "an unknown method": (["noisy.png", "--task", "denoise", "--method", "magic"], "moment-matching"),
    "exact by another method": (["noisy.png", "--task", "denoise", "--method", "ddrm", "--exact"], "twisted-smc"),
    "no draws": (["noisy.png", "--task", "denoise", "--draws", "0"], "--draws must be at least 1"),
    "no picture": (["text.png", "--task", "denoise"], "is not a readable image"),
    "an unknown class": (["noisy.png", "--task", "denoise", "--labels", "eleven"], "eleven"),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_bad_use_is_one_sentence_and_writes_nothing(case, here, capsys):
    arguments, words = BAD[case]
    code, _, err = call("restore", "zoo:digits", *arguments, "--out", "there", capsys=capsys)
    assert code == 2, err
    assert words in err
    assert err.count("\n") == 1
    assert not (here / "there").exists()
