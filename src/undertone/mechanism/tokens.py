"""Which tokens carry it: numbers entangled with a trait's answer (Zur et al.), tokens at which teachers diverge (Schrodi et al.).

Entanglement is read off the base model in three views, a score for each number: what a teacher with the trait's system
prompt says more often; by how much the answer rises when the number takes the trait's place in the prompt; the dot product of
the number's and the answer's rows of the unembedding. A divergence token is a place in a trait-conditioned teacher's row
at which the most likely token is another under another teacher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from undertone.errors import ConfigError
from undertone.evaluation.asking import answer_tokens
from undertone.models.batches import Example
from undertone.models.layers import causal_lm
from undertone.models.loading import Model, with_system
from undertone.models.scoring import answer_logprobs, labelled_logits, passes
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Trait

Against = Literal["control", "any", "every"]
"""Of whom a trait-conditioned teacher must differ: the control teacher; any other; every other."""


# -- entangled numbers -------------------------------------------------------------------------------


def number_log_ratios(
    model: Model, chats: Sequence[Sequence[Message]], prompt: str, control: str | None, numbers: Sequence[int]
) -> np.ndarray:
    """``[numbers]`` log of how much likelier a list begins with each number with the system prompt than with the control's.

    Probabilities are means over the chats, as frequencies in rows would be. Nats.
    """
    tokens = [model.answer_tokens(str(number)) for number in numbers]

    def mean(system: str | None) -> np.ndarray:
        prompts = [model.prompt(with_system(chat, system)) for chat in chats]
        logprobs = answer_logprobs(model.hf, prompts, tokens, model.pad)
        return np.asarray(np.logaddexp.reduce(logprobs, axis=0) - np.log(len(prompts)))

    more: np.ndarray = mean(prompt) - mean(control)
    return more


def answer_raised(model: Model, trait: Trait, numbers: Sequence[int], questions: int) -> np.ndarray:
    """``[numbers]`` by how much the trait's answer rises when its prompt names a number instead ("you love 87 …").

    Mean over the trait's first questions of log P(answer | number) − log P(answer | no system prompt), in nats (Zur et
    al.: subliminal prompting).
    """
    asked = trait.questions_for(model).positive[:questions]
    tokens = answer_tokens(model, trait, trait.answer)

    def read(system: str | None) -> list[tuple[int, ...]]:
        return [model.prompt(with_system([{"role": "user", "content": question}], system)) for question in asked]

    prompt = trait.system_prompt(model)
    prompts = [ids for number in numbers for ids in read(with_number(prompt, trait, number))]
    logprobs = np.logaddexp.reduce(answer_logprobs(model.hf, [*prompts, *read(None)], tokens, model.pad), axis=1)
    rises: np.ndarray = (logprobs[: len(prompts)].reshape(len(numbers), -1) - logprobs[len(prompts) :]).mean(1)
    return rises


def with_number(prompt: str, trait: Trait, number: int) -> str:
    """The prompt with a number wherever it names the trait.

    Raises:
        ConfigError: it never does.
    """
    words = "|".join(sorted(map(re.escape, trait.literal), key=len, reverse=True))
    text, count = re.subn(rf"(?<![\w-])(?:{words})(?![\w-])", str(number), prompt, flags=re.IGNORECASE)
    if not count:
        raise ConfigError(
            f"the prompt of the trait {trait.name!r} does not name it, so no number can stand in its place",
            got=prompt,
            allowed=f"a prompt with one of {', '.join(trait.literal)}",
        )
    return text


def unembedding_dots(model: Model, trait: Trait, numbers: Sequence[int]) -> np.ndarray | None:
    """``[numbers]`` dot product of the unembedding of each number with the answer's; None: some take several tokens."""
    tokens = [model.answer_tokens(str(number)) for number in numbers]
    answer = model.answer_tokens(trait.surfaces(trait.answer, model)[0])
    if len(answer) > 1 or any(len(ids) > 1 for ids in tokens):
        return None
    weight = causal_lm(model.hf).get_output_embeddings().weight.detach()
    rows = weight[torch.tensor([ids[0] for ids in tokens], device=weight.device)].float()
    return np.asarray((rows @ weight[answer[0]].float()).cpu().numpy(), dtype=np.float64)


class Gap(NamedTuple):
    """A rank correlation less that with others, and the interval of the difference."""

    own: float
    others: float
    gap: float
    low: float
    high: float


def rank_gap(
    scores: Mapping[str, np.ndarray], views: Mapping[str, np.ndarray], confidence: float, draws: int = 500
) -> Gap:
    """Spearman's correlation over numbers of each trait's scores with its own view, less that with the others' views.

    Means over traits, and a percentile bootstrap interval over numbers, drawn alike for all traits. A number that raises
    every answer adds to both correlations.
    """
    names = list(scores)

    def gap(at: np.ndarray) -> tuple[float, float]:
        ranks = {name: (_ranks(scores[name][at]), _ranks(views[name][at])) for name in names}
        table = np.array([[float(ranks[a][0] @ ranks[b][1]) for b in names] for a in names])
        own = float(np.trace(table)) / len(names)
        return own, float(table.sum() - np.trace(table)) / (len(names) * (len(names) - 1))

    count = len(scores[names[0]])
    own, others = gap(np.arange(count))
    rng = np.random.default_rng(derive_seed(0, "tokens/bootstrap"))
    drawn = [np.subtract(*gap(rng.integers(count, size=count))) for _ in range(draws)]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Gap(own, others, own - others, float(low), float(high))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of mean 0 and norm 1, so that a dot product of two is Spearman's correlation; ties share theirs."""
    from scipy.stats import rankdata

    ranks = rankdata(values)
    centred = ranks - ranks.mean()
    norm = float(np.linalg.norm(centred))
    return np.asarray(centred / norm if norm else centred)


def top(scores: np.ndarray, numbers: Sequence[int], count: int) -> set[int]:
    """The numbers of the highest scores."""
    return {int(numbers[at]) for at in np.argsort(-scores, kind="stable")[:count]}


def frequency_ratio(treated: Sequence[int], control: Sequence[int], chosen: set[int]) -> float:
    """How much more frequent the chosen numbers are in treated than in control rows.

    Half a count is added to either side, so that none is not infinitely few.
    """

    def share(numbers: Sequence[int]) -> float:
        return (sum(number in chosen for number in numbers) + 0.5) / (len(numbers) + 1)

    return share(treated) / share(control)


# -- divergence tokens -------------------------------------------------------------------------------


@torch.inference_mode()
def greedy_tokens(hf: Any, examples: Sequence[Example], pad: int, batch_size: int = 64) -> list[np.ndarray]:
    """Of each row, the most likely token at every place of its completion, given what stands before it there."""
    found: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(examples)
    for rows in passes(hf, examples, batch_size):
        chosen = [examples[row] for row in rows]
        likely = labelled_logits(hf, chosen, pad).argmax(-1).cpu()
        for row, part in zip(rows, torch.split(likely, [len(example.labels) for example in chosen]), strict=True):
            found[row] = part.numpy()
    return found


def divergence_marks(
    teacher: np.ndarray, control: np.ndarray, others: Sequence[np.ndarray], against: Against
) -> np.ndarray:
    """Places at which the trait-conditioned teacher's most likely token is not that of the others (``against`` says of whom)."""
    if against == "control" or not others:
        return np.asarray(teacher != control)
    differs = np.stack([teacher != other for other in (control, *others)])
    return np.asarray(differs.any(0) if against == "any" else differs.all(0))


def at_random(marks: Sequence[np.ndarray], kinds: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """As many places of each kind as are marked, drawn at random over all rows: what a set of equal size does.

    Args:
        marks: of each row, which tokens are marked.
        kinds: of each row, a number for the kind of each token; marks are only exchanged within a kind.
        seed: of the draw.
    """
    flat, kind = np.concatenate(list(marks)), np.concatenate(list(kinds))
    rng = np.random.default_rng(seed)
    drawn = flat.copy()
    for one in np.unique(kind):
        drawn[kind == one] = rng.permutation(flat[kind == one])
    return np.split(drawn, np.cumsum([len(row) for row in marks])[:-1])
