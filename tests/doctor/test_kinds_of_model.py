"""The doctor on kinds of model other than a plain denoiser: VAEs, ladders, variational and latent diffusion."""

import pytest

import sfumato as sf
from sfumato.cli import main
from sfumato.doctor import Outcome, Plan
from sfumato.recipe import load_recipe

SHORT = {"steps": 60, "batch": 32, "warmup": 3, "checkpoint_every": 60, "log_every": 5}
SMALL = {
    "vae-digits": ["model.widths=[8, 16]"],
    "ldm-digits": ["net.widths=[16, 32]", "net.heads=2", "autoencoder.widths=[8, 16]", "sampling.steps=5"],
}
TRAININGS = {"vae-digits": ["training"], "ldm-digits": ["training", "autoencoder_training"]}


def ids(findings):
    return {finding.id for finding in findings}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each."""
    root = tmp_path_factory.mktemp("kinds")
    for name, changes in SMALL.items():
        short = [f"{training}.{key}={value}" for training in TRAININGS[name] for key, value in SHORT.items()]
        sf.train(load_recipe(name, [*changes, *short]), out=root / name)
    return root


@pytest.mark.parametrize("name", ["vae-digits", "hvae-digits", "vdm-digits", "ldm-digits"])
def test_nothing_is_found_on_recipes_that_ship(name):
    plan = Plan(load_recipe(name, ["runtime.kernels=torch"]), trial_seconds=0.3)
    assert sf.doctor.recipe(plan) == ()
    assert (plan.trial is None) == (name == "ldm-digits")  # whose first stage has one


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("vae-digits", "training.rate=30.0", "rate-too-high"),
        ("vae-digits", "training.rate=1.0e-9", "rate-too-low"),
        ("vae-digits", "training.warmup=1400", "warm-up-too-long"),
        ("vae-digits", "likelihood.values=5", "options-refused"),
        ("hvae-digits", "training.batch=5000", "batch-above-data"),
        ("vdm-digits", "sampling.steps=2", "few-steps"),
        ("vdm-digits", "sampling.guidance=20", "guidance-too-strong"),
        ("vdm-digits", "model.values=5", "options-refused"),
        ("ldm-digits", "sampling.guidance=20", "guidance-too-strong"),
        ("ldm-digits", "data={kind: toy, name: moons}", "options-refused"),
    ],
)
def test_faults_of_their_recipes_are_named(name, change, found):
    trial = 1.0 if found.startswith("rate") else None
    assert found in ids(sf.doctor.recipe(Plan(load_recipe(name, [change]), trial_seconds=trial)))


def test_a_fault_of_the_first_stage_is_named_with_its_own_option():
    small = ["autoencoder.widths=[8, 16]", "autoencoder_training.batch=16", "runtime.kernels=torch"]
    faults = ["autoencoder_training.warmup=700", "autoencoder_training.rate=1.0e-9"]
    plan = Plan(load_recipe("ldm-digits", [*small, *faults]), trial_seconds=3.0)
    found = {finding.id: finding for finding in sf.doctor.recipe(plan)}
    assert set(found) == {"warm-up-too-long", "rate-too-low"}
    assert found["warm-up-too-long"].measured == "In the stage autoencoder: training.warmup is 700 of 800 steps."
    assert found["warm-up-too-long"].change == "--set autoencoder_training.warmup=40"


def test_the_first_stage_has_a_forecast(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "ldm-digits", "--set", "autoencoder.widths=[8, 16]"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("The stage autoencoder: On this machine (cpu): ")


def test_advice_for_a_stage_is_a_command_for_the_whole(runs):
    """The command that is named runs as it stands: it makes the second stage longer, in the folder of the whole."""
    whole = runs / "ldm-digits"
    stage = Outcome(whole / "diffusion", part_of=whole)
    assert stage.longer() == f"sfumato train {whole}/recipe.yaml --out {whole} --set training.steps=240 --resume"
    assert Outcome(runs / "vae-digits").longer().endswith("--steps 240 --resume")


def test_a_short_run_of_a_vae_is_healthy_and_a_damaged_one_is_not(runs, shelf):
    assert ids(sf.doctor.run(runs / "vae-digits", samples=32)) <= {"training-copies"}
    run = shelf.copy(runs / "vae-digits")
    (path,) = (run / "checkpoints").glob("*/ema-*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert "checkpoint-damaged" in ids(sf.doctor.run(run, samples=32))


def test_both_stages_of_latent_diffusion_are_looked_at(runs, shelf, capsys):
    found = sf.doctor.run(runs / "ldm-digits", ["sampling.guidance=20"], samples=16)
    assert "guidance-too-strong" in ids(found)
    assert all(finding.measured.startswith("In the stage diffusion: ") for finding in found if finding.id == "guidance-too-strong")
    assert not {"samples-not-finite", "options-refused", "data-refused", "floats-for-images", "other-data"} & ids(found)
    run = shelf.copy(runs / "ldm-digits")
    (path,) = (run / "autoencoder" / "checkpoints").glob("*/ema-*.safetensors")
    path.unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(run)])
    assert stopped.value.code == 1
    assert "In the stage autoencoder: " in capsys.readouterr().out.split("checkpoint-damaged")[1].splitlines()[1]


def test_no_samples_are_asked_of_what_draws_none(runs):
    outcome = Outcome(runs / "ldm-digits" / "autoencoder")
    assert outcome.run is not None
    assert (outcome.samples, outcome.sample_refusal) == (None, "")
