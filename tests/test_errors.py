from __future__ import annotations

import pickle

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
