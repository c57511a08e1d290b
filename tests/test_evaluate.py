"""`evaluate`: figures held against closed forms, the copier and the healthy model, the same figure however the work is cut, bad input."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.cli import main
from sfumato.evaluation.compare import compare
from sfumato.evaluation.evaluate import evaluate
from sfumato.evaluation.measures import ABOUT, DISTANCES
from sfumato.evaluation.report import read_report
from sfumato.options import METRIC_NAMES
from sfumato.tasks.diffusion import denoiser_bits

FAST = {"steps": 3, "count": 260, "metrics": ["fd", "kd"]}  # more than one part of 256


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def values(report):
    return {name: figure.value for name, figure in report.metrics.items()}


def test_the_frechet_distance_of_arrays_is_that_of_their_gaussians():
    """Points with means and covariances that are known exactly: |m|² + tr(A + B - 2 (A^½ B A^½)^½), all diagonal."""
    rng = np.random.default_rng(0)

    def exact(mean, std):
        z = rng.normal(size=(400, 2))
        z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
        return mean + z * std

    report = evaluate(exact([1.0, 0.0], [1.0, 2.0]), exact([0.0, 0.0], [3.0, 0.5]), metrics=["fd"], features="pixels")
    assert report.metrics["fd@pixels"].value == pytest.approx(1 + (1 - 3) ** 2 + (2 - 0.5) ** 2, rel=1e-6)
    assert report.metrics["fd@pixels"].count == 400


def test_pixels_are_x0_in_minus_one_to_one():
    black, white = np.zeros((40, 4, 4, 1), np.uint8), np.full((40, 4, 4, 1), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, black.shape).astype(np.uint8)
    report = evaluate(black + noise, white - noise, metrics=["fd"], features="pixels")
    shift = 2 - 2 * 2 * noise.mean(0).ravel() / 255  # of each pixel, in units of x0
    assert report.metrics["fd@pixels"].value == pytest.approx((shift**2).sum(), rel=1e-6)


def test_real_data_are_at_their_floor_and_noise_at_the_ceiling():
    """Two sets of one law lie at the floor; the floor is of disjoint halves, as the set against itself would be 0."""
    data = sf.data.toy("swiss-roll", 1200, 0)
    noise = data.scaling.decode(torch.randn(600, 2))
    real, other = (evaluate(x, data, metrics=["sw"]).metrics["sliced_wasserstein@pixels"] for x in (sf.data.swiss_roll(600, 1), noise))
    assert real.floor > 0
    assert 1 / 2 < real.value / real.floor < 2
    assert real.ceiling > 2 * real.floor
    assert other.value == pytest.approx(other.ceiling, rel=0.2)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("evaluate")
    evaluate("zoo:digits", "held-out", out=folder / "once.json", keep_samples=True, **FAST)
    return folder / "once.json"


def test_the_batch_changes_no_figure(once):
    again = evaluate("zoo:digits", "held-out", batch=7, **FAST)
    for name, figure in read_report(once).metrics.items():
        assert again.metrics[name].value == pytest.approx(figure.value, rel=1e-3, abs=1e-5), name  # a grey level off now and then
        assert again.metrics[name].floor == figure.floor


@pytest.mark.slow
def test_two_processes_give_the_figure_of_one(once, tmp_path):
    out = tmp_path / "two.json"
    arguments = ["evaluate", "zoo:digits", "--steps", "3", "--count", "260", "--metrics", "fd,kd", "--out", str(out)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sfumato"]
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote") == 1
    one, two = read_report(once), read_report(out)
    for name, figure in one.metrics.items():
        assert two.metrics[name].value == pytest.approx(figure.value, rel=1e-6), name
    assert two.manifest["device"]["processes"] == 2
    assert not compare({"one": one, "two": two}).blocking


def test_the_manifest_says_what_the_figure_depends_on(once):
    manifest = read_report(once).manifest
    model = sf.load("zoo:digits")
    assert manifest["model"]["weights"] == sf.storage.weights_fingerprint(model.network)
    assert manifest["model"]["sampling"]["steps"] == 3
    assert manifest["model"]["sampling"]["guidance"] == 1.5
    assert manifest["model"]["ema"] == 0.1
    assert manifest["samples"]["count"] == 260
    assert manifest["samples"]["seeds"] == [0]
    assert manifest["data"]["split"] == "held-out"
    assert manifest["data"]["count"] == 180
    assert len(manifest["features"]["pixels"]["sha256"]) == 64
    assert {"torch", "numpy", "sfumato", "python"} <= manifest["versions"].keys()
    assert manifest["device"]["kind"] == "cpu"


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 3.0), (0.0, 3.0)], ids=["off", "without the label"])
def test_evaluations_are_those_that_were_made(guidance, rows):
    report = evaluate("zoo:digits", "digits", steps=3, count=70, guidance=guidance, metrics=["mind"])
    assert report.manifest["samples"]["evaluations"] == rows


def test_both_branches_of_guidance_are_counted():
    """Of Heun's two evaluations a step but the last; guidance 0.5 acts at all levels, so each is of two rows."""
    report = evaluate("zoo:digits", "digits", steps=3, count=70, guidance=0.5, sampler="ddim", metrics=["mind"])
    assert report.manifest["samples"]["evaluations"] == 6


def test_an_evaluation_goes_on_with_the_samples_that_are_there(once, tmp_path, monkeypatch):
    """Stopped after its first part, it draws the second alone, and its report is that of one in a piece."""
    out, drawn = tmp_path / "r.json", []
    sample = sf.Model.sample

    def counting(self, count, **options):
        drawn.append(options["rows"])
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return sample(self, count, **options)

    monkeypatch.setattr(sf.Model, "sample", counting)
    with pytest.raises(KeyboardInterrupt):
        evaluate("zoo:digits", "held-out", out=out, **FAST)
    assert not out.exists()
    drawn.clear()
    drawn.append(None)  # so that none of what follows is stopped
    drawn.append(None)
    evaluate("zoo:digits", "held-out", out=out, **FAST)
    assert drawn[2:] == [slice(256, 260)]
    assert values(read_report(out)) == values(read_report(once))
    assert not out.with_suffix(".samples").exists()


def test_samples_drawn_otherwise_are_not_taken_for_these(once, tmp_path):
    first = evaluate("zoo:digits", "held-out", out=tmp_path / "r.json", keep_samples=True, **FAST)
    other = evaluate("zoo:digits", "held-out", out=tmp_path / "r.json", force=True, keep_samples=True, **{**FAST, "steps": 4})
    assert values(first) != values(other)
    third = evaluate("zoo:digits", "held-out", out=tmp_path / "r.json", force=True, seed=1, **FAST)
    assert values(third) != values(first)


def test_errors_are_of_independent_seeds(tmp_path):
    one = [evaluate("zoo:digits", "digits", seed=seed, steps=3, count=80, metrics=["fd"]).metrics["fd@pixels"].value for seed in (4, 5, 6)]
    figure = evaluate("zoo:digits", "digits", seed=4, seeds=3, steps=3, count=80, metrics=["fd"]).metrics["fd@pixels"]
    assert figure.value == pytest.approx(np.mean(one))
    assert figure.error == pytest.approx(np.std(one, ddof=1) / math.sqrt(3))


def test_samples_of_a_file_give_the_figure_of_the_model(once, tmp_path, capsys):
    assert call("sample", "zoo:digits", "--count", 260, "--steps", 3, "--out", tmp_path / "s.npz", capsys=capsys)[0] == 0
    assert call("sample", "zoo:digits", "--count", 260, "--steps", 3, "--out", tmp_path / "folder", capsys=capsys)[0] == 0
    model = sf.load("zoo:digits")
    held_out = model.recipe.divided(model.recipe.data.load())[1]
    for path in (tmp_path / "s.npz", tmp_path / "folder"):
        found = evaluate(path, held_out, metrics=["fd", "accuracy"])
        expected = read_report(once).metrics["fd@pixels"].value
        assert found.metrics["fd@pixels"].value == pytest.approx(expected, rel=1e-3)
        assert found.metrics["label_accuracy@svm"].value > 0.8


def test_label_accuracy_is_the_share_that_a_judge_reads_right():
    data = sf.data.digits()
    some = (data.values[:100], np.where(np.arange(100) < 30, (data.labels[:100] + 1) % 10, data.labels[:100]))
    report = evaluate(some, data, metrics=["accuracy"], judge=lambda x: nearest(x, data))
    (figure,) = report.metrics.values()
    assert figure.value == pytest.approx(0.7)
    assert figure.error == pytest.approx(math.sqrt(0.7 * 0.3 / 99), rel=1e-6)


def nearest(x, data):
    every = data.batch(np.arange(len(data))).x.numpy().reshape(len(data), -1)
    return data.labels[((x.reshape(len(x), 1, -1) - every) ** 2).sum(2).argmin(1)]


def test_bits_of_an_exact_model_are_the_entropy_of_its_data():
    """A Gaussian as its own model: the mean of -log2 p(x) over draws, by the flow, within three standard errors of the entropy."""
    torch.set_default_dtype(torch.float64)
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    oracle = sf.Gaussian(torch.tensor([0.1, -0.2]), covariance)
    x, _ = oracle.sample(400, torch.Generator().manual_seed(0))
    batch = sf.Batch(x)
    found = denoiser_bits(
        oracle, batch, sf.Cosine(), bin_width=None, generator=torch.Generator().manual_seed(1), times=torch.Generator().manual_seed(2)
    )
    entropy = 0.5 * math.log((2 * math.pi * math.e) ** 2 * float(torch.linalg.det(covariance))) / (2 * math.log(2))
    bits = found["flow"]
    assert abs(float(bits.mean()) - entropy) < 3 * float(bits.std()) / math.sqrt(len(bits))
    exact = -oracle.log_prob(x, sf.Cosine().level(0.0, like=x)) / (2 * math.log(2))
    torch.testing.assert_close(bits, exact, rtol=0, atol=1e-3)


DIGITS = sf.data.digits().values
BAD = {
    "no such model": (["nothing", "--data", "digits"], "nothing is neither a run folder"),
    "no such data": (["zoo:digits", "--data", "digts"], 'there is no data set "digts"; did you mean digits?'),
    "data options that do not fit": (
        ["zoo:digits", "--data", "{kind: toy}"],
        "the options of the data do not fit at toy.name (field required)",
    ),
    "held-out of a file": (["good.npz", "--data", "held-out"], '"held-out" names rows of the run that is evaluated'),
    "nothing held out": (["zoo:fashion", "--data", "held-out"], ""),
    "unknown metric": (["zoo:digits", "--metrics", "fdd"], 'there is no metric "fdd"'),
    "fid without Inception": (["zoo:digits", "--metrics", "fid"], 'a Fréchet distance is called "fd"'),
    "few for the rank": (["good.npz", "--data", "digits", "--metrics", "fd"], "40 samples are too few for a Fréchet distance in pixels"),
    "NaN": (["nan.npz", "--data", "floats.npz"], "NaN"),
    "black images": (["black.npz", "--data", "digits", "--metrics", "kd"], "all 40 samples are images of one constant value"),
    "one image again and again": (["same.npz", "--data", "digits", "--metrics", "kd"], "all 40 samples are one and the same"),
    "another size": (["large.npz", "--data", "digits"], "samples are 16×16 grey, data 8×8 grey; with --resize"),
    "other channels": (["colour.npz", "--data", "digits"], "samples are 8×8 RGB, data 8×8 grey; with --resize"),
    "pickles": (["pickled.npz", "--data", "digits"], "it holds Python objects"),
    "no labels": (["good.npz", "--data", "digits", "--metrics", "accuracy"], "label accuracy needs samples of known classes"),
    "bits of samples": (["good.npz", "--data", "digits", "--metrics", "bpd"], "bits/dim are of a model"),
    "steps of samples": (["good.npz", "--data", "digits", "--steps", "3"], "steps says how a model is sampled"),
    "more than there are": (["good.npz", "--data", "digits", "--count", "50"], "holds 40 samples, fewer than the count of 50"),
    "report that is there": (["zoo:digits", "--out", "there.json"], "there.json is there already"),
    "report of another suffix": (["zoo:digits", "--out", "r.txt"], "a report is a .json"),
    "a classifier's guidance": (["zoo:digits", "--guidance", "much"], "--guidance needs a number"),
    "no steps": (["zoo:digits", "--steps", "0"], "steps must be at least 1, got 0"),
    "unpaired": (["good.npz", "--data", "digits", "--metrics", "psnr"], "there are 40 samples and 1797 rows"),
    "sweep of samples": (["good.npz"], "a sweep draws samples of a model"),
    "sweep of one setting": (["zoo:digits"], "a sweep needs several settings"),
    "sweep of no numbers": (["zoo:digits", "--steps", "5,many"], "--steps takes numbers joined by commas"),
    "sweep over a folder": (["zoo:digits", "--data", "digits", "--steps", "2,3", "--count", "60"], "holds something that is no sweep"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = DIGITS[:40]
    np.savez("good.npz", arr_0=few)
    np.savez("black.npz", arr_0=np.zeros_like(few))
    np.savez("same.npz", arr_0=np.repeat(few[:1], 40, axis=0))
    np.savez("large.npz", arr_0=few.repeat(2, axis=1).repeat(2, axis=2))
    np.savez("colour.npz", arr_0=few.repeat(3, axis=3))
    np.savez("pickled.npz", arr_0=np.array([{}], dtype=object))
    floats = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez("floats.npz", arr_0=floats)
    np.savez("nan.npz", arr_0=np.where(np.arange(40)[:, None] == 3, np.nan, floats))
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(here, capsys, case):
    arguments, sentence = BAD[case]
    before = sorted(here.rglob("*"))
    command = ["sweep", *arguments, "--out", "full"] if case.startswith("sweep") else ["evaluate", *arguments]
    code, _, err = call(*command, capsys=capsys)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert err.endswith((".\n", "?\n"))
    assert sorted(here.rglob("*")) == before
    assert "Traceback" not in err


def test_another_size_is_brought_to_the_samples_where_that_is_asked_for(here):
    report = evaluate("large.npz", "digits", metrics=["kd"], resize=True)
    assert "the data, 8×8 grey, brought to the samples' 16×16 grey" in report.manifest["samples"]["resized"]
    assert report.manifest["data"]["shape"] == [1, 16, 16]
    plain = evaluate("good.npz", "digits", metrics=["kd"])
    assert any(difference.path == "samples.resized" for difference in compare({"a": report, "b": plain}, anyway=True).blocking)


def test_a_covariance_that_is_not_of_full_rank_is_said():
    report = evaluate(DIGITS[:100], DIGITS[100:], metrics=["fd"])
    assert any("the covariance of the data has rank" in note and "of 64" in note for note in report.notes)


def test_other_data_of_the_same_name_are_seen_by_their_fingerprint():
    a, b = (evaluate(DIGITS[:100], data, metrics=["kd"]) for data in (DIGITS[100:], DIGITS[101:]))
    assert {difference.path for difference in compare({"a": a, "b": b}, anyway=True).blocking} == {"data.fingerprint", "data.count"}


def test_columns_of_tables_are_named():
    rng = np.random.default_rng(0)
    real = sf.Dataset(
        values=rng.normal(size=(300, 2)), labels=None, classes=(), columns=("age", "height"),
        scaling=sf.Scaling(shift=0.0, scale=1.0, dtype="float64"),
    )  # fmt: skip
    report = evaluate(rng.normal([0.0, 3.0], 1.0, (300, 2)), real)
    assert report.metrics["column_distance height@pixels"].value > 10 * report.metrics["column_distance age@pixels"].value
    assert report.metrics["two_sample_accuracy@pixels"].value > 0.8


def test_the_help_lists_the_metrics_that_there_are():
    """Help loads no more than names, which stand in a place of their own."""
    assert tuple(ABOUT) == METRIC_NAMES
    assert set(DISTANCES) < set(ABOUT)


def planted(share, shift, seed=0):
    """Digits that are all held out from `training`, of which a share is training images, shifted by some pixels."""
    order = np.random.default_rng(seed).permutation(len(DIGITS))
    training, held = DIGITS[order[:1200]], DIGITS[order[1200:1500]].copy()
    copies = np.roll(training[: int(share * len(held))], shift, axis=2)
    held[: len(copies)] = copies
    return held, training


@pytest.mark.parametrize("shift", [0, 1], ids=["as they are", "shifted by a pixel"])
def test_a_copier_is_found_and_its_pairs_are_drawn(tmp_path, shift):
    samples, training = planted(0.1, shift)
    report = evaluate(samples, training, metrics=["memorisation"], out=tmp_path / "r.json")
    assert report.metrics["copies"].value == pytest.approx(0.1, abs=0.04)
    assert any("are copies" in note for note in report.notes)
    assert Image.open(tmp_path / "r.nearest.png").size[0] > 100


def test_a_healthy_model_is_not_accused():
    samples, training = planted(0.0, 0)
    report = evaluate(samples, training, metrics=["memorisation"])
    assert any("no sign of copies" in note for note in report.notes)


def test_restorations_are_held_against_their_own_rows():
    """The mean of 10 log10(range² / error²) for errors of one level in 255 is known."""
    off = np.where(DIGITS[:50] > 100, DIGITS[:50] - 1, DIGITS[:50] + 1)
    figure = evaluate(off, DIGITS[:50], metrics=["psnr"]).metrics["psnr"]
    assert figure.value == pytest.approx(20 * math.log10(255), rel=1e-6)
    assert evaluate(off, DIGITS[1:51], metrics=["psnr"]).metrics["psnr"].value < 20


def test_garments_are_judged_by_a_network_of_their_own():
    """Never by that of the features; a third of the labels is wrong."""
    data = sf.data.fashion_small()
    labels = np.where(np.arange(120) < 40, (data.labels[:120] + 1) % 10, data.labels[:120])
    report = evaluate((data.values[:120], labels), data, metrics=["accuracy"])
    assert report.metrics["label_accuracy@judge-fashion"].value == pytest.approx(2 / 3, abs=0.06)
    assert report.metrics["label_accuracy@judge-fashion"].floor > 0.9
    assert report.manifest["judge"]["sha256"] not in {each["sha256"] for each in report.manifest["features"].values()}
    with pytest.raises(ValueError, match='there is no judge "grey28"'):
        evaluate((data.values[:120], labels), data, metrics=["accuracy"], features="pixels", judge="grey28")


def test_features_of_the_data_are_computed_once(monkeypatch):
    """A second evaluation against the same data takes them from the cache; other data do not."""
    from sfumato.metrics.features import Network

    data, seen, call_ = sf.data.fashion_small(), [], Network.__call__
    few = sf.Dataset(values=data.values[:300], labels=None, classes=(), scaling=data.scaling)
    other = sf.Dataset(values=data.values[1:301], labels=None, classes=(), scaling=data.scaling)

    def counting(self, images):
        seen.append(len(images))
        return call_(self, images)

    monkeypatch.setattr(Network, "__call__", counting)
    counts = []
    for source in (few, few, other):
        seen.clear()
        evaluate(data.values[500:540], source, metrics=["mind"])
        counts.append(sum(seen))
    assert counts[0] == counts[2] == counts[1] + 300
