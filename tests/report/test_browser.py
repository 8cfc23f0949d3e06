"""The page in a real browser with the network off: quiet, whole, and never wider than its window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from builders import made_up
from builders.compared import study
from potstill.report import compare_files
from potstill.report.compare import compare
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.page import render, write

pytestmark = pytest.mark.browser

WIDEST = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(text => {
    const label = text.getBoundingClientRect(), all = text.closest("svg").getBoundingClientRect();
    return label.left < all.left - 2 || label.right > all.right + 2 || label.bottom > all.bottom + 2;
}).map(text => text.textContent)"""
POLICY_TEST = (
    "<script>document.title = 'broken in'</script><img src='http://127.0.0.1:9/x.png'><p style='color:red'>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("the browser tests need Chromium: apt-get install chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        yield started
        started.close()


def watch(browser: Browser, path: Path, width: int, scheme: str = "light") -> tuple[int, list[str], str]:
    """How far the page is wider than its window, all it logged or asked for, and its background colour."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]
        offline=True,
    )
    page = context.new_page()
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: events.append(request.url))
    page.goto(path.as_uri())
    for index in range(page.locator("summary").count()):
        if page.locator("summary").nth(index).is_visible():
            page.locator("summary").nth(index).click()
    too_wide = page.evaluate(WIDEST)
    colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    context.close()
    return too_wide, [event for event in events if event not in (path.as_uri(), "data:,")], colour


@pytest.mark.parametrize("width", [320, 360, 700, 1280])
def test_the_page_is_quiet_and_fits_the_window(browser: Browser, tmp_path: Path, width: int) -> None:
    too_wide, events, _ = watch(browser, write(made_up.content(), tmp_path / "report.html"), width)
    assert too_wide <= 0
    assert events == []


def test_endless_words_and_markup_neither_run_nor_widen(browser: Browser, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script></style><img src=x onerror=alert(1)>" + "x" * 3000
    sample = made_up.sample(attack, made_up.answers(attack, attack, attack), attack)
    summary = made_up.summary() | {"name": attack}
    summary["student"]["name"] = summary["student"]["source"] = summary["after"]["ppl_reason"] = attack
    summary["after"]["ppl"] = None
    curve = Curve(attack, attack, ((1.0, 2.0), (2.0, 1.0)))
    content = Content(summary, [curve], [sample], attack, **made_up.parts())
    too_wide, events, _ = watch(browser, write(content, tmp_path / "report.html"), 360)
    assert too_wide <= 0
    assert events == []


def test_light_and_dark_follow_the_readers_setting(browser: Browser, tmp_path: Path) -> None:
    path = write(made_up.content(), tmp_path / "report.html")
    assert watch(browser, path, 800, "light")[2] == "rgb(250, 248, 245)"
    assert watch(browser, path, 800, "dark")[2] == "rgb(21, 23, 26)"


def test_the_policy_of_the_page_blocks_scripts_and_addresses(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(made_up.content()).replace("<main>", POLICY_TEST + "<main>"), encoding="utf-8")
    page = browser.new_page()
    stopped: list[str] = []
    page.on("console", lambda message: stopped.append(message.text))
    page.goto(path.as_uri())
    assert page.title() == "quickstart: made-up/student-20-layers · potstill report"
    for directive in ("script-src", "img-src", "style-src"):
        assert any("Content Security Policy" in text and directive in text for text in stopped), stopped
    page.close()


SMALLEST = """() => Math.min(...[...document.querySelectorAll("svg text")].map(text =>
    parseFloat(getComputedStyle(text).fontSize) * text.getCTM().a))"""


@pytest.mark.parametrize("width", [1280, 360])
def test_every_label_of_a_chart_is_inside_it_and_large_enough_to_read(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(write(made_up.content(), tmp_path / "report.html").as_uri())
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(SMALLEST) >= 9.5
    page.close()


HIDDEN = """() => [...document.querySelectorAll(".results td")].filter(cell => {
    const box = cell.getBoundingClientRect();
    return !box.width || box.left < 0 || box.right > innerWidth;
}).length"""
MODELS = """() => [...document.querySelectorAll(".results tbody tr")[0].querySelectorAll("td")]
    .map(cell => getComputedStyle(cell, "::before").content.replaceAll('"', ""))"""
UNMARKED = """() => [...document.querySelectorAll(".scroll")].filter(box =>
    box.scrollWidth > box.clientWidth && !getComputedStyle(box).backgroundImage.includes("gradient")).length"""


@pytest.mark.parametrize("width", [320, 400])
def test_every_model_of_the_result_is_on_a_narrow_screen(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(write(made_up.content(), tmp_path / "report.html").as_uri())
    assert page.evaluate(HIDDEN) == 0
    roles = ["Teacher", "Untrained student", "Distilled student", "Control student"]
    assert page.evaluate(MODELS) == roles
    page.close()


@pytest.mark.parametrize("width", [400, 700])
def test_a_table_that_is_wider_than_the_screen_says_so(browser: Browser, tmp_path: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(write(made_up.content(), tmp_path / "report.html").as_uri())
    assert page.evaluate(UNMARKED) == 0
    page.close()


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_a_comparison_is_quiet_fits_the_window_and_shows_every_recipe(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "comparison.html"
    path.write_text(compare_files.html(compare(study(tmp_path))), encoding="utf-8")
    too_wide, events, _ = watch(browser, path, width)
    assert too_wide <= 0
    assert events == []
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(path.as_uri())
    assert page.evaluate(HIDDEN) == 0
    assert page.evaluate(OUTSIDE) == []
    page.close()
