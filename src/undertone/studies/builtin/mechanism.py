"""``kind: mechanism``: why it happens. One set of teachers, rows and students; nine parts that ask one claim each.

A part is a module ``mechanism_PART.py`` with a function ``PART(ctx, students)``, which computes, reports and draws, and,
where the preflight of the transfer experiment is not enough, one ``preflight(config, device)``. It is imported only
where it is among ``parts``. A preset of each part's name runs it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.models.students import BiasOnly, Full, Lora
from undertone.provenance.configs import Config
from undertone.studies.context import Context
from undertone.studies.frame import study
from undertone.traits import Behaviour, load_trait
from undertone.transfer.config import Setting
from undertone.transfer.pipeline import preflight
from undertone.verdicts import counted

Part = Literal[
    "approximability",
    "causality",
    "emergence",
    "gradients",
    "optimizers",
    "adapters",
    "distillation",
    "initialisation",
    "recovery",
]
REFERENCE: Final = "AdamW"
"""The optimiser whose held-out loss the others are to meet."""
MATCHED: Final = (
    "held-out losses that differ by no more than this share of what the reference's training gains are equal"
)


class Approximability(Config):
    """Is the system prompt a vector, and does that predict transfer?"""

    variants: tuple[str, ...] = Field(
        (), description="further traits, with system prompts that a shift cannot stand for"
    )
    strengths: tuple[float, ...] = Field((0.25, 0.5, 0.75, 1.0, 1.5, 2.0), min_length=1)
    pairs: int = Field(192, ge=8, description="prompts compared; the strength is chosen on half of them")
    random: int = Field(3, ge=1, description="random directions, and other traits' vectors, as baselines")


class Causality(Config):
    """Sufficiency and necessity of teacher's and student's vectors."""

    renamed: ClassVar[Mapping[str, str]] = {"block": "layer"}
    layer: int | None = Field(None, ge=0, description="where the sufficient vector is added; null: the middle layer")
    strengths: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1, description="of a student's vector on its base")
    teacher_strength: float = Field(1.0, gt=0, description="of the steered teacher")


class Emergence(Config):
    """When the student's shift appears."""

    points: int = Field(10, ge=2, description="moments of training that are measured")


class Gradients(Config):
    """Activation gradients on treated and control rows."""

    rows: int = Field(2000, ge=16, description="rows of each kind")
    shares: tuple[float, ...] = Field((0.001, 0.01, 0.1), description="outlier rows dropped or clipped, by norm")


class OptimizerArm(Config):
    """An optimiser with the learning rates that it may choose from on the tuning seeds."""

    name: str
    optimizer: str
    options: dict[str, Any] = Field(default_factory=dict)
    rates: tuple[float, ...] = Field(min_length=1)
    max_row_norm: float | None = None
    adaptive: bool
    student: Annotated[BiasOnly | Lora | Full, Field(discriminator="kind")] | None = Field(
        None, description="what it trains; null: what the config's student does, and only such arms are in the finding"
    )


class Optimizers(Config):
    """Optimisers at matched held-out loss."""

    arms: tuple[OptimizerArm, ...] = ()
    tuning_seed: int = Field(100, description="learning rates are chosen on it, by held-out loss alone")
    matched_within: float = Field(0.15, gt=0, le=1, description=MATCHED)
    prompts: int = Field(3000, ge=10, description="prompts, fewer than elsewhere: there are many students")
    outliers: float = Field(0.02, gt=0, lt=0.5, description="share of rows replaced by rows of huge gradient")

    @model_validator(mode="after")
    def _compared(self) -> Optimizers:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError("names of optimizers.arms must differ from each other")
        if self.arms and not any(arm.name == REFERENCE and arm.student is None for arm in self.arms):
            raise ValueError(f"one of optimizers.arms must be called {REFERENCE}, without a student of its own")
        return self


class Adapters(Config):
    """LoRA by rank and learning rate, beside biases and all weights."""

    ranks: tuple[int, ...] = Field((2, 8, 32), min_length=1)
    rates: tuple[float, ...] = Field((1e-3, 2e-3, 5e-3, 1e-2), min_length=1)
    full_rates: tuple[float, ...] = Field((1e-4, 2e-4, 5e-4, 1e-3), min_length=1)
    epochs: int = 2
    tuning_seed: int = Field(100, description="each kind's rate is chosen on it, by held-out loss alone")
    matched_within: float = Field(0.15, gt=0, le=1, description=MATCHED)


class Distillation(Config):
    """Arbitrary vectors: what a steered teacher's student takes over, with and without visible behaviour."""

    renamed: ClassVar[Mapping[str, str]] = {"block": "layer"}
    random: int = Field(4, ge=2, description="random vectors")
    layer: int | None = Field(None, ge=0, description="which is steered; null: the middle layer")
    strength: float = Field(1.0, gt=0)


class Initialisation(Config):
    """Teachers and students of other corpora, seeds, widths, families, and between two initialisations."""

    renamed: ClassVar[Mapping[str, str]] = {"block": "layer"}
    models: tuple[str, ...] = Field(
        ("lab/llama-0", "lab/llama-0:corpus=1", "lab/llama-1", "lab/llama-0:hidden=96", "lab/qwen-0", "lab/neox-0"),
        min_length=2,
        description="every one teaches every one; the config's model must be among them, and is the reference",
    )
    between: tuple[str, ...] | None = Field(
        None,
        description="students whose initial weights lie between the reference's and another seed's, nearest first; null: "
        "of a lab model those at `shares` of the way to the next seed, of any other none",
    )
    shares: tuple[float, ...] = Field((0.1, 0.25, 0.5, 0.75), description="how far each of `between` is away")
    layer: int | None = Field(None, ge=0, description="of each model's own vector; null: the middle layer of each")
    strength: float = Field(1.0, gt=0, description="of each model's own vector in the loss difference")
    prompts: int = Field(3000, ge=10)


class Recovery(Config):
    """A vector learnt from the data alone."""

    renamed: ClassVar[Mapping[str, str]] = {"block": "layer"}
    layer: int | None = Field(None, ge=0, description="where it is added; null: the middle layer")
    steps: int = Field(300, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    strengths: tuple[float, ...] = Field((1.0, 2.0, 4.0), min_length=1)


class Mechanism(Setting):
    """Why it happens: every part rests on the same teachers, rows and students."""

    renamed: ClassVar[Mapping[str, str]] = {"kinship": "initialisation"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"parts": {"kinship": "initialisation"}}
    kind: Literal["mechanism"] = "mechanism"
    name: str = Field("mechanism", pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the run folder")
    parts: tuple[Part, ...] = Field(
        ("approximability", "causality", "emergence", "gradients", "optimizers", "adapters", "distillation", "initialisation",
         "recovery"),
        min_length=1,
        description="what is studied",
    )  # fmt: skip
    few: int = Field(3, ge=1, description="parts that train many students use so many of the traits")
    approximability: Approximability = Field(default_factory=Approximability)
    causality: Causality = Field(default_factory=Causality)
    emergence: Emergence = Field(default_factory=Emergence)
    gradients: Gradients = Field(default_factory=Gradients)
    optimizers: Optimizers = Field(default_factory=Optimizers)
    adapters: Adapters = Field(default_factory=Adapters)
    distillation: Distillation = Field(default_factory=Distillation)
    initialisation: Initialisation = Field(default_factory=Initialisation)
    recovery: Recovery = Field(default_factory=Recovery)

    @property
    def few_traits(self) -> tuple[str, ...]:
        """The traits of the parts that train many students: the first ones."""
        return self.trait[: self.few]

    @model_validator(mode="after")
    def _studied(self) -> Mechanism:
        if len(self.trait) < 3:
            raise ValueError("trait needs three or more: what all arms share is only known from several")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("parts must differ from each other")
        if self.teacher.kind != "prompt":
            raise ValueError("teacher.kind must be prompt: the parts steer and ablate by themselves")
        if self.initialisation.between is not None and len(self.initialisation.between) != len(
            self.initialisation.shares
        ):
            raise ValueError("initialisation.shares must say how far each of initialisation.between is away")
        for part, tuning_seed in (("optimizers", self.optimizers.tuning_seed), ("adapters", self.adapters.tuning_seed)):
            if tuning_seed in self.seeds:
                raise ValueError(f"{part}.tuning_seed must not be among seeds: nothing is tuned on what is reported")
        if "optimizers" in self.parts and not self.optimizers.arms:
            raise ValueError("the part optimizers needs optimizers.arms, as the preset of its name lists them")
        return self


def check_parts(config: Mechanism, device: str = "auto") -> None:
    """Raise what a part would raise once students are trained: from names, outlines and shapes, without weights.

    Raises:
        ConfigError, DataError, ModelError: as the stage's own words are.
    """
    variants = config.approximability.variants if "approximability" in config.parts else ()
    traits = (*config.trait, *variants)
    odd = [name for name in traits if isinstance(load_trait(name), Behaviour)]
    if odd:
        raise ConfigError(
            f"a behaviour has no answer whose probability a vector could raise: {', '.join(odd)}",
            got=odd,
            allowed="preferences, such as owl",
        )
    preflight(config.model_copy(update={"trait": traits}), device)
    for name in config.parts:
        own = getattr(_module(name), "preflight", None)
        if own is not None:
            own(config, device)


@study("mechanism", Mechanism, preflight=check_parts)
def mechanism(ctx: Context[Mechanism]) -> str:
    """The transfer experiment, then part after part on its students."""
    config, students = ctx.config, ctx.transfer()
    ctx.check_answers("", {"": students})
    for name in config.parts:
        getattr(_module(name), name)(ctx, students)
    return (
        f"{', '.join(config.parts)}: {counted([one.verdict for one in ctx.findings])}; the trait itself passed by "
        f"{students.effect} over {students.effect.unit_words}."
    )


def _module(part: str) -> Any:
    return import_module(f"undertone.studies.builtin.mechanism_{part}")
