"""The report without a browser: what it says, in which order, and that nothing can break out of it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertone.errors import DataError
from undertone.report import charts, heat, render, words, write
from undertone.report.cast import assemble, over_seeds
from undertone.report.page import distinct
from undertone.transfer.results import Interval, Results

HOSTILE = "</style><script>alert('1')</script>\"'&<b>\x1b[31m\u202eevil\x00"
HARMLESS = "".join(c if c.isalnum() or c == "/" else "x" for c in HOSTILE)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Structure(HTMLParser):
    """Start tags with their attribute names, visible text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def owl_page(owl: Results, a_manifest: dict[str, Any]) -> str:
    return render(owl, a_manifest, "Rules: three numbers.")


@pytest.fixture(scope="module")
def zoo_page(zoo: Results, a_manifest: dict[str, Any]) -> str:
    return render(zoo, a_manifest)


def changed(results: Results, **fields: Any) -> Results:
    """A copy with other values, checked again."""
    return Results.model_validate(results.model_dump(by_alias=True) | fields)


def altered(results: Results, alter: Callable[[dict[str, Any]], None]) -> Results:
    """A copy altered as plain data, checked again."""
    record = results.model_dump(by_alias=True)
    alter(record)
    return Results.model_validate(record)


# ------------------------------------------------------------------------------ the page


@pytest.mark.parametrize("name", ["owl_page", "zoo_page"])
def test_the_page_is_well_formed_and_refers_to_nothing_outside(name: str, request: pytest.FixtureRequest) -> None:
    html = request.getfixturevalue(name)
    page = Structure(html)
    assert {"script", "iframe", "object", "embed", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any(attribute.startswith("on") for _, names in page.tags for attribute in names)
    assert re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"/\*.*?\*/", "", html, flags=re.S)) == []
    assert re.search(r"@import|url\(", html) is None
    assert len(page.ids) == len(set(page.ids))
    assert html.count("Content-Security-Policy") == 1
    targets = re.findall(r'href="#(\w+)"', html)
    assert set(targets) <= set(page.ids)


def test_everything_stands_in_its_order(zoo_page: str) -> None:
    page = Structure(zoo_page)
    order = "answers effect questions confusion training checks specificity samples filter costs manifest replay"
    assert [name for name in page.ids if name != "content"] == order.split()


def test_the_page_says_what_the_results_say(owl: Results, owl_page: str) -> None:
    text = Structure(owl_page).text
    for expected in (
        owl.sentence,
        "transferred",
        "Rules: three numbers.",
        owl.replay,
        "held-out 5.213 nats, base 5.871",
        "expected: within ±5 points",
        "6 students, seeds 0, 1, 2",
        "sha256:" + "ab12" * 16,
        "package-39",
        "name your favourite animal ?<|assistant|>",
    ):
        assert expected in text, expected


def test_a_zoo_has_a_row_per_trait_and_its_one_control_is_one_student(zoo: Results, zoo_page: str) -> None:
    assert "17 students, seed 0" in zoo_page
    assert len(distinct(zoo.arms)) == 17
    bars = re.search(r'aria-label="Bars\. ([^"]*)"', zoo_page)
    assert bars is not None
    names = [entry.split(":")[0] for entry in bars[1].split("; ")]
    treated = {arm.trait: arm.probability for arm in zoo.arms if arm.arm.startswith("treated")}
    assert names == sorted(treated, key=lambda name: -treated[name])


def test_every_picture_has_its_words_and_the_numbers_behind_it(owl_page: str) -> None:
    pictures = re.findall(r"<svg [^>]*>", owl_page)
    assert len(pictures) == 8  # four, each in two widths
    assert all('role="img"' in tag and 'aria-label="' in tag for tag in pictures)
    assert owl_page.count('<details class="behind">') == 4


@pytest.mark.slow
def test_many_arms_and_seeds_stay_small_and_readable(zoo: Results) -> None:
    """17 arms × 3 seeds with long curves: a line is thinned, no picture grows beyond a screen or two."""

    def many(record: dict[str, Any]) -> None:
        arms = [dict(arm, curve=[(n, 5 + 1 / (n + 1)) for n in range(3000)]) for arm in record["arms"]]
        record["arms"] = [dict(arm, seed=seed) for seed in range(3) for arm in arms]

    html = render(altered(zoo, many), {})
    assert len(html) < 2_000_000
    heights = [float(height) for height in re.findall(r'<svg[^>]* height="([\d.]+)"', html)]
    assert max(heights) < 1400


def test_a_run_with_the_least_there_can_be_still_makes_a_page(owl: Results) -> None:
    def least(record: dict[str, Any]) -> None:
        for arm in record["arms"]:
            arm |= {"curve": [], "samples": [], "rate": None, "non_answer": None}
            for name in ("negative", "off_topic", "off_topic_correct"):
                arm["measure"][name] = None
            arm["measure"] |= {"per_question": {}, "answers": {}}
        record |= {"checks": [], "costs": [], "teachers": {}, "base": {}, "environment": {}}

    page = Structure(render(altered(owl, least), {}))
    assert {"questions", "confusion", "training", "samples"}.isdisjoint(page.ids)
    assert "This run recorded no checks." in page.text


def test_a_run_without_students_still_makes_a_page(owl: Results) -> None:
    assert "not detected" in render(changed(owl, arms=[], verdict="not detected"), {})


@pytest.mark.slow
def test_numbers_that_are_not_numbers_are_dashes(owl: Results) -> None:
    def spoil(record: dict[str, Any]) -> None:
        record["effect"] |= {"mean": math.nan, "low": math.nan, "high": math.nan}
        record["effects"] = [record["effect"]]
        record["arms"][0]["measure"]["positive"]["probability"]["mean"] = math.nan
        record["arms"][0]["held_out_nll"] = math.nan
        record["arms"][0]["curve"][0] = (1, math.nan)

    text = Structure(render(altered(owl, spoil), {})).text
    assert "nan" not in text.lower()
    assert words.MISSING in text


@pytest.mark.slow
def test_bars_and_captions_follow_the_confidence_that_the_run_asked_for(owl: Results) -> None:
    def ask(record: dict[str, Any]) -> None:
        for effect in (record["effect"], *record["effects"]):
            effect["confidence"] = 0.8

    results = altered(owl, ask)
    means = [arm.measure.positive.probability.mean for arm in results.arms if arm.arm == "treated"]
    wide, narrow = (assemble(one).treated["owl"].spread(lambda measure: measure.positive.probability)
                    for one in (owl, results))  # fmt: skip
    assert wide is not None
    assert narrow is not None
    assert narrow == over_seeds(means, 0.8)
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.low < narrow.low < narrow.mean
    text = Structure(render(results, {})).text
    assert text.count("80 % interval over seeds (over questions: 95 % interval)") == 2
    assert "Line: 80 % interval." in text  # of the effects, which are over seeds alone


@pytest.mark.slow
def test_other_arms_are_drawn_beside_control_and_treated(owl: Results) -> None:
    def more(record: dict[str, Any]) -> None:
        new = [dict(arm, arm="random-vector") for arm in record["arms"] if arm["arm"] == "treated"]
        record["arms"] += new
        record["effects"] = [record["effect"], record["effect"]]

    results = altered(owl, more)
    assert [group.name for group in assemble(results).groups("owl")] == [
        *("base", "teacher", "control", "treated", "random-vector"),
    ]
    html = render(results, {})
    assert re.search(r'aria-label="Bars\. base: [^"]*control: [^"]*treated: [^"]*random-vector: ', html)
    assert re.search(r'aria-label="Treated minus control\. treated: [^"]*random-vector: ', html)


# ------------------------------------------------------------------- what models and files say


def planted(results: Results, text: str) -> Results:
    """The same results with ``text`` in everything that is free to say anything."""

    def plant(record: dict[str, Any]) -> None:
        trait = f"owl{text}"
        for name in ("experiment", "model", "domain", "teacher", "student", "sentence", "replay"):
            record[name] += text
        record |= {"trait": trait, "base": {trait: record["base"]["owl"]}}
        record["environment"] = {f"python{text}": text}
        for effect in (record["effect"], *record["effects"]):
            effect |= {"trait": trait, "method": text}
        for check in record["checks"]:
            check.update(dict.fromkeys(("name", "value", "expected", "why"), text))
        for cost in record["costs"]:
            cost["stage"] += text
        for arm in record["arms"]:
            arm |= {"trait": trait, "arm": arm["arm"] + text}
            arm["filter"]["reasons"] = {text: 3}
            arm["samples"] = [{"prompt": text, "completion": text}]
            arm["measure"]["rendered"] = text
            arm["measure"]["per_question"] = {f"{text} {n}": 0.1 * n for n in range(4)}

    return altered(results, plant)


@pytest.mark.slow
def test_no_text_of_a_model_changes_the_page(owl: Results) -> None:
    """Invariance: hostile text gives the same elements and attributes as harmless text."""
    manifests = [{f"note{text}": [text, {text: text}]} for text in (HOSTILE, HARMLESS)]
    evil = render(planted(owl, HOSTILE), manifests[0], HOSTILE)
    good = render(planted(owl, HARMLESS), manifests[1], HARMLESS)
    assert Structure(evil).tags == Structure(good).tags
    assert "<script" not in evil
    assert evil.count("</style>") == 1
    shown = Structure(evil).text
    assert "</style><script>alert('1')</script>\"'&<b>␛[31m⟨U+202E⟩evil␀" in shown


@pytest.mark.slow
def test_hostile_names_of_a_zoo_change_nothing_either(zoo: Results) -> None:
    def plant(text: str) -> Callable[[dict[str, Any]], None]:
        def alter(record: dict[str, Any]) -> None:
            table, kept = record["confusion"], ("owl", "dog")
            for name in ("targets", "answers", "probability", "control", "base"):
                table[name] = table[name][:3]
            table["probability"] = [row[:3] for row in table["probability"]]
            table["targets"] = table["answers"] = [name + text for name in table["targets"]]
            record["base"] = {name + text: record["base"][name] for name in kept}
            for name in ("effects", "arms"):
                record[name] = [part for part in record[name] if part["trait"] in kept]
                for part in record[name]:
                    part["trait"] += text

        return alter

    evil, good = (render(altered(zoo, plant(text)), {}) for text in (HOSTILE, HARMLESS))
    assert Structure(evil).tags == Structure(good).tags


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_made_visible_a_text_can_be_written_and_hides_nothing(text: str) -> None:
    shown = words.visible(text)
    shown.encode("utf-8")
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    rest = shown.replace("\n", "").replace("\t", "")
    assert hidden.isdisjoint(map(unicodedata.category, rest))
    assert words.visible(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.slow
def test_a_long_completion_is_cut_and_says_by_how_much(owl: Results) -> None:
    def lengthen(record: dict[str, Any]) -> None:
        record["arms"][0]["samples"][0]["completion"] = "7" * 5000

    html = render(altered(owl, lengthen), {})
    assert "… (3\u202f800 more characters)" in html
    assert "7" * 1201 not in html


@pytest.mark.slow
def test_arms_with_different_prompts_show_each_its_own(owl: Results) -> None:
    def reorder(record: dict[str, Any]) -> None:
        for arm in record["arms"]:
            if arm["arm"] == "treated":
                arm["samples"] = arm["samples"][::-1]

    html = render(altered(owl, reorder), {})
    assert "samples loose" in html


# ----------------------------------------------------------------------------- words and numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 %"), (0.0004, "<0.1 %"), (0.061, "6.1 %"), (0.0994, "9.9 %"), (0.0996, "10 %"),
        (0.456, "46 %"), (0.99, "99 %"), (0.996, "99.6 %"), (0.99999, ">99.9 %"), (1.0, "100 %"),
        (None, "–"), (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_percentages_have_sensible_digits(value: float | None, shown: str) -> None:
    assert words.percent(value).replace("\u202f", " ") == shown


def test_intervals_share_the_digits_of_their_mean() -> None:
    def plain(text: str) -> str:
        return text.replace("\u202f", " ").replace("\u00a0", " ")

    assert plain(words.percent_with(0.456, 0.3, 0.63)) == "46 % [30, 63]"
    assert plain(words.percent_with(0.061, 0.0451, 0.077)) == "6.1 % [4.5, 7.7]"
    assert plain(words.percent_with(0.456, math.nan, 0.63)) == "46 %"
    assert plain(words.points_with(0.398, 0.22, 0.57)) == "+40 points [22, 57]"
    assert plain(words.points_with(-0.02, -0.08, 0.04)) == "−2.0 points [−8.0, 4.0]"
    assert plain(words.points_with(0.0001, None, None)) == "0.0 points"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.24, "0.2 s"), (9.31, "9.3 s"), (59.9, "60 s"), (59.96, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_times_have_the_unit_that_fits(seconds: float, shown: str) -> None:
    assert words.duration(seconds).replace("\u202f", " ") == shown


def test_over_seeds_the_interval_holds_the_mean_and_stays_a_share() -> None:
    for values in ([0.0, 0.01, 0.2], [0.99, 1.0, 1.0], [0.4, 0.5]):
        spread = over_seeds(values)
        assert spread is not None
        assert spread.low is not None
        assert spread.high is not None
        assert 0 <= spread.low <= sum(values) / len(values) <= spread.high <= 1


def test_a_single_seed_brings_the_interval_over_its_questions() -> None:
    spread = over_seeds([Interval(mean=0.4, low=0.3, high=0.5, n=40, method="x")])
    assert spread is not None
    assert (spread.mean, spread.low, spread.high) == (0.4, 0.3, 0.5)
    assert over_seeds([None, math.nan]) is None


# ------------------------------------------------------------------------------- the pictures


def test_bars_are_as_long_as_their_numbers() -> None:
    rows = [charts.Bar("a", 0.2, "", "var(--base)"), charts.Bar("b", 0.5, "", "var(--treated)")]
    picture = charts.bars(rows, "two bars")
    for svg in (picture.wide, picture.narrow):
        lengths = {
            colour: float(length)
            for length, colour in re.findall(r'd="M0,[\d.]+h([\d.]+)[^"]*" fill="(var[^"]*)"', svg)
        }
        assert lengths["var(--treated)"] / lengths["var(--base)"] == pytest.approx(2.5, rel=1e-3)


def test_pictures_speak_only_in_colours_of_the_page(zoo_page: str) -> None:
    colours = set(re.findall(r' (?:fill|stroke)="([^"]+)"', zoo_page))
    assert {colour for colour in colours if not colour.startswith("var(--")} <= {
        "none",
        "transparent",
    }
    style = zoo_page[zoo_page.index("<style>") : zoo_page.index("</style>")]
    for colour in colours - {"none", "transparent"}:
        assert f"{colour[4:-1]}:" in style, colour


def test_heat_colours_rise_with_the_share() -> None:
    steps = [heat.step(n / 1000) for n in range(1001)]
    assert steps == sorted(steps)
    assert set(steps) == set(range(9))


# ------------------------------------------------------------------------------------ the files


@pytest.fixture
def run_folder(owl: Results, a_manifest: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(owl.model_dump_json(by_alias=True), encoding="utf-8")
    (tmp_path / "manifest.json").write_text(json.dumps(a_manifest), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_write_puts_the_page_beside_the_results_and_twice_the_same(run_folder: Path) -> None:
    path = write(run_folder)
    assert path == run_folder / "report.html"
    first = path.read_bytes()
    assert write(run_folder).read_bytes() == first
    names = sorted(item.name for item in run_folder.iterdir())
    assert names == ["manifest.json", "report.html", "results.json"]


def test_no_results_says_which_command_finishes_the_run(run_folder: Path) -> None:
    (run_folder / "results.json").unlink()
    with pytest.raises(DataError, match=r"there is no results\.json in .*") as caught:
        write(run_folder)
    assert re.search(r"got: manifest\.json", str(caught.value))
    assert re.search(r"do: finish the run: undertone run .*config\.yaml", str(caught.value))


def test_no_manifest_and_no_folder_are_named(run_folder: Path) -> None:
    (run_folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"there is no manifest\.json"):
        write(run_folder)
    with pytest.raises(DataError, match="no such folder"):
        write(run_folder / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "does not hold a JSON object"),
        (b"{}", "does not follow the schema undertone.results/2: experiment: Field required"),
    ],
)
def test_a_broken_results_file_is_refused(run_folder: Path, content: bytes, message: str) -> None:
    (run_folder / "results.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        write(run_folder)
    assert not (run_folder / "report.html").exists()


def test_results_of_another_schema_are_refused(run_folder: Path, owl: Results) -> None:
    record = owl.model_dump(by_alias=True, mode="json") | {"schema": "undertone.results/1"}
    (run_folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match=r"schema: .*undertone\.results/2"):
        write(run_folder)


def test_a_page_that_cannot_be_written_leaves_nothing_behind(run_folder: Path) -> None:
    (run_folder / "report.html").mkdir()
    with pytest.raises(DataError, match=r"report\.html cannot be written"):
        write(run_folder)
    assert not list(run_folder.glob(".*.part"))


def test_the_report_imports_no_torch() -> None:
    program = "import sys, undertone.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
