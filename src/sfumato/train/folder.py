"""The papers of a run folder: what made the run, whether it may go on, and who writes to it."""

import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.data import Dataset
from sfumato.form import Form
from sfumato.pictures import picture
from sfumato.run import read_form
from sfumato.runtime import processor
from sfumato.train.checkpoint import aside, writing
from sfumato.train.engine import Engine
from sfumato.train.recipe import Options, Training

OURS = {"manifest.json", "recipe.yaml", ".manifest.json.partial", ".recipe.yaml.partial", ".lock"}  # of a run killed at its very start


def begin(recipe: Options, out: Path, *, resume: bool, read: Callable[[Path], Options]) -> bool:
    """Whether `out` holds a run to go on with.

    Raises:
        ValueError: it holds one already, or one of another recipe, or something else.
    """
    has_run = (out / "recipe.yaml").is_file()
    if has_run and not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
    if has_run:
        _refuse_changes(read(out / "recipe.yaml"), recipe, out)
    elif out.exists() and (not out.is_dir() or any(path.name not in OURS for path in out.iterdir())):
        raise ValueError(f"{out} exists and is no run folder; choose another --out.")
    return has_run


def _refuse_changes(begun: Options, recipe: Options, out: Path) -> None:
    """Only what `recipe.MAY_CHANGE` lists may change on resuming."""
    wrong = begun.differences(recipe)
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{out} was begun with another recipe ({'; '.join(wrong[:5])}{more}); resume with the old one, or choose another --out."
        )


def begun_with(out: Path) -> dict[str, Any]:
    """The manifest of a run that is there."""
    return json.loads((out / "manifest.json").read_text())


def refuse_other_data(manifest: Mapping[str, Any], out: Path) -> Form:
    """The form of the data as the run began, if they and the number format are still the same."""
    form, begun = read_form(out), begun_with(out)
    for what, before, now in (
        ("data", begun.get("data", {}).get("fingerprint"), manifest["data"]["fingerprint"]),
        ("precision", begun.get("precision"), manifest["precision"]),
    ):
        if before != now:
            raise ValueError(f"{out} was begun with another {what} ({before} → {now}); bring the old one back, or choose another --out.")
    return form


def write_sheet(path: Path, values: np.ndarray, *, columns: int | None) -> None:
    """A picture of samples, aside first.

    Raises:
        CheckpointError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        with aside(path) as partial:
            picture(values, columns=columns).save(partial, format="PNG")


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Makes the run folder and holds its lock, which the system drops with the process however it ends.

    Raises:
        ValueError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training into {out}; wait for it, stop it, or choose another --out.") from None
        yield


def manifest_of(recipe: Options, training: Training, dataset: Dataset, form: Form, engine: Engine) -> dict[str, Any]:
    """What made the run: data, versions, machine, seeds."""
    return {
        "form": form.to_json(),
        "data": {
            "name": dataset.name,
            "examples": len(dataset),
            "fingerprint": dataset.fingerprint(),
            "held_out": training.held_out,
            "held_out_by": training.held_out_by,
            "split_seed": training.seed,
            "skipped": list(dataset.skipped),
        },
        "recipe_sha256": hashlib.sha256(recipe.to_yaml().encode()).hexdigest(),
        "seed": training.seed,
        "precision": str(engine.precision).removeprefix("torch."),
        "kernels": "compiled" if engine.by_kernels else "torch",
        "device": {
            "kind": engine.device.type,
            "processes": engine.processes,
            "machine": platform.machine(),
            "processor": processor("model name"),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("sfumato", "torch", "numpy", "safetensors")},
        "git_commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of sfumato's own checkout; None where it is installed otherwise, or git is not there."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=root)
    return head.stdout.strip() or None
