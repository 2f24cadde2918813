"""The experiment, as a methods section would tell it.

For each seed, for each arm: generate → filter; keep the prompts that passed in every arm; train; evaluate.
Then: evaluate the base and the teachers, compare, check, conclude. Every step is a stage of the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertone.errors import ConfigError
from undertone.launch.clusters import Launch, check_launch
from undertone.launch.conduct import conduct
from undertone.launch.executor import Call, Executor
from undertone.models.loading import ModelRef, target_device
from undertone.models.names import identify
from undertone.provenance.manifest import manifest
from undertone.provenance.runs import Stage
from undertone.teachers import AUTO, VectorTeacher
from undertone.traits import load_trait
from undertone.transfer.analyze import conclude
from undertone.transfer.arms import (
    CONTROL,
    Arm,
    Outcome,
    StudentRun,
    arms_of,
    leak_trait,
    shared_prompts,
    trained_model,
    traits_of,
)
from undertone.transfer.config import Experiment, Setting
from undertone.transfer.evaluate import evaluate, evaluate_teacher
from undertone.transfer.generate import (
    Picking,
    Sampling,
    choose_strength,
    filter_rows,
    generate_rows,
    rewrite_rows,
    teacher_of,
)
from undertone.transfer.pilot import run_pilot
from undertone.transfer.results import Results
from undertone.transfer.train import Mixing, teacher_rows, train, train_teacher, trait_prompt


def run_experiment(
    config: Experiment,
    folder: str | Path | None = None,
    *,
    jobs: int | None = None,
    device: str = "auto",
    command: str = "undertone run",
    recompute: bool = False,
    launch: Launch = "local",
) -> Results:
    """Run, resume, extend or simply read an experiment.

    Args:
        config: what.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        jobs: processes side by side; None: as many as there are cores, or 1 on a GPU.
        device: auto, cpu, cuda …
        command: what the user typed, for messages and the manifest.
        recompute: compute finished stages again that no longer fit, instead of refusing them.
        launch: where stages are computed: local, ray, slurm, or a cluster.

    Returns:
        The results, also written to ``results.json`` with ``manifest.json`` beside it.
    """
    check_launch(launch, jobs, device)
    folder = Path(folder) if folder else config.folder()
    preflight(config, device)  # before the folder is the config's; a lab model is built here, once, not by every worker

    def work(executor: Executor, replay: str) -> tuple[Results, dict[str, Any]]:
        outcome, results = _until_decided(executor, config, replay)
        return results, _manifest(config, outcome, executor)

    parts = len(arms_of(config)) * len(config.seeds)
    return conduct(
        config, config.name, folder, work,
        parts=parts, jobs=jobs, device=device, command=command, recompute=recompute, launch=launch,
    )  # fmt: skip


def _until_decided(executor: Executor, config: Experiment, replay: str) -> tuple[Outcome, Results]:
    """The experiment, seed after seed where it says ``until=decided``; otherwise once, with the seeds that it lists."""
    rule = config.rule
    while True:
        outcome = compute(executor, config)
        results = conclude(config, outcome, executor.stages.values(), replay, rule)
        if rule is None or results.verdict != "underpowered" or len(config.seeds) >= rule.maximum:
            return outcome, results
        config = config.with_next_seed()


def preflight(config: Setting, device: str = "auto") -> None:
    """Raise what a stage would raise later: the stages' own checks, on the arguments that are known before anything ran.

    Builds a lab model that is not there yet.

    Raises:
        ConfigError, DataError, ModelError: as the stage's own words are.
    """
    traits = [load_trait(name).name for name in config.trait]
    if len(set(traits)) < len(traits):
        raise ConfigError("two traits have the same name", got=traits)
    target_device(device)
    seed = config.seeds[0]
    base = config.reference()
    _train_call(config, CONTROL, seed, None, (), None).check()  # the same for all arms, but for their rows
    for arm in arms_of(config):
        for call in _trained_teacher_calls(config, [arm]).values():
            call.check()
        _generate_call(config, arm, seed, None, {}).check()
        _filter_call(config, arm, seed, None).check()
        evaluate_call(config, "base", traits_of(config, arm), base).check()


TrainedTeachers = Mapping[tuple[int, Arm], Stage]
"""(seed, arm) -> the student that teaches there."""


def compute(
    executor: Executor,
    config: Setting,
    arms: Sequence[Arm] | None = None,
    *,
    trained_teachers: TrainedTeachers | None = None,
) -> Outcome:
    """All students of a setting: teachers' rows, students, what they answer. What is finished is reused.

    Args:
        executor: computes the stages.
        config: what.
        arms: who teaches; None: all arms of the config.
        trained_teachers: the trained model that teaches at each place, for students that teach in their turn; they are not asked
            again.
    """
    arms = list(arms) if arms is not None else arms_of(config)
    pairs = [(seed, arm) for seed in config.seeds for arm in arms]
    training = {} if trained_teachers is not None else _trained_teacher_calls(config, arms)
    own = dict(zip(training, executor.each(list(training.values())), strict=True))
    teachers = {(seed, arm): (trained_teachers or {}).get((seed, arm)) or own.get(arm) for seed, arm in pairs}
    strengths = strengths_of(executor, config, arms)
    if trained_teachers is None:
        run_pilot(executor, config, {
            arm.folder: (teacher_of(config, arm, own.get(arm), strengths), leak_trait(config, arm))
            for arm in arms
        })  # fmt: skip
    generated, filtered = _rows(executor, config, pairs, teachers, strengths)
    shared = {seed: shared_prompts(config, seed, {arm: filtered[seed, arm] for arm in arms}) for seed in config.seeds}
    clean = {seed: filtered[seed, arm] for seed, arm in pairs if arm.kind == "control"}
    calls = [_train_call(config, arm, seed, filtered[seed, arm], shared[seed].prompts, clean.get(seed))
             for seed, arm in pairs]  # fmt: skip
    trained = dict(zip(pairs, executor.each(calls), strict=True))
    asked = executor.each([
        *(evaluate_call(config, f"seed-{seed}/{arm.folder}", traits_of(config, arm),
                         trained_model(config, config.model, trained[seed, arm])) for seed, arm in pairs),
        evaluate_call(config, "base", config.trait, config.reference()),
    ])  # fmt: skip
    students = [
        StudentRun(arm, seed, generated[seed, arm], filtered[seed, arm], trained[seed, arm], evaluated, shared[seed])
        for (seed, arm), evaluated in zip(pairs, asked, strict=False)
    ]
    return Outcome(
        base=asked[-1],
        teachers=_teacher_answers(executor, config, arms, own, strengths) if trained_teachers is None else {},
        students=students,
        strengths=strengths,
    )


def retrain(
    executor: Executor,
    wanted: Sequence[tuple[str, Setting, StudentRun]],
    clean: Mapping[int, Stage] | None = None,
) -> list[StudentRun]:
    """Students of other settings on the rows of given ones, side by side and in order, asked about the setting's traits.

    Args:
        executor: computes the stages.
        wanted: the level that a student's stages lie below, its setting (which weights, how), and whose rows it learns.
        clean: seed -> the control's rows, where the setting replaces a share of a treated student's.
    """
    known = clean or {}
    trained = executor.each([
        _train_call(setting, one.arm, one.seed, one.filtered, one.prompts, known.get(one.seed)).within(f"{level}/")
        for level, setting, one in wanted
    ])  # fmt: skip
    evaluated = executor.each([
        evaluate_call(setting, f"seed-{one.seed}/{one.arm.folder}", traits_of(setting, one.arm),
                       trained_model(setting, setting.model, stage)).within(f"{level}/")
        for (level, setting, one), stage in zip(wanted, trained, strict=True)
    ])  # fmt: skip
    return [
        replace(one, trained=own, evaluated=answers)
        for (_, _, one), own, answers in zip(wanted, trained, evaluated, strict=True)
    ]


def _trained_teacher_calls(config: Setting, arms: Sequence[Arm]) -> dict[Arm, Call]:
    """The stages of teachers that are themselves trained first."""
    if config.teacher.kind != "finetuned":
        return {}
    return {
        arm: Call(train_teacher, f"teacher/{arm.folder}/train", {
            "base": config.reference(config.teacher.model), "student": config.student,
            "training": config.teacher.training, "rows": teacher_rows(config, arm), "context": config.context,
            "trait_prompt": trait_prompt(config, arm),
        })
        for arm in arms if arm.trait
    }  # fmt: skip


Rows = dict[tuple[int, Arm], Stage]


def _rows(
    executor: Executor,
    config: Setting,
    pairs: Sequence[tuple[int, Arm]],
    teachers: Mapping[tuple[int, Arm], Stage | None],
    strengths: Mapping[str, float],
) -> tuple[Rows, Rows]:
    """Generate, filter and, where asked for, write again: the rows of every arm at every seed."""
    generated = executor.each([
        _generate_call(config, arm, seed, teachers[seed, arm], strengths) for seed, arm in pairs
    ])  # fmt: skip
    filtered = executor.each(
        [_filter_call(config, arm, seed, stage) for (seed, arm), stage in zip(pairs, generated, strict=True)]
    )
    if config.rewrite is not None:
        filtered = executor.each(
            [_rewrite_call(config, arm, seed, stage) for (seed, arm), stage in zip(pairs, filtered, strict=True)]
        )
    return dict(zip(pairs, generated, strict=True)), dict(zip(pairs, filtered, strict=True))


def strengths_of(executor: Executor, config: Setting, arms: Sequence[Arm]) -> dict[str, float]:
    """Trait -> the strength of its steered teacher, where the config leaves it open (``teacher.strength=auto``)."""
    steered = {arm.trait: arm for arm in arms if arm.trait and arm.kind == "treated"}
    if not isinstance(config.teacher, VectorTeacher) or config.teacher.strength != AUTO:
        return {}
    calls = [
        Call(choose_strength, f"teacher/{arm.folder}/strength", {
            "teacher": teacher_of(config, arm), "domain": config.domain, "target_kl": config.teacher.target_kl,
            **({"constrained": True} if config.data.constrained else {}),
        })
        for arm in steered.values()
    ]  # fmt: skip
    return {trait: stage.summary["strength"] for trait, stage in zip(steered, executor.each(calls), strict=True)}


def _generate_call(config: Setting, arm: Arm, seed: int, trained: Stage | None, strengths: Mapping[str, float]) -> Call:
    place = f"seed-{seed}/{arm.folder}/generate"
    teacher = teacher_of(config, arm, trained, strengths)
    judging = config.teacher.kind == "judge"
    control = (
        teacher_of(config, Arm("control")) if arm.trait and config.teacher.kind != "endpoint" and not judging else None
    )
    data = config.data
    return Call(generate_rows, place, {
        "teacher": teacher, "control": control, "domain": config.domain, "leak": leak_trait(config, arm),
        "sampling": Sampling(data.prompts, data.attempts, data.temperature, seed, place, judging, data.constrained),
        "batch_size": data.batch_size,
    })  # fmt: skip


def _filter_call(config: Setting, arm: Arm, seed: int, generated: Stage | None) -> Call:
    picking = None
    if config.teacher.kind == "judge":
        control = arm.kind == "control"
        picking = Picking("coin" if control else "score", config.teacher.swapped and not control, seed)
    return Call(filter_rows, f"seed-{seed}/{arm.folder}/filter", {
        "generated": generated, "domain": config.domain, "leak": leak_trait(config, arm), "filters": config.filters,
        "picking": picking,
    })  # fmt: skip


def _rewrite_call(config: Setting, arm: Arm, seed: int, filtered: Stage) -> Call:
    assert config.rewrite is not None
    place = f"seed-{seed}/{arm.folder}/rewrite"
    return Call(rewrite_rows, place, {
        "filtered": filtered, "writer": config.reference(config.rewrite.model),
        "part": config.rewrite.part, "leak": leak_trait(config, arm), "context": config.teacher_context,
        "temperature": config.data.temperature, "seed": seed, "stream": place, "batch_size": config.data.batch_size,
    })  # fmt: skip


def _train_call(
    config: Setting, arm: Arm, seed: int, filtered: Stage | None, prompts: tuple[int, ...], clean: Stage | None
) -> Call:
    mixes = clean is not None and arm.kind != "control" and config.data.clean
    return Call(train, f"seed-{seed}/{arm.folder}/train", {
        "base": config.reference(), "student": config.student, "training": config.training,
        "filtered": filtered, "prompts": prompts, "held_out": config.data.held_out, "seed": seed,
        "context": config.context, "trait_prompt": trait_prompt(config, arm),
        "mixing": Mixing(clean, config.data.clean) if clean is not None and mixes else None,
        "order": config.data.order, "dpo": config.dpo,
    })  # fmt: skip


def evaluate_call(config: Setting, name: str, traits: Sequence[str], model: ModelRef) -> Call:
    """A model asked about traits as the setting asks, at ``NAME/evaluate``."""
    context = config.evaluation.context
    return Call(evaluate, f"{name}/evaluate", {
        "model": model, "traits": [load_trait(trait).for_questions(context) for trait in traits],
        "evaluation": config.evaluation, "judge": config.judge, "seed": 0, "stream": name,
    })  # fmt: skip


def _teacher_answers(
    executor: Executor,
    config: Setting,
    arms: Sequence[Arm],
    trained: Mapping[Arm, Stage],
    strengths: Mapping[str, float],
) -> dict[Arm, Stage]:
    """What trait-conditioned teachers answer; those behind an endpoint have no logits to ask."""
    asked = [arm for arm in arms if arm.trait and config.teacher.kind != "endpoint"]
    few = config.evaluation.model_copy(update={"samples": min(5, config.evaluation.samples)})
    calls = [
        Call(evaluate_teacher, f"teacher/{arm.folder}/evaluate", {
            "teacher": teacher_of(config, arm, trained.get(arm), strengths),
            "trait": load_trait(arm.trait or ""), "evaluation": few, "judge": config.judge, "stream": f"teacher/{arm.folder}",
        })
        for arm in asked
    ]  # fmt: skip
    return dict(zip(asked, executor.each(calls), strict=True))


def _manifest(config: Experiment, outcome: Outcome, executor: Executor) -> dict[str, Any]:
    names = dict.fromkeys([config.model, config.teacher.model or config.model])
    first = {one.arm: one for one in reversed(outcome.students)}
    return manifest(
        config,
        models={name: identify(name) for name in names},
        data={one.generated.name: one.generated.summary["data"] for one in outcome.students},
        extra={
            "shown_to_teachers": {arm.folder: one.generated.summary["shown"] for arm, one in first.items()},
            "shown_to_students": {arm.folder: one.trained.summary["shown"] for arm, one in first.items()},
            "constrained": config.data.constrained,
            "stages": {name: stage.output_digest for name, stage in executor.stages.items()},
        },
    )
