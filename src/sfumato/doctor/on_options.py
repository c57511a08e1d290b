"""Checks on the options of a recipe, with respect to each other and to the data."""

import math

import torch

from sfumato.doctor.check import ERROR, WARNING, Reading, above, below, check, share
from sfumato.doctor.plan import Plan, log_snr
from sfumato.options import Training
from sfumato.runtime import multiplies_bfloat16
from sfumato.schedule import finite_ends
from sfumato.tasks.options import ChainSchedule, CurveSchedule, VESchedule


@check("options-refused", ERROR, above(0, "what `train` refuses"))
def options_refused(plan: Plan) -> Reading | None:
    """Whether a network and a sampler can be built from the options."""
    return Reading(
        float(bool(plan.build_refusal)), plan.build_refusal, "Training will refuse this recipe.", "Fix the option that it names."
    )


@check(
    "signal-in-noise",
    WARNING,
    above(1, "at 1 the strongest direction of the data is one standard deviation above the noise, which a network can see"),
    of_levels=True,
)
def signal_in_noise(plan: Plan) -> Reading | None:
    """SNR of the strongest direction of the data (usually the mean brightness) in x_t where sampling starts."""
    if not plan.levels or not math.isfinite(float(plan.levels[0].sigma)) or float(plan.levels[0].sigma) == 0:
        return None
    flat = plan.x0[:400].flatten(1).double()
    strongest = float(torch.linalg.eigvalsh(flat @ flat.mT)[-1]) / len(flat)
    kept = strongest * float(plan.levels[0].alpha / plan.levels[0].sigma) ** 2
    least = math.floor(-math.log(strongest / 0.1))
    options = plan.recipe.schedule
    if isinstance(options, ChainSchedule):
        change = "--set schedule.zero_terminal=true --set objective.target=v"
    elif isinstance(options, VESchedule):
        change = f"--set schedule.sigma_max={math.ceil(math.exp(-least / 2))}"
    else:
        change = f"--set schedule.log_snr_min={min(least, options.log_snr_min):g}"
        change += f" --set sampling.log_snr_min={least}" if plan.recipe.sampling.log_snr_min is not None else ""
    return Reading(
        kept,
        f"Sampling starts at log-SNR {log_snr(plan.levels[0]):.1f} nats, where the data's strongest direction has an SNR of {kept:.2g}.",
        "In training x_T still contains the brightness of the data, but sampling starts from noise without it: samples have "
        "medium brightness and look washed out. The larger the images, the more noise is needed.",
        change,
    )


@check(
    "noise-at-the-end",
    WARNING,
    above(0.08, "0.08 standard deviations of the data are 7 grey levels; the papers' schedules end at 0.003 to 0.02"),
    of_levels=True,
)
def noise_at_the_end(plan: Plan) -> Reading | None:
    """Noise of the cleanest level, sigma/alpha, in standard deviations of the data."""
    if plan.spec is None:
        return None
    end = float(finite_ends(plan.sampling_schedule)[0])
    left = math.exp(-end / 2) / plan.spec.std
    is_sampling = plan.recipe.sampling.log_snr_max is not None
    options, aim = plan.recipe.schedule, 0.05 * plan.spec.std
    needed = max(10, math.ceil(-2 * math.log(aim)))
    if isinstance(options, ChainSchedule):  # its first beta is 0.1 divided by its steps
        change = f"--set schedule.betas=linear --set schedule.steps={max(1000, 1000 * math.ceil(0.1 / aim**2 / 1000))}"
    elif isinstance(options, VESchedule):
        change = f"--set schedule.sigma_min={min(0.002, float(f'{aim:.1g}')):g}"
    else:
        ends = ["schedule"] * (options.log_snr_max < needed) + ["sampling"] * is_sampling
        change = " ".join(f"--set {group}.log_snr_max={needed}" for group in ends)
    return Reading(
        left,
        f"The cleanest level has log-SNR {end:.1f} nats: noise of {left:.2g} standard deviations of the data"
        + (f", {127.5 * math.exp(-end / 2):.0f} grey levels." if plan.spec.is_bytes else "."),
        "Details finer than this noise are never learned: the last step guesses them at once, and samples are blurred or grainy.",
        change,
    )


@check(
    "untrained-levels",
    WARNING,
    above(4.5, "networks extrapolate some nats at the noisy end; the built-in recipes need less than 1"),
    of_levels=True,
)
def untrained_levels(plan: Plan) -> Reading | None:
    """Nats of log-SNR that sampling visits beyond the outermost level drawn in training."""
    if len(plan.levels) < 2:
        return None
    first, last = log_snr(plan.levels[0]), log_snr(plan.levels[-2])
    low, high = float(plan.drawn.min()), float(plan.drawn.max())
    beyond = max(low - first, last - high, 0.0)
    widest, closer = "--set objective.times='{kind: uniform}'", ""
    if isinstance(options := plan.recipe.schedule, CurveSchedule):
        sampling = plan.recipe.sampling
        if sampling.log_snr_min is not None and sampling.log_snr_min < options.log_snr_min:
            widest += " --set sampling.log_snr_min=null"
        if sampling.log_snr_max is not None and sampling.log_snr_max > options.log_snr_max:
            widest += " --set sampling.log_snr_max=null"
        if math.ceil(low) < math.floor(high):
            closer = f", or --set sampling.log_snr_min={math.ceil(low)} --set sampling.log_snr_max={math.floor(high)}"
    return Reading(
        beyond,
        f"Sampling goes from {first:.1f} to {last:.1f} nats of log-SNR, but training draws levels from {low:.1f} to {high:.1f}.",
        "The network was never trained at the levels beyond: its output there is arbitrary, which causes colour casts (noisy end) or grain "
        "(clean end).",
        widest + closer,
    )


@check(
    "few-steps",
    WARNING,
    below(5, "second-order methods need about 8 steps for a good image, 5 for a rough one; fewer is for distilled models"),
)
def few_steps(plan: Plan) -> Reading | None:
    """Sampling steps."""
    if plan.sampling is None:
        return None
    return Reading(
        float(plan.sampling.steps),
        f"sampling.steps is {plan.sampling.steps}.",
        "With so few steps the sampler averages over possible images: samples are blurred and grey.",
        "--set sampling.steps=20",
    )


SPANNED, WIDEST = 5, 0.24  # smallest span of an average in steps, and its largest width


def _averages(training: Training) -> str:
    """The averages within both limits, or the nearest to the default that is; more steps if there is none."""
    usual = max(0.1, math.ceil(1000 * SPANNED / training.steps) / 1000)
    if usual > WIDEST:
        return f"--set training.steps={10 * SPANNED} --set training.ema='[0.1]'"
    kept = [width for width in training.ema if width * training.steps >= SPANNED and width <= WIDEST] or [usual]
    return f"--set training.ema='[{', '.join(f'{width:g}' for width in kept)}]'"


@check("average-too-short", WARNING, below(SPANNED, "an average over fewer than five steps equals the raw weights with a delay"))
def average_too_short(plan: Plan) -> Reading | None:
    """Number of steps that the narrowest average of the weights spans: its width times the run's length."""
    training = plan.recipe.training
    spanned = min(training.ema) * training.steps
    return Reading(
        spanned,
        f"The average of width {min(training.ema):g} spans {spanned:.1f} of {training.steps} steps.",
        "It smooths nothing: samples are those of the raw weights, including their noise.",
        _averages(training),
    )


@check("average-too-wide", WARNING, above(WIDEST, "from 0.24 on, 10% of the average's weight is on the first quarter of the run"))
def average_too_wide(plan: Plan) -> Reading | None:
    """Width of the widest average of the weights, relative to the run's length."""
    width = max(plan.recipe.training.ema)
    return Reading(
        width,
        f"The widest average of the weights has width {width:g}.",
        "It still contains weights from the start of the run: samples are worse than the network could make them.",
        _averages(plan.recipe.training),
    )


@check("warm-up-too-long", WARNING, above(0.5, "the built-in recipes warm up for 2% to 5%; above 50% the full rate is hardly used"))
def warm_up_too_long(plan: Plan) -> Reading | None:
    """Share of the run that is warm-up."""
    training = plan.recipe.training
    return Reading(
        training.warmup / training.steps,
        f"training.warmup is {training.warmup} of {training.steps} steps.",
        "The learning rate is still rising at the end of the run."
        if training.warmup >= training.steps
        else "Only a small part of the run has the full learning rate.",
        f"--set training.warmup={training.steps // 20}",
    )


@check(
    "no-checkpoint-on-the-way",
    WARNING,
    above(1, "the last step always writes one, so up to the run's length it is a choice, beyond it a mistake"),
)
def no_checkpoint_on_the_way(plan: Plan) -> Reading | None:
    """training.checkpoint_every relative to the run's length."""
    training = plan.recipe.training
    return Reading(
        training.checkpoint_every / training.steps,
        f"training.checkpoint_every is {training.checkpoint_every}, the run has {training.steps} steps.",
        "Nothing is written, and no samples are drawn, before the end of the run.",
        f"--set training.checkpoint_every={max(1, training.steps // 4)}",
    )


@check(
    "guidance-untaught",
    WARNING,
    below(0.02, "Ho & Salimans drop 10% to 20% of the labels; below 2% the unconditional model is hardly trained"),
)
def guidance_untaught(plan: Plan) -> Reading | None:
    """Share of the labels that training drops (or keeps, if that is less), if sampling is guided by them."""
    training, sampling = plan.recipe.training, plan.sampling
    if sampling is None or sampling.guidance == 1 or (plan.dataset is not None and plan.dataset.labels is None):
        return None
    taught = min(training.label_drop, 1 - training.label_drop)
    return Reading(
        taught,
        f"training.label_drop is {training.label_drop:g} and sampling.guidance {sampling.guidance:g}.",
        "Guidance compares the model with and without a label, but one of the two is hardly trained: the difference is amplified noise.",
        "--set training.label_drop=0.1",
    )


@check(
    "guidance-too-strong",
    WARNING,
    above(8, "guidance of pixel models is useful from 1 to 4; 7.5 is common for latent models; beyond 8 colours saturate"),
)
def guidance_too_strong(plan: Plan) -> Reading | None:
    """sampling.guidance."""
    if plan.sampling is None:
        return None
    return Reading(
        plan.sampling.guidance,
        f"sampling.guidance is {plan.sampling.guidance:g}.",
        "x0 is pushed far out of the data's range: saturated colours, and little variety within a class.",
        "--set sampling.guidance=2",
    )


@check("bfloat16-emulated", WARNING, above(0, "emulated products take 10 to 400 times as long"))
def bfloat16_emulated(plan: Plan) -> Reading | None:
    """Whether training uses bfloat16 although the processor emulates it."""
    asked = plan.recipe.runtime.precision == "bfloat16"
    return Reading(
        float(asked and not torch.cuda.is_available() and not multiplies_bfloat16()),
        "runtime.precision is bfloat16, but this processor has no bfloat16 products.",
        "Every product is emulated: a step takes many times as long as in float32, and is less exact.",
        "--set runtime.precision=auto",
    )


@check("bound-of-floats", WARNING, above(0, "the decoder of the bound is a probability of evenly spaced values"), of_levels=True)
def bound_of_floats(plan: Plan) -> Reading | None:
    """Share of float data outside [-1, 1], if the loss is the bound for evenly spaced values in that range."""
    if plan.dataset is None or plan.recipe.objective.loss == "simple":
        return None
    outside = float((plan.x0.abs() > 1 + 1e-6).double().mean())
    return Reading(
        outside,
        f"{share(outside)} of the entries of x0 lie outside [-1, 1].",
        f"objective.loss={plan.recipe.objective.loss} is the likelihood of {plan.recipe.objective.values} values in [-1, 1], which "
        "these data are not.",
        "--set objective.loss=simple --set objective.variance=fixed"
        + (" --set sampling.sampler=ancestral" if plan.recipe.sampling.sampler == "ancestral-learned" else ""),
    )
