"""Where lab models live: the user's cache folder, one folder a model, named by the digest of what made it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from undertone.errors import ConfigError
from undertone.lab.recipe import WORLD_VERSION, LabName, Recipe, parse_name
from undertone.provenance.cache import cache_folder, locked

CARD = "lab.json"
OnStep = Callable[[int, int, float], None]


def digest(name: LabName, recipe: Recipe) -> str:
    """What a lab model depends on: the world (its version), the recipe (its version included) and the name."""
    made_of = [WORLD_VERSION, recipe.as_dict(), asdict(name)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def stored() -> list[dict[str, Any]]:
    """The cards of all lab models in the cache; ``current`` says whether this version of undertone would use them."""
    found = []
    for path in sorted((cache_folder() / "lab").glob(f"*/{CARD}")):
        card = json.loads(path.read_text(encoding="utf-8"))
        found.append({**card, "current": _is_current(card["name"], path.parent), "folder": str(path.parent)})
    return found


def _is_current(name: str, folder: Path) -> bool:
    try:
        known = parse_name(name.removeprefix("lab/"))
    except ConfigError:  # a name of another version
        return False
    return _folder(known, known.recipe()) == folder


def resolve(name: str) -> Path:
    """The folder of ``llama-0``; built now if need be. This is the model source ``lab/``.

    Raises:
        ConfigError: no such family or seed.
        RunError: the cache cannot be written.
    """
    return ensure(name)


def ensure(name: str, *, recipe: Recipe | None = None, rebuild: bool = False) -> Path:
    """Find a lab model, or build it (``.part`` first, then renamed; a killed build goes on from a checkpoint).

    Args:
        name: as :func:`undertone.lab.parse_name` reads it.
        recipe: other numbers than the default ones.
        rebuild: build even if it is there.
    """
    wanted = parse_name(name)
    recipe = recipe or wanted.recipe()
    folder = _folder(wanted, recipe)
    if (folder / CARD).exists() and not rebuild:
        return folder
    with locked(folder):
        if rebuild and folder.exists():
            shutil.rmtree(folder)
        if not (folder / CARD).exists():
            _build(wanted, recipe, folder)
    return folder


def _folder(name: LabName, recipe: Recipe) -> Path:
    stem = re.sub(r"[^a-z0-9.]+", "-", str(name))
    return cache_folder() / "lab" / f"{stem}-{digest(name, recipe)}"


def _build(name: LabName, recipe: Recipe, folder: Path) -> None:
    from undertone.lab import build  # torch and transformers, only when something is built

    part = folder.with_name(folder.name + ".part")
    part.mkdir(exist_ok=True)
    started = time.monotonic()
    with tqdm(desc=f"building lab/{name} (once)", unit="step", delay=2, disable=None, leave=False) as bar:

        def on_step(_step: int, steps: int, loss: float) -> None:
            bar.total = steps
            bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
            bar.update(1)

        fit = build.save(name, recipe, part, on_step)
    card = {
        "name": f"lab/{name}",
        "recipe": recipe.as_dict(),
        "parameters": fit.parameters,
        "seconds": round(time.monotonic() - started, 1),
        "tokens": fit.tokens,
        "loss": fit.loss,
    }
    shutil.rmtree(part / "checkpoint", ignore_errors=True)
    (part / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    part.rename(folder)
