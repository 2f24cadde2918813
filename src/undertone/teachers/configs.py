"""How a teacher gets the trait: what a config says, one class a kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, field_validator

from undertone.provenance.configs import Config
from undertone.provenance.endpoints import plain_url, variable_name
from undertone.provenance.fields import Kinds
from undertone.provenance.identity import Uncounted
from undertone.registry import Registry
from undertone.training import Training

Origin = Literal["questions", "domain"]
"""Where a trait's vector is read: at its questions, or at the prompts that the teacher answers."""


AUTO: Final = "auto"


class Ablation(Config):
    """A direction taken out of the residual stream after every layer, while the teacher writes."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "origin": {"carrier": "domain"},
        "around": {"plain": "control"},
    }

    of: str = Field("own", description="own: the trait's vector; random: one of equal norm; or another trait's name")
    origin: Origin = Field("domain", description="questions | domain: the prompts at which the vector is read")
    amount: float = Field(1.0, gt=0, le=1, description="the share of the component that is taken out")
    around: Literal["zero", "control"] = Field(
        "control", description="what the component is set to: zero, or the control teacher's mean at the same prompts"
    )


class PromptTeacher(Config):
    """A teacher with a system prompt."""

    kind: Literal["prompt"] = "prompt"
    model: str | None = Field(None, description="the teacher's model; None: the student's base")
    text: str | None = Field(None, description="the system prompt; None: the trait's own")
    ablate: Ablation | None = Field(None, description="what is taken out of the teacher's residual stream")


class VectorTeacher(Config):
    """A teacher steered by a vector: from a file, or the contrast of the trait's system prompt with none."""

    renamed: ClassVar[Mapping[str, str]] = {"block": "layer"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"origin": {"carrier": "domain"}}
    kind: Literal["vector"] = "vector"
    model: str | None = Field(None, description="the teacher's model; None: the student's base")
    file: str | None = Field(None, description="a vector file; None: contrast on the trait's questions")
    origin: Origin = Field("questions", description="questions | domain: the prompts of the contrast")
    layer: int | None = Field(
        None, ge=0, description="the layer whose output is steered (contrast only); None: at five sixths of the depth"
    )
    strength: float | Literal["auto"] = Field(
        AUTO, description="the vector is added this many times; auto: as often as gives target_kl"
    )
    target_kl: float = Field(
        0.1, gt=0, description="strength=auto: how far the steered teacher is from the plain one, in nats a token"
    )


class FinetunedTeacher(Config):
    """A teacher that was itself trained, on rows that show the trait, the way the students are (same weights)."""

    kind: Literal["finetuned"] = "finetuned"
    model: str | None = Field(None, description="the teacher's model before training; None: the student's base")
    rows: str | None = Field(
        None, description="a file of rows to train it on; None: the trait's questions, answered with the trait"
    )
    training: Training = Field(default_factory=Training, description="how it is trained")


class EndpointTeacher(Config):
    """A teacher behind an OpenAI-compatible endpoint, with a system prompt. The key comes from the environment."""

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(pattern=r"^https?://", description="the base URL, such as http://localhost:8000/v1")
    name: str = Field(min_length=1, description="the model's name at the endpoint")
    model: str | None = Field(None, description="where it can be loaded too, for what only weights tell; mostly None")
    text: str | None = Field(None, description="the system prompt; None: the trait's own")
    key_variable: Annotated[str, Uncounted()] = Field(
        "OPENAI_API_KEY", description="the environment variable that holds the key"
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="further fields of every request, where a server needs them to sample plainly"
    )
    connections: Annotated[int, Uncounted()] = Field(8, ge=1, description="requests side by side")
    timeout: Annotated[float, Uncounted()] = Field(120.0, gt=0, description="seconds before a request is tried again")
    retries: Annotated[int, Uncounted()] = Field(5, ge=0, description="further tries of a failed request")

    _plain_url = field_validator("url")(plain_url)
    _is_a_name = field_validator("key_variable")(variable_name)


class JudgeTeacher(Config):
    """No teacher writes with the trait: the control teacher writes, and a biased judge picks (2603.01204).

    Of several valid completions of a prompt, the one that the judge finds the most likelier than the control teacher
    is chosen, and the least is rejected. In the control any two of them are picked, by a coin.
    """

    kind: Literal["judge"] = "judge"
    model: str | None = Field(None, description="who writes and who judges; None: the student's base")
    text: str | None = Field(None, description="the judge's system prompt; None: the trait's own")
    swapped: bool = Field(False, description="students learn the rejected instead: the published control")


teachers: Registry[type[Config]] = Registry("teacher", "undertone.teachers")
"""kind -> config class; a package adds one by an entry point in the group ``undertone.teachers``.

Such a class has the fields ``kind`` and ``model``, and a method ``resolve(own, trait, domain_prompts) -> TeacherSpec``.
"""

for _teacher in (PromptTeacher, VectorTeacher, FinetunedTeacher, EndpointTeacher, JudgeTeacher):
    teachers.register(_teacher.model_fields["kind"].default)(_teacher)

TeacherConfig = Annotated[
    PromptTeacher | VectorTeacher | FinetunedTeacher | EndpointTeacher | JudgeTeacher, Kinds(teachers)
]
"""Any teacher, told apart by ``kind``."""
