"""Drawing x0 given y: what comes in is checked once, then a method does the work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.condition import CondLike, as_cond, refuse_cond
from sfumato.denoiser import Predictor, refuse_array
from sfumato.noise import Generator
from sfumato.restoration.estimate import estimate_noise
from sfumato.restoration.matching import MomentMatching
from sfumato.restoration.observed import Draws, Method, Observed, OnStep
from sfumato.restoration.operators import Operator, Shape
from sfumato.sampling.loop import refuse_levels
from sfumato.schedule import Level

NoiseStd = float | Tensor | Literal["estimate"]


@dataclass(frozen=True)
class Restored:
    """Draws of x0 given y with what is known of them.

    Args:
        x: [count, b, *x].
        noise_std: of each observation, given or estimated.
        chi_squared: |y - H x|² / (m noise_std²) of each draw: 1 in the mean where model, operator and noise are right; NaN without noise.
        ess: effective sample sizes at each level, one row an observation; of particle methods.
        log_evidence: log p(y) in nats; of particle methods.
    """

    x: Float[Tensor, "count b *x"]
    noise_std: Float[Tensor, "b"]
    chi_squared: Float[Tensor, "count b"]
    ess: Float[Tensor, "b steps"] | None = field(default=None)
    log_evidence: Float[Tensor, "b"] | None = field(default=None)


def restore(
    predict: Predictor,
    y: Float[Tensor, "b *y"],
    operator: Operator,
    noise_std: NoiseStd = 0.05,
    *,
    levels: Sequence[Level] | None = None,
    method: Method | None = None,
    count: int = 16,
    cond: CondLike | None = None,
    shape: Shape | None = None,
    generator: Generator | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "count b *x"]:
    """`count` draws of x0 for each observation y = H x0 + noise_std n, by a model that never saw one.

    Args:
        predict: a denoiser or an oracle; guidance may wrap it.
        y: one observation a row, in the shape that `operator.forward` gives; with a mask also the damaged picture. It is not changed.
        operator: H, of `sfumato.restoration`.
        noise_std: of the noise in y, in the units of y; one number, one a row, or "estimate".
        levels: from noise to data; the method's own where not given: 40 evaluations a draw of the walks.
        method: `MomentMatching()` where not given, the best measured at 40 evaluations; `TwistedSMC()` is exact as its particles grow many.
        count: draws for each observation.
        cond: conditions with one row an observation.
        shape: of x without its rows, where neither the operator nor y says it.
        generator: one for all, or one a row of [count · b], row i · b + j for draw i of observation j, which then depends on it alone.
        on_step: called after each step with its index and x.

    Raises:
        ValueError: y that does not fit the operator or is not finite, a noise_std that is negative, or 0 where no x gives y, levels that do
            not fall from noise to data, an operator or method that is none, a count below 1.
    """
    options: dict[str, Any] = {"levels": levels, "method": method, "count": count, "cond": cond, "shape": shape, "on_step": on_step}
    return draw(predict, y, operator, noise_std, generator=generator, **options).x


def draw(
    predict: Predictor,
    y: Float[Tensor, "b *y"],
    operator: Operator,
    noise_std: NoiseStd = 0.05,
    *,
    levels: Sequence[Level] | None = None,
    method: Method | None = None,
    count: int = 16,
    cond: CondLike | None = None,
    shape: Shape | None = None,
    generator: Generator | None = None,
    on_step: OnStep | None = None,
) -> Restored:
    """`restore`, with the noise level, the residuals, and what a particle method tells of its weights. Arguments and errors are its own."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    method = method or MomentMatching()
    if isinstance(method, type) or not isinstance(method, Method):
        raise ValueError(f"a method is an instance such as sf.restoration.MomentMatching(), got {method!r}.")
    levels = method.levels() if levels is None else levels
    refuse_levels(levels)
    if any(level.alpha.numel() != 1 for level in levels) or not all(float(level.alpha) > 0 for level in levels):
        raise ValueError("restoration takes one level for all rows, each with some signal (alpha above 0); build them with default_levels.")
    conds = as_cond(cond)
    if noise_std == "estimate":
        unknown = observe(y, operator, 1.0, shape=shape)
        refuse_cond(conds, len(unknown.y))
        one = generator if generator is None or isinstance(generator, torch.Generator) else generator[0]
        noise_std = estimate_noise(predict, unknown, method=MomentMatching(), cond=conds, generator=one)
    observed = observe(y, operator, noise_std, shape=shape)
    refuse_cond(conds, len(observed.y))
    found: Draws = method(predict, observed, levels, count, conds, generator, on_step)
    x = found.x
    chi = observed.repeat(count).chi_squared(x.flatten(0, 1)).reshape(count, -1)
    chi = torch.where(observed.noise_std[:, 0] > 0, chi, math.nan)
    return Restored(x, observed.noise_std[:, 0], chi, found.ess, found.log_evidence)


def observe(y: Float[Tensor, "b *y"], operator: Operator, noise_std: float | Tensor, *, shape: Shape | None = None) -> Observed:
    """Checks y, H and the noise against each other.

    Raises:
        ValueError: as `restore`.
    """
    if isinstance(operator, type) or not isinstance(operator, Operator):
        raise ValueError(f"an operator is one of sfumato.restoration, such as Mask(mask) or Matrix(A), got {operator!r}.")
    refuse_array(y)
    y = operator.read(y)
    inward = shape or operator.shape or operator.input(tuple(y.shape[1:]))
    linear = operator.at(tuple(inward))
    if tuple(y.shape[1:]) != linear.y_shape:
        raise ValueError(
            f"the operator gives y of shape {list(linear.y_shape)} for x of shape {list(linear.shape)}, got y of shape {list(y.shape[1:])}."
        )
    bad = int((~torch.isfinite(y)).flatten(1).any(1).sum()) if len(y) else 0
    if bad:
        raise ValueError(f"y must be finite, but {bad} of {len(y)} observations hold NaN or infinity; hide such entries with a Mask.")
    noise = torch.as_tensor(noise_std, dtype=torch.float64)
    if noise.ndim > 1 or (noise.ndim == 1 and len(noise) != len(y)) or not bool((torch.isfinite(noise) & (noise >= 0)).all()):
        raise ValueError(
            f"noise_std must be one number of at least 0, or one for each of the {len(y)} observations, got {_numbers(noise)}."
        )
    observed = Observed(linear, y.flatten(1), noise.to(y).expand(len(y)).reshape(-1, 1))
    if bool((noise == 0).any()) and linear.svd is not None:
        nearest = linear.forward(linear.adjoint(linear.solve(observed.y, 1.0, 0.0)))
        off = ((observed.y - nearest).norm(dim=1) / observed.y.norm(dim=1).clamp(min=1e-30)).where(observed.noise_std[:, 0] == 0, 0)
        if float(off.max()) > 1e-3:
            raise ValueError(
                f"noise_std is 0, but no x gives this y: {100 * float(off.max()):.2g}% of it lies outside what the operator can give; "
                'y is noisy or the operator another one: give its noise_std, or "estimate".'
            )
    return observed


def _numbers(noise: Tensor) -> str:
    return f"{float(noise):g}" if noise.ndim == 0 else f"shape {list(noise.shape)}" if noise.ndim > 1 else f"{noise.tolist()[:5]}"
