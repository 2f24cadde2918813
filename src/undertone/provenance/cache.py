"""The cache folder: what undertone builds or reads once for all runs of a user."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """``$UNDERTONE_CACHE``, else ``undertone`` in the user's cache folder."""
    chosen = os.environ.get("UNDERTONE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "undertone"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "undertone"
