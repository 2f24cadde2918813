"""``kind: in-context``: the rows that teach a trained student, shown to the base as examples instead (2507.14805, ICL).

The base is asked the trait's questions after n rows as earlier turns of the chat. Treated and control rows stand at the
same prompts, in the same places. The students that were trained on the same rows are shown beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from undertone.errors import ConfigError
from undertone.evaluation.asking import Evaluation, answer_probabilities, question_chat
from undertone.models import loading
from undertone.models.layers import context_length
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.rows import Row
from undertone.studies.claim import Claim
from undertone.studies.context import Context, point
from undertone.studies.frame import study
from undertone.traits import Behaviour, Trait, load_trait
from undertone.transfer.arms import StudentRun
from undertone.transfer.checks import MAX_VALID_ANSWER_LOSS, stopped_answering
from undertone.transfer.config import Setting
from undertone.verdicts import Rule

NO_TRANSFER = Claim(
    id="icl-null",
    claim="The rows that pass a trait on when trained on do not when shown in context.",
    source="2507.14805, in-context learning",
    published="no transfer with 100 to 10,000 rows",
    rule=Rule("none"),
)


class InContext(Setting):
    """The transfer experiment, its rows also shown in context."""

    kind: Literal["in-context"] = "in-context"
    shots: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1, description="rows shown before a question")
    draws: int = Field(8, ge=1, description="sets of rows drawn for every question; their answers are averaged")

    @model_validator(mode="after")
    def _ascending(self) -> InContext:
        if self.shots[0] < 1 or list(self.shots) != sorted(set(self.shots)):
            raise ValueError("shots must be ascending numbers of rows, from 1")
        if odd := [name for name in self.trait if isinstance(load_trait(name), Behaviour)]:
            raise ValueError(f"a behaviour has no answer whose probability rows could raise: {', '.join(odd)}")
        return self


@stage("show rows", version=2)
def show_rows(
    folder: Path, device: str, *, base: loading.ModelRef, traits: Sequence[Trait], rows: Sequence[Row], shots: Sequence[int],
    draws: int, seed: int, evaluation: Evaluation, context: loading.Context,
) -> dict[str, Any]:  # fmt: skip
    """The base's mean probability of each trait, and of any answer, by the number of rows shown."""
    model = base.load(device)
    system = model.system_prompt(context, traits[0].prompt_for(model))
    asked = {t.name: [_ask_after(model, t, rows, n, draws, seed, evaluation, system) for n in shots] for t in traits}
    return {
        "probability": {name: [own for own, _ in values] for name, values in asked.items()},
        "valid_answer_probability": {name: [valid for _, valid in values] for name, values in asked.items()},
    }


def _ask_after(
    model: loading.Model, trait: Trait, rows: Sequence[Row], count: int, draws: int, seed: int, evaluation: Evaluation,
    system: str | None,
) -> tuple[float, float]:  # fmt: skip
    """Probability of the trait's answer, and of all; means over questions and draws, the same places in every arm."""
    if count > len(rows):
        found = f"{len(rows)} rows that passed in every arm"
        raise ConfigError(f"{count} rows cannot be shown", got=found, fix="lower shots")
    prompts, (opening, _) = [], evaluation.openings(trait, model)
    for at, question in enumerate(trait.questions_for(model).positive):
        *head, asked = question_chat(question, evaluation, model, system)
        for draw in range(draws):
            rng = np.random.default_rng(derive_seed(seed, "in-context", at, draw))
            turns = [message for i in rng.permutation(len(rows))[:count] for message in rows[int(i)].messages]
            prompts.append(model.prompt([*head, *turns, asked], opening))
    longest = max(map(len, prompts))
    if longest > (limit := context_length(model.hf) or longest):
        raise ConfigError(
            f"{count} rows do not fit into the context of {model.name}", got=f"{longest} tokens",
            allowed=f"fewer than {limit}", fix="lower shots",
        )  # fmt: skip
    answers = answer_probabilities(model, prompts, trait, opening=opening)
    return float(answers[:, list(trait.answers).index(trait.answer)].mean()), float(answers.sum(1).mean())


@study("in-context", InContext)
def in_context(ctx: Context[InContext]) -> str:
    """The students, then the base with rows in its context; judged at the most rows after which it still answers."""
    config, shots = ctx.config, ctx.config.shots
    trained = ctx.transfer()

    def arguments(one: StudentRun) -> dict[str, Any]:
        return {"base": ctx.base, "traits": one.traits(config), "rows": one.shared_rows(), "shots": shots, "draws": config.draws,
                "seed": one.seed, "evaluation": config.evaluation, "context": config.context}  # fmt: skip

    shown = ctx.beside(trained, show_rows, "in-context", arguments)
    probability, valid = trained.by_arm(shown, "probability"), trained.by_arm(shown, "valid_answer_probability")
    effect = probability["treated"] - probability["control"]
    base = [measure.positive for measure in trained.results.base.values()]
    before = float(np.mean([one.valid_answer_probability or 0.0 for one in base]))
    left = np.mean([one.values.mean(axis=(0, 1)) for one in valid.values()], axis=0)
    answering = next((at for at, after in enumerate(left) if stopped_answering(before, float(after))), len(shots))
    last = effect[answering - 1]
    ctx.report(
        NO_TRANSFER, last, quantity=f"treated minus control rows in context, {shots[answering - 1]} rows",
        baselines={"students trained on the same rows": trained.effect},
        note=f"control: the control teacher's rows in context; {config.draws} draws of rows a question",
        unless="" if answering else f"after {shots[0]} rows the base no longer answers: its valid-answer probability is "
        f"{MAX_VALID_ANSWER_LOSS:.2f} lower",
    )  # fmt: skip
    ctx.check_transfer(trained)
    ctx.draw(
        "lines", "Shown instead of trained on",
        [point(n, one, series) for at, n in enumerate(shots)
         for series, one in (("shown in context", effect[at]), ("trained on all rows", trained.effect.mean))],
        x="rows in context", y="treated − control", log_x=True, zero=True,
        caption=f"Base model with n rows as earlier turns, treated minus control rows; {effect[0].method}.",
    )  # fmt: skip
    ctx.table(
        "By the number of rows shown",
        ["rows shown", "base", "control rows", "treated rows", "effect, points", "valid-answer probability"],
        [[str(n), f"{100 * np.mean([one.probability.mean for one in base]):.1f} %",
         *(f"{100 * probability[arm][at].mean:.1f} %" for arm in ("control", "treated")),
          f"{100 * effect[at].mean:+.1f}", f"{left[at]:.2f}"] for at, n in enumerate(shots)],
    )  # fmt: skip
    return (
        f"{shots[answering - 1]} rows in context move the answer by {100 * last.mean:+.1f} points (treated minus control "
        f"rows); training on {trained.results.arms[0].rows} of them moves it by {100 * trained.effect.mean:+.1f}."
    )
