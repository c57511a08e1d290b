"""The comparison: one process for each library, in turns; medians and quartiles, ratios, and the limits of the machine."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import TracebackType
from typing import Any

import torch
from torch import nn

from sfumato.bench.libraries import CHAIN_STEPS, LIBRARIES, OVERHEAD_BATCH, OVERHEAD_STEPS, SHAPE
from sfumato.convert import save_diffusers
from sfumato.convert.imported import as_model, knots
from sfumato.nets import UNet, UNetLayout
from sfumato.nets.layers import TimestepSinusoids
from sfumato.prediction import eps_target
from sfumato.runtime import multiplies_bfloat16
from sfumato.schedule import Discrete
from sfumato.tasks.options import Sampling


@dataclass(frozen=True)
class Question:
    """A measurement, and its targets: the least ratio of diffusers' time to ours, the largest ratio of our memory to theirs."""

    name: str
    task: str
    batch: int
    precision: str = "float32"
    rounds: int = 7
    least_ratio: float | None = None
    most_memory: float | None = None


@dataclass(frozen=True)
class Figure:
    """One library's result: seconds (median and quartiles), peak memory beyond its start, error against diffusers' output."""

    question: str
    library: str
    precision: str
    seconds: float
    low: float
    high: float
    memory: int
    operations: int
    error: float | None


QUESTIONS = (
    Question("forward, batch 1", "forward", 1, rounds=21, least_ratio=1.3),
    Question("forward, batch 16", "forward", 16, rounds=9, least_ratio=2.0),
    Question("forward, batch 64", "forward", 64, rounds=5, least_ratio=1.3),
    Question("forward, batch 1, bfloat16", "forward", 1, "bfloat16", 21, 1.3),
    Question("forward, batch 16, bfloat16", "forward", 16, "bfloat16", 9, 2.0),
    Question("forward, batch 64, bfloat16", "forward", 64, "bfloat16", 5, 3.0),
    Question("training step, batch 64", "step", 64, rounds=3, least_ratio=1.5, most_memory=0.6),
    Question("training step, batch 64, bfloat16", "step", 64, "bfloat16", 3, 1.5, 0.6),
    Question("64 samples in 20 steps", "draw", 64, rounds=2, least_ratio=2.5),
    Question("64 samples in 20 steps, bfloat16", "draw", 64, "bfloat16", 2, 2.5),
    Question("sampler alone, 100 steps", "overhead", OVERHEAD_BATCH, rounds=21),
)


def questions_here() -> tuple[Question, ...]:
    """The questions for this processor: without bfloat16 products, float32 must reach the targets of both."""
    if multiplies_bfloat16():
        return QUESTIONS
    wanted: dict[tuple[str, int], float] = {}
    for question in QUESTIONS:
        if question.least_ratio is not None:
            key = question.task, question.batch
            wanted[key] = max(wanted.get(key, 0.0), question.least_ratio)
    plain = (question for question in QUESTIONS if question.precision == "float32")
    return tuple(replace(question, least_ratio=wanted.get((question.task, question.batch))) for question in plain)


def bench(
    against: Sequence[str] = (),
    *,
    only: str = "",
    threads: int | None = None,
    questions: Sequence[Question] | None = None,
    on_result: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures sfumato and other libraries in this Python's environment.

    Args:
        against: names of `LIBRARIES`.
        only: questions whose name contains this.
        threads: of each library; torch's default if None.
        questions: what to measure; `questions_here` by default.
        on_result: called with each result.

    Raises:
        ValueError: an unknown library, or one that is not installed here; no such question.
    """
    wrong = [name for name in against if name not in LIBRARIES or name == "sfumato"]
    if wrong:
        raise ValueError(f"unknown library {wrong[0]}; there are {', '.join(name for name in LIBRARIES if name != 'sfumato')}.")
    questions = questions_here() if questions is None else questions
    chosen = [question for question in questions if only in question.name]
    if not chosen:
        raise ValueError(f'no question has "{only}" in its name; they are {"; ".join(question.name for question in questions)}.')
    threads, figures, left_out = threads or torch.get_num_threads(), [], dict[str, list[str]]()
    with TemporaryDirectory() as folder:
        _write_pipeline(Path(folder))
        for question in chosen:
            answers, unasked = _ask(question, ["sfumato", *against], Path(folder), threads)
            figures += answers
            for library, reason in unasked:
                left_out.setdefault(f"{library} ({reason})", []).append(question.name)
            for figure in answers:
                on_result(_line(figure, answers))
    ceilings = {"float32": ceiling(torch.float32, threads)}
    if multiplies_bfloat16():
        ceilings["bfloat16"] = ceiling(torch.bfloat16, threads)
    return {
        "threads": threads,
        "torch": torch.__version__,
        "ceiling": ceilings,
        "figures": [asdict(figure) for figure in figures],
        "left_out": left_out,
        "targets": [target for question in chosen for target in _targets(question, figures)],
    }


class _Worker:
    """A library in its own process; used as a context manager."""

    def __init__(self, library: str, question: Question, folder: Path, threads: int) -> None:
        asked = {"library": library, "task": question.task, "folder": str(folder), "batch": question.batch}
        asked |= {"precision": question.precision, "threads": threads}
        self.library = library
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "sfumato.bench.worker", json.dumps(asked)]
        self.words = TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__; its output may be more than a pipe holds
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, text=True, env=environment
        )
        self.start = self._read()

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.words.seek(0)
            last = self.words.read().strip().splitlines()[-1:]
            raise ChildProcessError(f"measuring {self.library} failed: {last[0] if last else 'it ended without a message'}")
        return json.loads(line)

    def __enter__(self) -> "_Worker":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.words.close()


def _ask(question: Question, libraries: Sequence[str], folder: Path, threads: int) -> tuple[list[Figure], list[tuple[str, str]]]:
    with ExitStack() as stack:
        workers, unasked = [], []
        for library in libraries:
            worker = stack.enter_context(_Worker(library, replace(question, precision=_precision(question, library)), folder, threads))
            if "missing" in worker.start:
                missing = worker.start["missing"]
                raise ValueError(f"{library} is not installed here (no module {missing}); pip install {library}, or omit it.")
            if "unasked" in worker.start:
                unasked.append((library, worker.start["unasked"]))
            else:
                workers.append(worker)
        if not any(worker.library == "sfumato" for worker in workers):
            return [], unasked
        records: dict[str, list[dict[str, Any]]] = {worker.library: [] for worker in workers}
        for _ in range(question.rounds):
            for worker in workers:
                records[worker.library].append(worker.ask("go"))
                time.sleep(0.05)  # let the other processes' threads go to sleep
        errors: dict[str, float] = {}
        if question.task == "forward":
            truth = folder / f"{question.name}.pt"
            for worker in sorted(workers, key=lambda worker: worker.library != "diffusers"):
                if worker.library in ("diffusers", "sfumato"):
                    errors[worker.library] = worker.ask(str(truth))["error"]
        operations = {worker.library: worker.ask("operations")["operations"] for worker in workers if question.task in ("forward", "step")}
        return [_figure(question, name, taken, operations.get(name, 0), errors.get(name)) for name, taken in records.items()], unasked


def _precision(question: Question, library: str) -> str:
    return question.precision if library == "sfumato" else "float32"  # the others run as they are normally used


def _figure(question: Question, library: str, records: Sequence[dict[str, Any]], operations: int, error: float | None) -> Figure:
    seconds = sorted(record["seconds"] for record in records)
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    memory = max(record["memory"] for record in records)
    return Figure(question.name, library, _precision(question, library), median, low, high, memory, operations, error)


def _line(figure: Figure, answers: Sequence[Figure]) -> str:
    ours = next(answer for answer in answers if answer.library == "sfumato")
    times = "" if figure is ours else f", {figure.seconds / ours.seconds:.2f} times ours"
    unit = f"{figure.seconds / OVERHEAD_STEPS * 1e6:.0f} µs a step" if "sampler" in figure.question else f"{figure.seconds * 1e3:.0f} ms"
    return f"{figure.question}: {figure.library} {unit}{times}"


def _targets(question: Question, figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The targets of a question and the results; empty if either library has no result."""
    answers = {figure.library: figure for figure in figures if figure.question == question.name}
    if not {"sfumato", "diffusers"} <= answers.keys():
        return []
    ours, theirs = answers["sfumato"], answers["diffusers"]
    found = []
    if question.least_ratio is not None:
        ratio = theirs.seconds / ours.seconds
        found.append({"what": f"{question.name}: diffusers' time over ours", "seen": ratio, "wanted": f"at least {question.least_ratio}",
                      "holds": ratio >= question.least_ratio})  # fmt: skip
    if question.most_memory is not None:
        share = ours.memory / theirs.memory
        found.append({"what": f"{question.name}: our memory over diffusers'", "seen": share, "wanted": f"at most {question.most_memory}",
                      "holds": share <= question.most_memory})  # fmt: skip
    if ours.error is not None:
        most = 1e-5 if question.precision == "float32" else 1e-2
        found.append(
            {"what": f"{question.name}: relative error", "seen": ours.error, "wanted": f"at most {most:g}", "holds": ours.error <= most}
        )
    return found


def ceiling(dtype: torch.dtype, threads: int, size: int = 2048) -> float:
    """Operations a second of a product of two large matrices: this machine's limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, best = torch.randn(size, size).to(dtype), float("inf")
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - started)
    torch.set_num_threads(before)
    return 2 * size**3 / best


def _write_pipeline(folder: Path) -> None:
    """The model that all libraries use, with non-zero weights."""
    chain = Discrete.linear(CHAIN_STEPS)
    layout = UNetLayout(channels=(64, 128, 128), attention=(False, False, True), middle=(True, False), heads=1, head_width=8, scales=False)
    generator = torch.Generator().manual_seed(0)
    net = UNet(SHAPE, layout, features=TimestepSinusoids(64, knots(chain)))
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=generator)
    save_diffusers(as_model("bench", net, SHAPE, chain, eps_target, Sampling(clip=False)), folder)
