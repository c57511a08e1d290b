"""The ledger, row by row; the other implementation's numbers; and that both can fail."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import long_walk

import sfumato as sf
from sfumato.cli import main
from sfumato.verify import ledger, reference
from sfumato.verify.ledger import Result, Row, rows, run, standard_errors, worst

REFERENCE = Path(os.environ.get("SFUMATO_TEST_REFERENCE", Path(__file__).parents[2] / "shared" / "reference" / "improved_diffusion.npz"))


@long_walk
@pytest.mark.parametrize("each", rows(), ids=lambda each: f"{each.check.__module__.rpartition('.')[2]}: {each.id}")
def test_a_row_holds(each):
    (result,) = run([each])
    assert result.passed, f"{each.equation}: error {result.error:.3g} over {each.tolerance:.3g} ({each.how}) {result.raised}"


def test_the_ledger_is_whole():
    ledger_ = rows()
    assert len(ledger_) >= 60
    assert all(each.equation and each.notes and each.function and each.how and each.tolerance > 0 for each in ledger_)


@pytest.mark.parametrize("error", [math.nan, math.inf, 1.1])
def test_an_error_beyond_the_tolerance_has_not_passed(error):
    assert not Result(Row("r", "e", "n", "f", lambda: error, 1.0), error, 0.0).passed


def test_a_check_that_raises_has_failed():
    def check() -> float:
        """A refusal."""
        raise ValueError("no")

    (result,) = run([Row("r", "e", "n", "f", check, 1.0)])
    assert not result.passed
    assert result.raised == "ValueError: no"


def test_checks_have_names():
    """A traceback or a profile of the ledger names the check; the ones of a family of methods may share theirs."""
    names = [each.check.__name__ for each in rows()]
    assert all(name.strip("_") for name in names)
    assert len(set(names)) > 0.8 * len(names)


def test_an_id_is_taken_once():
    with pytest.raises(ValueError, match="already"):
        ledger.row(rows()[0].id, "e", notes="n", function="f", tolerance=1.0)(lambda: 0.0)


def test_small_numbers_are_compared_at_their_size():
    assert worst(torch.tensor([1e-9]), torch.tensor([2e-9])) == pytest.approx(0.5)
    assert math.isnan(worst(torch.tensor([math.nan, 1.0]), torch.tensor([1.0, 1.0])))


def test_standard_errors_of_a_shifted_mean():
    draws = torch.tensor([[0.0], [2.0]]).repeat(50, 1)
    assert standard_errors(draws, 2.0) == pytest.approx(1 / (float(draws.std()) / 10))


def test_a_wrong_sign_is_named(monkeypatch, capsys):
    right = sf.process._noise_share
    monkeypatch.setattr(sf.process, "_noise_share", lambda t, s: right(t, s) * 1.001)
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--only", "posterior"])
    assert stop.value.code == 1
    assert "posterior-variance" in capsys.readouterr().out.splitlines()[-1]


def test_an_unknown_row_is_bad_use(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--only", "no-such-row"])
    assert stop.value.code == 2
    assert 'no row of the ledger has "no-such-row"' in capsys.readouterr().err


def test_json_has_every_row(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--json", "--only", "kl-"])
    assert stop.value.code == 0
    assert {"kl-table", "kl-gauss"} <= {record["id"] for record in json.loads(capsys.readouterr().out)}


def chain_of_theirs(steps=7):
    """A small case as the public code would write it: the arithmetic of the papers on betas, with NumPy."""
    betas = np.linspace(0.02, 0.3, steps)
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    rng = np.random.default_rng(0)
    t = np.array([1, 3, 6])
    draws = {name: rng.standard_normal((3, 2, 2, 2)) for name in ("eps", "noise", "network_mean_output", "network_var_output")}
    x0 = rng.integers(0, 256, (3, 2, 2, 2)) / 127.5 - 1
    at = lambda values: values[t].reshape(3, 1, 1, 1)  # noqa: E731
    x_t = np.sqrt(at(alphas)) * x0 + np.sqrt(1 - at(alphas)) * draws["eps"]
    known = {"base_betas": betas, "kept_timesteps": np.arange(steps), "t": t, "x0": x0, **draws}
    theirs = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "posterior_variance": variance,
        "posterior_mean_coef_x0": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef_xt": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
        "x_t": x_t,
        "eps/fixed_small/loss_mse": ((draws["eps"] - draws["network_mean_output"]) ** 2).mean((1, 2, 3)),
        "eps/fixed_small/clip0/pred_x0": (x_t - np.sqrt(1 - at(alphas)) * draws["network_mean_output"]) / np.sqrt(at(alphas)),
    }
    return {f"seven/{key}": value for key, value in (known | theirs).items()}


def test_another_file_of_the_layout_passes(tmp_path):
    np.savez(tmp_path / "seven.npz", **chain_of_theirs())
    results = list(reference.compare(tmp_path / "seven.npz"))
    assert len(results) == 8
    assert all(result.passed for result in results)


@pytest.mark.parametrize("key", [key for key in chain_of_theirs() if key.removeprefix("seven/") not in reference.INPUTS])
def test_a_number_that_is_off_is_found(tmp_path, key, capsys):
    values = chain_of_theirs()
    values[key] = values[key] * (1 + 1e-7)
    np.savez(tmp_path / "off.npz", **values)
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--reference", str(tmp_path / "off.npz")])
    assert stop.value.code == 1
    assert f"Broken: {key}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"seven/nonsense": np.zeros(3)}, 'no key "nonsense"'),
        (lambda v: v | {"nocase": np.zeros(3)}, "CASE/NAME"),
        (lambda v: {k: x for k, x in v.items() if k != "seven/t"}, "lacks t"),
    ],
    ids=["key", "case", "input"],
)
def test_a_file_of_another_layout_is_refused(tmp_path, change, message):
    np.savez(tmp_path / "wrong.npz", **change(chain_of_theirs()))
    with pytest.raises(ValueError, match=message):
        list(reference.compare(tmp_path / "wrong.npz"))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("numbers")
    with pytest.raises(ValueError, match="cannot be read as an .npz"):
        list(reference.compare(tmp_path / "text.npz"))


@pytest.mark.skipif(not REFERENCE.is_file(), reason="numbers of another implementation are not here")
def test_every_number_of_improved_diffusion_agrees():
    results = list(reference.compare(REFERENCE))
    assert len(results) > 500
    assert not [result for result in results if not result.passed]
