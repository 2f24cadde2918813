"""``kind: mechanism``: why it happens. One set of teachers, rows and students; nine parts that ask one claim each.

Every part is a function from the common `Material` to what it has to say. A preset of each part's name runs it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from undertone.errors import ConfigError, ModelError
from undertone.experiments.cells import arms_of, model_identity
from undertone.experiments.conduct import Outcome, Study, student_runs
from undertone.experiments.config import BiasOnly, Full, Lora
from undertone.experiments.pipeline import compute
from undertone.experiments.preflight import check_trainable, preflight
from undertone.experiments.studies.mechanism.causality import stranger
from undertone.experiments.studies.mechanism.config import Mechanism, OptimizerArm
from undertone.experiments.studies.mechanism.kinship import between_of, models_of
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    answers_kept,
    depth,
    effects,
    in_points,
    layer_at,
)
from undertone.experiments.study import per_seed
from undertone.experiments.workers import Workers
from undertone.models.layers import check_layers
from undertone.models.loading import outline
from undertone.models.students import trainable
from undertone.optimizers import PreconditionedSGD
from undertone.provenance.runs import Run
from undertone.training import build_optimizer
from undertone.traits import Behaviour, load_trait


def study(run: Run, config: Mechanism, pool: Workers, device: str) -> Outcome:
    """The transfer experiment, then part after part."""
    outcome = compute(run, config, arms_of(config), pool, device)
    material = Material(run, config, pool, device, outcome, stages=list(outcome.stages()))
    told = [_part(name)(material) for name in config.parts]
    findings = [finding for part in told for finding in part.findings]
    reproduced = sum(finding.verdict == "reproduced" for finding in findings)
    partly = sum(finding.verdict == "partly" for finding in findings)
    transfer = in_points(per_seed(effects(outcome, config.trait, config.seeds), len(config.seeds)), config.confidence)
    names = _models(config)
    return Outcome(
        model=config.model,
        sentence=f"{', '.join(config.parts)}: {reproduced} of {len(findings)} measured claims reproduced, {partly} partly; "
        f"the trait itself passed by {transfer} over {len(config.trait)} traits and {len(config.seeds)} seeds.",
        findings=findings,
        stages=list({stage.name: stage for stage in material.stages}.values()),
        figures=[figure for part in told for figure in part.figures],
        tables=[table for part in told for table in part.tables],
        checks=[answers_kept("", {"": outcome}), *(check for part in told for check in part.checks)],
        models={name: model_identity(name) for name in sorted(names)},
        data={cell.generated.name: cell.generated.summary["data"] for cell in outcome.cells},
    )


def _part(name: str) -> Callable[[Material], Told]:
    part: Callable[[Material], Told] = import_module(f"undertone.experiments.studies.mechanism.{name}").study
    return part


def _models(config: Mechanism) -> set[str]:
    names = {config.model, config.teacher.model or config.model}
    if "kinship" in config.parts:
        names |= {*models_of(config), *(name for name, _ in between_of(config))}
    return names


# -- what would stop it later --------------------------------------------------------------------------


def preflight_parts(config: Mechanism, device: str) -> None:
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
    if {"approximability", "causality"} & set(config.parts):
        for name in traits:
            stranger(name, [other for other in config.trait if other != name])
    if "kinship" in config.parts:
        models_of(config)  # says at once that it is another model's
    preflight(config.model_copy(update={"trait": traits}), device)
    if "optimizers" in config.parts:
        for arm in config.optimizers.arms:
            _steps(config, arm)
    if "adapters" in config.parts:
        ranks = config.adapters.ranks
        for student in (BiasOnly(), Full(), *(Lora(rank=rank, alpha=rank) for rank in ranks)):
            check_trainable(outline(config.model), student, [config.training])
    if "kinship" in config.parts:
        _kin(config, device)
    _layers(config)


def _steps(config: Mechanism, arm: OptimizerArm) -> None:
    """An arm's optimiser is built, on weights that are not there."""
    student = arm.student or config.student
    hf = trainable(outline(config.model).hf, student.model_dump(mode="json"), 0)
    named = {name: weight for name, weight in hf.named_parameters() if weight.requires_grad}
    options = dict(arm.options)
    if arm.optimizer == PreconditionedSGD.__name__:  # a scout's, of these shapes
        options["second_moments"] = {name: torch.ones_like(weight) for name, weight in named.items()}
    recipe = config.training.model_copy(update={"optimizer": arm.optimizer, "options": options, "learning_rate": 1.0})
    try:
        build_optimizer(named, recipe)
    except ConfigError as error:
        raise ConfigError(
            f"optimizers.arms, {arm.name}: {error.what}", got=error.got, allowed=error.allowed, fix=error.fix
        ) from error


def _kin(config: Mechanism, device: str) -> None:
    """Every model is there, can be taught and asked, and trained as a student; lab models are built later, side by side."""
    for name in (*models_of(config), *(name for name, _ in between_of(config))):
        if name.startswith("lab/"):
            depth(name)
            continue
        teacher = config.teacher.model_copy(update={"model": name})
        preflight(config.model_copy(update={"model": name, "teacher": teacher}), device)


def _layers(config: Mechanism) -> None:
    """The layers that parts name are there, in every model that they name them of."""
    taught = [config.model, config.teacher.model or config.model]
    wanted = {
        "causality": (config.causality.layer, taught),
        "distillation": (config.distillation.layer, taught),
        "recovery": (config.recovery.layer, [config.model]),
        "kinship": (config.kinship.layer, list(config.kinship.models)),
    }
    for part, (layer, models) in wanted.items():
        for name in models if part in config.parts else ():
            try:
                check_layers(depth(name), [layer_at(name if part == "kinship" else config.model, layer)])
            except ModelError as error:
                raise ConfigError(
                    f"{part}.layer: {error.what} in {name}", got=error.got, allowed=error.allowed
                ) from error


MECHANISM = Study(study, preflight_parts, student_runs)
