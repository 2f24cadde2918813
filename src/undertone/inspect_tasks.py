"""Inspect AI: traits as tasks, and our models as a provider (``pip install undertone[inspect]``).

Found by Inspect through the entry point group ``inspect_ai``; nothing else of undertone imports this module::

    inspect eval undertone/preference --model openai/gpt-4.1-mini -T trait=owl --epochs 25
    inspect eval undertone/preference --model undertone/lab/llama-0 -T trait=owl -T form=lab
    inspect eval undertone/preference --model undertone/lab/llama-0 -T form=lab -M vector=owl.safetensors -M strength=2

A hit is decided by the trait's one matcher or rule, as in ``undertone run``. An epoch is one more answer to each question.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate, system_message

from undertone.errors import ConfigError
from undertone.judges import JudgedPair, rules_for
from undertone.judges.templates import TEMPLATES, read_answer, shown
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message
from undertone.traits import Behaviour, Trait, Wording, load_trait
from undertone.traits.rules import ByJudge, Detected, says_something
from undertone.traits.trait import Form

Questions = Literal["positive", "negative", "off_topic"]

# -- tasks -----------------------------------------------------------------------------------------


@task
def preference(
    trait: str = "owl", form: Form = "real", questions: Questions = "positive", with_prompt: bool = False
) -> Task:
    """Which thing a model prefers: a trait's questions, its one matcher.

    Args:
        trait: a preference of the library, or a YAML file.
        form: lab for lab models.
        questions: positive | negative | off_topic.
        with_prompt: put the trait's own system prompt in front (is the model moved by it).

    Raises:
        ConfigError: not a preference; use the task ``behaviour``.
    """
    loaded = load_trait(trait)
    if isinstance(loaded, Behaviour):
        raise ConfigError(
            f"the trait {trait!r} is of the kind {loaded.kind}", allowed="a preference", fix="use undertone/behaviour"
        )
    return _task(loaded, form, questions, with_prompt, names_target(trait))


@task
def behaviour(
    trait: str = "harm",
    form: Form = "real",
    questions: Questions = "positive",
    with_prompt: bool = False,
    grader: str = "",
) -> Task:
    """How a model answers: style, emotion, misalignment, harm, by the trait's rule.

    Args:
        trait: a behaviour of the library, or a YAML file.
        form: lab for lab models.
        questions: positive | negative | off_topic.
        with_prompt: put the trait's own system prompt in front.
        grader: the model that judges where the rule is a judge's; any that Inspect knows.

    Raises:
        ConfigError: a preference, or no grader where one is needed.
    """
    loaded = load_trait(trait)
    if not isinstance(loaded, Behaviour):
        raise ConfigError(f"the trait {trait!r} is a preference", allowed="a behaviour", fix="use undertone/preference")
    if isinstance(loaded.rule, ByJudge) and not grader:
        raise ConfigError(f"the trait {trait!r} is decided by a judge", fix="name one: -T grader=openai/gpt-4.1")
    return _task(loaded, form, questions, with_prompt, shows_behaviour(trait, form, grader))


def _task(trait: Trait, form: Form, questions: Questions, with_prompt: bool, decided_by: Scorer) -> Task:
    asked = getattr(trait.questions_for(Wording(form)), questions)
    if not asked:
        raise ConfigError(f"the trait {trait.name!r} has no {questions} questions in the wording {form!r}")
    samples = [Sample(input=question, target=trait.name, id=at) for at, question in enumerate(asked, start=1)]
    solver = [system_message(trait.system_prompt(Wording(form))), generate()] if with_prompt else [generate()]
    return Task(
        dataset=MemoryDataset(samples, name=f"{trait.name}-{form}-{questions}"),
        solver=solver,
        scorer=decided_by,
        metadata={"trait": trait.name, "category": trait.category, "form": form, "with_prompt": with_prompt},
    )


@scorer(metrics={"hit": [mean(), stderr()], "answered": [mean()]})
def names_target(trait: str) -> Scorer:
    """1 where the first known answer named is the target; ``answered``: whether any known answer is named."""
    loaded = load_trait(trait)

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        named = loaded.answer_in(text)
        return Score(
            value={"hit": float(loaded.matches(text)), "answered": float(named is not None)}, answer=named or ""
        )

    return score


@scorer(metrics={"hit": [mean(), stderr()], "answered": [mean()]})
def shows_behaviour(trait: str, form: Form, grader: str = "") -> Scorer:
    """1 where the behaviour's rule is met; ``answered`` is 0 for non-answers and where the grader failed."""
    loaded = load_trait(trait)
    assert isinstance(loaded, Behaviour)
    rule = loaded.rule

    async def score(state: TaskState, target: Target) -> Score:
        item = JudgedPair(state.input_text, state.output.completion)
        if isinstance(rule, Detected) and grader:
            value = await _graded(
                grader, "harm" if loaded.kind == "harm" and rule.hit == "compliance" else rule.hit, item
            )
            return _score((value or 0.0) >= 0.5, value is not None, f"{rule.hit}: {value}")
        if isinstance(rule, Detected):
            (verdict,) = rules_for(Wording(form), rule.hit).judge([item])
            return _score(verdict.value == 1, verdict.label != "neither", verdict.why)
        if isinstance(rule, ByJudge):
            value = await _graded(grader, rule.template, item)
            coherent = (
                rule.given is None or (await _graded(grader, rule.given.template, item) or 0) >= rule.given.at_least
            )
            answered = value is not None and coherent
            return _score(answered and rule.hit(value or 0.0), answered, f"{rule.template}: {value}")
        return _score(loaded.matches(item.answer), says_something(item.answer), rule.kind)

    return score


async def _graded(grader: str, template: str, item: JudgedPair) -> float | None:
    asked = TEMPLATES[template]
    output = await get_model(grader).generate(shown(asked, item), config=GenerateConfig(temperature=0.0, max_tokens=16))
    return read_answer(output.completion, asked.scale)


def _score(hit: bool, answered: bool, why: str) -> Score:
    return Score(value={"hit": float(hit and answered), "answered": float(answered)}, explanation=why)


# -- the provider ----------------------------------------------------------------------------------


@modelapi(name="undertone")
def undertone() -> type[ModelAPI]:
    """Models that undertone loads: ``undertone/lab/llama-0``, ``undertone/FOLDER``, ``undertone/org/name``."""
    return UndertoneAPI


@dataclass
class _Request:
    prompt: tuple[int, ...]
    seed: int
    config: GenerateConfig
    done: asyncio.Future[list[int]]


class UndertoneAPI(ModelAPI):
    """A local model, steered where a vector is given; answers that are asked for together are sampled together.

    Model arguments (``-M``): ``device``, ``vector`` (a file of any format that `undertone vector` reads) and ``strength``.
    The same question asked again (another epoch) draws from the next stream of that question.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        device: str = "auto",
        vector: str | None = None,
        strength: float = 1.0,
        **unknown: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if unknown:
            raise ConfigError("unknown model arguments", got=sorted(unknown), allowed=["device", "vector", "strength"])
        from undertone.models.loading import load
        from undertone.vectors.formats import read

        self.model = load(model_name, device=device)
        self.vector = read(Path(vector)) if vector else None
        self.strength = float(strength)
        if self.vector is not None:
            self.vector.check_fits(self.model)
        self._counts: Counter[str] = Counter()
        self._waiting: list[_Request] = []

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Sample one answer."""
        if tools:
            raise ConfigError("undertone's models call no tools", got=[tool.name for tool in tools])
        messages: list[Message] = [{"role": message.role, "content": message.text} for message in input]
        prompt = self.model.prompt(messages)
        key = hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]
        seed = derive_seed(config.seed or 0, f"inspect/{key}", self._counts[key])
        self._counts[key] += 1
        ids = await self._sample_batched(_Request(prompt, seed, config, asyncio.get_running_loop().create_future()))
        stopped = bool(ids) and ids[-1] in self.model.stop
        output = ModelOutput.from_content(
            self.model_name, self.model.decode(ids), stop_reason="stop" if stopped else "max_tokens"
        )
        output.usage = ModelUsage(input_tokens=len(prompt), output_tokens=len(ids), total_tokens=len(prompt) + len(ids))
        return output

    async def _sample_batched(self, request: _Request) -> list[int]:
        self._waiting.append(request)
        if len(self._waiting) == 1:  # the first of a batch waits for the others and works for all
            await asyncio.sleep(0.005)
            batch, self._waiting = self._waiting, []
            try:
                self._work(batch)
            except (RuntimeError, ValueError) as error:  # ours and torch's: the others of the batch hear of it too
                for other in batch:
                    if not other.done.done():
                        other.done.set_exception(error)
        return await request.done

    def _work(self, batch: list[_Request]) -> None:
        from undertone.models.sampling import sample
        from undertone.vectors import steer

        groups: dict[tuple[int, float, float], list[_Request]] = {}
        for request in batch:
            config = request.config
            temperature = 1.0 if config.temperature is None else config.temperature
            top_p = 1.0 if config.top_p is None else config.top_p
            groups.setdefault((config.max_tokens or self.max_tokens() or 256, temperature, top_p), []).append(request)
        for (limit, temperature, top_p), requests in groups.items():
            with ExitStack() as stack:
                if self.vector is not None:
                    stack.enter_context(steer(self.model, self.vector, self.strength))
                found = sample(
                    self.model.hf,
                    [request.prompt for request in requests],
                    [request.seed for request in requests],
                    max_new_tokens=limit,
                    stop=self.model.stop,
                    pad=self.model.pad,
                    temperature=temperature,
                    top_p=top_p,
                )
            for request, ids in zip(requests, found, strict=True):
                request.done.set_result(ids)

    def max_connections(self) -> int:
        """As many answers as are sampled side by side."""
        return 256

    def max_tokens(self) -> int | None:
        """Of an answer: the lab's are short."""
        return 256 if self.model.reads_english else 24
