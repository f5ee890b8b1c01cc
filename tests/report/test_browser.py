"""The page in a real browser with the network off: drawn, quiet, and within its width."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundthink.report import page

PATIENCE = 120_000
"""Milliseconds that a loaded machine may take for any one thing."""
EMPTY = """() => [...document.querySelectorAll(".figure")].filter((figure) =>
  ![...figure.querySelectorAll(".main-svg :is(.trace, .hm, .point)")].some(
    (mark) => mark.getBoundingClientRect().width > 1)).map((figure) => figure.id)"""
OVERFLOW = """() => [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.right > innerWidth + 1 && box.width > 0 && !element.closest("nav, svg, .skip, pre");
}).map((element) => element.outerHTML.slice(0, 120))"""
WIDTH = "() => document.documentElement.scrollWidth - innerWidth"
FITS = """() => [...document.querySelectorAll(".plot")].every(
  (plot) => Math.abs(plot.querySelector(".main-svg").clientWidth - plot.clientWidth) <= 1)"""
COVERED = """() => [...document.querySelectorAll(".plot")].filter((plot) => {
  const legend = plot.querySelector(".legend");
  return legend && legend.getBoundingClientRect().bottom - plot.getBoundingClientRect().top >
    plot._fullLayout._size.t + 1;
}).map((plot) => plot.parentElement.id)"""
LINE = "() => getComputedStyle(document.querySelector('#grad-rms .js-line')).stroke"
RANGE = """() => { const [low, high] = document.querySelector("#loss .plot").layout.xaxis.range;
  return high - low }"""


class View:
    """An opened report that remembers what it asked the network for and complained about."""

    def __init__(self, browser: Any, report: Path, **options: Any):
        self.said: list[str] = []
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        context.set_offline(True)
        self.page = context.new_page()
        self.page.on("request", lambda request: self.said.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached")
        assert self.said == [report.as_uri()]
        self.said.clear()

    def assert_sound(self) -> None:
        """Every figure drawn at its width, nothing wider than the screen, nothing said."""
        self.page.wait_for_function(FITS)
        assert self.page.evaluate(EMPTY) == []
        assert self.page.evaluate(COVERED) == [], "legends lie above the drawing"
        assert self.page.evaluate(WIDTH) <= 0
        assert self.page.evaluate(OVERFLOW) == []
        assert self.said == []

    def resize(self, width: int) -> None:
        self.page.set_viewport_size({"width": width, "height": 900})

    def wait_for(self, selector: str) -> None:
        self.page.wait_for_selector(selector, state="attached")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def view(browser: Any, full_run: Path) -> View:
    return View(browser, page.write(full_run))


@pytest.mark.parametrize("width", [1280, 390, 1100])
def test_every_figure_is_drawn_in_both_themes(view: View, width: int) -> None:
    view.resize(width)
    drawn = int(view.page.get_attribute("html", "data-drawn") or 0)
    assert view.page.locator(".figure").count() == drawn > 12
    view.assert_sound()
    first = view.page.evaluate(LINE)
    view.page.click("#theme")
    view.assert_sound()
    assert view.page.evaluate(LINE) != first, "figures follow the theme"
    view.page.click("#theme")
    assert view.page.evaluate(LINE) == first


def test_the_keyboard_reaches_and_zooms_a_figure(view: View) -> None:
    keys, evaluate = view.page.keyboard, view.page.evaluate
    evaluate("document.activeElement.blur()")
    before = evaluate(RANGE)
    for _ in range(60):
        keys.press("Tab")
        if evaluate("document.activeElement.parentElement?.id") == "loss":
            break
    keys.press("+")
    assert evaluate(RANGE) == pytest.approx(before / 2, rel=0.02)
    keys.press("0")
    assert evaluate(RANGE) == pytest.approx(before, rel=0.02)
    view.assert_sound()


def test_print_is_light_and_complete(browser: Any, full_run: Path) -> None:
    view = View(browser, page.write(full_run), color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = view.page.evaluate(background)
    view.page.emulate_media(media="print")
    view.wait_for("html[data-print]")
    assert view.page.locator("details:not([open])").count() == 0
    assert view.page.evaluate(background) == "rgb(255, 255, 255)"
    view.assert_sound()
    view.page.emulate_media(media="screen")
    view.wait_for("html:not([data-print])")
    assert view.page.locator("details[open]").count() == 0
    assert view.page.evaluate(background) == dark


def test_a_phone_in_the_dark(browser: Any, make_run: Callable[..., Path]) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    report = page.write(make_run(layout="gpt2", steps=60))
    view = View(browser, report, color_scheme="dark", **phone)
    assert view.page.inner_text("#theme") == "Light theme"
    view.assert_sound()
    view.page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    view.assert_sound()


def test_a_run_of_a_few_steps_is_drawn(browser: Any, make_run: Callable[..., Path]) -> None:
    report = page.write(make_run(steps=3, planned=2000, end=None))
    View(browser, report).assert_sound()
