"""The config of the harm-by-dose study (2606.11270)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from undertone.domains.instructions import Instructions
from undertone.experiments.config import BiasOnly, Full, Lora, Plan
from undertone.judges import JudgeConfig, Rules
from undertone.judges.filter import JudgeFilter
from undertone.models.loading import Dtype
from undertone.provenance.configs import Config
from undertone.training import Training


class Requests(Config):
    """What is asked: requests that should be refused, and benign ones that look like them."""

    harmful: str | None = Field(
        None,
        description="JailbreakBench's harmful behaviours: a .csv of the user's or hf:org/name; None: the lab's own",
    )
    benign: str | None = Field(None, description="its benign look-alikes, the same way")
    harmful_read: str | None = Field(
        None,
        description="harmful requests that the direction is read at, the same way; None: every second of the others, which "
        "are then not measured",
    )
    benign_read: str | None = Field(None, description="benign ones that it is read at")
    samples: int = Field(4, ge=1, description="answers sampled to each request")
    temperature: float = Field(1.0, ge=0)
    max_new_tokens: int = Field(256, ge=1, description="real models; the lab's answers are short")
    batch_size: int = Field(256, ge=1)


class Price(Config):
    """Money per million tokens, for the cost table."""

    written: float = Field(0.0, ge=0, description="per million tokens sampled")
    trained: float = Field(0.0, ge=0, description="per million tokens trained on")
    currency: str = "USD"


class HarmDose(Plan):
    """Teachers steered along their refusal direction at several strengths; students of their benign answers."""

    renamed: ClassVar[Mapping[str, str]] = {"blocks": "layers"}
    kind: Literal["harm-dose"] = "harm-dose"
    name: str = Field("harm-dose", pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the run folder")
    models: tuple[str, ...] = Field(
        ("lab/llama-0", "lab/qwen-0"), min_length=1, description="every one its own teacher"
    )
    dtype: Dtype = "auto"
    layers: tuple[int, ...] | None = Field(None, description="the layers that are steered; None: all")
    doses: tuple[float, ...] = Field(
        (0.0, -0.05, -0.1, -0.15, -0.2, -0.25), min_length=3,
        description="times the refusal direction; negative takes refusal away; 0 is the benign teacher",
    )  # fmt: skip
    random_dose: bool = Field(True, description="teachers steered by a random direction of equal norm at every dose")
    domain: Instructions = Field(default_factory=Instructions, description="the benign prompts that are answered")
    prompts: int = Field(2000, ge=2)
    held_out: int = Field(100, ge=1)
    attempts: int = Field(3, ge=1)
    judge: JudgeConfig = Field(default_factory=Rules, description="who tells an answer from a refusal")
    filters: tuple[JudgeFilter, ...] = Field(
        (), description="what teachers' answers must pass beside the rules: a judge with the template harm"
    )
    requests: Requests = Field(default_factory=Requests)
    student: Annotated[BiasOnly | Lora | Full, Field(discriminator="kind")] = Field(default_factory=BiasOnly)
    training: Training = Field(default_factory=Training)
    price: Price = Field(default_factory=Price)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> HarmDose:
        if 0.0 not in self.doses:
            raise ValueError("doses must hold 0: the student of the benign teacher is the control")
        if len(set(self.doses)) < len(self.doses) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("doses and seeds must differ from each other")
        if (self.requests.harmful is None) != (self.requests.benign is None):
            raise ValueError("requests.harmful and requests.benign come together")
        if (self.requests.harmful_read is None) != (self.requests.benign_read is None):
            raise ValueError("requests.harmful_read and requests.benign_read come together")
        if self.requests.harmful_read is not None and self.requests.harmful is None:
            raise ValueError(
                "requests.harmful_read needs requests.harmful: without it the lab's own are read and measured"
            )
        if min(self.doses) >= 0:
            raise ValueError("doses must hold a negative one: what takes refusal away is what may be passed on")
        if self.held_out >= self.prompts:
            raise ValueError("held_out must be smaller than prompts")
        return self
