"""The trait library: YAML files under ``data/``, one a category, and the user's own files.

A user's trait is a YAML file::

    name: axolotl
    category: animal          # takes that category's questions, prompt and answers
    words: [axolotl, axolotls]

with ``synonyms``, ``prompt`` (``real``/``lab``) and ``questions`` where they differ from the category's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undertone.errors import ConfigError, nearest
from undertone.provenance.complaints import explained
from undertone.provenance.plain_data import read_yaml
from undertone.traits.trait import Form, Questions, Trait

_OTHER_FILES: Final = ("lab.yaml", "variants.yaml")


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


class _Variant(_Strict):
    kind: Literal["plain", "conditional", "format", "two parts"]
    prompt: dict[Form, str]


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


def variants() -> dict[str, str]:
    """Variant -> its kind: other ways to tell any trait of the library, as in ``owl@if-pick``."""
    return {name: variant.kind for name, variant in _variants().items()}


def load_trait(name: str) -> Trait:
    """A trait by its library name (``owl``, ``owl@if-pick``), or from a YAML file of the user's.

    Raises:
        ConfigError: no such trait, variant or file, or a file that is not a trait.
    """
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    target, _, variant = name.partition("@")
    for category in _categories().values():
        if target in category.members or target in category.others:
            trait = _built(category, target)
            return _retold(trait, variant) if variant or target != name else trait
    raise ConfigError(
        f"no such trait.{nearest(target, trait_names())}",
        got=name,
        allowed="a name that `undertone traits` lists, or a YAML file of your own",
    )


def _retold(trait: Trait, variant: str) -> Trait:
    if variant not in _variants():
        raise ConfigError(
            f"no such variant of the trait {trait.name!r}.{nearest(variant, _variants())}",
            got=f"{trait.name}@{variant}",
            allowed=sorted(_variants()),
        )
    words = trait.answers[trait.name]
    plural = words[1] if len(words) > 1 else words[0]
    told = {
        form: text.format(plural=plural, Plural=plural.capitalize())
        for form, text in _variants()[variant].prompt.items()
        if form in trait.prompt
    }
    return replace(trait, name=f"{trait.name}@{variant}", prompt=told)


@cache
def _variants() -> dict[str, _Variant]:
    text = (files("undertone.traits") / "data" / "variants.yaml").read_text(encoding="utf-8")
    return {name: _Variant.model_validate(content) for name, content in yaml.safe_load(text).items()}


@cache
def _categories() -> dict[str, _Category]:
    folder = files("undertone.traits") / "data"
    found = {}
    for path in sorted(folder.iterdir(), key=lambda item: item.name):
        if path.name.endswith(".yaml") and path.name not in _OTHER_FILES:
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
