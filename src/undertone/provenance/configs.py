"""Configs: frozen and strict; YAML and ``a.b=c`` overrides in, a digest out.

What a user writes is laid over the defaults: a preset or file first (``extends: preset`` puts that
preset underneath), then the overrides, mapping by mapping. Where the `kind` of a mapping changes
(``teacher.kind=vector`` over a prompted teacher), the mapping starts afresh: fields of the old kind
do not linger. Nothing is guessed: an unknown field, a number in quotes, a duplicate YAML key is a
ConfigError with the path the user would type, what was got, what is allowed.

House rule: unions of configs are discriminated by a field `kind`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from undertone.errors import ConfigError, nearest
from undertone.provenance.complaints import explained
from undertone.provenance.fields import inner_type, is_model, item_types, members_of, narrowed, value_type
from undertone.provenance.plain_data import canonical_json, plain, read_yaml, to_yaml
from undertone.provenance.renamed import current_key, current_value, refuse_both, types_at, with_current_names


class Config(BaseModel):
    """The base of all configs: unknown fields refused, values not coerced, nothing assignable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
    renamed: ClassVar[Mapping[str, str]] = {}
    """Old field -> its name of today: see ``provenance.renamed``."""
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Field -> its old values -> those of today."""

    def digest(self) -> str:
        """16 hex digits of the SHA-256 of this config's canonical JSON, defaults included."""
        text = canonical_json(self.model_dump(mode="json", round_trip=True))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Every field, defaults included; `load` of this text gives an equal config."""
        return to_yaml(self.model_dump(mode="json", round_trip=True))


C = TypeVar("C", bound=Config)
_NO_DEFAULT = object()


def load(
    cls: type[C],
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    presets: Mapping[str, Path] | None = None,
) -> C:
    """A validated config of class `cls`.

    Args:
        cls: the Config to build.
        source: the name of a preset, a YAML or JSON file, or a mapping.
        overrides: ``"a.b=value"`` or ``"a.0.b=value"``, values in YAML, the last one wins.
        presets: name -> YAML file, for `source` and for ``extends:``.

    Raises:
        ConfigError: anything is wrong, named by the path a user would type.
    """
    data = _sourced(source, presets or {}, (), cls)
    # Kinds and whole mappings first: what they reset must not undo a finer override before them.
    spelt: dict[tuple[str, ...], tuple[str, ...]] = {}
    for path, value in sorted(map(_parsed, overrides), key=_is_fine):
        current = _set(cls, data, path, value)
        if spelt.setdefault(current, path) != path:
            refuse_both(spelt[current], path, current)
    data = _filled(cls, data)
    try:
        return cls.model_validate_json(canonical_json(data))
    except ValidationError as error:
        raise explained(cls, data, error) from error


def kind_of(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), presets: Mapping[str, Path] | None = None
) -> Any:
    """The `kind` that `load` would meet at the top, to choose the class by; None where none is stated.

    Raises:
        ConfigError: the source cannot be found or read, or an override has no value.
    """
    kind = _sourced(source, presets or {}, ()).get("kind")
    for path, value in map(_parsed, overrides):
        kind = value if path == ("kind",) else kind
    return kind


# --- sources: presets, files, mappings -----------------------------------------------------------


def _sourced(
    source: str | Path | Mapping[str, Any], presets: Mapping[str, Path], seen: tuple[str, ...], cls: Any = Any
) -> dict[str, Any]:
    """The data of `source` under today's names, laid over what it extends."""
    if isinstance(source, Mapping):
        data, name = plain(source), "the config"
    else:
        path = _located(source, presets)
        data, name = _read(path), str(path)
    base = data.pop("extends", _NO_DEFAULT)
    data = dict(with_current_names([cls], plain(data)))
    if base is _NO_DEFAULT:
        return data
    if not isinstance(base, str) or base not in presets:
        raise ConfigError(
            f"{name}: extends names no preset.{nearest(str(base), presets)}",
            got=base,
            allowed=sorted(presets) or "nothing: no presets here",
        )
    if base in seen:
        raise ConfigError("presets extend each other in a circle", got=" → ".join((*seen, base)))
    return _merged(_sourced(base, presets, (*seen, base), cls), data)


def _located(source: str | Path, presets: Mapping[str, Path]) -> Path:
    if isinstance(source, str) and source in presets:
        return presets[source]
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, not a config",
            got=str(source),
            allowed="a preset name, a .yaml or .json file",
            fix=f"name the file: {path / 'config.yaml'}",
        )
    if path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        raise ConfigError(f"there is no config file {path}", got=str(source))
    raise ConfigError(
        f"no preset and no file is called {str(source)!r}.{nearest(str(source), presets)}",
        got=str(source),
        allowed=sorted(presets) or "a .yaml or .json file",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read", got=str(error), allowed="a UTF-8 file") from error
    data = read_yaml(text, str(path))  # JSON is YAML
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: not a config", got=data, allowed="a mapping of fields to values")
    return data


# --- laying one mapping over another --------------------------------------------------------------


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping; another `kind` replaces the whole mapping."""
    if "kind" in over and over["kind"] != under.get("kind", over["kind"]):
        return dict(over)
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _filled(annotation: Any, data: Any) -> Any:
    """`data` with every default written out, also inside what the user wrote only in part.

    Left to pydantic, ``train: {steps: 5}`` over ``train: Train = Train(lr=0.1)`` would silently
    take the learning rate of the class `Train` instead of the one that the default states.
    """
    inner = narrowed(annotation, data)
    if isinstance(data, list):
        items = item_types(inner, len(data))
        return [_filled(item, value) for item, value in zip(items, data, strict=True)]
    if not isinstance(data, dict):
        return data
    if not is_model(inner):
        return {key: _filled(value_type(inner), value) for key, value in data.items()}
    result = dict(data)
    for name, field in inner.model_fields.items():
        below = _default(inner, name)
        if name not in data:
            if below is not _NO_DEFAULT:
                result[name] = below
            continue
        value = data[name]
        if isinstance(value, dict) and isinstance(below, dict) and _holds_config(field):
            value = _merged(below, value)
        result[name] = _filled(field.annotation, value)
    return result


def _default(model: type[BaseModel], name: str) -> Any:
    """The default of a field as plain data, or `_NO_DEFAULT`."""
    field = model.model_fields.get(name)
    if field is None or field.is_required():
        return _NO_DEFAULT
    return to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))


def _holds_config(field: FieldInfo) -> bool:
    """Whether the default is a config, to be laid under what is written; a plain mapping is data,
    and what a user writes replaces it as a whole.
    """
    default = field.get_default(call_default_factory=True, validated_data={})
    return isinstance(default, BaseModel)


# --- overrides ------------------------------------------------------------------------------------

_Override = tuple[tuple[str, ...], Any]


def _parsed(override: str) -> _Override:
    name, equals, text = override.partition("=")
    parts = tuple(name.strip().split("."))
    if not equals or not all(parts):
        raise ConfigError(
            "an override has the form field=value",
            got=override,
            allowed="such as trait=panda or training.epochs=5 or seeds=[0,1]",
        )
    if not text.strip():
        raise ConfigError(
            f"{name}: the override gives no value",
            got=override,
            fix=f"write {name}=null for none, or {name}='\"\"' for an empty text",
        )
    return parts, read_yaml(text, f"the override {override!r}")


def _is_fine(override: _Override) -> bool:
    path, value = override
    return not (path[-1] == "kind" or isinstance(value, dict))


def _set(cls: type[Config], data: dict[str, Any], path: tuple[str, ...], value: Any) -> tuple[str, ...]:
    """Put `value` at `path`, growing from the defaults of `cls` what the data does not hold yet.

    Returns:
        The path under today's names.
    """
    here: Any = data
    annotation: Any = cls
    for depth in range(len(path)):
        inner = narrowed(annotation, here)
        models = [inner] if is_model(inner) else _any_kind(annotation)
        part = current_key(models, path[depth], path[:depth])
        path = (*path[:depth], part, *path[depth + 1 :])
        key = _key(here, part, ".".join(path[:depth]), path)
        if depth == len(path) - 1:
            value = current_value(models if part != "kind" else _any_kind(annotation), part, value, path)
            _put(here, key, with_current_names(types_at(models, part) or [inner_type(inner, part)], value, path))
            return path
        if isinstance(here, dict) and here.get(part) is None:
            below = _default(inner, part) if is_model(inner) else None
            here[part] = below if isinstance(below, dict | list) else {}
        annotation = inner_type(inner, part)
        here = here[key]
    return path


def _any_kind(annotation: Any) -> list[Any]:
    """All config classes of a union: a kind may change to that of another."""
    return [member for member in members_of(annotation) if is_model(member)]


def _put(here: Any, key: Any, value: Any) -> None:
    if key == "kind" and isinstance(here, dict):
        if here.get("kind", value) != value:
            here.clear()
        here["kind"] = value
        return
    below = here[key] if isinstance(here, list) else here.get(key)
    both = isinstance(value, dict) and isinstance(below, dict)
    here[key] = _merged(below, value) if both else value


def _key(here: Any, part: str, above: str, path: tuple[str, ...]) -> str | int:
    """`part` as a key of the mapping or an index of the list `here`, found at the path `above`."""
    if isinstance(here, dict):
        return part
    if not isinstance(here, list):
        raise ConfigError(
            f"{'.'.join(path)}: {above} is a single value, with no fields inside",
            got=f"{above} = {here!r}",
            fix=f"set {above} itself",
        )
    if not part.isdecimal() or int(part) >= len(here):
        raise ConfigError(
            f"{'.'.join(path)}: {above} is a list of {len(here)}, counted from 0",
            got=part,
            allowed=[str(i) for i in range(len(here))],
        )
    return int(part)
