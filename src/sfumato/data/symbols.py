"""Data of symbols: the codec between symbols and the integers that a model takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.source import CODECS


@dataclass(frozen=True)
class Vocabulary:
    """Symbols and their numbers 0, 1, …: x is int64 [n, …]; values are numbers on disk, or names.

    Raises:
        ValueError: no symbols, or one twice.
    """

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the symbols."""
        if not self.symbols or len(set(self.symbols)) < len(self.symbols):
            raise ValueError(f"a vocabulary needs at least one symbol, and symbols must differ; got {list(self.symbols)[:8]}.")

    def __len__(self) -> int:
        """The number of symbols."""
        return len(self.symbols)

    @property
    def dtype(self) -> str:
        """The dtype of the values."""
        return "int64"

    def encode(self, values: np.ndarray) -> Tensor:
        """Numbers of symbols given as numbers or names.

        Raises:
            ValueError: a symbol that is not in the vocabulary.
        """
        if values.dtype.kind == "U":
            places = {symbol: i for i, symbol in enumerate(self.symbols)}
            if unknown := sorted(set(values.flat) - set(places)):
                raise ValueError(f'"{unknown[0]}" is not one of the {len(self)} symbols of the vocabulary.')
            values = np.vectorize(places.__getitem__, otypes=[np.int64])(values)
        if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() >= len(self))):
            raise ValueError(f"symbols must be integers in 0 … {len(self) - 1}, got {values.dtype} {list(values.shape)}.")
        return torch.from_numpy(values.astype(np.int64))

    def decode(self, x: Tensor) -> np.ndarray:
        """Numbers as an array."""
        return x.cpu().numpy().astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """JSON types only, for a manifest."""
        return {"kind": "vocabulary", "symbols": list(self.symbols)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Vocabulary":
        """From `to_json`."""
        return cls(tuple(map(str, record["symbols"])))


CODECS["vocabulary"] = Vocabulary.from_json
