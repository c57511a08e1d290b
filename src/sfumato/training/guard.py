"""The guard of a training: decides which steps are applied, and when the run goes back.

A step with a non-finite loss or gradient, or a loss far above the recent ones, is not applied: weights, averages and optimiser stay as they
were, and the batch is saved. After `patience` such steps in a row the run goes back to its last good state, at half the learning rate;
after `retries` returns it stops.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REMEMBERED = 100  # recent losses of applied steps, for comparison
ENOUGH = 20  # fewer losses are too few for a comparison
ABOVE_MEDIAN, ABOVE_LARGEST = 100.0, 10.0  # a loss must exceed both to be rejected; tiny batches vary less than this


class Diverged(Exception):
    """Too many steps in a row were not applied: the run must go back."""


@dataclass
class Guard:
    """The guard's state; it is part of every checkpoint, so a resumed run behaves like an uninterrupted one.

    Args:
        patience: rejected steps in a row before the run goes back.
    """

    patience: int
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    in_a_row: int = 0
    returns: int = 0

    @property
    def rate(self) -> float:
        """The factor on the recipe's learning rate: halved by each return."""
        return 0.5**self.returns

    def objection(self, loss: float, norm: float) -> str | None:
        """The reason to reject a step with this loss and gradient norm; None to apply it."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if len(self.recent) >= ENOUGH:
            is_largest = loss > ABOVE_LARGEST * abs(max(self.recent))
            if is_largest and loss > ABOVE_MEDIAN * abs(median := statistics.median(self.recent)):
                return f"the loss is {loss:.4g}, but the recent median is {median:.4g}"
        return None

    def accept(self, loss: float) -> None:
        """Records a step that was applied."""
        self.recent.append(loss)
        self.in_a_row = 0

    def reject(self) -> None:
        """Records a step that was rejected.

        Raises:
            Diverged: it was one too many in a row.
        """
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            raise Diverged

    def to_json(self) -> dict[str, Any]:
        """JSON types only, for a checkpoint."""
        return {"recent": list(self.recent), "in_a_row": self.in_a_row, "returns": self.returns}

    def load(self, record: Mapping[str, Any]) -> None:
        """Reads what `to_json` wrote.

        Raises:
            TypeError, KeyError, ValueError: the record has another form.
        """
        self.recent = deque((float(value) for value in record["recent"]), maxlen=REMEMBERED)
        self.in_a_row, self.returns = int(record["in_a_row"]), int(record["returns"])
