"""The pages of runs in a browser: what their modules add, and what works without them."""

import re

from playwright.sync_api import Page, expect

from durably.engine.views import RunStatus, RunView

from .conftest import OpenPage
from .site import Site

MARK = "() => { window.isTheSamePage = true }"
IS_MARKED = "() => window.isTheSamePage === true"


def waiting_run(site: Site, order: str) -> RunView:
    """A run that waits for the answer to a refund."""
    event_id = site.send("refund/requested", {"order": order, "amount": 60, "reason": "late"})
    run = site.run_of(event_id, until=lambda run: True)
    site.wait(lambda: any(step.id == "answer" for step in site.run(site.engine.run_steps(run.id))), "wait")
    return run


def ended(site: Site, function: str, status: RunStatus = RunStatus.COMPLETED) -> RunView:
    return site.wait(lambda: next(iter(site.runs(function, status)), None), f"{status} run of {function}")


def row(page: Page, label: str) -> object:
    return page.locator(".w-row", has_text=label)


# the list


def test_a_new_run_appears_in_the_list(open_page: OpenPage, site: Site) -> None:
    page = open_page("/runs?function=back-office-report-sales")
    page.evaluate(MARK)
    run = site.run_of(site.send("report/requested", {"week": 3}))
    expect(page.locator(f"#run-{run.id}")).to_contain_text("Completed")
    assert page.evaluate(IS_MARKED)


def test_a_filter_is_the_url(open_page: OpenPage, site: Site) -> None:
    failed = ended(site, "settle-invoice", RunStatus.FAILED)
    page = open_page("/runs")
    page.get_by_label("Status").select_option("Failed")
    page.wait_for_url("**/runs?status=Failed")
    page.get_by_text("More filters").click()
    page.get_by_label("Expression over event and output").fill('event.data.currency == "CHF"')
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "if=event" in url and "status=Failed" in url and "app=" not in url)
    expect(page.locator("[data-row]")).to_have_count(1)
    expect(page.locator(f"#run-{failed.id}")).to_contain_text("KeyError")
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url("**/runs")


def test_the_end_of_an_id_finds_a_run_from_anywhere(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice")
    page = open_page("/events")
    page.locator("#find").fill(run.id[-6:].lower())
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/runs/{run.id}")


# the page of a run


def test_a_run_is_live(open_page: OpenPage, site: Site) -> None:
    run = waiting_run(site, "L-1")
    page = open_page(f"/runs/{run.id}")
    expect(row(page, "answer")).to_contain_text("event")
    page.evaluate(MARK)
    site.send("refund/answered", {"order": "L-1", "answer": "granted"})
    expect(page.locator("#head .status")).to_have_text("Completed")
    expect(page.locator("#run-output")).to_contain_text('"granted"')
    assert page.evaluate(IS_MARKED)


def test_an_update_keeps_what_a_person_typed_and_opened(open_page: OpenPage, site: Site) -> None:
    run = waiting_run(site, "L-2")
    page = open_page(f"/runs/{run.id}")
    row(page, "notify-team").locator(".open").click()
    page.get_by_text("Rerun from this step").click()
    field = page.get_by_label("Input: a JSON array")
    field.fill('["typed"]')
    site.send("refund/answered", {"order": "L-2", "answer": "refused"})
    expect(page.locator("#head .status")).to_have_text("Completed")
    expect(field).to_have_value('["typed"]')
    expect(field).to_be_focused()


def test_steps_are_chosen_without_a_new_page(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice", RunStatus.FAILED)
    page = open_page(f"/runs/{run.id}")
    page.evaluate(MARK)
    expect(page.locator("#run-error")).to_contain_text("KeyError")
    page.locator("#run-error").get_by_role("link", name="convert-to-euros").click()
    expect(page.locator("#detail h2").first).to_have_text("convert-to-euros")
    expect(page.locator("#detail")).to_contain_text("return RATES[currency]")
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page.locator("#detail h2").first).to_have_text("find-approver")
    page.go_back()
    expect(page.locator("#detail h2").first).to_have_text("convert-to-euros")
    page.keyboard.press("Escape")
    expect(page.locator("#run-error")).to_be_visible()
    assert page.evaluate(IS_MARKED)


def test_the_time_axis_is_zoomed(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "pack-parcel")
    page = open_page(f"/runs/{run.id}")
    whole = page.locator("#waterfall").get_attribute("data-window")
    page.keyboard.press("+")
    page.wait_for_url("**zoom=*")
    expect(page.locator("#waterfall")).not_to_have_attribute("data-window", whole or "")
    page.keyboard.press("0")
    expect(page.locator("#waterfall")).to_have_attribute("data-window", whole or "")
    box = page.locator(".w-grid").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60)
    expect(page.locator("#zoom-selection")).to_be_visible()
    page.mouse.up()
    expect(page.locator("#waterfall")).not_to_have_attribute("data-window", whole or "")
    start, end = map(int, (page.locator("#waterfall").get_attribute("data-window") or "").split("-"))
    length = int((whole or "").split("-")[1])
    assert abs(start - length / 2) < length * 0.02
    assert abs(end - length * 0.75) < length * 0.02
    expect(page.locator("#zoom-selection")).to_be_hidden()
    assert "step=" not in page.url  # the drag opens no row
    page.reload()
    expect(page.locator("#waterfall")).to_have_attribute("data-window", f"{start}-{end}")
    page.keyboard.press("0")
    expect(page.locator("#waterfall")).to_have_attribute("data-window", whole or "")
    page.locator(".bar.completed").last.click()
    page.wait_for_url("**step=*")


def test_a_run_is_cancelled_after_a_question(open_page: OpenPage, site: Site) -> None:
    run = waiting_run(site, "L-3")
    page = open_page(f"/runs/{run.id}")
    questions = list[str]()

    def refuse(dialog: object) -> None:
        questions.append(dialog.message)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.once("dialog", refuse)
    page.get_by_role("button", name="Cancel").click()
    assert questions
    assert questions[0].startswith("Cancel this run?")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status").filter(has_text="The run was cancelled.")).to_be_visible()
    expect(page.locator("#head .status")).to_have_text("Cancelled")


def test_a_step_is_rerun_with_another_input(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice", RunStatus.FAILED)
    page = open_page(f"/runs/{run.id}")
    row(page, "convert-to-euros").locator(".open").click()
    page.get_by_text("Rerun from this step").click()
    page.get_by_label("Input: a JSON array").fill('[310.0, "EUR"]')
    page.get_by_role("button", name="Rerun from here").click()
    page.wait_for_url(re.compile(r"/runs/(?!" + run.id + r")\w+\?notice=rerun"))
    expect(page.locator("#head .status")).to_have_text("Completed")
    expect(page.locator("#run-output")).to_contain_text("310.00 EUR")


def test_a_failed_run_is_replayed_and_sent_again(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice", RunStatus.FAILED)
    page = open_page(f"/runs/{run.id}", javascript=False)
    page.get_by_role("button", name="Replay from the failed step").click()
    page.wait_for_url(re.compile(r"/runs/(?!" + run.id + r")\w+\?notice=rerun"))
    page.goto(f"{site.origin}/runs/{run.id}")
    page.get_by_role("button", name="Send event again").click()
    expect(page.get_by_role("status").filter(has_text="The event was sent again.")).to_be_visible()
    page.get_by_role("button", name="Rerun", exact=True).click()
    page.wait_for_url("**notice=rerun")


def test_a_run_is_copied_as_a_test(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice")
    page = open_page(f"/runs/{run.id}")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("link", name="Copy as test").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copy")).to_have_class(re.compile("copied"))
    assert "async def test_settle_invoice_" in page.evaluate("navigator.clipboard.readText()")


def test_a_run_can_be_read_without_javascript(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice", RunStatus.FAILED)
    page = open_page(f"/runs/{run.id}", javascript=False)
    row(page, "convert-to-euros").locator(".open").click()
    expect(page.locator("#detail h2").first).to_have_text("convert-to-euros")
    page.get_by_role("link", name="Zoom in").or_(page.get_by_role("link", name="+")).first.click()
    page.wait_for_url("**zoom=*")
    page.get_by_role("link", name="Whole run").click()
    expect(page.locator("#detail h2").first).to_have_text("convert-to-euros")


def test_the_rest_of_a_value_is_loaded_when_it_is_asked_for(open_page: OpenPage, site: Site) -> None:
    data = {"order": "L-4", "amount": 1, "reason": "x" * 3000, "items": [{"n": n, "in": [n] * 3} for n in range(350)]}
    run = site.run_of(site.send("refund/requested", data), until=lambda run: True)
    page = open_page(f"/runs/{run.id}")
    tree = page.locator(".json").last
    page.evaluate(MARK)
    tree.get_by_text("2,000 more characters").click()
    expect(tree.get_by_text("x" * 3000)).to_be_attached()
    tree.locator("details", has_text="350 items").last.locator("> summary").click()
    tree.get_by_text("250 more").click()
    expect(tree.get_by_text("199:")).to_be_attached()
    tree.get_by_text("150 more").click()
    tree.get_by_text("50 more").click()
    expect(tree.get_by_text("349:")).to_be_attached()
    assert page.evaluate(IS_MARKED)
