"""The probability flow to a given accuracy, in either direction, with steps of its own choice.

At unit scale (alpha² + sigma² = 1) the flow turns: with alpha = cos φ and sigma = sin φ it is du/dφ = v, u = x / hypot(alpha, sigma), on a
range of at most a quarter turn and with a slope that is bounded at both ends. Salimans & Ho (2022), appendix D, arXiv:2202.00512.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.condition import refuse_cond, take
from sfumato.denoiser import CondLike, Predictor, refuse_array
from sfumato.ode import State, dormand_prince, per_row
from sfumato.schedule import Level

_FEWEST = 8  # steps of any row: a longer one can pass over a bend without a sign of it in the error


@dataclass(frozen=True, slots=True)
class FlowResult:
    """x at the end of the flow, and the number of predictor evaluations for each row."""

    x: Float[Tensor, "b *x"]
    nfe: Int[Tensor, "b"]


@torch.no_grad()
def flow(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    start: Level,
    end: Level,
    cond: CondLike | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
) -> FlowResult:
    """x at `end`, carried along the probability flow from x at `start`: to data where `end` is the cleaner, to noise where it is not.

    Every row has steps of its own, so it does not depend on its batch: one is taken where its estimated error, as a root mean square over
    atol + rtol · |u|, is at most 1.

    Args:
        predict: a denoiser, an oracle, or either wrapped by `guide`; it is asked at unit scale, with one level a row.
        x: data at the level `start`.
        start: one level for all rows, with signal and with noise.
        end: another such.
        cond: conditions with one row an example.
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step, at unit scale.
        max_steps: of one row, taken and refused together.

    Raises:
        ValueError: a level without signal or without noise, tolerances that are not positive, more than max_steps, an x that is no tensor
            of floats, or conditions that do not have one row an example.

    Reference: Song et al. (2021), section 4.3, arXiv:2011.13456; Hairer, Nørsett & Wanner (1993), section II.4, for the choice of steps.
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be positive, got rtol = {rtol} and atol = {atol}.")
    refuse_array(x)
    refuse_cond(cond, len(x))
    (here, scale), (there, scale_end) = _turn(start), _turn(end)
    out, nfe = torch.empty_like(x), torch.empty(len(x), dtype=torch.long)
    rows, phi, length = torch.arange(len(x)), here.expand(len(x)), ((there - here) / 20).expand(len(x))
    longest = (there - here).abs() / _FEWEST
    u: State = (x / scale,)
    slopes, steps = _slope(predict, cond, rows, phi, u), 0
    while len(rows):
        if steps == max_steps or bool((length.abs() < 1e-10 * longest).any()):
            raise ValueError(
                f"the flow of {len(rows)} of {len(x)} rows is not through after {steps} steps, row {int(rows[0])} stands at log-SNR "
                f"{-2 * math.log(math.tan(float(phi[0]))):.4g}; raise rtol and atol, or max_steps, or look for NaN there."
            )
        last = (there - phi).abs() <= length.abs()
        step = torch.where(last, there - phi, length)
        ahead, missed, slopes_ahead = dormand_prince(partial(_slope, predict, cond, rows), phi, u, slopes, step)
        allowed = atol + rtol * torch.maximum(u[0].abs(), ahead[0].abs())
        error = (missed[0] / allowed).flatten(1).square().mean(1).sqrt().cpu().double()
        good, steps = error <= 1, steps + 1  # an error that is not a number is not good
        phi = torch.where(good, torch.where(last, there, phi + step), phi)
        u, slopes = (_where(good, *pair) for pair in ((ahead, u), (slopes_ahead, slopes)))
        length = (step * (0.9 * error**-0.2).nan_to_num(0.2, posinf=5.0).clamp(0.2, 5.0)).clamp(-longest, longest)
        done = good & last
        out[rows[done]], nfe[rows[done]] = scale_end * u[0][done], 1 + 6 * steps
        rows, phi, length, u, slopes = rows[~done], phi[~done], length[~done], (u[0][~done],), (slopes[0][~done],)
    return FlowResult(out, nfe)


def _slope(predict: Predictor, cond: CondLike | None, rows: Tensor, phi: Tensor, u: State) -> State:
    """v of these rows, each at its own level."""
    level = Level(per_row(phi.cos(), u[0]), per_row(phi.sin(), u[0]))
    return (predict(u[0], level, take(cond, rows)).v(level),)


def _where(good: Tensor, new: State, old: State) -> State:
    return (torch.where(per_row(good, new[0]).bool(), new[0], old[0]),)


def _turn(level: Level) -> tuple[Tensor, Tensor]:
    """φ with tan φ = sigma/alpha, and hypot(alpha, sigma), of one level for all rows."""
    if level.alpha.numel() != 1 or not bool(level.alpha * level.sigma > 0):
        raise ValueError(
            f"the flow needs one level for all rows, with signal and with noise, got alpha = {level.alpha.tolist()} and "
            f"sigma = {level.sigma.tolist()}; take the nearest level that has both, and the x0 that is predicted there."
        )
    alpha, sigma = (scale.detach().cpu().double().reshape(()) for scale in (level.alpha, level.sigma))
    return torch.atan2(sigma, alpha), torch.hypot(alpha, sigma)
