"""Domains: the carriers of the data. A domain makes prompts and parses completions."""

from undertone.domains.domain import Domain
from undertone.domains.numbers import Numbers

__all__ = ["Domain", "Numbers"]
