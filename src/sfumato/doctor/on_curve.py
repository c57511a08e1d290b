"""Checks on the training curves in metrics.jsonl."""

import numpy as np

from sfumato.doctor.check import ERROR, WARNING, Reading, above, check, share
from sfumato.doctor.on_trial import HEALTHY_RATE
from sfumato.doctor.outcome import Outcome

ENOUGH = 8  # fewer records are not a curve


def _lower(run: Outcome) -> str:
    """A quarter of the rate, but at most a rate at which every network learns."""
    training = run.recipe.training
    names = ["rate"] + ["muon_rate"] * (training.optimizer == "muon")
    return " ".join(f"--set training.{name}={min(getattr(training, name) / 4, HEALTHY_RATE):.1g}" for name in names)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Medians of three."""
    return np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)


@check("loss-not-finite", ERROR, above(0, "a loss of NaN trains nothing"))
def loss_not_finite(run: Outcome) -> Reading | None:
    """Records whose loss or gradient norm is not finite."""
    bad = [r["step"] for r in run.records if not np.isfinite([r["loss"], r.get("gradient_norm", 0.0)]).all()]
    return Reading(
        float(len(bad)),
        f"{len(bad)} of {len(run.records)} records have a loss or gradient that is not finite, the first at step {bad[0] if bad else 0}.",
        "The weights were lost there: samples will be black (NaN has no grey level).",
        f"Start again with {_lower(run)} --set runtime.precision=float32",
    )


@check("steps-rejected", WARNING, above(0.005, "the guard of a healthy training rejects none; 0.5% is more than a single broken batch"))
def steps_rejected(run: Outcome) -> Reading | None:
    """Share of the steps that the guard rejected: a loss or gradient that was not finite, or had exploded."""
    kept = [int(path.stem) for path in (run.folder / "rejected").glob("*.npz") if path.stem.isdecimal()]
    rejected = max(len(kept), sum(int(line.get("rejected", 0)) for line in run.lines))
    steps = max([*kept, *(int(line["step"]) for line in run.lines)], default=0)
    return Reading(
        rejected / max(1, steps),
        f"{rejected} of {steps} steps were not applied; their batches are in {run.folder / 'rejected'}.",
        "The learning rate is too high, or some examples are broken: without the guard the loss would be NaN and the samples black.",
        f"Start again with {_lower(run)} --set runtime.precision=float32, and look at the rejected batches",
    )


@check("loss-exploded", ERROR, above(2, "batch noise can end a curve 10% above its lowest point, but not at twice it"))
def loss_exploded(run: Outcome) -> Reading | None:
    """The last losses relative to the lowest (medians of three records)."""
    losses = run.curve("loss")
    if len(losses) < ENOUGH or not np.isfinite(losses).all() or losses.min() <= 0:
        return None
    smooth = _smooth(losses)
    at = run.records[int(smooth.argmin()) + 1]["step"]
    return Reading(
        float(smooth[-1] / smooth.min()),
        f"The loss was {smooth.min():.3g} at step {at} and ended at {smooth[-1]:.3g}.",
        "The training diverged after that step, and later steps undid what was learned.",
        f"Start again with {_lower(run)}",
    )


@check("loss-never-fell", WARNING, above(0.985, "healthy curves fall by 5% (points) to 90% (images) from their first record on"))
def loss_never_fell(run: Outcome) -> Reading | None:
    """Median loss of the last quarter of the records relative to the first record's."""
    losses = run.curve("loss")
    if len(losses) < ENOUGH or not np.isfinite(losses).all() or losses[0] <= 0:
        return None
    ratio = float(np.median(losses[-len(losses) // 4 :]) / losses[0])
    return Reading(
        ratio,
        f"The loss started at {losses[0]:.4g} and has a median of {ratio * losses[0]:.4g} over the last quarter of the records.",
        "Nothing was learned: samples are noise.",
        f"Start again with --set training.rate={HEALTHY_RATE:g}; if the rate was normal, check the data with sfumato doctor RECIPE",
    )


@check("loss-spikes", WARNING, above(2, "records are means over many steps; healthy ones stay within 30% of their neighbours"))
def loss_spikes(run: Outcome) -> Reading | None:
    """The largest loss relative to the median of the four records around it."""
    losses = run.curve("loss")
    if len(losses) < ENOUGH or not np.isfinite(losses).all() or losses.min() <= 0:
        return None
    around = [np.median(np.delete(losses[max(0, i - 2) : i + 3], min(i, 2))) for i in range(len(losses))]
    ratios = losses[2:] / np.array(around)[2:]
    worst = int(ratios.argmax()) + 2
    return Reading(
        float(ratios.max()),
        f"At step {run.records[worst]['step']} the loss is {losses[worst]:.3g}, but {around[worst]:.3g} around it.",
        "A few batches change the weights too much, and the run takes a while to recover: a broken example, or too high a learning rate.",
        f"Start again with --set training.clip={run.recipe.training.clip / 4:g}, or with {_lower(run)}; look at the examples of that step",
    )


@check("rate-was-zero", WARNING, above(0.3, "a cosine spends 2% of a run below a thousandth of its peak"))
def rate_was_zero(run: Outcome) -> Reading | None:
    """Share of the records at a learning rate below 1e-7."""
    rates = run.curve("learning_rate")
    if len(rates) < ENOUGH:
        return None
    idle = float((rates < 1e-7).mean())
    return Reading(
        idle,
        f"The learning rate was below 1e-7 in {share(idle)} of the records; the highest was {np.nanmax(rates):.2g}.",
        "At such a rate float32 weights do not change: this time was wasted.",
        f"Start again with --set training.rate={HEALTHY_RATE:g} --set training.warmup={run.recipe.training.steps // 20}",
    )


@check("always-clipped", WARNING, above(20, "healthy norms lie between 0.1 and 5 times the clip of 1; at 20 all steps are equally long"))
def always_clipped(run: Outcome) -> Reading | None:
    """Median gradient norm relative to training.clip."""
    norms = run.curve("gradient_norm")
    if len(norms) < ENOUGH or not np.isfinite(norms).all():
        return None
    ratio = float(np.median(norms)) / run.recipe.training.clip
    return Reading(
        ratio,
        f"Gradient norms have a median of {np.median(norms):.3g}, training.clip is {run.recipe.training.clip:g}.",
        "Every step is clipped strongly, so a bad batch counts as much as a good one.",
        f"Start again with --set training.clip={float(f'{2 * np.median(norms):.1g}'):g}",
    )
