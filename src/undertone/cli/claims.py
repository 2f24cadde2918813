"""``undertone claims``: every published claim beside what finished runs show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from undertone.cli.options import Cluster, Device, Jobs, Json, Launch, place_of, start_workers
from undertone.cli.printing import entries, line, print_json, say
from undertone.errors import ConfigError

if TYPE_CHECKING:
    from undertone.studies.claims import ClaimRow


def claims(
    *names: Annotated[str, Parameter(help="some of the plans that test claims; default: all")],
    run: Annotated[
        Literal["quick", "full"] | None, Parameter(help="first run what is not finished: the quick or the full form")
    ] = None,
    runs: Annotated[Path, Parameter(help="the folder that holds the run folders")] = Path("runs"),
    records: Annotated[Path | None, Parameter(help="a folder of records, read where no full run is finished")] = None,
    keep: Annotated[Path | None, Parameter(help="write a record of every finished full run into this folder")] = None,
    write: Annotated[
        Path | None, Parameter(help="write the table as a page of Markdown, such as docs/claims.md")
    ] = None,
    jobs: Jobs = None,
    device: Device = "auto",
    launch: Launch = "local",
    cluster: Cluster = (),
    as_json: Json = False,
) -> int:
    """Every published claim that undertone tests: verdict, ours with its interval, how measured, published value, source.

    Reads finished runs below `runs/`; what was not run is listed with the command that runs it. `--run quick` fills the
    table in short forms, `--run full` with what the docs show (hours on a laptop).
    """
    if run is not None:
        start_workers(jobs, launch)
    from undertone.studies import claims as registry

    if run is None:
        _check_folder(runs)
    else:
        registry.run_claims(names, run, runs, jobs=jobs, device=device, launch=place_of(launch, cluster))
    if keep is not None:
        try:
            kept = registry.keep(names, runs, keep)
        except OSError as error:
            raise ConfigError(f"the folder {keep} cannot be written", got=str(error), fix="name another one") from error
        say(f"kept: {len(kept)} records in {keep}")
    found = registry.claims(names, runs, records)
    if write is not None:
        try:
            write.write_text(registry.markdown(found), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the page {write} cannot be written",
                got=f"{type(error).__name__}",
                fix="name a file in a folder that exists",
            ) from error
        say(f"written: {write}")
    if as_json:
        print_json(
            [
                {
                    "name": claim.tested.name,
                    "form": claim.size,
                    "command": claim.command,
                    "folder": None if claim.folder is None else str(claim.folder),
                    "finding": None if claim.finding is None else claim.finding.model_dump(mode="json"),
                }
                for claim in found
            ]
        )
        return 0
    for command in dict.fromkeys(claim.command for claim in found):
        entries([_entry(claim) for claim in found if claim.command == command], command)
    line(registry.counted(found))
    return 0


def _check_folder(runs: Path) -> None:
    """Refuse a folder that was named and is not there; the default one begins empty."""
    if runs != Path("runs") and not runs.is_dir():
        raise ConfigError(
            "there is no such folder of runs",
            got=str(runs),
            fix="name the folder that holds run folders, or give --run",
        )


def _entry(claim: ClaimRow) -> tuple[str, list[str]]:
    """What stands beside each other: the verdict, and the lines about it."""
    from undertone.studies.claim import valued

    finding = claim.finding
    if finding is None:
        return "not run", [claim.tested.about]
    lines = [f"{finding.id}  {valued(finding)}", finding.quantity]
    return finding.verdict, [*lines, f"published: {finding.published or 'no figure'} · {finding.source}"]
