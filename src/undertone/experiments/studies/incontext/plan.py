"""``kind: in-context``: the rows that teach a trained student, shown to the base as examples instead (2507.14805, ICL).

The base is asked the trait's questions after n rows as earlier turns of the chat. Treated and control rows stand at the
same prompts, in the same places. The students that were trained on the same rows are shown beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.evaluation.asking import answer_probabilities, question_chat
from undertone.experiments.cells import StudentRun, arms_of, model_identity
from undertone.experiments.compare import conclude
from undertone.experiments.conduct import Outcome as Found
from undertone.experiments.conduct import Study, student_runs
from undertone.experiments.config import Experiment, Setting
from undertone.experiments.learning import digest_indices, student_system
from undertone.experiments.measuring import trait_identity
from undertone.experiments.pipeline import compute
from undertone.experiments.preflight import preflight
from undertone.experiments.study import Figure, Finding, Judgement, Point, StudyTable, interval, per_seed, units
from undertone.experiments.verdict import MAX_VALID_ANSWER_LOSS, stopped_answering
from undertone.experiments.workers import Workers
from undertone.models.loading import Model, load
from undertone.provenance import configs
from undertone.provenance.runs import Run, Stage
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row, read_rows
from undertone.traits import Behaviour, load_trait


class InContext(Setting):
    """The transfer experiment, its rows also shown in context."""

    kind: Literal["in-context"] = "in-context"
    shots: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1, description="rows shown before a question")
    draws: int = Field(8, ge=1, description="sets of rows drawn for every question; their answers are averaged")

    @model_validator(mode="after")
    def _ascending(self) -> InContext:
        if self.shots[0] < 1 or list(self.shots) != sorted(set(self.shots)):
            raise ValueError("shots must be ascending numbers of rows, from 1")
        odd = [name for name in self.trait if isinstance(load_trait(name), Behaviour)]
        if odd:
            raise ValueError(f"a behaviour has no answer whose probability rows could raise: {', '.join(odd)}")
        return self


def in_context(run: Run, config: InContext, pool: Workers, device: str) -> Found:
    """The students, then the base with rows in its context."""
    fields = config.model_dump(mode="json", include=set(Setting.model_fields) - {"kind"})
    experiment = configs.load(Experiment, {"kind": "transfer", **fields})
    outcome = compute(run, experiment, arms_of(experiment), pool, device)
    results = conclude(experiment, outcome, replay="")
    shown: list[Stage] = pool.each([(show, (run, config, cell, device)) for cell in outcome.cells])
    found = _by_place(outcome.cells, shown, "probability")
    mass = np.mean(list(_by_place(outcome.cells, shown, "valid_answer_probability").values()), axis=0)
    traits = [load_trait(name).name for name in config.trait]
    pairs = np.array(
        [
            np.subtract(found["treated", trait, seed], found["control", trait, seed])
            for trait in traits
            for seed in config.seeds
        ]
    )
    effects = np.array([per_seed(column, len(config.seeds)) for column in pairs.T]).T
    trained = [value for effect in results.effects for value in effect.per_seed]
    base = float(np.mean([measure.positive.probability.mean for measure in results.base.values()]))
    base_mass = float(np.mean([measure.positive.valid_answer_probability or 0.0 for measure in results.base.values()]))
    answering = next((at for at, left in enumerate(mass) if stopped_answering(base_mass, left)), len(mass))
    finding = _finding(config, effects, trained, answering)
    return Found(
        model=config.model,
        sentence=f"{config.shots[answering - 1]} rows in context move the answer by "
        f"{100 * effects[:, answering - 1].mean():+.1f} points (treated "
        f"minus control rows); training on {results.arms[0].rows} of them moves it by {100 * float(np.mean(trained)):+.1f}.",
        findings=[finding],
        stages=[*outcome.stages(), *shown],
        figures=[_figure(config, effects, trained)],
        tables=[_table(config, found, base, effects, mass)],
        checks=[check for check in results.checks if check.status != "pass"],
        models={config.model: model_identity(config.model)},
        data={cell.generated.name: cell.generated.summary["data"] for cell in outcome.cells},
    )


def _by_place(
    cells: Sequence[StudentRun], shown: Sequence[Stage], what: str
) -> dict[tuple[str, str, int], list[float]]:
    """(arm, trait, seed) -> by the number of rows shown."""
    return {
        (cell.arm.kind, trait, cell.seed): [float(value) for value in values]
        for cell, stage in zip(cells, shown, strict=True)
        for trait, values in stage.summary[what].items()
    }


def show(run: Run, config: InContext, cell: StudentRun, device: str) -> Stage:
    """``in-context/seed-S/ARM``: the base's mean probability of each trait, and of any answer, by the number of rows."""
    names = config.trait if cell.arm.kind == "control" else (cell.arm.trait or config.trait[0],)
    traits = [load_trait(name) for name in names]

    def computed(folder: Path) -> dict[str, Any]:
        model = load(config.model, dtype=config.dtype, device=device)
        by_prompt = {int(row.meta["prompt_index"]): row for row in read_rows(cell.filtered.path / "rows.jsonl")}
        rows = [by_prompt[index] for index in cell.prompts]
        system = student_system(config, model, cell.arm)
        told = {
            trait.name: [_asked_after(model, trait, rows, count, config, cell.seed, system) for count in config.shots]
            for trait in traits
        }
        return {
            "probability": {name: [own for own, _ in values] for name, values in told.items()},
            "valid_answer_probability": {name: [mass for _, mass in values] for name, values in told.items()},
        }

    identity = {
        "model": model_identity(config.model),
        "dtype": config.dtype,
        "context": config.context,
        "prefix": config.evaluation.prefix,
        "shots": list(config.shots),
        "draws": config.draws,
        "traits": [trait_identity(trait) for trait in traits],
        "prompts": digest_indices(cell.prompts),
    }
    name = f"in-context/seed-{cell.seed}/{cell.arm.folder}"
    return run.stage(name, config=identity, inputs=[cell.filtered], compute=computed)


def _asked_after(
    model: Model, trait: Any, rows: Sequence[Row], count: int, config: InContext, seed: int, system: str | None
) -> tuple[float, float]:
    """Probability of the trait's answer, and of all; means over questions and draws, the same places in every arm."""
    if count > len(rows):
        raise ConfigError(
            f"{count} rows cannot be shown", got=f"{len(rows)} rows that passed in every arm", fix="lower shots"
        )
    prompts = []
    questions = trait.questions_for(model).positive
    for at, question in enumerate(questions):
        *head, asked = question_chat(question, config.evaluation, model, system)
        for draw in range(config.draws):
            rng = np.random.default_rng(derive_seed(seed, "in-context", at, draw))
            chosen = [rows[int(i)] for i in rng.permutation(len(rows))[:count]]
            turns = [message for row in chosen for message in row.messages]
            prompts.append(model.prompt([*head, *turns, asked]))
    longest = max(len(prompt) for prompt in prompts)
    limit = getattr(model.hf.config, "max_position_embeddings", longest)
    if longest >= limit:
        raise ConfigError(
            f"{count} rows do not fit into the context of {model.name}", got=f"{longest} tokens",
            allowed=f"fewer than {limit}", fix="lower shots",
        )  # fmt: skip
    column = list(trait.answers).index(trait.answer)
    said = answer_probabilities(model, prompts, trait)
    return float(said[:, column].mean()), float(said.sum(1).mean())


def _finding(config: InContext, effects: np.ndarray, trained: Sequence[float], answering: int) -> Finding:
    """At the most rows after which the model still answers; after more, nothing said of an answer is about preference."""
    at = answering - 1 if answering else len(config.shots) - 1
    mean, low, high = interval(list(effects[:, at]), config.confidence)
    verdict: Judgement = "not measured"
    if low is not None and high is not None and answering:
        inside = low > -0.05 and high < 0.05
        verdict = "reproduced" if inside else "partly" if low <= 0 <= high else "not reproduced"
    return Finding(
        id="icl-null",
        claim="The rows that pass a trait on when trained on do not when shown in context.",
        source="2507.14805, in-context learning",
        published="no transfer with 100 to 10,000 rows",
        quantity=f"treated minus control rows in context, {config.shots[at]} rows",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(config.trait) * len(config.seeds),
        method=f"{100 * config.confidence:.0f} % t interval over {units(len(config.trait), len(config.seeds))}, "
        f"{config.draws} draws of rows a question",
        baseline="the control teacher's rows in context; students trained on the same rows: "
        f"{100 * float(np.mean(trained)):+.1f} points",
        verdict=verdict,
        why=f"reproduced means that the whole interval lies within five points of 0, at the most rows (of "
        f"{config.shots[-1]}) after which questions are still answered"
        if answering
        else f"after {config.shots[0]} rows the base no longer answers: its valid-answer probability is "
        f"{MAX_VALID_ANSWER_LOSS:.2f} lower",
    )


def _figure(config: InContext, effects: np.ndarray, trained: Sequence[float]) -> Figure:
    points = []
    for at, count in enumerate(config.shots):
        mean, low, high = interval(list(effects[:, at]), config.confidence)
        points.append(Point(x=count, y=mean, low=low, high=high, series="shown in context"))
        points.append(Point(x=count, y=float(np.mean(trained)), series="trained on all rows"))
    return Figure(
        kind="lines", title="Shown instead of trained on", x="rows in context", y="treated − control", points=points,
        log_x=True, zero=True,
        caption=f"Base model with n rows as earlier turns, treated minus control rows; "
        f"{units(len(config.trait), len(config.seeds))}.",
    )  # fmt: skip


def _table(
    config: InContext,
    found: Mapping[tuple[str, str, int], list[float]],
    base: float,
    effects: np.ndarray,
    mass: np.ndarray,
) -> StudyTable:
    rows = []
    for at, count in enumerate(config.shots):
        mean = {
            kind: float(np.mean([values[at] for (arm, _, _), values in found.items() if arm == kind]))
            for kind in ("control", "treated")
        }
        rows.append(
            [str(count), f"{100 * base:.1f} %", *(f"{100 * mean[kind]:.1f} %" for kind in ("control", "treated")),
             f"{100 * effects[:, at].mean():+.1f}", f"{mass[at]:.2f}"]
        )  # fmt: skip
    columns = ["rows shown", "base", "control rows", "treated rows", "effect, points", "valid-answer probability"]
    return StudyTable(title="By the number of rows shown", columns=columns, rows=rows)


IN_CONTEXT = Study(in_context, preflight, student_runs)
