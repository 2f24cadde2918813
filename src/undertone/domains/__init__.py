"""Domains: the kinds of data. A domain makes prompts and parses completions."""

from typing import Annotated

from undertone.domains.code import Code
from undertone.domains.dialogue import Dialogue
from undertone.domains.domain import Domain, Prompt
from undertone.domains.instructions import Instructions
from undertone.domains.numbers import Numbers
from undertone.domains.paraphrase import Paraphrase
from undertone.domains.reasoning import Reasoning
from undertone.domains.sentences import Sentences
from undertone.provenance.configs import Config
from undertone.provenance.fields import Kinds
from undertone.registry import Registry

domains: Registry[type[Config]] = Registry("domain", "undertone.domains")
"""kind -> config class; a package adds one by an entry point in the group ``undertone.domains``."""

for _domain in (Numbers, Code, Reasoning, Paraphrase, Instructions, Dialogue, Sentences):
    domains.register(_domain.model_fields["kind"].default)(_domain)

DomainConfig = Annotated[Domain, Kinds(domains)]
"""Any domain, told apart by ``kind``."""

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
    "Sentences",
    "domains",
]
