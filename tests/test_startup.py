"""What is loaded, and when: help and completion load no torch, a name its own modules; and no module reads one that stands above it."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato as sf
from sfumato.cli import COMMANDS
from sfumato.options import RESTORATION_METHODS, SAMPLER_NAMES
from sfumato.restoration.tasks import METHODS
from sfumato.tasks.options import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "sfumato"
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "accelerate", "tensorboard", "sklearn", "scipy", "datasets"}


def loaded(code, **environment):
    """Every module that a Python of its own has read after some code, and what the code printed."""
    end = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
    done = subprocess.run(
        [sys.executable, "-c", end + code], capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


def tops(modules):
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in ("sample", "train", "verify"))], ids=" ".join)
def test_help_loads_no_torch_and_only_the_command_asked_for(arguments):
    modules, text = loaded(f"import sys; sys.argv = ['sfumato']; from sfumato.cli import main; main({arguments!r})")
    assert "Usage: sfumato" in text
    assert not tops(modules) & HEAVY
    commands = {name.replace("-", "_") for name in COMMANDS}
    read = {name for name in commands if f"sfumato.cli.{name}" in modules}
    assert read == (commands if arguments[0] == "--help" else {arguments[0]})


def test_import_loads_nothing_but_the_list_of_names():
    modules, _ = loaded("import sfumato")
    assert not tops(modules) & (HEAVY | {"pydantic", "yaml", "typer", "rich"})
    assert {name for name in modules if name.startswith("sfumato")} == {"sfumato", "sfumato.deprecated"}


def test_the_mathematics_loads_no_recipes_and_loading_a_model_no_trainer():
    mathematics = "import sfumato as sf; sf.sample, sf.Cosine, sf.GaussianMixture, sf.guide; print(*sys.modules)"
    modules, text = loaded(f"{mathematics}; sf.load")
    others = {"matplotlib", "accelerate", "tensorboard", "sklearn", "scipy", "datasets", "typer", "rich"}
    assert not tops(text.split()) & (others | {"pydantic", "yaml"})
    assert not tops(modules) & others


def test_what_enters_itself_where_it_is_defined_is_there_without_being_named():
    """Kinds of models, data and codecs are known to who loads a run, whatever else was used before."""
    code = """
import pkgutil
from importlib import import_module
import sfumato as sf
sf.load
from sfumato.data.options import DATA_KINDS
from sfumato.data.source import CODECS
from sfumato.task import KINDS
before = [sorted(KINDS), sorted(CODECS), len(DATA_KINDS)]
for module in pkgutil.walk_packages(sf.__path__, "sfumato."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
print(before == [sorted(KINDS), sorted(CODECS), len(DATA_KINDS)], "vocabulary" in CODECS)
"""
    assert loaded(code)[1].split() == ["True", "True"]


def test_every_public_name_is_there_under_its_name():
    for name in sf.__all__:
        assert getattr(sf, name) is not None
    assert set(sf.__all__) <= set(dir(sf))
    names: dict = {}
    exec("from sfumato import *", names)
    assert set(sf.__all__) <= set(names)
    assert names["sample"] is sf.sample is sys.modules["sfumato.sampling.loop"].sample
    assert sf.train is sys.modules["sfumato.training.trainer"].train
    assert sf.spacing is sys.modules["sfumato.sampling.spacing"]
    assert sf.storage is sys.modules["sfumato.storage"]  # no public name, but a module of the package
    with pytest.raises(AttributeError, match="module 'sfumato' has no attribute 'sampel'"):
        _ = sf.sampel
    with pytest.raises(ImportError, match="cannot import name 'sampel'"):
        exec("from sfumato import sampel")


@pytest.mark.slow
def test_type_checkers_see_every_name_and_find_no_fault_in_the_readme(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) > 3
    head = "import torch\nimport sfumato as sf\nmy_module = torch.nn.Linear(2, 2)\nmy_dataset = sf.data.toy('moons', 9, 0)\n"
    for i, block in enumerate(blocks):
        (tmp_path / f"block_{i}.py").write_text(head + block, encoding="utf-8")
    lines = [f"sf.{name}" for name in sf.__all__]
    (tmp_path / "names.py").write_text("\n".join(["import sfumato as sf", *lines, "sf.sampel"]), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("pyright")), "--outputjson", "--level", "error", "--pythonpath", sys.executable]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path)
    faults = [f"{Path(each['file']).name}: {each['message']}" for each in json.loads(done.stdout)["generalDiagnostics"]]
    assert faults == ['names.py: "sampel" is not a known attribute of module "sfumato"']


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("t", ["train", "train-classifier", "tune"]),
        ("sample --gui", ["--guidance"]),
        ("--show", ["--show-completion"]),
    ],
)
def test_completion_loads_no_torch(words, expected):
    code = "import sys; sys.argv = ['sfumato']; from sfumato.cli import main; main()"
    count = str(len(words.split()))
    modules, text = loaded(code, _SFUMATO_COMPLETE="complete_bash", COMP_WORDS=f"sfumato {words}", COMP_CWORD=count)
    assert text.split() == expected
    assert not tops(modules) & HEAVY


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_each_shell(shell):
    code = f"import sys; sys.argv = ['sfumato']; from sfumato.cli import main; main(['--show-completion', {shell!r}])"
    modules, text = loaded(code, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_SFUMATO_COMPLETE" in text
    assert not tops(modules) & HEAVY


def test_the_names_that_help_shows_are_those_that_there_are():
    assert list(SAMPLER_NAMES) == list(SAMPLERS)
    assert list(RESTORATION_METHODS) == list(METHODS)


def imports(path):
    """The modules of sfumato that a file reads when it is run, in functions too, but not those that are for type checkers alone."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] == "sfumato":
                for alias in child.names:
                    yield child.module if child.module != "sfumato" else f"sfumato.{alias.name}"
            elif isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names if alias.name.split(".")[0] == "sfumato")
            yield from walk(child)

    return set(walk(ast.parse(path.read_text(encoding="utf-8"))))


def unit(path):
    """The part of sfumato that a file or a module belongs to: a package or a module of the first level."""
    return path.relative_to(SOURCES).parts[0].removesuffix(".py") if isinstance(path, Path) else path.split(".")[1]


UNITS: dict[str, set[str]] = {}
for file in SOURCES.rglob("*.py"):
    if unit(file) not in ("__init__", "__main__"):
        UNITS.setdefault(unit(file), set()).update(map(unit, imports(file)))


def test_no_part_imports_one_that_imports_it():
    """At any depth, in functions too: laziness hides no circle."""
    left = {name: others - {name} for name, others in UNITS.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def test_imports_go_the_way_that_architecture_says():
    line = re.search(r"Imports go in one direction: (.*)\.", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert line is not None
    layers = [layer.split(", ") for layer in line[1].split(" → ")]
    assert len(layers) > 5
    rank = {name: i for i, layer in enumerate(layers) for name in layer}
    assert rank.keys() <= UNITS.keys()
    upward = [(name, other) for name in rank for other in UNITS[name] & rank.keys() if rank[other] > rank[name]]
    assert not upward
