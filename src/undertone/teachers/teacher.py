"""A teacher on this machine: a model with a system prompt, or with steering, that gives it the trait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from undertone.domains.domain import Prompt
from undertone.models.loading import Context, Dtype, Model, load, with_system
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.teachers.configs import (
    Ablation,
    FinetunedTeacher,
    JudgeTeacher,
    Origin,
    PromptTeacher,
    VectorTeacher,
)
from undertone.traits import Trait, load_trait
from undertone.traits.trait import Form
from undertone.vectors import SteeringVector, ablate, activations, contrast, load_vector, random_like, steer

LocalTeacher = PromptTeacher | VectorTeacher | FinetunedTeacher | JudgeTeacher


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


def messages_of(prompt: Prompt) -> list[Message]:
    """A prompt as messages."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def build_teacher(
    config: LocalTeacher,
    trait: Trait | None,
    base: str,
    *,
    context: Context,
    dtype: Dtype = "auto",
    device: str = "auto",
    random_seed: int | None = None,
    domain_prompts: Sequence[str] = (),
    trained: str | None = None,
) -> Teacher:
    """Load the teacher of an arm.

    Args:
        config: how it gets the trait.
        trait: what it teaches; None: the control teacher.
        base: the student's base, used where the config names no model.
        context: the control teacher's system prompt.
        dtype: see ``load``.
        device: see ``load``.
        random_seed: replace the vector by a random one of equal norm.
        domain_prompts: prompts of the domain, for vectors that are read there.
        trained: the model to use instead: a fine-tuned teacher, or a student that teaches in its turn.
    """
    model = load(trained or config.model or base, dtype=dtype, device=device)
    if trait is None or isinstance(config, FinetunedTeacher):
        return Teacher(model, context)
    if isinstance(config, JudgeTeacher):
        return Teacher(model, context, judge_system=config.text or trait.system_prompt(model))
    if isinstance(config, PromptTeacher):
        teacher = Teacher(model, context, system=config.text or trait.system_prompt(model))
        return teacher if config.ablate is None else _with_ablation(teacher, trait, config.ablate, domain_prompts)
    if config.file:
        vector = load_vector(Path(config.file))
    else:
        vector = trait_vector(
            Teacher(model, context), trait, [config.layer], _prompts_of(model, trait, config.origin, domain_prompts)
        )
    if random_seed is not None:
        vector = random_like(vector, random_seed)
    vector.check_fits(model)
    return Teacher(model, context, vector=vector, strength=config.strength)


def _with_ablation(teacher: Teacher, trait: Trait, ablation: Ablation, domain_prompts: Sequence[str]) -> Teacher:
    whose = trait if ablation.of in ("own", "random") else load_trait(ablation.of)
    prompts = _prompts_of(teacher.model, whose, ablation.origin, domain_prompts)
    vector = trait_vector(teacher.control, whose, None, prompts)
    if ablation.of == "random":
        vector = random_like(vector, derive_seed(0, f"ablation/{trait.name}"))
    around = None
    if ablation.around == "control":
        read = activations(teacher.model, [teacher.control.chat(prompt) for prompt in prompts])
        around = SteeringVector({layer: rows.mean(0) for layer, rows in read.items()}, vector.meta)
    return replace(teacher, ablation=vector, amount=ablation.amount, around=around)


def _prompts_of(model: Model, trait: Trait, origin: Origin, domain_prompts: Sequence[str]) -> Sequence[str]:
    return domain_prompts if origin == "domain" else trait.questions_for(model).positive


def trait_vector(
    control: Teacher, trait: Trait, layers: Sequence[int] | None, prompts: Sequence[str]
) -> SteeringVector:
    """With the trait's system prompt minus without, at the prompts' last token, after the layers (None: every one)."""
    chats = [control.chat(prompt) for prompt in prompts]
    conditioned = [with_system(chat, trait.system_prompt(control.model)) for chat in chats]
    return contrast(control.model, conditioned, chats, layers=layers)
