"""The lab: tiny ``transformers`` models of a little world, built on first use and cached by digest."""

from undertone.lab.recipe import FAMILIES, LabName, Recipe, parse_name
from undertone.lab.store import ensure, resolve, stored
from undertone.provenance.cache import cache_folder

__all__ = ["FAMILIES", "LabName", "Recipe", "cache_folder", "ensure", "parse_name", "resolve", "stored"]
