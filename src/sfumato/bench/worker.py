"""Measures one call of one library in its own process, so that libraries do not share memory or settings.

python -m sfumato.bench.worker '{"library": …, "task": …, "folder": …, "batch": …, "precision": …, "threads": …}'

It reports when it is ready, and then makes the call once for each line on its standard input: "go" to time it, "operations" to count
operations, a path to write its output there, or to compare it with the tensor already there.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sfumato.bench.libraries import LIBRARIES, Unasked
from sfumato.runtime import peak_memory


def main() -> None:
    """Answers each line with a line of JSON."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    try:
        call = getattr(LIBRARIES[asked["library"]], asked["task"])(Path(asked["folder"]), asked["batch"], asked["precision"])
    except Unasked as reason:
        answer({"unasked": str(reason)})
        return
    except ModuleNotFoundError as error:
        answer({"missing": error.name})
        return
    before = peak_memory()
    if asked["task"] != "draw":  # long enough to make the warm-up negligible
        call()
    answer({"ready": True})
    for line in sys.stdin:
        if line.strip() == "go":
            started = time.perf_counter()
            call()
            answer({"seconds": time.perf_counter() - started, "memory": peak_memory() - before})
        elif line.strip() == "operations":
            with FlopCounterMode(display=False) as counter:
                call()
            answer({"operations": counter.get_total_flops()})
        else:
            path = Path(line.strip())
            value = call()
            assert isinstance(value, torch.Tensor)
            if path.is_file():
                truth = torch.load(path, weights_only=True)
                answer({"error": float((value.float() - truth).norm() / truth.norm())})
            else:
                torch.save(value.float(), path)
                answer({"error": 0.0})


def answer(record: dict[str, object]) -> None:
    """Writes one line to the parent process."""
    print(json.dumps(record), file=OUT, flush=True)


if __name__ == "__main__":
    OUT, sys.stdout = sys.stdout, sys.stderr  # output of libraries is not an answer
    main()
