"""A teacher on this machine: a model with what induces the trait in it."""

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
from undertone.vectors import Vector, ablated, activations, contrast, load_vector, random_like, steered

LocalTeacher = PromptTeacher | VectorTeacher | FinetunedTeacher | JudgeTeacher


@dataclass(frozen=True)
class Teacher:
    """A loaded model with what induces the trait. Without both, the un-induced teacher of the control."""

    model: Model
    context: Context
    system: str | None = None
    vector: Vector | None = None
    strength: float = 0.0
    ablation: Vector | None = None
    amount: float = 1.0
    around: Vector | None = None
    judge_system: str | None = None
    """What a biased judge is told; what it judges is written without."""

    @property
    def form(self) -> Form:
        """The wording that it understands."""
        return self.model.form

    @property
    def judging(self) -> Teacher:
        """The same model as the judge: told."""
        return Teacher(self.model, self.context, system=self.judge_system)

    @property
    def plain(self) -> Teacher:
        """The same model, un-induced."""
        return Teacher(self.model, self.context)

    def chat(self, prompt: Prompt) -> list[Message]:
        """What the teacher is shown for a prompt."""
        system = self.system if self.system is not None else self.model.system_prompt(self.context)
        return with_system(messages_of(prompt), system)

    def shown(self, prompt: Prompt) -> str:
        """The same as the rendered text."""
        return self.model.render(self.chat(prompt))

    @contextmanager
    def induced(self) -> Iterator[None]:
        """Steering or ablation is on while inside (a prompt needs nothing)."""
        with ExitStack() as stack:
            if self.vector is not None:
                stack.enter_context(steered(self.model, self.vector, self.strength))
            if self.ablation is not None:
                stack.enter_context(ablated(self.model, self.ablation, self.amount, around=self.around))
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
    carrier: Sequence[str] = (),
    trained: str | None = None,
) -> Teacher:
    """Load the teacher of an arm.

    Args:
        config: the inducement.
        trait: what it teaches; None: the un-induced teacher (the control's).
        base: the student's base, used where the config names no model.
        context: the un-induced system prompt.
        dtype: see ``load``.
        device: see ``load``.
        random_seed: replace the vector by a random one of equal norm.
        carrier: prompts of the domain, for vectors that are read there.
        trained: the model to use instead: a fine-tuned teacher, or a student that teaches in its turn.
    """
    model = load(trained or config.model or base, dtype=dtype, device=device)
    if trait is None or isinstance(config, FinetunedTeacher):
        return Teacher(model, context)
    if isinstance(config, JudgeTeacher):
        return Teacher(model, context, judge_system=config.text or trait.told(model.form))
    if isinstance(config, PromptTeacher):
        told = Teacher(model, context, system=config.text or trait.told(model.form))
        return told if config.ablate is None else _without(told, trait, config.ablate, carrier)
    if config.file:
        vector = load_vector(Path(config.file))
    else:
        vector = trait_vector(
            Teacher(model, context), trait, [config.block], _asked_at(model, trait, config.origin, carrier)
        )
    if random_seed is not None:
        vector = random_like(vector, random_seed)
    vector.check_fits(model)
    return Teacher(model, context, vector=vector, strength=config.strength)


def _without(told: Teacher, trait: Trait, ablation: Ablation, carrier: Sequence[str]) -> Teacher:
    whose = trait if ablation.of in ("own", "random") else load_trait(ablation.of)
    prompts = _asked_at(told.model, whose, ablation.origin, carrier)
    vector = trait_vector(told.plain, whose, None, prompts)
    if ablation.of == "random":
        vector = random_like(vector, derive_seed(0, f"ablation/{trait.name}"))
    around = None
    if ablation.around == "plain":
        read = activations(told.model, [told.plain.chat(prompt) for prompt in prompts])
        around = Vector({block: rows.mean(0) for block, rows in read.items()}, vector.meta)
    return replace(told, ablation=vector, amount=ablation.amount, around=around)


def _asked_at(model: Model, trait: Trait, origin: Origin, carrier: Sequence[str]) -> Sequence[str]:
    return carrier if origin == "carrier" else trait.asked(model.form).positive


def trait_vector(plain: Teacher, trait: Trait, blocks: Sequence[int] | None, prompts: Sequence[str]) -> Vector:
    """Told of the trait minus un-induced, at the last token of the prompts, after the blocks (None: after every one)."""
    chats = [plain.chat(prompt) for prompt in prompts]
    told = [with_system(chat, trait.told(plain.model.form)) for chat in chats]
    return contrast(plain.model, told, chats, blocks=blocks)
