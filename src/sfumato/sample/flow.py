"""The probability flow to a given accuracy, in either direction, with steps of its own choice.

At unit scale (alpha² + sigma² = 1) the flow turns: with alpha = cos φ and sigma = sin φ it is du/dφ = v, u = x / hypot(alpha, sigma), on a
range of at most a quarter turn and with a slope that is bounded at both ends. Salimans & Ho (2022), appendix D, arXiv:2202.00512.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.denoiser import Cond, Predictor
from sfumato.ode import State, dormand_prince
from sfumato.schedule import Level


@dataclass(frozen=True, slots=True)
class Flowed:
    """Where the flow led to, and what it cost: evaluations of the predictor, steps taken and steps refused."""

    x: Float[Tensor, "b *x"]
    nfe: int
    taken: int
    refused: int


@torch.no_grad()
def flow(
    predict: Predictor,
    x: Float[Tensor, "b *x"],
    start: Level,
    end: Level,
    cond: Cond | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
) -> Flowed:
    """x at `end`, carried along the probability flow from x at `start`: to data where `end` is the cleaner, to noise where it is not.

    A step is taken where its estimated error, as a root mean square over atol + rtol · |u|, is at most 1 in every row.

    Args:
        predict: a denoiser, an oracle, or either wrapped by `guide`; it is asked at unit scale.
        x: data at the level `start`.
        start: one level for all rows, with signal and with noise.
        end: another such.
        cond: conditions with one row an example.
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step, at unit scale.
        max_steps: taken and refused together.

    Raises:
        ValueError: a level without signal or without noise (go to the last with noise, and take the x0 that is predicted there), tolerances
            that are not positive, or more than max_steps.

    Reference: Song et al. (2021), section 4.3, arXiv:2011.13456; Dormand & Prince (1980); Hairer, Nørsett & Wanner (1993), section II.4.
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be positive, got rtol = {rtol} and atol = {atol}.")
    (here, scale), (there, scale_end) = _turn(start), _turn(end)
    nfe = taken = refused = 0

    def slope(phi: Tensor, state: State) -> State:
        nonlocal nfe
        nfe += 1
        level = Level(phi.cos(), phi.sin())
        return (predict(state[0], level, cond).v(level),)

    u = (x / scale,)
    first, length = slope(here, u), (there - here) / 20
    while here != there:
        if taken + refused == max_steps:
            raise ValueError(
                f"the flow is not through after {max_steps} steps ({nfe} evaluations), at log-SNR {-2 * float(here.tan().log()):.4g}; "
                "raise rtol and atol, or max_steps."
            )
        last = bool((there - here).abs() <= length.abs() * (1 + 1e-9))
        length = there - here if last else length
        ahead, difference, slope_ahead = dormand_prince(slope, here, u, first, length)
        allowed = atol + rtol * torch.maximum(u[0].abs(), ahead[0].abs())
        error = float((difference[0] / allowed).flatten(1).square().mean(1).max().sqrt())
        if error <= 1:
            here, u, first, taken = there if last else here + length, ahead, slope_ahead, taken + 1
        else:  # an error that is not a number counts as one that is too large
            refused += 1
        length = length * (min(5.0, max(0.2, 0.9 * error**-0.2)) if error > 0 else 5.0 if error == 0 else 0.2)
    return Flowed(scale_end * u[0], nfe, taken, refused)


def _turn(level: Level) -> tuple[Tensor, Tensor]:
    """φ with tan φ = sigma/alpha, and hypot(alpha, sigma), of one level for all rows."""
    if level.alpha.numel() != 1 or not bool(level.alpha * level.sigma > 0):
        raise ValueError(
            f"the flow needs one level for all rows, with signal and with noise, got alpha = {level.alpha.tolist()} and "
            f"sigma = {level.sigma.tolist()}; take the nearest level that has both, and the x0 that is predicted there."
        )
    alpha, sigma = level.alpha.double().reshape(()), level.sigma.double().reshape(())
    return torch.atan2(sigma, alpha), torch.hypot(alpha, sigma)
