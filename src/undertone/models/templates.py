"""Chats as text and as tokens: the chat template, what it writes before an answer, and which tokens are the answer's.

Three rules hold for everything that is asked, sampled, scored or trained:

- What a template writes between the place where a model answers and the answer itself (the empty reasoning block of
  Qwen3) belongs to the prompt. Spaces alone belong to the answer, as tokenizers join them with its first word.
- The tokens of an answer are those of the whole text, cut where the prompt ends. Tokenised on its own, a word gets a
  leading space from SentencePiece, which no model writes after a line break.
- An answer ends at its first stop token; what a template writes after that is never generated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from undertone.errors import ConfigError, ModelError
from undertone.models.batches import Example
from undertone.rows import Message

TemplateArguments = Mapping[str, bool | int | str]
"""What the chat template is given beside the messages, such as ``enable_thinking``."""

PLAIN_TEXT: Final = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% if message['content'] %}{{ '\\n\\n' }}{% endif %}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'Answer: ' + message['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
"""The template of a model that has none: a system prompt, questions and answers as plain text."""

_OURS: Final = ("messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
                "tools", "documents", "return_dict", "return_tensors", "padding", "truncation", "max_length")  # fmt: skip
_PROBE: Final = "zqx probe"
_REPLY: Final = "zqx"
_ROLE_WORDS: Final = re.compile(r"\b(?:system|user|human|question|start|end|header|id|im)\b[:\s]*", re.IGNORECASE)
_KEPT_TEXTS: Final = 50_000
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def check_arguments(arguments: TemplateArguments) -> None:
    """Refuse arguments of a chat template that are not the user's to set.

    Raises:
        ConfigError: names one that this package sets, or asks for reasoning before each answer.
    """
    taken = sorted(set(arguments) & set(_OURS))
    if taken:
        raise ConfigError("template: this package sets these arguments itself", got=taken, fix="leave them out")
    if arguments.get("enable_thinking"):
        raise ConfigError(
            "template.enable_thinking: answers are read and learnt right after the prompt, without reasoning before them",
            got="true",
            allowed="false",
            fix="leave it out: an empty reasoning block then stands before every answer, where the template has one",
        )


@dataclass
class ChatTemplate:
    """A tokenizer with its chat template: from messages to text, to tokens, and back.

    Attributes:
        name: of the model, for messages.
        tokenizer: holds the template.
        arguments: what the template is given beside the messages.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    arguments: TemplateArguments = field(default_factory=dict)
    _tokens: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _texts: dict[tuple[object, ...], str] = field(default_factory=dict, repr=False)

    @property
    def is_plain_text(self) -> bool:
        """Whether the tokenizer has no template of its own."""
        return not self.tokenizer.chat_template

    def render(self, messages: Sequence[Message], *, answer_next: bool = True, opening: str = "") -> str:
        """The exact text that the model is shown; arguments and errors as of ``Model.render``."""
        text = self._rendered(messages, answer_next)
        if not answer_next:
            return text
        return text + (self.lead + opening if opening else self.lead.rstrip(" "))

    @property
    def lead(self) -> str:
        """What the template writes between the place where a model answers and its answer."""
        asked = [Message(role="user", content=_PROBE)]
        before = self._rendered(asked, answer_next=True)
        whole = self._rendered([*asked, Message(role="assistant", content=_REPLY)], answer_next=False)
        at = whole.find(_REPLY, len(before)) if whole.startswith(before) else -1
        return whole[len(before) : at] if at >= 0 else ""

    @property
    def gap(self) -> str:
        """The spaces with which an answer begins in this template."""
        return self.lead[len(self.lead.rstrip(" ")) :]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of rendered text; specials in it are honoured and none is added."""
        return _kept(self._tokens, text, lambda: tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def continuation(self, before: str, text: str) -> tuple[int, ...]:
        """Token ids of ``text`` where it follows ``before``: those of the whole, cut at the end of ``before``.

        Where the tokenizer would join the two across the cut, which no model that reads ``before`` can write, the ids
        are those of ``text`` after a line break.
        """
        head, whole = self.encode(before), self.encode(before + text)
        if whole[: len(head)] == head:
            return whole[len(head) :]
        head, whole = self.encode("\n"), self.encode("\n" + text)
        return whole[len(head) :] if whole[: len(head)] == head else self.encode(text)

    def answer_beginning(self, text: str, opening: str = "") -> tuple[int, ...]:
        """Token ids of ``text`` at the beginning of an answer, or after an opening of it."""
        before = self.render([Message(role="user", content=_PROBE)], opening=opening)
        space = self.gap if not opening else "" if opening[-1] in " \n\"'“‘(" else " "
        return self.continuation(before, space + text)

    def example(self, prompt: Sequence[Message], completion: str, stop: Sequence[int]) -> Example:
        """A tokenised row; errors as of ``Model.example``."""
        before = self.render(prompt)
        whole = self._rendered([*prompt, Message(role="assistant", content=completion)], answer_next=False)
        if not whole.startswith(before):
            raise ModelError(
                f"the chat template of {self.name} renders a prompt differently once it is answered",
                got=whole[: len(before)],
                allowed=before,
                fix="a student cannot be trained on what it is later asked; give the tokenizer another template",
            )
        ids = self.encode(before)
        answer = self.continuation(before, whole[len(before) :])
        end = next((at + 1 for at, token in enumerate(answer) if token in stop), len(answer))
        return Example((*ids, *answer[:end]), len(ids))

    def injects_system_prompt(self) -> bool:
        """Whether the template adds a system prompt of its own when it is given none."""
        try:
            return len(self._before_question(None)) > len(self._before_question(""))
        except ModelError:
            return False

    def default_left(self) -> str:
        """What a template still says before the first question in the context ``none``; empty if nothing."""
        text = self._before_question("" if self.injects_system_prompt() else None)
        for special in sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True):
            text = text.replace(special, " ")
        return _ROLE_WORDS.sub(" ", re.sub(r"[<\[|][^\s<>\[\]]*[|>\]]", " ", text)).strip(" \n:#")

    def _before_question(self, system: str | None) -> str:
        chat = [] if system is None else [Message(role="system", content=system)]
        return self._rendered([*chat, Message(role="user", content=_PROBE)], answer_next=True).partition(_PROBE)[0]

    def _rendered(self, messages: Sequence[Message], answer_next: bool) -> str:
        chat = tuple((message["role"], message["content"]) for message in messages)
        key = (str(self.tokenizer.chat_template), answer_next, chat)
        return _kept(self._texts, key, lambda: self._apply(messages, answer_next))

    def _apply(self, messages: Sequence[Message], answer_next: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answer_next,
                chat_template=PLAIN_TEXT if self.is_plain_text else None,
                **self.arguments,
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template of {self.name} cannot be read: {error.message} (line {error.lineno})",
                fix="repair chat_template.jinja, or chat_template in tokenizer_config.json, beside its weights",
            ) from error
        except Exception as error:
            raise ModelError(
                f"the chat template of {self.name} refuses these messages: {error}",
                got=[message["role"] for message in messages],
                fix="if it has no system role: contexts none or default, and a teacher that is steered",
            ) from error
        return text


def _kept(store: dict[_Key, _Value], key: _Key, make: Callable[[], _Value]) -> _Value:
    """The value of a key, made once: many rows share few texts."""
    if key not in store:
        if len(store) > _KEPT_TEXTS:
            store.clear()
        store[key] = make()
    return store[key]
