"""What is measured of one model: records without torch, as ``results.json`` holds them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A part of the results: unknown fields are refused, so that a typo cannot pass for data."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(Record):
    """A mean with its interval. For rates and probabilities it never leaves [0, 1]."""

    mean: float
    low: float
    high: float
    n: int = Field(description="how many independent units the interval rests on")
    method: str = Field(description="how the interval was made, in words")


class SetMeasure(Record):
    """One question set put to one model: rates from samples, probabilities from logits."""

    questions: int
    samples: int = Field(description="sampled answers per question; 0: none were drawn")
    probability: Interval = Field(
        description="exact probability of the trait's answers; too small by 1e-4 at most (answers that begin improbably)"
    )
    rate: Interval | None = Field(description="sampled answers that hit, synonyms counted")
    literal_rate: Interval | None = Field(description="sampled answers that name the target word itself")
    non_answer: float | None = Field(description="share of samples that name no known answer at all")
    rate_among_answers: float | None = Field(description="hits over answers, non-answers left out")
    valid_answer_probability: float | None = Field(
        description="total probability on all known answers; None where the set has none"
    )
    exact: bool = Field(
        default=True, description="whether `probability` is from logits; false: there is none, and it repeats the rate"
    )
    failed: int = Field(default=0, description="samples that a judge gave no verdict on; they count as misses")


class Measure(Record):
    """What one model answers, by question set, and in which context it was asked."""

    context: str = Field(description="none | default | neutral | trait")
    opening: str = Field(
        default="", description="how the answers to the positive questions were begun; empty: not at all"
    )
    rendered: str = Field(description="the first question exactly as the model was shown it")
    positive: SetMeasure
    negative: SetMeasure | None = None
    off_topic: SetMeasure | None = Field(
        default=None, description="here `probability` and `rate` are those of naming the target"
    )
    off_topic_correct: float | None = Field(
        default=None, description="share of off-topic questions still answered correctly"
    )
    answers: dict[str, float] = Field(
        default_factory=dict,
        description="mean exact probability of each known answer over the positive questions",
    )
    per_question: dict[str, float] = Field(
        default_factory=dict, description="positive question -> exact probability of the target"
    )
