"""Walks that begin at data: up to noise and back, between two data, and from partly noised data."""

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import CondLike, Predictor
from sfumato.noise import Generator
from sfumato.process import marginal
from sfumato.sampling.loop import Step, refuse_levels, sample, walk
from sfumato.sampling.steps import DDIM
from sfumato.schedule import Level


@torch.no_grad()
def invert(
    predict: Predictor, x: Float[Tensor, "b *x"], levels: list[Level], cond: CondLike | None = None, *, step: Step | None = None
) -> Float[Tensor, "b *x"]:
    """The noise from which `sample` comes back to x: carries x from levels[-1] (data) up to levels[0].

    A step up asks the predictor at its cleaner end, the step down asked at the noisier one, so a round trip ends near x rather than at it;
    the distance falls with the number of steps, at the step's order. Where levels[-1] has no noise, the flow stands still in x / alpha
    (eps vanishes with sigma), so the first step is a change of scale and asks nothing.

    Args:
        predict: a denoiser, an oracle, or either wrapped by `guide`.
        x: data.
        levels: from noise to data, as `sample` takes them.
        cond: conditions with one row an example.
        step: a deterministic method that also walks upwards: DDIM (the default), Heun, Multistep or AdamsBashforth.

    Raises:
        ValueError: as `sample` does.

    Reference: Song et al. (2021), section 5.4 and eq. 14, arXiv:2010.02502.
    """
    refuse_levels(levels)
    *upper, last = levels
    if not bool(last.sigma.any()):
        x = upper[-1].alpha / last.alpha * x
    else:
        upper.append(last)
    noise = x
    for _, noise in walk(predict, x, upper[::-1], step or DDIM(), cond, None):  # noqa: B007
        pass
    return noise


def slerp(a: Float[Tensor, "b *x"], b: Float[Tensor, "b *x"], weight: float | Float[Tensor, "b"]) -> Float[Tensor, "b *x"]:
    """Spherical interpolation, row by row: sin((1 - w) θ)/sin θ a + sin(w θ)/sin θ b, θ the angle between a and b.

    Between noises of about one norm it keeps that norm, as a straight line does not; where they are (anti)parallel it is the straight line.

    Reference: Shoemake (1985), section 3.3; Song et al. (2021), eq. 67, arXiv:2010.02502.
    """
    flat_a, flat_b = a.flatten(1).cpu().double(), b.flatten(1).cpu().double()
    weight = torch.as_tensor(weight.cpu() if isinstance(weight, Tensor) else weight, dtype=torch.float64).expand(len(a))[:, None]
    unit_a, unit_b = (flat / flat.norm(dim=1, keepdim=True) for flat in (flat_a, flat_b))
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1, keepdim=True), (unit_a + unit_b).norm(dim=1, keepdim=True))
    round_ = (((1 - weight) * angle).sin() * flat_a + (weight * angle).sin() * flat_b) / angle.sin()
    return torch.where(angle.sin() > 1e-6, round_, torch.lerp(flat_a, flat_b, weight)).reshape(a.shape).to(a)


def interpolate(
    predict: Predictor,
    a: Float[Tensor, "b *x"],
    b: Float[Tensor, "b *x"],
    weight: float | Float[Tensor, "b"],
    levels: list[Level],
    cond: CondLike | None = None,
    *,
    step: Step | None = None,
) -> Float[Tensor, "b *x"]:
    """Data between data: both inverted, their noises joined by `slerp`, and back. Song et al. (2021), section 5.3, arXiv:2010.02502."""
    start, stop = (invert(predict, x, levels, cond, step=step) for x in (a, b))
    return sample(predict, slerp(start, stop, weight), levels, step or DDIM(), cond)


def encode_decode(
    predict: Predictor,
    x0: Float[Tensor, "b *x"],
    levels: list[Level],
    step: Step,
    cond: CondLike | None = None,
    *,
    generator: Generator | None = None,
) -> Float[Tensor, "b *x"]:
    """Data like x0: noised to levels[0], then sampled from there. The noisier levels[0], the less of x0 is kept.

    Reference: Ho et al. (2020), section 4.3 and fig. 7, arXiv:2006.11239; Meng et al. (2022), alg. 1, arXiv:2108.01073.
    """
    refuse_levels(levels)
    return sample(predict, marginal(x0, levels[0]).sample(generator), levels, step, cond, generator=generator)
