"""The pages of runs: filters, live updates, steps, and the actions on a run."""

import re

import pytest
from playwright.sync_api import Page, expect

from durably.engine.model.runs import RunStatus

from .conftest import OpenPage
from .site import Site

CHF = {"number": "INV-90", "amount": 310.0, "currency": "CHF"}


def failed_run(site: Site) -> str:
    """The first run of ``settle-invoice`` that has failed. Other tests make later ones."""
    return site.wait(lambda: site.runs("settle-invoice", RunStatus.FAILED), "failed run")[-1].id


def new_run(page: Page, old: str) -> str:
    """The id of the run to which an action has led."""
    page.wait_for_url(re.compile(rf"/runs/(?!{old})\w{{26}}"))
    return page.url.partition("/runs/")[2][:26]


def test_the_list_is_filtered_by_its_url(open_page: OpenPage, site: Site) -> None:
    page = open_page("/runs")
    page.get_by_label("Function").select_option("back-office-import-catalogue")
    page.wait_for_url("**/runs?function=back-office-import-catalogue")
    expect(page.locator("[data-row]")).to_have_count(2)
    page.goto(f"{site.origin}/runs?if=event.data.pages > 100")
    expect(page.locator("[data-row]")).to_have_count(1)
    expect(page.locator("#counts")).to_have_text("Numbers by status need a filter without an expression and an id.")
    page.goto(f"{site.origin}/runs?if=event.data.(")
    expect(page.get_by_role("alert")).to_be_visible()
    page.goto(f"{site.origin}/runs?event=no/such.event")
    expect(page.get_by_role("heading", name="No run matches the filter")).to_be_visible()


def test_more_filters_are_in_the_readers_zone(open_page: OpenPage, site: Site) -> None:
    page = open_page("/runs")
    page.get_by_text("More filters").click()
    page.get_by_label("From").fill("2026-01-31T21:00:00")
    page.get_by_label("Until").fill("2099-01-31T21:00:00")
    page.get_by_label("Expression over event and output").fill("event.data.pages > 100")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**from=2026-01-31T12%3A00%3A00&until=2099-01-31T12%3A00%3A00**")
    expect(page.locator("[data-row]")).to_have_count(1)
    expect(page.get_by_label("From")).to_have_value("2026-01-31T21:00")


def test_the_search_of_the_bar_finds_runs_functions_and_events(open_page: OpenPage, site: Site) -> None:
    page = open_page("/cron")
    run = site.run_of(site.send("report/requested"))
    for text, url in (
        (run.id, f"**/runs/{run.id}"),
        (run.id[-8:].lower(), f"**/runs/{run.id}"),
        ("pack a parcel", "**/functions/back-office-pack-parcel"),
        ("photo/uploaded", "**/events?name=photo%2Fuploaded"),
        ("nothing-like-it", "**/runs?id=nothing-like-it"),
    ):
        page.get_by_role("searchbox").fill(text)
        page.keyboard.press("Enter")
        page.wait_for_url(url)
    expect(page.get_by_role("heading", name="Nothing has this id or name")).to_be_visible()


@pytest.mark.slow
def test_each_part_of_a_row_opens_the_run(open_page: OpenPage, site: Site) -> None:
    run_id = failed_run(site)
    for part in (".id", "time"):
        page = open_page("/runs?function=back-office-settle-invoice&status=Failed")
        expect(page.locator(f"#run-{run_id} .open")).to_have_text("Settle an invoice")
        page.locator(f"#run-{run_id} {part}").first.click()
        page.wait_for_url(f"**/runs/{run_id}")


def test_selected_runs_are_started_again(open_page: OpenPage, site: Site) -> None:
    for _ in range(2):
        site.run_of(site.send("report/requested"), until=lambda run: run.ended_at is not None)
    page = open_page("/runs?function=back-office-report-sales")
    bar = page.locator("#selection")
    expect(bar).to_be_hidden()
    boxes = page.locator("[data-row] input[type=checkbox]")
    boxes.first.check()
    expect(bar).to_contain_text("1 selected")
    boxes.nth(1).click(modifiers=["Shift"])
    expect(bar).to_contain_text("2 selected")
    page.keyboard.press("k")
    page.keyboard.press("x")
    expect(bar).to_contain_text("1 selected")
    run = site.run_of(site.send("report/requested"))
    expect(page.locator(f"#run-{run.id}")).to_be_visible()  # a new row
    expect(bar).to_contain_text("1 selected")
    page.once("dialog", lambda dialog: dialog.accept())
    bar.get_by_role("button", name="Rerun").click()
    expect(page.locator("main .notice")).to_contain_text("The selected runs were started again.")


def test_the_list_shows_new_runs_by_itself(open_page: OpenPage, site: Site) -> None:
    page = open_page("/runs?function=back-office-report-sales")
    page.evaluate("window.wasNotReloaded = true")
    completed = page.get_by_role("navigation", name="Numbers of runs").get_by_role("link", name="Completed")
    before = int(completed.locator(".number").inner_text())
    run = site.run_of(site.send("report/requested"))
    expect(page.locator(f"#run-{run.id}")).to_contain_text("Completed")
    expect(completed).to_have_text(f"Completed {before + 1}")
    assert page.evaluate("window.wasNotReloaded")


def test_a_run_is_drawn_while_it_runs(open_page: OpenPage, site: Site) -> None:
    event_id = site.send("refund/requested", {"order": "A-2001", "amount": 5})
    run = site.run_of(event_id, until=lambda run: run.status is RunStatus.RUNNING)
    page = open_page(f"/runs/{run.id}")
    page.evaluate("window.wasNotReloaded = true")
    expect(page.locator(".w-row", has_text="answer")).to_be_visible()
    site.send("refund/answered", {"order": "A-2001", "answer": "granted"})
    expect(page.locator("#head")).to_contain_text("Completed")
    expect(page.locator("#run-output")).to_contain_text("granted")
    assert page.evaluate("window.wasNotReloaded")


def test_a_failed_run_says_why_and_is_replayed(open_page: OpenPage, site: Site) -> None:
    run_id = failed_run(site)
    page = open_page("/runs?status=Failed&function=back-office-settle-invoice")
    page.locator(f"#run-{run_id} .open").click()
    error = page.locator("#run-error")
    expect(error).to_contain_text("KeyError: 'CHF'")
    expect(error).to_contain_text("rate_of(currency)")  # a line of the traceback
    page.get_by_role("button", name="Replay from the failed step").click()
    replayed = new_run(page, run_id)
    steps = site.wait(lambda: site.run(site.engine.run_steps(replayed)), "step")
    assert steps[0].id == "find-approver", "the steps before are kept"


def test_a_run_is_cancelled_after_a_question(open_page: OpenPage, site: Site) -> None:
    event_id = site.send("refund/requested", {"order": "A-2002", "amount": 5})
    run = site.run_of(event_id, until=lambda run: run.status is RunStatus.RUNNING)
    page = open_page(f"/runs/{run.id}")
    questions: list[str] = []

    def accept(dialog: object) -> None:
        questions.append(dialog.message)  # type: ignore[attr-defined]
        dialog.accept()  # type: ignore[attr-defined]

    page.once("dialog", accept)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#head")).to_contain_text("Cancelled")
    assert len(questions) == 1
    assert site.run_of(event_id).status is RunStatus.CANCELLED


def test_steps_are_bars_with_attempts_and_values(open_page: OpenPage, site: Site) -> None:
    run = site.wait(lambda: site.runs("pack-parcel", RunStatus.COMPLETED), "run")[0]
    page = open_page(f"/runs/{run.id}")
    rows = page.locator(".w-row")
    expect(rows.filter(has_text="weigh-")).not_to_have_count(0)
    expect(rows.filter(has_text="let-the-glue-dry").locator("rect.sleeping")).to_have_count(1)
    expect(page.locator("#run-children")).to_contain_text("back-office-print-label")
    expect(page.locator("#logs")).to_contain_text("packing the parcel of A-104")
    rows.filter(has_text="hand-to-carrier").locator(".open").click()
    step = page.locator("#detail")
    expect(step).to_contain_text("the carrier's van has left")
    expect(step).to_contain_text("JD014600003SE")


def test_a_status_is_chosen_by_its_number(open_page: OpenPage, site: Site) -> None:
    failed_run(site)
    site.wait(lambda: all(run.ended_at for run in site.runs("settle-invoice")), "end of all runs")
    page = open_page("/runs?function=back-office-settle-invoice", javascript=False)
    link = page.get_by_role("navigation", name="Numbers of runs").get_by_role("link", name="Failed")
    number = link.locator(".number").inner_text()
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs?function=back-office-settle-invoice&status=Failed")
    expect(page.locator("[data-row]")).to_have_count(int(number))
    expect(link).to_have_attribute("aria-current", "true")
    expect(page.get_by_label("Status")).to_have_value("Failed")
