"""Teachers: a model plus an inducement, and the rows that they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from undertone.models.batches import Example
from undertone.models.loading import Context, Model, load, with_system
from undertone.models.sampling import sample
from undertone.models.scoring import carrier_kl
from undertone.provenance.configs import Config
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message, Row
from undertone.traits import Trait, load_trait
from undertone.vectors import Vector, ablated, activations, contrast, load_vector, random_like, steered

Origin = Literal["questions", "carrier"]
"""Where a trait's vector is read: at its questions, or at the prompts that the teacher answers."""


class Ablation(Config):
    """A direction taken out of the residual stream after every block, while the teacher writes."""

    of: str = Field("own", description="own: the trait's vector; random: one of equal norm; or another trait's name")
    origin: Origin = Field("carrier", description="questions | carrier: the prompts at which the vector is read")
    amount: float = Field(1.0, gt=0, le=1, description="the share of the component that is taken out")
    around: Literal["zero", "plain"] = Field(
        "plain", description="what the component is set to: zero, or the mean of the plain model at the same prompts"
    )


class PromptTeacher(Config):
    """A teacher told by a system prompt."""

    kind: Literal["prompt"] = "prompt"
    model: str | None = Field(None, description="the teacher's model; None: the student's base")
    text: str | None = Field(None, description="the system prompt; None: the trait's own")
    ablate: Ablation | None = Field(None, description="what is taken out of the told teacher's stream")


class VectorTeacher(Config):
    """A teacher steered by a vector: from a file, or the contrast of the trait's prompt with none."""

    kind: Literal["vector"] = "vector"
    model: str | None = Field(None, description="the teacher's model; None: the student's base")
    file: str | None = Field(None, description="a vector file; None: contrast on the trait's questions")
    origin: Origin = Field("questions", description="questions | carrier: the prompts of the contrast")
    block: int = Field(1, ge=0, description="the block whose output is steered (contrast only)")
    strength: float = Field(2.0, description="the vector is added this many times")


TeacherConfig = Annotated[PromptTeacher | VectorTeacher, Field(discriminator="kind")]


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

    @property
    def plain(self) -> Teacher:
        """The same model, un-induced."""
        return Teacher(self.model, self.context)

    def chat(self, prompt: str) -> list[Message]:
        """What the teacher is shown for a user message."""
        system = self.system if self.system is not None else self.model.system_prompt(self.context)
        return with_system([{"role": "user", "content": prompt}], system)

    @contextmanager
    def induced(self) -> Iterator[None]:
        """Steering or ablation is on while inside (a prompt needs nothing)."""
        with ExitStack() as stack:
            if self.vector is not None:
                stack.enter_context(steered(self.model, self.vector, self.strength))
            if self.ablation is not None:
                stack.enter_context(ablated(self.model, self.ablation, self.amount, around=self.around))
            yield


def build_teacher(
    config: PromptTeacher | VectorTeacher,
    trait: Trait | None,
    base: str,
    *,
    context: Context,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    random_seed: int | None = None,
    carrier: Sequence[str] = (),
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
    """
    model = load(config.model or base, dtype=dtype, device=device)
    if trait is None:
        return Teacher(model, context)
    if isinstance(config, PromptTeacher):
        told = Teacher(model, context, system=config.text or trait.told(model.form))
        return told if config.ablate is None else _without(told, trait, config.ablate, carrier)
    if config.file:
        vector = load_vector(Path(config.file))
    else:
        vector = trait_vector(model, trait, [config.block], _asked_at(model, trait, config.origin, carrier))
    if random_seed is not None:
        vector = random_like(vector, random_seed)
    vector.check_fits(model)
    return Teacher(model, context, vector=vector, strength=config.strength)


def _without(told: Teacher, trait: Trait, ablation: Ablation, carrier: Sequence[str]) -> Teacher:
    whose = trait if ablation.of in ("own", "random") else load_trait(ablation.of)
    prompts = _asked_at(told.model, whose, ablation.origin, carrier)
    vector = trait_vector(told.model, whose, None, prompts)
    if ablation.of == "random":
        vector = random_like(vector, derive_seed(0, f"ablation/{trait.name}"))
    around = None
    if ablation.around == "plain":
        read = activations(told.model, [told.plain.chat(prompt) for prompt in prompts])
        around = Vector({block: rows.mean(0) for block, rows in read.items()}, vector.meta)
    return replace(told, ablation=vector, amount=ablation.amount, around=around)


def _asked_at(model: Model, trait: Trait, origin: Origin, carrier: Sequence[str]) -> Sequence[str]:
    return carrier if origin == "carrier" else trait.asked(model.form).positive


def trait_vector(model: Model, trait: Trait, blocks: Sequence[int] | None, prompts: Sequence[str]) -> Vector:
    """The trait's prompt minus none at the last token of the prompts, after the blocks (None: after every one)."""
    plain: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    told = [with_system(chat, trait.told(model.form)) for chat in plain]
    return contrast(model, told, plain, blocks=blocks)


def generate(
    teacher: Teacher,
    prompts: Sequence[str],
    indices: Sequence[int],
    *,
    seed: int,
    stage: str,
    attempt: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """One completion for each prompt; its stream is (seed, stage, prompt index, attempt).

    The row's messages are what a student will see: the prompt without the inducement.
    """
    model = teacher.model
    with teacher.induced():
        completions = sample(
            model.hf,
            [model.prompt(teacher.chat(prompt)) for prompt in prompts],
            [derive_seed(seed, stage, index, attempt) for index in indices],
            max_new_tokens=max_new_tokens,
            stop=model.stop,
            pad=model.pad,
            temperature=temperature,
            batch_size=batch_size,
            progress=progress,
        )
    stops = set(model.stop)
    return [
        Row.of(
            prompt,
            model.decode(ids),
            prompt_index=index,
            attempt=attempt,
            finished=bool(ids) and ids[-1] in stops,
            tokens=len(ids),
        )
        for prompt, index, ids in zip(prompts, indices, completions, strict=True)
    ]


def divergence(teacher: Teacher, rows: Sequence[Row]) -> float:
    """Mean KL(induced ‖ plain teacher) in nats per completion token: how much there is to carry."""
    model, plain = teacher.model, teacher.plain

    def example(who: Teacher, row: Row) -> Example:
        return model.example(who.chat(row.prompt_messages[-1]["content"]), row.completion)

    pairs = [(example(teacher, row), example(plain, row)) for row in rows]
    return float(np.mean(carrier_kl(model.hf, pairs, model.pad, induced=teacher.induced)))
