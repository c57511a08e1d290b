"""Whether a model's steps, sampler or guidance were chosen on the very samples that a report is of: sweeps leave a record."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfumato.evaluation.reference import Reference
from sfumato.model import Model
from sfumato.runtime import cache_folder
from sfumato.storage import CheckpointError, folder_of, read_manifest, weights_fingerprint

RECORD = "sweeps.jsonl"


def note_sweep(model: Model, reference: Reference, settings: Sequence[Mapping[str, Any]], seed: int, count: int) -> Path | None:
    """Adds a sweep to the record of a model: which settings were measured, on which data, from which seed.

    It lies in the run folder; of a model of the package in the cache. None where there is neither.
    """
    path = _record(model)
    if path is None:
        return None
    line = {
        "weights": weights_fingerprint(model.network),
        "data": reference.source.fingerprint(),
        "seed": seed,
        "count": count,
        "settings": [dict(each) for each in settings],
    }
    with suppress(OSError):  # a folder that cannot be written to keeps no record, and the sentence then says that there is none
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return path
    return None


def sentence(model: Model, reference: Reference, sampling: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """What is on record of how these settings were chosen."""
    lines = [line for line in _read(model) if line.get("weights") == weights_fingerprint(model.network)]
    best = _checkpoint(model)
    same = [line for line in lines if line["data"] == reference.source.fingerprint() and line["seed"] in seeds]
    if any(dict(sampling) in line["settings"] for line in same):
        most = max(len(line["settings"]) for line in same)
        return (
            f"{best}these very samples and data were part of a sweep of {most} settings, so a setting that was chosen by it looks "
            "better here than it is; measure it with another seed"
        )
    if lines:
        return f"{best}a sweep of this model is on record, of other samples or data than these"
    return f"{best}no sweep of this model is on record"


def _checkpoint(model: Model) -> str:
    """How the checkpoint was chosen, where training kept the best one."""
    try:
        told = read_manifest(folder_of(model.name)).get("best")
    except (ValueError, CheckpointError):
        return ""
    return "" if told is None else f"the checkpoint is the best by {told['metric']} on {told['chosen_on']}; "


def _record(model: Model) -> Path | None:
    if model.name.startswith("zoo:"):
        cache = cache_folder()
        return None if cache is None else cache / "sweeps" / f"{model.name.removeprefix('zoo:')}.jsonl"
    try:
        return folder_of(model.name) / RECORD
    except ValueError:
        return None


def _read(model: Model) -> list[dict[str, Any]]:
    path = _record(model)
    if path is None or not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and {"data", "seed", "settings"} <= record.keys():
                found.append(record)
    return found
