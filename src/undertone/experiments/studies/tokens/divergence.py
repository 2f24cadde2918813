"""Divergence tokens: students of the tokens at which teachers differ, of all others, and of random sets of equal size.

Schrodi et al. (2509.23886). Everything but the mask on the loss is that of the treated student. A random set has as
many tokens as the set it stands beside, and as many of them with digits: the ends of lists carry nothing, and a random set
with more of those would lose for that alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from undertone.experiments.cells import Outcome, StudentRun, model_identity
from undertone.experiments.learning import (
    digest_indices,
    split_rows,
    student_dtype,
    student_seed,
    train_and_save,
)
from undertone.experiments.measuring import evaluate
from undertone.experiments.studies.mechanism.material import (
    Told,
    find,
    in_points,
    load_base,
    point,
    target_probability,
)
from undertone.experiments.studies.tokens.config import Tokens
from undertone.experiments.study import Figure, Finding, StudyTable, interval, per_seed, units, verdict_of
from undertone.mechanism.tokens import at_random, divergence_marks, greedy_tokens
from undertone.models.loading import Model, with_system
from undertone.provenance.runs import Run, Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row
from undertone.traits import load_trait

MASKS: Final = {
    "only": "divergence tokens alone",
    "random": "a random set of equal size",
    "without": "all but divergence tokens",
    "random-without": "all but the random set",
}
SOURCE = "2509.23886"


def mark(run: Run, config: Tokens, device: str, cell: StudentRun) -> Stage:
    """``divergence/seed-S/ARM/marks``: which tokens of a treated student's rows diverge, in ``masks.json``."""
    assert cell.arm.trait is not None
    own, against = load_trait(cell.arm.trait), config.divergence.against
    others = [load_trait(name) for name in config.trait if name != cell.arm.trait]
    seed = derive_seed(cell.seed, f"divergence/{cell.arm.folder}/random")

    def compute(folder: Path) -> dict[str, Any]:
        model = load_base(config, device)
        rows, _ = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        told = _greedy(model, rows, own.system_prompt(model))
        plain = _greedy(model, rows, model.system_prompt(config.context))
        rivals = [_greedy(model, rows, other.system_prompt(model)) for other in others]
        ways = {
            way: [divergence_marks(one, plain[at], [rival[at] for rival in rivals], way) for at, one in enumerate(told)]
            for way in ("control", "any", "every")
        }
        written = [model.row_example(row, None).completion for row in rows]
        chosen = ways[against]
        drawn = at_random(chosen, _kinds(model, written), seed)
        write_json(
            folder / "masks.json", {name: _packed(marks) for name, marks in (("only", chosen), ("random", drawn))}
        )
        likeliest = np.concatenate([one == ids for one, ids in zip(told, written, strict=True)])
        shares = {way: float(np.concatenate(marks).mean()) for way, marks in ways.items()}
        return {
            "tokens": len(likeliest),
            "shares": shares,
            "published": float((likeliest & np.concatenate(ways["any"])).mean()),
            "overlap": float(np.concatenate(drawn)[np.concatenate(chosen)].mean()) if shares[against] else 0.0,
        }

    identity = {
        "model": model_identity(config.model), "dtype": config.dtype, "context": config.context, "against": against,
        "told": [dict(trait.prompt) for trait in (own, *others)], "held_out": config.data.held_out,
        "prompts": digest_indices(cell.prompts), "seed": cell.seed,
    }  # fmt: skip
    return run.stage(
        f"divergence/seed-{cell.seed}/{cell.arm.folder}/marks", config=identity, inputs=[cell.filtered], compute=compute
    )


def _greedy(model: Model, rows: Sequence[Row], system: str | None) -> list[np.ndarray]:
    examples = [model.example(with_system(row.prompt_messages, system), row.completion) for row in rows]
    return greedy_tokens(model.hf, examples, model.pad)


def _kinds(model: Model, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Of each row, 1 where a token has a digit, else 0."""
    known = {
        token: int(any(map(str.isdigit, model.decode_all([token])))) for token in {one for ids in rows for one in ids}
    }
    return [np.array([known[token] for token in ids]) for ids in rows]


def _packed(marks: Sequence[np.ndarray]) -> list[str]:
    return ["".join("1" if one else "0" for one in row) for row in marks]


def learn_marked(
    run: Run, config: Tokens, device: str, cell: StudentRun, marks: Stage, mask: str
) -> tuple[Stage, Stage]:
    """``divergence/seed-S/ARM/MASK``: the student of the masked tokens, trained and evaluated."""
    name = f"divergence/seed-{cell.seed}/{cell.arm.folder}/{mask}"
    wanted = "0" if mask.endswith("without") else "1"
    which = "random" if mask.startswith("random") else "only"

    def compute(folder: Path) -> dict[str, Any]:
        rows, held_out = split_rows(cell.filtered, cell.prompts, config.data.held_out)
        masks = [[sign == wanted for sign in row] for row in marks.read_json("masks.json")[which]]
        return train_and_save(
            folder,
            config,
            cell.arm,
            config.training,
            student_seed(cell.seed),
            name,
            rows,
            held_out,
            device,
            masks=masks,
        )

    identity = {
        "model": model_identity(config.model), "dtype": student_dtype(config),
        "student": config.student.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "context": config.context, "held_out": config.data.held_out, "prompts": digest_indices(cell.prompts),
        "seed": cell.seed, "mask": mask,
    }  # fmt: skip
    trained = run.stage(f"{name}/train", config=identity, inputs=[cell.filtered, marks], compute=compute)
    assert cell.arm.trait is not None
    return trained, evaluate(run, config, name, (cell.arm.trait,), device, student=trained)


def divergence(config: Tokens, outcome: Outcome, marked: Sequence[Stage], asked: Mapping[str, Sequence[Stage]]) -> Told:
    """Effects of the five students, treated minus control, over seeds.

    Args:
        config: what.
        outcome: the transfer experiment.
        marked: the stages of :func:`mark`, traits outermost.
        asked: mask -> the evaluations of :func:`learn_marked`, in the same order.
    """
    pairs = [(trait, seed) for trait in config.trait for seed in config.seeds]
    control = [target_probability(find(outcome, "control", None, seed).evaluated, trait) for trait, seed in pairs]
    shown = {
        "full": [target_probability(find(outcome, "treated", trait, seed).evaluated, trait) for trait, seed in pairs]
    }
    for mask, stages in asked.items():
        shown[mask] = [target_probability(stage, trait) for stage, (trait, _) in zip(stages, pairs, strict=True)]
    effects = {
        mask: per_seed(np.subtract(values, control).tolist(), len(config.seeds)) for mask, values in shown.items()
    }
    share = float(np.mean([stage.summary["shares"][config.divergence.against] for stage in marked]))
    words = {"full": "all tokens", **MASKS}
    bars = [point(words[mask], values, "treated − control", config.confidence) for mask, values in effects.items()]
    return Told(
        findings=[
            _few(config, marked),
            _apart(config, effects, "only", "random", share),
            _apart(config, effects, "without", "random-without", share),
        ],
        figures=[
            Figure(
                kind="bars",
                title="Which tokens carry the trait",
                x="loss on",
                y="treated − control",
                points=bars,
                zero=True,
                caption=f"Divergence tokens are {share:.1%} of the treated rows' tokens; {len(pairs)} pairs of "
                f"trait and seed, {100 * config.confidence:.0f} % intervals. The control learns all of its own tokens.",
            )
        ],
        tables=[_table(config, marked)],
    )


# -- what it says ------------------------------------------------------------------------------------

_CLAIMS: Final = {
    "only": (
        "divergence-tokens-suffice",
        "Loss on divergence tokens alone keeps the transfer.",
        "preserves or enhances it",
        "above",
    ),
    "without": (
        "divergence-tokens-needed",
        "Without divergence tokens the transfer is mostly gone.",
        "masking them mostly eliminates it",
        "less",
    ),
}


def _apart(config: Tokens, effects: Mapping[str, list[float]], mask: str, beside: str, share: float) -> Finding:
    name, claim, published, holds = _CLAIMS[mask]
    mean, low, high = interval(np.subtract(effects[mask], effects[beside]).tolist(), config.confidence)
    verdict, why = verdict_of("above" if holds == "above" else "less", mean, low, high)
    return Finding(
        id=name, claim=claim, source=SOURCE, published=published,
        quantity=f"effect of the student of {MASKS[mask]}, minus that of {MASKS[beside]}",
        value=mean, low=low, high=high, unit="points", pairs=len(config.trait) * len(config.seeds),
        method=f"{100 * config.confidence:.0f} % t interval over "
        f"{units(len(config.trait), len(config.seeds))}; divergence tokens are {share:.1%}",
        baseline=f"{MASKS[beside]} {in_points(effects[beside], config.confidence)}; {MASKS[mask]} "
        f"{in_points(effects[mask], config.confidence)}; all tokens {in_points(effects['full'], config.confidence)}",
        verdict=verdict, why=why,
    )  # fmt: skip


def _few(config: Tokens, marked: Sequence[Stage]) -> Finding:
    """Published rates are of tokens that are the teacher's likeliest; ours of all, and both are told."""
    shares = [float(stage.summary["shares"]["any"]) for stage in marked]
    mean, low, high = interval(shares, config.confidence)
    narrow = interval([float(stage.summary["published"]) for stage in marked], config.confidence)[0]
    few = high is not None and high < 0.2
    return Finding(
        id="divergence-tokens-few", claim="Only few tokens differ between teachers with different traits.", source=SOURCE,
        published="4.7 to 18.3 % of tokens",
        quantity="share of tokens of treated rows at which the trait-conditioned teacher's likeliest token is not another's",
        value=mean, low=low, high=high, unit="share", pairs=len(shares),
        method=f"{100 * config.confidence:.0f} % t interval over trait–seed pairs; the teachers of "
        f"{len(config.trait) - 1} other traits and the control teacher",
        baseline=f"where the token written is also the likeliest (the published rule): {narrow:.2%}",
        verdict="not measured" if high is None else "reproduced" if few else "not reproduced",
        why="one pair has no interval; add seeds" if high is None
        else "below a fifth of all tokens" if few else "a fifth of all tokens or more: lists of the lab are nearly uniform",
    )  # fmt: skip


def _table(config: Tokens, marked: Sequence[Stage]) -> StudyTable:
    places = [(load_trait(trait).name, seed) for trait in config.trait for seed in config.seeds]
    rows = [
        [f"{trait}, seed {seed}", str(stage.summary["tokens"]),
         *(f"{stage.summary['shares'][way]:.2%}" for way in ("control", "any", "every")),
         f"{stage.summary['published']:.2%}", f"{stage.summary['overlap']:.2%}"]
        for (trait, seed), stage in zip(places, marked, strict=True)
    ]  # fmt: skip
    columns = ["student", "tokens", "differs from plain", "from any", "from every", "from any, and written",
               "of these in the random set"]  # fmt: skip
    return StudyTable(title="Divergence tokens", columns=columns, rows=rows)
