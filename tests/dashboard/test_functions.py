"""The overview, and the pages of functions with their actions."""

import re

import pytest
from playwright.sync_api import expect

from durably.engine.model.runs import RunStatus

from .conftest import OpenPage
from .site import Site


def test_overview_counts_runs_and_lists_concerns(open_page: OpenPage, site: Site) -> None:
    # A failed run of its own: other tests replay earlier ones, which then need no attention.
    failed = site.run_of(site.send("invoice/received", {"number": "INV-98", "amount": 1, "currency": "XXX"}))
    assert failed.status is RunStatus.FAILED
    page = open_page("/")
    expect(page.locator(".tile", has_text="Failed")).not_to_have_text(re.compile(r"Failed\s*0$"))
    expect(page.get_by_role("img", name=re.compile("Ended runs over time: [1-9]"))).to_be_visible()
    attention = page.get_by_role("region", name="Needs attention")
    for subject in ("Settle an invoice", "refund/requestd", "Send the newsletter"):
        expect(attention.get_by_role("link", name=subject)).to_be_visible()
    page.get_by_text("The numbers as a table").click()
    expect(page.locator("#chart-table tbody tr").first).to_be_visible()
    attention.get_by_role("link", name="Settle an invoice").click()
    page.wait_for_url(re.compile(r"/runs/\w+$|/runs\?function=back-office-settle-invoice&status=Failed$"))


def test_overview_is_live_and_keeps_open_parts(open_page: OpenPage, site: Site) -> None:
    page = open_page("/")
    page.get_by_text("The numbers as a table").click()
    created = page.locator(".tile", has_text="Created").locator("b")
    before = int(created.inner_text().replace(",", ""))
    site.run_of(site.send("report/requested"))
    expect(created).not_to_have_text(f"{before:,}")
    expect(page.locator("#chart-table")).to_have_attribute("open", "")


def test_an_unknown_range_is_refused(open_page: OpenPage) -> None:
    page = open_page("/?range=9y", allowed="400")
    expect(page.get_by_role("heading", level=1)).to_have_text("The range is not known")


def test_an_empty_start_teaches_the_next_step(open_page: OpenPage, empty_site: Site) -> None:
    page = open_page(f"{empty_site.origin}/")
    expect(page.get_by_role("heading", name="No app has synced yet")).to_be_visible()
    expect(page.locator("pre").first).to_have_text("durably dev main:app")
    expect(page.locator("pre").last).to_have_text(f"DURABLY_DEV={empty_site.origin} uvicorn main:app")
    for path in ("/runs", "/functions", "/events"):
        page.goto(empty_site.origin + path)
        expect(page.locator(".empty h2")).to_be_visible()
    command = f"durably send shop/order.placed --data '{{\"id\": 1}}' --url {empty_site.origin}"
    expect(page.locator("pre").first).to_have_text(command)


def test_functions_have_triggers_and_options_in_words(open_page: OpenPage) -> None:
    page = open_page("/functions")
    page.get_by_label("Name or id").fill("review")
    page.keyboard.press("Enter")
    page.wait_for_url("**/functions?q=review")
    row = page.locator("[data-row]")
    expect(row).to_contain_text("on the event parcel/delivered if event.data.country == 'SE'")
    row.locator(".open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Ask for a review")
    expect(page.get_by_role("region", name="Options")).to_contain_text(
        "Starts when no event has come for 1 second, for each value of event.data.customer."
    )


def test_a_function_is_paused_and_resumed(open_page: OpenPage, site: Site) -> None:
    page = open_page("/functions/back-office-report-sales")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#head")).to_contain_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#head")).not_to_contain_text("Paused")
    assert not any(each.is_paused for each in site.run(site.engine.list_functions()) if "report" in each.id)


def test_a_function_is_invoked_with_a_form(open_page: OpenPage) -> None:
    page = open_page("/functions/back-office-print-label", allowed="422")
    field = page.get_by_label("Data of the event, a JSON object")
    field.fill("[1]")
    page.get_by_role("button", name="Invoke").click()
    expect(page.get_by_role("alert")).to_contain_text("must be a JSON object")
    expect(field).to_have_value("[1]")
    field.fill('{"order": "A-3000", "kind": "address"}')
    page.get_by_role("button", name="Invoke").click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_role("status").filter(has_text="This is the new run.")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/runs/\w+$"))  # The notice is shown once.
    expect(page.locator("#run-output")).to_contain_text("A-3000-address.pdf")


def test_times_of_forms_are_in_the_readers_zone(open_page: OpenPage, site: Site) -> None:
    site.run_of(site.send("report/requested"))
    path = "/functions/back-office-report-sales/replay?status-completed=1"
    page = open_page(f"{path}&after=2026-01-31T12:00:05")
    after = page.get_by_label("Created from")
    expect(after).to_have_value("2026-01-31T21:00:05")  # the zone of the browser in these tests
    expect(page.get_by_text("(UTC)").first).to_be_hidden()
    after.fill("2026-02-01T00:30:00")
    page.get_by_role("button", name="Count the runs").click()
    page.wait_for_url("**after=2026-01-31T15%3A30%3A00**")
    expect(page.get_by_label("Created from")).to_have_value("2026-02-01T00:30")
    as_sent = open_page(f"{path}&after=2026-01-31T12:00:05", javascript=False)
    expect(as_sent.get_by_label("Created from (UTC)")).to_have_value("2026-01-31T12:00:05")


def test_replay_of_a_paused_function_offers_to_resume_it(open_page: OpenPage, site: Site) -> None:
    site.run(site.engine.pause_function("back-office-print-label"))
    page = open_page("/functions/back-office-print-label/replay")
    expect(page.locator("#paused")).to_contain_text("This function is paused")
    page.locator("#paused").get_by_role("button", name="Resume").click()
    page.wait_for_url("**/functions/back-office-print-label")
    expect(page.locator("#head")).not_to_contain_text("Paused")


def test_function_page_shows_durations_of_steps(open_page: OpenPage, site: Site) -> None:
    site.wait(lambda: site.runs("pack-parcel", RunStatus.COMPLETED), "packed parcel")
    page = open_page("/functions/back-office-pack-parcel")
    times = page.get_by_role("region", name="Durations")
    row = times.get_by_role("row").filter(has_text="hand-to-carrier")
    expect(row).to_contain_text(re.compile(r"\d+ ms|\d s"))
    expect(times.get_by_role("row").filter(has_text="Whole run")).to_contain_text(" s")
    colours = times.evaluate("""times => ["p50", "p95"].map(name => [
      getComputedStyle(times.querySelector(`.key-${name}`), "::before").backgroundColor,
      getComputedStyle(times.querySelector(`rect.${name}`)).fill])""")
    assert [key for key, _ in colours] == [bar for _, bar in colours]
    assert colours[0] != colours[1]


@pytest.mark.slow
def test_runs_are_counted_before_they_are_cancelled_together(open_page: OpenPage, site: Site) -> None:
    events = [site.send("refund/requested", {"order": order, "amount": 7777}) for order in ("B-1", "B-2")]
    for event_id in events:
        site.run_of(event_id, until=lambda run: run.status is RunStatus.RUNNING)
    page = open_page("/functions/back-office-approve-refund", allowed="422")
    page.get_by_role("link", name="Cancel runs").click()
    page.get_by_label("Whose event meets this expression").fill("event.data.amount == ")
    page.get_by_role("button", name="Count the runs").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Whose event meets this expression").fill("event.data.amount == 7777")
    page.get_by_role("button", name="Count the runs").click()
    expect(page.locator(".preview")).to_contain_text("2 runs of Approve a refund are selected")
    page.get_by_role("button", name="Cancel 2 runs").click()
    page.wait_for_url("**/functions/back-office-approve-refund")
    for event_id in events:
        assert site.run_of(event_id).status is RunStatus.CANCELLED
    expect(page.locator("#operations")).to_contain_text("Cancellation of 2 runs")


def test_runs_are_counted_before_they_are_replayed_together(open_page: OpenPage, site: Site) -> None:
    event_id = site.send("invoice/received", {"number": "INV-99", "amount": 1, "currency": "YYY"})
    site.run_of(event_id)
    page = open_page("/functions/back-office-settle-invoice")
    page.get_by_role("link", name="Replay runs").click()
    page.get_by_label("Whose event meets this expression").fill("event.data.currency == 'YYY'")
    page.get_by_role("button", name="Count the runs").click()
    page.get_by_role("button", name="Replay 1 run").click()
    page.wait_for_url("**/functions/back-office-settle-invoice")
    expect(page.locator("#operations")).to_contain_text("Replay of 1 run")
    expect(page.get_by_role("status").filter(has_text="The runs are being replayed.")).to_be_visible()
    site.wait(lambda: len(site.run(site.engine.event_runs(event_id))) > 1 or _is_replayed(site, event_id), "replay")


def _is_replayed(site: Site, event_id: str) -> bool:
    [run] = site.run(site.engine.event_runs(event_id))
    return any(each.rerun_of == run.id for each in site.runs("settle-invoice"))
