"""What teachers write: the stages from a teacher to the rows that passed its filter."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertone.domains.domain import Prompt
from undertone.domains.paraphrase import Paraphrase, request, requested
from undertone.errors import DataError
from undertone.experiments.cells import Arm, model_identity, progress_bar
from undertone.experiments.config import Setting
from undertone.filters import Filtered, apply_rules
from undertone.filters.fidelity import Fidelity
from undertone.models.loading import load, outline
from undertone.models.students import student_name
from undertone.provenance.runs import Run, Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message, Row, digest_rows, read_rows, write_rows
from undertone.teachers import RemoteTeacher, Teacher, build_teacher, divergence, generate, score_preference
from undertone.traits import Speaker, Trait, load_trait

SHARD = 4096
"""Rows between two saves of a generation: what a crash can lose."""
KL_ROWS = 256
VECTOR_PROMPTS = 256


def teacher_of(config: Setting, arm: Arm, device: str, trained: Stage | None = None) -> Teacher | RemoteTeacher:
    """The arm's teacher, loaded. Vectors that are read at the domain's prompts are so at prompts which no student sees.

    ``trained`` is the stage of a teacher that was itself trained.
    """
    trait = load_trait(arm.trait) if arm.trait else None
    speaker = outline(config.teacher.model or config.model)
    if config.teacher.kind == "endpoint":
        system = None if trait is None else config.teacher.text or trait.system_prompt(speaker)
        return RemoteTeacher(config.teacher, speaker.form, system)
    return build_teacher(
        config.teacher,
        trait,
        config.model,
        context=config.context,
        dtype=config.dtype,
        device=device,
        random_seed=derive_seed(0, f"random-vector/{arm.name}") if arm.kind == "random-vector" else None,
        domain_prompts=vector_prompts(config, speaker),
        trained=None if trained is None else trained_name(config, trained),
    )


def trained_name(config: Setting, trained: Stage) -> str:
    """The model name of a student, or of a teacher that was trained like one."""
    base = config.teacher.model or config.model
    return student_name(base, config.student.kind, trained.path / "student")


def vector_prompts(config: Setting, speaker: Speaker) -> list[str]:
    """Prompts of the domain at which vectors are read; no student is trained on them."""
    prompts = config.domain.prompts(VECTOR_PROMPTS, derive_seed(0, "vector-prompts"), speaker)
    return [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]


def teacher_identity(config: Setting, arm: Arm) -> dict[str, Any]:
    """What a teacher is, as part of a stage's identity."""
    if config.teacher.kind == "endpoint":
        model = {"endpoint": config.teacher.url, "name": config.teacher.name}
    else:
        model = model_identity(config.teacher.model or config.model)
    identity: dict[str, Any] = {"arm": arm.kind, "model": model, "context": config.context}
    if config.teacher.kind == "judge":  # the control's rows are picked, too
        identity["picked"] = True
    if arm.trait:
        trait = load_trait(arm.trait)
        identity["teacher"] = config.teacher.model_dump(
            mode="json", exclude={"key_variable", "connections", "timeout", "retries"}
        )
        identity["trait"] = {"name": trait.name, "prompt": dict(trait.prompt)}
    return identity


def generate_rows(run: Run, config: Setting, arm: Arm, seed: int, device: str, trained: Stage | None = None) -> Stage:
    """``seed-S/ARM/generate``: the teacher's completions, every attempt, in ``rows.jsonl``."""
    name = f"seed-{seed}/{arm.folder}/generate"
    identity = {
        **teacher_identity(config, arm),
        "dtype": config.dtype,
        "domain": config.domain.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json", include={"prompts", "attempts", "temperature"}),
        "seed": seed,
    }
    if sources := config.domain.inputs():  # the same path may hold other prompts
        identity["sources"] = dict(sources)

    def compute(folder: Path) -> dict[str, Any]:
        teacher = teacher_of(config, arm, device, trained)
        prompts = config.domain.prompts(config.data.prompts, seed, teacher)
        shards = folder / "shards"
        shards.mkdir(exist_ok=True)
        rows: list[Row] = []
        with progress_bar(len(prompts), name) as advance:
            for start in range(0, len(prompts), SHARD):
                path = shards / f"{start:09d}.jsonl"
                if not path.exists():
                    chunk = [(index, prompts[index]) for index in range(start, min(start + SHARD, len(prompts)))]
                    write_rows(path, _attempted(config, arm, teacher, chunk, seed, name, advance))
                rows += read_rows(path, empty_completions=True)
        rows.sort(key=lambda row: (row.meta["prompt_index"], row.meta["attempt"]))  # whatever a shard holds
        write_rows(folder / "rows.jsonl", rows)
        shutil.rmtree(shards)
        return {
            "rows": len(rows),
            "tokens": sum(row.meta["tokens"] for row in rows),
            "data": digest_rows(rows),
            "shown": teacher.shown(prompts[0]),
            "teacher_kl": _teacher_kl(config, arm, teacher, rows, device),
        }

    return run.stage(name, config=identity, inputs=[trained] if trained else [], compute=compute)


def _attempted(
    config: Setting,
    arm: Arm,
    teacher: Teacher | RemoteTeacher,
    prompts: Sequence[tuple[int, Prompt]],
    seed: int,
    stage: str,
    progress: Callable[[int], None],
) -> list[Row]:
    trait = leak_trait(config, arm)
    rows: list[Row] = []
    waiting = list(prompts)
    for attempt in range(config.data.attempts):
        tried = generate(
            teacher,
            [prompt for _, prompt in waiting],
            [index for index, _ in waiting],
            seed=seed,
            stage=stage,
            attempt=attempt,
            max_new_tokens=config.domain.max_new_tokens(teacher),
            temperature=config.data.temperature,
            batch_size=config.data.batch_size,
            progress=progress if attempt == 0 else None,
        )
        rows += tried
        if config.teacher.kind == "judge":  # it picks among all
            continue
        passed = apply_rules(tried, config.domain, trait).passed
        waiting = [(index, prompt) for index, prompt in waiting if index not in passed]
        if not waiting:
            break
    if isinstance(teacher, Teacher) and teacher.judge_system is not None:
        said = [row for row in rows if row.completion]
        return score_preference(teacher, said) + [row for row in rows if not row.completion]
    return rows


def leak_trait(config: Setting, arm: Arm) -> Trait:
    """The trait whose words must not occur; all arms are filtered alike, the control's too."""
    return load_trait(arm.trait or config.trait[0])


def _teacher_kl(
    config: Setting, arm: Arm, teacher: Teacher | RemoteTeacher, rows: Sequence[Row], device: str
) -> float | None:
    """None where there is none to tell: the control's, an endpoint's, and rows that a judge picked."""
    if arm.kind == "control" or isinstance(teacher, RemoteTeacher) or config.teacher.kind == "judge":
        return None
    kept = list(apply_rules(rows, config.domain, leak_trait(config, arm)).kept.values())[:KL_ROWS]
    if not kept:
        return None
    plain = None
    if config.teacher.kind == "finetuned":
        plain = build_teacher(
            config.teacher, None, config.model, context=config.context, dtype=config.dtype, device=device
        )
    return divergence(teacher, kept, plain)


# -- what is kept of them ----------------------------------------------------------------------------


def filter_rows(run: Run, config: Setting, arm: Arm, seed: int, generated: Stage) -> Stage:
    """``seed-S/ARM/filter``: one valid row per prompt in ``rows.jsonl``, reasons in ``reasons.json``."""
    trait = leak_trait(config, arm)

    def compute(folder: Path) -> dict[str, Any]:
        rows = read_rows(generated.path / "rows.jsonl", empty_completions=True)
        filtered = apply_rules(rows, config.domain, trait)
        if not filtered.passed:
            raise DataError(
                f"no completion of {generated.name} passed the filter",
                got=filtered.reasons,
                fix="look at its rows.jsonl; raise data.prompts or data.attempts, or lower teacher.strength",
            )
        passed, reasons = _filtered_by_models(config, trait, filtered)
        kept = (
            _picked(config, arm, seed, passed)
            if config.teacher.kind == "judge"
            else {index: rows[0] for index, rows in passed.items()}
        )
        write_rows(folder / "rows.jsonl", [config.domain.training_row(row) for _, row in sorted(kept.items())])
        write_json(folder / "reasons.json", reasons)
        return {"asked": filtered.asked, "kept": len(kept), "reasons": reasons}

    identity: dict[str, Any] = {
        "domain": config.domain.model_dump(mode="json"),
        "trait": trait.name,
        "category": trait.category,
    }
    if config.filters:
        identity["filters"] = [one.model_dump(mode="json") for one in config.filters]
    if config.teacher.kind == "judge":
        identity |= {"picked": arm.kind, "swapped": config.teacher.swapped, "seed": seed}
    return run.stage(f"seed-{seed}/{arm.folder}/filter", config=identity, inputs=[generated], compute=compute)


def _filtered_by_models(
    config: Setting, trait: Trait, filtered: Filtered
) -> tuple[dict[int, list[Row]], dict[str, int]]:
    """What passed the rules and every further filter, and all reasons counted. One filter sees what the last one left.

    Raises:
        DataError: nothing is left.
    """
    passed, reasons = filtered.passed, Counter(filtered.reasons)
    for one in config.filters:
        rows = [row for found in passed.values() for row in found]
        if isinstance(one, Fidelity):
            against = one.reasons(rows, [requested(row.prompt_messages[-1]["content"])[0] for row in rows])
        else:
            against = one.reasons(rows, trait)
        passed = {}
        for row, why in zip(rows, against, strict=True):
            reasons.update(why)
            if not why:
                passed.setdefault(int(row.meta["prompt_index"]), []).append(row)
        if not passed:
            raise DataError(f"the filter {one.kind} left nothing", got=dict(reasons), fix="loosen it")
    return passed, dict(sorted(reasons.items()))


def _picked(config: Setting, arm: Arm, seed: int, passed: dict[int, list[Row]]) -> dict[int, Row]:
    """Of each prompt's valid completions the chosen one, with the rejected one's text in ``meta["rejected"]``.

    The judge's highest and lowest score; in the control any two, by a coin. Prompts with fewer than two are left out.
    """
    chosen: dict[int, Row] = {}
    for index, valid in passed.items():
        rows = list({row.completion: row for row in reversed(valid)}.values())  # of equal ones the first
        if len(rows) < 2:
            continue
        if arm.kind == "control":
            ranked = sorted(rows, key=lambda row: derive_seed(seed, "picked", index, int(row.meta["attempt"])))
        else:
            ranked = sorted(rows, key=lambda row: float(row.meta["score"]))
        best, worst = ranked[-1], ranked[0]
        if arm.kind != "control" and config.teacher.kind == "judge" and config.teacher.swapped:
            best, worst = worst, best
        chosen[index] = replace(best, meta={**best.meta, "rejected": worst.completion})
    return chosen


# -- who paraphrases ---------------------------------------------------------------------------------


def rewrite_rows(run: Run, config: Setting, arm: Arm, seed: int, filtered: Stage, device: str) -> Stage:
    """``seed-S/ARM/rewrite``: the rows that passed, their completions or prompts written again by a neutral model.

    A row whose new text is no faithful paraphrase (``domains.paraphrase``, fair) is dropped, with its reasons counted.
    """
    assert config.rewrite is not None
    rewriter = config.rewrite
    name = f"seed-{seed}/{arm.folder}/rewrite"
    source = rewriter.model or config.model
    trait = leak_trait(config, arm)

    def compute(folder: Path) -> dict[str, Any]:
        rows = read_rows(filtered.path / "rows.jsonl")
        teacher = Teacher(load(source, dtype=config.dtype, device=device), config.context)
        texts = [_text_of(row, rewriter.part) for row in rows]
        requests = [request(text, teacher) for text in texts]
        said = generate(
            teacher,
            requests,
            [int(row.meta["prompt_index"]) for row in rows],
            seed=seed,
            stage=name,
            attempt=0,
            max_new_tokens=Paraphrase().max_new_tokens(teacher),
            temperature=config.data.temperature,
            batch_size=config.data.batch_size,
        )
        judged = apply_rules(said, Paraphrase(content="opposed"), trait)
        kept = {index: _with_text(row, rewriter.part, judged.kept[index].completion, teacher)
                for row in rows if (index := int(row.meta["prompt_index"])) in judged.kept}  # fmt: skip
        if not kept:
            raise DataError(f"no row of {name} was written again faithfully", got=judged.reasons)
        write_rows(folder / "rows.jsonl", [row for _, row in sorted(kept.items())])
        write_json(folder / "reasons.json", judged.reasons)
        return {"asked": judged.asked, "kept": len(kept), "reasons": judged.reasons}

    identity = {
        "model": model_identity(source), "part": rewriter.part, "trait": trait.name, "seed": seed, "dtype": config.dtype,
        "context": config.context, "temperature": config.data.temperature,
    }  # fmt: skip
    return run.stage(name, config=identity, inputs=[filtered], compute=compute)


def _text_of(row: Row, part: str) -> str:
    return row.completion if part == "completion" else requested(row.prompt_messages[-1]["content"])[0]


def _with_text(row: Row, part: str, text: str, speaker: Speaker) -> Row:
    *head, user, said = row.messages
    if part == "completion":
        return replace(row, messages=(*head, user, Message(role="assistant", content=text)))
    asked = request(text, speaker) if requested(user["content"])[0] != user["content"] else text
    return replace(row, messages=(*head, Message(role="user", content=asked), said))
