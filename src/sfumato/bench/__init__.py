"""Speed, side by side: each library in a process of its own, asked in turns, beside the least that the machine could take."""

from sfumato.bench.compare import LIBRARIES, Figure, bench

__all__ = ["LIBRARIES", "Figure", "bench"]
