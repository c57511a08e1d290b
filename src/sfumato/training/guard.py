"""The guard of a training: which steps are applied, and what happens when none can be.

A loss or gradient that is not finite, or a loss far above all that were seen of late, is not applied: the weights, their averages and the
optimiser stay as they were, and the batch is kept. After a few such steps in a row the run goes back to its last good state, at half the
rate; where that has been tried, it stops.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

REMEMBERED = 100  # losses of applied steps that a new one is compared with
ENOUGH = 20  # fewer say nothing about what is usual
ABOVE_MEDIAN, ABOVE_LARGEST = 100.0, 10.0  # an explosion passes both: the loss of a tiny batch strays by less


class Diverged(Exception):
    """So many steps in a row were not applied that the run must go back."""


@dataclass
class Guard:
    """What the guard remembers; it lies in every checkpoint, so a resumed run is judged as an uninterrupted one.

    Args:
        patience: steps in a row that may be left out before the run goes back.
    """

    patience: int
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    in_a_row: int = 0
    returns: int = 0

    @property
    def rate(self) -> float:
        """The share of the recipe's learning rate that is left: a half for each return."""
        return 0.5**self.returns

    def objection(self, loss: float, norm: float) -> str | None:
        """Why a step with this loss and gradient norm is not to be applied; None where it is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if len(self.recent) >= ENOUGH:
            median, largest = float(np.median(self.recent)), max(self.recent)
            if loss > ABOVE_MEDIAN * abs(median) and loss > ABOVE_LARGEST * abs(largest):
                return f"the loss is {loss:.4g}, where {median:.4g} was usual"
        return None

    def accept(self, loss: float) -> None:
        """Takes note of a step that was applied."""
        self.recent.append(loss)
        self.in_a_row = 0

    def reject(self) -> None:
        """Takes note of a step that was not.

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
        """Takes up what `to_json` wrote.

        Raises:
            TypeError, KeyError, ValueError: it is something else.
        """
        self.recent = deque((float(value) for value in record["recent"]), maxlen=REMEMBERED)
        self.in_a_row, self.returns = int(record["in_a_row"]), int(record["returns"])
