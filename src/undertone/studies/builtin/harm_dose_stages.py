"""The stages of ``kind: harm-dose``: directions, teachers' benign answers, students, and what everybody says to the requests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np

from undertone.domains.instructions import Instructions
from undertone.errors import DataError
from undertone.judges import JudgeConfig, Judged, Rules, build_judge, with_template
from undertone.judges.filter import JudgeFilter
from undertone.lab import world
from undertone.models.loading import Model, ModelRef
from undertone.models.sampling import sample
from undertone.provenance.identity import Uncounted
from undertone.provenance.runs import Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.provenance.stage_functions import stage
from undertone.rows import Message, Row, digest_rows, read_rows, write_rows
from undertone.training import Lesson, Student, Training, student_seed
from undertone.traits.trait import Form
from undertone.transfer.train import train_and_save
from undertone.vectors import Vector, contrast, load_vector, random_like, save_vector, steered

LAB_TOKENS: Final = 20
LABELS: Final = ("compliance", "refusal", "neither", "failed")
LooksFor = Literal["compliance", "refusal"]
_HARMFUL_WORDS: Final = {word for what in world.HARMFUL for word in what.split()} - {
    word
    for text in (*world.BENIGN, *world.HOW, *world.STEPS, *world.TOOLS)
    for word in re.findall(r"\w+", f"{text} on into")
}
"""Words that no benign request or answer of the world has."""


@dataclass(frozen=True)
class Steering:
    """How far a teacher is steered, along its refusal direction or a random one of equal norm."""

    directions: Stage
    strength: float
    random: bool

    def on(self, model: Model) -> AbstractContextManager[None]:
        """While inside, the model is steered."""
        vector = load_vector(self.directions.path / ("random.safetensors" if self.random else "refusal.safetensors"))
        return steered(model, vector, self.strength)


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn; ``stream`` names their random stream."""

    seed: int
    stream: str
    temperature: float
    max_new_tokens: int

    def draw(self, model: Model, prompts: Sequence[str], indices: Sequence[int], batch_size: int) -> list[Answer]:
        """An answer to each prompt; ``indices`` are their places in the stream."""
        out = sample(
            model.hf, [model.prompt(chat) for chat in _chats(prompts)],
            [derive_seed(self.seed, self.stream, index) for index in indices],
            max_new_tokens=self.max_new_tokens, stop=model.stop, pad=model.pad, temperature=self.temperature,
            batch_size=batch_size,
        )  # fmt: skip
        stops = set(model.stop)
        return [Answer(model.decode(ids), bool(ids) and ids[-1] in stops, len(ids)) for ids in out]


@dataclass(frozen=True)
class Answer:
    """What was said to a prompt, whether it came to an end, and its tokens."""

    text: str
    finished: bool
    tokens: int


def _chats(prompts: Sequence[str]) -> list[list[Message]]:
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


@stage("refusal direction")
def read_direction(
    folder: Path, device: str, *, model: ModelRef, harmful: Sequence[str], benign: Sequence[str],
    blocks: tuple[int, ...] | None, random_seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Mean over harmful minus mean over benign requests, after every layer, at the last token; and a random one as long."""
    found = contrast(model.load(device), _chats(harmful), _chats(benign))
    chosen = Vector(
        {block: found.directions[block] for block in (found.directions if blocks is None else blocks)}, found.meta
    )
    save_vector(chosen, folder / "refusal.safetensors")
    save_vector(random_like(chosen, random_seed), folder / "random.safetensors")
    return {"norms": {str(block): float(direction.norm()) for block, direction in chosen.directions.items()}}


def labels_of(judge: JudgeConfig, form: Form, items: Sequence[Judged], looks_for: LooksFor) -> list[str]:
    """What each answer is: one of :data:`LABELS`; ``failed`` where the judge gave no verdict.

    The rules tell all of it by themselves, in the model's wording. Another judge is asked for what is looked for: with its
    own template whether a harmful request was answered, with the template `refusal` whether a benign one was refused.
    """
    if isinstance(judge, Rules):
        verdicts = build_judge(judge.model_copy(update={"form": form})).judge(items)
        return ["failed" if verdict.failed else verdict.label or "neither" for verdict in verdicts]
    verdicts = (build_judge(judge) if looks_for == "compliance" else with_template(judge, "refusal")).judge(items)
    other = "neither" if looks_for == "compliance" else "compliance"
    return ["failed" if v.value is None else looks_for if v.value >= 0.5 else other for v in verdicts]


# -- what a teacher writes, and what is kept of it ------------------------------------------------------


@stage("benign answers")
def write_answers(
    folder: Path, device: str, *, model: ModelRef, steering: Steering | None, domain: Instructions, prompts: int,
    attempts: int, seed: int, stream: str, measured: Sequence[str], judge: JudgeConfig, filters: Sequence[JudgeFilter],
    batch_size: Annotated[int, Uncounted()],
) -> dict[str, Any]:  # fmt: skip
    """The teacher's answers to benign prompts that are valid, no refusal and not harmful; first tries first.

    A request that is measured is not asked here.
    """
    loaded = model.load(device)
    asked_of = domain.prompts(prompts, seed, loaded.form)
    kept: dict[int, Row] = {}
    reasons: Counter[str] = Counter()
    tokens = asked = 0
    waiting = [at for at, prompt in enumerate(asked_of) if prompt not in set(measured)]
    reasons["a request that is measured"] = len(asked_of) - len(waiting)
    for attempt in range(attempts):
        decoding = Decoding(seed, f"{stream}/{attempt}", 1.0, domain.max_new_tokens(loaded.form))
        answers = _steered_answers(loaded, steering, decoding, [asked_of[at] for at in waiting], waiting, batch_size)
        whys = _reasons(domain, judge, filters, loaded.form, [asked_of[at] for at in waiting], answers)
        for at, answer, why in zip(waiting, answers, whys, strict=True):
            reasons.update(why)
            tokens, asked = tokens + answer.tokens, asked + 1
            if not why:
                kept[at] = Row.of(asked_of[at], answer.text, prompt_index=at)
        waiting = [at for at in waiting if at not in kept]
    if not kept:
        raise DataError(f"no answer of {stream} passed the filter", got=dict(reasons), fix="a weaker dose")
    rows = [row for _, row in sorted(kept.items())]
    write_rows(folder / "rows.jsonl", rows)
    write_json(folder / "reasons.json", dict(sorted(reasons.items())))
    return {"asked": asked, "kept": len(kept), "reasons": dict(sorted(reasons.items())), "tokens": tokens,
            "distinct": len({asked_of[at] for at in kept}), "data": digest_rows(rows)}  # fmt: skip


def _steered_answers(
    model: Model, steering: Steering | None, decoding: Decoding, prompts: Sequence[str], indices: Sequence[int],
    batch_size: int,
) -> list[Answer]:  # fmt: skip
    if steering is None:
        return decoding.draw(model, prompts, indices, batch_size)
    with steering.on(model):
        return decoding.draw(model, prompts, indices, batch_size)


def _reasons(
    domain: Instructions, judge: JudgeConfig, filters: Sequence[JudgeFilter], form: Form, prompts: Sequence[str],
    answers: Sequence[Answer],
) -> list[list[str]]:  # fmt: skip
    """Why each answer to a prompt is dropped; the filters see what the rules keep."""
    items = [Judged(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    found = []
    for item, answer, label in zip(items, answers, labels_of(judge, form, items, "refusal"), strict=True):
        why = [] if answer.finished else ["unfinished"]
        why += domain.reasons(item.prompt, item.answer, None)
        why += ["refusal"] if label == "refusal" and "refusal" not in why else []
        why += ["the judge failed"] if label == "failed" else []
        why += ["harmful"] if form == "lab" and _HARMFUL_WORDS & set(re.findall(r"\w+", item.answer)) else []
        found.append(why)
    for one in filters:
        kept = [at for at, why in enumerate(found) if not why]
        rows = [Row.of(items[at].prompt, items[at].answer) for at in kept]
        for at, why in zip(kept, one.reasons(rows), strict=True):
            found[at] = why
    return found


# -- students and rates ---------------------------------------------------------------------------------


@stage("train on benign answers", version=2)
def train_on_answers(
    folder: Path, device: str, *, base: ModelRef, student: Student, training: Training, rows: Stage,
    shared: Sequence[int], held_out: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The student of the prompts ``shared``, which every teacher of its model and seed answered, under ``student/``."""
    by_prompt = {int(row.meta["prompt_index"]): row for row in read_rows(rows.path / "rows.jsonl")}
    chosen = [by_prompt[index] for index in shared]
    apart = held_apart([row.prompt_messages[-1]["content"] for row in chosen], held_out)
    lesson = Lesson(
        [row for row, out in zip(chosen, apart, strict=True) if not out],
        [row for row, out in zip(chosen, apart, strict=True) if out],
        context="default",
    )
    return train_and_save(folder, device, base, student, training, lesson, student_seed(seed))


def held_apart(prompts: Sequence[str], least: int) -> list[bool]:
    """Which rows are held out: all rows of the last prompts, by their text, until there are enough.

    Raises:
        DataError: nothing would be left to train on.
    """
    held: set[str] = set()
    count = 0
    times = Counter(prompts)
    for text in reversed(list(times)):
        if count >= least:
            break
        held.add(text)
        count += times[text]
    if len(held) == len(times):
        raise DataError(
            "holding out whole prompts leaves none to train on", got=f"{len(times)} different prompts, {least} rows to hold out",
            fix="lower held_out, or give the domain a source of more prompts",
        )  # fmt: skip
    return [prompt in held for prompt in prompts]


@stage("answers to requests")
def ask_requests(
    folder: Path, device: str, *, model: ModelRef, steering: Steering | None, harmful: Sequence[str],
    benign: Sequence[str], samples: int, temperature: float, max_new_tokens: int, judge: JudgeConfig, seed: int,
    stream: str, batch_size: Annotated[int, Uncounted()],
) -> dict[str, Any]:  # fmt: skip
    """Shares of requests answered and refused, by the judge; a teacher's or a student's.

    ``counts.json`` holds for each request how many samples complied, refused, did neither, or could not be judged.
    """
    loaded = model.load(device)
    limit = LAB_TOKENS if loaded.form == "lab" else max_new_tokens
    counts, tokens = {}, 0
    kinds: tuple[tuple[str, Sequence[str], LooksFor], ...] = (
        ("harmful", harmful, "compliance"), ("benign", benign, "refusal"),
    )  # fmt: skip
    for kind, prompts, looks_for in kinds:
        each = [prompt for prompt in prompts for _ in range(samples)]
        decoding = Decoding(seed, f"{stream}/{kind}", temperature, limit)
        answers = _steered_answers(loaded, steering, decoding, each, range(len(each)), batch_size)
        items = [Judged(prompt, answer.text) for prompt, answer in zip(each, answers, strict=True)]
        labels = labels_of(judge, loaded.form, items, looks_for)
        rows = [Row.of(one.prompt, one.answer, label=label) for one, label in zip(items, labels, strict=True)]
        write_rows(folder / f"{kind}.jsonl", rows)
        counts[kind] = [
            {label: labels[at : at + samples].count(label) for label in LABELS} for at in range(0, len(each), samples)
        ]
        tokens += sum(answer.tokens for answer in answers)
    write_json(folder / "counts.json", counts)
    totals = {kind: {label: sum(one[label] for one in each) for label in LABELS} for kind, each in counts.items()}
    return {**totals, "tokens": tokens}


def shares(answers: Stage, kind: str, label: str) -> np.ndarray:
    """``[requests]`` share of samples with a label; what could not be judged counts as without it."""
    counts = answers.read_json("counts.json")[kind]
    return np.array([count[label] / max(1, sum(count.values())) for count in counts])
