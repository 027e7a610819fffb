"""The pages of apps and of cron schedules."""

import datetime as dt
import re
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import expect

from .conftest import OpenPage
from .site import Site


def test_an_app_has_its_sdk_version_and_last_sync(open_page: OpenPage) -> None:
    page = open_page("/apps")
    app = page.get_by_role("region", name="back-office", exact=True)
    expect(app).to_contain_text("Answers")
    expect(app).to_contain_text("2026.11.2")
    expect(app).to_contain_text("FastAPI")
    expect(app).to_contain_text("back-office-import-catalogue")  # added by the last sync
    app.get_by_text("11 functions").click()
    app.get_by_role("link", name="Count the stock").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Count the stock")


def test_schedules_are_on_a_time_line(open_page: OpenPage) -> None:
    page = open_page("/cron")
    expect(page.locator("[data-row]")).to_have_count(2)
    weekly = page.locator("[data-row]", has_text="Report the week's sales")
    expect(weekly).to_contain_text("0 8 * * 1")
    expect(weekly).to_contain_text("Europe/Stockholm")
    expect(weekly.get_by_role("img")).to_have_attribute("aria-label", re.compile("[1-5] ticks of Report"))
    expect(page.get_by_role("columnheader", name="Last")).to_be_visible()
    stock = page.locator("[data-row]", has_text="Count the stock")
    expect(stock.locator(".onward")).to_have_count(1)  # It ticks each minute.
    page.get_by_role("link", name="1h").click()
    now = dt.datetime.now(ZoneInfo("Europe/Stockholm"))
    is_near = now.weekday() == 0 and now.hour in (7, 8)
    ticks = "[01]" if is_near else "0"
    expect(weekly.get_by_role("img")).to_have_attribute("aria-label", re.compile(f"and {ticks} ticks of Report"))
    weekly.get_by_text("Last runs and next ticks").click()
    expect(weekly.locator("details li")).not_to_have_count(0)


@pytest.mark.slow
def test_an_app_that_does_not_answer_needs_attention(open_page: OpenPage, site: Site) -> None:
    site.add("tests.dashboard.hostile_app:app")
    site.stop("tests.dashboard.hostile_app:app")
    try:
        site.send("hostile/names")
        page = open_page("/apps")
        app = page.get_by_role("region", name="hostile", exact=True)
        expect(app).to_contain_text("Does not answer")
        page.goto(f"{site.origin}/")
        expect(page.get_by_role("region", name="Needs attention")).to_contain_text("unreached app")
    finally:
        site.add("tests.dashboard.hostile_app:app")
