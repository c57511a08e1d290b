"""Ctrl-C or SIGTERM during training: the current step is finished and a checkpoint written; a second signal stops at once."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from sfumato.training import Stopped


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Gives a function that returns whether to stop, and turns `Stopped` into its message and exit code."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    except Stopped as stopped:
        command = shlex.join(["sfumato", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
        typer.echo(f"sfumato: {stopped}; continue with: {command}", err=True)
        raise typer.Exit(128 + signals[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
