"""An example package: a domain, a study and a preset that `undertone run` finds once it is installed."""

from pathlib import Path

PRESETS = Path(__file__).parent / "presets"
