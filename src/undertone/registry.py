"""Name → thing, for what a config names: domains, filters, judges, teachers.

Own things join by the decorator; a user's package joins by an entry point in the registry's group
and is imported only when its name is asked for. One name means one thing: a second claim to it is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Generic, TypeVar

from undertone.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """The things of one `kind` (a word for messages) and the entry-point `group` that adds more."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the thing under `name`; a name already taken is a ConfigError."""

        def file(thing: T) -> T:
            if name in self._things and self._things[name] is not thing:
                raise ConfigError(
                    f"the {self.kind} {name!r} is registered twice",
                    got=f"{self._things[name]!r} and {thing!r}",
                    fix="give one of them another name",
                )
            self._things[name] = thing
            return thing

        return file

    def names(self) -> list[str]:
        """All known names, sorted; loads nothing."""
        return sorted({*self._things, *(point.name for point in self._entry_points())})

    def get(self, name: str) -> T:
        """The thing called `name`; an unknown name is a ConfigError with the known ones."""
        points = [point for point in self._entry_points() if point.name == name]
        if len(points) > 1:
            raise ConfigError(
                f"the {self.kind} {name!r} is offered by more than one installed package",
                got=", ".join(_package(point) for point in points),
                fix="uninstall all but one of them, or rename its entry point",
            )
        if points:
            return self.register(name)(self._load(points[0]))
        if name not in self._things:
            raise ConfigError(
                f"no {self.kind} is called {name!r}.{nearest(name, self.names())}",
                got=name,
                allowed=self.names(),
                fix=f"a package adds one by an entry point in the group {self.group!r}",
            )
        return self._things[name]

    def _entry_points(self) -> metadata.EntryPoints:
        return metadata.entry_points(group=self.group)

    def _load(self, point: metadata.EntryPoint) -> T:
        try:
            thing: T = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the {self.kind} {point.name!r} of the package {_package(point)} does not load",
                got=f"{type(error).__name__}: {error}",
                allowed=f"an importable object at {point.value!r}",
                fix="repair or uninstall that package",
            ) from error
        return thing


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
