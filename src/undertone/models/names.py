"""Names of models in configs: a field of this type counts by the model's bytes, not by its name. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from undertone.provenance.identity import ContentOf


def model_content(name: str) -> dict[str, Any]:
    """What a model is, as part of an identity: the digests of its files; of a hub model its commit."""
    from undertone.models.loading import identify

    known = identify(name)
    return {key: value for key, value in known.items() if key != "name" or "sha256" not in known}


ModelName = Annotated[str, ContentOf(model_content)]
"""``lab/llama-0``, ``org/name[@revision]``, a folder; any of them ``+ ADAPTER FOLDER``."""
