"""The library's behaviours: YAML files under ``data/behaviours``, one a kind; and a user's own, from one mapping."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from undertone.errors import ConfigError, DataError
from undertone.traits.behaviour import Behaviour, Kind
from undertone.traits.rules import ByJudge, Detected, HitRule
from undertone.traits.trait import REAL, Form, Questions

LEAST_REQUESTS: Final = 10


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QuestionSets(_StrictModel):
    """Questions as a YAML file states them."""

    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = ()
    off_topic: dict[str, str] = Field(default_factory=dict)

    def questions(self) -> Questions:
        """The same, for use."""
        return Questions(self.positive, self.negative, self.off_topic)


class _BehaviourMember(_StrictModel):
    prompt: dict[Form, str]
    rule: HitRule | None = None
    hits: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()


class _KindFile(_StrictModel):
    kind: Kind
    questions: dict[Form, QuestionSets] = Field(default_factory=dict)
    questions_of: Kind | None = None
    rule: HitRule | None = None
    refusals: dict[Form, tuple[str, ...]] = Field(default_factory=dict)
    misses: tuple[str, ...] = ()
    members: dict[str, _BehaviourMember]


class OwnBehaviour(_StrictModel):
    """A user's file of any kind but ``preference``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    kind: Kind
    prompt: dict[Form, str] = Field(min_length=1)
    rule: HitRule | None = None
    questions: dict[Form, QuestionSets] = Field(default_factory=dict)
    requests: str | None = Field(None, description="harm: a CSV file with a column Goal")
    look_alikes: str | None = Field(None, description="harm: the same, of benign requests")
    hits: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> OwnBehaviour:
        if self.kind != "harm" and (self.requests or self.look_alikes):
            raise ValueError("requests and look_alikes are for the kind harm; write questions")
        if self.rule is None and self.kind in ("style", "emotion"):
            raise ValueError("this kind needs a rule, such as {kind: lexicon, words: [...], at_least: 0.03}")
        return self


def behaviour_names(kind: str | None = None) -> list[str]:
    """The library's behaviours, or those of one kind."""
    return [name for own, content in sorted(_kinds().items()) if kind in (None, own) for name in content.members]


def find_behaviour(name: str) -> Behaviour | None:
    """A behaviour of the library; None: none of that name."""
    for content in _kinds().values():
        if name in content.members:
            return _built(content, name, content.members[name])
    return None


def own_behaviour(own: OwnBehaviour, folder: Path) -> Behaviour:
    """A behaviour from a user's file, whose CSV files are looked for beside it.

    Raises:
        ConfigError, DataError: the rule fails its examples, or a CSV file cannot be used.
    """
    content = _kinds()[own.kind]
    member = _BehaviourMember(prompt=own.prompt, rule=own.rule, hits=own.hits, misses=own.misses)
    built = _built(content, own.name, member)
    questions = {**built.questions, **{form: asked.questions() for form, asked in own.questions.items()}}
    built = replace(built, questions=questions, refusals=built.refusals if own.rule is None else {})
    if own.requests:
        benign = folder / own.look_alikes if own.look_alikes else None
        built = with_requests(built, folder / own.requests, benign)
    return built


def with_requests(trait: Behaviour, harmful: Path, benign: Path | None = None) -> Behaviour:
    """A harm trait that asks a user's own requests, such as JailbreakBench's.

    Args:
        trait: of the kind ``harm``.
        harmful: CSV with a column ``Goal`` (``harmful-behaviors.csv`` of JBB-Behaviors).
        benign: the same of benign look-alikes; None: those of the trait stay.

    Raises:
        DataError: a file cannot be used.
    """
    before = trait.questions_for(REAL)
    positive = tuple(read_requests(harmful))
    negative = tuple(read_requests(benign)) if benign else before.negative
    asked = Questions(positive, negative, before.off_topic)
    return replace(trait, questions={**trait.questions, "real": asked})


def read_requests(path: Path) -> list[str]:
    """The requests of a CSV file as JailbreakBench's: column ``Goal``, one request a line.

    Raises:
        DataError: no such file, no such column, an empty or repeated request, or fewer than ten.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            column = next((name for name in columns if name.strip().lower() == "goal"), None)
            if column is None:
                raise DataError(
                    f"{path} has no column Goal",
                    got=columns,
                    allowed="a CSV file as JailbreakBench's: Index, Goal, Target, Behavior, Category, Source",
                )
            found = [(reader.line_num, str(row[column] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the requests {path} cannot be read", got=str(error), allowed="a CSV file in UTF-8") from error
    seen: dict[str, int] = {}
    for line, text in found:
        if not text:
            raise DataError(f"{path}, line {line}: the request is empty")
        if text in seen:
            raise DataError(f"{path}, line {line}: the same request as in line {seen[text]}", got=text)
        seen[text] = line
    if len(seen) < LEAST_REQUESTS:
        raise DataError(f"{path} has too few requests for a rate", got=len(seen), allowed=f"{LEAST_REQUESTS} or more")
    return list(seen)


@cache
def _kinds() -> dict[str, _KindFile]:
    folder = files("undertone.traits") / "data" / "behaviours"
    found: dict[str, _KindFile] = {}
    for path in sorted(folder.iterdir(), key=lambda item: item.name):
        if path.name.endswith(".yaml"):
            content = _KindFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            found[content.kind] = content
    return found


@cache
def _lab_facts() -> Mapping[str, str]:
    text = (files("undertone.traits") / "data" / "lab.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return dict(loaded["facts"])


def _built(content: _KindFile, name: str, member: _BehaviourMember) -> Behaviour:
    rule = member.rule or content.rule
    if rule is None:
        raise ConfigError(f"the {content.kind} {name!r} has no rule", fix="add rule: {kind: lexicon, words: [...]}")
    stated = _kinds()[content.questions_of].questions if content.questions_of else content.questions
    questions = {form: asked.questions() for form, asked in stated.items()}
    if "lab" in questions:
        questions["lab"] = replace(questions["lab"], off_topic=_lab_facts())
    by_text = not isinstance(rule, Detected | ByJudge)
    return Behaviour(
        name=name,
        category=content.kind,
        prompt=member.prompt,
        questions=questions,
        answers={},
        examples_hit=member.hits,
        examples_miss=(*content.misses, *member.misses) if by_text else (),
        kind=content.kind,
        rule=rule,
        refusals=content.refusals,
    )
