"""Diffusion: a denoiser under a noise schedule. Its options, its loss, and the sampler that VDM and latent diffusion share.

Training times, noise and dropped conditions are drawn here, from the step's `Draw`; the trainer has no part in it.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato import guide, latent, likelihood, loss, prediction, process, storage
from sfumato.classifier import Classifier
from sfumato.condition import Cond, ConditionSpec
from sfumato.data.source import Batch, DataSpec, Draw, Source
from sfumato.denoiser import Denoiser, Predictor
from sfumato.loss import AdaptiveTimes, Weight
from sfumato.nets.options import Net
from sfumato.noise import normal_like, row_generators
from sfumato.options import Options, Training, known
from sfumato.runtime import moved
from sfumato.sampling import Step, grid, steps
from sfumato.sampling.loop import walk
from sfumato.schedule import Discrete, Level, Schedule
from sfumato.task import LossTerms, Recipe, Request, Sampler, State, Task, examples_of, register
from sfumato.tasks.options import SAMPLERS, SPACINGS, ChainSchedule, CurveSchedule, LogNormalTimes, Sampling, ScheduleOptions, Times
from sfumato.tuning import TuningResult, tune

logger = logging.getLogger(__name__)

S = TypeVar("S", bound="DiffusionSampler")
BatchLoss = Callable[[Predictor, Tensor, Tensor, Tensor, Level, Cond | None], Tensor]  # of x0, eps, the times and their levels


class Objective(Options):
    """What the network predicts, and how its errors are weighted.

    `loss` is "simple" (the weighted squared error), "vlb" (one random term of the bound) or "hybrid" (simple, plus the bound for a learned
    variance); the latter two need a discrete schedule and data of `values` evenly spaced values. The network gets x_t scaled to unit
    variance for data of standard deviation `data_std`: by default the measured one; 1 leaves x_t unscaled, as for DDPM's networks.
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
            raise ValueError("the hybrid loss trains a learned variance; set objective.variance=learned, or use loss=simple")
        if self.loss == "simple" and self.variance == "learned":
            raise ValueError("the simple loss does not train a variance; set objective.loss=hybrid to learn one")
        return self

    @property
    def bin_width(self) -> float:
        """Distance of neighbouring values of the data in [-1, 1]."""
        return 2 / (self.values - 1)

    def build_target(self) -> prediction.Target:
        """The target function."""
        return getattr(prediction, f"{self.target}_target")

    def is_blind_at(self, schedule: Schedule) -> bool:
        """Whether the target does not determine x0 at the schedule's last level."""
        level = schedule.level(torch.ones((), dtype=torch.float64), like=torch.ones((), dtype=torch.float64))
        a, b = self.build_target()(level)
        return bool(level.alpha * b == level.sigma * a)

    def build_weight(self, data_std: float) -> Weight:
        """The weight function."""
        if self.weight == "edm":
            return partial(loss.edm_weight, data_std=data_std)
        return getattr(loss, f"{self.weight.replace('-', '_')}_weight")

    def bits_ratio(self, level: Level, data_std: float) -> Tensor | None:
        """Factors that turn losses at a level into bits/dim per nat of log-SNR: half the squared error of eps.

        The integrand of the bound for T → ∞. Kingma et al. (2021), eq. 14, arXiv:2107.00630. None if the loss has other terms than that
        error.
        """
        return None if self.loss != "simple" else loss.eps_weight(level) / self.build_weight(data_std)(level)

    def build_loss(self, schedule: Schedule, data_std: float) -> BatchLoss:
        """The loss of a batch at times t, of which the levels are given too."""
        weight = self.build_weight(data_std)
        if self.loss == "simple":
            return lambda predict, x0, eps, t, level, cond: loss.simple(predict, x0, eps, level, cond, weight=weight)
        assert isinstance(schedule, Discrete)
        chain, options = schedule, {"steps": len(schedule), "bin_width": self.bin_width}
        last = process.posterior_log_variance(chain.level(2 / len(chain)), chain.level(1 / len(chain)))

        def bound(predict: Predictor, x0: Tensor, eps: Tensor, t: Tensor, now: Level, cond: Cond | None) -> Tensor:
            below, least = chain.level((t - 1 / len(chain)).clamp(min=0), like=x0), moved(last, x0)
            if self.loss == "hybrid":
                return loss.hybrid(predict, x0, eps, now, below, cond, weight=weight, last_log_variance=least, **options)
            variance = "learned" if self.variance == "learned" else "small"
            return loss.vlb(predict, x0, eps, now, below, cond, variance=variance, last_log_variance=least, **options)

        return bound


@register("denoiser")
class Diffusion(Task):
    """A denoiser, trained at the levels of a schedule. `net` and `schedule` may be your own module and schedule."""

    has_levels: ClassVar[bool] = True
    net: Net
    schedule: ScheduleOptions = CurveSchedule()
    objective: Objective = Objective()
    sampling: Sampling = Sampling()

    if TYPE_CHECKING:  # what the validators of the fields take besides their types

        def __init__(self, *, net: Net | nn.Module, schedule: ScheduleOptions | Schedule = ..., **options: Any) -> None:
            """Checks the options."""

    @model_validator(mode="after")
    def _options_agree(self) -> "Diffusion":
        if self.objective.loss != "simple" and not isinstance(self.schedule, ChainSchedule):
            raise ValueError(f"objective.loss={self.objective.loss} is a sum over the steps of a chain; set schedule.kind=discrete")
        if not isinstance(self.schedule, CurveSchedule) and (
            self.sampling.log_snr_max is not None or self.sampling.log_snr_min is not None
        ):
            raise ValueError(
                f"sampling.log_snr_max and log_snr_min are for a continuous schedule, but the schedule is {self.schedule.kind}; "
                "set sampling.log_snr_max=null and sampling.log_snr_min=null"
            )
        if self.objective.variance != "learned":
            hint = "set sampling.sampler=ancestral, or objective.variance=learned with objective.loss=hybrid"
            refuse_learned_variance(self.sampling, f"objective.variance={self.objective.variance}", hint)
        if self.objective.is_blind_at(self.noise):
            raise ValueError(
                f"objective.target={self.objective.target} does not determine the data at the schedule's last level, which has no signal; "
                "set objective.target=v, or a schedule with signal there (schedule.zero_terminal=false)"
            )
        return self

    def precision(self, asked: str) -> str:
        """Your own module computes in float32 unless bfloat16 is asked for."""
        return "float32" if asked == "auto" and self.net.kind == "own" else asked

    def check_training(self, training: Training) -> None:
        """Refuses guidance of a model that never sees dropped conditions."""
        refuse_guidance(self.sampling, training)

    @cached_property
    def noise(self) -> Schedule:
        """The noise schedule."""
        return self.schedule.build()

    @property
    def ended(self) -> Schedule:
        """The noise schedule, cut to the ends for sampling."""
        changes = {name: value for name in ("log_snr_max", "log_snr_min") if (value := getattr(self.sampling, name)) is not None}
        return self.schedule.model_copy(update=changes).build() if changes else self.noise

    @cached_property
    def times(self) -> loss.TimeSampler:
        """The sampler of training times, if it has no state."""
        return self.objective.times.build(self.noise)

    def build(self, spec: DataSpec, earlier: Any = ()) -> Denoiser:
        """The untrained denoiser."""
        variance, data_std = self.objective.variance, self.objective.data_std or spec.std
        channels = 2 * spec.sizes[0] if variance == "learned" else None
        net = self.net.build(spec.sizes, spec.conditions, channels)
        return Denoiser(net, self.objective.build_target(), data_std=data_std, variance=variance)

    def trained(self, model: nn.Module) -> nn.Module:
        """The network."""
        assert isinstance(model, Denoiser)
        return model.net

    def examine(self, model: Denoiser, spec: DataSpec, source: Source) -> None:
        """Refuses samplers that cannot work, and a user's module that does not accept these data.

        Raises:
            ValueError: says why.
        """
        super().examine(model, spec, source)
        if self.net.kind != "own":
            return
        batch = examples_of(source, 2, model)
        try:
            with torch.no_grad():
                self.loss(model, batch, Draw(0, 1, len(batch), slice(0, len(batch))), None)
        except (RuntimeError, TypeError, IndexError) as error:
            shape = list(batch.x.shape)
            raise ValueError(
                f"your network does not accept these data: calling module(x {shape}, log_snr [{len(batch)}], cond) failed"
                f" with {type(error).__name__}: {' '.join(str(error).split())}; it must return a tensor of x's shape."
            ) from error

    def begin(self, model: Denoiser) -> State | None:
        """The sampler of training times, if it adapts to the losses."""
        times = self.objective.times.build(self.noise)
        return times if isinstance(times, State) else None

    def loss(self, model: Denoiser, batch: Batch, draw: Draw, state: State | None) -> LossTerms:
        """The objective of each example, each at its own time."""
        times = state if isinstance(state, AdaptiveTimes) else self.times
        t, objective = draw.whole(times), self.objective.build_loss(self.noise, model.data_std)
        level = self.noise.level(t, like=batch.x)
        per_example = objective(model, batch.x, draw.normal(batch.x), t, level, draw.dropped(batch.cond) or None)
        ratio = self.objective.bits_ratio(Level(level.alpha.flatten(), level.sigma.flatten()), model.data_std)
        bits = None if ratio is None else per_example.detach().float() * ratio / (2 * math.log(2))
        return LossTerms(
            per_example,
            log_snr=self.noise.log_snr(t),
            weight=times.weight(t) if isinstance(times, AdaptiveTimes) else None,
            parts={} if bits is None else {"bits": bits},
        )

    def update(self, state: State, terms: LossTerms, draw: Draw) -> None:
        """Updates the sampler of training times."""
        assert isinstance(state, AdaptiveTimes)
        state.update(draw.whole(state), terms.per_example)

    def bits_per_dim(
        self, model: Denoiser, spec: DataSpec, batch: Batch, *, generator: torch.Generator, times: torch.Generator
    ) -> dict[str, Tensor]:
        """Of the flow; of images of bytes also the variational bound, of the chain or in continuous time."""
        return denoiser_bits(
            model,
            batch,
            self.noise,
            bin_width=self.objective.bin_width if spec.is_bytes else None,
            variance="learned" if self.objective.variance == "learned" else "small",
            generator=generator,
            times=times,
        )

    def sampler(self, model: Denoiser, spec: DataSpec, folder: Path | None = None, name: str = "this model") -> "DiffusionSampler":
        """The sampler from noise to data."""
        training = self.training if isinstance(self, Recipe) else None
        return DiffusionSampler(model, spec, self.noise, self.ended, self.sampling, training, name=name).of_run(folder)


@dataclass(frozen=True)
class SamplingPlan:
    """A sampling run: the predictor, the method, the levels."""

    predict: Predictor
    step: Step
    levels: list[Level]


@dataclass(frozen=True)
class DiffusionSampler(Sampler):
    """Draws samples with a denoiser.

    Args:
        denoiser: the model.
        spec: of its data.
        noise: the schedule it was trained with.
        ended: the same, cut to the ends for sampling.
        options: the defaults for sampling.
        training: how conditions were dropped; None if unknown.
        tuned: levels and methods by steps and guidance; used if no others are asked for.
    """

    denoiser: Predictor
    spec: DataSpec
    noise: Schedule
    ended: Schedule
    options: Sampling
    training: Training | None = None
    tuned: Mapping[tuple[int, float], TuningResult] = field(default_factory=dict)
    name: str = "this model"
    kind = "a diffusion model"
    takes = frozenset({"steps", "guidance", "sampler", "classifier"})

    def of_run(self: S, folder: Path | None) -> S:
        """The sampler with the tuned levels of a run folder, if there is one; warns if the recipe's guidance has no effect."""
        if folder is None:
            return self
        if self.options.guidance != 1 and (reason := self._unguided(self.spec.conditions)):
            logger.warning("%s; the recipe's guidance of %g has no effect.", reason, self.options.guidance)
        return replace(self, tuned=read_tuned(folder))

    @property
    def predictor(self) -> Predictor:
        """The averaged network."""
        return self.denoiser

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that it was trained with."""
        return self.noise

    def evaluations(self, options: Mapping[str, Any]) -> int:
        """Approximate number of network evaluations for a sample."""
        return options.get("steps") or self.options.steps

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Sampler, steps, spacing, guidance, and the recipe's other options of sampling."""
        defaults = self.options
        steps, sampler, guidance = (options.get(name, getattr(defaults, name)) for name in ("steps", "sampler", "guidance"))
        is_tuned = self._tuned(steps, guidance, options.get("sampler"), options.get("classifier")) is not None
        reason = "" if "classifier" in options else self._unguided(guidance if isinstance(guidance, Mapping) else self.spec.conditions)
        return {
            **defaults.model_dump(mode="json"),
            "sampler": sampler if isinstance(sampler, str) else repr(sampler),
            "steps": steps,
            "guidance": dict(guidance) if isinstance(guidance, Mapping) else 1.0 if reason else float(guidance),
            "classifier": "classifier" in options,
            **({"sampler": "tuned", "spacing": "tuned"} if is_tuned else {}),
        }

    def default(self, name: str, spec: ConditionSpec, options: Mapping[str, Any]) -> Any:
        """Every class in turn; no condition for a model that was trained without it."""
        return None if self._dropped(name) == 1 and "classifier" not in options else super().default(name, spec, options)

    def needs(self, name: str) -> bool:
        """Whether training never dropped the condition."""
        return self._dropped(name) == 0

    def _dropped(self, name: str) -> float | None:
        """The probability with which training dropped a condition, alone or with the others."""
        training = self.training
        return None if training is None else 1 - (1 - training.label_drop) * (1 - training.drop.get(name, 0.0))

    def check(self, options: Mapping[str, Any], cond: Cond) -> None:
        """Refuses what cannot be drawn, before the work starts.

        Raises:
            ValueError: as `plan`; a condition that training always dropped is given, or one that it never dropped is missing.
        """
        super().check(options, cond)
        self.plan(**options)
        for name, condition in cond.items():
            is_label, dropped = name == "labels", self._dropped(name)
            if dropped == 1 and "classifier" not in options and bool(condition.given.any()):
                raise ValueError(
                    f"{self.name} was trained without {'its labels' if is_label else name} ({self._option(name)}=1), so it cannot "
                    f"draw {'a class' if is_label else name}; remove {'the labels' if is_label else 'it'}, or guide with a classifier."
                )
            if dropped == 0 and not bool(condition.given.all()):
                raise ValueError(
                    f"{self.name} was never trained without {'a label' if is_label else name} (training.label_drop=0), so it cannot draw "
                    f"without {'one; name a class' if is_label else 'it; give it for all'}."
                )

    @torch.no_grad()
    def __call__(self, request: Request) -> Tensor:
        """x0 of the samples; each sample has its own generator for all its noise."""
        plan, generators = self.plan(**request.options), row_generators(request.seed, request.rows)
        noise = request.noise
        if noise is None:
            noise = normal_like(torch.empty(len(request.rows), *self.spec.sizes, device=request.device), generators)
        x, cond = plan.levels[0].sigma * noise, request.cond or None
        for i, (first, x) in enumerate(walk(plan.predict, x, plan.levels, plan.step, cond, generators)):  # noqa: B020
            if request.on_step is not None:
                request.on_step(i, x, first.x0)
        return x

    def film(self, request: Request) -> list[Tensor]:
        """The noise, then x_t after each step, each scaled to unit variance."""
        levels = self.plan(**request.options).levels
        frames = [normal_like(torch.empty(len(request.rows), *self.spec.sizes), row_generators(request.seed, request.rows))]
        self(replace(request, on_step=lambda i, x, x0: frames.append(_unit(x, levels[i + 1]))))
        return frames

    def forward_film(self, x: Tensor, frames: int, seed: int) -> list[Tensor]:
        """x with the same noise at growing levels, each scaled to unit variance."""
        noise = normal_like(x, row_generators(seed, range(len(x))))
        return [_unit(level.alpha * x + level.sigma * noise, level) for level in self.levels(frames)[::-1]]

    def plan(
        self,
        *,
        steps: int | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Step | None = None,
        classifier: guide.LogProb | None = None,
    ) -> SamplingPlan:
        """The sampling run with all options resolved; the arguments are those of `Model.sample`.

        Raises:
            ValueError: unknown names, steps below 1, guidance below 0 or where it has no meaning, a spacing that does not fit the
            schedule, or a classifier that does not fit the model.
        """
        defaults = self.options
        step = defaults.sampler if sampler is None else sampler
        if isinstance(step, str):
            step = SAMPLERS[known(step, SAMPLERS, "sampler")]
        asked = defaults.guidance if guidance is None else guidance
        scales = list(asked.values()) if isinstance(asked, Mapping) else [asked]
        if not all(0 <= scale < math.inf for scale in scales):
            raise ValueError(f"guidance must be at least 0 (1 = off), got {asked}.")
        reason = "" if classifier is not None else self._unguided(asked if isinstance(asked, Mapping) else self.spec.conditions)
        if guidance is not None and any(scale != 1 for scale in scales) and reason:
            raise ValueError(f"{reason}; set guidance to 1, or omit it.")
        if isinstance(asked, Mapping) and (unknown_names := sorted(set(asked) - set(self.spec.conditions))):
            raise ValueError(f"{self.name} has no condition {unknown_names[0]} for guidance; it has {', '.join(self.spec.conditions)}.")
        scale = 1.0 if reason else asked
        predict = self._guided(scale, classifier)
        if defaults.guidance_interval is not None and isinstance(scale, float | int) and scale > 1:  # weaker guidance applies at all levels
            predict = guide.interval(predict, self._guided(1.0, classifier), *defaults.guidance_interval)
        predict = guide.clip(predict) if defaults.clip else predict
        steps = defaults.steps if steps is None else steps
        if (tuned := self._tuned(steps, asked, sampler, classifier)) is not None:
            return SamplingPlan(predict, tuned.step, list(tuned.levels))
        return SamplingPlan(predict, step, self.levels(steps))

    def _tuned(self, steps: int, guidance: Any, sampler: Any, classifier: Any) -> TuningResult | None:
        """Levels and method that were fitted for these options; none where a sampler or a classifier is asked for."""
        if sampler is not None or classifier is not None or isinstance(guidance, Mapping):
            return None
        return self.tuned.get((steps, float(guidance)))

    def levels(self, steps: int) -> list[Level]:
        """From noise to the data, as `levels_of`."""
        return levels_of(self.ended, self.options, steps)

    def tune(self, steps: int, cond: Cond, *, guidance: float | None = None, rows: int = 96, seed: int = 0) -> TuningResult:
        """Fits levels and method for a number of evaluations to this model: see `sfumato.tune`."""
        plan = replace(self, tuned={}).plan(steps=steps, guidance=guidance)
        noise = normal_like(torch.empty(rows, *self.spec.sizes), row_generators(seed, range(rows)))
        return tune(plan.predict, self.ended, noise, cond or None, steps=steps, levels=plan.levels, step=plan.step)

    def save_tuned(self, folder: Path, steps: int, guidance: float | None, tuned: TuningResult) -> Path:
        """Saves tuned levels in the run folder, where `load` finds them; replaces those of the same steps and guidance."""
        scale = self.options.guidance if guidance is None else guidance
        path = folder / "tuned" / f"{steps}-guidance-{scale:g}.json"
        path.parent.mkdir(exist_ok=True)
        storage.write_text(path, json.dumps({"steps": steps, "guidance": scale, "walk": json.loads(tuned.to_json())}, indent=1))
        return path

    def _option(self, name: str) -> str:
        """The option that dropped a condition."""
        alone = self.training is not None and self.training.drop.get(name) == 1 and self.training.label_drop < 1
        return f"training.drop.{name}" if alone else "training.label_drop"

    def _unguided(self, names: Iterable[str]) -> str:
        """Why these conditions cannot guide the model; empty if they can."""
        if not self.spec.conditions:
            return f"{self.name} has no classes and no other conditions, so there is nothing to guide with"
        chances = {name: self._dropped(name) for name in names if name in self.spec.conditions}
        if chances and all(chance == 1 for chance in chances.values()):
            what = "its labels" if list(chances) == ["labels"] else ", ".join(chances)
            return f"{self.name} was trained without {what} ({self._option(next(iter(chances)))}=1), so only a classifier can guide it"
        if never := [name for name, chance in chances.items() if chance == 0]:
            what = "a label" if never[0] == "labels" else never[0]
            return f"{self.name} was never trained without {what} (training.label_drop=0), so guidance has nothing to compare {what} with"
        return ""

    def _guided(self, scale: float | Mapping[str, float], classifier: guide.LogProb | None) -> Predictor:
        """The model guided by a classifier on its unconditional branch, or by its own conditions."""
        if classifier is None:
            return guide.classifier_free(self.denoiser, scale) if self.spec.conditions else self.denoiser
        if not self.spec.classes:
            raise ValueError(f"{self.name} has no classes, so a classifier cannot guide it; use a model of labelled data.")
        if self._dropped("labels") == 0:
            raise ValueError(
                f"{self.name} was trained without label dropping, so a classifier has no unconditional model to guide; "
                "train it with training.label_drop above 0 (1 = without labels)."
            )
        if isinstance(scale, Mapping):
            raise ValueError("a classifier has one guidance scale; pass one number as --guidance.")
        if isinstance(classifier, Classifier):
            classifier.refuse_other(self.spec, self.name)
        return guide.classifier(guide.unconditional(self.denoiser), classifier, scale)


BOUND_DRAWS = 16  # times or terms of the bound that are drawn an example


def denoiser_bits(
    predict: Predictor,
    batch: Batch,
    schedule: Schedule,
    *,
    bin_width: float | None,
    variance: Literal["small", "large", "learned"] = "small",
    generator: torch.Generator,
    times: torch.Generator,
) -> dict[str, Tensor]:
    """Bits/dim of each example by the flow, and by the variational bound where the data lie on a grid in [-1, 1].

    Args:
        predict: the model.
        batch: examples with their conditions.
        schedule: that it was trained under.
        bin_width: distance of neighbouring values; None for data that lie on no grid, of which the flow gives a density of x0.
        variance: of a chain's reverse steps.
        generator: of noise, bins and probes.
        times: of the times or terms that are drawn.
    """
    x, cond = batch.x, batch.cond or None
    if bin_width is None:
        nats = likelihood.flow_log_prob(predict, x, schedule, cond, generator=generator)
        return {"flow": -nats / (x[0].numel() * math.log(2))}
    if isinstance(schedule, Discrete):
        bound = _chain_bits(predict, x, schedule, cond, bin_width=bin_width, variance=variance, generator=generator, times=times)
    else:
        options: dict[str, Any] = {"draws": BOUND_DRAWS, "bin_width": bin_width, "generator": generator, "times": times}
        bound = latent.vdm.bound(predict, x, schedule, cond, **options).total
    return {"bound": bound, "flow": likelihood.bits_per_dim(predict, x, schedule, cond, bin_width=bin_width, generator=generator).total}


@torch.no_grad()
def _chain_bits(
    predict: Predictor,
    x: Tensor,
    chain: Discrete,
    cond: Cond | None,
    *,
    bin_width: float,
    variance: Literal["small", "large", "learned"],
    generator: torch.Generator,
    times: torch.Generator,
) -> Tensor:
    """The bound along a whole chain: prior and decoder, and the other terms by some drawn an example, one from each equal stretch."""
    count = len(chain)
    last = process.posterior_log_variance(chain.level(2 / count), chain.level(1 / count)).to(x)

    def term(step: Tensor) -> Tensor:
        """L_{step-1} of each example."""
        now, below = (chain.level(number.double() / count, like=x) for number in (step, step - 1))
        x_t = now.alpha * x + now.sigma * normal_like(x, generator)
        told = predict(x_t, now, cond)
        return likelihood.term_bits(told, x, x_t, now, below, variance=variance, last_log_variance=last, bin_width=bin_width)

    draws = min(BOUND_DRAWS, count - 1)
    kept = []
    for i in range(draws):
        u = (i + torch.rand(len(x), generator=times, dtype=torch.float64)) / draws
        kept.append(term(2 + (u * (count - 1)).floor().clamp(max=count - 2)))
    decoder = term(torch.ones(len(x), dtype=torch.float64))
    return likelihood.prior_bits(x, chain.level(1.0).to(x)) + (count - 1) * torch.stack(kept).mean(0) + decoder


def levels_of(schedule: Schedule, sampling: Sampling, steps: int) -> list[Level]:
    """Levels from noise to data. A chain ends at the data; on a continuous schedule the last step goes from its last level to the data.

    Raises:
        ValueError: steps below 1, or a spacing that does not fit the schedule.
    """
    spacing = SPACINGS[sampling.spacing]
    if isinstance(schedule, Discrete) or steps < 2:
        return grid(schedule, steps, spacing=spacing)
    one = torch.ones((), dtype=torch.float64)
    return [*grid(schedule, steps - 1, spacing=spacing), Level(one, 0 * one)]


def refuse_guidance(sampling: Sampling, training: Training) -> None:
    """Refuses guidance of a model that never sees examples without conditions."""
    if sampling.guidance != 1 and not training.label_drop and not any(training.drop.values()):
        raise ValueError("sampling.guidance needs a model trained with dropped labels; set training.label_drop above 0")


def refuse_learned_variance(sampling: Sampling, what: str, hint: str) -> None:
    """Refuses a sampler that needs a learned variance, for a model without one; `what` names the model, `hint` says what to do."""
    step = SAMPLERS[sampling.sampler]
    if isinstance(step, steps.Ancestral) and step.variance == "learned":
        raise ValueError(f"sampling.sampler={sampling.sampler} needs a learned variance, but {what} does not learn one; {hint}")


def target_of(name: str) -> prediction.Target:
    """The target of this name."""
    return getattr(prediction, f"{name}_target")


def _unit(x: Tensor, level: Level) -> Tensor:
    return x / torch.hypot(level.alpha, level.sigma)


def read_tuned(folder: Path) -> dict[tuple[int, float], TuningResult]:
    """The tuned levels and methods of a run, by steps and guidance. Raises CheckpointError for a damaged one."""
    found = {}
    for path in sorted((folder / "tuned").glob("*.json")):
        try:
            record = json.loads(path.read_text())
            found[record["steps"], float(record["guidance"])] = TuningResult.from_json(json.dumps(record["walk"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise storage.CheckpointError(f"{path} is damaged ({error!r}); delete it, or tune again.") from None
    return found
