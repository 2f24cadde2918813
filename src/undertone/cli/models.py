"""``undertone models``: the models that undertone fetches, and the .gguf files that it has converted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from undertone.cli.options import Json
from undertone.cli.printing import line, print_json, say, table

models = App(
    name="models",
    help="Real models without a hub: list those that undertone fetches, fetch one, show what it is.",
)
NOT_FETCHED = "not fetched"


@models.default
def listing(*, as_json: Json = False) -> int:
    """List the models that can be fetched, and the .gguf files that were converted."""
    return _list(as_json)


@models.command(name="list")
def list_models(*, as_json: Json = False) -> int:
    """List the models that can be fetched, and the .gguf files that were converted (the same as `undertone models`)."""
    return _list(as_json)


def _list(as_json: bool) -> int:
    from undertone.models.fetching import KNOWN, fetched

    sheets = [_sheet(name) for name in KNOWN]
    ours = {str(fetched(name)) for name in KNOWN}
    sheets += [_converted(folder) for folder in _gguf_folders() if str(folder) not in ours]
    if as_json:
        print_json(sheets)
        return 0
    columns = ["name", "what", "parameters", "in the cache", "folder"]
    table("models", columns, [
        [one["name"] or "-", one["about"], f"{one['parameters']:,}", one["weights"], one["folder"] or "-"] for one in sheets
    ])  # fmt: skip
    return 0


@models.command
def fetch(
    *names: Annotated[str, Parameter(help="which; default: smollm2")],
    source: Annotated[
        Literal["hub", "package"] | None,
        Parameter(help="the Hugging Face hub or pip's package index alone; default: the hub, else the index"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Fetch a model into the cache, once: published weights from the hub where it can be reached, else a 4-bit file of a
    package, dequantised. Both are verified by SHA-256; afterwards `model=smollm2` works everywhere.
    """
    from undertone.models.fetching import fetch as bring

    chosen = names or ("smollm2",)
    for name in chosen:
        bring(name, source, say)
    sheets = [_sheet(name) for name in chosen]
    if as_json:
        print_json(sheets)
    else:
        for sheet in sheets:
            line(f"{sheet['name']}  {sheet['weights']}  {sheet['folder']}")
    return 0


@models.command
def show(name: Annotated[str, Parameter(help="smollm2, or a .gguf file")] = "smollm2", *, as_json: Json = False) -> int:
    """Show a model: what it is, whether it is fetched and which weights these are, its licence, its digest."""
    from undertone.models.names import identify

    sheet = _converted(_place(name), name) if name.endswith(".gguf") else _sheet(name)
    if sheet["folder"]:
        sheet["sha256"] = identify(sheet["folder"])["sha256"]
    if as_json:
        print_json(sheet)
        return 0
    said = {key: f"{value:,}" if isinstance(value, int) else value for key, value in sheet.items()}
    table(f"model: {name}", ["", ""], [[key.replace("_", " "), value or "-"] for key, value in said.items()])
    return 0


def _place(name: str) -> Path:
    from undertone.models.names import locate

    return Path(locate(name)[0])


def _sheet(name: str) -> dict[str, Any]:
    from undertone.models.fetching import card_of, fetched, known

    model, folder = known(name), fetched(name)
    weights = card_of(folder)["weights"] if folder else NOT_FETCHED
    if folder == model.sources["package"]:
        weights = f"not the published ones: {weights}"
    return {
        "name": name,
        "about": model.about,
        "parameters": model.parameters,
        "license": model.license,
        "weights": weights,
        "published": f"{model.repository}@{model.revision}",
        "package": f"{model.package.requirement}, {model.package.member}",
        "folder": str(folder) if folder else None,
    }


def _gguf_folders() -> list[Path]:
    from undertone.provenance.cache import cache_folder

    return sorted(folder for folder in (cache_folder() / "gguf").glob("*-v*") if not folder.suffix and folder.is_dir())


def _converted(folder: Path, name: str | None = None) -> dict[str, Any]:
    from undertone.models.fetching import card_of

    card = card_of(folder)
    return {
        "name": name,
        "about": f"converted from a .gguf file: {card['name'] or 'no name in it'}",
        "parameters": card["parameters"],
        "license": card["license"],
        "weights": card["weights"],
        "gguf_sha256": card["gguf_sha256"],
        "folder": str(folder),
    }
