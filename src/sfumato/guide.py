"""Guidance as wrappers: each takes a `Predictor` and returns one, so every step, likelihood and inversion takes them unchanged."""

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Cond, Predictor, drop
from sfumato.prediction import Prediction
from sfumato.schedule import Level


def classifier_free(predict: Predictor, scale: float) -> Predictor:
    """uncond + scale · (cond - uncond), both branches in one call of the network; scale 1 is no guidance.

    The predictor must know the unconditional case (label dropping in training). Ho & Salimans (2022), eq. 6 with scale = 1 + w,
    arXiv:2207.12598.
    """

    def guided(x_t: Float[Tensor, "b *x"], level: Level, cond: Cond | None = None) -> Prediction:
        if cond is None or scale == 1:
            return predict(x_t, level, cond)
        nothing = drop(cond)
        assert nothing is not None
        both = predict(_twice(x_t), _twice_level(level), {name: torch.cat([cond[name], nothing[name]]) for name in cond})
        (x0, x0_free), (eps, eps_free) = both.x0.chunk(2), both.eps.chunk(2)
        fraction = None if both.variance_fraction is None else both.variance_fraction.chunk(2)[0]
        return Prediction(torch.lerp(x0_free, x0, scale), torch.lerp(eps_free, eps, scale), fraction)

    return guided


def clip(predict: Predictor, low: float = -1.0, high: float = 1.0) -> Predictor:
    """x0 in [low, high] and the eps it implies: static thresholding. Saharia et al. (2022), section 2.3, arXiv:2205.11487."""

    def clipped(x_t: Float[Tensor, "b *x"], level: Level, cond: Cond | None = None) -> Prediction:
        p = predict(x_t, level, cond)
        return Prediction.from_x0(p.x0.clamp(low, high), x_t, level, p.variance_fraction)

    return clipped


def interval(inside: Predictor, outside: Predictor, log_snr_min: float, log_snr_max: float) -> Predictor:
    """`inside` where log_snr_min <= log-SNR <= log_snr_max, `outside` elsewhere. Kynkäänniemi et al. (2024), eq. 5, arXiv:2404.07724.

    All rows must be at one level, as in sampling.
    """

    def limited(x_t: Float[Tensor, "b *x"], level: Level, cond: Cond | None = None) -> Prediction:
        log_snr = level.log_snr
        if not bool((log_snr == log_snr.reshape(-1)[0]).all()):
            raise ValueError("guide.interval needs all rows at one level; guide rows at different levels one by one.")
        chosen = inside if log_snr_min <= float(log_snr.reshape(-1)[0]) <= log_snr_max else outside
        return chosen(x_t, level, cond)

    return limited


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def _twice_level(level: Level) -> Level:
    if level.alpha.ndim == 0 or len(level.alpha) == 1:
        return level
    return Level(_twice(level.alpha), _twice(level.sigma))
