"""The report in a real browser: headless Chromium, driven over its DevTools pipe (no library).

What only a browser can tell: that nothing is refused or logged, that the page loads nothing, that
it does not overflow, that the tables are reached with the Tab key, that light and dark differ.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from undertone.report import render, render_study
from undertone.studies.results import StudyResults
from undertone.transfer.results import Results

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    "--remote-debugging-pipe",
)
PATIENCE = 60.0  # seconds for any one answer of the browser


class Browser:
    """One Chromium with one page. Commands and events are JSON between zero bytes, fd 3 and 4."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        command_read, self._write = os.pipe()
        self._read, answer_write = os.pipe()
        # Above 10, so that giving them the numbers 3 and 4 cannot close one of them.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_read, answer_write)]
        places = 'exec "${@:3}" 3<&"$1" 4>&"$2"'
        self._process = subprocess.Popen(
            ["bash", "-c", places, "bash", *map(str, ends), CHROMIUM, *FLAGS,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=ends,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (command_read, answer_write, *ends):
            os.close(end)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], deadline - time.monotonic())
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("chromium gave no answer or ended")
            self._rest += part
        first, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found

    def open(self, page: Path, width: int, scheme: str = "light", height: int = 800) -> None:
        """Load a page at a width, in light or dark, and wait until it is there."""
        self.events.clear()
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        wish = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[wish])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression (the page itself has none)."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def press_tab(self) -> None:
        """One press of the Tab key."""
        key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def complaints(self) -> list[dict[str, Any]]:
        """Console messages, log entries (policy violations among them) and exceptions."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in names]

    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        asked = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in asked]

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(timeout=10)
        except (RuntimeError, OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser, google-chrome or chrome on the PATH")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["owl", "zoo", "a_study"])
def page(
    request: pytest.FixtureRequest,
    a_manifest: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    results: Results | StudyResults = request.getfixturevalue(request.param)
    drawn = render_study if isinstance(results, StudyResults) else render
    path = tmp_path_factory.mktemp(request.param) / "report.html"
    path.write_text(drawn(results, a_manifest), encoding="utf-8")  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_logged_refused_or_loaded(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, 1280, scheme)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.complaints() == []
    outside = [url for url in browser.requests() if not url.startswith("data:")]
    assert outside == [page.as_uri()]


def test_the_policy_refuses_what_a_hostile_page_would_try(browser: Browser, page: Path) -> None:
    """A check of the check: a script and an image from outside are refused and noticed."""
    path = page.with_name("hostile.html")
    bad = "<script>window.ran = 1</script><img src='http://localhost:9/x.png'></body>"
    path.write_text(page.read_text(encoding="utf-8").replace("</body>", bad), encoding="utf-8")
    browser.open(path, 1280)
    assert browser.ask("window.ran") is None
    told = json.dumps(browser.complaints())
    assert "script-src" in told
    assert "img-src" in told


@pytest.mark.parametrize("width", [390, 768, 1024, 1280])
@pytest.mark.parametrize("unfolded", [False, True])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, width: int, unfolded: bool) -> None:
    browser.open(page, width)
    browser.ask(f"document.querySelectorAll('details').forEach(d => d.open = {str(unfolded).lower()})")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.ask(overflow) <= 0


@pytest.mark.parametrize(("width", "shown", "hidden"), [(390, "narrow", "wide"), (1280, "wide", "narrow")])
def test_each_picture_is_shown_once_in_the_form_that_fits_and_not_scaled_to_dust(
    browser: Browser, page: Path, width: int, shown: str, hidden: str
) -> None:
    browser.open(page, width)
    assert browser.ask(f"[...document.querySelectorAll('.{hidden} svg')].every(s => !s.clientWidth)")
    scale = "s.getBoundingClientRect().width / s.viewBox.baseVal.width"
    scales = browser.ask(f"[...document.querySelectorAll('.{shown} svg')].map(s => {scale})")
    assert len(scales) >= 4
    assert min(scales) > 0.85  # letters of 11 px stay above 9 px


def test_the_first_tab_skips_to_the_results_and_every_table_is_reached(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.press_tab()
    assert browser.ask("document.activeElement.className") == "skip"
    wanted = set(browser.ask(
        "[...document.querySelectorAll('[role=region]')].filter(e => e.checkVisibility())"
        ".map(e => e.getAttribute('aria-label'))"
    ))  # fmt: skip
    assert len(wanted) >= 4
    reached = set()
    for _ in range(60):
        browser.press_tab()
        reached.add(browser.ask("document.activeElement.getAttribute('aria-label')"))
        outline = browser.ask("getComputedStyle(document.activeElement).outlineStyle")
        if browser.ask("document.activeElement === document.body"):
            break
        assert outline != "none", "focus must be seen"
    assert wanted <= reached


def test_light_and_dark_differ_in_page_and_pictures(browser: Browser, page: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)
        paper = browser.ask("getComputedStyle(document.body).backgroundColor")
        text = browser.ask("getComputedStyle(document.querySelector('.wide svg text')).fill")
        seen.append((paper, text))
        assert _contrast(paper, text) > 4.5
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_letters_stand_out_from_the_page_in_both_schemes(browser: Browser, page: Path) -> None:
    """WCAG AA (4.5) for every colour of text, and 3 for the marks of the pictures."""
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)
        paper = browser.ask("getComputedStyle(document.body).backgroundColor")
        for name, least in [("ink", 4.5), ("muted", 4.5), ("link", 4.5), ("good", 4.5), ("watch", 4.5),
                            ("bad", 4.5), ("control", 3.0), ("treated", 3.0), ("base", 3.0),
                            ("other-0", 3.0), ("other-1", 3.0), ("other-2", 3.0), ("other-3", 3.0)]:  # fmt: skip
            colour = browser.ask(
                "(() => { const e = document.createElement('i'); document.body.append(e);"
                f"e.style.color = 'var(--{name})'; const c = getComputedStyle(e).color;"
                "e.remove(); return c })()"
            )
            assert _contrast(paper, colour) >= least, f"{name} in {scheme}"


def test_the_page_prints_without_cutting_a_table(browser: Browser, page: Path) -> None:
    browser.open(page, 720)
    browser.call("Emulation.setEmulatedMedia", media="print")
    cut = browser.ask(
        "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility())"
        ".filter(e => e.scrollWidth > e.clientWidth + 1 || getComputedStyle(e).overflowX !== 'visible')"
        ".map(e => e.getAttribute('aria-label'))"
    )
    browser.call("Emulation.setEmulatedMedia", media="")
    assert cut == []
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF-")


def _contrast(one: str, other: str) -> float:
    """The WCAG 2 contrast ratio of two ``rgb(…)`` colours."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
