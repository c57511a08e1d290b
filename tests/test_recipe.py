import pytest
import yaml

from sfumato.train.recipe import Recipe, load_recipe, read_tree, recipe_names


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
    assert isinstance(recipe, Recipe)
    recipe.schedule.build()
    shape = {"mlp": (2,)}.get(recipe.net.kind, (1, 8, 8))
    recipe.net.build(shape, 2)
