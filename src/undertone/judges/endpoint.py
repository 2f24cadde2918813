"""Any OpenAI-compatible endpoint as judge: ``POST {base_url}/chat/completions``.

The key comes from an environment variable that the config names; it is in no config, manifest, log, message or cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx2
from pydantic import Field, field_validator
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from undertone.errors import ConfigError, ModelError
from undertone.judges.judge import JudgedPair, Verdict
from undertone.judges.templates import Template, read_answer, shown, template
from undertone.provenance.configs import Config
from undertone.provenance.endpoints import plain_url, variable_name

_TRANSIENT: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED: Final = frozenset({401, 403, 404})
_BAD_REQUEST: Final = "refused with status "


class _TransientError(Exception):
    """Worth another try."""


class _BadRequestError(Exception):
    """The server will not answer this request; it says why."""


class Endpoint(Config):
    """A judging model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = Field(description="up to and without /chat/completions, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="the model's name there; recorded with every verdict")
    template: str | Template = Field("compliance", description="a template's name, or {question, scale}")
    key_env: str | None = Field(None, description="NAME of the environment variable that holds the key; None: no key")
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(16, ge=1)
    timeout_s: float = Field(60.0, gt=0, description="of one request, in seconds")
    attempts: int = Field(4, ge=1, description="tries in all, where the server is busy or away")
    parallel: int = Field(8, ge=1, description="requests at the same time")

    extra: dict[str, Any] = Field(
        default_factory=dict, description="further or other fields of every request; null leaves one out (max_tokens …)"
    )

    _plain_url = field_validator("base_url")(plain_url)
    _is_a_name = field_validator("key_env")(variable_name)

    def build(self) -> EndpointJudge:
        """The judge; nothing is sent yet.

        Raises:
            ConfigError: no such template, or the key's variable is not set.
        """
        asked = template(self.template) if isinstance(self.template, str) else self.template
        if self.key_env and not os.environ.get(self.key_env):
            raise ConfigError(
                f"the environment variable {self.key_env} is not set",
                fix=f"export {self.key_env}=… in the shell that runs undertone, or set key_env to null",
            )
        return EndpointJudge(self, asked)


@dataclass(frozen=True)
class EndpointJudge:
    """An endpoint with its question."""

    config: Endpoint
    asked: Template

    @property
    def identity(self) -> dict[str, Any]:
        """What verdicts depend on: address, model, question, sampling; no key."""
        config = self.config
        return {
            "kind": "endpoint",
            "base_url": config.base_url,
            "model": config.model,
            "template": self.asked.model_dump(),
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            **({"extra": config.extra} if config.extra else {}),
        }

    def judge(self, items: Sequence[JudgedPair]) -> list[Verdict]:
        """A verdict an item, in order. A request that fails for good is a failed verdict.

        Raises:
            ModelError: the endpoint refuses the key, or does not know the model or the address.
        """
        key = os.environ.get(self.config.key_env) if self.config.key_env else None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx2.Client(headers=headers, timeout=self.config.timeout_s) as client,
            ThreadPoolExecutor(self.config.parallel) as pool,
        ):
            verdicts = list(pool.map(lambda item: self._one(client, item), items))
        if verdicts and all(verdict.failed and verdict.why.startswith(_BAD_REQUEST) for verdict in verdicts):
            raise ModelError(
                f"the endpoint {self.config.base_url} takes no request as undertone sends it",
                got=verdicts[0].why,
                fix="fields that this server does not take: judge.extra replaces them, null leaves one out",
            )
        return verdicts

    def _one(self, client: httpx2.Client, item: JudgedPair) -> Verdict:
        retrying = Retrying(
            stop=stop_after_attempt(self.config.attempts),
            wait=wait_exponential_jitter(multiplier=0.25, max=20),
            retry=retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            text: str = retrying(self._ask, client, item)
        except _TransientError as error:
            return Verdict.failure(f"no answer in {self.config.attempts} tries: {error}")
        except _BadRequestError as error:
            return Verdict.failure(str(error))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return Verdict.failure(f"not a chat completion: {type(error).__name__}: {str(error)[:200]}")
        value = read_answer(text, self.asked.scale)
        if value is None:
            return Verdict.failure(f"not an answer on the scale ({self.asked.scale}): {text[:200]!r}")
        label = None
        if self.asked.scale == "yes or no":
            label = "yes" if value == 1 else "no"
        return Verdict(value, label, text.strip()[:200])

    def _ask(self, client: httpx2.Client, item: JudgedPair) -> str:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": shown(self.asked, item)}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            **self.config.extra,
        }
        body = {name: value for name, value in body.items() if value is not None}
        try:
            reply = client.post(f"{self.config.base_url}/chat/completions", json=body)
        except httpx2.TransportError as error:
            raise _TransientError(type(error).__name__) from error
        if reply.status_code in _TRANSIENT:
            raise _TransientError(f"status {reply.status_code}")
        if reply.status_code in _REFUSED:
            raise ModelError(
                f"the endpoint {self.config.base_url} refuses with status {reply.status_code} for {self.config.model}",
                got=reply.text[:200],
                fix="check base_url and model; for 401 or 403, key_env and the variable that it names",
            )
        if reply.status_code != 200:
            raise _BadRequestError(f"{_BAD_REQUEST}{reply.status_code}: {reply.text[:200]}")
        content = reply.json()["choices"][0]["message"]["content"]
        if not isinstance(content, str | None):
            raise TypeError(f"content is no text: {content!r}")
        return content or ""
