"""Guidance as wrappers: each takes a `Predictor` and returns one, so every step, likelihood and inversion works with it.

All of them modify the score. With p(y | x_t) ∝ p(x_t | y) / p(x_t), Bayes' rule at each level gives

    ∇ log p(x_t) + γ ∇ log p(y | x_t)  =  (1 - γ) ∇ log p(x_t) + γ ∇ log p(x_t | y),

the left side with a classifier of noisy data (`classifier`), the right side with a conditional model (`classifier_free`): the same
prediction at every γ. γ = 0 ignores the condition, γ = 1 is p(x | y), larger γ sharpens it. A score changes by d if eps changes by -sigma d
and x0 by sigma²/alpha d.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike, as_cond, cat, drop, refuse_cond, spread
from sfumato.denoiser import Predictor
from sfumato.prediction import Prediction, v_target
from sfumato.schedule import Level


@runtime_checkable
class LogProb(Protocol):
    """Any differentiable log p(condition | x_t), one number a row, up to a constant of x_t."""

    def __call__(self, x_t: Tensor, level: Level, cond: CondLike | None) -> Tensor:
        """In nats."""
        ...


def classifier_free(predict: Predictor, scale: float | Mapping[str, float]) -> Predictor:
    """uncond + scale · (cond - uncond), both branches in one call of the network; scale 1 is `predict`, 0 the unconditional branch only.

    With a scale for each of some conditions c_1 … c_k: e_0 + Σ_i s_i (e_i - e_{i-1}), where e_i has c_1 … c_i of them, in the order of the
    mapping, and all conditions that it does not name; k + 1 branches in one call. Scales that are all 1 give `predict`.

    The model must have been trained with dropped conditions. Ho & Salimans (2022), eq. 6 with scale = 1 + w, arXiv:2207.12598;
    Brooks et al. (2023), eq. 3, arXiv:2211.09800.

    Raises:
        ValueError: when called, a scale for a condition that does not exist.
    """
    is_plain = all(s == 1 for s in scale.values()) if isinstance(scale, Mapping) else scale == 1

    def guided(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        if cond is None or is_plain:
            return predict(x_t, level, cond)
        refuse_cond(cond, len(x_t))
        if scale == 0:
            return predict(x_t, level, drop(cond))
        groups = [((name,), s) for name, s in scale.items()] if isinstance(scale, Mapping) else [(tuple(cond), scale)]
        branches = [as_cond(cond) or {}]  # from all given conditions down to none of the groups
        for names, _ in reversed(groups):
            branches.append(drop(branches[-1], names=names) or {})
        count = len(branches)
        every = predict(torch.cat([x_t] * count), _repeated(level, count), cat(*branches))
        scales = [s for _, s in groups]
        fraction = None if every.variance_fraction is None else every.variance_fraction.chunk(count)[0]
        return Prediction(_nested(every.x0.chunk(count), scales), _nested(every.eps.chunk(count), scales), fraction)

    return guided


def classifier(predict: Predictor, log_prob: LogProb, scale: float) -> Predictor:
    """eps - scale · sigma ∇ log p(y | x_t), and the matching x0; scale 1 is Bayes' rule, 0 is `predict`.

    Both functions get the condition; the papers' base is `unconditional(predict)`, a conditional base is guided further. If x_t has no
    signal (alpha = 0), it does not depend on y, and nothing is added.

    Args:
        predict: the model to guide.
        log_prob: `load_classifier` returns a trained one, `label_log_prob` makes one from class probabilities.
        scale: γ.

    Raises:
        ValueError: when called, a log_prob that does not return one number a row or cannot be differentiated.

    Reference: Dhariwal & Nichol (2021), alg. 2, arXiv:2105.05233; Song et al. (2021), section 5, arXiv:2011.13456.
    """

    def guided(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        p = predict(x_t, level, cond)
        if scale == 0:
            return p
        has_signal = level.alpha != 0
        pull = scale * level.sigma * torch.where(has_signal, _gradient(log_prob, x_t, level, cond), 0)
        return Prediction(p.x0 + level.sigma / level.alpha.where(has_signal, 1) * pull, p.eps - pull, p.variance_fraction)

    return guided


def label_log_prob(log_class: Callable[[Tensor, Level], Tensor]) -> LogProb:
    """log p(cond["labels"] | x_t) of a classifier with log-probabilities [b, k], like `GaussianMixture.log_class`; 0 for a label of -1."""

    def log_prob(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None) -> Float[Tensor, "b"]:
        if (one := (as_cond(cond) or {}).get("labels")) is None:
            raise ValueError('a classifier needs the class to guide to; pass cond={"labels": …}, with -1 for none.')
        refuse_cond(cond, len(x_t))
        every, labels = log_class(x_t, level), one.value.where(one.given, -1)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and bool((labels >= every.shape[1]).any()):
            raise ValueError(f"labels must be below {every.shape[1]}, the number of classes (or -1 for none), got {labels.max()}.")
        return every.gather(1, labels.clamp(min=0)[:, None])[:, 0] * (labels >= 0)

    return log_prob


def unconditional(predict: Predictor) -> Predictor:
    """The predictor without conditions: all are marked as not given."""

    def free(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        return predict(x_t, level, drop(cond))

    return free


def given(predict: Predictor, own: CondLike) -> Predictor:
    """The predictor under fixed conditions, one row for all or one an example, whatever conditions it is called with."""

    def fixed(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        return predict(x_t, level, {**(as_cond(cond) or {}), **spread(own, len(x_t))})

    return fixed


def compose(base: Predictor, parts: Sequence[tuple[Predictor, float]]) -> Predictor:
    """base + Σ w_i (part_i - base): conditions combined (w > 0) or excluded (w < 0). Liu et al. (2022), eq. 11, arXiv:2206.01714.

    With weights of 1 this is the score of p(x_t | y_1, y_2, …), for conditions that are independent given x_t.
    `compose(unconditional(p), [(given(p, {"labels": torch.tensor([3])}), 1.0), …])` combines labels of one model.
    """

    def composed(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        start = predicted = base(x_t, level, cond)
        for part, weight in parts:
            p = part(x_t, level, cond)
            x0, eps = predicted.x0 + weight * (p.x0 - start.x0), predicted.eps + weight * (p.eps - start.eps)
            predicted = Prediction(x0, eps, start.variance_fraction)
        return predicted

    return composed


def rescale(guided: Predictor, conditional: Predictor, phi: float = 0.7) -> Predictor:
    """The guided v, rescaled by a share phi towards the standard deviation of the conditional v: avoids overexposure at strong guidance.

    Lin et al. (2024), eqs. 15 and 16, arXiv:2305.08891, whose networks predict v; in v this works at both ends of every schedule. The
    standard deviation is over all entries of one example. Costs a call of `conditional`.

    Raises:
        ValueError: phi outside [0, 1]; when called, examples with a single entry, which have no standard deviation.
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"phi must lie in [0, 1] (0 = no rescaling, 1 = the conditional std), got {phi}; the paper uses 0.7.")

    def rescaled(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        if x_t[:1].numel() < 2:
            raise ValueError(f"guide.rescale needs the std over the entries of an example, got x_t of shape {tuple(x_t.shape)}.")
        p = guided(x_t, level, cond)
        v, wanted = p.v(level), conditional(x_t, level, cond).v(level)
        factor = wanted.flatten(1).std(1) / v.flatten(1).std(1)
        v = v * (1 + phi * (factor - 1)).reshape(-1, *(1,) * (v.ndim - 1))
        return Prediction.solve(v, x_t, level, v_target, p.variance_fraction)

    return rescaled


def clip(predict: Predictor, low: float = -1.0, high: float = 1.0) -> Predictor:
    """x0 clamped to [low, high], and the eps that follows: static thresholding. Saharia et al. (2022), section 2.3, arXiv:2205.11487."""

    def clipped(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        p = predict(x_t, level, cond)
        return _with_x0(p, p.x0.clamp(low, high), level)

    return clipped


def dynamic_clip(predict: Predictor, quantile: float = 0.995, *, maximum: float | None = None) -> Predictor:
    """x0 clamped to [-s, s] and divided by s, the given quantile of its |entries|, if s > 1; and the eps that follows.

    Dynamic thresholding for data in [-1, 1]: Saharia et al. (2022), section 2.3, arXiv:2205.11487. `maximum` limits s (diffusers'
    `sample_max_value`): 1 is `clip`; it limits how much a few extreme entries darken the rest.

    Raises:
        ValueError: a quantile outside (0, 1], or a maximum below 1.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"the quantile must lie in (0, 1], got {quantile}; the paper uses 0.995.")
    if maximum is not None and not maximum >= 1:
        raise ValueError(f"maximum must be at least 1, or None for no maximum; got {maximum}.")

    def clipped(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        p = predict(x_t, level, cond)
        ordered = p.x0.abs().flatten(1).sort(1).values  # torch.quantile has a limit of entries, and float64 tensors inside
        place = quantile * (ordered.shape[1] - 1)
        ends = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        s = torch.lerp(*ends, place - math.floor(place)).clamp(min=1, max=maximum).reshape(-1, *(1,) * (p.x0.ndim - 1))
        return _with_x0(p, p.x0.clamp(-s, s) / s, level)

    return clipped


def interval(inside: Predictor, outside: Predictor, log_snr_min: float, log_snr_max: float) -> Predictor:
    """`inside` where log_snr_min <= log-SNR <= log_snr_max, `outside` elsewhere. Kynkäänniemi et al. (2024), eq. 5, arXiv:2404.07724.

    Rows may be at different levels: each gets its own result, and both predictors are called only if both are needed.
    """

    def limited(x_t: Float[Tensor, "b *x"], level: Level, cond: CondLike | None = None) -> Prediction:
        is_inside = (level.log_snr >= log_snr_min) & (level.log_snr <= log_snr_max)
        if bool(is_inside.all()):
            return inside(x_t, level, cond)
        if not bool(is_inside.any()):
            return outside(x_t, level, cond)
        a, b = inside(x_t, level, cond), outside(x_t, level, cond)
        fraction = None
        if a.variance_fraction is not None and b.variance_fraction is not None:
            fraction = torch.where(is_inside, a.variance_fraction, b.variance_fraction)
        return Prediction(torch.where(is_inside, a.x0, b.x0), torch.where(is_inside, a.eps, b.eps), fraction)

    return limited


def _gradient(log_prob: LogProb, x_t: Tensor, level: Level, cond: CondLike | None) -> Tensor:
    """∇ log_prob with respect to x_t, also under `no_grad`; differentiable if x_t requires a gradient, as likelihoods need it."""
    is_part_of_graph = torch.is_grad_enabled() and x_t.requires_grad
    with torch.enable_grad():
        x = x_t if is_part_of_graph else x_t.detach().requires_grad_()
        value = log_prob(x, level, cond)
        if value.shape != x_t.shape[:1]:
            raise ValueError(f"log_prob must return one number a row, [{len(x_t)}], got shape {tuple(value.shape)}.")
        if not value.requires_grad:
            raise ValueError(
                "log_prob cannot be differentiated with respect to x_t; compute it from x_t in torch, without detach or no_grad."
            )
        return torch.autograd.grad(value.sum(), x, create_graph=is_part_of_graph)[0]


def _with_x0(p: Prediction, x0: Tensor, level: Level) -> Prediction:
    """The prediction with another x0, and the eps for the same x_t; without noise (sigma = 0) x0 cannot change."""
    has_noise = level.sigma != 0
    ratio = torch.where(has_noise, level.alpha / level.sigma.where(has_noise, 1), 0)
    return Prediction(x0, p.eps + ratio * (p.x0 - x0), p.variance_fraction)


def _nested(branches: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """e_0 + Σ_i s_i (e_i - e_{i-1}) of e_k … e_0."""
    base, *steps = reversed(branches)
    guided, before = torch.lerp(base, steps[0], scales[0]), steps[0]
    for e, s in zip(steps[1:], scales[1:], strict=True):
        guided, before = guided + s * (e - before), e
    return guided


def _repeated(level: Level, count: int) -> Level:
    if level.alpha.ndim == 0 or len(level.alpha) == 1:
        return level
    return Level(torch.cat([level.alpha] * count), torch.cat([level.sigma] * count))
