"""A local Hugging Face model as judge: its verdict is read from its logits, exactly, without sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from undertone.judges.judge import JudgedPair, Verdict
from undertone.judges.templates import Template, shown, template
from undertone.models.names import ModelName
from undertone.provenance.configs import Config
from undertone.provenance.identity import Uncounted

if TYPE_CHECKING:
    from undertone.models.loading import Model

_WORDS: Final = {True: ("yes", "Yes", "YES"), False: ("no", "No", "NO")}


class Local(Config):
    """A judging model on this machine."""

    renamed: ClassVar[Mapping[str, str]] = {"least_mass": "min_label_probability"}
    kind: Literal["local"] = "local"
    model: ModelName = Field(description="lab/FAMILY-SEED, org/name[@revision], or a folder")
    template: str | Template = Field("compliance", description="a template's name, or {question, scale}")
    min_label_probability: float = Field(
        0.1, ge=0, le=1, description="probability on answers of the scale below which there is no verdict"
    )
    batch_size: Annotated[int, Uncounted()] = Field(16, ge=1)
    device: Annotated[str, Uncounted()] = Field("auto", description="auto, cpu, cuda or cuda:N")

    def build(self) -> LocalJudge:
        """Load the model.

        Raises:
            ModelError: it cannot be loaded. ConfigError: no such template.
        """
        asked = template(self.template) if isinstance(self.template, str) else self.template
        from undertone.models.loading import load

        return LocalJudge(load(self.model, device=self.device), asked, self.min_label_probability, self.batch_size)


@dataclass(frozen=True)
class LocalJudge:
    """A loaded judging model.

    "yes or no": the value is P(yes) / (P(yes) + P(no)), over completions that begin with the word in either case.
    "0 to 100": the mean of the numbers, over completions that are one number and then end, weighted by their
    probability. Where all such completions together have less probability than ``min_label_probability``, the judge failed.
    """

    model: Model
    asked: Template
    min_label_probability: float = 0.1
    batch_size: int = 16

    @property
    def identity(self) -> dict[str, Any]:
        """What verdicts depend on: the model with its digests, and the question."""
        return {
            "kind": "local",
            "model": dict(self.model.identity),
            "template": self.asked.model_dump(),
            "min_label_probability": self.min_label_probability,
        }

    def judge(self, items: Sequence[JudgedPair]) -> list[Verdict]:
        """A verdict an item; exact, so that the same item always gets the same one."""
        import numpy as np

        from undertone.models.scoring import answer_logprobs

        if not items:
            return []
        prompts = [self.model.prompt([{"role": "user", "content": shown(self.asked, item)}]) for item in items]
        tokens, values = self._answers()
        logprobs = answer_logprobs(self.model.hf, prompts, tokens, self.model.pad, self.batch_size)
        found = np.exp(logprobs)
        return [self._verdict(row, values) for row in found]

    def _answers(self) -> tuple[list[tuple[int, ...]], Any]:
        """Token sequences of the scale's answers, none beginning another, and the value of each."""
        import numpy as np

        by_tokens: dict[tuple[int, ...], float] = {}
        if self.asked.scale == "yes or no":
            for value, words in _WORDS.items():
                for word in words:
                    by_tokens.setdefault(self.model.answer_tokens(word), float(value))
        else:
            for number in range(101):
                for end in self.model.stop:
                    by_tokens[(*self.model.answer_tokens(str(number)), end)] = number / 100
        return list(by_tokens), np.array(list(by_tokens.values()))

    def _verdict(self, found: Any, values: Any) -> Verdict:
        total = float(found.sum())
        if total < max(self.min_label_probability, 1e-30):
            return Verdict.failure(f"probability {total:.3g} on answers of the scale ({self.asked.scale})")
        value = float(min(1.0, (found * values).sum() / total))
        label = None
        if self.asked.scale == "yes or no":
            label = "yes" if value >= 0.5 else "no"
        return Verdict(value, label, f"{self.asked.scale}, read from logits; probability of the scale {total:.3f}")
