"""The pages of events: what they started, and sending of events."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import OpenPage
from .site import Site


def test_an_event_leads_to_the_runs_that_it_started(open_page: OpenPage, site: Site) -> None:
    page = open_page("/events?name=newsletter/ready")
    row = page.locator("[data-row]")
    expect(row).to_contain_text("Skipped")
    row.locator(".open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("newsletter/ready")
    expect(page.locator("#payload-json")).to_contain_text("issue")
    page.locator("[data-row] .open").click()
    page.wait_for_url(f"**/runs/{site.runs('send-newsletter')[0].id}")


def test_an_event_that_started_nothing_says_why(open_page: OpenPage) -> None:
    page = open_page("/events?name=refund/requestd")
    expect(page.locator("[data-row]")).to_contain_text("Unmatched")
    page.locator("[data-row] .open").click()
    expect(page.get_by_text("It started no run")).to_be_visible()
    expect(page.get_by_text("refund/requested")).to_be_visible()  # the nearest name that starts a run


def test_an_event_that_cancelled_a_run_names_it(open_page: OpenPage, site: Site) -> None:
    page = open_page("/events?name=refund/withdrawn")
    row = page.locator("[data-row]")
    expect(row).to_contain_text("ended a wait or a run")
    row.locator(".open").click()
    note = page.locator("#started-runs li")
    expect(note).to_contain_text("It cancelled the run ")
    note.get_by_role("link").click()
    page.wait_for_url("**/runs/*")
    reason = page.locator("#run-reason")
    expect(reason).to_contain_text("The run was cancelled by the event 'refund/withdrawn'")
    expect(reason).not_to_contain_text("Error")


def test_an_event_is_sent_and_sent_again(open_page: OpenPage, site: Site) -> None:
    page = open_page("/events", allowed="422")
    page.get_by_role("link", name="Send an event").click()
    page.get_by_label("Name").fill("report/requested")
    page.get_by_label("Data, a JSON object").fill('{"week": 12')
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("not valid JSON")
    expect(page.get_by_label("Data, a JSON object")).to_have_value('{"week": 12')
    page.get_by_label("Data, a JSON object").fill('{"week": 12}')
    page.get_by_role("button", name="Send").click()
    page.wait_for_url("**/events/0*")
    expect(page.get_by_role("status").filter(has_text="The event was sent.")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/events/\w+$"))
    first = page.url
    # The page is live: the run appears, and ends.
    expect(page.locator("[data-row]")).to_contain_text("Completed")
    page.get_by_role("button", name="Send again").click()
    page.wait_for_url(lambda url: "/events/0" in url and url.partition("?")[0] != first)
    expect(page.locator("#payload-json")).to_contain_text("12")
    page.get_by_role("link", name="Edit and send").click()
    expect(page.get_by_label("Name")).to_have_value("report/requested")
    expect(page.get_by_label("Data, a JSON object")).to_have_value('{\n  "week": 12\n}')


@pytest.mark.slow
def test_events_are_filtered_by_their_url(open_page: OpenPage, site: Site) -> None:
    page = open_page("/events")
    expect(page.locator("[data-row]").first).to_be_visible()
    expect(page.get_by_text("inngest/function.finished")).to_have_count(0)
    page.goto(f"{site.origin}/events?name=inngest/function.finished")
    expect(page.get_by_text("inngest/function.finished").first).to_be_visible()
    page.goto(f"{site.origin}/events?unmatched=1")
    expect(page.locator("[data-row]", has_text="refund/requestd")).to_have_count(1)
    page.goto(f"{site.origin}/events?if=event.data.pages == 200")
    expect(page.locator("[data-row]")).to_have_count(1)
    page.goto(f"{site.origin}/events?if=event.(")
    expect(page.get_by_role("alert")).to_be_visible()
    page.goto(f"{site.origin}/events?name=no/such.event")
    expect(page.get_by_role("heading", name="No event matches")).to_be_visible()
