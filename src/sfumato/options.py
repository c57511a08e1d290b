"""Groups of options that reject unknown names, and the options of every recipe: `Runtime` and `Training`."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MAY_CHANGE = (
    "about",
    "data.path",
    "data.labels",
    "data.maps",
    "data.scaling",  # the manifest keeps the scaling that a run started with
    "training.keep",
    "training.log_every",
    "training.checkpoint_every",
    "training.snapshot_every",
    "training.evaluate_every",
    "training.evaluate_count",
    "training.trackers",
    "runtime.",
    "sampling.",
)

# Names that the help of a command shows. What they are is defined in tasks/options.py and restoration/tasks.py, which need torch.
METRIC_NAMES = (
    "fd", "fd-infinity", "kd", "mind", "prdc", "sw", "w", "mmd", "columns", "correlations", "c2st", "accuracy", "memorisation", "bpd", "is",
    "psnr", "ssim", "lpips",
)  # fmt: skip
SAMPLER_NAMES = (
    "adams",
    "adams-bashforth",
    "adaptive-sde",
    "ancestral",
    "ancestral-large",
    "ancestral-learned",
    "ddim",
    "dpm2",
    "dpm2-ancestral",
    "dpmpp-2m-sde",
    "dpmpp-2s-ancestral",
    "dpmpp-sde",
    "edm",
    "euler-maruyama",
    "heun",
    "ipndm",
    "multistep",
    "multistep-3",
    "multistep-sde",
    "plms",
    "predictor-corrector",
    "restart",
    "singlestep-2",
    "singlestep-3",
    "unipc",
)
RESTORATION_TASKS = ("inpaint", "upscale", "deblur", "colourise", "denoise", "matrix")
RESTORATION_METHODS = ("moment-matching", "pigdm", "ddrm", "ddnm", "dps", "repaint", "diffpir", "split-gibbs", "twisted-smc")


class Options(BaseModel):
    """A frozen group of options. Unknown names are errors, as are true and false for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{name} must be a number, not true or false")
        return values

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Any:
        """A copy with some options changed; cached values are not copied."""
        copied = super().model_copy(update=update, deep=deep)
        computed = vars(copied).keys() - type(self).model_fields.keys()
        for name in computed:
            vars(copied).pop(name)
        return copied

    def to_yaml(self) -> str:
        """All options as YAML that reads back to the same options."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)

    def differences(self, other: "Options") -> list[str]:
        """What differs, as "path: ours → theirs", except for options in MAY_CHANGE."""
        ours, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        paths = sorted(path for path in ours.keys() | theirs.keys() if not path.startswith(MAY_CHANGE))
        return [f"{path}: {ours.get(path)} → {theirs.get(path)}" for path in paths if ours.get(path) != theirs.get(path)]


def _to_path(value: Any) -> Path:
    if value is None or value == "":
        raise ValueError("must be a path")
    return Path(str(value)).expanduser()


Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
DataPath = Annotated[Path, BeforeValidator(_to_path)]
Size = Annotated[int, Field(ge=1)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def known(name: str, names: Mapping[str, object], what: str) -> str:
    """Returns the name if it is in `names`.

    Raises:
        ValueError: it is not; the message suggests the nearest name, or lists all.
    """
    if name not in names:
        raise ValueError(unknown(name, list(names), what))
    return name


def unknown(name: str, names: Sequence[str], what: str) -> str:
    """An error sentence for a name that is not in `names`."""
    near = get_close_matches(name, names, 1)
    every = f"the {what}{'es' if what.endswith('s') else 's'} are {', '.join(names)}."
    return f'there is no {what} "{name}"; ' + (f"did you mean {near[0]}?" if near else every)


class Runtime(Options):
    """How the network is computed on this machine; what it learns does not depend on it.

    `precision` "auto" is bfloat16 if the device multiplies it natively. `kernels` "auto" uses sfumato's own kernels for normalisations and
    3×3 convolutions in float32 on CPUs, if they are faster on this machine and the run sees 20,000 images or more. At most `micro_batch`
    examples go through the network at once; by default as many as fit in memory. `compile` compiles the network with `torch.compile`,
    using torch's kernels; the first steps then take up to minutes.
    """

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    kernels: Literal["auto", "torch", "compiled"] = "auto"
    micro_batch: int | None = Field(default=None, ge=1)
    compile: bool = False

    @model_validator(mode="after")
    def _compiled_once(self) -> "Runtime":
        if self.compile and self.kernels == "compiled":
            raise ValueError("runtime.compile uses torch's kernels; leave runtime.kernels at auto or torch")
        return self


Tracker = Literal["tensorboard", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb"]


class Training(Options):
    """Length, learning rate, batches, averages and checkpoints of a training.

    After `patience` rejected steps in a row (non-finite loss or gradient, exploding loss) the run goes back to its last good state, at
    half the rate, at most `retries` times. Every `snapshot_every` steps (0 = never) the averages are stored permanently, to compute
    others from. Every `evaluate_every` steps (0 = never) `evaluate_count` samples are compared with held-out data, and the best
    checkpoint by that figure is kept in RUN/best. `label_drop` is the probability to drop all conditions of an example together, `drop`
    that of one condition, by name. The share `held_out` of the rows is chosen at "random", as the last "block" of rows ordered in time,
    or as whole groups of the condition `held_out_by`. `trackers` receive the numbers of metrics.jsonl as well; each must be installed. A
    new run starts from the weights of `init_from`: a run, zoo:NAME, or a file.
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
    drop: dict[str, Share] = {}
    ema: tuple[float, ...] = Field(default=(0.1,), min_length=1)
    flip: bool = False
    held_out: float = Field(default=0.0, ge=0, lt=1)
    held_out_by: str = "random"
    init_from: str | None = None
    patience: int = Field(default=3, ge=1)
    retries: int = Field(default=2, ge=0)
    trackers: tuple[Tracker, ...] = ()
    checkpoint_every: int = Field(default=1000, ge=1)
    keep: int = Field(default=2, ge=1)
    snapshot_every: int = Field(default=0, ge=0)
    evaluate_every: int = Field(default=0, ge=0)
    evaluate_count: int = Field(default=1000, ge=50)
    log_every: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("ema")
    @classmethod
    def _is_reachable(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < width < 0.288 for width in widths):
            raise ValueError("each EMA width (standard deviation relative to the run's length) must lie in (0, 0.288)")
        if len({f"{width:.3f}" for width in widths}) < len(widths):
            raise ValueError("EMA widths must differ in their first three decimals, which name their files")
        return widths
