"""Options of all tasks with noise levels: schedules, training times, sampling."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sfumato import loss
from sfumato import schedule as schedules
from sfumato.loss import TimeSampler
from sfumato.options import Options, known
from sfumato.sampling import Spacing, Step, spacing, steps


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
    """A discrete chain, given by the name of its betas or by the list of betas, one a step."""

    kind: Literal["discrete"] = "discrete"
    betas: Literal["linear", "cosine", "sigmoid", "sqrt"] | tuple[float, ...] = "linear"
    steps: int = Field(default=1000, ge=1)
    zero_terminal: bool = False

    @model_validator(mode="after")
    def _has_a_beta_a_step(self) -> "ChainSchedule":
        if isinstance(self.betas, tuple):
            if len(self.betas) != self.steps:
                raise ValueError(f"schedule.steps is {self.steps}, but there are {len(self.betas)} betas; give one for each step")
            self.build()
        return self

    def build(self) -> schedules.Discrete:
        """The schedule."""
        if isinstance(self.betas, tuple):
            chain = schedules.Discrete(torch.tensor(self.betas, dtype=torch.float64))
        else:
            chain = getattr(schedules.Discrete, self.betas)(self.steps)
        return chain.zero_terminal() if self.zero_terminal else chain


class OwnSchedule(Options):
    """Your own schedule, given in Python."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    kind: Literal["own"] = "own"
    schedule: schedules.Schedule | None = Field(default=None, exclude=True)

    @property
    def is_missing(self) -> bool:
        """Whether it was read from a file, which cannot hold the schedule."""
        return self.schedule is None

    def build(self) -> schedules.Schedule:
        """The schedule.

        Raises:
            ValueError: there is none, as in a recipe that was read from a file.
        """
        if self.schedule is None:
            raise ValueError("schedule.kind=own is your own schedule, which a file cannot hold; train and load it in Python.")
        return self.schedule


def _options_of(given: Any) -> Any:
    """The options for a schedule object: those of its kind if they describe it completely."""
    if not isinstance(given, schedules.Schedule):
        return given
    curves = {schedules.Cosine: "cosine", schedules.Flow: "flow", schedules.LinearVP: "linear-vp", schedules.SubVP: "sub-vp"}
    options: Options | None = None
    if (kind := curves.get(type(given))) is not None and isinstance(given, schedules.Continuous):
        options = CurveSchedule.model_validate({"kind": kind, "log_snr_max": given.log_snr_max, "log_snr_min": given.log_snr_min})
    elif type(given) is schedules.Discrete:
        options = ChainSchedule(betas=tuple(given.betas.tolist()), steps=len(given))
    return options if options is not None and _is_same(options.build(), given) else OwnSchedule(schedule=given)


def _is_same(a: schedules.Schedule, b: schedules.Schedule) -> bool:
    """Whether two schedules have the same levels, at some times."""
    like = torch.zeros(9, dtype=torch.float64)
    levels = [schedule.level(torch.linspace(0, 1, 9, dtype=torch.float64), like=like) for schedule in (a, b)]
    return all(torch.equal(getattr(levels[0], name), getattr(levels[1], name)) for name in ("alpha", "sigma"))


if TYPE_CHECKING:  # a Schedule is taken as well
    ScheduleOptions = CurveSchedule | VESchedule | ChainSchedule | OwnSchedule | Any
else:
    ScheduleOptions = Annotated[
        CurveSchedule | VESchedule | ChainSchedule | OwnSchedule, BeforeValidator(_options_of), Field(discriminator="kind")
    ]


class UniformTimes(Options):
    """Training times uniform in t, stratified over a batch unless `stratified` is false."""

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
    """Training times drawn more often where the loss is large, from its second moments over the last `history` values in each bin."""

    kind: Literal["importance"] = "importance"
    bins: int = Field(default=100, ge=1)
    history: int = Field(default=10, ge=1)

    def build(self, schedule: schedules.Schedule) -> TimeSampler:
        """The sampler of times."""
        return loss.Importance(schedule, bins=self.bins, history=self.history)


class FittedTimes(Options):
    """Training times whose density over log-SNR follows the loss measured there."""

    kind: Literal["fitted"] = "fitted"
    bins: int = Field(default=40, ge=1)

    def build(self, schedule: schedules.Schedule) -> TimeSampler:
        """The sampler of times."""
        return loss.Fitted(schedule, bins=self.bins)


Times = Annotated[UniformTimes | LogNormalTimes | ImportanceTimes | FittedTimes, Field(discriminator="kind")]


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
    """The defaults for sampling.

    Guidance above 1 is applied between the two log-SNRs of `guidance_interval` (nats); without an interval, or below 1, everywhere.
    `log_snr_min` and `log_snr_max` cut a continuous schedule for sampling: the last step goes from log_snr_max to the data. `clip` clamps
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
