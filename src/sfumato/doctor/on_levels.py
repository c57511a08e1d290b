"""Checks on the loss by noise level, compared with an untrained network and the optimal predictor for Gaussian data."""

import numpy as np

from sfumato.doctor.check import ERROR, WARNING, Reading, above, check
from sfumato.doctor.on_trial import HEALTHY_RATE
from sfumato.doctor.outcome import LevelErrors, Outcome


def _at(errors: LevelErrors, ratios: np.ndarray, place: int) -> str:
    return f"{ratios[place]:.2f} at log-SNR {errors.log_snr[place]:.1f} nats"


@check("learnt-nothing", ERROR, above(0.95, "trained networks have 0.1 to 0.7 of the untrained error at their best level"), of_levels=True)
def learnt_nothing(run: Outcome) -> Reading | None:
    """Error of x0 relative to that of an untrained network, at the level where this is smallest."""
    if (errors := run.errors) is None:
        return None
    ratios = errors.model / errors.untrained
    return Reading(
        float(ratios.min()),
        f"At its best level the model has {_at(errors, ratios, int(ratios.argmin()))} of the error of untrained weights.",
        "Nothing was learned at any level: samples are noise.",
        f"Start again with --set training.rate={HEALTHY_RATE:g}; if the rate was normal, check the data with sfumato doctor RECIPE",
    )


@check(
    "worse-than-gaussian",
    WARNING,
    above(1.25, "a trained network is within 10% of the Gaussian predictor at levels where the data look Gaussian, and better at others"),
    of_levels=True,
)
def worse_than_gaussian(run: Outcome) -> Reading | None:
    """Error of x0 relative to the optimal predictor for Gaussian data of the same mean and covariance, at its largest level."""
    if (errors := run.errors) is None:
        return None
    ratios = errors.model / errors.gaussian
    worst = int(ratios.argmax())
    return Reading(
        float(ratios.max()),
        f"The error is {_at(errors, ratios, worst)} times that of a Gaussian with the data's mean and "
        f"{'covariance' if errors.gaussian_is_full else 'variances'}.",
        "At this level the network is worse than a closed-form predictor: too short a training, too few draws of such levels, or a "
        "target or weight hides the error.",
        f"{run.longer()}; or start again with --set objective.times='{{kind: uniform}}', which sees all levels equally",
    )


@check(
    "only-gaussian",
    WARNING,
    above(0.97, "trained networks beat it at some level by 10% (two-dimensional points) to 90% (images)"),
    of_levels=True,
)
def only_gaussian(run: Outcome) -> Reading | None:
    """The same ratio, at the level where it is smallest."""
    if (errors := run.errors) is None:
        return None
    ratios = errors.model / errors.gaussian
    return Reading(
        float(ratios.min()),
        f"At its best level the error is {_at(errors, ratios, int(ratios.argmin()))} times that of a Gaussian with the data's mean and "
        f"{'covariance' if errors.gaussian_is_full else 'variances'}.",
        "The network has only learned the brightness and blur of the data: samples are coloured fog. "
        "(If the data are Gaussian, this is correct.)",
        run.longer(),
    )


@check(
    "held-out-gap",
    WARNING,
    above(2, "healthy runs have 0.9 to 1.3; at 2 half of what was learned applies to the training examples only"),
    of_levels=True,
)
def held_out_gap(run: Outcome) -> Reading | None:
    """Error of x0 on held-out examples relative to training examples, at the level where this is largest."""
    if (errors := run.errors) is None or errors.on_training is None:
        return None
    ratios = errors.model / errors.on_training
    training, examples = run.recipe.training, len(run.plan.rows[0])
    fewer = max(1, min(training.steps // 3, 100 * examples // training.batch))  # so that no example is shown more than 100 times
    return Reading(
        float(ratios.max()),
        f"The error on held-out examples is {_at(errors, ratios, int(ratios.argmax()))} times that on training examples.",
        "The network is memorising the training examples: samples will be copies of them.",
        f"Use more data; or --set training.steps={fewer}, a smaller network, or net.dropout for a U-Net",
    )


@check(
    "average-worse",
    WARNING,
    above(1.1, "an average is as good as the weights or better; early in a run it can be 2% worse"),
    of_levels=True,
)
def average_worse(run: Outcome) -> Reading | None:
    """Error of x0 with averaged weights relative to the raw weights, as geometric mean over levels."""
    if (errors := run.errors) is None or errors.raw is None:
        return None
    ratio = float(np.exp(np.log(errors.model / errors.raw).mean()))
    narrower = max(0.001, round(min(run.recipe.training.ema) / 2, 3))
    return Reading(
        ratio,
        f"The averaged weights have {ratio:.2f} times the error of the raw weights.",
        "Samples use the average, which is too old or damaged: they are noisy although the network is good.",
        f"{run.longer()}, if the run is still short; or start again with --set training.ema='[{narrower:g}]'",
    )
