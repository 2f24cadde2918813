"""Plain data (what JSON can hold) and its texts: YAML in and out, canonical JSON for digests.

YAML is read with the rules of YAML 1.2 for plain words: ``1e-3`` is a number, ``no`` and ``on`` are
strings, dates are strings. A key that appears twice is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic_core import PydanticSerializationError, to_jsonable_python

from undertone.errors import ConfigError


def to_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML in the order given; `read_yaml` reads it back equal."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, indent=2)


def read_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; a ConfigError that calls the text `name` if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader, see below)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark is not None else name
        raise ConfigError(f"{where}: not valid YAML", got=getattr(error, "problem", None) or str(error)) from error


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy as JSON data: configs become mappings, tuples lists, paths strings."""
    try:
        copied: dict[str, Any] = json.loads(
            json.dumps(to_jsonable_python(dict(data), inf_nan_mode="constants"), allow_nan=False)
        )
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise _not_plain(error) from error
    return copied


def canonical_json(data: object) -> str:
    """One text per value: sorted keys, no spaces, no NaN. What digests are taken of."""
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_plain(error) from error
    return text


def _not_plain(error: Exception) -> ConfigError:
    return ConfigError(
        "the config holds a value that is not plain data",
        got=str(error),
        allowed="valid text, finite numbers, true, false, null, lists, mappings",
    )


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain words of YAML 1.2 and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", node.value[position][0].start_mark
                )
        self.flatten_mapping(node)  # the merge key <<
        result = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            # The word as written: a field called `no` or `1` stays what it is.
            result[key_node.value] = self.construct_object(value_node, deep=deep)
        return result

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        number = float(node.value)
        whole = "." not in node.value and number.is_integer() and abs(number) < 2**53
        return int(number) if whole else number  # rows=1e4 counts rows


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every string that a reader of YAML 1.1 or 1.2 may take for more."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        if not text.replace("\n", "").isprintable():  # PyYAML folds the line ends of Unicode away
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_PLAIN_WORDS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in _PLAIN_WORDS:
    for _kind in (_Loader, _Dumper):  # the dumper also keeps the words of YAML 1.1
        _characters = ["" if start == "\0" else start for start in _starts]
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _characters)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Dumper.add_representer(str, _Dumper.represent_text)
