"""Actions and links of the pages, one after the other, as a person clicks them."""

import re
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Page, Route, expect

from durably import Event
from durably.engine.api.dashboard.runs import PAGE_SIZE
from durably.engine.model.runs import Run, RunStatus

from .conftest import OpenPage
from .site import Site


def notice(page: Page) -> object:
    return page.locator("main .notice")


def live_run(site: Site, event: str, data: dict[str, object], step: str, status: str) -> Run:
    """A run whose step has the status."""
    run = site.run_of(site.send(event, data), until=lambda run: True)
    site.wait(
        lambda: any((each.id, each.status) == (step, status) for each in site.run(site.engine.run_steps(run.id))),
        f"step {step} that is {status}",
    )
    return run


def retried(site: Site, run: Run) -> None:
    """Wait for the second failed attempt of the run."""
    site.wait(lambda: len(site.run(site.engine.run_attempts(run.id))) > 1, "second attempt")


# one run


def test_a_sleeping_run_is_woken(open_page: OpenPage, site: Site) -> None:
    data: dict[str, object] = {"customer": "wake@example.com", "country": "SE"}
    run = live_run(site, "parcel/delivered", data, "give-it-time", "sleeping")
    page = open_page(f"/runs/{run.id}")
    page.get_by_role("button", name="Wake now").click()
    expect(notice(page)).to_have_text("The run goes on now.")  # type: ignore[arg-type]
    expect(page.locator("#head .status")).to_have_text("Completed")


def test_a_failed_attempt_is_made_again_at_once(open_page: OpenPage, site: Site) -> None:
    run = live_run(site, "invoice/settled", {"number": "INV-R1"}, "post-entry", "retrying")
    page = open_page(f"/runs/{run.id}")
    expect(page.locator("#head")).to_contain_text("retries")
    page.get_by_role("button", name="Retry now").click()
    expect(notice(page)).to_have_text("The run goes on now.")  # type: ignore[arg-type]
    retried(site, run)
    page.locator(".w-row", has_text="post-entry").locator(".open").click()
    page.get_by_role("button", name="Retry this step now").click()
    site.wait(lambda: len(site.run(site.engine.run_attempts(run.id))) > 2, "third attempt")


def test_a_wrong_input_is_explained_beside_the_field(open_page: OpenPage, site: Site) -> None:
    run = site.wait(lambda: next(iter(site.runs("settle-invoice", RunStatus.FAILED)), None), "failed run")
    page = open_page(f"/runs/{run.id}", allowed="422")
    page.locator(".w-row", has_text="convert-to-euros").locator(".open").click()
    page.get_by_text("Rerun from this step").click()
    page.get_by_label("Input: a JSON array").fill("[310.0,")
    page.get_by_role("button", name="Rerun from here").click()
    expect(page.get_by_role("alert")).to_contain_text("must be a JSON array of the arguments")
    field = page.get_by_label("Input: a JSON array")
    expect(field).to_have_value("[310.0,")
    field.fill('[310.0, "GBP"]')
    page.get_by_role("button", name="Rerun from here").click()
    expect(page.locator("#run-output")).to_contain_text("362.70 EUR")
    # The steps before are copied, and say from where.
    copied = page.locator(".w-row", has_text="find-approver")
    expect(copied).to_contain_text("copied")
    copied.locator(".open").click()
    page.locator("#detail").get_by_role("link", name=run.id[-6:]).click()
    page.wait_for_url(re.compile(rf"/runs/{run.id}"))


def test_a_large_value_is_shown_and_downloaded(open_page: OpenPage, site: Site, tmp_path: Path) -> None:
    event_id = site.send("report/requested", {"text": "x" * 300_000, "week": 3})
    page = open_page(f"/events/{event_id}")
    payload = page.locator("#payload-json")
    with page.expect_download() as download:
        payload.get_by_role("link", name="download it").click()
    download.value.save_as(tmp_path / "event.json")
    assert len(msgspec.json.decode((tmp_path / "event.json").read_bytes())["text"]) == 300_000
    payload.get_by_role("link", name="Show it").click()
    expect(payload).to_contain_text("more characters")
    expect(payload).to_contain_text("week")
    assert page.url.endswith(event_id)


# lists


def test_older_pages_are_opened_and_left(open_page: OpenPage, site: Site) -> None:
    events = [Event(name="report/requested", data={"week": n}) for n in range(PAGE_SIZE + 1)]
    last = site.run(site.engine.receive_events(msgspec.json.encode(events))).ids[-1]
    site.run_of(last)
    for path in ("/runs?function=back-office-report-sales", "/events?name=report/requested"):
        page = open_page(path)
        first = page.locator("[data-row]").first.get_attribute("id")
        page.get_by_role("link", name="Older").click()
        page.wait_for_url("**cursor=*")
        expect(page.locator(f"#{first}")).to_have_count(0)
        expect(page.locator("[data-row]").first).to_be_visible()
        page.get_by_role("link", name="Newest").click()
        expect(page.get_by_role("link", name="Newest")).to_have_count(0)
        expect(page.get_by_role("link", name="Older")).to_be_visible()


def test_a_bulk_cancellation_is_stopped(open_page: OpenPage, site: Site) -> None:
    page = open_page("/functions/back-office-approve-refund/cancel")
    page.get_by_label("Created before").fill("2099-01-01T00:00:00")
    page.get_by_label("Whose event meets this expression").fill("event.data.amount == 123456")
    page.get_by_role("button", name="Count the runs").click()
    expect(page.locator(".preview")).to_contain_text("No run is selected")
    run = live_run(site, "refund/requested", {"order": "B-9", "amount": 123456}, "answer", "waiting")
    page.get_by_role("button", name="Count the runs").click()
    page.get_by_role("button", name="Cancel 1 run").click()
    expect(page.get_by_text("The runs are being cancelled.")).to_be_visible()
    site.run_of(run.event_id or "")
    page.locator("#operations").get_by_role("button", name="Stop").first.click()
    expect(notice(page).first).to_have_text(  # type: ignore[attr-defined]
        "The cancellation is stopped. It cancels no more runs."
    )
    expect(page.locator("#operations").get_by_role("button", name="Stop")).to_have_count(0)


# the connection


@pytest.mark.slow
def test_a_page_without_a_stream_says_so_until_it_has_one(open_page: OpenPage) -> None:
    is_down = True

    def answer(route: Route) -> None:
        route.abort() if is_down else route.continue_()

    page = open_page("/runs", allowed="ERR_FAILED")
    page.route("**/live?*", answer)
    page.reload()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    is_down = False
    expect(page.locator("#connection")).to_have_text("")
    page.unroute_all()
