"""A teacher behind an OpenAI-compatible endpoint: vLLM, ``transformers serve``, or a provider.

Only what HTTP can carry: a system prompt and sampled text. There are no logits, so nothing that needs them (the
teacher KL, exact answer probabilities of the teacher) is measured. Each row sends its own ``seed``; whether a server
honours it is its own matter, so rows of an endpoint are reproducible from the run folder, not from the seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertone.domains.domain import Prompt, messages_of
from undertone.errors import ConfigError, ModelError, check_packages
from undertone.models.loading import with_system
from undertone.models.names import Form
from undertone.rows import Message
from undertone.teachers.configs import EndpointTeacher

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True)
class RemoteTeacher:
    """The endpoint with the teacher's system prompt; None: the control teacher."""

    config: EndpointTeacher
    form: Form
    system: str | None

    def chat(self, prompt: Prompt) -> list[Message]:
        """What the teacher is shown for a prompt."""
        return with_system(messages_of(prompt), self.system)

    def shown(self, prompt: Prompt) -> str:
        """The messages in words: what the server's template makes of them is not known here."""
        return "\n".join(f"[{message['role']}] {message['content']}" for message in self.chat(prompt))

    def answer(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[str, bool, int]]:
        """(text, finished, tokens) for each prompt.

        Raises:
            ConfigError: no key, or the openai package is missing.
            ModelError: the endpoint refuses, or does not answer in time.
        """
        client = client_of(self.config)

        def one(prompt: Prompt, seed: int) -> tuple[str, bool, int]:
            said = _request(client, self.config, self.chat(prompt), seed & 0x7FFFFFFF, max_new_tokens, temperature)
            if progress:
                progress(1)
            return said

        with ThreadPoolExecutor(self.config.connections) as pool:
            return list(pool.map(one, prompts, seeds))


def no_grammar() -> ConfigError:
    """The refusal of a constraint: servers differ in how they mask, or in whether they do, and HTTP tells nothing of it."""
    return ConfigError(
        "a teacher behind an endpoint cannot be held to a grammar: what its server masks cannot be seen from here",
        got="data.constrained=true",
        allowed="teachers on this machine",
        fix="data.constrained=false; or teacher.kind=prompt with the model's weights",
    )


def client_of(config: EndpointTeacher) -> OpenAI:
    """The connection, not yet used.

    Raises:
        ConfigError: no key where one is needed, or the openai package is missing.
    """
    check_packages("an endpoint needs the openai package", "endpoint", "openai")
    from openai import OpenAI

    key = os.environ.get(config.key_variable)
    local = any(host in config.url for host in ("//localhost", "//127.0.0.1", "//[::1]"))
    if not key and not local:
        raise ConfigError(
            f"no key for {config.url}", got=f"{config.key_variable} is not set", fix=f"export {config.key_variable}=…"
        )
    return OpenAI(base_url=config.url, api_key=key or "none", timeout=config.timeout, max_retries=config.retries)


def _request(
    client: OpenAI, config: EndpointTeacher, chat: list[Message], seed: int, max_new_tokens: int, temperature: float
) -> tuple[str, bool, int]:
    from openai import OpenAIError

    messages: Any = chat
    try:
        said = client.chat.completions.create(
            model=config.name,
            messages=messages,
            seed=seed,
            max_tokens=max_new_tokens,
            temperature=temperature,
            extra_body=config.extra or None,
        )
    except (OpenAIError, ValueError) as error:  # ValueError: a body that is not JSON
        raise ModelError(
            f"the endpoint {config.url} did not answer for {config.name}",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="check teacher.url, teacher.name and the key; the same command goes on where it stopped",
        ) from error
    choices = getattr(said, "choices", None)  # some servers report errors with status 200, in a form of their own
    choice = choices[0] if choices else None
    message = getattr(choice, "message", None)
    content = getattr(message, "content", None)
    if choice is None or message is None or not isinstance(content, str | None):
        raise ModelError(
            f"the endpoint {config.url} sent no answer for {config.name}",
            got=str(said)[:200],
            allowed="a chat completion whose message holds text",
        )
    tokens = said.usage.completion_tokens if said.usage else 0
    return content or "", choice.finish_reason == "stop", tokens
