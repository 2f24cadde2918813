"""Asks a model about any trait: a preference as in ``asking``, a behaviour by its rule or a judge on sampled answers.

A behaviour has no answer set. Its rate is the share of sampled answers that hit; its probability repeats the rate and
says so (``exact`` is false), but where every answer that is no hit begins in one of a few known ways (the lab's
refusals): there it is 1 minus the exact probability of those beginnings. An answer that is neither a refusal nor what
was asked for then counts in the probability and not in the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from undertone.errors import ConfigError
from undertone.evaluation.asking import (
    Evaluation,
    beginnings,
    interval,
)
from undertone.evaluation.measures import SetMeasure
from undertone.judges import (
    Endpoint,
    Judge,
    JudgedPair,
    Local,
    Named,
    Rules,
    build_judge,
    check_judge,
    rules_for,
    template,
    with_template,
)
from undertone.models.loading import Model
from undertone.models.scoring import answer_logprobs
from undertone.traits import Behaviour, Speaker, Trait
from undertone.traits.rules import ByJudge, Detected, HitRule, Length, says_something

AnyJudge = Rules | Local | Endpoint | Named


@dataclass(frozen=True)
class Decided:
    """One answer: whether it hits, whether it answers at all, whether the judge failed on it."""

    hit: bool
    answered: bool = True
    failed: bool = False


class JudgedAnswers:
    """How a behaviour is measured: hits of its rule or a judge on sampled answers; exact where all others are known."""

    def __init__(self, trait: Behaviour, speaker: Speaker, evaluation: Evaluation, judge: AnyJudge | None) -> None:
        _check_measurable(trait, evaluation, judge, speaker)
        self.trait = trait
        self.names = [trait.name]
        self.target = 0
        self.off_topic = trait.by_text
        """A judge of refusals has nothing to say of questions that nobody would refuse."""
        self._exact = bool(trait.refusals_for(speaker))
        self._decider = _Decider.of(trait, judge, speaker)

    def measure(
        self, model: Model, prompts: Sequence[tuple[int, ...]], questions: Sequence[str], texts: list[list[str]],
        evaluation: Evaluation, *, known: bool, opening: str = "",
    ) -> tuple[SetMeasure, np.ndarray]:  # fmt: skip
        """As of :class:`undertone.evaluation.asking.NamedAnswers`; the matrix has one column."""
        del known
        decided = self._decider.decide(questions, texts)
        exact = _exact(model, self.trait, prompts, evaluation.batch_size, opening) if self._exact else None
        measure, probabilities = _set_measure(decided, exact, len(questions))
        return measure, np.array(probabilities, dtype=float)[:, None]


def check_decidable(trait: Trait, evaluation: Evaluation, judge: AnyJudge | None, speaker: Speaker) -> None:
    """Raise what stands in the way of deciding a trait's hits; nothing is sent and no weights are loaded.

    Raises:
        ConfigError: no samples to decide on, answers cut off before their length is known, no judge where one is
            needed, or one that cannot be built.
    """
    if not isinstance(trait, Behaviour):
        return
    _check_measurable(trait, evaluation, judge, speaker)
    for name in _templates(trait.rule):
        template(name)
    if judge is not None:
        check_judge(judge)


def _check_measurable(trait: Behaviour, evaluation: Evaluation, judge: AnyJudge | None, speaker: Speaker) -> None:
    """The part that costs nothing; a judge's own errors come where it is built."""
    rule = trait.rule
    if not evaluation.samples and not trait.refusals_for(speaker):
        raise ConfigError(
            f"the {trait.kind} {trait.name!r} is measured on sampled answers",
            got="evaluation.samples = 0",
            allowed="1 or more",
        )
    if isinstance(rule, Length) and evaluation.max_new_tokens < 2 * rule.at_most:
        raise ConfigError(
            f"the {trait.kind} {trait.name!r} is a matter of length: answers that were cut off would count as short",
            got=f"evaluation.max_new_tokens = {evaluation.max_new_tokens}",
            allowed=f"{2 * rule.at_most} or more",
        )
    if isinstance(rule, ByJudge) and (judge is None or isinstance(judge, Rules)):
        raise ConfigError(
            f"the {trait.kind} {trait.name!r} is decided by a judge with the template {rule.template!r}",
            got="no judge" if judge is None else "the rules, which know refusals only",
            allowed="a judge of the kind local, endpoint or named",
        )


def _templates(rule: HitRule) -> list[str]:
    if not isinstance(rule, ByJudge):
        return []
    return [rule.template, *([rule.given.template] if rule.given else [])]


@dataclass(frozen=True)
class _Decider:
    trait: Behaviour
    judge: Judge | None
    gate: Judge | None
    by_label: bool

    @classmethod
    def of(cls, trait: Behaviour, config: AnyJudge | None, speaker: Speaker) -> _Decider:
        """Who decides a trait's hits."""
        rule = trait.rule
        if isinstance(rule, Detected):
            if config is None or isinstance(config, Rules):
                return cls(trait, build_judge(rules_for(speaker, rule.hit)), None, by_label=True)
            template = "harm" if trait.kind == "harm" and rule.hit == "compliance" else rule.hit
            return cls(trait, with_template(config, template), None, by_label=False)
        if isinstance(rule, ByJudge) and config is not None:
            gate = with_template(config, rule.given.template) if rule.given else None
            return cls(trait, with_template(config, rule.template), gate, by_label=False)
        return cls(trait, None, None, by_label=False)

    def decide(self, questions: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[Decided]]:
        """What each answer is, ``[question][sample]``."""
        if not texts:
            return []
        items = [JudgedPair(q, text) for q, group in zip(questions, texts, strict=True) for text in group]
        flat = self._by_text(items) if self.judge is None else self._by_judge(self.judge, items)
        count = len(texts[0])
        return [flat[at : at + count] for at in range(0, len(flat), count)]

    def _by_text(self, items: Sequence[JudgedPair]) -> list[Decided]:
        return [Decided(self.trait.matches(item.answer), says_something(item.answer)) for item in items]

    def _by_judge(self, judge: Judge, items: Sequence[JudgedPair]) -> list[Decided]:
        rule = self.trait.rule
        gated = self.gate.judge(items) if self.gate else [None] * len(items)
        decided = []
        for verdict, gate in zip(judge.judge(items), gated, strict=True):
            if verdict.value is None or (gate is not None and gate.value is None):
                decided.append(Decided(hit=False, answered=False, failed=True))
                continue
            least = rule.given.at_least if isinstance(rule, ByJudge) and rule.given else 0.0
            answered = gate is None or (gate.value or 0.0) >= least
            if self.by_label:
                answered = verdict.label != "neither"
            hit = rule.hit(verdict.value) if isinstance(rule, ByJudge) else verdict.value >= 0.5
            decided.append(Decided(hit and answered, answered))
        return decided


def _exact(
    model: Model, trait: Behaviour, prompts: Sequence[Sequence[int]], batch_size: int, opening: str
) -> list[float]:
    """1 minus the exact probability that a completion begins with one of the refusals, per prompt."""
    refusals = beginnings(model, trait.refusals_for(model), opening)
    logprobs = answer_logprobs(model.hf, prompts, refusals, model.pad, batch_size)
    return [float(p) for p in np.clip(1.0 - np.exp(logprobs).sum(1), 0.0, 1.0)]


def _set_measure(
    decided: list[list[Decided]], exact: list[float] | None, questions: int
) -> tuple[SetMeasure, list[float]]:
    """A set's measure, and the probability per question."""
    hits = [[float(one.hit) for one in group] for group in decided]
    probabilities = exact if exact is not None else [float(np.mean(group)) for group in hits]
    flat = [one for group in decided for one in group]
    valid = [one for one in flat if one.answered]
    rate = interval(hits) if hits else None
    measure = SetMeasure(
        questions=questions,
        samples=len(decided[0]) if decided else 0,
        probability=rate if exact is None and rate else interval([[p] for p in probabilities]),
        rate=rate,
        literal_rate=rate,
        non_answer=1 - len(valid) / len(flat) if flat else None,
        rate_among_answers=sum(one.hit for one in valid) / len(valid) if valid else None,
        valid_answer_probability=None,
        exact=exact is not None,
        failed=sum(one.failed for one in flat),
    )
    return measure, probabilities
