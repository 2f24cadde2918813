"""The config of the study of tokens: the transfer experiment, with what is read of its base and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from undertone.experiments.config import Setting
from undertone.mechanism.tokens import Against
from undertone.provenance.configs import Config
from undertone.traits import Behaviour, load_trait


class Entanglement(Config):
    """Numbers that go with the trait's answer in the base."""

    highest: int = Field(999, ge=9, description="numbers from 0 to this one")
    prompts: int = Field(64, ge=1, le=256, description="requests for number lists, of which the first number is read")
    questions: int = Field(8, ge=1, description="the trait's questions asked with every number")
    top: int = Field(50, ge=1, description="how many count as entangled")

    @model_validator(mode="after")
    def _some(self) -> Entanglement:
        if self.top > self.highest // 2:
            raise ValueError("top must be at most half of the numbers")
        return self


class Divergence(Config):
    """Students of divergence tokens alone, of all others, and of random sets of equal size."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"against": {"plain": "control"}}
    against: Against = Field(
        "any",
        description="the trait-conditioned teacher's token differs from: the control teacher's (control) | any | every other's",
    )


class Tokens(Setting):
    """Which tokens of number lists carry the trait."""

    kind: Literal["tokens"] = "tokens"
    entanglement: Entanglement = Field(default_factory=Entanglement)
    divergence: Divergence = Field(default_factory=Divergence)

    @model_validator(mode="after")
    def _read(self) -> Tokens:
        if len(self.trait) < 2:
            raise ValueError("trait needs two or more: other traits' numbers and teachers are the baseline")
        if self.teacher.kind != "prompt" or self.teacher.text or self.teacher.ablate:
            raise ValueError(
                "teacher.kind must be prompt, without text or ablate: trait-conditioned teachers are compared"
            )
        if self.teacher.model not in (None, self.model):
            raise ValueError("teacher.model must be the students' model: tokens are compared one by one")
        if self.domain.kind != "numbers":
            raise ValueError("domain.kind must be numbers")
        if self.data.clean or self.data.order != "kept" or self.rewrite is not None:
            raise ValueError("rows must stand as their teacher wrote them: no data.clean, data.order or rewrite")
        odd = [name for name in self.trait if isinstance(load_trait(name), Behaviour)]
        if odd:
            raise ValueError(f"a behaviour has no answer that a number could raise: {', '.join(odd)}")
        return self
