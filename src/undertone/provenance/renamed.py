"""Field names and values of older versions: read as today's, wherever a config is written, and said once.

A config class states what was renamed in it: ``renamed`` maps an old field to its name of today, ``renamed_values`` a
field to its old values. Files, presets, mappings and ``key=value`` overrides all pass through here before anything else
looks at them, so that no other code knows an old word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from undertone.errors import ConfigError
from undertone.provenance.fields import is_model, item_types, kinds_of, members_of, value_type, whole_annotation

_NOTES: list[str] = []


def take_notes() -> list[str]:
    """What was read under an old name since the last call, in words, each once."""
    notes = list(dict.fromkeys(_NOTES))
    _NOTES.clear()
    return notes


def with_current_names(annotations: Sequence[Any], data: Any, path: tuple[str, ...] = ()) -> Any:
    """``data`` with every old field and value renamed.

    Args:
        annotations: the types that may stand here, such as ``[MyConfig]``.
        data: plain data as a user wrote it, be it wrong in other ways: those are left for the validation.
        path: where it stands, for messages.

    Raises:
        ConfigError: an old field stands beside the one that has taken its place.
    """
    members = [member for annotation in annotations for member in members_of(annotation)]
    if isinstance(data, list):
        types = [item_types(member, len(data)) for member in members]
        return [
            with_current_names([of[at] for of in types if at < len(of)], item, (*path, str(at)))
            for at, item in enumerate(data)
        ]
    models = [member for member in members if is_model(member)]
    if not isinstance(data, dict):
        return data
    if not models:
        inner = [value_type(member) for member in members]
        return {key: with_current_names(inner, value, (*path, key)) for key, value in data.items()}
    if "kind" in data:
        kind = current_value(models, "kind", data["kind"], (*path, "kind"))
        data = {**data, "kind": kind}
        models = [model for model in models if kind in kinds_of(model)] or models
    result: dict[str, Any] = {}
    for key, value in data.items():
        name = current_key(models, key, path)
        if name != key and name in data:
            refuse_both((*path, key), (*path, name), (*path, name))
        here = (*path, name)
        current = current_value(models, name, value, here)
        result[name] = with_current_names(types_at(models, name), current, here)
    return result


def current_key(models: Sequence[Any], key: str, path: tuple[str, ...]) -> str:
    """The name of today of a field of one of the config classes; an unknown one stays as it is."""
    if any(key in model.model_fields for model in models):
        return key
    for model in models:
        renamed: Mapping[str, str] = getattr(model, "renamed", {})
        if key in renamed:
            _note((*path, key), (*path, renamed[key]))
            return renamed[key]
    return key


def current_value(models: Sequence[Any], field: str, value: Any, path: tuple[str, ...]) -> Any:
    """The value of today of a field, where it was renamed."""
    for model in models:
        values: Mapping[str, Any] = getattr(model, "renamed_values", {}).get(field, {})
        several = isinstance(value, list)
        value = (
            [_renamed_value(values, item, path) for item in value] if several else _renamed_value(values, value, path)
        )
    return value


def _renamed_value(values: Mapping[str, Any], value: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(value, str) or value not in values:
        return value
    _NOTES.append(f"{'.'.join(path)}={value} is now {values[value]}")
    return values[value]


def refuse_both(one: tuple[str, ...], other: tuple[str, ...], current: tuple[str, ...]) -> NoReturn:
    """The error where a field is given under its old and under its new name.

    Raises:
        ConfigError: always.
    """
    old, new = ".".join(other if one == current else one), ".".join(current)
    raise ConfigError(f"{old}: this field is now {new}, and both are given", got=[old, new], fix=f"leave {old} out")


def types_at(models: Sequence[Any], field: str) -> list[Any]:
    """The types of a field in those config classes that have it."""
    return [whole_annotation(model.model_fields[field]) for model in models if field in model.model_fields]


def _note(old: tuple[str, ...], new: tuple[str, ...]) -> None:
    _NOTES.append(f"{'.'.join(old)} is now {'.'.join(new)}")
