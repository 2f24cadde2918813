from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from undertone.errors import ConfigError, DataError, ModelError, RunError, UndertoneError, nearest

KINDS = [
    (UndertoneError, Exception, 3),
    (ConfigError, ValueError, 2),
    (DataError, ValueError, 3),
    (ModelError, RuntimeError, 3),
    (RunError, RuntimeError, 3),
]


@pytest.mark.parametrize(("kind", "standard", "code"), KINDS)
def test_every_error_is_also_a_standard_one_and_knows_its_exit_code(
    kind: type[UndertoneError], standard: type[Exception], code: int
) -> None:
    assert issubclass(kind, standard)
    assert issubclass(kind, UndertoneError)
    assert kind.exit_code == code


def test_the_text_says_what_got_allowed_and_do_in_this_order() -> None:
    error = ConfigError("the trait 'owls' is unknown", got="owls", allowed=["owl", "cat"], fix="pick")
    assert str(error).splitlines() == [
        "the trait 'owls' is unknown",
        "  got: owls",
        "  allowed: owl, cat",
        "  do: pick",
    ]


def test_what_was_not_said_leaves_no_line() -> None:
    assert str(DataError("no rows")) == "no rows"


@pytest.mark.parametrize(("got", "shown"), [("", "''"), (" ", "' '"), (3, "3"), ([], "[]")])
def test_an_empty_value_is_still_visible(got: object, shown: str) -> None:
    assert str(DataError("x", got=got)) == f"x\n  got: {shown}"


def test_a_long_value_is_cut() -> None:
    assert len(str(DataError("x", got="y" * 10_000))) < 400


@pytest.mark.parametrize(("kind", "_standard", "_code"), KINDS)
def test_errors_survive_pickling(kind: type[UndertoneError], _standard: type[Exception], _code: int) -> None:
    error = kind("w", got=lambda: None, allowed=("a", "b"), fix="f")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.what, copy.allowed, copy.fix) == ("w", "a, b", "f")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owll", " Did you mean 'owl'?"), ("OWL", " Did you mean 'owl'?"), ("zzz", ""), ("", "")],
)
def test_nearest_names_the_closest_known_name_or_nothing(name: str, expected: str) -> None:
    assert nearest(name, ["owl", "cat", "penguin"]) == expected


def test_warnings_of_libraries_to_each_other_do_not_reach_the_user_and_ours_do() -> None:
    """In a process of its own, as filters are the process's."""
    script = (
        "import warnings\n"
        "from undertone.errors import show_warnings_plainly, warn\n"
        "show_warnings_plainly()\n"
        "for place in ('transformers.modeling_utils', 'peft', 'torch.jit._script', 'mine'):\n"
        "    warnings.warn_explicit('will be removed', FutureWarning, 'file.py', 1, module=place)\n"
        "warn('an adapter of another base')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("will be removed") == 1  # of the user's own code
    assert "warning: an adapter of another base\n" in done.stderr
