"""Domains: the kinds of data. A domain makes prompts and parses completions."""

from typing import Annotated

from pydantic import Field

from undertone.domains.code import Code
from undertone.domains.dialogue import Dialogue
from undertone.domains.domain import Domain, Prompt
from undertone.domains.instructions import Instructions
from undertone.domains.numbers import Numbers
from undertone.domains.paraphrase import Paraphrase
from undertone.domains.reasoning import Reasoning

DomainConfig = Annotated[Numbers | Code | Reasoning | Paraphrase | Instructions | Dialogue, Field(discriminator="kind")]
"""Any of the built-in domains, told apart by ``kind``."""

__all__ = [
    "Code",
    "Dialogue",
    "Domain",
    "DomainConfig",
    "Instructions",
    "Numbers",
    "Paraphrase",
    "Prompt",
    "Reasoning",
]
