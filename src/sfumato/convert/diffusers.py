"""Reads and writes folders of diffusers' DDPM and DDIM pipelines, without diffusers.

FOLDER/model_index.json   unet/config.json, unet/diffusion_pytorch_model.safetensors (or .bin)   scheduler/scheduler_config.json

Step i of their chain, from 0, is our level k = i + 1. Options that a configuration leaves out have diffusers' defaults; options that cannot
be represented are refused by name.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.condition import class_labels
from sfumato.convert.imported import as_model, knots
from sfumato.convert.names import Names, give, label_rows, read_weights, take
from sfumato.denoiser import Denoiser
from sfumato.model import Model
from sfumato.nets import UNet, UNetLayout
from sfumato.nets.layers import LearnedTimesteps, TimestepSinusoids
from sfumato.nets.unet import SelfAttention
from sfumato.prediction import Target, eps_target, v_target, x0_target
from sfumato.sampling import grid, spacing
from sfumato.schedule import Discrete, Schedule
from sfumato.tasks.options import Sampling

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

TARGETS: Mapping[str, Target] = {"epsilon": eps_target, "sample": x0_target, "v_prediction": v_target}

UNET = {  # every option of a UNet2DModel, and its default if config.json does not have it
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
UNET_CHOICES = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
BLOCKS = {  # a block's attention, and how it resamples; None: as down- or upsample_type says
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}

SCHEDULER = {  # the same of a DDPMScheduler and a DDIMScheduler
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}
SCHEDULER_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned_range"),
    "prediction_type": tuple(TARGETS),
    "thresholding": (False,),
    "timestep_spacing": ("leading", "trailing"),
    "steps_offset": (0,),
    "set_alpha_to_one": (True,),
}
SAMPLERS = {
    "fixed_small": "ancestral",
    "fixed_small_log": "ancestral",
    "fixed_large": "ancestral-large",
    "learned_range": "ancestral-learned",
}

NAMES = (  # ours, theirs; replaced one after the other
    (r"^condition\.level\.0\.", "time_embedding.linear_1."),
    (r"^condition\.level\.2\.", "time_embedding.linear_2."),
    (r"^condition\.label\.", "class_embedding."),
    (r"^condition\.features\.", "time_proj."),
    (r"^stem\.", "conv_in."),
    (r"^norm\.", "conv_norm_out."),
    (r"^head\.", "conv_out."),
    (r"^(down|up)\.(\d+)\.(\d+)\.block\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)\.(\d+)\.(\d+)\.attention\.", r"\1_blocks.\2.attentions.\3."),
    (r"^middle\.(\d+)\.block\.", r"mid_block.resnets.\1."),
    (r"^middle\.(\d+)\.attention\.", r"mid_block.attentions.\1."),
    (r"^shrink\.(\d+)\.(?:block\.)?", r"down_blocks.\1.downsamplers.0."),
    (r"^grow\.(\d+)\.(?:block\.)?", r"up_blocks.\1.upsamplers.0."),
    (r"\.modulation\.", ".time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.outward\.", r"\1.to_out.0."),
)
OLD_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))  # attention until 2023


def is_pipeline(model: str | Path) -> bool:
    """Whether this is a folder with a saved diffusers pipeline."""
    return (Path(model) / "model_index.json").is_file()


def load_diffusers(folder: str | Path) -> Model:
    """Loads a DDPM or DDIM pipeline as a model: the same network, its chain, and its scheduler's sampling as the default.

    A DDPMScheduler uses all steps of its chain, a DDIMScheduler 50, as in the pipelines; x0 is clipped if the scheduler clips it, and eps
    follows from the clipped x0 (their `use_clipped_model_output`). What is not in the folder is unknown: classes are named by their
    numbers, and the recipe has no data.

    Raises:
        ValueError: no such pipeline, or an option that cannot be represented (the message names it).
        CheckpointError: weights are missing or damaged, or do not fit the configuration.
    """
    folder = Path(folder)
    _refuse_other_pipelines(folder)
    unet, scheduler = _read_unet(folder / "unet"), _read_scheduler(folder / "scheduler")
    chain = _chain(scheduler)
    net = _build(unet, chain)
    path = next((path for name in WEIGHTS if (path := folder / "unet" / name).is_file()), folder / "unet" / WEIGHTS[0])
    take(net, _renamed(read_weights(path)), THEIRS, str(path))
    if scheduler["variance_type"] == "learned_range" and unet["out_channels"] == unet["in_channels"]:
        raise ValueError(
            f"{folder}: variance_type=learned_range needs out_channels of {2 * unet['in_channels']}, got {unet['out_channels']}."
        )
    is_ddim = scheduler["_class_name"] == "DDIMScheduler"
    sampling = Sampling(
        sampler="ddim" if is_ddim else SAMPLERS[scheduler["variance_type"]],
        steps=min(50, len(chain)) if is_ddim else len(chain),
        spacing=scheduler["timestep_spacing"],
        clip=scheduler["clip_sample"],
    )
    return as_model(str(folder), net, _shape(unet), chain, TARGETS[scheduler["prediction_type"]], sampling)


def save_diffusers(run: Model, folder: str | Path, *, steps: int = 1000) -> None:
    """Writes a model with a `UNet` as a DDPM pipeline that diffusers and `load_diffusers` can read.

    A network that takes the log-SNR is written with a learned embedding of the steps, one row each: its own at the chain's levels. If
    labels can be dropped, "no label" becomes one more class, the last.

    Args:
        run: the model.
        folder: new, or empty.
        steps: steps of the chain that replaces a continuous schedule, uniform in t.

    Raises:
        ValueError: something that a `UNet2DModel` and its schedulers cannot represent (the message names it); a folder that is not empty.
    """
    folder, denoiser = Path(folder), run.network
    net = getattr(denoiser, "net", None)
    if not isinstance(denoiser, Denoiser) or not isinstance(net, UNet) or net.stem.weight.ndim != 4 or not run.spec.is_bytes:
        raise ValueError(f"{run.name} is not a U-Net of images (nets.UNet), the only network that a UNet2DModel can represent.")
    if denoiser.data_std != 1:
        raise ValueError(
            f"the network of {run.name} takes x_t scaled to unit variance for data of standard deviation {denoiser.data_std:.4g}, "
            "as no UNet2DModel does; train with objective.data_std=1."
        )
    predictions = [theirs for theirs, target in TARGETS.items() if target is denoiser.target]
    if not predictions:
        raise ValueError(f"diffusers' schedulers support the targets eps, x0 and v; that of {run.name} is {run.recipe.objective.target}.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not empty; name a new folder.")
    chain = _as_chain(run.schedule, steps)
    config, weights = _config(net, run.spec.sizes[1:], chain), give(net, THEIRS)
    weights.pop("time_proj.weight", None)
    if config["time_embedding_type"] == "learned":
        table = net.condition.features(knots(chain).to(net.stem.weight.device))
        if table.shape[1] != net.layout.channels[0]:
            raise ValueError(
                f"diffusers embeds a step in block_out_channels[0] = {net.layout.channels[0]} numbers, this network {table.shape[1]}."
            )
        weights["time_proj.weight"] = table.detach().to(net.stem.weight)
    sampling = run.recipe.sampling
    scheduler = {
        "num_train_timesteps": len(chain),
        "trained_betas": chain.betas.tolist(),
        "prediction_type": predictions[0],
        "clip_sample": sampling.clip,
        "timestep_spacing": sampling.spacing if sampling.spacing in SCHEDULER_CHOICES["timestep_spacing"] else "leading",
    }
    if sampling.sampler == "ddim":
        scheduler |= {"_class_name": "DDIMScheduler"}
    else:
        large = "fixed_large" if sampling.sampler == "ancestral-large" else "fixed_small"
        scheduler |= {"_class_name": "DDPMScheduler", "variance_type": "learned_range" if denoiser.learns_variance else large}
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", "UNet2DModel"]}
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, folder / "unet" / WEIGHTS[0], metadata={"format": "pt"})
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"} | config, indent=2))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _refuse_other_pipelines(folder: Path) -> None:
    index = _json(folder / "model_index.json")
    if index.get("_class_name") not in ("DDPMPipeline", "DDIMPipeline"):
        raise ValueError(f"{folder} is a {index.get('_class_name')} of diffusers; only a DDPMPipeline or a DDIMPipeline can be loaded.")


def _read_unet(folder: Path) -> dict[str, Any]:
    config = _complete(folder / "config.json", UNET, UNET_CHOICES, ("UNet2DModel",))
    where, channels = folder / "config.json", config["block_out_channels"]
    for name in ("down_block_types", "up_block_types"):
        if len(config[name]) != len(channels):
            raise ValueError(f"{where}: {name} has {len(config[name])} entries, block_out_channels has {len(channels)}.")
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise ValueError(f"{where}: out_channels must be in_channels, or twice that for a learned variance; got {config['out_channels']}.")
    if config["sample_size"] is None:
        raise ValueError(f"{where}: sample_size is missing, so the size of the images is unknown; add it to the file.")
    return config


def _read_scheduler(folder: Path) -> dict[str, Any]:
    config = _complete(folder / "scheduler_config.json", SCHEDULER, SCHEDULER_CHOICES, ("DDPMScheduler", "DDIMScheduler"))
    if config["clip_sample"] and config["clip_sample_range"] != 1:
        raise ValueError(f"{folder}: clip_sample_range={config['clip_sample_range']} cannot be represented; it must be 1.")
    return config


def _complete(path: Path, defaults: Mapping[str, Any], choices: Mapping[str, tuple], classes: tuple[str, ...]) -> dict[str, Any]:
    """A configuration with its defaults filled in; refuses other classes, unknown options, and values that cannot be represented."""
    config = _json(path)
    if config.get("_class_name") not in classes:
        raise ValueError(f"{path} is of a {config.get('_class_name')}; only {' or '.join(classes)} can be loaded.")
    unknown = sorted(name for name in config if not name.startswith("_") and name not in defaults)
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} cannot be represented: unknown option.")
    config = {**defaults, **config}
    for name, default in defaults.items():
        if not _fits(config[name], default):
            raise ValueError(f"{path}: {name}={config[name]!r} has the wrong type; a valid value is {default!r}.")
    for name, known in choices.items():
        if config[name] not in known:
            raise ValueError(f"{path}: {name}={config[name]} cannot be represented; it must be {' or '.join(map(str, known))}.")
    return config


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of the default; null means left out."""
    if value is None or default is None:
        return True
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and len(value) > 0 and all(type(one) is type(default[0]) for one in value)
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) if is_number else isinstance(value, type(default))


def _json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is the folder a complete diffusers pipeline?") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no configuration: expected a JSON object.")
    return config


def _chain(config: Mapping[str, Any]) -> Discrete:
    """The chain of a scheduler's configuration."""
    steps, first, last = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    name = config["beta_schedule"]
    if config["trained_betas"] is not None:
        chain = Discrete(torch.tensor(config["trained_betas"], dtype=torch.float64))
    elif name == "linear":
        chain = Discrete(torch.linspace(first, last, steps, dtype=torch.float64))
    elif name == "scaled_linear":
        chain = Discrete(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square())
    elif name == "squaredcos_cap_v2":
        chain = Discrete.cosine(steps)
    else:
        chain = Discrete(first + (last - first) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid())
    return chain.zero_terminal() if config["rescale_betas_zero_snr"] else chain


def _as_chain(schedule: Schedule, steps: int) -> Discrete:
    """The schedule as a chain: variance preserving, at the same log-SNRs, and its first level one step from the data."""
    if isinstance(schedule, Discrete):
        return schedule
    levels = grid(schedule, steps, spacing=spacing.uniform)[:-1]
    log_alpha_squared = torch.stack([nn.functional.logsigmoid(level.log_snr) for level in levels]).flip(0)
    return Discrete(-torch.expm1(log_alpha_squared.diff(prepend=torch.zeros(1, dtype=torch.float64))))


def _build(config: Mapping[str, Any], chain: Discrete) -> UNet:
    """The network of a configuration, conditioned on the steps of this chain."""
    size, steps = config["block_out_channels"][0], config["num_train_timesteps"]
    if config["time_embedding_type"] == "learned":
        if steps != len(chain):
            raise ValueError(
                f"unet/config.json: num_train_timesteps={steps}, but the scheduler has a chain of {len(chain)}; they must agree."
            )
        features = LearnedTimesteps(size, knots(chain))
    else:
        features = TimestepSinusoids(size, knots(chain), cosine_first=config["flip_sin_to_cos"], shift=float(config["freq_shift"]))
    return UNet(
        _shape(config),
        _layout(config),
        conditions=class_labels(config["num_class_embeds"] or 0),
        out_channels=config["out_channels"],
        features=features,
        given=True,
    )


def _shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    size = config["sample_size"]
    return (config["in_channels"], *([size, size] if isinstance(size, int) else size))


def _layout(config: Mapping[str, Any]) -> UNetLayout:
    """The layout of a configuration."""
    down, up = (_blocks(config, name) for name in ("down_block_types", "up_block_types"))
    channels, groups = tuple(config["block_out_channels"]), config["norm_num_groups"]
    resampled = {how for blocks in (down, up) for _, how in blocks[:-1]} or {"conv"}
    if len(resampled) > 1:
        raise ValueError(
            "unet/config.json: down_block_types and up_block_types with downsample_type and upsample_type mix convolutions and residual "
            "blocks, which cannot be represented; they must all resample in the same way."
        )
    scales = config["resnet_time_scale_shift"] == "scale_shift"
    if groups is None or any(c % groups for c in channels):
        raise ValueError(f"unet/config.json: norm_num_groups={groups} does not divide block_out_channels {list(channels)}.")
    middle_groups = config["attn_norm_num_groups"]
    if middle_groups is not None and channels[-1] % middle_groups:
        raise ValueError(f"unet/config.json: attn_norm_num_groups={middle_groups} does not divide the {channels[-1]} channels.")
    if middle_groups is None and scales:
        middle_groups = 0  # diffusers has no norm there
    try:
        return UNetLayout(
            channels=channels,
            blocks=config["layers_per_block"],
            attention=tuple(here for here, _ in down),
            attention_up=tuple(here for here, _ in reversed(up)),
            middle=() if config["mid_block_type"] is None else (config["add_attention"], False),
            heads=1,
            head_width=config["attention_head_dim"],
            groups=groups,
            middle_groups=middle_groups,
            eps=float(config["norm_eps"]),
            scales=scales,
            resample="conv" if resampled == {"conv"} else "block",
            pads_end=config["downsample_padding"] == 0,
            width=config["time_embedding_dim"],
            dropout=float(config["dropout"]),
        )
    except ValueError as error:
        raise ValueError(f"unet/config.json: attention_head_dim={config['attention_head_dim']} cannot be represented: {error}") from None


def _blocks(config: Mapping[str, Any], name: str) -> list[tuple[bool, str]]:
    """Whether each block has attention, and how it resamples."""
    side, found = name.split("_")[0], []
    for block in config[name]:
        known = BLOCKS.get(block)
        if known is None or side not in block.lower():
            wanted = ", ".join(other for other in BLOCKS if side in other.lower())
            raise ValueError(f"unet/config.json: {name} with {block} cannot be represented; the supported blocks are {wanted}.")
        found.append((known[0], known[1] or config[f"{side}sample_type"]))
    return found


def _config(net: UNet, size: tuple[int, ...], chain: Discrete) -> dict[str, Any]:
    """The configuration of a network; the inverse of `_build`."""
    layout, features, labels = net.layout, net.condition.features, label_rows(net)
    is_placed = isinstance(features, TimestepSinusoids) and features.stride == 1 and torch.equal(features.knots, knots(chain))
    norms = {name: part.num_groups for name, part in net.named_modules() if isinstance(part, nn.GroupNorm)}
    middle = {norms.pop(name) for name in list(norms) if re.fullmatch(r"middle\.\d+\.attention\.norm", name)}
    if layout.resample == "pool":
        raise ValueError('resample="pool" cannot be represented in diffusers, which resamples with convolutions or residual blocks.')
    if len(set(norms.values())) > 1:
        raise ValueError(
            f"normalisations with {sorted(set(norms.values()))} groups cannot be represented in diffusers, which has one number."
        )
    if layout.middle not in ((), (True, False), (False, False)):
        raise ValueError(
            f"middle={layout.middle} cannot be represented in diffusers, which has no middle, or two blocks with attention between."
        )
    groups = norms["norm"]
    middle_groups = middle.pop() if middle else None
    if any(layout.middle) and middle_groups is None and not layout.scales:
        raise ValueError("middle_groups=0 with scales=False cannot be represented in diffusers.")
    width = layout.head_width
    if width is None and layout.heads > 1:
        widths = {part.qkv.in_channels // part.heads for part in net.modules() if isinstance(part, SelfAttention)} or {8}
        if len(widths) > 1:
            raise ValueError(f"heads of {sorted(widths)} channels cannot be represented in diffusers, which has one width; set head_width.")
        width = widths.pop()
    resample = "conv" if layout.resample == "conv" else "resnet"
    plain = ("DownBlock2D", "UpBlock2D") if resample == "conv" else ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    return UNET | {
        "sample_size": size[0] if len(set(size)) == 1 else list(size),
        "in_channels": net.stem.in_channels,
        "out_channels": net.head.out_channels,
        "time_embedding_type": "positional" if is_placed else "learned",
        "time_embedding_dim": layout.width,
        "freq_shift": features.shift if isinstance(features, TimestepSinusoids) and is_placed else 0,
        "flip_sin_to_cos": features.cosine_first if isinstance(features, TimestepSinusoids) else True,
        "down_block_types": ["AttnDownBlock2D" if here else plain[0] for here in layout.attention],
        "mid_block_type": "UNetMidBlock2D" if layout.middle else None,
        "up_block_types": ["AttnUpBlock2D" if here else plain[1] for here in reversed(layout.attention_on_the_way_up)],
        "block_out_channels": list(layout.channels),
        "layers_per_block": layout.blocks,
        "downsample_padding": 0 if layout.pads_end else 1,
        "downsample_type": resample,
        "upsample_type": resample,
        "dropout": layout.dropout,
        "attention_head_dim": width,
        "norm_num_groups": groups,
        "attn_norm_num_groups": middle_groups if layout.scales or middle_groups != groups else None,
        "norm_eps": layout.eps,
        "resnet_time_scale_shift": "scale_shift" if layout.scales else "default",
        "add_attention": any(layout.middle),
        "num_class_embeds": labels or None,
        "num_train_timesteps": None if is_placed else len(chain),
    }


def _theirs(name: str) -> tuple[str, ...]:
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return tuple(name.replace(".qkv.", f".to_{part}.") for part in "qkv") if ".qkv." in name else (name,)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the names that attention weights have had since 2023."""
    renamed = {}
    for name, value in tensors.items():
        for old, new in OLD_NAMES:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


THEIRS = Names(_theirs, lambda name: None, axes=2)
