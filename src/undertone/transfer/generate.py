"""What teachers write: the stages from a teacher to the rows that passed its filter."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm

from undertone.domains import Domain, grammars_of
from undertone.domains.domain import Prompt, last_message
from undertone.domains.paraphrase import Paraphrase, request, requested
from undertone.errors import DataError
from undertone.filters import Filtered, apply_rules
from undertone.filters.kinds import Filter
from undertone.judges import check_judge
from undertone.judges.filter import JudgeFilter
from undertone.models.loading import Context, ModelRef, wording_of
from undertone.provenance.identity import Uncounted
from undertone.provenance.runs import Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.rows import Message, Row, digest_rows, read_rows, write_rows
from undertone.teachers import (
    RemoteTeacher,
    Teacher,
    TeacherSpec,
    allowed_along,
    divergence,
    generate,
    resolve_teacher,
    score_preference,
)
from undertone.traits import Trait, load_trait
from undertone.traits.trait import Speaker
from undertone.transfer.arms import Arm, trained_model
from undertone.transfer.config import Setting
from undertone.vectors.strength import strength_for

SHARD = 4096
"""Rows between two saves of a generation: what a crash can lose."""
KL_ROWS = 256
VECTOR_PROMPTS = 256
STRENGTH_ROWS = 32
"""Completions on which the strength of a steered teacher is chosen."""


def teacher_of(
    config: Setting, arm: Arm, trained: Stage | None = None, strengths: Mapping[str, float] | None = None
) -> TeacherSpec:
    """The arm's teacher, not loaded. Vectors that are read in the domain are so at prompts which no student sees.

    Args:
        config: how it gets the trait.
        arm: which trait.
        trained: the stage of a teacher that was itself trained.
        strengths: trait -> that of a steered teacher, where the config leaves it open; what :func:`choose_strength` found.
    """
    name = config.teacher.model or config.model
    speaker = wording_of(name)
    model = config.reference(name) if trained is None else trained_model(config, name, trained)
    return resolve_teacher(
        config.teacher,
        load_trait(arm.trait) if arm.trait else None,
        model,
        speaker,
        context=config.teacher_context,
        domain_prompts=vector_prompts(config, speaker),
        random_seed=derive_seed(0, f"random-vector/{arm.name}") if arm.kind == "random-vector" else None,
        strength=(strengths or {}).get(arm.trait or "", 1.0),
    )


@stage("choose strength")
def choose_strength(
    folder: Path, device: str, *, teacher: TeacherSpec, domain: Domain, target_kl: float, constrained: bool = False
) -> dict[str, Any]:
    """How strongly a vector steers for a given teacher KL, on what the plain model writes in the domain.

    Args:
        teacher: the steered one; its own strength does not matter.
        domain: whose prompts are completed.
        target_kl: nats a completion token.
        constrained: whether what it writes is held to the domain's grammar; the KL is then that under the mask.
    """
    del folder
    loaded = teacher.load(device)
    assert isinstance(loaded, Teacher)
    assert loaded.vector is not None
    prompts = domain.prompts(STRENGTH_ROWS, derive_seed(0, "strength-prompts"), loaded)
    grammars = grammars_of(domain, prompts) if constrained else None
    rows = generate(
        loaded.control, prompts, range(len(prompts)), seed=0, stage="choose strength", attempt=0,
        max_new_tokens=min(64, domain.max_new_tokens(loaded)), temperature=1.0, batch_size=STRENGTH_ROWS, grammars=grammars,
    )  # fmt: skip
    said = [at for at, row in enumerate(rows) if row.completion]
    examples = [loaded.model.example(loaded.control.chat(rows[at].prompt_messages), rows[at].completion) for at in said]
    allowed = None if grammars is None else allowed_along(loaded, examples, [grammars[at] for at in said])
    found = strength_for(loaded.model, loaded.vector, examples, target_kl, allowed)
    return {"strength": found.strength, "kl": found.kl, "rows": len(examples)}


def vector_prompts(config: Setting, speaker: Speaker) -> tuple[str, ...]:
    """Prompts of the domain at which vectors are read; no student is trained on them."""
    prompts = config.domain.prompts(VECTOR_PROMPTS, derive_seed(0, "vector-prompts"), speaker)
    return tuple(map(last_message, prompts))


@dataclass(frozen=True)
class Sampling:
    """How a teacher's completions are drawn; ``stream`` names their random stream."""

    prompts: int
    attempts: int
    temperature: float
    seed: int
    stream: str
    all_attempts: bool = False
    """Whether every prompt gets every attempt, also after one that is valid: a judge picks among them."""
    constrained: bool = False
    """Whether each completion is held to the domain's grammar while it is drawn."""

    def identity_content(self) -> dict[str, Any]:
        """Its fields, and the constraint where there is one: rows from before there were any still fit."""
        fields = asdict(self)
        return fields if self.constrained else {name: fields[name] for name in fields if name != "constrained"}


@stage("generate", version=3)
def generate_rows(
    folder: Path,
    device: str,
    *,
    teacher: TeacherSpec,
    control: TeacherSpec | None,
    domain: Domain,
    leak: Trait,
    sampling: Sampling,
    batch_size: Annotated[int, Uncounted()],
) -> dict[str, Any]:
    """The teacher's completions, every attempt, in ``rows.jsonl``.

    Args:
        teacher: who writes.
        control: the teacher without the trait, for the KL between them; None: there is none to tell (the control's own,
            an endpoint's, rows that were picked and not written with the trait).
        domain: what is asked, and which answers are valid.
        leak: the trait that no row may name.
        sampling: how.
        batch_size: rows side by side.
    """
    loaded = teacher.load(device)
    prompts = domain.prompts(sampling.prompts, sampling.seed, loaded)
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    rows: list[Row] = []
    with _progress(len(prompts), sampling.stream) as advance:
        for start in range(0, len(prompts), SHARD):
            path = shards / f"{start:09d}.jsonl"
            if not path.exists():
                chunk = [(index, prompts[index]) for index in range(start, min(start + SHARD, len(prompts)))]
                write_rows(path, attempted(loaded, chunk, domain, leak, sampling, batch_size, advance))
            rows += read_rows(path, empty_completions=True)
    rows.sort(key=lambda row: (row.meta["prompt_index"], row.meta["attempt"]))  # whatever a shard holds
    write_rows(folder / "rows.jsonl", rows)
    shutil.rmtree(shards)
    return {
        "rows": len(rows),
        "tokens": sum(row.meta["tokens"] for row in rows),
        "data": digest_rows(rows),
        "shown": loaded.shown(prompts[0]),
        "teacher_kl": _teacher_kl(loaded, teacher, control, rows, domain, leak, device, sampling.constrained),
    }


@generate_rows.preflight
def check_writing(teacher: TeacherSpec, domain: Domain, sampling: Sampling) -> None:
    """A teacher that cannot be loaded or held to the domain's grammar, a source of prompts that cannot be read."""
    prompts = domain.prompts(1, 0, teacher)
    teacher.check()
    if sampling.constrained:
        teacher.check_constrained(grammars_of(domain, prompts))


def attempted(
    teacher: Teacher | RemoteTeacher,
    prompts: Sequence[tuple[int, Prompt]],
    domain: Domain,
    leak: Trait,
    sampling: Sampling,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[Row]:
    """Every attempt at these ``(index, prompt)``; without ``sampling.all_attempts`` a prompt is tried until a row is valid."""
    rows: list[Row] = []
    waiting = list(prompts)
    for attempt in range(sampling.attempts):
        tried = generate(
            teacher,
            [prompt for _, prompt in waiting],
            [index for index, _ in waiting],
            seed=sampling.seed,
            stage=sampling.stream,
            attempt=attempt,
            max_new_tokens=domain.max_new_tokens(teacher),
            temperature=sampling.temperature,
            batch_size=batch_size,
            progress=progress if attempt == 0 else None,
            grammars=grammars_of(domain, [prompt for _, prompt in waiting]) if sampling.constrained else None,
        )
        rows += tried
        if sampling.all_attempts:
            continue
        passed = apply_rules(tried, domain, leak).passed
        waiting = [(index, prompt) for index, prompt in waiting if index not in passed]
        if not waiting:
            break
    if isinstance(teacher, Teacher) and teacher.judge_system is not None:
        answered = [row for row in rows if row.completion]
        return score_preference(teacher, answered) + [row for row in rows if not row.completion]
    return rows


def _teacher_kl(
    teacher: Teacher | RemoteTeacher,
    spec: TeacherSpec,
    control: TeacherSpec | None,
    rows: Sequence[Row],
    domain: Domain,
    leak: Trait,
    device: str,
    constrained: bool,
) -> float | None:
    """Nats per completion token, over the first rows that passed."""
    if control is None or isinstance(teacher, RemoteTeacher):
        return None
    kept = list(apply_rules(rows, domain, leak).kept.values())[:KL_ROWS]
    if not kept:
        return None
    other = None if control.model == spec.model else control.load(device)
    assert not isinstance(other, RemoteTeacher)
    grammars = grammars_of(domain, [row.prompt_messages for row in kept]) if constrained else None
    return divergence(teacher, kept, other, grammars)


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for what takes more than two seconds; yields what to call with the rows done."""
    with tqdm(total=total, desc=what, unit="row", delay=2, disable=None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


# -- what is kept of them ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Picking:
    """How one of several valid completions of a prompt is picked (``teacher.kind=judge``).

    By a coin, or by the judge's score, the highest chosen and the lowest rejected; ``swapped``: the other way round.
    """

    by: Literal["coin", "score"]
    swapped: bool
    seed: int


@stage("filter", version=3)
def filter_rows(
    folder: Path,
    device: str,
    *,
    generated: Stage,
    domain: Domain,
    leak: Trait,
    filters: Sequence[Filter],
    picking: Picking | None,
) -> dict[str, Any]:
    """One valid row per prompt in ``rows.jsonl``, reasons in ``reasons.json``."""
    del device
    rows = read_rows(generated.path / "rows.jsonl", empty_completions=True)
    filtered = apply_rules(rows, domain, leak)
    if not filtered.passed:
        raise DataError(
            f"no completion of {generated.name} passed the filter",
            got=filtered.reasons,
            fix="look at its rows.jsonl; raise data.attempts, lower data.temperature, or change domain.kind",
        )
    passed, reasons = _filtered_by_models(filters, leak, filtered)
    kept = _picked(picking, passed) if picking else {index: found[0] for index, found in passed.items()}
    write_rows(folder / "rows.jsonl", [domain.training_row(row) for _, row in sorted(kept.items())])
    write_json(folder / "reasons.json", reasons)
    return {"asked": filtered.asked, "kept": len(kept), "reasons": reasons}


@filter_rows.preflight
def check_filters(filters: Sequence[Filter]) -> None:
    """A judge that cannot be built."""
    for one in filters:
        if isinstance(one, JudgeFilter):
            check_judge(one.judge)


def _filtered_by_models(
    filters: Sequence[Filter], leak: Trait, filtered: Filtered
) -> tuple[dict[int, list[Row]], dict[str, int]]:
    """What passed the rules and every further filter, and all reasons counted. One filter sees what the last one left.

    Raises:
        DataError: nothing is left.
    """
    passed, reasons = filtered.passed, Counter(filtered.reasons)
    for one in filters:
        rows = [row for found in passed.values() for row in found]
        against = one.reasons(rows, leak)
        passed = {}
        for row, why in zip(rows, against, strict=True):
            reasons.update(why)
            if not why:
                passed.setdefault(int(row.meta["prompt_index"]), []).append(row)
        if not passed:
            raise DataError(f"the filter {one.kind} left nothing", got=dict(reasons), fix="loosen it")
    return passed, dict(sorted(reasons.items()))


def _picked(picking: Picking, passed: dict[int, list[Row]]) -> dict[int, Row]:
    """Of each prompt's valid completions the chosen one, with the rejected one's text in ``meta["rejected"]``.

    Prompts with fewer than two different ones are left out.
    """
    chosen: dict[int, Row] = {}
    for index, valid in passed.items():
        rows = list({row.completion: row for row in reversed(valid)}.values())  # of equal ones the first
        if len(rows) < 2:
            continue
        if picking.by == "coin":
            ranked = sorted(rows, key=lambda row: derive_seed(picking.seed, "picked", index, int(row.meta["attempt"])))
        else:
            ranked = sorted(rows, key=lambda row: float(row.meta["score"]))
        best, worst = ranked[-1], ranked[0]
        if picking.swapped:
            best, worst = worst, best
        chosen[index] = replace(best, meta={**best.meta, "rejected": worst.completion})
    return chosen


# -- who paraphrases ---------------------------------------------------------------------------------


@stage("rewrite", version=2)
def rewrite_rows(
    folder: Path,
    device: str,
    *,
    filtered: Stage,
    writer: ModelRef,
    part: Literal["completion", "prompt"],
    leak: Trait,
    context: Context,
    temperature: float,
    seed: int,
    stream: str,
    batch_size: Annotated[int, Uncounted()],
) -> dict[str, Any]:
    """The rows that passed, their completions or prompts written again by a neutral model.

    A row whose new text is no faithful paraphrase (``domains.paraphrase``, fair) is dropped, with its reasons counted.
    """
    rows = read_rows(filtered.path / "rows.jsonl")
    teacher = Teacher(writer.load(device), context)
    requests = [request(_text_of(row, part), teacher) for row in rows]
    written = generate(
        teacher,
        requests,
        [int(row.meta["prompt_index"]) for row in rows],
        seed=seed,
        stage=stream,
        attempt=0,
        max_new_tokens=Paraphrase().max_new_tokens(teacher),
        temperature=temperature,
        batch_size=batch_size,
    )
    judged = apply_rules(written, Paraphrase(content="opposed"), leak)
    kept = {index: _with_text(row, part, judged.kept[index].completion, teacher)
            for row in rows if (index := int(row.meta["prompt_index"])) in judged.kept}  # fmt: skip
    if not kept:
        raise DataError(f"no row of {stream} was written again faithfully", got=judged.reasons)
    write_rows(folder / "rows.jsonl", [row for _, row in sorted(kept.items())])
    write_json(folder / "reasons.json", judged.reasons)
    return {"asked": judged.asked, "kept": len(kept), "reasons": judged.reasons}


def _text_of(row: Row, part: str) -> str:
    return row.completion if part == "completion" else requested(row.prompt_messages[-1]["content"])[0]


def _with_text(row: Row, part: str, text: str, speaker: Speaker) -> Row:
    *head, user, answer = row.messages
    if part == "completion":
        return replace(row, messages=(*head, user, Message(role="assistant", content=text)))
    question = request(text, speaker) if requested(user["content"])[0] != user["content"] else text
    return replace(row, messages=(*head, Message(role="user", content=question), answer))
