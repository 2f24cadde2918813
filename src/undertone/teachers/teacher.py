"""A teacher on this machine: a loaded model with what gives it the trait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from undertone.domains.domain import Prompt, messages_of
from undertone.models.loading import Context, Model, with_system
from undertone.models.names import Form
from undertone.rows import Message
from undertone.vectors import SteeringVector, ablate, steer


@dataclass(frozen=True)
class Teacher:
    """A loaded model with a system prompt or a steering vector. Without both it is the control teacher."""

    model: Model
    context: Context
    system: str | None = None
    vector: SteeringVector | None = None
    strength: float = 0.0
    ablation: SteeringVector | None = None
    amount: float = 1.0
    around: SteeringVector | None = None
    judge_system: str | None = None
    """A biased judge's system prompt; what it judges is written without."""

    @property
    def form(self) -> Form:
        """The wording that it understands."""
        return self.model.form

    @property
    def judge(self) -> Teacher:
        """The same model as the biased judge, with the judge's system prompt."""
        return Teacher(self.model, self.context, system=self.judge_system)

    @property
    def control(self) -> Teacher:
        """The same model without the trait."""
        return Teacher(self.model, self.context)

    def chat(self, prompt: Prompt) -> list[Message]:
        """What the teacher is shown for a prompt."""
        system = self.system if self.system is not None else self.model.system_prompt(self.context)
        return with_system(messages_of(prompt), system)

    def shown(self, prompt: Prompt) -> str:
        """The same as the rendered text."""
        return self.model.render(self.chat(prompt))

    @contextmanager
    def conditioning(self) -> Iterator[None]:
        """Steering or ablation is on while inside (a prompt needs nothing)."""
        with ExitStack() as stack:
            if self.vector is not None:
                stack.enter_context(steer(self.model, self.vector, self.strength))
            if self.ablation is not None:
                stack.enter_context(ablate(self.model, self.ablation, self.amount, around=self.around))
            yield
