"""A recipe: everything that makes a run, as typed options that refuse what they do not know.

A recipe is YAML. `base: NAME` starts from another recipe; `--set path=value` changes one option. What a run keeps is resolved and complete.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import torch
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sfumato import data, loss, nets, prediction, process
from sfumato import schedule as schedules
from sfumato.condition import class_labels
from sfumato.denoiser import CondLike, Predictor
from sfumato.loss import TimeSampler, Weight
from sfumato.sample import Spacing, Step, spacing, steps
from sfumato.train.data_options import Data
from sfumato.train.data_options import FolderData as FolderData  # for those who ask what a recipe reads
from sfumato.train.options import MAY_CHANGE as MAY_CHANGE
from sfumato.train.options import Options, Size, known, unknown

BitsAtLevel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # times [b] and losses [b] to bits/dim for a nat of log-SNR, [b]
BatchLoss = Callable[[Predictor, torch.Tensor, torch.Tensor, torch.Tensor, CondLike | None], torch.Tensor]
Model = TypeVar("Model", bound=Options)
Momentum = Annotated[float, Field(ge=0, lt=1)]


class MLPNet(Options):
    """`nets.MLP`."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(default=256, ge=1)
    depth: int = Field(default=4, ge=1)
    waves: int = Field(default=64, ge=0)

    def build(self, shape: tuple[int, ...], classes: int, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.MLP(
            shape, width=self.width, depth=self.depth, conditions=class_labels(classes), waves=self.waves, out_channels=out_channels
        )


class UNetNet(Options):
    """`nets.UNet`, by the names of `nets.UNetLayout`."""

    kind: Literal["unet"] = "unet"
    channels: tuple[Size, ...] = Field(default=(64, 128, 128), min_length=1)
    blocks: int = Field(default=2, ge=1)
    attention: tuple[bool, ...] = (False, False, True)
    attention_up: tuple[bool, ...] | None = None
    middle: tuple[bool, ...] = (True, False)
    heads: int = Field(default=4, ge=1)
    head_width: int | None = Field(default=None, ge=1)
    groups: int = Field(default=32, ge=1)
    middle_groups: int | None = Field(default=None, ge=0)
    eps: float = Field(default=1e-5, gt=0)
    scales: bool = True
    resample: Literal["conv", "pool", "block"] = "conv"
    pads_end: bool = False
    width: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, shape: tuple[int, ...], classes: int, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        layout = nets.UNetLayout(**self.model_dump(exclude={"kind"}))
        return nets.UNet(shape, layout, conditions=class_labels(classes), out_channels=out_channels)


class DiTNet(Options):
    """`nets.DiT`."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(default=4, ge=1)
    width: int = Field(default=192, ge=1)
    depth: int = Field(default=8, ge=1)
    heads: int = Field(default=6, ge=1)

    def build(self, shape: tuple[int, ...], classes: int, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.DiT(
            shape,
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            conditions=class_labels(classes),
            out_channels=out_channels,
        )


class PatchUNetNet(Options):
    """`nets.PatchUNet`."""

    kind: Literal["patch-unet"] = "patch-unet"
    patch: int = Field(default=2, ge=1)
    widths: tuple[Size, ...] = Field(default=(64, 192), min_length=2)
    depth: int = Field(default=2, ge=0)
    middle: str = "cac"
    heads: int = Field(default=6, ge=1)

    def build(self, shape: tuple[int, ...], classes: int, out_channels: int | None = None) -> torch.nn.Module:
        """The network for data of this shape."""
        return nets.PatchUNet(
            shape,
            patch=self.patch,
            widths=self.widths,
            depth=self.depth,
            middle=self.middle,
            heads=self.heads,
            conditions=class_labels(classes),
            out_channels=out_channels,
        )


Net = Annotated[MLPNet | UNetNet | DiTNet | PatchUNetNet, Field(discriminator="kind")]


class CurveSchedule(Options):
    """A continuous schedule between two log-SNRs, in nats."""

    kind: Literal["cosine", "flow", "linear-vp", "sub-vp"] = "cosine"
    log_snr_max: float = 15.0
    log_snr_min: float = -15.0

    @model_validator(mode="after")
    def _is_a_range(self) -> "CurveSchedule":
        self.build()
        return self

    def build(self) -> schedules.Schedule:
        """The schedule."""
        curve = {"cosine": schedules.Cosine, "flow": schedules.Flow, "linear-vp": schedules.LinearVP, "sub-vp": schedules.SubVP}[self.kind]
        return curve(log_snr_max=self.log_snr_max, log_snr_min=self.log_snr_min)


class VESchedule(Options):
    """The variance-exploding schedule."""

    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)

    def build(self) -> schedules.Schedule:
        """The schedule."""
        return schedules.VE(sigma_min=self.sigma_min, sigma_max=self.sigma_max)


class ChainSchedule(Options):
    """A discrete chain, by the name of its betas or by the betas themselves, one a step."""

    kind: Literal["discrete"] = "discrete"
    betas: Literal["linear", "cosine", "sigmoid", "sqrt"] | tuple[float, ...] = "linear"
    steps: int = Field(default=1000, ge=1)
    zero_terminal: bool = False

    @model_validator(mode="after")
    def _has_a_beta_a_step(self) -> "ChainSchedule":
        if isinstance(self.betas, tuple):
            if len(self.betas) != self.steps:
                raise ValueError(f"schedule.steps is {self.steps}, but there are {len(self.betas)} betas; give one a step")
            self.build()
        return self

    def build(self) -> schedules.Discrete:
        """The schedule."""
        if isinstance(self.betas, tuple):
            chain = schedules.Discrete(torch.tensor(self.betas, dtype=torch.float64))
        else:
            chain = getattr(schedules.Discrete, self.betas)(self.steps)
        return chain.zero_terminal() if self.zero_terminal else chain


ScheduleOptions = Annotated[CurveSchedule | VESchedule | ChainSchedule, Field(discriminator="kind")]


class UniformTimes(Options):
    """Training times uniform in t, spread evenly over a batch unless `stratified` is false."""

    kind: Literal["uniform"] = "uniform"
    stratified: bool = True

    def build(self, schedule: schedules.Schedule) -> TimeSampler:
        """The sampler of times."""
        return loss.Stratified(schedule) if self.stratified else loss.Uniform(schedule)


class LogNormalTimes(Options):
    """Training times whose log(sigma/alpha) is normal."""

    kind: Literal["log-normal"] = "log-normal"
    mean: float = -1.2
    std: float = Field(default=1.2, gt=0)

    def build(self, schedule: schedules.Schedule) -> TimeSampler:
        """The sampler of times."""
        return loss.LogNormal(schedule, self.mean, self.std)


class ImportanceTimes(Options):
    """Training times drawn where the loss is large, by its second moments over the last `history` values a bin."""

    kind: Literal["importance"] = "importance"
    bins: int = Field(default=100, ge=1)
    history: int = Field(default=10, ge=1)

    def build(self, schedule: schedules.Schedule) -> TimeSampler:
        """The sampler of times."""
        return loss.Importance(schedule, bins=self.bins, history=self.history)


class FittedTimes(Options):
    """Training times whose density over log-SNR follows the loss seen there."""

    kind: Literal["fitted"] = "fitted"
    bins: int = Field(default=40, ge=1)

    def build(self, schedule: schedules.Schedule) -> TimeSampler:
        """The sampler of times."""
        return loss.Fitted(schedule, bins=self.bins)


Times = Annotated[UniformTimes | LogNormalTimes | ImportanceTimes | FittedTimes, Field(discriminator="kind")]


class Objective(Options):
    """What the network is asked to say, and how its errors are weighed.

    `loss` is "simple" (the weighted square error), "vlb" (one random term of the bound) or "hybrid" (simple, and the bound for a learned
    variance); the latter two need a discrete schedule and data of evenly spaced values. `values` is how many values those are. The network
    sees x_t at unit scale for data of deviation `data_std`: the measured one where not given, 1 leaves x_t as DDPM's networks see it.
    """

    target: Literal["x0", "eps", "v", "score", "flow", "edm"] = "v"
    weight: Literal["eps", "x0", "v", "min-snr", "truncated-snr", "edm", "sigmoid"] = "v"
    times: Times = LogNormalTimes()
    loss: Literal["simple", "vlb", "hybrid"] = "simple"
    variance: Literal["fixed", "learned"] = "fixed"
    values: int = Field(default=256, ge=2)
    data_std: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _losses_fit(self) -> "Objective":
        if self.loss == "hybrid" and self.variance != "learned":
            raise ValueError("the hybrid loss teaches a learned variance; set objective.variance=learned, or take loss=simple")
        if self.loss == "simple" and self.variance == "learned":
            raise ValueError("the simple loss does not see a variance; take objective.loss=hybrid to learn one")
        return self

    @property
    def width(self) -> float:
        """Distance of neighbouring values of the data in [-1, 1]."""
        return 2 / (self.values - 1)

    def build_target(self) -> prediction.Target:
        """The target function."""
        return getattr(prediction, f"{self.target}_target")

    def is_blind_at(self, schedule: schedules.Schedule) -> bool:
        """Whether the target and x_t are one equation, not two, at the schedule's last level."""
        level = schedule.level(torch.ones((), dtype=torch.float64), like=torch.ones((), dtype=torch.float64))
        a, b = self.build_target()(level)
        return bool(level.alpha * b == level.sigma * a)

    def build_weight(self, data_std: float) -> Weight:
        """The weight function."""
        if self.weight == "edm":
            return partial(loss.edm_weight, data_std=data_std)
        return getattr(loss, f"{self.weight.replace('-', '_')}_weight")

    def build_bits(self, schedule: schedules.Schedule, data_std: float) -> BitsAtLevel | None:
        """Bits/dim that a nat of log-SNR costs where these losses were measured: half the squared error of eps, the integrand of the bound
        for T → ∞. Kingma et al. (2021), eq. 14, arXiv:2107.00630. None where the loss says more than that error."""
        if self.loss != "simple":
            return None
        weight = self.build_weight(data_std)

        def bits(t: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
            level = schedule.level(t, like=losses)
            return losses * (loss.eps_weight(level) / weight(level)) / (2 * math.log(2))

        return bits

    def build_loss(self, schedule: schedules.Schedule, data_std: float) -> BatchLoss:
        """The loss of a batch at times t."""
        weight = self.build_weight(data_std)
        if self.loss == "simple":
            return lambda predict, x0, eps, t, cond: loss.simple(predict, x0, eps, schedule.level(t, like=x0), cond, weight=weight)
        assert isinstance(schedule, schedules.Discrete)
        chain, options = schedule, {"steps": len(schedule), "width": self.width}
        last = process.posterior_log_variance(chain.level(2 / len(chain)), chain.level(1 / len(chain)))

        def bound(predict: Predictor, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, cond: CondLike | None) -> torch.Tensor:
            now, below = chain.level(t, like=x0), chain.level((t - 1 / len(chain)).clamp(min=0), like=x0)
            if self.loss == "hybrid":
                return loss.hybrid(predict, x0, eps, now, below, cond, weight=weight, last_log_variance=last.to(x0), **options)
            variance = "learned" if self.variance == "learned" else "small"
            return loss.vlb(predict, x0, eps, now, below, cond, variance=variance, last_log_variance=last.to(x0), **options)

        return bound


class Runtime(Options):
    """How the network is computed on the machine at hand, whatever it learns.

    `precision` "auto" is bfloat16 where the device multiplies it natively. `kernels` "auto" takes sfumato's own for normalisations and 3×3
    convolutions in float32 on CPUs, where they are faster on this machine and the run sees 20,000 images or more. At most `micro_batch`
    examples go through the network at once; as many as the memory holds where nothing is said.
    """

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    kernels: Literal["auto", "torch", "compiled"] = "auto"
    micro_batch: int | None = Field(default=None, ge=1)


Tracker = Literal["tensorboard", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb"]


class Training(Options):
    """How long, how fast, how often.

    After `patience` steps in a row that cannot be applied (a loss or gradient that is not finite, a loss that explodes) the run goes
    back to its last good state, at half the rate, `retries` times at most. `snapshot_every` so many steps (0 = never) the averages are kept
    for good, to make others of. The share `held_out` of the rows is chosen at random, or is the last block, for rows ordered in time.
    """

    steps: int = Field(default=10_000, ge=1)
    batch: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    rate: float = Field(default=1e-3, gt=0)
    muon_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    warmup: int = Field(default=100, ge=0)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = Field(default=1.0, gt=0)
    label_drop: float = Field(default=0.1, ge=0, le=1)
    ema: tuple[float, ...] = Field(default=(0.1,), min_length=1)
    flip: bool = False
    held_out: float = Field(default=0.0, ge=0, lt=1)
    held_out_by: data.HeldOutBy = "random"
    patience: int = Field(default=3, ge=1)
    retries: int = Field(default=2, ge=0)
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    checkpoint_every: int = Field(default=1000, ge=1)
    keep: int = Field(default=2, ge=1)
    snapshot_every: int = Field(default=0, ge=0)
    log_every: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("ema")
    @classmethod
    def _is_reachable(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < width < 0.288 for width in widths):
            raise ValueError("each EMA width (standard deviation relative to the run's length) must lie in (0, 0.288)")
        if len({f"{width:.3f}" for width in widths}) < len(widths):
            raise ValueError("the EMA widths must differ in their first three decimals, which name their files")
        return widths


SAMPLERS: Mapping[str, Step] = {
    "adams": steps.Adams(),
    "adams-bashforth": steps.AdamsBashforth(3),
    "adaptive-sde": steps.AdaptiveSDE(),
    "ancestral": steps.Ancestral(),
    "ancestral-large": steps.Ancestral("large"),
    "ancestral-learned": steps.Ancestral("learned"),
    "ddim": steps.DDIM(),
    "dpm2": steps.Singlestep(2),
    "dpm2-ancestral": steps.Renoised(steps.Singlestep(2)),
    "dpmpp-2m-sde": steps.MultistepSDE(),
    "dpmpp-2s-ancestral": steps.Renoised(steps.Singlestep(2, "x0")),
    "dpmpp-sde": steps.SinglestepSDE(),
    "edm": steps.EDM(),
    "euler-maruyama": steps.EulerMaruyama(),
    "heun": steps.Heun(),
    "ipndm": steps.PLMS(heun=False),
    "multistep": steps.Multistep(),
    "multistep-3": steps.Multistep(3),
    "multistep-sde": steps.Multistep(2, eta=1.0),
    "plms": steps.PLMS(),
    "predictor-corrector": steps.PredictorCorrector(),
    "restart": steps.Restart(),
    "singlestep-2": steps.Singlestep(2),
    "singlestep-3": steps.Singlestep(3),
    "unipc": steps.UniPC(),
}

SPACINGS: Mapping[str, Spacing] = {
    "karras": spacing.karras(),
    "leading": spacing.leading,
    "log-snr": spacing.log_snr,
    "quadratic": spacing.quadratic,
    "shifted": spacing.shifted(),
    "softened": spacing.softened(),
    "trailing": spacing.trailing,
    "uniform": spacing.uniform,
}


class Sampling(Options):
    """How the run is sampled unless told otherwise.

    Guidance above 1 acts between the two log-SNRs of `guidance_interval` (nats); without one, and below 1, everywhere. `log_snr_min` and
    `log_snr_max` bring the ends of a continuous schedule closer for sampling: the last step goes from log_snr_max to the data. `clip` cuts
    x0 to [-1, 1], the range of images.
    """

    sampler: str = "adams"
    steps: int = Field(default=20, ge=1)
    spacing: str = "softened"
    guidance: float = Field(default=1.0, ge=0)
    guidance_interval: tuple[float, float] | None = None
    clip: bool = False
    log_snr_max: float | None = None
    log_snr_min: float | None = None

    @field_validator("guidance_interval")
    @classmethod
    def _is_ascending(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError("the lower log-SNR (more noise) comes first")
        return interval

    @field_validator("sampler")
    @classmethod
    def _sampler_is_known(cls, name: str) -> str:
        return known(name, SAMPLERS, "sampler")

    @field_validator("spacing")
    @classmethod
    def _spacing_is_known(cls, name: str) -> str:
        return known(name, SPACINGS, "spacing")


class Recipe(Options):
    """Everything that makes a run."""

    about: str = ""
    data: Data
    net: Net
    schedule: ScheduleOptions = CurveSchedule()
    objective: Objective = Objective()
    training: Training = Training()
    runtime: Runtime = Runtime()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        if self.sampling.guidance != 1 and not self.training.label_drop:
            raise ValueError("sampling.guidance needs a model that has seen dropped labels; set training.label_drop above 0")
        if self.objective.loss != "simple" and not isinstance(self.schedule, ChainSchedule):
            raise ValueError(f"objective.loss={self.objective.loss} is a sum over a chain's steps; set schedule.kind=discrete")
        if not isinstance(self.schedule, CurveSchedule) and (
            self.sampling.log_snr_max is not None or self.sampling.log_snr_min is not None
        ):
            raise ValueError(
                f"sampling.log_snr_max and log_snr_min cut a continuous curve, the schedule is {self.schedule.kind}; "
                "set sampling.log_snr_max=null and sampling.log_snr_min=null"
            )
        step = SAMPLERS[self.sampling.sampler]
        if isinstance(step, steps.Ancestral) and step.variance == "learned" and self.objective.variance != "learned":
            raise ValueError(
                f"sampling.sampler={self.sampling.sampler} needs a learned variance, which objective.variance={self.objective.variance} "
                "does not learn; set sampling.sampler=ancestral, or objective.variance=learned with objective.loss=hybrid"
            )
        if self.objective.is_blind_at(self.schedule.build()):
            raise ValueError(
                f"objective.target={self.objective.target} says nothing of the data at the schedule's last level, which has no signal; "
                "set objective.target=v, or a schedule that keeps some (schedule.zero_terminal=false)"
            )
        return self


def recipe_names() -> list[str]:
    """The recipes that ship with sfumato: one file each, and one for each toy."""
    named = [file.name.removesuffix(".yaml") for file in files("sfumato.recipes").iterdir() if file.name.endswith(".yaml")]
    return sorted(set(named) - {"toy"} | set(data.TOYS))


def load_recipe(source: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> Recipe:
    """Reads a recipe by name or from a YAML file, with `path=value` changes.

    Raises:
        ValueError: an unknown name (the nearest is named), a file that is no recipe, a change that does not fit.
    """
    tree = read_tree(source)
    if (kind := model_kind(tree)) != "denoiser":
        raise ValueError(f"{source} is for a model of kind {kind}; this is for recipes of plain denoisers.")
    return resolve(Recipe, tree, changes, steps=steps, source=str(source))


def model_kind(tree: dict[str, Any]) -> str:
    """What a recipe's tree asks for: its model.kind, "denoiser" where it says none."""
    model = tree.get("model")
    return "denoiser" if model is None else str(model.get("kind") if isinstance(model, dict) else model)


def resolve(model: type[Model], tree: dict[str, Any], changes: Sequence[str] = (), *, steps: int | None = None, source: str) -> Model:
    """A tree of options with `path=value` changes laid on it, checked against their model.

    Raises:
        ValueError: a change or an option that does not fit, as one sentence that begins with `source`.
    """
    over: dict[str, Any] = {}
    for change in [*changes, *([] if steps is None else [f"training.steps={steps}"])]:
        over = _merge(over, _changed(change))
    try:
        return model.model_validate(_with_kind(_lay(_with_kind(tree), over)))
    except ValidationError as error:
        raise ValueError(_sentence(error, source, model)) from None


def read_tree(source: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tree of a recipe, its bases merged in; a base that is a file is looked for beside the file that names it."""
    name, path = str(source), Path(source)
    if name in seen:
        raise ValueError(f"the bases of {seen[0]} go round in a circle: {' → '.join([*seen, name])}.")
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"there is no recipe file {path}; `sfumato recipes` lists those that ship with sfumato.")
        raw = path.read_bytes()
    else:
        file = files("sfumato.recipes") / f"{name}.yaml"
        if name in data.TOYS and not file.is_file():
            return _merge(read_tree("toy"), {"data": {"name": name}, "about": f"Points in the plane: {name}."})
        if not file.is_file() and (len(path.parts) > 1 or path.is_dir()):
            there = f"{name} holds no recipe.yaml, so it is no run folder" if path.is_dir() else f"there is no file or folder {name}"
            there = f"{name} is a run folder; its recipe is {path / 'recipe.yaml'}" if (path / "recipe.yaml").is_file() else there
            raise ValueError(f"{there}. A recipe is a name (`sfumato recipes` lists them) or a file that ends in .yaml.")
        if not file.is_file():
            raise ValueError(unknown(name, recipe_names(), "recipe") + " `sfumato recipes` lists them; a file ends in .yaml.")
        raw = file.read_bytes()
    try:
        tree = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{source} holds no recipe: a mapping with data, net, … was expected, got {type(tree).__name__}.")
    base = tree.pop("base", None)
    if base is None:
        return _with_kind(tree)
    if not isinstance(base, str):
        raise ValueError(f"{source}: base must be the name of a recipe or a YAML file, got {base!r}.")
    beside = path.parent / base if path.suffix and base.endswith((".yaml", ".yml")) else base
    return _lay(read_tree(beside, (*seen, name)), tree)


def _with_kind(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the kind of its schedule, which may be left out, so that another kind is seen to be one."""
    schedule = tree.get("schedule")
    return {**tree, "schedule": {"kind": "cosine", **schedule}} if isinstance(schedule, dict) else tree


def _lay(tree: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged into the tree of a recipe; the sampling ends of a curve go where the schedule becomes something else."""
    merged = _merge(tree, over)
    groups = [each if isinstance(each, dict) else {} for each in (over.get("schedule"), merged.get("schedule"), over.get("sampling"))]
    if "kind" in groups[0] and groups[1]["kind"] not in get_args(CurveSchedule.model_fields["kind"].annotation):
        ends = {"log_snr_max", "log_snr_min"} - groups[2].keys()
        if isinstance(merged.get("sampling"), dict):
            merged["sampling"] = {name: value for name, value in merged["sampling"].items() if name not in ends}
    return merged


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`; a group whose kind changes starts anew."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind", value.get("kind")):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _changed(change: str) -> dict[str, Any]:
    """What a `path=value` says, as a tree."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise ValueError(f'a change is written path=value, as in training.batch=64; got "{change}".')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f'the value in "{change}" is not YAML; quote it.') from None
    *groups, last = path.split(".")
    over: dict[str, Any] = {last: value}
    for group in reversed(groups):
        over = {group: over}
    return over


def _sentence(error: ValidationError, source: str, model: type[Options]) -> str:
    """The first thing wrong: where, what was got, what to do."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    unions = {*_kinds(model), "int", "float", "constrained-int"}  # pydantic names the member of a union that it tried
    where = ".".join(part for part in path if part not in unions and "[" not in part) or "it"
    more = f" ({error.error_count() - 1} more like it.)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        names = _fields_at(path[:-1], model)
        near = get_close_matches(path[-1], names, 1)
        hint = f"did you mean {'.'.join([*where.split('.')[:-1], near[0]])}?" if near else f"the names there are {', '.join(names)}."
        return f"{source}: there is no option {where}; {hint}{more}"
    if first["type"] == "missing" and not path[-1].isdigit():
        return f"{source}: {where} is missing; give it in the file, or with --set {where}=….{more}"
    if first["type"].startswith("union_tag"):
        got = first["input"].get("kind") if isinstance(first["input"], dict) else first["input"]
        return f"{source}: {where}.kind must be one of {first.get('ctx', {}).get('expected_tags', 'the known kinds')}, got {got!r}.{more}"
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ValidationError):  # of a recipe that this one is turned into
        return _sentence(inner, source, model)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if isinstance(first["input"], dict):  # about a group as a whole: its options need no repeating
        return f"{source}: {f'{where}: ' if path else ''}{message}.{more}"
    message = message[:1].lower() + message[1:]
    return f"{source}: {where} got {first['input']!r}, but {message}.{more}"


def _fields_at(path: Sequence[str], model: Any) -> list[str]:  # pydantic's unions are no types
    """The option names of the group at a pydantic location."""
    for part in path:
        if part in getattr(model, "model_fields", {}):
            model = model.model_fields[part].annotation
            continue
        for choice in get_args(model):
            if part in get_args(choice.model_fields["kind"].annotation):
                model = choice
    return list(model.model_fields) if isinstance(model, type) else []


def _kinds(model: Any) -> set[str]:
    """Every value that a field `kind` may have, anywhere below a model or a union of models."""
    found: set[str] = set()
    for name, field in getattr(model, "model_fields", {}).items():
        found |= set(get_args(field.annotation)) if name == "kind" else _kinds(field.annotation)
    return found.union(*(_kinds(choice) for choice in get_args(model)))
