"""Kinds of model that the library has never seen, each a file of its own in `kinds/`: trained, logged, sampled.

Kills and several processes: `faults/test_every_kind.py`.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.cli import main
from sfumato.cli.imports import import_file

KINDS = Path(__file__).parent / "kinds"
RATES = {"bernoulli-tokens": 0.1, "point-sets": 0.02}
FILES = {"bernoulli-tokens": KINDS / "bernoulli_tokens.py", "point-sets": KINDS / "point_sets.py"}
every_kind = pytest.mark.parametrize("kind", FILES)


@pytest.fixture(autouse=True)
def _float32() -> None:
    """As people train, and as the command does."""
    torch.set_default_dtype(torch.float32)


def recipe_file(folder: Path, kind: str, steps: int = 300) -> Path:
    path = folder / f"{kind}.yaml"
    training = (
        f"training: {{steps: {steps}, batch: 50, rate: {RATES[kind]}, warmup: 5, log_every: 10, checkpoint_every: 50, trackers: []}}\n"
    )
    path.write_text(f"model: {kind}\ndata: {{kind: {kind}}}\n{training}runtime: {{precision: float32}}\n")
    return path


def command(kind: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "sfumato", "--import", str(FILES[kind]), *map(str, arguments)]


def run(kind: str, *arguments: object) -> str:
    """What the command says, in this process, which has imported all that a new one would wait for."""
    with redirect_stdout(StringIO()) as told, pytest.raises(SystemExit) as end:
        main(command(kind, *arguments)[3:])
    assert end.value.code == 0, told.getvalue()
    return told.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Both kinds, trained from the command line."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in FILES:
        run(kind, "train", recipe_file(folder, kind), "--out", folder / kind)
    return folder


@every_kind
def test_the_doctor_reads_its_recipe_and_its_run(trained, kind, tmp_path):
    told = run(kind, "doctor", recipe_file(tmp_path, kind))
    assert told.startswith("On this machine")
    assert told.endswith("Nothing found.\n")
    assert run(kind, "doctor", trained / kind) == "Nothing found.\n"
    fast = recipe_file(tmp_path, kind)
    fast.write_text(fast.read_text().replace(f"rate: {RATES[kind]}", "rate: 1.0e+4"))
    done = subprocess.run(command(kind, "doctor", fast), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rate-too-high" in done.stdout


@every_kind
def test_it_is_logged(trained, kind):
    lines = [json.loads(line) for line in (trained / kind / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 301, 10))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


@every_kind
def test_samples_of_the_command_and_of_python_are_the_same(trained, kind, tmp_path):
    import_file(FILES[kind])
    run(kind, "sample", trained / kind, "--count", 40, "--batch", 7, "--out", tmp_path / "s.npz")
    model = sf.load(trained / kind)
    torch.testing.assert_close(np.load(tmp_path / "s.npz")["arr_0"], model.sample(40, batch=40).values, equal_nan=True)


def test_tokens_have_the_frequencies_of_the_data(trained):
    import_file(FILES["bernoulli-tokens"])
    model = sf.load(trained / "bernoulli-tokens")
    data = model.recipe.data.load()
    drawn = model.sample(20_000, batch=20_000).values
    assert drawn.dtype == np.int64
    np.testing.assert_allclose(drawn.mean(0), data.values.mean(0), atol=0.02)  # three standard errors are 0.011
    assert model.recipe.metrics(None, data) == {}


def test_sets_have_the_sizes_and_the_spread_of_the_data(trained):
    import_file(FILES["point-sets"])
    model = sf.load(trained / "point-sets")
    drawn, there = model.sample(2000, batch=2000).values, model.recipe.data.load()
    sizes = (~np.isnan(drawn[..., 0])).sum(1)
    np.testing.assert_allclose(np.bincount(sizes, minlength=7)[1:] / 2000, 1 / 6, atol=0.035)
    for values in (drawn[sizes > 1], np.where(there.mask[..., None], there.points, np.nan)[there.mask.sum(1) > 1]):
        within, between = np.nanstd(values, axis=1).mean(), np.nanstd(np.nanmean(values, axis=1))
        assert within < 0.5 * between  # points of a set lie together; sets lie apart


def test_padding_changes_no_figure():
    import_file(FILES["point-sets"])
    sets = sys.modules[next(name for name in sys.modules if name.endswith("kinds_point_sets"))]
    task, draw = sets.PointSets(), sf.Draw(seed=0, step=1, count=8, rows=slice(0, 8))
    torch.manual_seed(0)
    net = task.build(sets.Sets(8).spec)
    clean, dirty = (task.loss(net, sets.Sets(8, garbage).batch(np.arange(8)), draw, None).per_example for garbage in (0.0, 1e6))
    torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


def test_a_loss_of_the_wrong_shape_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks that only tests have speak before our own

    class Whole(sf.Diffusion):
        def loss(self, model, batch, draw, state):
            return sf.LossTerms(super().loss(model, batch, draw, state).per_example.mean())

    task = Whole(net=sf.nets.options.MLPNet(width=8, depth=1))
    with pytest.raises(ValueError, match=r"the loss of Whole\w* must be one number an example, \[16\], got shape \(\)"):
        sf.train(
            task, np.random.default_rng(0).normal(size=(50, 2)), tmp_path / "run", training=sf.Training(steps=2, batch=16, trackers=())
        )


def test_an_unknown_kind_says_how_to_bring_it(tmp_path):
    path = recipe_file(tmp_path, "bernoulli-tokens")
    path.write_text(path.read_text().replace("bernoulli-tokens", "bernoulli-tokns"))
    done = subprocess.run(
        [sys.executable, "-m", "sfumato", "train", str(path)], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 2
    assert "--import FILE.py" in done.stderr


def test_an_import_that_failed_is_tried_again(tmp_path):
    file = tmp_path / "mine.py"
    for content, outcome in (
        ("1 / 0", pytest.raises(ZeroDivisionError)),
        ("1 / 0  ", pytest.raises(ZeroDivisionError)),
        ("", nullcontext()),
    ):
        file.write_text(content)
        with outcome:
            import_file(file)
