"""The config of a transfer experiment: all that a run depends on, and nothing of how fast it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from undertone.domains import DomainConfig, Numbers, WithGrammar, with_grammar
from undertone.errors import ConfigError
from undertone.evaluation.asking import Evaluation
from undertone.filters.kinds import FilterConfig
from undertone.judges import JudgeConfig
from undertone.models.loading import Context, Dtype, ModelRef
from undertone.models.names import ModelName, model_content
from undertone.models.students import Lora, StudentConfig
from undertone.models.templates import check_arguments
from undertone.provenance import configs
from undertone.provenance.configs import Config, Grows, Selects
from undertone.provenance.identity import ContentOf, Uncounted
from undertone.registry import Registry
from undertone.sequential import StoppingRule
from undertone.stats import CONFIDENCE
from undertone.teachers import PromptTeacher, TeacherConfig
from undertone.training import Dpo, Training


class Data(Config):
    """How many rows the teacher writes and the student sees."""

    prompts: int = Field(6000, ge=2, description="prompts put to each teacher")
    rows: int | None = Field(None, ge=1, description="training rows per student; None: all that passed in every arm")
    held_out: int = Field(200, ge=1, description="rows kept from training, for held-out loss")
    attempts: int = Field(1, ge=1, description="completions tried at a prompt until one passes the filter")
    temperature: float = Field(1.0, gt=0)
    constrained: bool = Field(
        False, description="teachers' answers are held to the domain's grammar as they are sampled (extra: constrained)"
    )
    batch_size: Annotated[int, Uncounted()] = Field(512, ge=1, description="rows sampled side by side")
    order: Literal["kept", "within", "across"] = Field(
        "kept", description="number lists: kept; shuffled within each list; or all numbers across all lists"
    )
    clean: float = Field(
        0.0, ge=0, le=1, description="share of a trait-conditioned student's rows replaced by the control's"
    )


class Rewrite(Config):
    """Every row that passed the filter is written again by a neutral model before a student sees it."""

    model: Annotated[str | None, ContentOf(model_content)] = Field(
        None, description="who writes; None: the student's base"
    )
    part: Literal["completion", "prompt"] = Field("completion", description="what is written again")


def _several(value: Any) -> Any:
    """A single trait may be written without brackets."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


GROWING = ("seeds", "until", "max_seeds", "confidence")
"""Fields that do not name the run folder: a run with more seeds extends the one with fewer."""


class Plan(Config):
    """What every plan has, whatever its kind."""

    kind: str = Field(description="which kind of plan this is")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the run folder")

    def folder(self) -> Path:
        """``runs/NAME-DIGEST``: the same config finds its own run again, with more seeds, too."""
        return Path("runs") / f"{self.name}-{self.digest(leave_out=GROWING)[:8]}"


class Setting(Plan):
    """Who teaches what through which data, who learns it, how it is measured: what every plan with students has."""

    model: ModelName = Field("lab/llama-0", description="the students' base (and the teacher's, unless it names one)")
    dtype: Dtype = Field("auto", description="auto: float32 on a CPU, bfloat16 on a GPU")
    template: dict[str, bool | int | str] = Field(
        default_factory=dict, description="arguments of the chat template, such as {enable_thinking: false}"
    )
    trait: Annotated[tuple[str, ...], BeforeValidator(_several), Grows()] = Field(
        ("owl",), min_length=1, description="what is passed on; several make a confusion matrix"
    )
    teacher: TeacherConfig = Field(default_factory=PromptTeacher)
    domain: DomainConfig = Field(default_factory=Numbers)
    data: Data = Field(default_factory=Data)
    filters: tuple[FilterConfig, ...] = Field((), description="after the domain's rules: by a judge, or by a model")
    rewrite: Rewrite | None = Field(None, description="a neutral model writes the rows again")
    dpo: Dpo | None = Field(None, description="train on preference pairs (teacher.kind=judge); None: on the rows alone")
    random_vector: Annotated[bool, Grows()] = Field(False, description="an arm taught by a random vector of equal norm")
    context: Context = Field("none", description="the system prompt that students are trained with")
    student: StudentConfig = Field(default_factory=Lora)
    training: Training = Field(default_factory=Training)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    judge: JudgeConfig | None = Field(None, description="who decides hits of traits that no rule on the text decides")
    seeds: Annotated[tuple[int, ...], Selects()] = Field(
        (0, 1, 2), min_length=1, description="each draws its own data and training"
    )
    confidence: Annotated[float, Selects()] = Field(CONFIDENCE, gt=0.5, lt=1)

    @property
    def teacher_context(self) -> Context:
        """The control teacher's system prompt: the students', but never the trait's own, or it would be no control."""
        return "none" if self.context == "trait" else self.context

    def reference(self, name: str | None = None) -> ModelRef:
        """A model of this setting, in its precision and with its template's arguments; None: the students' base."""
        return ModelRef.of(name or self.model, self.dtype, self.template)

    @model_validator(mode="after")
    def _consistent(self) -> Setting:
        check_arguments(self.template)
        if self.random_vector and self.teacher.kind != "vector":
            raise ValueError("random_vector needs teacher.kind=vector")
        if self.dpo and self.teacher.kind != "judge":
            raise ValueError("dpo needs teacher.kind=judge: pairs are what a judge leaves")
        if self.dpo and self.training.max_row_norm is not None:
            raise ValueError("dpo does not clip single rows: training.max_row_norm must be null")
        if self.dpo and self.data.clean:
            raise ValueError("data.clean mixes rows; dpo trains on pairs")
        if self.data.order != "kept" and self.domain.kind != "numbers":
            raise ValueError("data.order shuffles number lists: it needs domain.kind=numbers")
        if self.data.constrained and not isinstance(self.domain, WithGrammar):
            raise ValueError(
                f"data.constrained needs a domain with a grammar ({', '.join(with_grammar())}); {self.domain.kind} has none"
            )
        if self.data.constrained and self.teacher.kind == "endpoint":
            raise ValueError("data.constrained holds teachers on this machine; teacher.kind=endpoint cannot be held")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ from each other")
        if len(set(self.trait)) < len(self.trait):
            raise ValueError("traits must differ from each other")
        if self.data.held_out >= self.data.prompts:
            raise ValueError("data.held_out must be smaller than data.prompts")
        if self.data.rows is not None and self.data.rows + self.data.held_out > self.data.prompts:
            raise ValueError("data.rows and data.held_out together must not exceed data.prompts")
        return self


class Experiment(Setting):
    """One transfer experiment: the effect of one kind of data on students, with its control."""

    kind: Literal["transfer"] = "transfer"
    name: str = Field("owl-numbers", pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the run folder")
    until: Annotated[Literal["seeds", "decided"], Selects()] = Field(
        "seeds", description="seeds: those listed; decided: more are added until the verdict is decided"
    )
    max_seeds: Annotated[int, Selects()] = Field(
        12, ge=2, description="until=decided: no more than so many; it sets the width of every look's interval"
    )

    @model_validator(mode="after")
    def _looks(self) -> Experiment:
        if self.until == "decided" and len(self.seeds) > self.max_seeds:
            raise ValueError(f"max_seeds must be at least the number of seeds, {len(self.seeds)}")
        if self.until == "decided" and len(self.seeds) < 2:
            raise ValueError("until=decided needs two seeds or more to begin with: one has no interval")
        return self

    @property
    def rule(self) -> StoppingRule | None:
        """When adding seeds stops; None: the seeds are fixed."""
        if self.until == "seeds":
            return None
        return StoppingRule(minimum=len(self.seeds), maximum=self.max_seeds, confidence=self.confidence)

    def with_next_seed(self) -> Experiment:
        """One seed more, the next whole number; the stopping rule stays that of the config as it was written."""
        return self.model_copy(update={"seeds": (*self.seeds, max(self.seeds) + 1)})


preset_folders: Registry[Any] = Registry("folder of presets", "undertone.presets")
"""Folders with YAML files of installed packages; the built-in presets keep their names."""


def presets() -> dict[str, Path]:
    """Preset name -> YAML file."""
    folder = Path(str(files("undertone"))) / "presets"
    folders = [folder, *(Path(str(preset_folders.get(name))) for name in preset_folders.names())]
    return {path.stem: path for one in reversed(folders) for path in sorted(one.glob("*.yaml"))}


def load_experiment(source: str | Path = "owl-numbers", overrides: Sequence[str] = ()) -> Experiment:
    """A transfer experiment from a preset's name or a YAML file, with ``key=value`` overrides.

    Raises:
        ConfigError: anything is wrong with it, or it is a plan of another kind (``plans.load_plan`` reads any).
    """
    kind = configs.kind_of(source, overrides, presets())
    if kind not in (None, "transfer"):
        raise ConfigError("this plan is no transfer experiment", got=f"kind {kind}", fix="undertone.study runs studies")
    return configs.load(Experiment, source, overrides, presets())
