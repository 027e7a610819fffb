"""Data that attacks pages, and data that is too much for them."""

import time
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .conftest import OpenPage
from .hostile_app import RIGHT_TO_LEFT, SCRIPT
from .site import Site

MOST_SECONDS = 20.0
"""For a page that is drawn in less than one, on a machine with other work."""


@pytest.fixture(scope="module")
def hostile(site: Site) -> Site:
    """The site with the hostile app; its three runs have ended."""
    site.add("tests.dashboard.hostile_app:app")
    events = [site.send(name, {SCRIPT: SCRIPT}) for name in ("hostile/names", "hostile/large", "hostile/steps")]
    for event_id in events:
        site.run_of(event_id)
    return site


def run_path(site: Site, function: str) -> str:
    [run] = site.run(site.engine.list_runs(function_id=f"hostile-{function}", limit=1))
    return f"/runs/{run.id}"


@pytest.mark.slow
def test_hostile_names_are_shown_as_they_are(open_page: OpenPage, hostile: Site) -> None:
    page = open_page("/runs")
    [event] = hostile.run(hostile.engine.list_events(name="hostile/names", limit=1))
    lists = ("/", "/runs", "/functions", "/events", "/apps", "/cron")
    details = (run_path(hostile, "names"), f"/events/{event.id}", "/functions/hostile-names")
    for path in (*lists, *details):
        page.goto(hostile.origin + path)
        assert page.title().endswith("Durably"), path
        assert page.locator("main script, main img").count() == 0, path
        assert not any(character in page.content() for character in "\x1b\x07\u202e"), path
    page.goto(hostile.origin + run_path(hostile, "names"))
    expect(page.locator("h1")).to_have_text(SCRIPT)
    expect(page.locator(".w-row", has_text=RIGHT_TO_LEFT)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.slow
def test_an_output_of_4_mb_is_fetched_when_it_is_asked_for(open_page: OpenPage, hostile: Site) -> None:
    path = run_path(hostile, "large")
    page = open_page(path)
    assert len(page.content()) < 200_000
    page.locator("#run-output").get_by_role("link", name="Show it").click()
    expect(page.locator("main")).to_contain_text("100,000 items")


@pytest.mark.slow
def test_a_run_of_1000_steps(open_page: OpenPage, hostile: Site) -> None:
    path = run_path(hostile, "steps")
    began = time.monotonic()
    page = open_page(path)
    expect(page.locator(".w-row")).to_have_count(1_001)
    assert time.monotonic() - began < MOST_SECONDS
    page.locator(".w-row", has_text="step-999").locator(".open").click()
    expect(page.locator("#detail")).to_contain_text("1998")


def test_a_hostile_question_is_answered(
    open_page: OpenPage, hostile: Site, check_accessibility: Callable[..., None]
) -> None:
    def is_open() -> object:
        return hostile.run(hostile.engine.list_questions(run_id=run.id))

    run = hostile.run_of(hostile.send("hostile/question"), until=lambda run: True)
    hostile.wait(is_open, "an open question")
    page = open_page("/questions", allowed="422")
    expect(page.locator("main")).to_contain_text(SCRIPT)
    check_accessibility(page)
    page.locator("main .open").click()
    assert page.title().endswith("Durably")
    assert page.locator("main script, main img").count() == 0
    assert not any(character in page.content() for character in "\x1b\x07\u202e")
    expect(page.locator("#detail")).to_contain_text(RIGHT_TO_LEFT)
    check_accessibility(page)
    page.get_by_label("Approved").select_option("Yes")
    page.get_by_label("Colour").select_option('"><script>')
    page.get_by_label("Reason").fill(SCRIPT)
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("main .notice")).to_have_text("The run has received the answer.")
    output = hostile.run(hostile.engine.wait_for_run(run.id)).decode_output()
    assert output == [True, '"><script>', SCRIPT]
