"""Checkpoints: safetensors and JSON, written to a temporary folder, fsynced and renamed, so that a reader sees a whole one or none.

RUN/checkpoints/00001000/   model.safetensors, ema-*.safetensors, optimizer.safetensors, state.json, checksums.b2

Every file is verified with its checksum, which detects flipped bits (`b2sum -c checksums.b2` does the same). A checkpoint without
checksums.b2, as sfumato 0.1 wrote them, is read without. Damaged checkpoints are reported, skipped and kept.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.data.source import DataSpec
from sfumato.errors import CheckpointError

CHECKSUMS = "checksums.b2"
T = TypeVar("T")
log = logging.getLogger(__name__)

ZOO = Path(__file__).parent / "zoo"


def write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int | None) -> Path:
    """Writes the checkpoint of `step`, deletes all but the last `keep`, and returns its folder.

    Args:
        folder: RUN/checkpoints; one process writes to it.
        step: steps done.
        tensors: file stem to named tensors.
        state: JSON for state.json.
        keep: how many checkpoints to keep, including this one; None keeps all.

    Raises:
        CheckpointError: the files cannot be written; earlier checkpoints are unchanged.
    """
    final, partial = folder / f"{step:08d}", folder / f".{step:08d}.partial"
    with writing(final):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # left by a killed process
            _delete(left)
        try:
            partial.mkdir()
            for stem, named in tensors.items():
                save_file({name: value.detach().contiguous() for name, value in named.items()}, partial / f"{stem}.safetensors")
            (partial / "state.json").write_text(json.dumps(state))
            for path in partial.glob("*.safetensors"):
                shutil.copymode(partial / "state.json", path)  # safetensors writes files that only their owner can read
            (partial / CHECKSUMS).write_text("".join(f"{_digest(path)}  {path.name}\n" for path in sorted(partial.iterdir())))
            for path in [*partial.iterdir(), partial]:
                fsync(path)
            _remove(final)
            partial.rename(final)
            fsync(folder)
        except (OSError, SafetensorError):
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in steps_in(folder)[: -keep if keep else 0]:
            _remove(folder / f"{old:08d}")
    return final


def add(checkpoint: Path, stem: str, tensors: Mapping[str, Tensor]) -> Path:
    """Adds a file of tensors to a checkpoint, or replaces one; returns its path."""
    path = checkpoint / f"{stem}.safetensors"
    with writing(path):
        with aside(path) as partial:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial)
            shutil.copymode(checkpoint / "state.json", partial)
        known = _checksums(checkpoint)
        if known is not None:
            known[path.name] = _digest(path)
            write_text(checkpoint / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items())))
    return path


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in ascending order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal() and path.is_dir())


def latest(run: Path) -> Path:
    """The newest checkpoint of a run, damaged or not.

    Raises:
        CheckpointError: there is none.
    """
    steps = steps_in(run / "checkpoints")
    if not steps:
        raise CheckpointError(f"{run} holds no checkpoint yet; train it first (sfumato train … --out {run}), or name another run.")
    return run / "checkpoints" / f"{steps[-1]:08d}"


def load_newest_valid(run: Path, read: Callable[[Path], T], *, set_aside: bool = False) -> T:
    """Reads the newest valid checkpoint of a run with `read`; damaged ones are skipped, with a warning in the log.

    Args:
        run: the run folder; a process may be training into it.
        read: raises `CheckpointError` for a checkpoint that it cannot read.
        set_aside: rename damaged checkpoints to NUMBER.damaged; only for the process that writes to the run.

    Raises:
        CheckpointError: there is no checkpoint, or none can be read (then nothing is renamed).
    """
    latest(run)
    folder, damaged_ones = run / "checkpoints", dict[int, str]()
    while left := [step for step in steps_in(folder) if step not in damaged_ones]:
        path = folder / f"{left[-1]:08d}"
        try:
            taken = read(path)
        except CheckpointError as error:
            if path.exists():  # otherwise training has deleted it and written a newer one
                damaged_ones[left[-1]] = str(error).rstrip(".")
            continue
        for step, sentence in damaged_ones.items():
            kept = ""
            if set_aside:
                kept = f", and keeping the damaged one as {_set_aside(folder / f'{step:08d}').name}"
            log.warning(f"{sentence}; going back to {path.name}{kept}.")
        return taken
    why = next(iter(damaged_ones.values()), f"{folder} changed while it was read")
    raise CheckpointError(f"{why}, and {run} has no other valid checkpoint; restore one from a backup, or train again into another --out.")


def load_average(net: nn.Module, run: Path, widths: Sequence[float], asked: float | None) -> None:
    """Loads EMA weights from the newest valid checkpoint of a run.

    Args:
        net: the trained network.
        run: the run folder.
        widths: the averages of the recipe; the first is the default.
        asked: the width of the wanted average.

    Raises:
        ValueError: there is no such average.
        CheckpointError: there is no checkpoint, or no valid one.
    """
    file = f"{name_of(widths[0] if asked is None else asked)}.safetensors"

    def read(checkpoint: Path) -> None:
        there = sorted(path.name for path in checkpoint.glob("ema-*.safetensors"))
        if asked is not None and file not in {*there, *(f"{name_of(width)}.safetensors" for width in widths)}:
            raise ValueError(
                f"{run} has no average of width {asked:g}; it has {', '.join(f'{float(name[4:-12]):g}' for name in there)} "
                f"(sfumato ema {run} --width {asked:g} computes one from snapshots)."
            )
        tensors = read_tensors(checkpoint / file)
        try:
            net.load_state_dict(tensors)  # copies values and converts them to the network's dtype
        except RuntimeError as error:
            raise damaged(checkpoint / file, error) from None

    load_newest_valid(run, read)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        _verify(path)
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, so the checkpoint is incomplete.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state.json of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = checkpoint / "state.json"
    try:
        _verify(path)
        state = json.loads(path.read_text())
        if not isinstance(state, dict) or state.get("step") != int(checkpoint.name):
            raise ValueError(f"it is not of step {int(checkpoint.name)}")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    return state


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a damaged file of a checkpoint."""
    return CheckpointError(f"{path} is damaged ({' '.join(str(error).split()).rstrip('.')}).")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into a run folder into one sentence.

    Raises:
        CheckpointError: instead of an OSError or SafetensorError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else int((re.findall(r"os error (\d+)", str(error)) or [0])[0])
        why = os.strerror(number).lower() if number else error
        raise CheckpointError(f"cannot write {path} ({why}); free space or fix the permissions, then continue with --resume.") from None


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block succeeds; until then, and after a failure, `path` is unchanged.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        fsync(partial)
        partial.replace(path)
        fsync(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary file and renames it."""
    with aside(path) as partial:
        partial.write_text(text)


def fsync(path: Path) -> None:
    """Writes a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(path: Path) -> None:
    """Compares a file of a checkpoint with its checksum.

    Raises:
        ValueError: it differs, has no checksum although others have, or is outside the run folder.
    """
    home = path.parent.parent.resolve()
    if not path.resolve().is_relative_to(home):
        raise ValueError(f"it is a link to a place outside {path.parent.parent}")
    known = _checksums(path.parent)
    if known is not None and known.get(path.name) != _digest(path):
        raise ValueError("its checksum does not match" if path.name in known else f"{CHECKSUMS} does not list it")


def _checksums(checkpoint: Path) -> dict[str, str] | None:
    """File name to checksum; None if there is no checksum file."""
    path = checkpoint / CHECKSUMS
    if not path.is_file():
        return None
    lines = [line.split("  ", 1) for line in path.read_text().splitlines()]
    if not all(len(line) == 2 for line in lines):
        raise ValueError(f"{CHECKSUMS} is truncated")
    return {name: digest for digest, name in lines}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, to make room for a good one of the same step."""
    count = len(list(checkpoint.parent.glob(f"{checkpoint.name}.damaged*")))
    name = f"{checkpoint.name}.damaged{f'-{count + 1}' if count else ''}"
    return checkpoint.rename(checkpoint.with_name(name))


def _remove(checkpoint: Path) -> None:
    """Renames a checkpoint so that no reader finds it, then deletes it."""
    if checkpoint.exists():
        _delete(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.gone")))


def _delete(path: Path) -> None:
    """Deletes a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def name_of(width: float) -> str:
    """The name of the average of this width in a checkpoint."""
    return f"ema-{width:.3f}"


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of all weights in float32, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.float() if value.is_floating_point() else value
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def folder_of(model: str | Path) -> Path:
    """The folder of a run, or of `zoo:NAME`.

    Raises:
        ValueError: there is no such model.
    """
    folder = Path(model)
    if str(model).startswith("zoo:"):
        folder = ZOO / str(model).removeprefix("zoo:")
        if folder == ZOO or not (folder / "recipe.yaml").is_file():
            raise ValueError(f"there is no {model}; the zoo holds {', '.join('zoo:' + name for name in zoo_names()) or 'no model'}.")
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(
            f"{model} is neither a run folder (it has no recipe.yaml) nor zoo:NAME; train one with sfumato train RECIPE --out {model}."
        )
    return folder


def zoo_names() -> list[str]:
    """The models that ship with sfumato."""
    return sorted(path.name for path in ZOO.iterdir() if (path / "recipe.yaml").is_file()) if ZOO.is_dir() else []


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error!r}); restore it, or train again.") from None
    return manifest


def read_spec(folder: Path) -> DataSpec:
    """The spec of a run's data, from its manifest.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    manifest = read_manifest(folder)
    try:
        return DataSpec.from_json(manifest["spec"] if "spec" in manifest else manifest["form"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'} is damaged ({error!r}); restore it, or train again.") from None
