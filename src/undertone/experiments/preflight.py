"""What would stop a run later, found before it starts: from names, headers and shapes, in seconds, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from undertone.errors import ConfigError
from undertone.evaluation.behaviours import check_decidable
from undertone.experiments.config import Setting
from undertone.judges import check_judge
from undertone.judges.filter import JudgeFilter
from undertone.models.layers import check_layers, decoder_layers
from undertone.models.loading import Context, Model, outline, target_device, with_system
from undertone.models.students import trainable
from undertone.preferences import check_installed
from undertone.provenance.configs import Config
from undertone.rows import read_rows
from undertone.teachers import FinetunedTeacher, TeacherConfig, VectorTeacher, client_of
from undertone.training import Training, build_optimizer
from undertone.traits import Behaviour, Trait, load_trait
from undertone.vectors import load_vector


def preflight(config: Setting, device: str = "auto") -> None:
    """Raise what a stage would raise later. Builds a lab model that is not there yet.

    Raises:
        ConfigError, DataError, ModelError: as the stage's own words are.
    """
    traits = [load_trait(name) for name in config.trait]
    if len({trait.name for trait in traits}) < len(traits):
        raise ConfigError("two traits have the same name", got=[trait.name for trait in traits])
    target_device(device)
    student = outline(config.model)
    teacher = outline(config.teacher.model) if config.teacher.model else student
    config.domain.prompts(1, 0, student)  # a source that cannot be read says so
    for trait in traits:
        trait.questions_for(student)
        _askable(student, trait, config.context)
        _askable(student, trait, config.evaluation.context)
        check_decidable(trait, config.evaluation, config.judge, student)
        _teachable(teacher, trait, config.teacher)
    for one in config.filters:
        if isinstance(one, JudgeFilter):
            check_judge(one.judge)
    config.domain.inputs()  # a source that cannot be read
    if config.teacher.kind == "endpoint":
        client_of(config.teacher)
    taught = [config.teacher.training] if isinstance(config.teacher, FinetunedTeacher) else []
    check_trainable(student, config.student, [config.training, *taught])
    if config.dpo:
        check_installed()


def check_trainable(model: Model, student: Config, recipes: Sequence[Training]) -> None:
    """Raise what training this kind of student would: weights that are not there, an optimiser that does not fit.

    Afterwards the model's outline is that of a student.

    Raises:
        ConfigError: in training's own words.
    """
    hf = trainable(model.hf, student.model_dump(mode="json"), 0)
    named = {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}
    for recipe in recipes:
        build_optimizer(named, recipe)


def _askable(model: Model, trait: Trait, context: Context) -> None:
    system = model.system_prompt(context, trait.prompt_for(model))
    model.render(with_system([{"role": "user", "content": "?"}], system))


def _teachable(model: Model, trait: Trait, config: TeacherConfig) -> None:
    if isinstance(config, FinetunedTeacher):
        if config.rows:
            read_rows(config.rows)
        elif isinstance(trait, Behaviour):
            raise ConfigError(
                f"a teacher cannot be trained on answers that name {trait.name!r}: it is of the kind {trait.kind}",
                got="teacher.rows = null",
                fix="teacher.rows=FILE.jsonl: rows that show the behaviour",
            )
        return
    if isinstance(config, VectorTeacher) and config.file:
        load_vector(Path(config.file)).check_fits(model)
        return
    if isinstance(config, VectorTeacher):
        check_layers(len(decoder_layers(model.hf)), [config.layer])
    text = None if isinstance(config, VectorTeacher) else config.text
    model.render(with_system([{"role": "user", "content": "?"}], text or trait.system_prompt(model)))
