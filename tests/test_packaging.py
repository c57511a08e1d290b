"""What an installation needs: the core is enough for everything that no extra is named for, and the files beside the code agree with it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import sfumato as sf

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def names(requirements):
    return {IMPORTED_AS.get(name, name) for name in (re.split(r"[\[><=]", each)[0] for each in requirements)}


CORE = names(PROJECT["dependencies"])
BEYOND = {  # what may be imported where, when it is needed, of an extra or of what is compared with
    "data/hugging_face.py": {"datasets", "pyarrow", "huggingface_hub"},
    "metrics/": {"scipy", "sklearn"},
    "evaluation/judge.py": {"sklearn"},
    "bench/": {"diffusers", "denoising_diffusion_pytorch", "azula", "k_diffusion"},
}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_the_code_imports_the_core_and_what_extras_are_named_for():
    unknown = {}
    for path in (ROOT / "src" / "sfumato").rglob("*.py"):
        where = path.relative_to(ROOT / "src" / "sfumato").as_posix()
        allowed = {"sfumato"}.union(CORE, sys.stdlib_module_names, *(more for place, more in BEYOND.items() if where.startswith(place)))
        found = {name.partition(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))} - allowed
        if found:
            unknown[where] = found
    assert not unknown


def test_the_core_holds_no_package_for_toys_or_curves():
    assert not CORE & {"sklearn", "scipy", "tensorboard"}


def test_every_extra_holds_something_that_is_pinned_and_in_the_development_environment():
    extras = PROJECT["optional-dependencies"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for requirements in (PROJECT["dependencies"], *extras.values()):
        assert requirements
        plain = {re.split(r"[\[><=]", each)[0].lower().replace("_", "-") for each in requirements} - {"sfumato"}
        assert plain <= {name.replace("_", "-") for name in pinned}
    (ours,) = (each for each in extras["dev"] if each.startswith("sfumato["))
    assert set(re.findall(r"[a-z]+", ours.removeprefix("sfumato"))) == extras.keys() - {"dev"}


def test_the_files_for_readers_agree_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"].split(":")[0], citation["version"], citation["cff-version"]) == ("sfumato", sf.__version__, "1.2.0")
    assert citation["authors"]
    assert citation["message"]
    assert (ROOT / "SECURITY.md").is_file()
    for file in PROJECT["license-files"]:
        assert (ROOT / file).is_file()


def test_a_missing_tracker_of_an_extra_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("sfumato.training.trackers.get_available_trackers", list)
    with pytest.raises(ValueError, match=r"tensorboard is not installed; run pip install 'sfumato\[tensorboard\]', or train without it"):
        sf.train(sf.load_recipe("digits", ["training.trackers=[tensorboard]"], steps=1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trackers_are_asked_for():
    assert sf.Training().trackers == ()
