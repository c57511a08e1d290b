from itertools import permutations

import pytest
import torch
import yaml

import sfumato as sf
from sfumato.recipe import load_recipe, read_tree, recipe_names


def test_a_recipe_survives_its_yaml(tmp_path):
    for name in ("digits", "fashion", "moons", "demo"):
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe.to_yaml())
        assert load_recipe(path) == recipe


def test_set_reaches_any_depth():
    recipe = load_recipe("digits", ["training.rate=0.5", "objective.times={kind: uniform}", "net.kind=mlp", "net.width=7"])
    assert recipe.training.rate == 0.5
    assert recipe.objective.times.kind == "uniform"
    assert (recipe.net.kind, recipe.net.width) == ("mlp", 7)


def test_a_base_is_overlaid(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "fashion", "training": {"batch": 3}, "net": {"kind": "mlp"}}))
    mine, fashion = load_recipe(tmp_path / "mine.yaml"), load_recipe("fashion")
    assert mine.training.batch == 3
    assert mine.training.rate == fashion.training.rate
    assert mine.net.kind == "mlp"


def test_differences_name_their_paths():
    assert load_recipe("digits").differences(load_recipe("digits", ["training.batch=3"])) == ["training.batch: 128 → 3"]


NEED_PATH = ("cifar10", "cifar100", "folder", "datasets", "datasaurus", "table", "signals", "volumes")


@pytest.mark.parametrize("name", [n for n in recipe_names() if n not in NEED_PATH and "model" not in read_tree(n)])
def test_shipped_recipes_build(name):
    recipe = load_recipe(name)
    assert isinstance(recipe, sf.Recipe)
    assert isinstance(recipe, sf.Diffusion)
    recipe.schedule.build()
    shape = {"mlp": (2,)}.get(recipe.net.kind, (1, 8, 8))
    recipe.net.build(shape, {"labels": sf.Classes(("a", "b"))})


def refusal(name, changes):
    with pytest.raises(ValueError, match=r"\.$|yaml") as refused:
        load_recipe(name, changes)
    assert len(str(refused.value)) < 300  # a sentence, without the recipe in it
    return str(refused.value)


@pytest.mark.parametrize("name", ["digits", "swiss-roll", "ldm-digits", "vdm-digits"])
def test_a_sampler_of_learned_variances_needs_one(name):
    sentence = refusal(name, ["sampling.sampler=ancestral-learned"])
    assert sentence.startswith(f"{name}: sampling.sampler=ancestral-learned needs a learned variance")
    assert "set sampling.sampler=ancestral," in sentence
    load_recipe(name, ["sampling.sampler=ancestral"])
    if name in ("digits", "swiss-roll"):
        learned = ["objective.variance=learned", "objective.loss=hybrid", "schedule.kind=discrete"]
        assert load_recipe(name, ["sampling.sampler=ancestral-learned", *learned]).objective.variance == "learned"


CHAINS = ["{kind: discrete, zero_terminal: true}", "{kind: discrete, betas: [0.1, 1.0], steps: 2}", "{kind: discrete}", "{kind: ve}", "{}"]


@pytest.mark.parametrize("target", ["x0", "eps", "v", "score", "flow", "edm"])
@pytest.mark.parametrize("schedule", CHAINS)
def test_a_target_that_is_blind_where_sampling_begins_is_refused(schedule, target):
    """Where the two equations for x0 and eps are one at the last level, and nowhere else."""
    changes = [f"schedule={schedule}", f"objective.target={target}"]
    last = load_recipe("moons", changes[:1]).schedule.build().level(torch.ones((), dtype=torch.float64), like=torch.ones(()))
    try:
        sf.Prediction.solve(torch.ones(()), torch.ones(()), last, getattr(sf, f"{target}_target"))
    except ValueError:
        assert f"moons: objective.target={target} does not determine the data" in refusal("moons", changes)
        load_recipe("moons", [*changes[:1], "objective.target=v"])
    else:
        load_recipe("moons", changes)
    assert target not in ("eps", "score") or ("zero" not in schedule and "1.0" not in schedule) or bool(last.alpha == 0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("moons", ["data.path=x.npy", "data.kind=array", "data.labels=y.npy"]),
        ("digits", ["net.width=7", "net={kind: mlp, depth: 2}", "net.waves=3"]),
        ("digits", ["objective.times.bins=4", "objective.times.kind=fitted", "training.rate=0.5"]),
        ("digits", ["schedule.steps=50", "schedule.kind=discrete", "schedule.zero_terminal=true"]),
        ("digits", ["schedule.kind=ve", "sampling.log_snr_max=null", "sampling.steps=3"]),
        ("vae-digits", ["model.levels=[[0, 2]]", "model.kind=ladder", "likelihood.std=0.1", "likelihood.kind=gaussian"]),
    ],
)
def test_the_order_of_changes_does_not_matter(name, changes):
    first, *others = (load_recipe(name, order) for order in permutations(changes))
    assert all(other == first for other in others)
    assert load_recipe(name, [*changes, changes[0]]) == first


def test_of_two_values_for_one_option_the_later_holds():
    assert load_recipe("digits", ["net.kind=mlp", "net.width=7", "net.width=9"]).net.width == 9
    assert load_recipe("digits", ["schedule.kind=ve", "schedule.kind=discrete"]).schedule.kind == "discrete"
    assert load_recipe("digits", ["training.steps=7"], steps=9).training.steps == 9


@pytest.mark.parametrize("kind", ["discrete", "ve"])
def test_another_schedule_leaves_the_ends_of_the_curve_behind(kind, tmp_path):
    """By a change, and in a file that stands on a recipe; where both are said, the sentence names what to set."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "digits", "schedule": {"kind": kind}}))
    for recipe in (load_recipe("digits", [f"schedule.kind={kind}"]), load_recipe(tmp_path / "mine.yaml")):
        assert (recipe.schedule.kind, recipe.sampling.log_snr_max, recipe.sampling.log_snr_min) == (kind, None, None)
        assert recipe.sampling.guidance == load_recipe("digits").sampling.guidance
    assert "set sampling.log_snr_max=null and sampling.log_snr_min=null" in refusal(
        "digits", [f"schedule.kind={kind}", "sampling.log_snr_max=9"]
    )
    flow = load_recipe("digits", ["schedule.kind=flow"])
    assert (flow.sampling.log_snr_max, flow.sampling.log_snr_min) == (9, -9)  # between the ends of a curve they keep their meaning


def test_a_curve_without_a_kind_keeps_its_ends(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"data": {"kind": "digits"}, "net": {"kind": "mlp"}, "schedule": {"log_snr_max": 12}})
    )
    assert load_recipe(tmp_path / "mine.yaml", ["schedule.kind=cosine"]).schedule.log_snr_max == 12
    assert load_recipe(tmp_path / "mine.yaml", ["schedule.kind=discrete"]).schedule.kind == "discrete"


@pytest.mark.parametrize("place", ["runs/nothere", "here", "full"])
def test_a_folder_that_is_no_recipe_is_said_to_be_one(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "recipe.yaml").write_text("")
    (tmp_path / "digits").mkdir()
    said = {"runs/nothere": "there is no file or folder", "here": "here holds no recipe.yaml", "full": "its recipe is full/recipe.yaml"}
    sentence = refusal(place, [])
    assert said[place] in sentence
    assert "swiss-roll" not in sentence
    assert load_recipe("digits").data.kind == "digits"  # a folder of a recipe's name hides no recipe
