"""Checks on a few training steps with the real data."""

import math

from sfumato.doctor.check import ERROR, WARNING, Reading, above, below, check
from sfumato.doctor.plan import Plan

HEALTHY_RATE = 1e-3  # at which all built-in networks learn
ENOUGH = 15  # fewer steps hardly go beyond the warm-up


@check("rate-too-high", ERROR, above(1.5, "40 steps of a healthy recipe lower the loss, or raise it by 7% on points (little to learn)"))
def rate_too_high(plan: Plan) -> Reading | None:
    """Loss on fixed examples, levels and noise after a trial at the full rate, relative to the loss before."""
    if (trial := plan.trial) is None:
        return None
    training = plan.recipe.training
    rate = "training.muon_rate" if training.optimizer == "muon" and training.muon_rate > training.rate else "training.rate"
    lower = min(getattr(training, rate.split(".")[1]) / 10, HEALTHY_RATE)
    return Reading(
        trial.after / trial.before if math.isfinite(trial.after) and all(map(math.isfinite, trial.norms)) else math.nan,
        f"In {trial.steps} steps at the full rate the loss went from {trial.before:.3g} to {trial.after:.3g}; the last gradient norm is "
        f"{trial.norms[-1]:.3g}.",
        "The learning rate is too high: the loss will explode or become NaN, and samples will be black, or noise.",
        f"--set {rate}={lower:.1g}",
    )


@check(
    "rate-too-low",
    WARNING,
    below(2e-3, "40 steps at a usable rate change these losses by 15% (points) to 55%, at a rate of 1e-7 by 6e-5, of 1e-9 by 1e-6"),
)
def rate_too_low(plan: Plan) -> Reading | None:
    """Mean change of the losses of single examples in the trial (their mean may stay the same)."""
    if (trial := plan.trial) is None or not math.isfinite(trial.after) or trial.steps < ENOUGH:
        return None
    return Reading(
        trial.moved,
        f"In {trial.steps} steps at the full rate the losses of single examples changed by {trial.moved:.2g} of their mean.",
        "The weights hardly change: the run will end where it started, and samples will be grey noise.",
        f"--set training.rate={max(1e-4, min(1e-3, 1000 * plan.recipe.training.rate)):g}",
    )


@check("memory", ERROR, above(0.9, "beyond 90% of the free memory the system starts to swap or to kill processes"))
def memory(plan: Plan) -> Reading | None:
    """Predicted peak memory relative to the free memory of this machine."""
    if (trial := plan.trial) is None:
        return None
    slice_ = plan.recipe.runtime.micro_batch or plan.recipe.training.batch
    fixed = trial.peak_bytes - slice_ * trial.example_bytes
    fitting = int((0.7 * trial.free_bytes - fixed) / max(1, trial.example_bytes))
    change = f"--set runtime.micro_batch={fitting} (the same steps, computed in slices)"
    return Reading(
        trial.peak_bytes / trial.free_bytes,
        f"Training will need about {trial.peak_bytes / 2**30:.1f} GiB, but {trial.free_bytes / 2**30:.1f} GiB are free ({trial.device}).",
        "The process will be killed in its first steps.",
        change if fitting >= 1 else "Use a smaller network: its weights and the optimiser alone do not fit.",
    )


@check("too-long", WARNING, above(72, "three days: beyond that, most people want to know beforehand"))
def too_long(plan: Plan) -> Reading | None:
    """Predicted hours of training on this machine."""
    if (trial := plan.trial) is None:
        return None
    training = plan.recipe.training
    hours = training.steps * trial.seconds_per_step / 3600
    fewer = int(training.steps * 24 / hours) if hours else training.steps
    return Reading(
        hours,
        f"A step takes {trial.seconds_per_step:.3g} s here ({trial.device}), so {training.steps} steps take {hours:.0f} hours.",
        "The run will not be finished before then.",
        f"--set training.steps={fewer} takes a day; or use a smaller net" if fewer else "Use a smaller net, or a smaller training.batch.",
    )


@check(
    "checkpoints-far-apart",
    WARNING,
    above(4, "a power cut should not cost more than half a working day; writing a checkpoint takes seconds"),
)
def checkpoints_far_apart(plan: Plan) -> Reading | None:
    """Predicted hours between two checkpoints."""
    if (trial := plan.trial) is None:
        return None
    training = plan.recipe.training
    hours = min(training.checkpoint_every, training.steps) * trial.seconds_per_step / 3600
    return Reading(
        hours,
        f"{min(training.checkpoint_every, training.steps)} steps from checkpoint to checkpoint will take {hours:.1f} hours here.",
        "This much is lost if the machine stops.",
        f"--set training.checkpoint_every={max(1, int(900 / trial.seconds_per_step))} writes one every quarter of an hour",
    )


@check("nothing-clipped-off", WARNING, below(1e-3, "with a clip a thousand times below the norm, AdamW's rounding dominates"))
def nothing_clipped_off(plan: Plan) -> Reading | None:
    """training.clip relative to the median gradient norm of the trial."""
    if (trial := plan.trial) is None or not all(map(math.isfinite, trial.norms)):
        return None
    norm, clip = sorted(trial.norms)[len(trial.norms) // 2], plan.recipe.training.clip
    return Reading(
        clip / norm if norm > 0 else 1.0,
        f"Gradients have a norm of {norm:.3g}; training.clip cuts them to {clip:.3g}.",
        "Every step is cut to nearly nothing, so all steps count the same, even for bad batches.",
        f"--set training.clip={max(1.0, float(f'{2 * norm:.1g}')):g}",
    )
