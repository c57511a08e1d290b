"""The ledger: every equation, the function that computes it, what it is checked against, the measured error and its tolerance.

A row is a function that returns an error, registered by `row`; the modules beside this one hold them by subject. No row compares a
function with a copy of itself: the reference is a closed form, a numerical integral, a simulation with its standard error, or an
independent derivation. Rows run in float64 with a fixed seed, so results repeat to the bit.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

Check = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One equation and its check.

    `error` is what `check` returns, in the unit named in the first line of its docstring: a largest difference, a number of standard
    errors, a shortfall of a convergence order. The row passes if error <= tolerance.
    """

    id: str
    equation: str
    notes: str
    function: str
    check: Check
    tolerance: float

    @property
    def how(self) -> str:
        """The first line of the check's docstring."""
        return (self.check.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class Result:
    """A row and its result; an error of NaN does not pass. `raised` is the exception that stopped the check, if any."""

    row: Row
    error: float
    seconds: float
    raised: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return math.isfinite(self.error) and self.error <= self.row.tolerance


_ROWS: dict[str, Row] = {}


def row(id: str, equation: str, *, notes: str, function: str, tolerance: float) -> Callable[[Check], Check]:
    """Registers a check in the ledger.

    Args:
        id: short and unique, words joined by hyphens.
        equation: in plain Unicode.
        notes: where the equation is: the number of a study note and its section, several joined by "; ".
        function: our function, as a user calls it.
        tolerance: the largest error that passes.
    """

    def enter(check: Check) -> Check:
        if id in _ROWS:
            raise ValueError(f'the ledger already has a row "{id}"; give this one another id.')
        if not check.__doc__:
            raise ValueError(f'the check of row "{id}" needs a docstring that says what it is checked against.')
        _ROWS[id] = Row(id, equation, notes, function, check, tolerance)
        return check

    return enter


def rows() -> list[Row]:
    """All rows, in the order of the notes."""
    from sfumato.verify import chapters  # importing the modules registers their rows

    del chapters
    return list(_ROWS.values())


def run(which: Iterable[Row] | None = None, *, on_result: Callable[[Result], None] | None = None) -> list[Result]:
    """Runs rows (all by default), each in float64 with a fixed seed, and returns their results.

    A check that raises counts as failed, with an error of NaN.
    """
    results = []
    for each in rows() if which is None else which:
        results.append(_run(each))
        if on_result is not None:
            on_result(results[-1])
    return results


def _run(each: Row) -> Result:
    before, started, raised = torch.get_default_dtype(), time.perf_counter(), ""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            error = float(each.check())
    except (ValueError, ArithmeticError, RuntimeError, AttributeError, TypeError, IndexError, AssertionError) as stop:
        error, raised = math.nan, f"{type(stop).__name__}: {' '.join(str(stop).split())}"
    finally:
        torch.set_default_dtype(before)
    return Result(each, error, time.perf_counter() - started, raised)


def worst(ours: torch.Tensor | float, truth: torch.Tensor | float) -> float:
    """The largest difference, relative to the largest |truth| (absolute if the truth is zero); NaN if either contains one."""
    ours, truth = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (ours, truth))
    scale = float(truth.abs().max())
    return float((ours - truth).abs().max()) / (scale or 1.0)


def standard_errors(draws: torch.Tensor, truth: torch.Tensor | float) -> float:
    """The distance of the mean over the first axis from the truth in standard errors, at the worst entry."""
    draws = draws.detach()
    error = draws.std(0) / math.sqrt(len(draws))
    return float(((draws.mean(0) - truth).abs() / error.clamp(min=1e-300)).max())


def order(errors: Sequence[float], factor: float = 2.0) -> float:
    """The convergence order between the last two errors of runs whose steps grow by `factor`."""
    return math.log(errors[-2] / errors[-1]) / math.log(factor)
