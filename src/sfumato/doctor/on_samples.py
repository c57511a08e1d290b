"""Checks on samples, compared with the data."""

import math

import torch
from torch import Tensor

from sfumato.doctor.check import ERROR, WARNING, Reading, above, below, check, share
from sfumato.doctor.neighbours import features, nearest
from sfumato.doctor.on_trial import HEALTHY_RATE
from sfumato.doctor.outcome import Outcome


@check("samples-not-finite", ERROR, above(0, "NaN cannot be shown"))
def samples_not_finite(run: Outcome) -> Reading | None:
    """Whether sampling fails or returns values that are not finite."""
    other = "" if run.plan.sampling is None else f"; if the losses are fine, use --sampler {_other(run)}"
    return Reading(
        float(bool(run.sample_refusal)),
        run.sample_refusal,
        "The weights or the sampler diverged: such samples are shown black.",
        f"Start again with --set training.rate={min(run.recipe.training.rate / 4, HEALTHY_RATE):.1g}{other}",
    )


@check(
    "saturated",
    WARNING,
    above(0.12, "healthy samples have the data's share within 5%; pixels at the ends come from too much guidance"),
    of_levels=True,
)
def saturated(run: Outcome) -> Reading | None:
    """Share of the samples' pixels within two levels of black or white (of entries outside the data's range), minus the data's share."""
    if not run.is_comparable:
        return None
    assert run.samples is not None
    assert run.run is not None
    if run.run.spec.is_bytes:
        at_end = lambda x: float((x.abs() > 1 - 2.5 / 127.5).double().mean())  # noqa: E731
    else:
        low, high = run.real.amin(0), run.real.amax(0)
        at_end = lambda x: float(((x < low - 0.1 * (high - low)) | (x > high + 0.1 * (high - low))).double().mean())  # noqa: E731
    ours, theirs = at_end(run.samples), at_end(run.real)
    where = "black or white" if run.run.spec.is_bytes else "outside the data's range"
    return Reading(
        ours - theirs,
        f"{share(ours)} of the samples' entries are {where}, {share(theirs)} of the data's.",
        "x0 is pushed out of the data's range and clipped: overexposed samples.",
        f"{run.weaker()}; the weights need no change if the losses by level are fine",
    )


@check(
    "colour-shift",
    WARNING,
    above(0.25, "256 samples determine a mean to 0.06 standard deviations; short trainings are off by 0.1"),
    of_levels=True,
)
def colour_shift(run: Outcome) -> Reading | None:
    """Largest difference between the mean of a channel (or feature) in the samples and in the data, in standard deviations of the data."""
    if not run.is_comparable:
        return None
    assert run.samples is not None
    means = [x.transpose(0, 1).flatten(1).mean(1) for x in (run.samples, run.real)]
    shift = (means[0] - means[1]) / run.real.std()
    worst = int(shift.abs().argmax())
    return Reading(
        float(shift.abs().max()),
        f"Channel {worst} is {abs(float(shift[worst])):.2f} deviations {'higher' if shift[worst] > 0 else 'lower'} than in the data.",
        "Samples have a colour cast: too little noise at the start of sampling, an average that lags, or too short a training.",
        f"{run.longer()}; --sampler {_other(run)} --steps 100 shows whether the sampler is the cause",
    )


@check("collapsed", WARNING, below(0.7, "healthy samples have 0.8 to 1.1 of the data's variance"), of_levels=True)
def collapsed(run: Outcome) -> Reading | None:
    """Variance between samples relative to that between examples, summed over entries."""
    if not run.is_comparable:
        return None
    assert run.samples is not None
    ratio = float(run.samples.flatten(1).var(0).sum() / run.real.flatten(1).var(0).sum())
    return Reading(
        ratio,
        f"Samples have {ratio:.2f} of the variance of the data.",
        "They are too similar: averages of possible images, or only a few kinds.",
        f"{run.weaker()}; if that does not help, {run.longer()}",
    )


@check("samples-alike", WARNING, below(0.7, "healthy samples are 0.8 to 1.3 times as far apart as examples"), of_levels=True)
def samples_alike(run: Outcome) -> Reading | None:
    """Median distance from a sample to the nearest other one, relative to the same for as many examples."""
    if not run.is_comparable or run.run is None or len(run.real) < 2:
        return None
    assert run.samples is not None
    count = min(len(run.samples), len(run.real))
    ours, theirs = (float(nearest(features(x[:count]))[0].median()) for x in (run.samples, run.real))
    return Reading(
        ours / theirs if theirs > 0 else 1.0,
        f"The median distance to the nearest other sample is {ours:.3g}, to the nearest other example {theirs:.3g}.",
        "The same few images are sampled again and again.",
        f"{run.weaker()}; if that does not help, {run.longer()}",
    )


@check("blurred", WARNING, below(0.6, "healthy samples have 0.8 to 1.3 of the data's pixel differences"), of_levels=True)
def blurred(run: Outcome) -> Reading | None:
    """Mean square difference of neighbouring pixels, relative to the data's."""
    if (ratio := _roughness(run)) is None:
        return None
    return Reading(
        ratio,
        f"Neighbouring pixels differ by {ratio:.2f} of what they do in the data (mean square).",
        "Samples are blurred: too few steps, too noisy a last level, or too short a training.",
        f"{run.finer()}; if that does not help, {run.longer()}",
    )


@check("grainy", WARNING, above(1.6, "see `blurred`"), of_levels=True)
def grainy(run: Outcome) -> Reading | None:
    """The same ratio, for an upper limit."""
    if (ratio := _roughness(run)) is None:
        return None
    return Reading(
        ratio,
        f"Neighbouring pixels differ by {ratio:.2f} times what they do in the data (mean square).",
        "Samples contain noise: the sampler stops too early or adds noise at the end, or the network is untrained at clean levels.",
        f"--sampler {_other(run)} {run.finer()}; sampling.log_snr_max within the range drawn in training",
    )


@check(
    "flat",
    WARNING,
    below(0.8, "healthy samples have 0.95 to 1.05 of the data's contrast; the mean of all digits has 0.7"),
    of_levels=True,
)
def flat(run: Outcome) -> Reading | None:
    """Median standard deviation of the pixels within a sample, relative to the data's."""
    if not run.is_comparable or run.real.ndim != 4:
        return None
    assert run.samples is not None
    ours, theirs = (float(x.flatten(1).std(1).median()) for x in (run.samples, run.real))
    return Reading(
        ours / theirs if theirs > 0 else 1.0,
        f"Samples have a contrast of {ours:.2f}, the data of {theirs:.2f} (standard deviation in x0).",
        "Samples are grey: the network predicts the mean of all data, because of too little training or too few steps.",
        f"{run.finer()}; if that does not help, {run.longer()}",
    )


@check("training-copies", WARNING, above(0.1, "less than 2% of healthy samples are this near to a training example"))
def training_copies(run: Outcome) -> Reading | None:
    """Share of samples nearer to a training example than a third of the median nearest-neighbour distance of training examples."""
    if not run.is_comparable or math.prod(run.real.shape[1:]) < 16 or len(run.real) < 8:
        return None
    assert run.samples is not None
    examples: Tensor = features(run.real.unique(dim=0))
    between = nearest(examples)[0].median()
    copied = float((nearest(features(run.samples), examples)[0] < between / 3).double().mean())
    of = f"{len(examples)} training examples" + ("" if len(run.real) == len(run.plan.rows[0]) else ", a part of all")
    return Reading(
        copied,
        f"{share(copied)} of the samples are copies of one of {of} (at most a third of the usual distance away).",
        "The network has memorised the data.",
        f"--set training.steps={max(1, run.recipe.training.steps // 3)} --set training.held_out=0.1, a smaller network, or more data",
    )


def _other(run: Outcome) -> str:
    """A method without noise, other than the recipe's."""
    return "multistep" if run.recipe.sampling.sampler != "multistep" else "ddim"


def _roughness(run: Outcome) -> float | None:
    if not run.is_comparable or run.real.ndim != 4 or min(run.real.shape[2:]) < 2:
        return None
    assert run.samples is not None
    ours, theirs = (float(torch.stack([x.diff(dim=d).square().mean() for d in (2, 3)]).sum()) for x in (run.samples, run.real))
    return ours / theirs if theirs > 0 else 1.0
