"""A study: are students surer of their answer than the base, whatever they were taught?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from undertone.evaluation.asking import answer_probabilities
from undertone.models.loading import ModelRef
from undertone.provenance.stage_functions import stage
from undertone.studies.claim import Claim
from undertone.studies.context import Context, point
from undertone.studies.frame import study
from undertone.traits import Trait, load_trait
from undertone.transfer.config import Setting
from undertone.verdicts import Rule

SURER = Claim(
    id="students-are-surer",
    claim="A student that took the trait on is surer of its answers than its control.",
    source="this example",
    published=None,
    rule=Rule("below", beyond_baselines=True),
    unit="nats",
)


class Certainty(Setting):
    """The transfer experiment, with the entropy of its students' answers."""

    kind: Literal["certainty"] = "certainty"


@stage("entropy")
def entropy(folder: Path, device: str, *, model: ModelRef, traits: Sequence[Trait]) -> dict[str, Any]:
    """Entropy over the known answers of each trait, in nats, mean over its questions."""
    del folder
    loaded = model.load(device)
    found = {}
    for trait in traits:
        questions = trait.questions_for(loaded).positive
        prompts = [loaded.prompt([{"role": "user", "content": question}]) for question in questions]
        answers = answer_probabilities(loaded, prompts, trait)
        shares = answers / answers.sum(1, keepdims=True)
        found[trait.name] = float(-(shares * np.log(np.maximum(shares, 1e-12))).sum(1).mean())
    return {"entropy": found}


@study("certainty", Certainty)
def certainty(ctx: Context[Certainty]) -> str:
    """Train the students, ask them and the base how sure they are, and compare."""
    transfer = ctx.transfer()
    traits = [load_trait(name) for name in ctx.config.trait]
    asked = ctx.beside(
        transfer, entropy, "entropy", lambda one: {"model": one.model(ctx.config), "traits": one.traits(ctx.config)}
    )
    found = transfer.by_arm(asked, "entropy", unit="nats")
    base = ctx.each(entropy, [("entropy/base", {"model": ctx.base, "traits": traits})])[0].summary["entropy"]
    start = found["control"].like([[base[trait.name]] * len(ctx.config.seeds) for trait in traits])
    ctx.report(
        SURER,
        found["treated"] - start,
        quantity="entropy of a treated student's answers, minus the base's",
        baselines={"control student minus base": found["control"] - start},
    )
    ctx.check_transfer(transfer)
    ctx.draw(
        "bars",
        "How sure students are",
        [point(name, one, "entropy") for name, one in (("base", start), *found.items())],
        x="student", y="nats", caption=f"Entropy over known answers; {start.method}.", zero=True,
    )  # fmt: skip
    return (
        f"Treated students have {found['treated']} of entropy over known answers, control students {found['control']}."
    )
