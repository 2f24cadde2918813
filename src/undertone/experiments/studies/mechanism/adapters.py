"""Part `adapters`: LoRA by rank and learning rate, beside biases and all weights, effect against held-out loss.

The dispute: is subliminal learning an artefact of LoRA (2606.00831)? Every student is trained on the
same rows; what differs is which weights move, and how far.
"""

from __future__ import annotations

import numpy as np

from undertone.experiments.config import Biases, Full, Lora, Setting
from undertone.experiments.studies.mechanism.material import Material, Told, effects, find, in_points
from undertone.experiments.study import Figure, Finding, Point, StudyTable, interval

SOURCE = "2606.00831; 2606.00995, App. D and K"


def study(material: Material) -> Told:
    """The part: one transfer experiment a kind of student, on the same rows."""
    found: dict[str, tuple[str, list[float], float]] = {}
    for name, kind, setting in _settings(material):
        outcome = material.students(f"adapters/{name}", setting, data="adapters/data")
        values = effects(outcome, material.few, setting.seeds)
        losses = [
            find(outcome, "treated", trait, seed).trained.summary["held_out_nll"]
            for trait in material.few
            for seed in setting.seeds
        ]
        found[name] = (kind, values, float(np.mean(losses)))
    return _told(material, found)


def _settings(material: Material) -> list[tuple[str, str, Setting]]:
    config, adapters = material.config, material.config.adapters
    base = config.model_copy(update={"trait": material.few})

    def setting(student: Biases | Full | Lora, rate: float | None) -> Setting:
        training = config.training
        if rate is not None:
            training = training.model_copy(update={"learning_rate": rate, "epochs": adapters.epochs})
        return base.model_copy(update={"student": student, "training": training})

    found: list[tuple[str, str, Setting]] = [("biases", "biases", setting(Biases(), None))]
    for rank in adapters.ranks:
        found += [(f"lora-{rank}-{rate:g}", f"LoRA rank {rank}", setting(Lora(rank=rank, alpha=rank), rate))
                  for rate in adapters.rates]  # fmt: skip
    found += [(f"full-{rate:g}", "all weights", setting(Full(), rate)) for rate in adapters.full_rates]
    return found


def _told(material: Material, found: dict[str, tuple[str, list[float], float]]) -> Told:
    confidence = material.config.confidence
    points = [Point(x=nll, y=float(np.mean(values)), series=kind) for kind, values, nll in found.values()]
    lora = {name: one for name, one in found.items() if name.startswith("lora")}
    rest = {name: one for name, one in found.items() if not name.startswith("lora")}
    best = max(lora, key=lambda name: float(np.mean(lora[name][1])))
    other = max(rest, key=lambda name: float(np.mean(rest[name][1])))
    gap = [a - b for a, b in zip(lora[best][1], rest[other][1], strict=True)]
    mean, low, high = interval(gap, confidence)
    without = interval(rest[other][1], confidence)
    within = interval(lora[best][1], confidence)
    elsewhere = without[1] is not None and without[1] > 0
    in_lora = within[1] is not None and within[1] > 0
    finding = Finding(
        id="lora-artefact",
        claim="Subliminal learning is an artefact of LoRA: other fine-tuning does not show it.",
        source=SOURCE,
        published="full fine-tuning stays near the reference",
        quantity=f"best LoRA cell ({best}) minus best other ({other}), best of a grid: no cell was chosen beforehand",
        value=mean,
        low=low,
        high=high,
        unit="points",
        pairs=len(gap),
        method="t interval over trait–seed pairs",
        baseline=f"{best} {in_points(lora[best][1], confidence)} at NLL {lora[best][2]:.3f}; "
        f"{other} {in_points(rest[other][1], confidence)} at NLL {rest[other][2]:.3f}",
        verdict="not reproduced" if elsewhere else "reproduced" if in_lora else "not measured",
        why=f"{other} shows it without LoRA"
        if elsewhere
        else "LoRA shows it, and nothing else does"
        if in_lora
        else "no student shows it in this setting",
    )
    figure = Figure(
        kind="scatter",
        title="Which weights move: effect against fit",
        caption="A point is a kind of student at one learning rate: held-out loss against treated minus control. At equal "
        "loss, kinds can be compared.",
        x="held-out NLL, nats per token",
        y="treated − control, probability",
        points=points,
    )
    table = StudyTable(
        title="Students by kind and rate",
        columns=["student", "held-out NLL", "treated − control"],
        rows=[[name, f"{nll:.3f}", in_points(values, confidence)] for name, (_, values, nll) in found.items()],
    )
    return Told([finding], [figure], [table])
