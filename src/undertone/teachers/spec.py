"""What makes a teacher, resolved from a config and a trait before anything is loaded.

A :class:`TeacherSpec` holds the texts, files and models themselves and not the names under which a config knows them. It
is what stages are given, so that their identity holds all that a teacher depends on: the system prompt; of a steered
teacher the vector file's bytes, or the chats at which its vector is read; of a trained one its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from undertone.errors import ModelError
from undertone.models.constraints import Constraint
from undertone.models.layers import check_layers, decoder_layers
from undertone.models.loading import Context, Model, ModelRef, with_system
from undertone.models.names import Form
from undertone.provenance.seeds import derive_seed
from undertone.teachers.configs import (
    AUTO,
    Ablation,
    EndpointTeacher,
    FinetunedTeacher,
    JudgeTeacher,
    Origin,
    PromptTeacher,
    VectorTeacher,
)
from undertone.teachers.endpoint import RemoteTeacher, client_of, no_grammar
from undertone.teachers.teacher import Teacher
from undertone.traits import Trait, load_trait
from undertone.traits.trait import Speaker
from undertone.vectors import SteeringVector, activations, contrast, load_vector, random_like
from undertone.vectors.strength import steering_layer


@runtime_checkable
class OwnTeacher(Protocol):
    """A teacher of a user's package: a config that says by itself what makes it."""

    def resolve(self, own: TeacherSpec, trait: Trait, domain_prompts: tuple[str, ...]) -> TeacherSpec:
        """The teacher with the trait, from the control teacher ``own``: ``dataclasses.replace(own, system=…)``."""
        ...


AnyTeacherConfig = PromptTeacher | VectorTeacher | FinetunedTeacher | JudgeTeacher | EndpointTeacher


@dataclass(frozen=True)
class Contrast:
    """A vector that is read from the teacher's own model: mean with a system prompt minus mean without, at prompts.

    Attributes:
        system: the trait's system prompt.
        prompts: user messages whose last prompt token is read.
        layers: after which decoder layers; None: all.
    """

    system: str
    prompts: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    def read(self, model: Model, context: Context) -> SteeringVector:
        """The vector of a loaded model, ``[hidden]`` a layer."""
        chats = [Teacher(model, context).chat(prompt) for prompt in self.prompts]
        return contrast(model, [with_system(chat, self.system) for chat in chats], chats, layers=self.layers)


@dataclass(frozen=True)
class VectorSource:
    """Where a vector comes from: a file, or a contrast; or a random one of its norm."""

    of: Path | Contrast
    random_seed: int | None = None

    def read(self, model: Model, context: Context) -> SteeringVector:
        """The vector.

        Raises:
            DataError: the file is no vector.
        """
        vector = load_vector(self.of) if isinstance(self.of, Path) else self.of.read(model, context)
        return vector if self.random_seed is None else random_like(vector, self.random_seed)


@dataclass(frozen=True)
class AblationSpec:
    """A direction that is taken out of the residual stream while the teacher writes."""

    vector: VectorSource
    prompts: tuple[str, ...]
    amount: float
    around: Literal["zero", "control"]


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher, not loaded: its model, and all that gives it the trait. Without these, the control teacher.

    Attributes:
        model: whose weights; of an endpoint None.
        context: the system prompt of the control teacher.
        form: the wording that the model understands.
        system: the system prompt that the teacher has instead.
        vector: what its residual stream is steered by, ``strength`` times.
        strength: see ``vector``.
        ablation: what is taken out of its residual stream.
        judge_system: of a biased judge that picks among the control teacher's completions, its system prompt.
        endpoint: the server that answers, instead of a model on this machine.
    """

    model: ModelRef | None
    context: Context
    form: Form
    system: str | None = None
    vector: VectorSource | None = None
    strength: float = 0.0
    ablation: AblationSpec | None = None
    judge_system: str | None = None
    endpoint: EndpointTeacher | None = None

    @property
    def control(self) -> TeacherSpec:
        """The same model without the trait."""
        return TeacherSpec(self.model, self.context, self.form, endpoint=self.endpoint)

    def load(self, device: str) -> Teacher | RemoteTeacher:
        """The teacher itself.

        Raises:
            ModelError, DataError: a model or vector that cannot be loaded, or a vector that does not fit.
        """
        if self.endpoint is not None:
            return RemoteTeacher(self.endpoint, self.form, self.system)
        assert self.model is not None
        model = self.model.load(device)
        vector = self.vector.read(model, self.context) if self.vector else None
        if vector is not None:
            vector.check_fits(model)
        teacher = Teacher(
            model, self.context, system=self.system, vector=vector, strength=self.strength,
            judge_system=self.judge_system,
        )  # fmt: skip
        return teacher if self.ablation is None else _without(teacher, self.ablation)

    def check(self) -> None:
        """Raise what :meth:`load` would, without weights: no key, a prompt that the template refuses, a vector that does not fit.

        Raises:
            ConfigError, ModelError, DataError: in their own words.
        """
        if self.endpoint is not None:
            client_of(self.endpoint)
            return
        assert self.model is not None
        model = self.model.outline()
        for system in {self.system, self.judge_system, _system_of(self.vector)} - {None}:
            text = model.render(with_system([{"role": "user", "content": "?"}], system))
            if system and system.strip() not in text:
                raise ModelError(
                    f"the chat template of {model.name} drops or changes the teacher's system prompt",
                    got=text,
                    allowed=system,
                    fix="teacher.kind=vector, which steers; or give the tokenizer another template",
                )
        if self.vector is None:
            return
        if isinstance(self.vector.of, Path):
            load_vector(self.vector.of).check_fits(model)
        else:
            check_layers(len(decoder_layers(model.hf)), self.vector.of.layers or ())

    def check_constrained(self, grammars: Sequence[str]) -> None:
        """Raise what sampling under these grammars would, without weights.

        Raises:
            ConfigError: an endpoint, a missing package, an expression that cannot be read.
            ModelError: a tokenizer whose tokens have no text of their own.
        """
        if self.endpoint is not None:
            raise no_grammar()
        assert self.model is not None
        Constraint(self.model.outline(), grammars).begin(range(len(grammars)))


def _system_of(vector: VectorSource | None) -> str | None:
    return vector.of.system if vector and isinstance(vector.of, Contrast) else None


def _without(teacher: Teacher, spec: AblationSpec) -> Teacher:
    vector = spec.vector.read(teacher.model, teacher.context)
    around = None
    if spec.around == "control":
        read = activations(teacher.model, [teacher.control.chat(prompt) for prompt in spec.prompts])
        around = SteeringVector({layer: rows.mean(0) for layer, rows in read.items()}, vector.meta)
    return replace(teacher, ablation=vector, amount=spec.amount, around=around)


def resolve_teacher(
    config: AnyTeacherConfig,
    trait: Trait | None,
    model: ModelRef,
    speaker: Speaker,
    *,
    context: Context,
    domain_prompts: Sequence[str] = (),
    random_seed: int | None = None,
    strength: float = 1.0,
) -> TeacherSpec:
    """The teacher of an arm.

    Args:
        config: how it gets the trait.
        trait: which; None: the control teacher.
        model: its weights: the config's model, the student's base, or a model that was trained to teach.
        speaker: the wording that the model understands.
        context: the control teacher's system prompt.
        domain_prompts: prompts of the domain, for vectors that are read there.
        random_seed: replace the vector by a random one of equal norm.
        strength: of a vector whose strength the config leaves open (``auto``).

    Raises:
        ConfigError: the trait has no prompt or questions in the model's wording.
    """
    own = TeacherSpec(model, context, speaker.form)
    if isinstance(config, OwnTeacher):
        return own if trait is None else config.resolve(own, trait, tuple(domain_prompts))
    if isinstance(config, EndpointTeacher):
        system = None if trait is None else config.text or trait.system_prompt(speaker)
        return TeacherSpec(None, context, speaker.form, system=system, endpoint=config)
    if trait is None or isinstance(config, FinetunedTeacher):
        return own
    if isinstance(config, JudgeTeacher):
        return replace(own, judge_system=config.text or trait.system_prompt(speaker))
    if isinstance(config, PromptTeacher):
        ablation = _ablation(config.ablate, trait, speaker, domain_prompts) if config.ablate else None
        return replace(own, system=config.text or trait.system_prompt(speaker), ablation=ablation)
    prompts = _prompts(trait, speaker, config.origin, domain_prompts)
    of: Path | Contrast = (
        Path(config.file) if config.file else Contrast(trait.system_prompt(speaker), prompts, (_layer(config, model),))
    )
    own = replace(own, vector=VectorSource(of, random_seed))
    return replace(own, strength=strength if config.strength == AUTO else config.strength)


def _layer(config: VectorTeacher, model: ModelRef) -> int:
    return steering_layer(model.outline().hf) if config.layer is None else config.layer


def _ablation(config: Ablation, trait: Trait, speaker: Speaker, domain_prompts: Sequence[str]) -> AblationSpec:
    whose = trait if config.of in ("own", "random") else load_trait(config.of)
    prompts = _prompts(whose, speaker, config.origin, domain_prompts)
    seed = derive_seed(0, f"ablation/{trait.name}") if config.of == "random" else None
    return AblationSpec(
        VectorSource(Contrast(whose.system_prompt(speaker), prompts), seed), prompts, config.amount, config.around
    )


def _prompts(trait: Trait, speaker: Speaker, origin: Origin, domain_prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(domain_prompts if origin == "domain" else trait.questions_for(speaker).positive)
