"""Real processes that run a command of sfumato, forked from a server that has imported torch, so that each is there in a moment."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

PRELOADED = ["sfumato.cli", "sfumato.training", "sfumato.loading", "torch._dynamo", "torch.utils.tensorboard", "PIL.PngImagePlugin"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)

TINY = {
    "data": {"kind": "digits"},
    "net": {"kind": "dit", "patch": 4, "width": 8, "depth": 1, "heads": 2},
    "objective": {"times": {"kind": "fitted", "bins": 4}},
    "training": {
        "steps": 12,
        "batch": 16,
        "warmup": 2,
        "ema": [0.1, 0.05],
        "checkpoint_every": 4,
        "keep": 2,
        "log_every": 3,
    },
    "runtime": {"precision": "float32", "kernels": "torch"},  # compiling them would take a minute
    "sampling": {"steps": 1},
}


def recipe_file(folder: Path, **training: object) -> Path:
    """A recipe of a model that learns next to nothing, quickly."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"training": {**TINY["training"], **training}}))
    return path


class Life:
    """One process: `sfumato` with these arguments; what it says goes to a file."""

    def __init__(
        self, arguments: Sequence[object], said: Path, limit: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Begins; `limit` is the largest file in bytes that it may write, `environment` what is added to the environment."""
        self.said = said
        self.process = SERVER.Process(target=_live, args=([str(a) for a in arguments], str(said), limit, dict(environment or {})))
        self.process.start()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return not self.process.is_alive()

    def kill(self) -> bool:
        """SIGKILL; whether it was this that ended it."""
        self.process.kill()
        return self.end() == -9

    def end(self) -> int:
        """Waits for its end: the exit code, or minus the signal."""
        self.process.join(300)
        assert self.process.exitcode is not None, f"still running: {self.said.read_text()}"
        return self.process.exitcode


def live(arguments: Sequence[object], said: Path) -> int:
    """A whole life: its exit code."""
    return Life(arguments, said).end()


def _live(arguments: list[str], said: str, limit: int | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["sfumato", *arguments]
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if limit is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from sfumato.cli import main

    main(arguments)
