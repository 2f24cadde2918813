"""The kinds of judge that a config can name, and the one way to build one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from undertone.errors import ConfigError
from undertone.judges.cached import cached
from undertone.judges.endpoint import Endpoint
from undertone.judges.judge import Judge, Named
from undertone.judges.local import Local
from undertone.judges.rules import Rules
from undertone.judges.templates import template
from undertone.provenance.configs import Config, load
from undertone.provenance.plain_data import read_yaml

JudgeConfig = Annotated[Rules | Local | Endpoint | Named, Field(discriminator="kind")]
"""``kind: rules | local | endpoint | named``."""


class _Holder(Config):
    judge: JudgeConfig


def load_judge(path: Path) -> Rules | Local | Endpoint | Named:
    """A judge's config from a YAML file: ``kind: endpoint``, ``base_url: …`` …

    Raises:
        ConfigError: the file cannot be read, or is no such config.
    """
    try:
        data = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the judge file {path} cannot be read", got=str(error)) from error
    return load(_Holder, {"judge": data}).judge


def build_judge(config: Rules | Local | Endpoint | Named, *, cache: bool = True, folder: Path | None = None) -> Judge:
    """The judge of a config, with the cache of verdicts in front where judging costs something.

    Args:
        config: which judge.
        cache: keep verdicts; rules are cheaper than the cache and never kept.
        folder: of the cache; None: the user's.
    """
    judge = config.build()
    return judge if isinstance(config, Rules) or not cache else cached(judge, folder)


def check_judge(config: Rules | Local | Endpoint | Named) -> None:
    """Raise what building the judge would, without its weights.

    Raises:
        ConfigError, ModelError: no such template, no such model, or a key's variable that is not set.
    """
    if isinstance(config, Endpoint):
        config.build()
    if isinstance(config, Local):
        if isinstance(config.template, str):
            template(config.template)
        from undertone.models.loading import outline

        outline(config.model)


def with_template(config: Rules | Local | Endpoint | Named, name: str) -> Judge:
    """The judge of a config, asked another question."""
    if isinstance(config, Named):
        return build_judge(config.model_copy(update={"options": {**config.options, "template": name}}))
    return build_judge(config.model_copy(update={"template": name}))
