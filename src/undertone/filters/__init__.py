"""Filters: rows in, reasons out (empty = keep); what was dropped is always counted."""

from undertone.filters.rules import Filtered, apply_rules, match_arms

__all__ = ["Filtered", "apply_rules", "match_arms"]
