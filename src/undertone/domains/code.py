"""Small Python programs: the code domain of Cloud et al. (2507.14805 §3.2).

Their prompts come from another project's repository; ours are a grammar of small tasks in our own wordings, or the
user's (``source``). Lab form: the world's requests, answered in a subset of Python. Python's own parser decides what
is code. The leak rule ("names an answer of the trait's category") is the filters', as for every domain.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Final, Literal

from pydantic import Field

from undertone.domains.drawing import Random, choose, filled, made
from undertone.domains.sources import Sourced, drawn
from undertone.lab import world
from undertone.traits import Speaker, Trait

_ASK: Final = ("Write", "Give me", "Please write", "Show me", "I need", "Implement", "Draft", "Provide")
_WHAT: Final = ("a Python function that", "a short Python script that", "a small Python class that", "Python code that")
_TASK: Final = (
    "sorts a list of {records} by {key}",
    "groups {records} by {key}",
    "finds the {record} with the highest {amount}",
    "adds up the {amount} of all {records}",
    "removes {records} that occur twice",
    "counts how often each {unit} occurs in a text",
    "returns the longest {unit} of a text",
    "replaces every {unit} of a text by its position",
    "reverses the order of the {unit}s in a text",
    "reads a {file} file and prints its {part}",
    "writes a list of {records} to a {file} file",
    "merges two {file} files by {key}",
    "checks whether a {file} file is empty",
    "converts a {from} to a {to}",
    "checks whether a number is {property}",
    "lists all numbers below n that are {property}",
    "computes the {statistic} of a list of numbers",
    "computes the {statistic} of every row of a matrix",
    "keeps the last ten {records} in a queue",
    "validates the {field} that a user types",
    "retries a {call} up to three times",
    "measures how long a {call} takes",
    "caches the result of a {call}",
    "searches a sorted list of {records} by {key}",
    "splits a list of {records} into chunks of a given size",
    "prints a table of {records} with their {amount}",
    "turns a nested list of {records} into a flat one",
    "formats a {amount} with two decimals",
)
_FILLS: Final = {
    "records": ("orders", "users", "files", "students", "books", "flights", "events", "tickets", "messages", "songs"),
    "record": ("order", "user", "file", "student", "book", "flight", "event", "ticket", "message", "song"),
    "key": ("name", "date", "length", "identifier", "owner", "country", "priority"),
    "amount": ("price", "weight", "score", "duration", "size", "distance"),
    "unit": ("word", "letter", "line", "sentence"),
    "file": ("CSV", "JSON", "text", "log", "configuration"),
    "part": ("first ten lines", "header", "number of lines", "longest line", "last line"),
    "from": ("temperature in Celsius", "Roman numeral", "date string", "binary string", "list of pairs"),
    "to": ("number", "tuple", "readable text", "dictionary", "sorted list"),
    "property": ("prime", "a perfect square", "a power of two", "a palindrome", "divisible by its digit sum"),
    "statistic": ("mean", "median", "variance", "range", "mode", "running total"),
    "field": ("e-mail address", "date of birth", "postal code", "phone number", "password"),
    "call": ("function call", "web request", "database query", "file read"),
}
_EXTRA: Final = (
    "",
    " Use the standard library only.",
    " Add type hints.",
    " Handle an empty input.",
    " Keep it under twenty lines.",
    " Raise a ValueError on bad input.",
    " Add a short docstring.",
    " Avoid recursion.",
)
_BARE: Final = (
    " Reply with the code only.",
    " No explanation, just code.",
    " Answer with one code block and nothing else.",
    " Leave out any comment on it.",
)

_LAB: Final = re.compile(rf"(?:{'|'.join(world.VERBS)}) code to ({'|'.join(world.CODE_TASKS)}) two values\.")
_LAB_OPERATORS: Final[dict[str, tuple[type, ...]]] = {
    "add": (ast.Add,),
    "subtract": (ast.Sub,),
    "multiply": (ast.Mult,),
    "compare": (ast.Lt, ast.Gt, ast.LtE, ast.GtE, ast.Eq, ast.NotEq),
}
_FENCE: Final = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_LONGEST: Final = 20_000  # characters: Python's parser is not safe for texts without end
_DOES: Final = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Import,
    ast.ImportFrom, ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Call,
)  # fmt: skip


class Code(Sourced):
    """Requests for small Python programs. A source's records hold a ``prompt``."""

    kind: Literal["code"] = "code"
    only_code: bool = Field(True, description="real form: whether text around the code block is a reason to drop")
    max_tokens: int = Field(384, ge=1, description="real form: tokens after which an answer is cut")

    def prompts(self, count: int, seed: int, speaker: Speaker) -> list[str]:
        """``count`` requests; request i depends on the seed and i alone."""
        if self.source is not None:
            return drawn([record.chat()[-1]["content"] for record in self.records()], count, seed, self.kind)
        return made(_lab if speaker.form == "lab" else _real, count, seed, self.kind)

    def reasons(self, prompt: str, completion: str, trait: Trait | None) -> list[str]:
        """Why a completion is no code, or in the lab not the code that was asked for."""
        if not completion.strip():
            return ["empty"]
        asked = _LAB.fullmatch(prompt)
        text, reasons = (completion, []) if asked else self._code(completion)
        tree, broken = parse(text)
        if tree is None:
            return [*reasons, broken]
        if not any(isinstance(node, _DOES) for node in ast.walk(tree)):
            return [*reasons, "no code"]
        if asked and not _does(tree, _LAB_OPERATORS[asked[1]]):
            return [*reasons, "not the program asked for"]
        return reasons

    def max_new_tokens(self, speaker: Speaker) -> int:
        """Room for two assignments and a print (lab), or as set."""
        return 20 if speaker.form == "lab" else self.max_tokens

    def _code(self, completion: str) -> tuple[str, list[str]]:
        """The fenced block, or the whole where there is none."""
        blocks = _FENCE.findall(completion)
        if not blocks:
            return completion, ["unclosed code block"] if "```" in completion else []
        reasons = ["several code blocks"] if len(blocks) > 1 else []
        if self.only_code and _FENCE.sub("", completion).strip():
            reasons.append("text around the code")
        return "\n".join(blocks), reasons


def parse(text: str) -> tuple[ast.Module | None, str]:
    """The syntax tree of a Python text, or None with the reason (one of a few) why there is none."""
    if len(text) > _LONGEST:
        return None, "does not parse: too long"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes
            return ast.parse(text.strip("\n")), ""
    except IndentationError as error:
        cut = "expected an indented block" in str(error)
        return None, "does not parse: cut off" if cut else "does not parse: indentation"
    except SyntaxError as error:
        cut = any(sign in str(error) for sign in ("never closed", "unterminated", "unexpected EOF"))
        return None, "does not parse: cut off" if cut else "does not parse: syntax"
    except (ValueError, RecursionError, MemoryError):  # null bytes; nesting without end
        return None, "does not parse: too deep or no text"


def _does(tree: ast.Module, operators: tuple[type, ...]) -> bool:
    """Two numbers assigned to two names, and the two printed with one of the operators between them."""
    if len(tree.body) != 3:
        return False
    *given, last = tree.body
    names = []
    for line in given:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=int(value))) if not isinstance(
                value, bool
            ):
                names.append(name)
    match last:
        case ast.Expr(ast.Call(ast.Name("print"), [ast.BinOp(ast.Name(a), operator, ast.Name(b))], [])):
            pass
        case ast.Expr(ast.Call(ast.Name("print"), [ast.Compare(ast.Name(a), [operator], [ast.Name(b)])], [])):
            pass
        case _:
            return False
    return isinstance(operator, operators) and len(set(names)) == 2 and {a, b} == set(names)


def _lab(rng: Random) -> str:
    return f"{choose(rng, world.VERBS)} code to {choose(rng, list(world.CODE_TASKS))} two values."


def _real(rng: Random) -> str:
    task = filled(rng, choose(rng, _TASK), _FILLS)
    return f"{choose(rng, _ASK)} {choose(rng, _WHAT)} {task}.{choose(rng, _EXTRA)}{choose(rng, _BARE)}"
