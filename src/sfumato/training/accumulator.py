"""Accumulates metrics between two lines of metrics.jsonl: means over steps, and means by noise level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sfumato.task import LossTerms

LOG_SNRS = (-8, -4, 0, 4, 8)  # nats: an example counts towards the nearest


@dataclass
class Accumulator:
    """Sums since the last line: over steps, and over examples by noise level."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rejected: int = 0
    levels: dict[str, list[float]] = field(default_factory=dict)  # "loss@-4" to sum and count of examples near -4 nats

    def add(self, loss: float, norm: float, terms: LossTerms | None = None) -> None:
        """Adds a step that was applied, with the loss terms of its examples."""
        self.losses.append(loss)
        self.norms.append(norm)
        if terms is None:
            return
        if terms.log_snr is not None:
            self.add_examples(terms.log_snr, {"loss": terms.per_example, **terms.parts})
        else:
            for name, values in terms.parts.items():
                held = self.levels.setdefault(name, [0.0, 0.0])
                held[0] += float(values.double().sum())
                held[1] += len(values)

    def add_examples(self, log_snr: Tensor, numbers: Mapping[str, Tensor]) -> None:
        """Adds numbers of each example, at the noise level where they were measured.

        Args:
            log_snr: [b], nats; infinite at the ends of a chain.
            numbers: [b] each, by name.
        """
        distances = np.abs(log_snr.numpy().astype(np.float64).clip(LOG_SNRS[0], LOG_SNRS[-1])[:, None] - LOG_SNRS)
        nearest = distances.argmin(1)
        counts = np.bincount(nearest, minlength=len(LOG_SNRS)).tolist()
        for name, values in numbers.items():
            sums = np.bincount(nearest, weights=values.numpy(), minlength=len(LOG_SNRS)).tolist()
            for centre, total, count in zip(LOG_SNRS, sums, counts, strict=True):
                if count:
                    held = self.levels.setdefault(f"{name}@{centre:+d}", [0.0, 0.0])
                    held[0] += total
                    held[1] += count

    def means(self) -> dict[str, float]:
        """Mean loss and gradient norm, and the means at the noise levels that occurred."""
        by_level = {name: total / count for name, (total, count) in sorted(self.levels.items(), key=lambda item: _order(item[0]))}
        if not self.losses:
            return by_level
        return {"loss": _mean(self.losses), "gradient_norm": _mean(self.norms), **by_level}

    def to_json(self) -> dict[str, Any]:
        """JSON types only, for a checkpoint."""
        return {"losses": self.losses, "norms": self.norms, "rejected": self.rejected, "levels": self.levels}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Accumulator":
        """Reads what `to_json` wrote.

        Raises:
            TypeError, KeyError, ValueError: the record has another form.
        """
        levels = {str(name): [float(total), float(count)] for name, (total, count) in record["levels"].items()}
        return cls([float(v) for v in record["losses"]], [float(v) for v in record["norms"]], int(record["rejected"]), levels)


def _order(name: str) -> tuple[str, int]:
    """Sorts names, with their levels ascending."""
    kind, _, level = name.partition("@")
    return kind, int(level or 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
