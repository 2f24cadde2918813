"""One page that tells a run: ``report.html``, self-contained, no JavaScript, opens offline.

``render`` makes the page from results and manifest; ``write`` reads both from a run folder and
writes the page beside them. The page loads nothing (its content security policy forbids it), shows
light and dark as the reader's system does, prints, and escapes every word of a model.

No model is loaded and torch is not imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from undertone.errors import DataError
from undertone.experiments.results import SCHEMA, Results, check_version
from undertone.experiments.study import STUDY_SCHEMA, StudyResults

__all__ = ["render", "render_study", "write"]

R = TypeVar("R", bound=BaseModel)
RESULTS, MANIFEST, REPORT = "results.json", "manifest.json", "report.html"


def render(results: Results, manifest: Mapping[str, Any], filter_note: str = "") -> str:
    """The report as one HTML text.

    Args:
        results: what the run found.
        manifest: where it comes from; any nested JSON-like mapping, shown name by name.
        filter_note: a sentence shown above the filter's table, such as what its rules were.
    """
    from undertone.report.page import fill

    return fill(results, manifest, filter_note)


def render_study(results: StudyResults, manifest: Mapping[str, Any]) -> str:
    """The report of a study as one HTML text; arguments as of :func:`render`."""
    from undertone.report.study import fill

    return fill(results, manifest)


def write(folder: Path) -> Path:
    """Write ``report.html`` into a run folder from its ``results.json`` and ``manifest.json``, whatever its kind.

    The file appears whole or not at all; an earlier one is replaced.

    Raises:
        DataError: one of the two files is missing or not what it should be, or the folder cannot
            be written.
    """
    check_version(folder / RESULTS)
    record = _object(folder / RESULTS)
    manifest = _object(folder / MANIFEST)
    if record.get("schema") == STUDY_SCHEMA:
        page = render_study(_checked(StudyResults, record, folder / RESULTS, STUDY_SCHEMA), manifest)
    else:
        page = render(_checked(Results, record, folder / RESULTS, SCHEMA), manifest)
    return _replace(folder / REPORT, page)


def _checked(kind: type[R], record: dict[str, Any], path: Path, schema: str) -> R:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(
            f"{path} does not follow the schema {schema}: {place}: {first['msg']}",
            got=first["input"],
            allowed=f"results as `undertone run` writes them ({schema})",
            fix="run again with this version of undertone; finished stages are reused",
        ) from error


def _object(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", got=str(path)) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON: {error}",
            allowed="the file as `undertone run` wrote it",
            fix="run again: finished stages are reused and the file is written anew",
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"{path} does not hold a JSON object", got=type(record).__name__)
    return record


def _missing(path: Path) -> DataError:
    folder = path.parent
    there = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else None
    return DataError(
        f"there is no {path.name} in {folder}",
        got="no such folder" if there is None else ", ".join(there) or "an empty folder",
        allowed=f"the folder of a finished run, with {RESULTS} and {MANIFEST}",
        fix=f"finish the run: undertone run {folder / 'config.yaml'}",
    )


def _replace(path: Path, text: str) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written: {error.strerror}",
            got=str(path.parent),
            fix="free space on the disk or make the folder writable; nothing else was changed",
        ) from error
    return path
