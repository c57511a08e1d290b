"""The noise of an observation that comes without its noise level: the maximum of p(y) over noise_std."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike
from sfumato.denoiser import Predictor
from sfumato.restoration.observed import Method, Observed, default_levels


def estimate_noise(
    predict: Predictor,
    observed: Observed,
    *,
    method: Method,
    cond: CondLike | None = None,
    generator: torch.Generator | None = None,
    rounds: int = 6,
    count: int | None = None,
    steps: int = 12,
) -> Float[Tensor, "b"]:
    """noise_std of each observation, between a 300th of the standard deviation of y and all of it.

    d log p(y) / d log noise_std = E[|y - H x|² | y] / noise_std² - m, by Fisher's identity: residuals of posterior draws are too large
    where noise_std is below the maximum, and too small above. The sign is bisected in the logarithm, with draws at each noise_std.

    Args:
        predict: the model.
        observed: the observations; their own noise_std is not looked at.
        method: whose draws are taken.
        cond: with one row an observation.
        generator: of the draws.
        rounds: bisections; 6 leave a range of 10%.
        count: draws in each round; by default 4, or as many as make 1,000 residuals where y is short.
        steps: evaluations of each draw.
    """
    most = observed.y.std(1, keepdim=True).clamp(min=1e-6).log() if observed.y.shape[1] > 1 else observed.y.abs().clamp(min=1e-6).log()
    least = most - math.log(300)
    levels, count = default_levels(steps), count or max(4, -(-1000 // observed.y.shape[1]))
    for _ in range(rounds):
        middle = (least + most) / 2
        guess = Observed(observed.linear, observed.y, middle.exp())
        x = method(predict, guess, levels, count, cond, generator, None).x
        excess = guess.repeat(count).chi_squared(x.flatten(0, 1)).reshape(count, -1).mean(0)[:, None] - 1
        least, most = torch.where(excess > 0, middle, least), torch.where(excess > 0, most, middle)
    return ((least + most) / 2).exp()[:, 0]
