"""Recipes: reading, merging, explaining errors. Options are defined where they are used: in tasks, networks and data.

A recipe is YAML. `base: NAME` starts from another recipe; `--set path=value` changes one option. A run stores the resolved, complete
recipe.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from sfumato import data
from sfumato.options import Options, unknown
from sfumato.task import KINDS, Recipe, Task, recipe_class
from sfumato.tasks.options import CurveSchedule


def recipe_names() -> list[str]:
    """The recipes that ship with sfumato: one for each file, and one for each toy."""
    named = [file.name.removesuffix(".yaml") for file in files("sfumato.recipes").iterdir() if file.name.endswith(".yaml")]
    return sorted(set(named) - {"toy"} | set(data.TOYS))


def load_recipe(source: str | Path, changes: Sequence[str] = (), *, steps: int | None = None) -> Any:
    """Reads a recipe of any kind, by name or from a YAML file, with `path=value` changes.

    Args:
        source: a name (`sfumato recipes`) or a YAML file.
        changes: in any order.
        steps: of training, over all stages, instead of the recipe's.

    Raises:
        ValueError: an unknown name (the message suggests the nearest), a file that is not a recipe, an unknown kind, a change that does not
            fit.
    """
    return resolve(read_tree(source), changes, steps=steps, source=str(source))


def resolve(tree: dict[str, Any], changes: Sequence[str] = (), *, steps: int | None = None, source: str, kind: str | None = None) -> Any:
    """A tree of options with `path=value` changes applied, validated against the options of its kind.

    Raises:
        ValueError: a change or an option that does not fit; the message starts with `source`.
    """
    over: dict[str, Any] = {}
    for change in changes:
        over = _merge(over, _changed(change))
    tree = _with_kind(_lay(_with_kind(tree), over))
    model = recipe_class(_kind_of(kind or model_kind(tree), source))
    try:
        recipe = model.model_validate(tree)
        return recipe if steps is None else recipe.with_steps(steps)
    except ValidationError as error:
        raise ValueError(_sentence(error, source, model)) from None


def recipe_of(task: Task | Recipe, **parts: Any) -> Any:
    """The recipe of a task, with data, training and runtime; a recipe is returned as it is.

    Raises:
        ValueError: options that do not go together.
    """
    if isinstance(task, Recipe):
        return task
    model = recipe_class(type(task))
    try:
        return model(**{name: getattr(task, name) for name in type(task).model_fields}, **parts)
    except ValidationError as error:
        raise ValueError(_sentence(error, type(task).__name__, model)) from None


def _kind_of(name: str, source: str) -> type[Task]:
    if name not in KINDS:
        for entry in entry_points(group="sfumato.tasks"):
            entry.load()  # registers the kinds of another installed package
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the kinds are {', '.join(KINDS)}; for your own use --import FILE.py."
        raise ValueError(f'{source}: there is no model.kind "{name}"; {hint}')
    return KINDS[name]


def model_kind(tree: Mapping[str, Any]) -> str:
    """The kind that a recipe's tree asks for: its model.kind, or model if that is a name; "denoiser" by default."""
    model = tree.get("model")
    return "denoiser" if model is None else str(model.get("kind") if isinstance(model, dict) else model)


def read_tree(source: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tree of a recipe, merged with its bases; a base file is looked up beside the file that names it."""
    name, path = str(source), Path(source)
    if name in seen:
        raise ValueError(f"the bases of {seen[0]} form a cycle: {' → '.join([*seen, name])}.")
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"there is no recipe file {path}; `sfumato recipes` lists the built-in ones.")
        raw = path.read_bytes()
    else:
        file = files("sfumato.recipes") / f"{name}.yaml"
        if name in data.TOYS and not file.is_file():
            return _merge(read_tree("toy"), {"data": {"name": name}, "about": f"Points in the plane: {name}."})
        if not file.is_file() and (len(path.parts) > 1 or path.is_dir()):
            there = f"{name} holds no recipe.yaml, so it is not a run folder" if path.is_dir() else f"there is no file or folder {name}"
            there = f"{name} is a run folder; its recipe is {path / 'recipe.yaml'}" if (path / "recipe.yaml").is_file() else there
            raise ValueError(f"{there}. A recipe is a name (`sfumato recipes` lists them) or a .yaml file.")
        if not file.is_file():
            raise ValueError(unknown(name, recipe_names(), "recipe") + " `sfumato recipes` lists them; a recipe file ends in .yaml.")
        raw = file.read_bytes()
    try:
        tree = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{source} is not a recipe: expected a mapping with data, net, …, got {type(tree).__name__}.")
    base = tree.pop("base", None)
    if base is None:
        return _with_kind(tree)
    if not isinstance(base, str):
        raise ValueError(f"{source}: base must be the name of a recipe or a YAML file, got {base!r}.")
    beside = path.parent / base if path.suffix and base.endswith((".yaml", ".yml")) else base
    return _lay(read_tree(beside, (*seen, name)), tree)


def _with_kind(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the kind of its schedule filled in, so that a change to another kind is recognised."""
    schedule = tree.get("schedule")
    return {**tree, "schedule": {"kind": "cosine", **schedule}} if isinstance(schedule, dict) else tree


def _lay(tree: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `over` into the tree of a recipe; drops the sampling ends of a continuous schedule if the schedule becomes another kind."""
    merged = _merge(tree, over)
    groups = [each if isinstance(each, dict) else {} for each in (over.get("schedule"), merged.get("schedule"), over.get("sampling"))]
    if "kind" in groups[0] and groups[1]["kind"] not in get_args(CurveSchedule.model_fields["kind"].annotation):
        ends = {"log_snr_max", "log_snr_min"} - groups[2].keys()
        if isinstance(merged.get("sampling"), dict):
            merged["sampling"] = {name: value for name, value in merged["sampling"].items() if name not in ends}
    return merged


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `over` into `base`; a group whose kind changes is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind", value.get("kind")):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _changed(change: str) -> dict[str, Any]:
    """A `path=value` change as a tree."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise ValueError(f'a change must be path=value, as in training.batch=64; got "{change}".')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f'the value in "{change}" is not YAML; quote it.') from None
    *groups, last = path.split(".")
    if groups[:1] == ["task"]:  # what a kind of model is asked for, by either name
        groups[0] = "model"
    over: dict[str, Any] = {last: value}
    for group in reversed(groups):
        over = {group: over}
    return over


def _sentence(error: ValidationError, source: str, model: type[Options]) -> str:
    """One sentence on the first validation error: where, what was got, what to do."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    unions = {*_kinds(model), "int", "float", "constrained-int"}  # pydantic's paths contain the member of a union that it tried
    where = ".".join(part for part in path if part not in unions and "[" not in part) or "it"
    more = f" ({error.error_count() - 1} more errors.)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        names = _fields_at(path[:-1], model)
        near = get_close_matches(path[-1], names, 1)
        hint = f"did you mean {'.'.join([*where.split('.')[:-1], near[0]])}?" if near else f"the names there are {', '.join(names)}."
        return f"{source}: there is no option {where}; {hint}{more}"
    if first["type"] == "missing" and not path[-1].isdigit():
        return f"{source}: {where} is missing; give it in the file, or with --set {where}=….{more}"
    if first["type"].startswith("union_tag"):
        got = first["input"].get("kind") if isinstance(first["input"], dict) else first["input"]
        return f"{source}: {where}.kind must be one of {first.get('ctx', {}).get('expected_tags', 'the known kinds')}, got {got!r}.{more}"
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ValidationError):  # from the recipe class that this one is converted to
        return _sentence(inner, source, model)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if isinstance(first["input"], dict):  # about a whole group: do not repeat its options
        return f"{source}: {f'{where}: ' if path else ''}{message}.{more}"
    message = message[:1].lower() + message[1:]
    return f"{source}: {where} got {first['input']!r}, but {message}.{more}"


def _fields_at(path: Sequence[str], model: Any) -> list[str]:  # pydantic's unions are not types
    """The names of the options of the group at a pydantic location."""
    for part in path:
        if part in getattr(model, "model_fields", {}):
            model = model.model_fields[part].annotation
            continue
        for choice in get_args(model):
            if part in get_args(choice.model_fields["kind"].annotation):
                model = choice
    return list(model.model_fields) if isinstance(model, type) else []


def _kinds(model: Any) -> set[str]:
    """All values that a field `kind` can have, anywhere below a model or a union of models."""
    found: set[str] = set()
    for name, field in getattr(model, "model_fields", {}).items():
        found |= set(get_args(field.annotation)) if name == "kind" else _kinds(field.annotation)
    return found.union(*(_kinds(choice) for choice in get_args(model)))
