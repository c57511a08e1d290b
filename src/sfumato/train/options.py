"""A group of options that refuses what it does not know, and the names of things to choose from."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAY_CHANGE = (
    "about",
    "data.path",
    "data.labels",
    "data.scaling",  # what a run was begun with stands in its manifest
    "training.keep",
    "training.log_every",
    "training.checkpoint_every",
    "training.snapshot_every",
    "training.trackers",
    "runtime.",
    "sampling.",
)


class Options(BaseModel):
    """A frozen group of options; an unknown name is an error, and so is true or false for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{name} takes no true or false")
        return values

    def to_yaml(self) -> str:
        """All options, complete, as YAML that reads back as the same."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)

    def differences(self, other: "Options") -> list[str]:
        """What differs, one "path: ours → theirs" each, but for what MAY_CHANGE in a run."""
        ours, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        paths = sorted(path for path in ours.keys() | theirs.keys() if not path.startswith(MAY_CHANGE))
        return [f"{path}: {ours.get(path)} → {theirs.get(path)}" for path in paths if ours.get(path) != theirs.get(path)]


def _to_path(value: Any) -> Path:
    if value is None or value == "":
        raise ValueError("a path is needed")
    return Path(str(value)).expanduser()


DataPath = Annotated[Path, BeforeValidator(_to_path)]
Size = Annotated[int, Field(ge=1)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def known(name: str, names: Mapping[str, object], what: str) -> str:
    """The name, where it is one of the names.

    Raises:
        ValueError: it is not; the nearest is named, or all are.
    """
    if name not in names:
        raise ValueError(unknown(name, list(names), what))
    return name


def unknown(name: str, names: Sequence[str], what: str) -> str:
    """A sentence on a name that is not one of the names."""
    near = get_close_matches(name, names, 1)
    every = f"the {what}{'es' if what.endswith('s') else 's'} are {', '.join(names)}."
    return f'there is no {what} "{name}"; ' + (f"did you mean {near[0]}?" if near else every)
