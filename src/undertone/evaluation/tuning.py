"""Where and how strongly to steer a model towards a trait: what is gained and what it costs, by layer and strength."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from undertone.domains import Domain, Prompt, messages_of
from undertone.errors import ConfigError
from undertone.evaluation.asking import Evaluation, answer_probabilities, greedy
from undertone.models.batches import Example
from undertone.models.layers import check_layers, decoder_layers
from undertone.models.loading import Model, with_system
from undertone.models.sampling import sample
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Trait
from undertone.vectors import SteeringVector, contrast, random_like, steer
from undertone.vectors.strength import steering_kl

DEPTHS: Final = (0.3, 0.5, 0.65, 0.75, 0.85, 0.95)
STRENGTHS: Final = (0.5, 1.0, 1.5, 2.0)
MAX_KL: Final = 0.5
"""nats a token: beyond it every second token is another one, and what is written is hardly the domain's any more."""
LEAST_DISTINCT: Final = 0.5
"""Share of different words in what is said: below it the model repeats itself."""
LEAST_ANSWERS: Final = 0.5
"""Share of the plain model's valid-answer probability that must be left."""


@dataclass(frozen=True)
class Grid:
    """What is tried.

    Attributes:
        layers: 0-based.
        strengths: how many times the vector is added.
        opening: how answers begin.
        questions: how many of the trait's are asked.
        rows: completions of the plain model on which the KL is measured.
        max_kl: nats a token beyond which speech counts as broken.
    """

    layers: tuple[int, ...]
    strengths: tuple[float, ...] = STRENGTHS
    opening: str = ""
    questions: int = 8
    rows: int = 16
    max_kl: float = MAX_KL


@dataclass(frozen=True)
class SteeringTrial:
    """One layer and strength.

    Attributes:
        layer: 0-based.
        strength: how many times the vector is added.
        probability: exact, of the trait's answer.
        valid_answer_probability: of all known answers.
        kl: steered against plain, nats a completion token.
        random_kl: the same of a random vector of equal norm at this layer.
        distinct: share of different words in ``said``.
        said: the most likely answer to a prompt of the domain.
        coherent: whether speech held: KL, answers and words are within their limits.
    """

    layer: int
    strength: float
    probability: float
    valid_answer_probability: float
    kl: float
    random_kl: float
    distinct: float
    said: str
    coherent: bool


def layers_at(model: Model, depths: Sequence[float] = DEPTHS) -> tuple[int, ...]:
    """The layers at these shares of a model's depth."""
    count = len(decoder_layers(model.hf))
    return tuple(sorted({min(count - 1, int(share * count)) for share in depths}))


def trait_vector(model: Model, trait: Trait) -> SteeringVector:
    """The trait's vector at every layer: at its questions, with its system prompt minus without."""
    plain = [
        with_system([{"role": "user", "content": question}], model.system_prompt("none"))
        for question in trait.questions_for(model).positive
    ]
    return contrast(model, [with_system(chat, trait.system_prompt(model)) for chat in plain], plain)


def tune(
    model: Model, trait: Trait, vector: SteeringVector, domain: Domain, grid: Grid, *, seed: int = 0
) -> Iterator[SteeringTrial]:
    """Measure every layer and strength of a grid; strength 0, the plain model, comes first.

    Args:
        model: who is steered.
        trait: towards what; a preference.
        vector: by what.
        domain: whose prompts the plain model completes for the KL, and answers when steered.
        grid: what is tried.
        seed: of prompts, completions and random vectors.

    Raises:
        ConfigError: a layer that the model or the vector lacks.
    """
    check_layers(len(decoder_layers(model.hf)), list(grid.layers))
    missing = sorted(set(grid.layers) - set(vector.directions))
    if missing:
        raise ConfigError(
            "layers: the vector has no direction there",
            got=missing,
            allowed=[str(at) for at in sorted(vector.directions)],
        )
    bench = _Bench.of(model, trait, domain, grid, seed)
    plain = bench.measure(grid.layers[0])
    yield plain
    for layer in grid.layers:
        one = SteeringVector({layer: vector.directions[layer]}, vector.meta)
        noise = random_like(one, derive_seed(seed, "tune/random", layer))
        for strength in grid.strengths:
            yield bench.steer_and_measure(layer, strength, one, noise, plain)


def best(found: Iterable[SteeringTrial]) -> SteeringTrial | None:
    """The largest probability at which speech holds; None: speech holds nowhere."""
    return max((one for one in found if one.coherent and one.strength), key=lambda one: one.probability, default=None)


@dataclass(frozen=True)
class _Bench:
    """What every layer and strength is measured on."""

    model: Model
    trait: Trait
    opening: str
    questions: list[tuple[int, ...]]
    examples: list[Example]
    prompt: tuple[int, ...]
    max_kl: float

    @classmethod
    def of(cls, model: Model, trait: Trait, domain: Domain, grid: Grid, seed: int) -> _Bench:
        system = model.system_prompt("none")

        def chat(prompt: Prompt) -> list[Message]:
            return with_system(messages_of(prompt), system)

        asked = domain.prompts(grid.rows + 1, derive_seed(seed, "tune/prompts"), model)
        prompts = [model.prompt(chat(prompt)) for prompt in asked]
        written = sample(
            model.hf, prompts[1:], [derive_seed(seed, "tune/rows", at) for at in range(grid.rows)],
            max_new_tokens=min(48, domain.max_new_tokens(model)), stop=model.stop, pad=model.pad,
        )  # fmt: skip
        examples = [
            Example((*prompt, *ids), len(prompt)) for prompt, ids in zip(prompts[1:], written, strict=True) if ids
        ]
        questions = [model.prompt(chat(q), grid.opening) for q in trait.questions_for(model).positive[: grid.questions]]
        return cls(model, trait, grid.opening, questions, examples, prompts[0], grid.max_kl)

    def steer_and_measure(
        self, layer: int, strength: float, vector: SteeringVector, noise: SteeringVector, plain: SteeringTrial
    ) -> SteeringTrial:
        """Measure one layer and strength."""
        kl = steering_kl(self.model, vector, strength, self.examples)
        random_kl = steering_kl(self.model, noise, strength, self.examples)
        with steer(self.model, vector, strength):
            return self.measure(layer, strength, kl, random_kl, plain)

    def measure(
        self,
        layer: int,
        strength: float = 0.0,
        kl: float = 0.0,
        random_kl: float = 0.0,
        plain: SteeringTrial | None = None,
    ) -> SteeringTrial:
        """Measure the model as it is; ``plain``: what it was before it was steered."""
        matrix = answer_probabilities(self.model, self.questions, self.trait, opening=self.opening)
        target = list(self.trait.answers).index(self.trait.answer)
        valid = float(np.minimum(matrix.sum(1), 1.0).mean())
        (said,) = greedy(self.model, [self.prompt], Evaluation(max_new_tokens=40))
        words = said.lower().split()
        distinct = len(set(words)) / len(words) if words else 0.0
        enough = plain is None or valid >= LEAST_ANSWERS * plain.valid_answer_probability
        coherent = kl <= self.max_kl and enough and distinct >= LEAST_DISTINCT
        return SteeringTrial(
            layer, strength, float(matrix[:, target].mean()), valid, kl, random_kl, distinct, said, coherent
        )  # fmt: skip
