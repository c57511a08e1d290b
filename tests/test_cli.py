"""The commands as a person uses them: what they write, and the one sentence that bad input gets, with nothing half-written."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sfumato as sf
from sfumato.cli import main
from sfumato.recipe import load_recipe

TINY = {
    "data": {"kind": "digits"},
    "net": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
    "training": {"steps": 4, "batch": 16, "checkpoint_every": 2, "log_every": 2},
    "runtime": {"precision": "float32"},
    "sampling": {"steps": 3, "sampler": "ancestral"},
}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, shared: commands only read it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    sf.train(load_recipe(folder / "tiny.yaml"), out=folder / "run")
    return folder / "run"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a recipe, and the faulty files of the table below."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("data: {kind: digits\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "bad1.png").write_bytes(b"\x89PNG not really")
    (tmp_path / "photos" / "bad2.png").write_bytes(b"")
    raw = struct.pack(">BBBBIII", 0, 0, 8, 3, 10, 28, 28) + bytes(100)
    (tmp_path / "cut-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
    np.savez(tmp_path / "letters.npz", arr_0=np.array(["a", "b"]))
    np.savez(tmp_path / "shape.npz", arr_0=np.zeros((5, 4, 4, 7), dtype=np.uint8))
    np.savez(tmp_path / "labels.npz", arr_0=np.zeros((5, 4, 4, 1), dtype=np.uint8), arr_1=np.zeros(3, dtype=np.int64))
    (tmp_path / "file").write_text("")
    (tmp_path / "empty.npz").mkdir()
    (tmp_path / "round.yaml").write_text("base: round.yaml\n")
    (tmp_path / "five.yaml").write_text("base: 5\n")
    return tmp_path


def call(*arguments, capsys):
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


BAD = {
    "tune the zoo": (["tune", "zoo:digits"], 2, "part of the package"),
    "tune one step": (["tune", "RUN", "--steps", "1"], 2, "--steps must be at least 2, got 1"),
    "tune few rows": (["tune", "RUN", "--rows", "3"], 2, "--rows must be at least 12, got 3"),
    "reference is not there": (["verify", "--reference", "nothing.npz"], 2, "cannot be read as an .npz"),
    "reference of another layout": (["verify", "--reference", "shape.npz"], 2, "keys are CASE/NAME"),
    "unknown recipe": (["train", "fashon"], 2, 'there is no recipe "fashon"; did you mean fashion?'),
    "missing recipe file": (["train", "mine.yaml"], 2, "there is no recipe file mine.yaml"),
    "recipe that is a list": (["train", "list.yaml"], 2, "a mapping with data, net"),
    "recipe that is not YAML": (["train", "broken.yaml"], 2, "is not YAML"),
    "misspelt option": (["train", "digits", "--set", "training.bach=3"], 2, "did you mean training.batch?"),
    "misspelt group": (["train", "digits", "--set", "trainig.batch=3"], 2, "did you mean training?"),
    "unknown kernels": (["sample", "zoo:fashion", "--out", "s.png", "--kernels", "cuda"], 2, 'auto, torch or compiled, got "cuda"'),
    "misspelt option of a kind": (["train", "digits", "--set", "net.witdh=3"], 2, "did you mean net.widths?"),
    "wrong type": (["train", "digits", "--set", "training.batch=many"], 2, "training.batch got 'many'"),
    "wrong kind": (["train", "digits", "--set", "net.kind=gan"], 2, "net.kind must be one of"),
    "unknown toy": (["train", "moons", "--set", "data.name=mons"], 2, 'there is no toy "mons"; did you mean moons?'),
    "unknown default sampler": (["train", "digits", "--set", "sampling.sampler=dim"], 2, "did you mean ddim?"),
    "impossible average": (["train", "digits", "--set", "training.ema=[0.5]"], 2, "must lie in (0, 0.288)"),
    "no equals sign": (["train", "digits", "--set", "training.batch"], 2, "path=value"),
    "path not given": (["train", "folder"], 2, "data.path is missing"),
    "missing folder": (["train", "folder", "--set", "data.path=nowhere"], 2, "nowhere"),
    "empty folder": (["train", "folder", "--set", "data.path=empty"], 2, "empty"),
    "too many broken images": (["train", "folder", "--set", "data.path=photos", "--set", "data.size=8"], 2, "bad1.png"),
    "truncated idx": (["train", "tiny.yaml", "--set", "data={kind: idx, path: cut-images-idx3-ubyte.gz}"], 2, "cut-images-idx3-ubyte.gz"),
    "npz of letters": (["train", "tiny.yaml", "--set", "data={kind: array, path: letters.npz}"], 2, "letters: values must be uint8"),
    "npz of a wrong shape": (
        ["train", "tiny.yaml", "--set", "data={kind: array, path: shape.npz}"],
        2,
        "shape: uint8 values must be images",
    ),
    "npz of too few labels": (["train", "tiny.yaml", "--set", "data={kind: array, path: labels.npz}"], 2, "labels"),
    "no steps": (["train", "digits", "--steps", "0"], 2, "training.steps must be at least 1, got 0"),
    "steps that are no number": (["train", "digits", "--steps", "ten"], 2, "'--steps'"),
    "out below a file": (["train", "tiny.yaml", "--out", "file/run"], 1, "file/run"),
    "out that is a file": (["train", "tiny.yaml", "--out", "file"], 2, "is not a run folder"),
    "unknown command": (["trian"], 2, "trian"),
    "unknown flag": (["train", "digits", "--stepz", "3"], 2, "stepz"),
    "unknown model": (["sample", "zoo:fashio", "--out", "s.npz"], 2, "the zoo holds"),
    "no run folder": (["sample", "nowhere", "--out", "s.npz"], 2, "is neither a run folder"),
    "label out of range": (["sample", "RUN", "--labels", "10", "--out", "s.npz"], 2, "class 10 is out of range; the classes are 0, 1,"),
    "no class of this name": (["sample", "RUN", "--labels", "cat", "--out", "s.npz"], 2, 'there is no class "cat"; there are 0, 1'),
    "misspelt class": (["sample", "zoo:fashion", "--labels", "sneeker", "--out", "s.npz"], 2, 'no class "sneeker"; did you mean sneaker?'),
    "a label below none": (["sample", "RUN", "--labels", "-2", "--out", "s.npz"], 2, "class -2 is out of range; the classes are 0, 1,"),
    "labels with a gap": (["sample", "RUN", "--labels", "3,,5", "--out", "s.npz"], 2, "--labels needs comma-separated numbers or names"),
    "sampling in no steps": (["sample", "RUN", "--steps", "0", "--out", "s.npz"], 2, "steps must be at least 1"),
    "no samples": (["sample", "RUN", "--count", "0", "--out", "s.npz"], 2, "--count must be at least 1"),
    "no batch": (["sample", "RUN", "--batch", "0", "--out", "s.npz"], 2, "--batch must be at least 1"),
    "negative guidance": (["sample", "RUN", "--guidance", "-1", "--out", "s.npz"], 2, "guidance must be at least 0"),
    "unknown sampler": (["sample", "RUN", "--sampler", "euler-b", "--out", "s.npz"], 2, "the samplers are"),
    "unknown suffix": (["sample", "RUN", "--out", "s.webp"], 2, "samples are written as"),
    "forward as a sheet": (["sample", "RUN", "--forward", "--out", "s.png"], 2, "must end in .gif"),
    "negative seed": (["sample", "RUN", "--seed", "-1", "--out", "s.npz"], 2, "--seed must be at least 0"),
    "unwritable path": (["sample", "RUN", "--out", "file/s.npz"], 1, "file"),
    "a picture in a folder's place": (["sample", "RUN", "--out", "photos"], 2, "is not empty"),
    "a file in a folder's place": (["sample", "RUN", "--out", "empty.npz"], 2, "empty.npz is a folder"),
    "no labels": (["sample", "RUN", "--labels", "", "--out", "s.npz"], 2, "--labels needs comma-separated numbers or names"),
    "bad path and bad label": (
        ["sample", "RUN", "--labels", "10", "--out", "deep/er/s.npz"],
        2,
        "class 10 is out of range; the classes are 0, 1,",
    ),
    "a file that is there": (
        ["sample", "RUN", "--out", "letters.npz"],
        2,
        "letters.npz exists; choose another file, or add --force",
    ),
    "infinite guidance": (["sample", "RUN", "--guidance", "nan", "--out", "s.npz"], 2, "guidance must be at least 0"),
    "no zoo name": (["sample", "zoo:", "--out", "s.npz"], 2, "there is no zoo:"),
    "true for a number": (["train", "digits", "--set", "training.steps=true"], 2, "must be a number, not true or false"),
    "empty range of a schedule": (["train", "tiny.yaml", "--set", "schedule.log_snr_max=-20"], 2, "log_snr_min < log_snr_max"),
    "spacing for chains on a curve": (["train", "tiny.yaml", "--set", "sampling.spacing=leading"], 2, "needs the steps of a chain"),
    "guidance never trained": (
        ["train", "digits", "--set", "sampling.guidance=2", "--set", "training.label_drop=0"],
        2,
        "label_drop above 0",
    ),
    "size that is no size": (["train", "folder", "--set", "data.path=photos", "--set", "data.size=big"], 2, "data.size got 'big'"),
    "network without channels": (["train", "digits", "--set", "net={kind: unet, channels: []}"], 2, "net.channels got []"),
    "bases in a circle": (["train", "round.yaml"], 2, "form a cycle"),
    "base that is a number": (["train", "five.yaml"], 2, "base must be the name"),
    "recipe of a run without a place": (["train", "RUN/recipe.yaml"], 2, "give the new run's folder"),
    "out not given": (["sample", "RUN"], 2, "--out"),
    "classifier that is not there": (["sample", "RUN", "--classifier", "RUN", "--out", "s.npz"], 2, "holds no classifier; train one with"),
    "classifier of no run": (["train-classifier", "nowhere"], 2, "is neither a run folder"),
    "classifier of the zoo without a place": (["train-classifier", "zoo:digits"], 2, "give a folder for its classifier with --out"),
    "misspelt option of a classifier": (["train-classifier", "RUN", "--set", "net.width=3"], 2, "did you mean net.widths?"),
    "classifier of no steps": (["train-classifier", "RUN", "--steps", "0"], 2, "training.steps must be at least 1, got 0"),
    "classifier without labels": (["train-classifier", "RUN", "--set", "training.label_drop=1"], 2, "set training.label_drop=0"),
    "classifier in a folder in use": (["train-classifier", "RUN", "--out", "photos"], 2, "is not a run folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name, here, run, capsys):
    arguments, code, sentence = BAD[name]
    before = {path: path.stat().st_size for path in here.rglob("*")}
    got, out, err = call(*[str(a).replace("RUN", str(run)) for a in arguments], capsys=capsys)
    assert got == code
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert {path: path.stat().st_size for path in here.rglob("*")} == before


def test_a_run_without_a_checkpoint_says_so(here, run, capsys):
    bare = here / "bare"
    bare.mkdir()
    for name in ("recipe.yaml", "manifest.json"):
        (bare / name).write_bytes((run / name).read_bytes())
    code, _, err = call("sample", bare, "--out", "s.npz", capsys=capsys)
    assert (code, "holds no checkpoint yet" in err) == (1, True)


def test_one_broken_image_among_many_is_named_and_skipped(here, capsys):
    (here / "photos" / "bad2.png").unlink()
    code, out, _ = call("train", "tiny.yaml", "--set", "data={kind: folder, path: photos, size: 8}", "--out", "run", capsys=capsys)
    assert code == 0
    assert "Left out 1 files" in out
    assert "bad1.png" in out


def test_train_writes_plain_lines_and_resume_finds_nothing_to_do(here, capsys):
    code, out, _ = call("train", "tiny.yaml", "--out", "run", capsys=capsys)
    assert code == 0
    assert "training 4/4, loss" in out
    code, out, _ = call("train", "tiny.yaml", "--out", "run", "--resume", capsys=capsys)
    assert code == 0
    assert "after step 4 of 4" in out
    code, _, err = call("train", "tiny.yaml", "--out", "run", "--resume", "--steps", "3", capsys=capsys)
    assert (code, "can be made longer, not shorter. Got 3" in err) == (2, True)
    code, out, _ = call("train", "tiny.yaml", "--out", "run", "--resume", "--steps", "6", capsys=capsys)
    assert (code, "continues from step 4 to 6 instead of 4" in out, "training 6/6, loss" in out) == (0, True, True)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_samples_do_not_depend_on_the_batch_or_the_count(run, here, batch, capsys):
    """With a stochastic sampler, so that the noise of every step is a sample's own."""
    call("sample", run, "--count", "10", "--batch", "64", "--out", "whole.npz", capsys=capsys)
    call("sample", run, "--count", "8", "--batch", batch, "--out", "part.npz", capsys=capsys)
    whole, part = np.load("whole.npz"), np.load("part.npz")
    assert whole["arr_0"].dtype == np.uint8
    assert whole["arr_0"].shape == (10, 8, 8, 1)
    assert np.abs(whole["arr_0"][:8].astype(int) - part["arr_0"].astype(int)).max() <= 1
    assert list(whole["arr_1"]) == list(range(10))


def test_samples_differ_by_seed_and_repeat_by_seed(run, here, capsys):
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        call("sample", run, "--count", "4", "--seed", seed, "--out", f"{name}.npz", capsys=capsys)
    a, b, c = (np.load(f"{name}.npz")["arr_0"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_every_form_of_samples(run, here, capsys):
    for name in ("s.png", "s.gif", "folder", "f.gif"):
        extra = ["--forward"] if name == "f.gif" else []
        assert call("sample", run, "--count", "20", "--labels", "3,5", "--out", name, *extra, capsys=capsys)[0] == 0
    sheet = Image.open("s.png")
    assert sheet.size == (4 * 9 * 7 + 7, 5 * 9 * 7 + 7)  # two classes in four columns, each of one class; pixels are enlarged by 7
    assert Image.open("s.gif").n_frames >= 3  # the noise and three steps; a GIF joins frames that do not differ
    names = sorted(path.name for path in (here / "folder").iterdir())
    assert names[:2] == ["000000_3.png", "000001_5.png"]
    samples = sf.load(run).sample(20, labels=[3, 5])
    assert np.array_equal(np.asarray(Image.open(here / "folder" / names[1])), samples.values[1, :, :, 0])


@pytest.mark.parametrize(
    ("name", "kind"), [("s.PNG", "PNG"), ("s.jpg", "JPEG"), ("s.JPEG", "JPEG"), ("s.Jpg", "JPEG"), ("s.GIF", "GIF"), ("s.NPZ", None)]
)
def test_suffixes_go_by_what_they_say(run, here, name, kind, capsys):
    """In capitals too; a JPEG is within its losses of the sheet."""
    code, _, err = call("sample", run, "--count", "9", "--out", name, capsys=capsys)
    assert (code, err) == (0, "")
    samples = sf.load(run).sample(9)
    if kind is None:
        assert np.array_equal(np.load(name)["arr_0"], samples.values)
        return
    found = Image.open(name)
    assert found.format == kind
    if kind != "GIF":
        samples.save("whole.png", columns=10)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(Image.open("whole.png")).astype(int)).mean() < 3
    assert {path.name for path in here.iterdir() if path.name.startswith(".")} == set()


def test_samples_do_not_become_a_moving_picture(run, here):
    with pytest.raises(ValueError, match=r"write s\.gif with Model\.reverse_gif"):
        sf.load(run).sample(2).save("s.gif")
    assert not (here / "s.gif").exists()


@pytest.mark.parametrize("out", ["file/s.npz", "file/deep/er/s.png", "/proc/s.npz", "/proc/folder"])
def test_an_unwritable_place_is_found_before_anything_is_drawn(run, here, out, capsys):
    if out.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("a place where nobody may write")
    code, said, err = call("sample", run, "--out", out, capsys=capsys)
    assert code == 1
    assert "sampling" not in said
    assert out in err
    assert len(err.strip().splitlines()) == 1


def test_a_place_that_is_to_be_made_is_no_obstacle(run, here, capsys):
    assert call("sample", run, "--count", "2", "--out", "new/folder/s.npz", capsys=capsys)[0] == 0
    assert [path.name for path in (here / "new" / "folder").iterdir()] == ["s.npz"]


def test_classes_are_named_and_none_is_drawn_without(run, here, capsys):
    assert (
        call("sample", "zoo:fashion", "--labels", "sneaker, Bag", "--count", "3", "--steps", "2", "--out", "f.npz", capsys=capsys)[0] == 0
    )
    assert np.load("f.npz")["arr_1"].tolist() == [7, 8, 7]
    for text, name in (("none", "word"), ("-1", "number")):
        assert call("sample", run, "--labels", text, "--count", "3", "--out", name, capsys=capsys)[0] == 0
        assert sorted(path.name for path in (here / name).iterdir()) == ["000000.png", "000001.png", "000002.png"]
    assert call("sample", run, "--labels", "none,3", "--count", "3", "--out", "n.npz", capsys=capsys)[0] == 0
    assert np.load("n.npz")["arr_1"].tolist() == [-1, 3, -1]


def test_guidance_without_classes_is_refused_and_the_recipes_is_off(here, capsys, caplog):
    small = ["--set", "net.width=16", "--set", "data.count=500", "--set", "training.batch=64", "--steps", "1"]
    guided = ["--set", "sampling.guidance=2", "--set", "training.label_drop=0.1"]
    assert call("train", "moons", *small, *guided, "--out", "moons", capsys=capsys)[0] == 0
    draw = ["sample", "moons", "--count", "5", "--steps", "2"]
    code, _, err = call(*draw, "--guidance", "2", "--out", "a.npz", capsys=capsys)
    assert (code, err) == (
        2,
        "sfumato: moons has no classes and no other conditions, so there is nothing to guide with; set guidance to 1, or omit it.\n",
    )
    assert not (here / "a.npz").exists()
    caplog.clear()
    assert call(*draw, "--out", "b.npz", capsys=capsys)[0] == 0
    assert ["the recipe's guidance of 2 has no effect" in record.message for record in caplog.records] == [True]
    assert call(*draw, "--guidance", "1", "--out", "c.npz", capsys=capsys)[0] == 0
    assert np.array_equal(np.load("b.npz")["arr_0"], np.load("c.npz")["arr_0"])


def test_points_have_their_pictures(here, capsys):
    small = ["--set", "net.width=16", "--set", "data.count=500", "--set", "training.batch=64", "--steps", "5"]
    assert call("train", "moons", *small, "--out", "moons", capsys=capsys)[0] == 0
    for name in ("p.png", "p.gif", "forward.gif", "p.npz"):
        extra = ["--forward"] if name == "forward.gif" else []
        assert call("sample", "moons", "--count", "50", "--steps", "4", "--out", name, *extra, capsys=capsys)[0] == 0
    assert np.load("p.npz")["arr_0"].shape == (50, 2)
    assert np.load("p.npz")["arr_0"].dtype == np.float32


def test_recipes_are_listed_and_each_is_whole(capsys):
    code, out, _ = call("recipes", capsys=capsys)
    assert code == 0
    for name in ("demo", "fashion", "digits", "cifar10", "folder", "signals", "volumes", *sf.data.TOYS):
        assert name in out
        code, text, _ = call("recipes", name, capsys=capsys)
        assert code == 0
        assert yaml.safe_load(text)["training"]["batch"] > 0


def test_help_has_an_example(capsys):
    for command in ("train", "train-classifier", "sample", "recipes", "zoo"):
        code, out, _ = call(command, "--help", capsys=capsys)
        assert code == 0
        assert "Example: sfumato " in out


def test_debug_shows_the_traceback(here, capsys):
    code, _, err = call("train", "fashon", "--debug", capsys=capsys)
    assert code == 2
    assert "Traceback" in err


def test_a_classifier_is_trained_and_guides(run, here, capsys):
    small = ["--set", "net.widths=[8,8]", "--set", "training.batch=16", "--steps", "3", "--out", "judge"]
    code, out, _ = call("train-classifier", run, *small, capsys=capsys)
    assert code == 0
    assert "accuracy@+8" in out
    assert "after step 3 of 3" in call("train-classifier", run, *small, "--resume", capsys=capsys)[1]
    drawn = [
        call("sample", run, "--classifier", "judge", "--guidance", g, "--count", "4", "--out", f"{g}.npz", capsys=capsys)
        for g in ("0", "9")
    ]
    assert [code for code, _, _ in drawn] == [0, 0]
    assert not np.array_equal(np.load("0.npz")["arr_0"], np.load("9.npz")["arr_0"])


def test_a_run_without_classes_has_no_classifier(here, capsys):
    small = ["--set", "net.width=16", "--set", "data.count=500", "--set", "training.batch=64", "--steps", "1"]
    assert call("train", "moons", *small, "--out", "moons", capsys=capsys)[0] == 0
    code, _, err = call("train-classifier", "moons", capsys=capsys)
    assert (code, "moons has no classes, so there is nothing to classify" in err) == (2, True)


def test_tuned_levels_are_kept_and_used(here, capsys):
    """A tuned walk is used for its steps and guidance alone, and not where a sampler is named."""
    run = here / "tuned"
    sf.train(load_recipe("tiny.yaml", ["sampling.sampler=multistep"]), out=run)
    code, out, _ = call("tune", str(run), "--steps", "3", "--rows", "12", capsys=capsys)
    assert code == 0
    assert "Distance from a fine solution" in out
    sampler = sf.load(run).sampler
    ((steps, guidance), tuned), *others = sampler.tuned.items()
    assert (steps, guidance, others) == (3, 1.0, [])
    assert tuned.error <= tuned.default_error
    assert sampler.plan(steps=3).levels == list(tuned.levels)
    for other in (sampler.plan(steps=4), sampler.plan(steps=3, guidance=2.0), sampler.plan(steps=3, sampler="multistep")):
        assert other.levels != list(tuned.levels)
    (run / "tuned" / "3-guidance-1.json").write_text("{")
    code, _, err = call("sample", str(run), "--out", "s.npz", capsys=capsys)
    assert code == 1
    assert "3-guidance-1.json is damaged" in err


@pytest.mark.parametrize(
    ("data", "suffix"), [("{kind: digits}", "png"), ("{kind: toy, name: moons, count: 100}", "png"), ("{kind: array, path: x.npy}", "npz")]
)
def test_what_is_advised_at_the_end_of_a_training_works(here, data, suffix, capsys):
    np.save("x.npy", np.random.default_rng(0).standard_normal((50, 3), dtype=np.float32))
    net = [] if "digits" in data else ["--set", "net={kind: mlp, width: 8, depth: 1}"]
    code, out, err = call("train", "tiny.yaml", "--set", f"data={data}", *net, "--steps", "1", "--out", "run", capsys=capsys)
    assert code == 0, err
    command = out.splitlines()[-1].removeprefix("Done: run. Sample with: sfumato ").split()
    assert command[-1] == f"samples.{suffix}"
    assert call(*command, "--count", "2", capsys=capsys)[0] == 0
    assert (here / f"samples.{suffix}").is_file()


def test_a_folder_that_is_not_there_is_said_to_be_missing(here, capsys):
    for command in ("doctor", "train"):
        code, _, err = call(command, "runs/nothere", capsys=capsys)
        assert (code, "there is no file or folder runs/nothere" in err, "swiss-roll" in err) == (2, True, False)
