"""What pydantic found wrong, told by the path that the user would type, got, and allowed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from undertone.errors import ConfigError, UndertoneError, nearest
from undertone.provenance.fields import inner_type, is_model, kinds_of, members_of, narrowed, whole_annotation
from undertone.provenance.plain_data import read_yaml

_PLAINER = {
    "an object": "a mapping of fields to values",
    "a valid array": "a list",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid tuple": "a list",
}


def explained(cls: type[BaseModel], data: Any, error: ValidationError) -> ConfigError:
    """One ConfigError for everything that is wrong with `data` as a `cls`."""
    problems: dict[str, ConfigError] = {}
    found = error.errors()
    for details in found:
        inside = [other for other in found if other["loc"][:-1] == details["loc"]]
        if details["type"] == "too_short" and inside:
            continue  # pydantic does not count the items that are wrong in themselves
        problem = _problem(cls, data, details)
        before = problems.setdefault(problem.what, problem)
        if before is not problem:  # the branches of a union complain one by one
            allowed = f"{before.allowed} or {problem.allowed}"
            problems[problem.what] = ConfigError(problem.what, got=before.got, allowed=allowed)
    if len(problems) == 1:
        return next(iter(problems.values()))
    return ConfigError(f"{len(problems)} things are wrong with the config\n" + "\n".join(map(str, problems.values())))


def _problem(cls: type[BaseModel], data: Any, details: ErrorDetails) -> ConfigError:
    path, around, siblings = _typed_path(cls, data, details["loc"])
    name, kind = ".".join(path), details["type"]
    if kind == "extra_forbidden":
        return _unknown_field(cls, path, around, siblings)
    if kind == "missing":
        return ConfigError(f"{name}: this field is needed", got="nothing", fix=f"add {name}=…")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = details.get("ctx", {}).get("tag", "nothing")
        tags = [str(tag) for member in members_of(around) for tag in kinds_of(member)]
        return ConfigError(f"{name}.kind: there is no such kind.{nearest(str(tag), tags)}", got=tag, allowed=tags)
    return _wrong_value(name, details)


def _unknown_field(cls: type[BaseModel], path: list[str], around: Any, siblings: list[Any]) -> ConfigError:
    name, fields = ".".join(path), sorted(around.model_fields) if is_model(around) else []
    homes = [m for m in siblings if m is not around and path[-1] in m.model_fields]
    if homes:
        kinds = " or ".join(repr(kind) for home in homes for kind in kinds_of(home))
        guess = f" It belongs to kind {kinds}."
    else:
        guess = nearest(path[-1], fields) or _elsewhere(cls, path)
    return ConfigError(f"{name}: there is no such field.{guess}", got=path[-1], allowed=fields)


def _wrong_value(name: str, details: ErrorDetails) -> ConfigError:
    context: Mapping[str, Any] = details.get("ctx", {})
    raised = context.get("error")
    if isinstance(raised, UndertoneError):  # a validator that already speaks the house language
        what = f"{name}: {raised.what}" if name else raised.what
        return ConfigError(what, got=raised.got, allowed=raised.allowed, fix=raised.fix)
    if raised is not None and not name:  # a validator of the whole config
        return ConfigError(f"the config contradicts itself: {raised}")
    message = str(raised) if raised is not None else details["msg"]
    allowed, guess = message.removeprefix("Input should be "), ""
    if details["type"] == "too_short":
        allowed = f"at least {context['min_length']} of them"
    if details["type"] == "string_pattern_mismatch":
        allowed = f"a text that matches {context['pattern']}"
    if details["type"] in ("literal_error", "enum"):
        allowed = str(context["expected"])
        guess = nearest(str(details["input"]), re.findall(r"'([^']*)'", allowed))
    return ConfigError(
        f"{name}: not a valid value.{guess}",
        got=json.dumps(details["input"], ensure_ascii=False, default=str),
        allowed=_PLAINER.get(allowed, allowed),
        fix=_hint(details),
    )


def _hint(details: ErrorDetails) -> str | None:
    if details["type"] in ("list_type", "tuple_type") and isinstance(details["input"], str | int | float):
        return f"put it in brackets: [{details['input']}]"
    if details["type"] == "string_type" and not isinstance(details["input"], list | dict):
        return "put the value in quotes if it is meant as text"
    if isinstance(details["input"], str) and details["type"].endswith("_type"):
        return "remove the quotes if it is not meant as text" if _is_plain(details) else None
    return None


def _is_plain(details: ErrorDetails) -> bool:
    try:
        return not isinstance(read_yaml(details["input"], "the value"), str)
    except ConfigError:
        return False


def _typed_path(cls: type[BaseModel], data: Any, location: tuple[int | str, ...]) -> tuple[list[str], Any, list[Any]]:
    """Where an error is, without the labels that pydantic puts in for the branches of a union.

    Returns:
        The path as the user would type it; the config class that its last part belongs to, or for
        an error of a whole union that union; the configs that this class was chosen from.
    """
    path: list[str] = []
    here: Any = cls
    around, siblings, value = here, [], data
    for part in location:
        members = members_of(here)
        if len(members) > 1:
            here = _branch(members, part, value)
            around, siblings = here, [member for member in members if is_model(member)]
            continue
        if around is not here:
            around, siblings = members[0], []
        path.append(str(part))
        here = inner_type(members[0], str(part))
        value = _inside(value, part)
    return path, here if len(members_of(here)) > 1 else around, siblings


def _branch(members: list[Any], label: int | str, value: Any) -> Any:
    for member in members:
        if is_model(member) and (label in kinds_of(member) or label == member.__name__):
            return member
    return narrowed(Union[tuple(members)], value)  # noqa: UP007  (members known at run time only)


def _inside(value: Any, part: int | str) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _elsewhere(cls: type[BaseModel], path: list[str]) -> str:
    """A hint at a field of this name, or nearly, anywhere else in the config."""
    known = {name.rpartition(".")[2]: name for name in _paths(cls, ()) if name != ".".join(path)}
    close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.75)
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def _paths(model: type[BaseModel], above: tuple[type[BaseModel], ...]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for member in members_of(whole_annotation(field)):
            if is_model(member) and member not in above:
                yield from (f"{name}.{inner}" for inner in _paths(member, (*above, model)))
