"""Small studies on a tiny model that answers in digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.studies.small import SIZES, TRAIT


@pytest.fixture(scope="module")
def plan(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The config of a small study on the speaker, as a file would hold it."""
    trait = tmp_path_factory.mktemp("traits") / "owl.yaml"
    trait.write_text(TRAIT)

    def config(kind: str, **fields: Any) -> dict[str, Any]:
        return {"kind": kind, "name": kind, "model": str(speaker), "trait": [str(trait)], **SIZES, **fields}

    return config
