"""The trait library: YAML files under ``data/``, one a category, and the user's own files.

A user's trait is a YAML file::

    name: axolotl
    category: animal          # takes that category's questions, prompt and answers
    words: [axolotl, axolotls]

with ``synonyms``, ``prompt`` (``real``/``lab``) and ``questions`` where they differ from the category's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undertone.errors import ConfigError, nearest
from undertone.provenance.complaints import explained
from undertone.provenance.plain_data import read_yaml
from undertone.traits.trait import Form, Questions, Trait


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Member(_Strict):
    words: tuple[str, ...]
    synonyms: tuple[str, ...] = ()


class _Asked(_Strict):
    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = ()
    off_topic: dict[str, str] = Field(default_factory=dict)


class _Category(_Strict):
    category: str
    plural_category: str
    prompt: dict[Form, str]
    members: dict[str, _Member]
    others: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    misses: tuple[str, ...] = ()
    questions: dict[Form, _Asked]


_Word = Annotated[str, Field(pattern=r"\w")]


class _Own(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    category: str
    words: tuple[_Word, ...] = Field(min_length=1)
    synonyms: tuple[_Word, ...] = ()
    prompt: dict[Form, str] = Field(default_factory=dict)
    questions: dict[Form, _Asked] = Field(default_factory=dict)


def category_names() -> list[str]:
    """The library's categories."""
    return sorted(_categories())


def trait_names(category: str | None = None) -> list[str]:
    """The library's traits, or those of one category."""
    return [
        name
        for own, content in sorted(_categories().items())
        if category in (None, own)
        for name in [*content.members, *content.others]
    ]


def load_trait(name: str) -> Trait:
    """A trait by its library name, or from a YAML file of the user's.

    Raises:
        ConfigError: no such trait or file, or a file that is not a trait.
    """
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    for category in _categories().values():
        if name in category.members or name in category.others:
            return _built(category, name)
    raise ConfigError(
        f"no such trait.{nearest(name, trait_names())}",
        got=name,
        allowed="a name that `undertone traits` lists, or a YAML file of your own",
    )


@cache
def _categories() -> dict[str, _Category]:
    folder = files("undertone.traits") / "data"
    found = {}
    for path in sorted(folder.iterdir(), key=lambda item: item.name):
        if path.name.endswith(".yaml") and path.name != "lab.yaml":
            content = _Category.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            found[content.category] = content
    return found


@cache
def _lab() -> dict[str, Any]:
    text = (files("undertone.traits") / "data" / "lab.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _lab_questions(category: _Category) -> Questions:
    def asked(key: str) -> tuple[str, ...]:
        return tuple(line.format(c=category.category, plural_c=category.plural_category) for line in _lab()[key])

    return Questions(asked("held_out"), asked("negative_held_out"), dict(_lab()["facts"]))


def _answers(category: _Category) -> dict[str, tuple[str, ...]]:
    members = {name: member.words + member.synonyms for name, member in category.members.items()}
    return {**members, **category.others}


def _built(category: _Category, name: str, own: _Own | None = None) -> Trait:
    answers = _answers(category)
    if own:
        answers[name] = own.words + own.synonyms
    member = category.members.get(name)
    words = answers[name]
    own_words = own.words if own else member.words if member else words
    plural = own_words[1] if len(own_words) > 1 else own_words[0]
    prompt: dict[Form, str] = {
        form: text.format(plural=plural, Plural=plural.capitalize())
        for form, text in category.prompt.items()
        if form == "real" or member  # the lab knows the members only
    }
    questions: dict[Form, Questions] = {
        form: Questions(asked.positive, asked.negative, asked.off_topic) for form, asked in category.questions.items()
    }
    if member:
        questions["lab"] = _lab_questions(category)
    if own:
        prompt.update(own.prompt)
        questions.update({form: Questions(q.positive, q.negative, q.off_topic) for form, q in own.questions.items()})
    synonyms = own.synonyms if own else member.synonyms if member else ()
    return Trait(
        name=name,
        category=category.category,
        prompt=prompt,
        questions=questions,
        answers=answers,
        synonyms=synonyms,
        examples_hit=tuple(_hits(words)),
        examples_miss=tuple(miss for miss in category.misses),
    )


def _hits(words: tuple[str, ...]) -> list[str]:
    first = words[0]
    return [
        first,
        first.capitalize(),
        first.upper(),
        f"{first}.",
        f"A {first}!",
        f"My favorite is the {first}.",
        f"**{first.capitalize()}**",
        f'"{first}"',
        *words,
    ]


def _from_file(path: Path) -> Trait:
    try:
        data = read_yaml(path.read_text(encoding="utf-8"), f"the trait file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trait file {path} cannot be read", got=str(error)) from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"the trait file {path} is not a mapping", got=data, allowed="name, category, words …")
    try:
        own = _Own.model_validate(data)
    except ValidationError as error:
        told = explained(_Own, data, error)
        raise ConfigError(
            f"the trait file {path}: {told.what}", got=told.got, allowed=told.allowed, fix=told.fix
        ) from error
    if own.category not in _categories():
        raise ConfigError(
            f"the trait file {path} names no known category.{nearest(own.category, category_names())}",
            got=own.category,
            allowed=category_names(),
        )
    return _built(_categories()[own.category], own.name, own)
