"""The cost of safety in training: checkpoints, the guard, the logs, as shares of its time. Writes training.md in this folder.

    python benchmarks/training.py [--steps 120]

The recipe `fashion` (on the small data set in the package) on this machine. Each part is timed inside a real run; the share of a checkpoint
is one write per default interval; the logs are losses and bits by noise level, records, TensorBoard.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quality.protocol import processor

import sfumato as sf
from sfumato.runtime import keep_memory
from sfumato.training.accumulator import Accumulator
from sfumato.training.guard import Guard
from sfumato.training.state import TrainState
from sfumato.training.trackers import Trackers

HERE = Path(__file__).parent
PARTS: dict[str, list[tuple[type, str]]] = {
    "checkpoint": [(TrainState, "save")],
    "guard": [(Guard, "objection"), (Guard, "accept")],
    "logs": [(Accumulator, "add"), (Accumulator, "means"), (Trackers, "log")],
}


def timed(method: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    """The method, with its time added to a part."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - start

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    keep_memory()
    spent: dict[str, float] = defaultdict(float)
    for part, methods in PARTS.items():
        for owner, name in methods:
            setattr(owner, name, timed(getattr(owner, name), spent, part))
    writes = 3
    changes = [
        "data={kind: fashion-small}",
        f"training.checkpoint_every={args.steps // writes}",
        "training.warmup=20",
        "training.trackers=[tensorboard]",
    ]
    with tempfile.TemporaryDirectory() as folder:
        records: list[dict] = []
        recipe = sf.load_recipe("fashion", [*changes, "sampling.steps=1"], steps=args.steps)
        calls = sf.Callbacks(on_log=lambda record: records.append(dict(record)))
        sf.train(recipe, out=Path(folder) / "run", callbacks=calls)
    step = 1 / (records[-1]["images_per_second"] / recipe.training.batch)
    interval = sf.Training().checkpoint_every
    rows = [
        ("one checkpoint", spent["checkpoint"] / writes, spent["checkpoint"] / writes / (interval * step), f"of {interval} steps"),
        ("the guard, a step", spent["guard"] / args.steps, spent["guard"] / args.steps / step, "of a step"),
        (
            "losses and bits by level, records, TensorBoard, a step",
            spent["logs"] / args.steps,
            spent["logs"] / args.steps / step,
            "of a step",
        ),
    ]
    lines = [
        "# The cost of safety in training",
        "",
        f"Written by `benchmarks/training.py`: recipe `fashion`, {args.steps} steps of {recipe.training.batch} images, "
        f"{1e3 * step:.0f} ms each ({records[-1]['images_per_second']:.0f} images/s); {processor()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}. Wanted: under 1% each.",
        "",
        "| part | ms | share |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {1e3 * seconds:.3g} | {100 * share:.3f}% {of} |" for name, seconds, share, of in rows),
    ]
    (HERE / "training.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
