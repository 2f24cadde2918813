"""What the command line prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from undertone.doctor.finding import DoctorResult
    from undertone.studies.results import Finding

MARKS: Final = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "-"}
"""Status of a check -> its mark."""
TALLY: Final = {"pass": "passed", "warn": "with a warning", "fail": "failed", "skip": "skipped"}
"""Status of a check -> how their number is said."""


def is_follower() -> bool:
    """Whether another process that was started with this one prints in its place."""
    from undertone.launch import group

    return group.rank() != 0


def say(text: str) -> None:
    """A line on stderr."""
    if not is_follower():
        print(text, file=sys.stderr)


def say_notes() -> None:
    """What was read under the name of an older version, each once, and what was started otherwise than meant; on stderr."""
    from undertone.launch import group
    from undertone.provenance.renamed import take_notes

    for note in (*take_notes(), *group.notes()):
        say(f"note: {note}")


def fail(message: str, advice: str | None, code: int) -> NoReturn:
    """A message, what to do, and the exit."""
    say(f"undertone: {message}" + (f"\n  do: {advice}" if advice else ""))
    sys.exit(code)


def line(text: str) -> None:
    """A line of a result, on stdout."""
    print(text)


def print_json(value: Any) -> None:
    """A result for other programs, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*[Text(str(cell)) for cell in row])
    Console().print(drawn)


def entries(rows: Sequence[tuple[str, Sequence[str]]], title: str) -> None:
    """Under a title: a word, and beside it lines of which the first stands out. Wraps at the terminal's width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for word, (first, *others) in rows:
        drawn.add_row(Text(word), Text(first, "bold"))
        for other in others:
            drawn.add_row("", Text(other))
    console = Console()
    console.print(Text(title, "cyan"), soft_wrap=True)  # a command stays whole, to be copied
    console.print(drawn)
    console.print()


def check_lines(findings: Sequence[DoctorResult], title: str) -> None:
    """The doctor's checks, a line each: mark, name, what was seen; under one that did not pass, what to do about it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for finding in findings:
        failed = finding.status == "fail"
        drawn.add_row(Text(MARKS[finding.status], "bold" if failed else ""), Text.assemble(
            (finding.name, "bold"), ": ", finding.saw,
        ))  # fmt: skip
        if finding.status in ("warn", "fail"):
            advice = Table.grid(padding=(0, 1))
            advice.add_column(no_wrap=True)
            advice.add_column(overflow="fold")
            advice.add_row("  expected:", Text(finding.expected))
            advice.add_row("  do:", Text(finding.do))
            drawn.add_row("", advice)
    counts = [(word, sum(f.status == status for f in findings)) for status, word in TALLY.items()]
    console = Console()
    console.print(Text(title, "cyan"), soft_wrap=True)
    console.print(drawn)
    console.print(", ".join(f"{number} {word}" for word, number in counts if number))


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding of a study: ``verdict  quantity value (low to high)  baseline``."""
    from undertone.studies.claim import valued

    width = max((len(finding.verdict) for finding in findings), default=0)
    return [f"{f.verdict:{width}}  {f.quantity} {valued(f)}  [{f.baseline}]" for f in findings]
