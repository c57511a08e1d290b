"""The noise-conditioned classifier: it learns what can be known, resumes to the bit, guides its run, and refuses strangers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_train import TINY

import sfumato as sf
from sfumato.classifier import Classifier
from sfumato.classifiers import recipe_for
from sfumato.storage import CheckpointError, read_spec, steps_in
from sfumato.tasks.classifier import LOG_SNRS

SMALL = ["net.widths=[8,8]", "training.batch=16", "training.checkpoint_every=2", "training.log_every=2", "training.keep=10"]
GAUSSIANS = sf.GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2]),
    torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]], [[0.2, -0.05], [-0.05, 0.2]]]),
)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def run_of(folder, tree, changes=()):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return sf.train(sf.load_recipe(folder / "recipe.yaml", [*changes]), out=folder / "run")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of digits, barely trained: the classifier only shares its data."""
    torch.set_default_dtype(torch.float32)
    return run_of(tmp_path_factory.mktemp("digits"), TINY, ["training.steps=2", "training.checkpoint_every=2", "training.held_out=0.1"])


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A run of labelled points from a mixture."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("points")
    x0, labels = GAUSSIANS.sample(20_000, torch.Generator().manual_seed(0))
    np.savez(folder / "points.npz", arr_0=x0.float().numpy(), arr_1=labels.numpy())
    tree = {
        "data": {"kind": "array", "path": str(folder / "points.npz")},
        "net": {"kind": "mlp", "width": 8, "depth": 1, "waves": 0},
        "training": {"steps": 2, "batch": 256},
        "runtime": {"precision": "float32"},
    }
    return run_of(folder, tree)


def weights(folder, step, stem):
    return load_file(folder / "checkpoints" / f"{step:08d}" / f"{stem}.safetensors")


@pytest.mark.usefixtures("unchecked")
def test_a_classifier_learns_what_can_be_known(points, tmp_path):
    """Cross-entropy and guided scores near those of the exact classifier of the mixture, from almost clean to almost all noise."""
    changes = ["net.width=48", "net.depth=2", "training.rate=3e-3", "training.weight_decay=0", "training.batch=256"]
    recipe = recipe_for(points, changes, steps=300)
    learnt = sf.train_classifier(points, recipe, tmp_path / "c").double()
    batch = points.recipe.data.load().batch(np.arange(6000))
    x0, labels = batch.x.double(), batch.cond["labels"].value
    parts = [x0[labels == k] for k in range(3)]
    exact = sf.GaussianMixture(
        labels.bincount() / len(labels), torch.stack([part.mean(0) for part in parts]), torch.stack([part.T.cov() for part in parts])
    )
    level = points.schedule.level(torch.linspace(0.02, 0.98, len(x0)), like=x0)
    x, cond = level.alpha * x0 + level.sigma * torch.randn(x0.shape, dtype=torch.float64), {"labels": labels}
    best, ours = (-sf.guide.label_log_prob(c)(x, level, cond).mean() for c in (exact.log_class, learnt.log_class))
    assert best < ours < 1.03 * best
    free = sf.guide.unconditional(exact)
    guided, wanted = sf.guide.classifier(free, learnt, 1.0)(x, level, cond).eps, exact(x, level, cond).eps
    before, after = (wanted - free(x, level, cond).eps).square().mean(), (wanted - guided).square().mean()
    assert after < 0.1 * before


def test_a_classifier_without_signal_knows_the_prior():
    scaling = sf.Scaling(shift=0.0, scale=1.0, dtype="float32")
    spec = sf.DataSpec((2,), scaling, {"labels": sf.Classes(("a", "b", "c"))}, 0.7)
    prior = torch.tensor([0.5, 0.3, 0.2])
    judge = Classifier(ThreeOfTwo(), spec, prior)
    x = torch.randn(5, 2)
    blind = sf.Level(torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(judge.log_class(x, blind), prior.log().expand(5, 3))
    level = sf.Level(torch.tensor(0.3), torch.tensor(0.8))
    r = (0.21**2 + 0.8**2) ** 0.5
    wanted = (prior.log() + 0.21 / r * ThreeOfTwo()(x / r, None, None)).log_softmax(1)
    torch.testing.assert_close(judge.log_class(x, level), wanted)
    labels = torch.tensor([0, 1, 2, -1, 0])
    assert judge(x, level, {"labels": labels})[3] == 0
    torch.testing.assert_close(judge(x, level, {"labels": labels})[:3], wanted[:3].diagonal())


class ThreeOfTwo(torch.nn.Module):
    """Three numbers from two."""

    def forward(self, x, log_snr, cond):
        return torch.cat([3 * x, x.prod(1, keepdim=True)], dim=1)


def test_a_resumed_classifier_ends_in_the_same_bits(digits, tmp_path):
    recipe = recipe_for(digits, SMALL, steps=6)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sf.train_classifier(digits, recipe, whole)
    asked = iter([False] * 2 + [True])
    with pytest.raises(sf.Stopped, match="stopped after step 3 of 6"):
        sf.train_classifier(digits, recipe, cut, callbacks=sf.Callbacks(should_stop=lambda: next(asked)))
    assert steps_in(cut / "checkpoints") == [2, 3]
    sf.train_classifier(digits, recipe, cut, resume=True)
    for stem in ("model", "ema-0.100", "optimizer"):
        ours, theirs = weights(cut, 6, stem), weights(whole, 6, stem)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    strip = lambda run: [  # noqa: E731
        {k: v for k, v in json.loads(line).items() if "second" not in k and "memory" not in k}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert strip(cut) == strip(whole)
    assert [line["step"] for line in strip(whole)] == [2, 4, 6]
    assert {f"accuracy@{log_snr:+d}" for log_snr in LOG_SNRS} <= strip(whole)[0].keys()


def test_the_classifiers_own_folder_is_whole(digits, tmp_path):
    recipe = recipe_for(digits, SMALL, steps=2)
    folder = tmp_path / "c"
    judge = sf.train_classifier(digits, recipe, folder)
    assert {"recipe.yaml", "manifest.json", "metrics.jsonl", "report.json", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert recipe.training.held_out == 0.1
    examples, _ = recipe.divided(recipe.data.load())
    counts = examples.batch(np.arange(len(examples))).cond["labels"].value.bincount()
    loaded = sf.load_classifier(folder)
    torch.testing.assert_close(loaded.log_prior, ((counts + 1) / (counts + 1).sum()).log())
    assert torch.equal(loaded.log_prior, judge.log_prior)
    assert loaded.spec == read_spec(folder) == digits.spec


def test_a_run_is_guided_by_its_classifier(digits, tmp_path):
    """Batches do not show, γ does, and γ = 0 is the model without labels."""
    judge = sf.train_classifier(digits, recipe_for(digits, SMALL, steps=4), tmp_path / "c")
    options = {"steps": 3, "sampler": "ancestral"}
    whole, cut = (digits.sample(6, guidance=5.0, classifier=judge, batch=batch, **options).values.astype(int) for batch in (6, 4))
    assert np.abs(whole - cut).max() <= 1
    levels, labels = digits.sampler.plan(steps=3).levels, torch.arange(6)
    noise = sf.normal_like(torch.empty(6, 1, 8, 8), sf.row_generators(0, range(6)))
    by_hand = sf.guide.classifier(sf.guide.unconditional(digits.predictor), judge, 5.0)
    x0 = sf.sample(by_hand, levels[0].sigma * noise, levels, sf.steps.DDIM(), {"labels": labels})
    ours = digits.sample(6, guidance=5.0, classifier=judge, steps=3, sampler="ddim").values
    assert np.array_equal(ours, digits.spec.codec.decode(x0))
    free = sf.sample(digits.predictor, levels[0].sigma * noise, levels, sf.steps.DDIM(), {"labels": torch.full((6,), -1)})
    zero = digits.sample(6, guidance=0.0, classifier=judge, steps=3, sampler="ddim").values
    assert np.array_equal(zero, digits.spec.codec.decode(free))


def test_any_differentiable_function_guides_a_run(points):
    """Pulled along the first axis, without a classifier at all."""
    push = lambda x_t, level, cond: level.alpha * x_t[:, 0]  # noqa: E731
    plain, pushed = (points.sample(50, guidance=g, classifier=push, steps=10, sampler="ddim").values[:, 0].mean() for g in (0.0, 2.0))
    assert pushed > plain + 0.5


def test_strangers_are_refused(digits, points, tmp_path):
    judge = sf.train_classifier(digits, recipe_for(digits, SMALL, steps=2), tmp_path / "c")
    with pytest.raises(ValueError, match=r"the classifier was trained on other data than .*: its shape is \(1, 8, 8\), not \(2,\)"):
        points.sample(4, classifier=judge)
    with pytest.raises(ValueError, match=r"for data of shape \(1, 8, 8\), got x_t of shape \(4, 2\)"):
        judge.log_class(torch.zeros(4, 2), sf.Cosine().level(0.5))
    with pytest.raises(ValueError, match="must have one positive share for each class"):
        Classifier(judge.net, judge.spec, torch.ones(3))


def test_other_data_than_the_runs_are_refused(points, tmp_path):
    x0, labels = GAUSSIANS.sample(100, torch.Generator().manual_seed(1))
    np.savez(tmp_path / "other.npz", arr_0=x0.float().numpy(), arr_1=labels.numpy())
    with pytest.raises(ValueError, match="was trained on other data"):
        sf.train_classifier(points, recipe_for(points, [f"data.path={tmp_path / 'other.npz'}"]), tmp_path / "c")


def test_a_model_that_never_dropped_a_label_has_nothing_to_guide(tmp_path):
    run = run_of(tmp_path / "r", TINY, ["training.steps=1", "training.label_drop=0"])
    with pytest.raises(ValueError, match="was trained without label dropping"):
        run.sample(2, classifier=lambda x_t, level, cond: x_t.sum((1, 2, 3)))


def test_a_classifier_keeps_every_label(digits):
    with pytest.raises(ValueError, match=r"set training\.label_drop=0"):
        recipe_for(digits, ["training.label_drop=0.5"])
    with pytest.raises(ValueError, match=r"there is no option net\.wdiths; did you mean net\.widths\?"):
        recipe_for(digits, ["net.wdiths=[3]"])


@pytest.mark.parametrize(("shape", "patch"), [((1, 8, 8), 1), ((3, 13, 22), 2), ((1, 5, 9), 1)])
def test_patch_classifiers_take_any_size(shape, patch):
    net = sf.nets.PatchClassifier(shape, 7, patch=patch, widths=(4, 6, 8))
    x = torch.randn(3, *shape)
    out = net(x, torch.tensor([-3.0, 0.0, 3.0]))
    assert out.shape == (3, 7)
    torch.testing.assert_close(net(x[1:2], torch.zeros(1)), out[1:2])


def test_patch_classifiers_take_images_only():
    with pytest.raises(ValueError, match="PatchClassifier takes images"):
        sf.nets.PatchClassifier((2,), 3)


def test_a_run_keeps_its_classifier_within(digits):
    """As the command does where no place is named; a damaged one says so."""
    home = Path(digits.name) / "classifier"
    trained = sf.train_classifier(digits, recipe_for(digits, SMALL, steps=1), home)
    inside, itself = sf.load_classifier(digits.name), sf.load_classifier(home)
    assert all(torch.equal(a, b) for a, b in zip(inside.state_dict().values(), trained.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inside.state_dict().values(), itself.state_dict().values(), strict=True))
    path = home / "checkpoints" / "00000001" / "ema-0.100.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"ema-0\.100\.safetensors is damaged"):
        sf.load_classifier(digits.name)
