"""diffusers' UNet2DModel and its pipelines beside ours: the same outputs, the same weights there and back, the same images."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sfumato as sf
from sfumato.cli import app
from sfumato.convert import save_diffusers
from sfumato.convert.imported import as_model
from sfumato.recipe import load_recipe
from sfumato.storage import CheckpointError
from sfumato.tasks.options import Sampling

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # their warnings

SMALL = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
ADM = {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")}
CONFIGS = {
    "default": {},
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "downsample_padding": 0, "attention_head_dim": None},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "norm_num_groups": 16},
    "scale and shift, norm in the middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "classes": {"num_class_embeds": 5},
    "no attention": {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False},
    "no middle": {"mid_block_type": None, "layers_per_block": 2},
    "attention on one way": {"up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "attention_head_dim": 16},
    "residual resampling": {**ADM, "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"},
    "three resolutions, grey, oblong": {
        "sample_size": (8, 12),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "learned variance": {"out_channels": 6},
    "learned steps": {"time_embedding_type": "learned", "num_train_timesteps": 1000, "time_embedding_dim": 48},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def their_unet(**options):
    """Random everywhere, so that no weight could be left out or mixed up unseen."""
    model = diffusers.UNet2DModel(**{**SMALL, **options}).float().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def saved(folder, model, scheduler=None):
    diffusers.DDPMPipeline(model, scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def question(model, rows=4):
    """An input, steps from the first to the last, and labels."""
    size = model.config.sample_size
    x = torch.randn(rows, model.config.in_channels, *((size, size) if isinstance(size, int) else size))
    labels = torch.arange(rows) if model.config.num_class_embeds else None
    return x, torch.tensor([0, 1, 500, 999]), labels


def ours_of(run, x, steps, labels):
    log_snr = run.schedule.log_snr((steps + 1).double() / len(run.schedule)).to(x)
    with torch.no_grad():
        return run.network.net(x, log_snr, None if labels is None else {"labels": labels})


def theirs_of(model, x, steps, labels):
    with torch.no_grad():
        return model(x, steps, class_labels=labels).sample


@every_config
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_outputs_are_equal(name, dtype, tolerance, tmp_path):
    theirs = their_unet(**CONFIGS[name])
    run = sf.load(saved(tmp_path, theirs))
    theirs.to(dtype), run.network.to(dtype)
    x, steps, labels = question(theirs)
    ours, wanted = ours_of(run, x.to(dtype), steps, labels), theirs_of(theirs, x.to(dtype), steps, labels)
    scale = float(wanted.abs().max())
    assert scale > 0.1
    assert float((ours - wanted).abs().max()) < tolerance * max(1.0, scale)


@every_config
def test_they_come_back(name, tmp_path):
    """As a folder that diffusers reads: the same weights to the bit, the same outputs to the bit."""
    theirs = their_unet(**CONFIGS[name])
    save_diffusers(sf.load(saved(tmp_path / "theirs", theirs)), tmp_path / "ours")
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours").unet
    assert theirs.state_dict().keys() == again.state_dict().keys()
    assert [key for key, value in theirs.state_dict().items() if not torch.equal(value, again.state_dict()[key])] == []
    x, steps, labels = question(theirs)
    assert torch.equal(theirs_of(again.eval(), x.float(), steps, labels), theirs_of(theirs, x.float(), steps, labels))


@every_config
def test_what_came_back_is_loaded_again(name, tmp_path):
    run = sf.load(saved(tmp_path / "theirs", their_unet(**CONFIGS[name])))
    save_diffusers(run, tmp_path / "ours")
    again = sf.load(tmp_path / "ours")
    assert torch.equal(again.schedule.betas, run.schedule.betas)
    assert again.recipe.net == run.recipe.net
    assert again.spec == run.spec
    assert all(torch.equal(a, b) for a, b in zip(run.network.parameters(), again.network.parameters(), strict=True))


def test_between_two_steps_is_between_their_answers(tmp_path):
    """A network of theirs takes broken steps, and a log-SNR between two levels of its chain is one."""
    theirs = their_unet()
    run = sf.load(saved(tmp_path, theirs))
    x = torch.randn(2, 3, 8, 8)
    ends = run.schedule.log_snr(torch.tensor([301.0, 302.0]).double() / 1000)
    middle = torch.lerp(ends[0], ends[1], 0.25).expand(2).float()
    torch.testing.assert_close(run.network.net(x, middle), theirs_of(theirs, x, torch.tensor([300.25, 300.25]), None), rtol=1e-4, atol=1e-4)


LINEAR = {"beta_schedule": "linear"}
SCHEDULES = {
    "linear": LINEAR,
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "own": {"trained_betas": [0.01, 0.02, 0.3, 0.4], "num_train_timesteps": 4},
    "no signal at the end": {"rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_chains_are_equal(name, tmp_path):
    """To what float32 leaves of their running product."""
    scheduler = diffusers.DDPMScheduler(**SCHEDULES[name], prediction_type="v_prediction")
    chain = sf.load(saved(tmp_path, their_unet(), scheduler)).schedule
    signal = torch.stack([chain.level((i + 1) / len(chain)).alpha.square() for i in range(len(chain))])
    torch.testing.assert_close(signal, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


SAMPLING = {
    "ddpm": ("DDPMScheduler", {}, {}),
    "ddpm, large variance, not clipped": ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, {}),
    "ddpm, learned variance": ("DDPMScheduler", {"variance_type": "learned_range"}, {"out_channels": 6}),
    "ddim": ("DDIMScheduler", {}, {}),
    "ddim, trailing, v, no signal at first": (
        "DDIMScheduler",
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False},
        {},
    ),
    "ddim, x0": ("DDIMScheduler", {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}, {}),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_the_same_noise_gives_the_same_images(name, tmp_path):
    kind, options, network = SAMPLING[name]
    scheduler = getattr(diffusers, kind)(**options)
    pipeline = (diffusers.DDIMPipeline if kind == "DDIMScheduler" else diffusers.DDPMPipeline)(their_unet(**network), scheduler)
    pipeline.save_pretrained(tmp_path)
    extra = {"use_clipped_model_output": True} if kind == "DDIMScheduler" else {}
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(4, generator=torch.Generator().manual_seed(1), num_inference_steps=10, output_type="np", **extra).images
    generator = torch.Generator().manual_seed(1)
    plan = sf.load(tmp_path).sampler.plan(steps=10)
    noise = torch.randn(4, 3, 8, 8, generator=generator)
    ours = sf.sample(plan.predict, noise, plan.levels, plan.step, generator=generator)
    images = (ours / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert float(images.std()) > 0.05
    torch.testing.assert_close(images, torch.from_numpy(theirs), rtol=0, atol=1e-4)


def test_a_run_of_it_samples(tmp_path):
    run = sf.load(saved(tmp_path, their_unet(num_class_embeds=5)))
    assert run.sample(6, steps=3).labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert run.sample(2, steps=3, labels=[4]).values.shape == (2, 8, 8, 3)
    assert run.predictor(torch.randn(1, 3, 8, 8), run.schedule.level(0.5), {"labels": torch.tensor([2])}).x0.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="never trained without a label"):
        run.predictor(torch.randn(1, 3, 8, 8), run.schedule.level(0.5))
    with pytest.raises(ValueError, match="its data are not included"):
        run.recipe.data.load()


def test_the_command_line_samples_it(tmp_path):
    saved(tmp_path / "pipe", their_unet())
    done = CliRunner().invoke(app, ["sample", str(tmp_path / "pipe"), "--count", "2", "--steps", "2", "--out", str(tmp_path / "s.png")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "s.png").is_file()


@pytest.mark.parametrize("schedule", ["cosine", "discrete"])
@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_a_network_of_ours_becomes_theirs(schedule, target, tmp_path):
    """It sees the log-SNR; written with one learned row a step, it is the same function at every step of the chain."""
    net = "net={kind: unet, channels: [32, 64], attention: [false, true], blocks: 1}"
    objective, ends = f"objective={{target: {target}, times: {{kind: uniform}}}}", ("log_snr_max", "log_snr_min")
    changes = [net, f"schedule={{kind: {schedule}}}", objective, *(f"sampling.{end}=null" for end in ends)]
    recipe = load_recipe("fashion", changes)
    spec = sf.DataSpec((1, 8, 8), sf.data.IMAGES, {"labels": sf.Classes(("a", "b"))}, 1.0)
    denoiser = recipe.build(spec).float().eval()
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    run = sf.Model("ours", recipe, spec, denoiser)
    save_diffusers(run, tmp_path, steps=50)
    pipeline, again = diffusers.DDPMPipeline.from_pretrained(tmp_path), sf.load(tmp_path)
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, -1])
    steps = torch.tensor([0, 7, 30, 49])
    times = (steps + 1).double() / 50 if schedule == "cosine" else (steps + 1).double() / 1000
    wanted = run.network.net(x, run.schedule.log_snr(times).float(), {"labels": labels})
    theirs = theirs_of(pipeline.unet, x, steps, labels.where(labels >= 0, 2))
    torch.testing.assert_close(theirs, wanted, rtol=1e-5, atol=1e-5)
    assert len(again.schedule) == (50 if schedule == "cosine" else 1000)
    level = run.schedule.level(times, like=x)
    vp = again.schedule.level((steps + 1).double() / len(again.schedule), like=x)
    torch.testing.assert_close(level.log_snr, vp.log_snr, rtol=1e-4, atol=1e-4)
    shown = {"labels": labels.where(labels >= 0, 2)}
    torch.testing.assert_close(again.predictor(x, vp, shown).eps, run.predictor(x, level, {"labels": labels}).eps, rtol=1e-3, atol=1e-3)


OLD = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")]


def test_old_names_and_bin_files_are_read(tmp_path):
    theirs = their_unet()
    saved(tmp_path, theirs)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    old = {}
    for name, value in theirs.state_dict().items():
        for new, before in OLD:
            name = name.replace(new, before)
        old[name] = value
    assert len(set(old) - set(theirs.state_dict())) == 32
    torch.save(old, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    x, steps, _ = question(theirs)
    torch.testing.assert_close(ours_of(sf.load(tmp_path), x.float(), steps, None), theirs_of(theirs, x.float(), steps, None))


class Trap:
    """Code in a pickle."""

    def __reduce__(self):
        return (open, ("/dev/null", "w"))


def broken(folder, what):
    """The folder with something wrong."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "missing":
        weights.unlink()
    elif what == "code":
        weights.unlink()
        torch.save({"conv_in.weight": Trap()}, weights.with_suffix(".bin"))
    elif what == "a list":
        weights.unlink()
        torch.save([torch.zeros(1)], weights.with_suffix(".bin"))
    else:
        tensors = load_file(weights)
        if what == "unknown":
            tensors["conv_extra.weight"] = torch.zeros(1)
        elif what == "lacking":
            del tensors["mid_block.resnets.1.conv2.bias"]
        elif what == "shape":
            tensors["conv_in.weight"] = torch.zeros(32, 3, 5, 5)
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", "diffusion_pytorch_model.safetensors cannot be read"),
        ("missing", "diffusion_pytorch_model.safetensors is missing"),
        ("code", "contains more than tensors"),
        ("a list", "no mapping from names to tensors"),
        ("unknown", "contains conv_extra.weight, which this architecture does not have"),
        ("lacking", "lacks mid_block.resnets.1.conv2.bias"),
        ("shape", r"conv_in.weight has shape \[32, 3, 5, 5\], but the configuration needs \[32, 3, 3, 3\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(what, message, tmp_path):
    broken(saved(tmp_path, their_unet()), what)
    with pytest.raises(CheckpointError, match=message):
        sf.load(tmp_path)


UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (UNET, {"center_input_sample": True}, "center_input_sample=True cannot be represented"),
        (UNET, {"act_fn": "mish"}, "act_fn=mish cannot be represented"),
        (UNET, {"time_embedding_type": "fourier"}, "time_embedding_type=fourier"),
        (UNET, {"class_embed_type": "timestep"}, "class_embed_type=timestep"),
        (UNET, {"mid_block_scale_factor": 1.5}, "mid_block_scale_factor=1.5"),
        (UNET, {"downsample_padding": 2}, "downsample_padding=2"),
        (UNET, {"attention_head_dim": 7}, "attention_head_dim=7"),
        (UNET, {"norm_num_groups": 24}, "norm_num_groups=24"),
        (UNET, {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down_block_types with SkipDownBlock2D"),
        (UNET, {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]}, "must all resample in the same way"),
        (UNET, {"down_block_types": ["DownBlock2D"]}, "down_block_types has 1 entries"),
        (UNET, {"out_channels": 4}, "out_channels must be in_channels"),
        (UNET, {"sample_size": None}, "sample_size is missing"),
        (UNET, {"layers_per_block": "two"}, "layers_per_block='two' has the wrong type"),
        (UNET, {"fourier_scale": 16}, "fourier_scale cannot be represented"),
        (UNET, {"_class_name": "UNet2DConditionModel"}, "is of a UNet2DConditionModel"),
        (SCHEDULER, {"beta_schedule": "laplace"}, "beta_schedule=laplace"),
        (SCHEDULER, {"thresholding": True}, "thresholding=True"),
        (SCHEDULER, {"variance_type": "learned"}, "variance_type=learned cannot"),
        (SCHEDULER, {"variance_type": "learned_range"}, "variance_type=learned_range needs out_channels of 6"),
        (SCHEDULER, {"timestep_spacing": "linspace"}, "timestep_spacing=linspace"),
        (SCHEDULER, {"clip_sample_range": 2.0}, "clip_sample_range=2.0"),
        (SCHEDULER, {"steps_offset": 1}, "steps_offset=1"),
        (SCHEDULER, {"_class_name": "PNDMScheduler"}, "is of a PNDMScheduler"),
        (INDEX, {"_class_name": "StableDiffusionPipeline"}, "is a StableDiffusionPipeline"),
    ],
)
def test_what_cannot_be_represented_is_named(file, change, message, tmp_path):
    path = saved(tmp_path, their_unet()) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        sf.load(tmp_path)


@pytest.mark.parametrize("missing", [UNET, SCHEDULER])
def test_a_missing_file_is_named(missing, tmp_path):
    (saved(tmp_path, their_unet()) / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} cannot be read"):
        sf.load(tmp_path)


def ours_with(*, data_std=1.0, target=sf.eps_target, net=None, shape=(1, 8, 8), **layout):
    net = net or sf.nets.UNet(shape, sf.nets.UNetLayout(**{"channels": (32, 64), "attention": (False, True), **layout}))
    run = as_model("ours", net, shape, sf.Discrete.linear(50), sf.eps_target, Sampling())
    run.network.data_std, run.network.target = data_std, target
    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_std": 0.5}, "data of standard deviation 0.5, as no UNet2DModel does"),
        ({"target": sf.flow_target}, "support the targets eps, x0 and v"),
        ({"resample": "pool"}, "pool"),
        ({"channels": (20, 64)}, r"normalisations with \[20, 28, 32\] groups"),
        ({"middle": (True,)}, r"middle=\(True,\) cannot"),
        ({"middle_groups": 0, "scales": False}, "middle_groups=0 with scales=False"),
        ({"attention": (True, True)}, r"heads of \[8, 16\] channels cannot"),
        ({"shape": (1, 16)}, "not a U-Net of images"),
    ],
)
def test_what_theirs_cannot_be_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_diffusers(ours_with(**options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="exists and is not empty"):
        save_diffusers(ours_with(), tmp_path)


def test_a_trained_run_becomes_a_pipeline(tmp_path):
    changes = [
        "net={kind: unet, channels: [32, 64], attention: [false, true], blocks: 1}",
        "objective={target: eps, data_std: 1}",
        "schedule={kind: discrete, betas: cosine, steps: 100}",
        *(f"sampling.{end}=null" for end in ("log_snr_max", "log_snr_min")),
    ]
    run = sf.train(load_recipe("digits", changes, steps=2), out=tmp_path / "run")
    save_diffusers(run, tmp_path / "pipe")
    unet = diffusers.DDPMPipeline.from_pretrained(tmp_path / "pipe").unet
    x, steps, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 40, 99]), torch.tensor([0, 9, 3])
    eps = run.predictor(x, run.schedule.level((steps + 1).double() / 100, like=x), {"labels": labels}).eps
    torch.testing.assert_close(theirs_of(unet, x, steps, labels), eps, rtol=1e-5, atol=1e-5)


def test_its_recipe_is_complete(tmp_path):
    run = sf.load(
        saved(tmp_path / "pipe", their_unet(), diffusers.DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2"))
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(run.recipe.to_yaml())
    assert load_recipe(path) == run.recipe
    assert torch.equal(load_recipe(path).schedule.build().betas, run.schedule.betas)
    with pytest.raises(ValueError, match="schedule.steps is 10, but there are 20 betas"):
        load_recipe(path, ["schedule.steps=10"])


def test_it_has_no_averages(tmp_path):
    with pytest.raises(ValueError, match="only one set of weights; remove --ema"):
        sf.load(saved(tmp_path, their_unet()), ema=0.1)
