"""The page of a study without a browser: what it says, what it draws, and that nothing can break out of it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report.test_report import HOSTILE, Structure

from undertone.report import plots, render_study, words
from undertone.report.study import COLOURS, colours, drawn, told
from undertone.studies.results import Figure, Finding, Point, StudyResults
from undertone.transfer.results import Cost


@pytest.fixture(scope="module")
def html(a_study: StudyResults, a_manifest: dict[str, Any]) -> str:
    return render_study(a_study, a_manifest)


def figure(kind: Any, points: list[Point], **more: Any) -> Figure:
    return Figure(kind=kind, title="t", caption="c", x="across", y="up", points=points, **more)


def test_the_page_is_well_formed_and_refers_to_nothing_outside(html: str) -> None:
    page = Structure(html)
    assert {"script", "iframe", "object", "embed", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"/\*.*?\*/", "", html, flags=re.S)) == []
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r'href="#([\w-]+)"', html)) <= set(page.ids)


def test_the_page_says_what_the_study_says(a_study: StudyResults, html: str) -> None:
    text = Structure(html).text
    assert a_study.sentence in text
    for finding in a_study.findings:
        for part in (finding.claim, finding.source, finding.baseline, finding.verdict, finding.reason, finding.method):
            assert part in text
    for expected in ("0.831 [0.781,\u00a00.881]".replace("\u00a0", " "), "+12 points [3, 21]", "0.0141 nats", "–"):
        assert expected in text
    assert "1 reproduced" in text
    assert a_study.replay in text


@pytest.mark.slow
def test_every_figure_has_a_picture_for_both_widths_and_all_its_numbers(a_study: StudyResults, html: str) -> None:
    panels = [len({point.panel for point in figure.points}) for figure in a_study.figures]
    assert html.count("<svg") == 2 * sum(panels)
    page = drawn(a_study.figures[0])
    assert [name for name, _ in page.panels] == ["block 0", "block 1", "block 2", "block 3"]
    for figure_, told_ in zip(a_study.figures, map(drawn, a_study.figures), strict=True):
        assert len(told_.numbers.rows) == len(figure_.points)
        assert "NaN" not in told_.panels[0][1].wide


def test_tables_can_be_reached_by_keyboard(a_study: StudyResults, html: str) -> None:
    names = re.findall(r'tabindex="0" role="region" aria-label="([^"]+)"', html)
    assert {f"{figure.title}: the numbers" for figure in a_study.figures} <= set(names)
    assert "Claims and findings" in names


def test_text_of_anybody_can_not_break_out(a_study: StudyResults) -> None:
    def hostile(value: Any, name: str = "") -> Any:
        fixed = ("schema", "kind", "id", "unit", "verdict", "status")
        if isinstance(value, dict):
            return {key: hostile(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [hostile(item, name) for item in value]
        return HOSTILE if isinstance(value, str) and name not in fixed else value

    page = Structure(
        render_study(StudyResults.model_validate(hostile(a_study.model_dump(by_alias=True))), {HOSTILE: 1})
    )
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert tags.count("b") == len(a_study.checks)  # the signs of the checks, and nobody else's
    assert "alert('1')" in page.text


def test_a_study_of_nothing_is_a_page_too(a_study: StudyResults) -> None:
    bare: dict[str, Any] = {"findings": [], "figures": [], "tables": [], "checks": [], "costs": []}
    page = Structure(render_study(StudyResults.model_validate(a_study.model_dump(by_alias=True) | bare), {}))
    assert "This study recorded none." in page.text


numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6))


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["bars", "lines", "scatter", "matrix"]),
    st.lists(
        st.tuples(st.floats(0.01, 1e4), numbers, numbers, numbers, st.sampled_from("abc"), st.sampled_from([None, "p"])),
        min_size=1, max_size=4,
    ),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_whatever_the_numbers_there_is_a_picture(kind: Any, rows: list[Any], log_x: bool, zero: bool) -> None:
    points = [
        Point(x=x, y=y, low=low, high=high, series=series, panel=panel) for x, y, low, high, series, panel in rows
    ]
    if all(point.y is None for point in points):
        points.append(Point(x=1.0, y=0.0, series="a"))
    page = drawn(figure(kind, points, log_x=log_x, zero=zero))
    assert page.panels
    assert all("<path" in picture.wide and "NaN" not in picture.wide for _, picture in page.panels)


def test_every_bar_begins_at_zero_and_stands_in_its_place() -> None:
    page = drawn(figure("bars", [Point(x="one", y=0.5, series="s"), Point(x="two", y=1.0, series="s")]))
    bars = re.findall(r'd="M0,[\d.]+h([\d.]+)v', page.panels[0][1].wide)
    assert len(bars) >= 2
    assert float(bars[-1]) == pytest.approx(2 * float(bars[-2]), rel=0.02)


def test_series_are_told_apart_and_the_controls_have_their_own_colours() -> None:
    names = ("control", "this", "that", "base", "another")
    found = colours(names)
    assert found["control"] == "var(--control)"
    assert found["base"] == "var(--base)"
    assert len(set(found.values())) == len(names)
    many = colours(tuple(map(str, range(20))))
    assert set(many.values()) == {f"var(--{name})" for name in COLOURS}


def test_points_of_their_own_series_are_labelled_and_need_no_key(a_study: StudyResults) -> None:
    labelled, keyed = drawn(a_study.figures[2]), drawn(a_study.figures[3])
    assert not labelled.key
    assert "penguin" in labelled.panels[0][1].wide
    assert [entry.name for entry in keyed.key] == ["induced", "control"]


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [("points", 0.2, "+20 points"), ("share", 0.5, "50\u202f%"), ("accuracy", 0.5, "50\u202f%"), ("cosine", -0.5, "−0.5"),
     ("ratio", 1234.0, "1234"), ("correlation", 0.123456, "0.123")],
)  # fmt: skip
def test_a_value_is_shown_in_its_unit(unit: Any, value: float, shown: str) -> None:
    finding = Finding(
        id="a", claim="c", source="s", published=None, quantity="q", value=value, low=None, high=None, unit=unit,
        n=1, method="m", baseline="b", parts=[], verdict="partly", reason="w",
    )  # fmt: skip
    assert told(finding).value == shown


@given(st.floats(-1e300, 1e300))
def test_a_number_is_shown_with_three_digits(value: float) -> None:
    shown = float(words.number(value).replace("−", "-"))
    assert shown == pytest.approx(value, rel=6e-3, abs=1e-300)


@given(st.floats(1e-8, 1e8), st.floats(1.001, 1e8), st.integers(1, 8))
def test_ticks_of_a_logarithmic_axis_lie_on_it_and_are_not_too_many(low: float, factor: float, most: int) -> None:
    ticks = plots.log_ticks(low, low * factor, most)
    assert len(ticks) <= most
    assert all(low <= tick <= low * factor for tick in ticks)
    assert all(math.isclose(tick, float(f"{tick:.0e}")) for tick in ticks)


def test_the_page_says_processor_time_and_the_clock_s_where_only_that_was_read(
    a_study: StudyResults, a_manifest: dict[str, Any]
) -> None:
    def page(*cpu: float | None) -> str:
        costs = [Cost(stage=str(n), seconds=500.0, cpu_seconds=one) for n, one in enumerate(cpu)]
        return Structure(render_study(a_study.model_copy(update={"costs": costs}), a_manifest)).text.replace(
            "\u202f", " "
        )

    assert re.search(r"CPU time\s*2.min.05.s", page(62.5, 62.5))
    assert re.search(r"Time of stages\s*16.min.40.s", page(62.5, None))
