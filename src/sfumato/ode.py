"""One step of an embedded Runge-Kutta pair, for all ordinary differential equations of the library."""

from collections.abc import Callable, Sequence

from jaxtyping import Shaped
from torch import Tensor

from sfumato.runtime import moved

State = tuple[Tensor, ...]
Slope = Callable[[Tensor, State], State]

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH_ORDER = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_DIFFERENCE = tuple(b - c for b, c in zip((*_STAGES[-1], 0.0), _FOURTH_ORDER, strict=True))


def dormand_prince(slope: Slope, t: Tensor, state: State, first: State, step: Tensor) -> tuple[State, State, State]:
    """The pair of orders 5 and 4 of Dormand & Prince (1980), table 2: six new slopes for each step.

    Args:
        slope: d state / dt at (t, state).
        t: the start of the step; one for all rows, or one a row of every tensor of the state.
        state: the state at t; any number of tensors.
        first: its slope at t, which is the last slope of the previous step.
        step: the length of the step, shaped like t.

    Returns:
        The state of order 5 at t + step, its difference from that of order 4, and the slope at t + step.
    """
    slopes, here = [first], state
    for node, weights in zip(_NODES, _STAGES, strict=True):
        here = tuple(part + move for part, move in zip(state, _move(slopes, weights, step), strict=True))
        slopes.append(slope(t + node * step, here))
    return here, _move(slopes, _DIFFERENCE, step), slopes[-1]


def per_row(number: Shaped[Tensor, "*rows"], like: Tensor) -> Tensor:
    """One number a row (or one for all) in the dtype of `like`, with trailing axes to broadcast against it."""
    return moved(number, like).reshape(number.shape + (1,) * (like.ndim - number.ndim))


def _move(slopes: Sequence[State], weights: Sequence[float], step: Tensor) -> State:
    """step Σ weight · slope."""
    sums = [sum(w * part for w, part in zip(weights, parts, strict=True) if w) for parts in zip(*slopes, strict=True)]
    return tuple(per_row(step, total) * total for total in sums if isinstance(total, Tensor))
