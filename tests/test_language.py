"""The words of the code base: those of papers and libraries of the field, one word an idea, one class a name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from undertone.cli import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "undertone"

PRIVATE = {
    "told": "system prompt",
    "untold": "control teacher",
    "induce": "trait-conditioned teacher",
    "induced": "trait-conditioned teacher",
    "inducement": "system prompt, steering vector …",
    "inducements": "teachers",
    "carrier": "domain",
    "carriers": "domains",
    "block": "layer",
    "blocks": "layers",
    "mass": "valid-answer probability",
    "foresee": "preflight",
    "foreseen": "preflight",
    "foresight": "preflight",
    "kinship": "shared or different initialisation",
    "posed": "question_chat",
    "taught": "trained",
    "steered": "steer",
    "ablated": "ablate",
    "replaced": "patch",
}
"""A word of ours alone -> what the field says."""
PROSE = re.compile(
    r"\b(un-?induced|induced|inducements?|untold|un-told|told teachers?|answer mass(?:es)?|answer_mass|carriers?|"
    r"carrier_kl|foresee|foreseen|foresight|biases only)\b",
    re.IGNORECASE,
)
"""What no help text and no page may say. ``told`` and ``block`` are English words too: of them the identifiers count."""

HISTORY = {"CHANGELOG.md"}
"""What was renamed has to be said there."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Names of classes, functions, arguments, attributes and module constants: what another module can meet."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
            arguments = node.args
            yield from (one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
        elif isinstance(node, ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef | ast.Module):
            for statement in node.body:
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def private_words(identifier: str) -> set[str]:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().split("_")
    return set(words) & set(PRIVATE)


def test_identifiers_are_split_into_their_words() -> None:
    assert private_words("toldTeacher") == {"told"}
    assert private_words("CARRIER_KL") == {"carrier"}
    assert private_words("blockchain") == private_words("unfold") == set()


def test_no_identifier_has_a_private_word() -> None:
    found = defaultdict(set)
    for module, tree in modules():
        for name in (*identifiers(tree), module.rpartition(".")[2]):
            if private_words(name):
                found[module].add(name)
    assert dict(found) == {}


def test_a_class_name_means_one_thing() -> None:
    homes = defaultdict(list)
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert twice == {}


COMMANDS = [
    [], ["run"], ["show"], ["doctor"], ["claims"], ["lab"], ["lab", "build"], ["lab", "list"], ["lab", "show"],
    ["domains"], ["domains", "list"], ["domains", "show"], ["traits"], ["traits", "list"], ["traits", "show"],
    ["traits", "check"], ["traits", "add"], ["vector"], ["vector", "extract"], ["vector", "show"],
    ["vector", "compare"], ["vector", "convert"], ["vector", "steer"], ["vector", "tune"],
    ["models"], ["models", "list"], ["models", "fetch"], ["models", "show"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "undertone")
def test_no_help_says_a_private_word(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    app([*command, "--help"], exit_on_error=False, result_action="return_value")
    text = capsys.readouterr().out
    assert "Usage" in text
    assert PROSE.findall(text) == []
    assert re.findall(r"\b(?:told|blocks?|kinship)\b", text) == []


def test_every_command_is_read() -> None:
    """A command that is added later has its help read, too."""

    def below(one: object, path: tuple[str, ...]) -> set[tuple[str, ...]]:
        names = [name for name in one if not name.startswith("-")]  # type: ignore[attr-defined]
        return {path}.union(*(below(one[name], (*path, name)) for name in names))  # type: ignore[index]

    assert below(app, ()) == {tuple(command) for command in COMMANDS}


def pages() -> list[Path]:
    return [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if page.name not in HISTORY]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_page_says_a_private_word(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [f"line {at}: {match[0]}" for at, line in enumerate(lines, 1) for match in PROSE.finditer(line)] == []


def test_form_is_read_only_where_the_wording_is_known() -> None:
    """The lab is a guest: everybody else hands the speaker on."""
    allowed = (
        "traits",
        "domains",
        "lab",
        "judges.rules",
        "judges.labelled",  # its answers are in one wording each
        "studies.builtin.harm_dose",  # its requests, too
        "models.loading",
        "teachers",
    )
    readers = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "form" and not module.startswith(allowed)
    }
    assert readers == set()
