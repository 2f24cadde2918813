"""Traits: what may be passed on. Data (YAML) plus the one matcher, or the one rule, that decides a hit."""

from undertone.traits.behaviour import KINDS, Behaviour
from undertone.traits.behaviour_library import behaviour_names, read_requests, with_requests
from undertone.traits.library import (
    all_names,
    category_names,
    load_trait,
    own_folder,
    own_names,
    trait_names,
    variants,
)
from undertone.traits.trait import LAB, REAL, Questions, Speaker, Trait, Wording

__all__ = [
    "KINDS",
    "LAB",
    "REAL",
    "Behaviour",
    "Questions",
    "Speaker",
    "Trait",
    "Wording",
    "all_names",
    "behaviour_names",
    "category_names",
    "load_trait",
    "own_folder",
    "own_names",
    "read_requests",
    "trait_names",
    "variants",
    "with_requests",
]
