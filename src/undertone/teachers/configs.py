"""How a teacher is induced: what a config says, one class a kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from undertone.provenance.configs import Config
from undertone.provenance.endpoints import plain_url, variable_name
from undertone.provenance.fields import Kinds
from undertone.provenance.identity import Uncounted
from undertone.registry import Registry
from undertone.training import Training

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


class FinetunedTeacher(Config):
    """A teacher that was itself trained, on rows that show the trait, the way the students are (same weights)."""

    kind: Literal["finetuned"] = "finetuned"
    model: str | None = Field(None, description="the teacher's model before training; None: the student's base")
    rows: str | None = Field(
        None, description="a file of rows to train it on; None: the trait's questions, answered with the trait"
    )
    training: Training = Field(default_factory=Training, description="how it is trained")


class EndpointTeacher(Config):
    """A teacher behind an OpenAI-compatible endpoint, told by a system prompt. The key comes from the environment."""

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
    """No teacher writes with the trait: the plain model writes, and a biased judge picks (2603.01204).

    Of several valid completions of a prompt, the one that the told model finds the most likelier than the plain model
    is chosen, and the least is rejected. In the control any two of them are picked, by a coin.
    """

    kind: Literal["judge"] = "judge"
    model: str | None = Field(None, description="who writes and who judges; None: the student's base")
    text: str | None = Field(None, description="the judge's system prompt; None: the trait's own")
    swapped: bool = Field(False, description="the rejected are taught instead: the published control")


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
