import math
import shutil

import pytest
import torch
import yaml
from runs import train
from torch import nn

import sfumato as sf
from sfumato import load_recipe
from sfumato import storage as checkpoint
from sfumato.cli import main
from sfumato.storage import CheckpointError
from sfumato.training.ema import Ema, coefficients, exponent
from sfumato.training.folder import only_writer


def profile(width: float, steps: int) -> torch.Tensor:
    """The weight of each step in the average, read off by averaging one-hot parameters."""
    net = nn.Linear(steps, 1, bias=False)
    ema = Ema(net, width)
    for step in range(1, steps + 1):
        net.weight.data = torch.nn.functional.one_hot(torch.tensor([step - 1]), steps).to(net.weight)
        ema.update(net, step)
    return ema.tensors["weight"][0]


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_profile_is_the_power_function_of_its_width(width):
    """Weights grow as (i/n)^γ and their relative standard deviation over the run is the width. Karras et al. (2024), eq. 126."""
    steps = 2000
    weights, t = profile(width, steps), (torch.arange(steps) + 0.5) / steps
    assert math.isclose(weights.sum().item(), 1.0, rel_tol=1e-9)
    mean = (weights * t).sum()
    assert math.isclose((weights * (t - mean).square()).sum().sqrt().item(), width, rel_tol=5e-3)
    slope = (weights[-1] / weights[steps // 2 - 1]).log() / math.log(2)
    assert math.isclose(slope.item(), exponent(width), rel_tol=5e-3)


def test_the_first_update_forgets_the_initial_weights():
    net = nn.Linear(3, 3)
    ema = Ema(net, 0.1)
    nn.init.ones_(net.weight)
    ema.update(net, 1)
    assert torch.equal(ema.tensors["weight"], torch.ones(3, 3))


def test_impossible_widths_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.288\)"):
        exponent(0.4)


def line(step, width):
    """The average of weights that are the step's number, after `step` steps: that of τ under the profile, half a step on."""
    gamma = exponent(width)
    return step * (gamma + 1) / (gamma + 2) + 0.5


def power(step, width):
    """The average of weights that are the step's square, to the order of a step: that of τ² under the profile."""
    gamma = exponent(width)
    return step**2 * (gamma + 1) / (gamma + 3) + step * (gamma + 1) / (gamma + 2)


@pytest.mark.parametrize("count", [10, 20, 40])
@pytest.mark.parametrize("width", [0.03, 0.075, 0.15, 0.2])
def test_sums_of_profiles_are_other_profiles(width, count):
    """On weights whose average is known, and with the error that the fit tells: Cauchy-Schwarz bounds that of the average by it."""
    n, widths = 2000, (0.05, 0.1)
    parts = [(w, step) for step in range(n // count, n + 1, n // count) for w in widths]
    shares, misfit = coefficients([w for w, _ in parts], [step for _, step in parts], width=width, step=n)
    gamma, mean = exponent(width), line(n, width)
    norm = (gamma + 1) / math.sqrt((2 * gamma + 1) * n)
    for closed, spread in ((line, math.sqrt(n**3 / 12)), (power, math.sqrt(n**5 * 4 / 45))):  # ‖f - its mean‖ over the run
        made = sum(share * closed(step, w) for share, (w, step) in zip(shares, parts, strict=True))
        assert abs(made - closed(n, width)) < 1.1 * misfit * norm * spread + 2
    assert abs(made - power(n, width)) < 0.05 * mean**2
    assert abs(shares.sum() - 1) < 1e-9


def test_the_error_of_a_sum_is_the_distance_of_the_profiles():
    """Against quadrature of the densities themselves."""
    n = 1000.0
    parts = [(0.05, 250), (0.1, 250), (0.05, 600), (0.1, 1000)]
    shares, misfit = coefficients([w for w, _ in parts], [step for _, step in parts], width=0.14, step=1000)
    tau = (torch.arange(400_000) + 0.5) * n / 400_000

    def density(width, step):
        gamma = exponent(width)
        return torch.where(tau <= step, (gamma + 1) * (tau / step).pow(gamma) / step, 0.0)

    wanted = density(0.14, 1000)
    made = sum(share * density(w, step) for share, (w, step) in zip(shares.tolist(), parts, strict=True))
    assert math.isclose((made - wanted).norm() / wanted.norm(), misfit, rel_tol=1e-3)
    for nudge in torch.randn(5, 4) * 0.01:  # and no other sum of one comes nearer
        nudge -= nudge.mean()
        other = made + sum(float(d) * density(w, step) for d, (w, step) in zip(nudge, parts, strict=True))
        assert (other - wanted).norm() > (made - wanted).norm()


def test_a_profile_that_is_there_is_itself():
    shares, misfit = coefficients([0.05, 0.1, 0.1], [500, 500, 1000], width=0.1, step=1000)
    assert misfit < 1e-6
    torch.testing.assert_close(torch.from_numpy(shares), torch.tensor([0.0, 0.0, 1.0]), atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training that tracks four widths, and keeps snapshots of all."""
    folder = tmp_path_factory.mktemp("ema")
    tree = {
        "data": {"kind": "digits"},
        "net": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
        "training": {
            "steps": 400,
            "batch": 16,
            "warmup": 2,
            "rate": 3e-3,
            "checkpoint_every": 400,
            "log_every": 100,
        },
        "runtime": {"precision": "float32"},
        "sampling": {"steps": 2},
    }
    tree["training"] |= {"ema": [0.05, 0.1, 0.075, 0.15], "snapshot_every": 20, "trackers": []}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    torch.set_default_dtype(torch.float32)
    out = train(load_recipe(folder / "tiny.yaml"), folder / "run")
    torch.set_default_dtype(torch.float64)
    return out


@pytest.fixture
def two(run, tmp_path):
    """The same run as if it had tracked 0.05 and 0.1 alone."""
    folder = tmp_path / "two"
    shutil.copytree(run, folder)
    recipe = load_recipe(folder / "recipe.yaml", ["training.ema=[0.05, 0.1]"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    for path in [*folder.glob("*/*/ema-0.075*"), *folder.glob("*/*/ema-0.150*")]:
        path.unlink()
    return folder


@pytest.mark.parametrize("width", [0.075, 0.15])
def test_a_reconstructed_average_is_that_which_would_have_been_tracked(run, two, width):
    path, misfit = sf.reconstruct_ema(two, width)
    assert path == two / f"checkpoints/00000400/ema-{width:.3f}.safetensors"
    made, tracked = checkpoint.read_tensors(path), checkpoint.read_tensors(run / path.relative_to(two))
    nearest = checkpoint.read_tensors(
        run / "checkpoints/00000400" / f"ema-{min((0.05, 0.1), key=lambda w: abs(w - width)):.3f}.safetensors"
    )
    flat = lambda tensors: torch.cat([tensors[name].double().flatten() for name in sorted(tracked)])  # noqa: E731
    error, distance = ((flat(made) - flat(tracked)).norm(), (flat(nearest) - flat(tracked)).norm())
    assert error < 0.03 * distance
    assert misfit < 0.01
    assert {value.dtype for value in made.values()} == {value.dtype for value in tracked.values()}
    loaded = sf.load(two, ema=width)
    assert all(torch.equal(value, made[name]) for name, value in loaded.network.net.state_dict().items())


def test_snapshots_are_kept_for_good_and_are_the_averages_of_their_step(run):
    assert checkpoint.steps_in(run / "snapshots") == list(range(20, 401, 20))
    ours, theirs = (checkpoint.read_tensors(run / place / "00000400/ema-0.100.safetensors") for place in ("snapshots", "checkpoints"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_width_that_the_snapshots_do_not_reach_is_refused(two):
    with pytest.raises(ValueError, match=r"19 snapshots of width 0\.05, 0\.1 cannot approximate width 0\.005 \(profile error"):
        sf.reconstruct_ema(two, 0.005)
    with pytest.raises(ValueError, match="already tracks the average of width 0.05"):
        sf.reconstruct_ema(two, 0.05)
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.288\)"):
        sf.reconstruct_ema(two, 0.3)
    shutil.rmtree(two / "snapshots")
    with pytest.raises(ValueError, match=r"has no snapshots .* training\.snapshot_every above 0"):
        sf.reconstruct_ema(two, 0.15)


def test_a_damaged_snapshot_is_named(two):
    path = two / "snapshots/00000200/ema-0.100.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="00000200/ema-0.100.safetensors is damaged"):
        sf.reconstruct_ema(two, 0.15)
    assert not list(two.glob("checkpoints/*/ema-0.150*"))


def test_a_run_in_training_is_left_alone(two):
    with only_writer(two), pytest.raises(ValueError, match="another process is training into"):
        sf.reconstruct_ema(two, 0.15)


def test_the_command_makes_an_average_that_sample_takes(two, tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    for arguments, words in (
        (["sample", two, "--ema", "0.15", "--out", tmp_path / "s.npz"], "sfumato ema"),
        (["ema", two, "--width", "0.15"], "its profile differs by 0."),
        (["sample", two, "--ema", "0.15", "--count", "4", "--out", tmp_path / "s.npz"], "Wrote"),
        (["ema", "zoo:digits", "--width", "0.15"], "give a run folder"),
    ):
        with pytest.raises(SystemExit):
            main([str(word) for word in arguments])
        assert words in "".join(capsys.readouterr())
    assert (tmp_path / "s.npz").is_file()
