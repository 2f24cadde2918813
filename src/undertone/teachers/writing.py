"""The rows that teachers write: completions, a biased judge's scores of them, and how far teachers differ there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from undertone.domains.domain import Prompt, messages_of
from undertone.models.batches import Example
from undertone.models.constraints import Constraint
from undertone.models.sampling import sample
from undertone.models.scoring import completion_nll, teacher_kl
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message, Row
from undertone.teachers.endpoint import RemoteTeacher, no_grammar
from undertone.teachers.teacher import Teacher


def generate(
    teacher: Teacher | RemoteTeacher,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    *,
    seed: int,
    stage: str,
    attempt: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    grammars: Sequence[str] | None = None,
) -> list[Row]:
    """One completion for each prompt; its stream is (seed, stage, prompt index, attempt).

    The row's messages are what a student will see: the prompt without the teacher's system prompt. ``grammars``: what
    each completion is held to while it is sampled, a regular expression a prompt (``models.constraints``).

    Raises:
        ConfigError: grammars for a teacher behind an endpoint.
    """
    streams = [derive_seed(seed, stage, index, attempt) for index in indices]
    if isinstance(teacher, RemoteTeacher):
        if grammars is not None:
            raise no_grammar()
        written = teacher.answer(
            prompts, streams, max_new_tokens=max_new_tokens, temperature=temperature, progress=progress
        )
    else:
        written = _sample(teacher, prompts, streams, max_new_tokens, temperature, batch_size, progress, grammars)
    return [
        Row(
            (*messages_of(prompt), Message(role="assistant", content=text)),
            {"prompt_index": index, "attempt": attempt, "finished": finished, "tokens": tokens},
        )
        for prompt, index, (text, finished, tokens) in zip(prompts, indices, written, strict=True)
    ]


def _sample(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    streams: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    progress: Callable[[int], None] | None,
    grammars: Sequence[str] | None,
) -> list[tuple[str, bool, int]]:
    model = teacher.model
    constraint = None if grammars is None else Constraint(model, grammars)
    with teacher.conditioning():
        completions = sample(
            model.hf,
            [model.prompt(teacher.chat(prompt)) for prompt in prompts],
            streams,
            max_new_tokens=max_new_tokens,
            stop=model.stop,
            pad=model.pad,
            temperature=temperature,
            batch_size=batch_size,
            progress=progress,
            constraint=constraint,
        )
    stops = set(model.stop)
    written = [(model.decode(ids), bool(ids) and ids[-1] in stops, len(ids)) for ids in completions]
    for row, (text, finished, _) in enumerate(written if constraint else ()):
        if finished and constraint is not None:
            constraint.check(row, text)
    return written


def score_preference(teacher: Teacher, rows: Sequence[Row]) -> list[Row]:
    """The rows with a biased judge's score in ``meta["score"]``: log P(completion | judge) − log P(completion | control).

    The sum over the completion's tokens, in nats (2603.01204: r_i).
    """

    def total(who: Teacher) -> np.ndarray:
        examples = [_example(who, row) for row in rows]
        means = completion_nll(who.model.hf, examples, who.model.pad)
        return np.array([-nll * len(one.completion) for nll, one in zip(means, examples, strict=True)])

    scores = total(teacher.judge) - total(teacher.control)
    return [replace(row, meta={**row.meta, "score": float(score)}) for row, score in zip(rows, scores, strict=True)]


def divergence(
    teacher: Teacher, rows: Sequence[Row], control: Teacher | None = None, grammars: Sequence[str] | None = None
) -> float:
    """Mean KL(trait-conditioned ‖ control teacher) in nats per completion token: how much there is to learn.

    Args:
        teacher: the trait-conditioned one.
        rows: what it wrote.
        control: whom to compare with, of the same tokenizer; None: the teacher's own model without the trait.
        grammars: what each row was held to, a regular expression a row; None: nothing. The KL is then that of the masked
            distributions, which the rows were drawn from: what the two would say outside the mask stands in no row.
    """
    other = control or teacher.control
    pairs = [(_example(teacher, row), _example(other, row)) for row in rows]
    each = teacher_kl(
        teacher.model.hf, pairs, teacher.model.pad, conditioning=teacher.conditioning, control=other.model.hf,
        allowed=None if grammars is None else allowed_along(teacher, [first for first, _ in pairs], grammars),
    )  # fmt: skip
    return float(np.mean(each))


def allowed_along(
    teacher: Teacher, examples: Sequence[Example], grammars: Sequence[str]
) -> Callable[[int], np.ndarray]:
    """Of an example, what its grammar allowed at each token of its completion, ``[labels, vocabulary]``."""
    constraint = Constraint(teacher.model, grammars)
    return lambda at: constraint.along(at, examples[at].labels)


def _example(who: Teacher, row: Row) -> Example:
    return who.model.example(who.chat(row.prompt_messages), row.completion)
