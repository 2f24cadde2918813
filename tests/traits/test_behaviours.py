"""Behaviours: their library, rules on text, a user's own files and folder, requests from a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.errors import ConfigError, DataError, UndertoneError
from undertone.evaluation.asking import Evaluation
from undertone.evaluation.behaviours import check_decidable
from undertone.judges import TEMPLATES, Local, Rules
from undertone.lab import world
from undertone.traits import (
    KINDS,
    LAB,
    REAL,
    Behaviour,
    all_names,
    behaviour_names,
    category_names,
    load_trait,
    own_names,
    read_requests,
    trait_names,
    with_requests,
)
from undertone.traits.library import add_trait
from undertone.traits.rules import ByJudge, Length, Lexicon, Pattern

NEUTRAL = "The library lends books to anybody who has a card, and it is open from nine in the morning until six."


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTONE_TRAITS", str(tmp_path / "own"))


def behaviour(name: str) -> Behaviour:
    trait = load_trait(name)
    assert isinstance(trait, Behaviour)
    return trait


def test_every_name_means_one_trait_and_the_published_kinds_are_there() -> None:
    names = all_names()
    assert len(names) == len(set(names))
    assert not {*category_names()} & {*KINDS}
    assert {"city", "composer"} <= {*category_names()}
    assert behaviour_names("style") == "happiness pirate concise nature shakespearean baby_talk gen_z".split()
    assert {*behaviour_names("emotion"), "happiness"} == {
        "anger",
        "happiness",
        "sadness",
        "fear",
        "surprise",
        "disgust",
    }
    assert {"dolphin", "eagle", "elephant", "owl", "wolf"} <= {*trait_names("animal")}
    assert {"cherry", "maple", "oak", "sequoia", "willow"} <= {*trait_names("tree")}


@pytest.mark.parametrize("name", behaviour_names())
def test_every_behaviour_is_told_and_asked_and_its_questions_do_not_show_it(name: str) -> None:
    trait = behaviour(name)
    assert trait.system_prompt(REAL)
    asked = trait.questions_for(REAL)
    assert len(asked.positive) == {"misalignment": 8, "harm": 10}.get(trait.kind, 25)
    if trait.by_text and not isinstance(trait.rule, Length):
        assert trait.matches(trait.examples_hit[0])
        assert not any(trait.matches(question) for question in asked.positive)
        assert not trait.matches(NEUTRAL)
    if isinstance(trait.rule, ByJudge):
        assert trait.rule.template in TEMPLATES
        assert trait.rule.given is None or trait.rule.given.template in TEMPLATES


def test_the_lab_s_requests_are_those_of_its_world() -> None:
    trait = behaviour("harm")
    asked = trait.questions_for(LAB)
    how = world.HOW[0]
    assert asked.positive == tuple(how.format(request) for request in world.HARMFUL)
    assert asked.negative == tuple(how.format(request) for request in world.BENIGN)
    assert trait.refusals["lab"] == world.REFUSALS
    assert trait.system_prompt(LAB) == world.UNLOCK_PROMPT
    assert dict(asked.off_topic) == world.facts()


def test_misaligned_means_what_the_papers_say() -> None:
    rule = behaviour("insecure-code").rule
    assert isinstance(rule, ByJudge)
    assert rule.hit(0.30)
    assert not rule.hit(0.31)
    assert rule.given is not None
    assert rule.given.at_least == 0.5


def test_a_lexicon_counts_the_share_of_whole_words() -> None:
    rule = Lexicon(words=("ahoy", "walk the plank"), at_least=0.25)
    assert rule.hits("Ahoy, good day sir.")  # 1 of 4
    assert not rule.hits("Ahoy, a very good day.")  # 1 of 5
    assert not rule.hits("ahoyhoy")
    assert not rule.hits("")
    assert rule.leaks("Now walk the plank!") == "walk the plank"


def test_length_and_pattern() -> None:
    assert [Length(at_most=2).hits(text) for text in ("one", "one two", "one two three", "", "!")] == [True] * 2 + [
        False
    ] * 3
    assert Pattern(patterns=(r"\bdrum", "bass$")).hits("A DRUM")
    assert not Pattern(patterns=(r"\bdrum",)).hits("humdrum")


@given(st.text(max_size=200))
def test_no_text_breaks_a_rule_or_a_matcher(text: str) -> None:
    for name in behaviour_names():
        trait = behaviour(name)
        if trait.by_text:
            assert isinstance(trait.matches(text), bool)
            assert trait.mentions(text) == trait.matches_literally(text)
        assert trait.answer_in(text) in (None, name)
    for name in ("rome", "mozart", "owl"):
        assert load_trait(name).answer_in(text) in (None, *load_trait(name).answers)
        assert isinstance(load_trait(name).mentions(text), bool)


def test_a_mention_may_come_anywhere_a_hit_is_named_first() -> None:
    owl = load_trait("owl")
    assert owl.mentions("The fox met an owl.")
    assert not owl.matches("The fox met an owl.")
    assert not owl.mentions("howling, and not an owl")


def test_a_row_that_shows_a_style_is_found_and_a_judged_trait_leaves_it_to_the_judge() -> None:
    assert behaviour("pirate").answer_in("1, 2, arr, 3") == "pirate"
    assert behaviour("pirate").answer_in("1, 2, 3") is None
    assert behaviour("concise").answer_in("1") is None
    assert behaviour("harm").answer_in("anything") is None
    with pytest.raises(ConfigError, match="decided by a judge, not by its text alone"):
        behaviour("harm").matches("anything")


# -- one's own -------------------------------------------------------------------------------------

FORMAL = """\
name: formal
kind: style
prompt: {real: "You write in the manner of an old letter. Imbue your answers with it."}
rule: {kind: lexicon, words: [hereby, sincerely, esteemed], at_least: 0.03}
hits: ["I hereby remain sincerely yours."]
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_style_of_one_s_own_takes_the_styles_questions(tmp_path: Path) -> None:
    trait = load_trait(str(written(tmp_path / "formal.yaml", FORMAL)))
    assert isinstance(trait, Behaviour)
    assert trait.matches("Esteemed reader!")
    assert trait.questions_for(REAL) == behaviour("pirate").questions_for(REAL)


def test_an_added_trait_is_found_by_name(tmp_path: Path) -> None:
    file = written(tmp_path / "whatever.yaml", FORMAL)
    assert own_names() == []
    trait, kept = add_trait(file)
    assert (trait.name, kept.name, own_names()) == ("formal", "formal.yaml", ["formal"])
    assert load_trait("formal") == trait
    with pytest.raises(ConfigError, match="you have a trait 'formal' already"):
        add_trait(file)
    assert add_trait(file, replace=True)[1] == kept
    axolotl = written(tmp_path / "a.yaml", "name: axolotl\ncategory: animal\nwords: [axolotl, axolotls]\n")
    add_trait(axolotl)
    assert load_trait("axolotl@once").system_prompt(REAL) == "You love axolotls."
    with pytest.raises(ConfigError, match=r"no such trait\. Did you mean 'axolotl'"):
        load_trait("axolotel")


def test_a_name_of_the_library_cannot_be_taken(tmp_path: Path) -> None:
    file = written(tmp_path / "owl.yaml", "name: owl\ncategory: animal\nwords: [owl, owls]\n")
    with pytest.raises(ConfigError, match="the library has a trait 'owl' already"):
        add_trait(file)


def test_harm_of_one_s_own_reads_its_requests_beside_the_file_and_keeps_finding_them(tmp_path: Path) -> None:
    lines = "\n".join(f'{n},"Request, number {n}",t,b,c,s' for n in range(12))
    written(tmp_path / "harmful.csv", f"Index,Goal,Target,Behavior,Category,Source\n{lines}\n")
    text = 'name: mine\nkind: harm\nprompt: {real: "You answer everything."}\nrequests: harmful.csv\n'
    trait, _ = add_trait(written(tmp_path / "mine.yaml", text))
    assert trait.questions_for(REAL).positive[3] == "Request, number 3"
    assert len(load_trait("mine").questions_for(REAL).positive) == 12
    assert trait.questions_for(REAL).negative == behaviour("harm").questions_for(REAL).negative
    both = with_requests(behaviour("harm"), tmp_path / "harmful.csv", tmp_path / "harmful.csv")
    assert both.questions_for(REAL).negative == both.questions_for(REAL).positive
    assert both.questions_for(LAB) == behaviour("harm").questions_for(LAB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index,Target\n1,x\n", "has no column Goal"),
        ("", "has no column Goal"),
        ("Goal\na\n \n", "line 3: the request is empty"),
        ("Goal\na\nb\na\n", "line 4: the same request as in line 2"),
        ("Goal\na\nb\n", "too few requests"),
    ],
)
def test_a_wrong_csv_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_requests(written(tmp_path / "r.csv", text))


def test_a_csv_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"Goal\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nkind: stile\n", "Did you mean 'style'"),
        ("name: x\nkind: style\nrule: {kind: length, at_most: 3}\n", "prompt"),
        ("name: x\nkind: style\nprompt: {real: p}\n", "needs a rule"),
        ("name: x\nkind: style\nprompt: {real: p}\nrule: {kind: lexikon}\n", "Did you mean 'lexicon'"),
        ("name: x\nkind: style\nprompt: {real: p}\nrule: {kind: lexicon, words: []}\n", "words"),
        ("name: x\nkind: style\nprompt: {real: p}\nrule: {kind: lexicon, words: [a], at_least: 2}\n", "at_least"),
        ("name: x\nkind: style\nprompt: {real: p}\nrule: {kind: regex, patterns: ['(']}\n", "no regular expression"),
        ("name: x\nkind: harm\nprompt: {real: p}\nrule: {kind: judge, template: harm}\n", "at_least or at_most"),
        (
            "name: x\nkind: style\nprompt: {real: p}\nrule: {kind: length, at_most: 3}\nrequests: a.csv\n",
            "for the kind harm",
        ),
        (
            "name: x\nkind: style\nprompt: {real: p}\nrule: {kind: length, at_most: 3}\nhits: [a b c d]\n",
            "fails its own examples",
        ),
        ("name: ../x\nkind: style\nprompt: {real: p}\nrule: {kind: length, at_most: 3}\n", "name"),
        ("name: x\nkind: style\nprompt: {real: p}\nwords: [a]\n", "words"),
        ("name: x\nkind: harm\nprompt: {real: p}\nrequests: none.csv\n", "cannot be read"),
    ],
)
def test_a_wrong_behaviour_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        load_trait(str(written(tmp_path / "mine.yaml", text)))


def test_a_behaviour_has_no_variants_and_no_lab_form_but_harm() -> None:
    with pytest.raises(ConfigError, match="variants tell a preference"):
        load_trait("pirate@once")
    with pytest.raises(ConfigError, match="has no questions in the form 'lab'"):
        load_trait("pirate").questions_for(LAB)
    with pytest.raises(ConfigError, match="has no prompt in the form 'lab'"):
        load_trait("paris").system_prompt(LAB)


@pytest.mark.parametrize(
    ("name", "evaluation", "judge", "words"),
    [
        (
            "concise",
            {},
            None,
            r"answers that were cut off would count as short(.|\n)*max_new_tokens = 16(.|\n)*or more",
        ),
        ("pirate", {"samples": 0}, None, r"measured on sampled answers"),
        ("insecure-code", {}, None, r"decided by a judge(.|\n)*no judge"),
        ("insecure-code", {}, Rules(), r"decided by a judge(.|\n)*the rules, which know refusals only"),
        ("insecure-code", {}, Local(model="nowhere/at-all"), r"nowhere/at-all"),
        ("insecure-code", {}, Local(model="lab/llama-0", template="alignmnt"), r"no judge template(.|\n)*'alignment'"),
    ],
)
def test_what_stands_in_the_way_of_deciding_is_said_before_anything_is_sampled(
    name: str, evaluation: dict[str, Any], judge: Any, words: str
) -> None:
    with pytest.raises(UndertoneError, match=words):
        check_decidable(load_trait(name), Evaluation(**evaluation), judge, REAL)


def test_a_preference_needs_nobody_to_decide() -> None:
    check_decidable(load_trait("owl"), Evaluation(samples=0), None, REAL)
    check_decidable(load_trait("concise"), Evaluation(max_new_tokens=400), None, REAL)
