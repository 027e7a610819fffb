"""All pages: in both themes and all widths, without JavaScript, by keyboard."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from durably.engine.model.runs import RunStatus

from .conftest import OpenPage
from .site import Site

WIDTHS = (360, 720, 800, 1600)
LEAST_PIXELS = 112
"""The least width of a column of words."""
NARROW_CELLS = """least => [...document.querySelectorAll("main td:not(.pick)")]
  .filter(cell => cell.checkVisibility() && cell.getBoundingClientRect().width < least)
  .filter(cell => cell.innerText.length > 15)
  .map(cell => cell.innerText)"""
LEAST_TARGET = 24
"""The least height of a target of fingers in pixels (WCAG 2.2, 2.5.8)."""
LOW_TARGETS = """least => [...document.querySelectorAll("main a, main button, main summary, header a:not(.skip)")]
  .map(target => target.matches(".open") ? target.closest("[data-row]") : target)
  .filter(target => target.checkVisibility() && target.getBoundingClientRect().height < least)
  .map(target => target.outerHTML)"""
PAGES = {
    "/": "Overview",
    "/runs": "Runs",
    "/questions": "Questions",
    "/functions": "Functions",
    "/events": "Events",
    "/apps": "Apps",
    "/cron": "Cron",
}
"""Paths and headings."""


def paths(site: Site) -> list[str]:
    """Pages of the first level, and pages of runs, functions and events of each kind."""
    runs = {run.status: run.id for run in site.runs("pack-parcel") + site.runs("settle-invoice")}
    events = site.run(site.engine.list_events(name="parcel/requested", limit=1))
    of_runs = [f"/runs/{run_id}" for run_id in runs.values()]
    function = "/functions/back-office-settle-invoice"
    of_functions = [function, f"{function}/replay?status-failed=1", f"{function}/cancel"]
    return [*PAGES, "/runs?if=true", *of_runs, *of_functions, "/events/send", f"/events/{events[0].id}"]


@pytest.mark.slow
def test_pages_pass_the_accessibility_check(
    open_page: OpenPage, site: Site, check_accessibility: Callable[..., None]
) -> None:
    page = open_page("/runs")
    for path in paths(site):
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        page.goto(site.origin + path)
        check_accessibility(page)
        page.emulate_media(color_scheme="dark")
        check_accessibility(page, "color-contrast")


@pytest.mark.slow
def test_no_page_scrolls_sideways(open_page: OpenPage, site: Site) -> None:
    [failed, *_] = site.wait(lambda: site.runs("settle-invoice", RunStatus.FAILED), "failed run")
    site.run(site.engine.rerun(failed.id))  # so that an event has started two runs
    page = open_page("/runs")
    for path in paths(site):
        page.goto(site.origin + path)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
            assert page.locator("header nav ul").evaluate("nav => nav.scrollWidth <= nav.clientWidth"), (path, width)
            assert page.evaluate(NARROW_CELLS, LEAST_PIXELS) == [], (path, width)


def test_targets_of_fingers_are_high_enough(open_page: OpenPage, site: Site) -> None:
    page = open_page("/runs", width=360)
    for path in paths(site):
        page.goto(site.origin + path)
        assert page.locator("main a, main button").count() > 0
        assert page.evaluate(LOW_TARGETS, LEAST_TARGET) == [], path


@pytest.mark.slow
def test_pages_work_without_javascript(open_page: OpenPage) -> None:
    page = open_page("/runs", javascript=False)
    for path, heading in PAGES.items():
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=heading, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        expect(page.get_by_role("link", name=heading, exact=True)).to_have_attribute("aria-current", "page")
        assert page.url.endswith(path)


def test_keys_open_pages_and_move_between_rows(open_page: OpenPage, site: Site) -> None:
    page = open_page("/runs")
    rows = page.locator("[data-row]")
    page.keyboard.press("j")
    expect(rows.nth(0).locator(".open")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(rows.nth(0).locator(".open")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("input:focus")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")


def test_times_are_in_the_readers_zone(open_page: OpenPage) -> None:
    time = open_page("/runs").locator("main time").first
    expect(time).to_have_attribute("title", re.compile(r"GMT\+9$"))  # the zone of the browser in these tests
    as_sent = open_page("/runs", javascript=False).locator("main time").first
    expect(as_sent).to_have_text(re.compile(r" UTC$"))
