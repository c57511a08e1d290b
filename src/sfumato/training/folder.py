"""The files of a run folder other than checkpoints: recipe and manifest, checks before resuming, the writer's lock."""

import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from sfumato.data.source import DataSpec, Source, Stream
from sfumato.engine import Engine
from sfumato.options import Options
from sfumato.recipe import load_recipe
from sfumato.runtime import processor
from sfumato.storage import aside, read_spec, steps_in, writing

OURS = {"manifest.json", "recipe.yaml", ".manifest.json.partial", ".recipe.yaml.partial", ".lock"}  # of a run killed at its start


def recipe_to_resume(recipe: Any, out: Path, *, resume: bool) -> Any | None:
    """The recipe of the run in `out`, if there is one to resume.

    Raises:
        ValueError: `out` already holds a run; or, on resuming, one of another recipe or of more steps; or something else.
    """
    if (out / "recipe.yaml").is_file():
        if not resume:
            raise ValueError(f"{out} already holds a run; add --resume to continue it, or choose another --out.")
        existing = load_recipe(out / "recipe.yaml")
        _refuse_changes(existing, recipe, out)
        return existing
    if out.exists() and (not out.is_dir() or any(path.name not in OURS for path in out.iterdir())):
        raise ValueError(f"{out} exists and is not a run folder; choose another --out.")
    return None


def _refuse_changes(existing: Any, recipe: Any, out: Path) -> None:
    """On resuming, only options in `options.MAY_CHANGE` may change, and the number of steps may grow."""
    before, now = existing.training.steps, recipe.training.steps
    if now < before:
        raise ValueError(f"{out} was started with training.steps={before}; a run can be made longer, not shorter. Got {now}.")
    wrong = [change for change in existing.differences(recipe) if not change.startswith("training.steps:")]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        hint = "resume with the old one"
        if any(change.startswith("autoencoder_training.steps:") for change in wrong):
            hint = "keep the steps of the first stage (--set training.steps=… makes the second longer)"
        raise ValueError(f"{out} was started with another recipe ({'; '.join(wrong[:5])}{more}); {hint}, or choose another --out.")


def files_to_write(existing: Any | None, recipe: Any, manifest: Mapping[str, Any], out: Path) -> dict[str, str]:
    """The files to write before the first step, name to text: all for a new run, the changed ones for a run that is made longer.

    Args:
        existing: the recipe of the run in `out`; None for a new run.
        recipe: the requested recipe.
        manifest: of a new run.
        out: the run folder.
    """
    if existing is not None:
        if recipe.training.steps == existing.training.steps:
            return {}
        steps = [existing.training.steps, recipe.training.steps]
        recipe = existing.model_copy(update={"training": existing.training.model_copy(update={"steps": steps[1]})})
        manifest = manifest_in(out)
        done = max(steps_in(out / "checkpoints"), default=0)
        extended = [*manifest.get("extended", []), {"after_step": done, "from_steps": steps[0], "to_steps": steps[1]}]
        manifest = {**manifest, "recipe_sha256": _sha256(recipe), "extended": extended}
    return {"manifest.json": json.dumps(manifest, indent=2, ensure_ascii=False), "recipe.yaml": recipe.to_yaml()}


def _sha256(recipe: Options) -> str:
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()


def manifest_in(out: Path) -> dict[str, Any]:
    """The manifest of the run in `out`."""
    return json.loads((out / "manifest.json").read_text())


def refuse_other_data(manifest: Mapping[str, Any], out: Path) -> DataSpec:
    """The data entry of a run's manifest, after checking that data, number format and earlier stages are unchanged.

    Raises:
        ValueError: one of them has changed.
    """
    spec, existing = read_spec(out), manifest_in(out)
    for what, before, now in (
        ("data", existing.get("data", {}).get("fingerprint"), manifest["data"]["fingerprint"]),
        ("precision", existing.get("precision"), manifest["precision"]),
    ):
        if before != now:
            raise ValueError(f"{out} was started with another {what} ({before} → {now}); restore the old one, or choose another --out.")
    for stage, weights in existing.get("made_from", {}).items():
        if (now := manifest.get("made_from", {}).get(stage)) != weights:
            raise ValueError(
                f"{out} was made from other weights of {stage} ({weights[:12]} → {str(now)[:12]}); restore those, or delete {out} (and "
                "the latents encoded with them) to train it again."
            )
    return spec


def write_sheet(path: Path, sheet: Image) -> None:
    """Writes a picture of samples to a temporary file and renames it.

    Raises:
        CheckpointError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        with aside(path) as partial:
            sheet.save(partial, format="PNG")


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Creates the run folder and holds its lock, which the system releases when the process ends in any way.

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


def manifest_of(recipe: Any, source: Source | Stream, spec: DataSpec, engine: Engine, made_from: Mapping[str, str]) -> dict[str, Any]:
    """What the run was made from: data, versions, machine, seeds."""
    training = recipe.training
    data = {"name": source.name, "fingerprint": source.fingerprint(), "notes": list(source.notes)}
    if isinstance(source, Source):
        data |= {
            "examples": len(source),
            "skipped": list(source.skipped),
            "held_out": training.held_out,
            "held_out_by": training.held_out_by,
            "split_seed": training.seed,
        }
    return {
        "spec": spec.to_json(),
        "data": data,
        **({"made_from": dict(made_from)} if made_from else {}),
        "recipe_sha256": _sha256(recipe),
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
    """The git commit of sfumato's own checkout; None if it is installed otherwise, or without git."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=root)
    return head.stdout.strip() or None
