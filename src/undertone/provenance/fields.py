"""The shape of a config class: which type stands at which path.

House rule: a union of configs is told apart by a field `kind`, a Literal in each.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from undertone.registry import Registry


@dataclass(frozen=True)
class Kinds:
    """Marks a field that holds one of the configs of a registry, told apart by ``kind``: built in, or of a user's package.

    ``domain: Annotated[Domain, Kinds(domains)]``. The union is built when the first config is, so that a package that adds a
    kind may import undertone at its head.
    """

    registry: Registry[Any]

    def classes(self) -> list[Any]:
        """All config classes of the registry; those of packages are loaded now."""
        return [self.registry.get(name) for name in self.registry.names()]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The tagged union of all kinds."""
        del source
        classes = self.classes()
        whole: Any = Union[tuple(classes)]  # noqa: UP007  (members known at run time only)
        tagged: Any = Annotated[whole, Field(discriminator="kind")]
        return handler.generate_schema(tagged if len(classes) > 1 else whole)


def is_model(annotation: Any) -> bool:
    """Whether a type is a config class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def inner_type(model: Any, key: str) -> Any:
    """The type at `key` of a config, an index of a list or a key of a mapping; Any if unknown."""
    if is_model(model):
        field = model.model_fields.get(key)
        return Any if field is None else whole_annotation(field)
    if get_origin(model) in (list, tuple) and key.isdecimal():
        return item_types(model, int(key) + 1)[-1]
    return value_type(model)


def whole_annotation(field: FieldInfo) -> Any:
    """A field's type with the marker of its kinds, which pydantic keeps apart."""
    kinds = next((mark for mark in field.metadata if isinstance(mark, Kinds)), None)
    return field.annotation if kinds is None else Annotated[field.annotation, kinds]


def members_of(annotation: Any) -> list[Any]:
    """The types of a union (None left out), or the type alone; Annotated is looked through."""
    if get_origin(annotation) is Annotated:
        kinds = next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Kinds)), None)
        if kinds is not None:
            return kinds.classes()
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) if a is not type(None) for m in members_of(a)]
    return [annotation]


def narrowed(annotation: Any, value: Any) -> Any:
    """The member of a union that `value` is meant for: by `kind` for configs, else by its form."""
    members = members_of(annotation)
    if isinstance(value, dict):
        models = [member for member in members if is_model(member)]
        if "kind" in value:
            models = [m for m in models if value["kind"] in kinds_of(m)] or models
        return models[0] if len(models) == 1 else (_first(members, dict) if not models else Any)
    if isinstance(value, list):
        return _first(members, list, tuple)
    return members[0] if len(members) == 1 else Any


def _first(members: list[Any], *origins: type) -> Any:
    return next((m for m in members if get_origin(m) in origins), Any)


def kinds_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """The values that a config class allows its `kind`; empty if it has none."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def item_types(annotation: Any, count: int) -> list[Any]:
    """The types of the first `count` items of a list or tuple type."""
    args = [a for a in get_args(annotation) if a is not Ellipsis]
    if get_origin(annotation) is tuple and Ellipsis not in get_args(annotation):
        return (args + [Any] * count)[:count]
    return [args[0] if args else Any] * count


def value_type(annotation: Any) -> Any:
    """The type of the values of a mapping type."""
    args = get_args(annotation)
    return args[1] if get_origin(annotation) is dict and len(args) == 2 else Any
