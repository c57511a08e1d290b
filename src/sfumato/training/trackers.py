"""Trackers besides metrics.jsonl: TensorBoard, and those that accelerate supports by name."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, TensorBoardTracker, WandBTracker, get_available_trackers
from PIL import Image

from sfumato.options import Training


class Trackers:
    """One or more trackers, written to together."""

    def __init__(self, trackers: Sequence[GeneralTracker]) -> None:
        """Takes trackers that were started."""
        self.trackers = trackers

    @classmethod
    def begin(cls, out: Path, options: Training, step: int) -> "Trackers":
        """The recipe's trackers, for the steps after `step`; TensorBoard writes to RUN/tensorboard."""
        trackers = []
        for name in options.trackers:
            kind = LOGGER_TYPE_TO_CLASS[name]
            if kind is TensorBoardTracker:
                tracker = kind("tensorboard", str(out), purge_step=step + 1)
            else:
                tracker = kind(out.name, str(out)) if kind.requires_logging_directory else kind(out.name)
            tracker.start()
            trackers.append(tracker)
        return cls(trackers)

    def log(self, record: Mapping[str, float | int]) -> None:
        """Logs a line of metrics.jsonl."""
        values = {name: number for name, number in record.items() if name not in ("step", "seconds")}
        for tracker in self.trackers:
            tracker.log(values, step=int(record["step"]))

    def show(self, sheet: Path, step: int) -> None:
        """Logs a sheet of samples to trackers that show images."""
        with Image.open(sheet) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
        for tracker in self.trackers:
            if isinstance(tracker, TensorBoardTracker):
                tracker.log_images({"samples": pixels}, step=step, dataformats="NHWC")
            elif isinstance(tracker, WandBTracker):
                tracker.log_images({"samples": pixels}, step=step)

    def close(self) -> None:
        """Ends them."""
        for tracker in self.trackers:
            tracker.finish()


@contextmanager
def raised_once() -> Iterator[None]:
    """Keeps TensorBoard's thread from printing a traceback when it cannot write: its next call raises the same error here."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def refuse_missing(options: Training) -> None:
    """Checks, before a training writes anything, that its trackers are installed.

    Raises:
        ValueError: a tracker that is not installed.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in options.trackers:
        if name not in installed:
            package = "'sfumato[tensorboard]'" if name == "tensorboard" else name
            raise ValueError(
                f"training.trackers: {name} is not installed; run pip install {package}, or train without it: training.trackers=[] "
                "(metrics.jsonl and sfumato plot need no tracker)."
            )
