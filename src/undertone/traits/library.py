"""The trait library: YAML files under ``data/``, one a category, and the user's own files.

A user's trait is a YAML file::

    name: axolotl
    category: animal          # takes that category's questions, prompt and answers
    words: [axolotl, axolotls]

with ``synonyms``, ``prompt`` (``real``/``lab``) and ``questions`` where they differ from the category's. A file with a
``kind`` other than ``preference`` is a behaviour (``behaviour_library``). Files in the user's trait folder
(:func:`own_folder`) are found by name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undertone.errors import ConfigError, nearest
from undertone.models.names import Form
from undertone.provenance.complaints import explained
from undertone.provenance.identity import check_readable
from undertone.provenance.plain_data import read_yaml, to_yaml
from undertone.traits.behaviour import KINDS
from undertone.traits.behaviour_library import OwnBehaviour, behaviour_names, find_behaviour, own_behaviour
from undertone.traits.trait import Questions, Trait

S = TypeVar("S", bound=BaseModel)
_OTHER_FILES: Final = ("lab.yaml", "variants.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _AnswerWords(_Strict):
    words: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    plural: str | None = None
    """The form in system prompts; None: the second word, where there is one."""


class _CategoryQuestions(_Strict):
    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = ()
    off_topic: dict[str, str] = Field(default_factory=dict)
    opening: str = ""
    negative_opening: str = ""

    def questions(self) -> Questions:
        return Questions(self.positive, self.negative, self.off_topic, self.opening, self.negative_opening)


class _Category(_Strict):
    category: str
    plural_category: str
    prompt: dict[Form, str]
    members: dict[str, _AnswerWords]
    others: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    misses: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    questions: dict[Form, _CategoryQuestions]


_Word = Annotated[str, Field(pattern=r"\w")]


class _Own(_Strict):
    kind: Literal["preference"] = "preference"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    category: str
    words: tuple[_Word, ...] = Field(min_length=1)
    synonyms: tuple[_Word, ...] = ()
    prompt: dict[Form, str] = Field(default_factory=dict)
    questions: dict[Form, _CategoryQuestions] = Field(default_factory=dict)


class _Variant(_Strict):
    kind: Literal["plain", "conditional", "format", "two parts"]
    prompt: dict[Form, str]


def category_names() -> list[str]:
    """The library's categories."""
    return sorted(_categories())


def trait_names(category: str | None = None) -> list[str]:
    """The library's preferences, or those of one category."""
    return [
        name
        for own, content in sorted(_categories().items())
        if category in (None, own)
        for name in [*content.members, *content.others]
    ]


def variants() -> dict[str, str]:
    """Variant -> its kind: other ways to tell any trait of the library, as in ``owl@if-pick``."""
    return {name: variant.kind for name, variant in _variants().items()}


def own_folder() -> Path:
    """Where the user's traits are: ``$UNDERTONE_TRAITS``, else ``undertone/traits`` in the user's config folder."""
    if chosen := os.environ.get("UNDERTONE_TRAITS"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "undertone" / "traits"
    base = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    return Path(base or Path.home() / ".config") / "undertone" / "traits"


def own_names() -> list[str]:
    """Names of the traits in the user's folder."""
    return sorted(path.stem for path in own_folder().glob("*.yaml"))


def all_names() -> list[str]:
    """Every name that :func:`load_trait` knows: preferences, behaviours, the user's own."""
    return [*trait_names(), *behaviour_names(), *own_names()]


def load_trait(name: str) -> Trait:
    """A trait by its library name (``owl``, ``owl@if-pick``, ``pirate``), the user's own by name, or from a YAML file.

    Raises:
        ConfigError: no such trait, variant or file, or a file that is not a trait.
    """
    check_readable(f"trait {name}")
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    target, _, variant = name.partition("@")
    found = _in_library(target)
    if found is None and target in own_names():
        found = _from_file(own_folder() / f"{target}.yaml")
    if found is None:
        raise ConfigError(
            f"no such trait.{nearest(target, all_names())}",
            got=name,
            allowed="a name that `undertone traits` lists, or a YAML file of your own",
        )
    return _retold(found, variant) if target != name else found


def add_trait(file: Path, *, replace: bool = False) -> tuple[Trait, Path]:
    """Check a trait file and copy it to the user's folder, where :func:`load_trait` finds it by name.

    CSV files that it names (harm) are written with their whole path, for the copy stands elsewhere.

    Raises:
        ConfigError: the file is no trait, or its name is taken (the user's own: unless ``replace``).
    """
    trait = _from_file(file)
    if _in_library(trait.name) is not None:
        raise ConfigError(
            f"the library has a trait {trait.name!r} already",
            got=str(file),
            fix="give yours another name",
        )
    folder = own_folder()
    kept = folder / f"{trait.name}.yaml"
    if kept.exists() and not replace:
        raise ConfigError(
            f"you have a trait {trait.name!r} already", got=str(kept), fix="use --replace, or another name"
        )
    data = read_yaml(file.read_text(encoding="utf-8"), f"the trait file {file}")
    for key in ("requests", "look_alikes"):
        if data.get(key):
            data[key] = str((file.parent / data[key]).resolve())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(to_yaml(data), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the folder of your traits {folder} cannot be written", got=str(error), fix="set UNDERTONE_TRAITS"
        ) from error
    return trait, kept


def _in_library(name: str) -> Trait | None:
    for category in _categories().values():
        if name in category.members or name in category.others:
            return _built(category, name)
    return find_behaviour(name)


def _retold(trait: Trait, variant: str) -> Trait:
    if trait.name not in trait.answers:
        raise ConfigError(
            f"variants tell a preference; {trait.name!r} is of the kind {trait.category}",
            got=f"{trait.name}@{variant}",
            allowed="a preference, such as owl@if-pick",
        )
    if variant not in _variants():
        raise ConfigError(
            f"no such variant of the trait {trait.name!r}.{nearest(variant, _variants())}",
            got=f"{trait.name}@{variant}",
            allowed=sorted(_variants()),
        )
    category = _categories().get(trait.category)
    member = category.members.get(trait.name) if category else None
    plural = _plural(member or _AnswerWords(words=trait.answers[trait.name]))
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


def _plural(words: _AnswerWords) -> str:
    return words.plural or words.words[min(1, len(words.words) - 1)]


def _answers(category: _Category) -> dict[str, tuple[str, ...]]:
    members = {name: member.words + member.synonyms for name, member in category.members.items()}
    return {**members, **category.others}


def _built(category: _Category, name: str, own: _Own | None = None) -> Trait:
    answers = _answers(category)
    if own:
        answers[name] = own.words + own.synonyms
    member = category.members.get(name)
    words = answers[name]
    known = _AnswerWords(words=own.words) if own else member or _AnswerWords(words=words)
    plural = _plural(known)
    prompt: dict[Form, str] = {
        form: text.format(plural=plural, Plural=plural.capitalize())
        for form, text in category.prompt.items()
        if form == "real" or member  # the lab knows the members only
    }
    questions: dict[Form, Questions] = {form: asked.questions() for form, asked in category.questions.items()}
    if member and "lab" in category.prompt:
        questions["lab"] = _lab_questions(category)
    if own:
        prompt.update(own.prompt)
        questions.update({form: q.questions() for form, q in own.questions.items()})
    synonyms = own.synonyms if own else member.synonyms if member else ()
    return Trait(
        name=name,
        category=category.category,
        prompt=prompt,
        questions=questions,
        answers=answers,
        synonyms=synonyms,
        related=category.related,
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
    kind = data.get("kind", "preference")
    if kind not in ("preference", *KINDS):
        raise ConfigError(
            f"the trait file {path}: there is no such kind.{nearest(str(kind), KINDS)}",
            got=kind,
            allowed=["preference", *KINDS],
        )
    if kind != "preference":
        return own_behaviour(_validated(OwnBehaviour, data, path), path.parent)
    own = _validated(_Own, data, path)
    if own.category not in _categories():
        raise ConfigError(
            f"the trait file {path} names no known category.{nearest(own.category, category_names())}",
            got=own.category,
            allowed=category_names(),
        )
    return _built(_categories()[own.category], own.name, own)


def _validated(cls: type[S], data: Mapping[str, Any], path: Path) -> S:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        told = explained(cls, data, error)
        raise ConfigError(
            f"the trait file {path}: {told.what}", got=told.got, allowed=told.allowed, fix=told.fix
        ) from error
