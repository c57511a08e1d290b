"""Checkpoints: safetensors and JSON, written aside, fsynced and renamed, so that a reader sees a whole one or none.

RUN/checkpoints/00001000/   model.safetensors, ema-*.safetensors, optimizer.safetensors, state.json
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, cannot be read, or cannot be written."""


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int) -> Path:
    """Writes a checkpoint for `step` and removes all but the last `keep`; returns its folder.

    Args:
        folder: RUN/checkpoints; one process writes to it.
        step: steps done.
        tensors: file stem to named tensors.
        state: JSON for state.json.
        keep: how many to leave, this one included.

    Raises:
        CheckpointError: the files cannot be written; those of earlier steps are as they were.
    """
    final, aside = folder / f"{step:08d}", folder / f".{step:08d}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # of a process that was killed
            shutil.rmtree(left)
        aside.mkdir()
        for stem, named in tensors.items():
            save_file({name: value.detach().contiguous() for name, value in named.items()}, aside / f"{stem}.safetensors")
        (aside / "state.json").write_text(json.dumps(state))
        for path in [*aside.iterdir(), aside]:
            fsync(path)
        _remove(final)
        aside.rename(final)
        fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"cannot write {final} ({error}); make room or mend the permissions, then go on with --resume.") from None
    for old in steps_in(folder)[:-keep]:
        _remove(folder / f"{old:08d}")
    return final


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def latest(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    steps = steps_in(run / "checkpoints")
    if not steps:
        raise CheckpointError(f"{run} holds no checkpoint yet; train it first (sfumato train … --out {run}), or name another run.")
    return run / "checkpoints" / f"{steps[-1]:08d}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the checkpoint is not whole, remove {path.parent} to use the one before it.") from None
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state.json of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text())
        return {"step": int(state["step"]), "seconds": float(state["seconds"]), "window": [list(map(float, v)) for v in state["window"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What is said of a file of a checkpoint that cannot be used."""
    return CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}); remove {path.parent} to use the checkpoint before it.")


def write_text(path: Path, text: str) -> None:
    """Writes aside and renames."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    fsync(aside)
    aside.replace(path)


def fsync(path: Path) -> None:
    """Has the system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Takes a checkpoint away under a name that no reader looks for, then deletes it."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.gone")
        folder.rename(gone)
        shutil.rmtree(gone)
