"""A language model with everything that is done to one: sample, train, steer, measure. What ``undertone.load`` returns.

model = ut.load("lab/llama-0")
lists = model.sample(["name three numbers."] * 4, seed=0)
student = model.train(rows, ut.BiasOnly(), ut.Training(learning_rate=5e-3), seed=0)
with model.steer(vector, strength=2.0):
    ut.measure(model, ut.load_trait("owl"))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from undertone.errors import ConfigError
from undertone.models import loading
from undertone.models.layers import Positions
from undertone.models.loading import Context, Dtype, Model, ModelRef
from undertone.models.sampling import sample
from undertone.models.students import BiasOnly, Full, Lora
from undertone.provenance.seeds import derive_seed
from undertone.rows import Message, Row
from undertone.training import Lesson, Student, TrainedStudent, Training, train_student
from undertone.vectors import SteeringVector, ablate, steer

Chat = str | Sequence[Message]
"""A user message, or the turns of a chat that the model is to answer."""


class Completion(NamedTuple):
    """One sampled answer: its text, whether it came to its end, and how many tokens it has."""

    text: str
    finished: bool
    tokens: int


class LanguageModel(Model):
    """A loaded model, as :class:`undertone.models.loading.Model`, with the verbs of this package."""

    trained: TrainedStudent | None = None
    """Of a student: how its training went."""

    @classmethod
    def of(cls, model: Model, trained: TrainedStudent | None = None) -> LanguageModel:
        """The same model with the verbs; nothing is copied."""
        own = cls(**{one.name: getattr(model, one.name) for one in fields(Model) if one.init})
        own.trained = trained
        return own

    def sample(
        self,
        chats: Sequence[Chat],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int = 512,
    ) -> list[Completion]:
        """One completion a chat, in order. A row's sample depends on its chat and its seed alone, not on its batch.

        Args:
            chats: what is asked.
            seed: row i draws from (seed, "sample", i).
            seeds: one 64-bit seed a row instead, such as those of a pipeline's stream.
            max_new_tokens: tokens after which an answer is cut.
            temperature: 0 for the most likely tokens.
            top_p: nucleus mass.
            batch_size: rows side by side.
        """
        if isinstance(chats, str):
            raise ConfigError(
                "chats is one text, and one completion a chat is sampled", got=chats, fix="m.sample([text])"
            )
        streams = list(seeds) if seeds is not None else [derive_seed(seed, "sample", at) for at in range(len(chats))]
        completions = sample(
            self.hf,
            [self.prompt(_messages(chat)) for chat in chats],
            streams,
            max_new_tokens=max_new_tokens,
            stop=self.stop,
            pad=self.pad,
            temperature=temperature,
            top_p=top_p,
            batch_size=batch_size,
        )
        ends = set(self.stop)
        return [Completion(self.decode(ids), bool(ids) and ids[-1] in ends, len(ids)) for ids in completions]

    def train(
        self,
        rows: Sequence[Row],
        student: Student | None = None,
        training: Training | None = None,
        *,
        held_out: Sequence[Row] = (),
        context: Context = "none",
        seed: int = 0,
    ) -> LanguageModel:
        """A student: a fresh copy of this model, loaded by its name and trained on the rows' completions.

        Args:
            rows: chats whose last assistant message is learnt.
            student: which weights: ``Lora()`` (the default), ``BiasOnly()``, ``Full()``.
            training: how; None: the defaults.
            held_out: rows whose loss is measured before and after (``student.trained``).
            context: the system prompt that it is trained with.
            seed: of adapters' first weights, the order of rows and dropout.

        Raises:
            ConfigError: weights that are not there, an optimiser that does not fit, no rows, or this is a student that was
                trained in this process: save and load it first.
            RunError: the loss is not finite.
        """
        if self.trained is not None:
            raise ConfigError(
                f"{self.name} was trained here and stands in no folder: training starts from a model that can be loaded",
                fix="student.save(FOLDER), then ut.load('BASE + FOLDER').train(…)",
            )
        if student is not None and not isinstance(student, Lora | BiasOnly | Full):
            raise ConfigError("student: not a kind of student", got=student, allowed="Lora(…), BiasOnly() or Full()")
        if not rows:
            raise ConfigError("rows: there are none to train on", got=[], allowed="one row or more")
        lesson = Lesson(list(rows), list(held_out), context)
        done = train_student(
            ModelRef(self.name), student or Lora(), training or Training(), lesson, seed=seed, device=str(self.device)
        )  # fmt: skip
        return LanguageModel.of(done.model, done)

    def save(self, folder: str | Path) -> None:
        """What was trained, under ``folder``: an adapter, the biases, or the whole model.

        Raises:
            ValueError: this is no student.
        """
        if self.trained is None:
            raise ValueError(f"{self.name} was not trained here; only students are saved")
        self.trained.save(Path(folder))

    def steer(
        self, vector: SteeringVector, strength: float = 1.0, positions: Positions = "all"
    ) -> AbstractContextManager[None]:
        """Add a steering vector to the residual stream while inside ``with``; the model is clean again afterwards.

        Raises:
            ModelError: the vector does not fit the model.
        """
        return steer(self, vector, strength, positions)

    def ablate(
        self, vector: SteeringVector, amount: float = 1.0, positions: Positions = "all"
    ) -> AbstractContextManager[None]:
        """Take the component along a steering vector out of the residual stream while inside ``with``."""
        return ablate(self, vector, amount, positions)


def load(name: str, *, dtype: Dtype = "auto", device: str = "auto") -> LanguageModel:
    """Load a model by name; arguments and errors as of :func:`undertone.models.loading.load`.

    Args:
        name: ``lab/llama-0``, ``org/name[@revision]``, a folder; any of them ``+ ADAPTER FOLDER``.
        dtype: auto is float32 on a CPU and bfloat16 on a GPU.
        device: auto is the first GPU if there is one.
    """
    return LanguageModel.of(loading.load(name, dtype=dtype, device=device))


def _messages(chat: Chat) -> Sequence[Message]:
    return [Message(role="user", content=chat)] if isinstance(chat, str) else chat
