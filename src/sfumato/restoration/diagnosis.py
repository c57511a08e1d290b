"""What is wrong with a restoration, as sentences: residuals out of line, noise that does not fit, y out of the model's distribution."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike, spread
from sfumato.denoiser import Predictor
from sfumato.noise import Generator, normal_like
from sfumato.restoration.observed import at_ratios, geometric
from sfumato.restoration.restore import Restored
from sfumato.sampling import sample, steps

LEAST_PARTICLES = 20.0  # effective ones, below which a mean over particles is mostly chance
FURTHEST = 4.0  # standard deviations of the model's own samples


def diagnose(restored: Restored, m: int, *, strangeness: float | None = None) -> list[str]:
    """What to look at, each in a sentence or two; nothing where all is as it should be.

    For draws of the true posterior |y - H x|²/noise_std² has the law of a chi-squared of m degrees of freedom, so its share of m is
    1 ± sqrt(2/m). It is called out of line beyond 5 of these, and beyond a quarter at least.

    Args:
        restored: the draws of one observation.
        m: entries of y.
        strangeness: as `strangeness` gives it.
    """
    found = []
    chi, noise = float(restored.chi_squared.mean()), float(restored.noise_std.mean())
    margin = max(5 * math.sqrt(2 / m), 0.25)
    if chi > 1 + margin:
        found.append(
            f"The draws miss y: the mean squared residual is {chi:.2f} times the noise's variance, not 1. The noise is above {noise:.3g} "
            f"(these residuals fit {noise * math.sqrt(chi):.2g}; --noise estimate finds it), or the damage is another than this "
            "operator's (another kernel, mask or factor)."
        )
    if chi < 1 - margin:
        found.append(
            f"The draws follow y too closely: the mean squared residual is {chi:.2f} times the noise's variance, not 1. The noise is "
            f"less than {noise:.3g}, about {noise * math.sqrt(chi):.2g} (--noise estimate finds it), or was cut off where the picture is "
            "black or white."
        )
    if strangeness is not None and strangeness > FURTHEST:
        found.append(
            f"The restored data are unlike what the model makes: it denoises them {strangeness:.1f} standard deviations worse than its own "
            "samples. What was damaged is probably of another kind, size or orientation than the model's data."
        )
    if restored.ess is not None and (least := float(restored.ess.min())) < LEAST_PARTICLES:
        found.append(
            f"Only {least:.1f} particles counted at the worst level, so the draws are not yet those of the posterior; take more particles, "
            "or more steps."
        )
    return found


@torch.no_grad()
def strangeness(
    predict: Predictor,
    x: Float[Tensor, "n *x"],
    *,
    cond: CondLike | None = None,
    samples: int = 16,
    noise: float = 0.4,
    generators: tuple[Generator, Generator, Generator] | None = None,
) -> float:
    """How much worse the model denoises x (at sigma/alpha = noise) than samples of its own, in standard deviations of the latter.

    Draws of a posterior are distributed as the data where y comes from the model's data, so it is about 0 there.

    Args:
        predict: the model.
        x: draws.
        cond: of one row, for all.
        samples: how many of the model's own are drawn.
        noise: the level of the comparison.
        generators: for the samples, their noise, and the noise of x.
    """
    first, second, third = generators or (None, None, None)
    levels = at_ratios(geometric(60.0, 0.02, 16))
    given = None if cond is None else spread(cond, samples)
    own = sample(predict, levels[0].sigma * normal_like(x.new_empty(samples, *x.shape[1:]), first), levels, steps.Multistep(2), given)
    usual = _denoising_error(predict, own, noise, given, second)
    mine = None if cond is None else spread(cond, len(x))
    return float((_denoising_error(predict, x, noise, mine, third).mean() - usual.mean()) / usual.std().clamp(min=1e-12))


def _denoising_error(predict: Predictor, x: Tensor, noise: float, cond: CondLike | None, generator: Generator | None) -> Float[Tensor, "n"]:
    level = at_ratios([noise])[0]
    noisy = level.alpha * x + level.sigma * normal_like(x, generator)
    return (predict(noisy, level, cond).x0 - x).square().flatten(1).mean(1)
