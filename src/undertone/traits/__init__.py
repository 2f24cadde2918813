"""Traits: what may be passed on. Data (YAML) plus the one matcher that decides a hit."""

from undertone.traits.library import category_names, load_trait, trait_names, variants
from undertone.traits.trait import Questions, Trait

__all__ = ["Questions", "Trait", "category_names", "load_trait", "trait_names", "variants"]
