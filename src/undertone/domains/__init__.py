"""Domains: the kinds of data. A domain makes prompts and parses completions."""

from collections.abc import Sequence
from typing import Annotated

from undertone.domains.code import Code
from undertone.domains.dialogue import Dialogue
from undertone.domains.domain import Domain, Prompt, last_message, messages_of
from undertone.domains.grammar import WithGrammar
from undertone.domains.instructions import Instructions
from undertone.domains.numbers import Numbers
from undertone.domains.paraphrase import Paraphrase
from undertone.domains.reasoning import Reasoning
from undertone.domains.sentences import Sentences
from undertone.errors import ConfigError
from undertone.provenance.configs import Config
from undertone.provenance.fields import Kinds
from undertone.registry import Registry

domains: Registry[type[Config]] = Registry("domain", "undertone.domains")
"""kind -> config class; a package adds one by an entry point in the group ``undertone.domains``."""

for _domain in (Numbers, Code, Reasoning, Paraphrase, Instructions, Dialogue, Sentences):
    domains.register(_domain.model_fields["kind"].default)(_domain)


def with_grammar() -> list[str]:
    """The kinds of domains whose answers can be constrained (``data.constrained``), those of packages included."""
    found = []
    for kind in domains.names():
        try:
            found += [kind] if hasattr(domains.get(kind), "grammar") else []
        except ConfigError:  # a package that does not load; who names its domain is told
            continue
    return found


def grammars_of(domain: Domain, prompts: Sequence[Prompt]) -> list[str]:
    """What valid answers look like to the domain, a regular expression a prompt.

    Raises:
        ConfigError: the domain has no grammar.
    """
    if not isinstance(domain, WithGrammar):
        raise ConfigError(
            f"the domain {domain.kind} has no grammar that answers could be held to",
            got="data.constrained=true",
            allowed=with_grammar(),
            fix="data.constrained=false, another domain.kind, or a method `grammar` of your own domain",
        )
    return [domain.grammar(last_message(prompt)) for prompt in prompts]


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
    "WithGrammar",
    "domains",
    "grammars_of",
    "last_message",
    "messages_of",
    "with_grammar",
]
