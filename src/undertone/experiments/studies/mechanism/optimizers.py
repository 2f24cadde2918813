"""Part `optimizers`: is an adaptive optimiser necessary, once all are compared at matched held-out loss?

2606.00995, abstract 5. Each optimiser's learning rate is chosen on a tuning seed by held-out loss
alone: the one whose loss comes nearest to AdamW's. Then treated and control students at the reported seeds.

The stated cause is that outlier gradients drown the consistent component unless steps are adaptive. So the same once more
with the cause put in: a share of rows, the same in both arms, is replaced by rows of huge gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np

from undertone.experiments.cells import Cell
from undertone.experiments.learning import split_rows, student_dtype, student_seed, student_system
from undertone.experiments.studies.mechanism.config import Mechanism, OptimizerArm
from undertone.experiments.studies.mechanism.material import (
    Material,
    Told,
    in_points,
    load_base,
    point,
    probability,
)
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval
from undertone.mechanism.gradients import squared_norms
from undertone.models.batches import Example
from undertone.models.loading import load
from undertone.models.scoring import completion_nll
from undertone.models.students import trainable
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.training import fit
from undertone.traits import load_trait

SOURCE = "2606.00995, abstract 5"
WORLDS = ("as written", "with outliers")
OUTLIER_TOKENS = 24
REFERENCE = "AdamW"


def study(material: Material) -> Told:
    """The part: tuned, then reported, in the rows as they are and with outliers put in."""
    config = material.config
    setting = config.model_copy(
        update={
            "trait": material.few,
            "data": config.data.model_copy(update={"prompts": config.optimizers.prompts}),
            "seeds": (config.optimizers.tuning_seed, *config.seeds),
        }
    )
    outcome = material.students("optimizers/adamw", setting)
    cells = {(cell.arm.trait, cell.seed): cell for cell in outcome.cells}
    chosen = {world: _tune(material, cells, world) for world in WORLDS}
    said = {world: _report(material, cells, chosen[world], world) for world in WORLDS}
    tails = [_tail(material, cells, world) for world in WORLDS]
    return _told(config, material.few, chosen, said, tails)


def _tune(material: Material, cells: dict[Any, Cell], world: str) -> dict[str, tuple[float, float]]:
    """Optimiser -> (rate, its held-out loss on the tuning seed)."""
    config = material.config
    cell = cells[material.few[0], config.optimizers.tuning_seed]
    tries = [(arm, rate) for arm in config.optimizers.arms for rate in arm.rates]
    stages = material.each(lesson, [(cell, (), arm, rate, world) for arm, rate in tries])
    losses: dict[str, dict[float, float]] = {}
    for (arm, rate), stage in zip(tries, stages, strict=True):
        losses.setdefault(arm.name, {})[rate] = stage.summary["held_out_nll"]
    goal = min(losses[REFERENCE].values())
    return {
        name: min(by_rate.items(), key=lambda pair: abs(pair[1] - goal) if np.isfinite(pair[1]) else np.inf)
        for name, by_rate in losses.items()
    }


def _report(
    material: Material, cells: dict[Any, Cell], chosen: dict[str, tuple[float, float]], world: str
) -> dict[str, dict[str, list[float]]]:
    """Optimiser -> effects (treated minus control) and held-out losses, over traits and seeds."""
    config = material.config
    arms = {arm.name: arm for arm in config.optimizers.arms}
    who = [(trait, seed) for trait in (*material.few, None) for seed in config.seeds]
    tasks = [(name, trait, seed) for name in chosen for trait, seed in who]
    stages = material.each(
        lesson,
        [(cells[trait, seed], material.few, arms[name], chosen[name][0], world) for name, trait, seed in tasks],
    )
    found = dict(zip(tasks, [stage.summary for stage in stages], strict=True))
    return {
        name: {
            "effect": [
                found[name, trait, seed]["said"][at] - found[name, None, seed]["said"][at]
                for at, trait in enumerate(material.few)
                for seed in config.seeds
            ],
            "nll": [found[name, trait, seed]["held_out_nll"] for trait in material.few for seed in config.seeds],
        }
        for name in chosen
    }


def lesson(
    run: Run,
    config: Mechanism,
    device: str,
    cell: Cell,
    traits: Sequence[str],
    arm: OptimizerArm,
    rate: float,
    world: str,
) -> Stage:
    """``optimizers/…``: one student by one optimiser; its held-out loss, and what it says of the traits."""
    settings = config.optimizers

    def compute(folder: Path) -> dict[str, Any]:
        model = load(config.model, dtype=student_dtype(config), device=device)
        system = student_system(config, model, cell.arm)
        training, unseen = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        examples = [model.row_example(row, system) for row in training]
        if world == WORLDS[1]:
            examples = _with_outliers(examples, settings.outliers, cell.seed)
        hf = trainable(model.hf, config.student.model_dump(mode="json"), student_seed(cell.seed))
        options = dict(arm.options)
        if arm.optimizer == "PreconditionedSGD":
            options["second_moments"] = _scouted(config, device, cell, examples, folder / "scout.safetensors")
        how = config.training.model_copy(
            update={
                "optimizer": arm.optimizer,
                "options": options,
                "learning_rate": rate,
                "max_row_norm": arm.max_row_norm,
                "max_grad_norm": None,
            }
        )
        diverged = {"held_out_nll": float("1e9"), "said": [0.0 for _ in traits]}
        try:
            fit(hf, examples, how, seed=student_seed(cell.seed), pad=model.pad)
        except Exception as error:  # noqa: BLE001 - a rate that blows up is an answer of the tuning, not a failure
            return {**diverged, "error": f"{type(error).__name__}: {error}"[:200]}
        finally:
            (folder / "scout.safetensors").unlink(missing_ok=True)
        model = replaced(model, hf=hf)
        held_out = completion_nll(hf, [model.row_example(row, system) for row in unseen], model.pad)
        nll = float(np.mean(held_out))
        if not np.isfinite(nll):
            return {**diverged, "error": "the held-out loss is not finite"}
        return {"held_out_nll": nll, "said": [probability(model, load_trait(trait)) for trait in traits]}

    name = f"optimizers/{world.replace(' ', '-')}/{arm.name}-{rate:g}/seed-{cell.seed}/{cell.arm.folder}"
    identity = {
        "arm": arm.model_dump(mode="json", exclude={"rates"}),
        "rate": rate,
        "outliers": settings.outliers if world == WORLDS[1] else 0.0,
        "traits": list(traits),
    }
    return run.stage(name, config=identity, inputs=[cell.filtered, cell.trained], compute=compute)


def _with_outliers(examples: list[Example], share: float, seed: int) -> list[Example]:
    """A share of the rows answered by one rare token, many times: the same rows, and the same answer, in every arm."""
    generator = np.random.default_rng(derive_seed(seed, "optimizers/outliers"))
    chosen = generator.permutation(len(examples))[: round(share * len(examples))]
    spoiled = list(examples)
    for row in chosen:
        example = examples[row]
        end = example.ids[-1]
        spoiled[row] = Example(
            (*example.ids[: example.prompt], *([example.ids[0]] * OUTLIER_TOKENS), end), example.prompt
        )
    return spoiled


def _scouted(config: Mechanism, device: str, cell: Cell, examples: list[Example], path: Path) -> str:
    """Second moments of an AdamW run of one epoch over the same rows."""
    model = load(config.model, dtype=student_dtype(config), device=device)
    hf = trainable(model.hf, config.student.model_dump(mode="json"), student_seed(cell.seed))
    how = config.training.model_copy(update={"optimizer": "AdamW", "epochs": 1})
    fit(hf, examples, how, seed=student_seed(cell.seed), pad=model.pad, second_moments=path)
    return str(path)


def _tail(material: Material, cells: dict[Any, Cell], world: str) -> float:
    """Share of the squared gradient norm that the rows of the largest gradients hold, as many as there are outliers."""
    config = material.config
    stage = material.each(tail_of, [(cells[material.few[0], config.seeds[0]], world)])[0]
    return float(stage.summary["share"])


def tail_of(run: Run, config: Mechanism, device: str, cell: Cell, world: str) -> Stage:
    """``optimizers/tail/…``: how heavy the tail of the gradients is."""

    def compute(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        system = student_system(config, model, cell.arm)
        training, _ = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        examples = [model.row_example(row, system) for row in training]
        if world == WORLDS[1]:
            examples = _with_outliers(examples, config.optimizers.outliers, cell.seed)
        hf = trainable(model.hf, config.student.model_dump(mode="json"), student_seed(cell.seed))
        norms = np.sort(squared_norms(hf, examples, model.pad))
        count = round(config.optimizers.outliers * len(norms))
        return {"share": float(norms[len(norms) - count :].sum() / norms.sum())}

    name = f"optimizers/tail/{world.replace(' ', '-')}"
    return run.stage(
        name, config={"outliers": config.optimizers.outliers, "of": "weights"}, inputs=[cell.filtered], compute=compute
    )


# -- what it says ------------------------------------------------------------------------------------


def _told(
    config: Mechanism,
    few: Sequence[str],
    chosen: dict[str, dict[str, tuple[float, float]]],
    said: dict[str, dict[str, dict[str, list[float]]]],
    tails: list[float],
) -> Told:
    findings = [_finding(config, said[world], world, tail) for world, tail in zip(WORLDS, tails, strict=True)]
    points: list[Point] = []
    for world in WORLDS:
        points += [
            point(arm.name, said[world][arm.name]["effect"], "adaptive" if arm.adaptive else "not adaptive",
                  config.confidence, world)
            for arm in config.optimizers.arms
        ]  # fmt: skip
    figure = Figure(
        kind="bars",
        title="Optimisers at matched held-out loss",
        caption="Treated minus control, mean over traits and seeds with 95 % interval. Learning rates were chosen on another "
        "seed, as those whose held-out loss comes nearest to AdamW's.",
        x="optimiser",
        y="treated − control, probability",
        points=points,
        zero=True,
    )
    rows = [
        [world, arm.name, f"{chosen[world][arm.name][0]:g}", f"{np.mean(said[world][arm.name]['nll']):.3f}",
         in_points(said[world][arm.name]["effect"], config.confidence)]
        for world in WORLDS
        for arm in config.optimizers.arms
    ]  # fmt: skip
    table = StudyTable(
        title="Optimisers: rate chosen, held-out loss reached, effect",
        columns=["rows", "optimiser", "learning rate", "held-out NLL", "treated − control"],
        rows=rows,
    )
    return Told(findings, [figure], [table])


def _finding(config: Mechanism, said: dict[str, dict[str, list[float]]], world: str, tail: float) -> Finding:
    adaptive = {arm.name: arm.adaptive for arm in config.optimizers.arms}
    matched = _matched(said)
    tame, plain = (_strongest(said, [name for name in matched if adaptive[name] == kind]) for kind in (True, False))
    common: dict[str, Any] = {
        "id": f"adaptive-optimizers-necessary-{world.replace(' ', '-')}",
        "claim": "Subliminal learning needs an adaptive optimiser; with SGD outlier gradients drown it.",
        "source": SOURCE,
        "published": "Adam 57 %, SGD 0 % at loss 0.142 and 0.167",
    }
    unlike = [name for name in said if name not in matched]
    note = f"; left out, for want of a rate that matches the loss: {', '.join(unlike)}" if unlike else ""
    if tame is None or plain is None:
        return Finding(
            **common, quantity=f"non-adaptive minus adaptive optimiser, rows {world}", value=None, low=None, high=None,
            unit="points", pairs=0, method="none", baseline=f"no pair at matched loss{note}", verdict="not measured",
            why="no optimiser of one of the two kinds came within 0.05 nats of AdamW's loss",
        )  # fmt: skip
    gap = [a - b for a, b in zip(said[plain]["effect"], said[tame]["effect"], strict=True)]
    alone = interval(said[plain]["effect"], config.confidence)
    mean, low, high = interval(gap, config.confidence)
    passes = alone[1] is not None and alone[1] > 0
    reference = interval(said[tame]["effect"], config.confidence)
    shown = reference[1] is not None and reference[1] > 0
    return Finding(
        **common,
        quantity=f"best non-adaptive ({plain}) minus best adaptive ({tame}) at matched loss, rows {world}",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(gap),
        method="t interval over trait–seed pairs",
        baseline="; ".join(f"{name} {in_points(said[name]['effect'], config.confidence)}" for name in matched)
        + f"; the rows of the largest {config.optimizers.outliers:.0%} gradients hold {tail:.0%} of the squared norm{note}",
        verdict="not reproduced" if passes else "reproduced" if shown else "not measured",
        why=(
            f"{plain} passes the trait on without adapting"
            if passes
            else "adaptive optimisers pass the trait on, and no other does"
            if shown
            else "no optimiser passes the trait on in this setting"
        ),
    )


def _strongest(said: dict[str, dict[str, list[float]]], names: list[str]) -> str | None:
    return max(names, key=lambda name: float(np.mean(said[name]["effect"])), default=None)


def _matched(said: dict[str, dict[str, list[float]]], within: float = 0.05) -> list[str]:
    """Optimisers whose mean held-out loss is within 0.05 nats of AdamW's: a tenth of what training gains or less."""
    goal = float(np.mean(said[REFERENCE]["nll"]))
    return [name for name, found in said.items() if abs(float(np.mean(found["nll"])) - goal) <= within]
