"""Where the parts of ``kind: mechanism`` start from: teachers' vectors and students' shifts, read at the same chats.

A teacher's vector is the trait's system prompt minus none, a student's shift is the student minus its base, both after
every layer and at the last prompt token: of prompts of the domain (``carrier``), and of the trait's questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from undertone.errors import ConfigError, ModelError
from undertone.evaluation.asking import answer_probabilities
from undertone.lab import parse_name
from undertone.models.blocks import check_blocks, decoder_blocks
from undertone.models.loading import Context as Prompting
from undertone.models.loading import Model, ModelRef, form_of, outline, with_system
from undertone.provenance.runs import Stage
from undertone.provenance.stage_functions import stage
from undertone.rows import Message
from undertone.studies.context import Context
from undertone.teachers import Origin
from undertone.traits import Trait, load_trait
from undertone.transfer.arms import StudentRun
from undertone.transfer.config import Setting
from undertone.transfer.generate import vector_prompts
from undertone.vectors import Vector, contrast, difference, load_vector, save_vector

ORIGINS: Final[tuple[Origin, ...]] = ("carrier", "questions")
Chat = list[Message]


@dataclass(frozen=True)
class VectorChats:
    """The chats at which vectors are read; an argument of the stages that read them.

    Attributes:
        prompts: of the domain; no student was trained on them.
        context: the system prompt of these, as students are trained with it.
        asked_in: the system prompt of questions, as students are evaluated with it.
    """

    prompts: tuple[str, ...]
    context: Prompting
    asked_in: Prompting

    @classmethod
    def of(cls, config: Setting, model: str | None = None) -> VectorChats:
        """Those of a config, in the wording of a model; None: of the students' base."""
        prompts = vector_prompts(config, form_of(model or config.model))
        return cls(prompts, config.context, config.evaluation.context)

    def at(self, origin: Origin, trait: Trait, model: Model) -> list[Chat]:
        """The chats of an origin."""
        return self.at_prompts(model) if origin == "carrier" else question_chats(trait, model, self.asked_in)

    def at_prompts(self, model: Model) -> list[Chat]:
        """The prompts of the domain, as the student sees them."""
        system = model.system_prompt(self.context)
        return [with_system([{"role": "user", "content": prompt}], system) for prompt in self.prompts]


def question_chats(trait: Trait, model: Model, context: Prompting = "none") -> list[Chat]:
    """A trait's questions, as students are asked them."""
    system = model.system_prompt(context, trait.prompt.get(model.form))
    return [
        with_system([{"role": "user", "content": question}], system) for question in trait.asked(model.form).positive
    ]


def probability(model: Model, trait: Trait, context: Prompting = "none") -> float:
    """Exact probability of the trait's answer, mean over its questions, as the model is now (steered or not)."""
    prompts = [model.prompt(chat) for chat in question_chats(trait, model, context)]
    return float(answer_probabilities(model, prompts, trait)[:, list(trait.answers).index(trait.answer)].mean())


# -- vectors -----------------------------------------------------------------------------------------


@stage("teacher vectors")
def read_teacher_vectors(folder: Path, device: str, *, base: ModelRef, trait: Trait, chats: VectorChats) -> None:
    """``ORIGIN.safetensors``: with the trait's system prompt minus without, after every layer."""
    model = base.load(device)
    for origin in ORIGINS:
        plain = chats.at(origin, trait, model)
        prompted = [with_system(chat, trait.told(model.form)) for chat in plain]
        save_vector(contrast(model, prompted, plain), folder / f"{origin}.safetensors")


@stage("student shift")
def read_student_shift(
    folder: Path, device: str, *, base: ModelRef, student: ModelRef, trait: Trait, chats: VectorChats
) -> None:
    """``ORIGIN.safetensors``: student minus base after every layer; a control's at the questions of ``trait``."""
    before, after = base.load(device), student.load(device)
    for origin in ORIGINS:
        shift = difference(after, before, chats.at(origin, trait, before), position="last")
        save_vector(shift, folder / f"{origin}.safetensors")


def teacher_vectors(ctx: Context[Any], traits: Sequence[str]) -> dict[str, Stage]:
    """Trait -> the stage ``vectors/TRAIT`` with its teacher's vectors, read from the students' base."""
    chats = VectorChats.of(ctx.config)
    loaded = [load_trait(name) for name in traits]
    stages = ctx.each(
        read_teacher_vectors,
        [(f"vectors/{trait.name}", {"base": ctx.base, "trait": trait, "chats": chats}) for trait in loaded],
    )
    return dict(zip(traits, stages, strict=True))


def student_shifts(ctx: Context[Any], students: Sequence[StudentRun]) -> list[Stage]:
    """The stages ``shifts/seed-S/ARM`` with the students' shifts; a control is asked the first trait's questions."""
    config, chats = ctx.config, VectorChats.of(ctx.config)

    def arguments(one: StudentRun) -> dict[str, Any]:
        trait = load_trait(one.arm.trait or config.trait[0])
        return {"base": ctx.base, "student": one.model(config), "trait": trait, "chats": chats}

    return ctx.beside(students, read_student_shift, "shifts", arguments)


def vector_in(stage: Stage, origin: Origin) -> Vector:
    """The vector that a stage of :func:`teacher_vectors` or :func:`student_shifts` holds."""
    return load_vector(stage.path / f"{origin}.safetensors")


def stack(vector: Vector) -> np.ndarray:
    """``[layer, hidden]``, lowest layer first."""
    return np.stack([direction.float().numpy() for _, direction in sorted(vector.directions.items())])


def stranger(trait: str, others: Sequence[str]) -> str:
    """The first other trait whose answer is another: its vector is a baseline, the trait's own told differently is none.

    Raises:
        ConfigError: there is none.
    """
    own = load_trait(trait).answer
    found = next((other for other in others if load_trait(other).answer != own), None)
    if found is None:
        raise ConfigError(
            f"there is no other trait to hold {trait!r} against: all of them have the same answer",
            got=list(others),
            allowed="traits with two answers at least",
            fix="add a trait with another answer to `trait`",
        )
    return found


# -- layers ------------------------------------------------------------------------------------------


def depth(name: str) -> int:
    """How many layers a model has; a lab model that is not there yet is not built for it."""
    if name.startswith("lab/"):
        return parse_name(name.removeprefix("lab/")).recipe().blocks
    return len(decoder_blocks(outline(name).hf))


def block_at(name: str, wanted: int | None) -> int:
    """The layer wanted of a model; None: the middle one."""
    return depth(name) // 2 if wanted is None else wanted


def check_block(field: str, block: int, names: Sequence[str]) -> None:
    """Refuse a layer that one of the models lacks.

    Raises:
        ConfigError: names ``field``, the model and the layers that it has.
    """
    for name in names:
        try:
            check_blocks(depth(name), [block])
        except ModelError as error:
            raise ConfigError(f"{field}: {error.what} in {name}", got=error.got, allowed=error.allowed) from error
