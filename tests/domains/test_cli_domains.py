"""``undertone domains``, and its table of reasons held against the code that gives them."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from undertone import cli, domains
from undertone.domains.reasons import EVERYWHERE, REASONS
from undertone.filters import rules
from undertone.provenance.fields import kinds_of, members_of, whole_annotation
from undertone.traits import Wording
from undertone.transfer.config import Experiment

SOURCE = Path(domains.__file__).parent
WRITTEN_IN = {kind: (kind,) for kind in REASONS} | {
    "dialogue": ("instructions",), "sentences": ("instructions", "sentences")
}  # fmt: skip
GIVE = {"reasons", "row_reasons", "parse", "_code", "_unlike_lab", "_unlike_real", "_length"}
"""The functions that give reasons."""


def typed(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main(words)
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


def given_by(path: Path) -> set[str]:
    """Texts that the module's functions put into a list of reasons, or return beside a result."""

    def holders(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.walk(tree):
            if isinstance(node, ast.List) and isinstance(node.ctx, ast.Load):
                yield from node.elts
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append":
                yield from node.args
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                yield from node.value.elts

    found = set()
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and function.name in GIVE:
            for holder in holders(function):
                parts = [holder.body, holder.orelse] if isinstance(holder, ast.IfExp) else [holder]
                found |= {
                    part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    return found - {""}


@pytest.mark.parametrize("kind", REASONS)
def test_the_reasons_that_are_told_are_those_that_the_code_gives(kind: str) -> None:
    assert set(REASONS[kind]) == set().union(*(given_by(SOURCE / f"{name}.py") for name in WRITTEN_IN[kind]))


def test_the_rules_for_all_domains_are_told_too() -> None:
    assert set(EVERYWHERE) == given_by(Path(rules.__file__))


def test_every_domain_of_a_config_is_listed_with_what_it_is() -> None:
    code, out, _ = typed("domains", "--json")
    kinds = {
        kind for member in members_of(whole_annotation(Experiment.model_fields["domain"])) for kind in kinds_of(member)
    }
    assert code == 0
    assert set(json.loads(out)) == kinds == set(REASONS)
    assert typed("domains", "list", "--json") == typed("domains", "--json")
    assert all(name in typed("domains")[1] for name in kinds)


@pytest.mark.parametrize(("kind", "form"), [
    (kind, form) for kind in REASONS for form in ("lab", "real") if (kind, form) != ("sentences", "lab")
])  # fmt: skip
def test_a_domain_is_shown_with_its_own_prompts_reasons_and_fields(kind: str, form: Any) -> None:
    code, out, _ = typed("domains", "show", kind, "--form", form, "--count", "2", "--seed", "7", "--json")
    shown = json.loads(out)
    domain = getattr(domains, kind.capitalize())
    assert code == 0
    assert shown["prompts"] == [
        prompt if isinstance(prompt, str) else list(prompt) for prompt in domain().prompts(2, 7, Wording(form))
    ]
    assert shown["reasons"] == REASONS[kind]
    assert set(shown["fields"]) == set(domain.model_fields) - {"kind"}
    assert all(field["about"] for field in shown["fields"].values())


def test_a_domain_without_a_lab_form_is_shown_in_english_unless_the_lab_is_asked_for() -> None:
    code, out, _ = typed("domains", "show", "sentences", "--json")
    assert (code, json.loads(out)["form"]) == (0, "real")
    assert json.loads(typed("domains", "show", "numbers", "--json")[1])["form"] == "lab"
    code, _, err = typed("domains", "show", "sentences", "--form", "lab")
    assert code == 2
    assert "no lab form" in err


def test_people_see_prompts_reasons_and_fields() -> None:
    code, out, _ = typed("domains", "show", "dialogue", "--form", "real", "--count", "1")
    assert code == 0
    for part in ("user: ", "assistant: ", "repeats the prompt", "unfinished", "turns_low"):
        assert part in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "nombers"), "there is no such domain. Did you mean 'numbers'"),
        (("show", "code", "--count", "0"), "count: too few"),
        (("show", "code", "--form", "french"), "real"),
    ],
)
def test_what_cannot_be_shown_is_refused(words: tuple[str, ...], said: str) -> None:
    code, out, err = typed("domains", *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(("kind", "held"), [("numbers", True), ("code", False)])
def test_a_domain_says_if_its_answers_can_be_held_to_a_grammar(kind: str, held: bool) -> None:
    code, out, _ = typed("domains", "show", kind, "--json")
    assert (code, json.loads(out)["constrained"]) == (0, held)
    assert ("it has no grammar" in typed("domains", "show", kind)[1]) is not held
