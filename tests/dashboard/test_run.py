"""Modules of a run's page: choosing steps, zooming, updates, values that are loaded later."""

import pytest
from playwright.sync_api import Page, expect

from durably.engine.model.runs import Run, RunStatus

from .conftest import OpenPage
from .site import Site

MARK = "() => { window.isTheSamePage = true }"
IS_MARKED = "() => window.isTheSamePage === true"


def waiting_run(site: Site, order: str) -> Run:
    """A run that waits for the answer to a refund."""
    event_id = site.send("refund/requested", {"order": order, "amount": 60, "reason": "late"})
    run = site.run_of(event_id, until=lambda run: True)
    site.wait(lambda: any(step.id == "answer" for step in site.run(site.engine.run_steps(run.id))), "wait")
    return run


def ended(site: Site, function: str, status: RunStatus = RunStatus.COMPLETED) -> Run:
    return site.wait(lambda: next(iter(site.runs(function, status)), None), f"{status} run of {function}")


def row(page: Page, label: str) -> object:
    return page.locator(".w-row", has_text=label)


def test_update_keeps_typed_text_and_open_parts(open_page: OpenPage, site: Site) -> None:
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


@pytest.mark.slow
def test_a_run_can_be_read_without_javascript(open_page: OpenPage, site: Site) -> None:
    run = ended(site, "settle-invoice", RunStatus.FAILED)
    page = open_page(f"/runs/{run.id}", javascript=False)
    row(page, "convert-to-euros").locator(".open").click()
    expect(page.locator("#detail h2").first).to_have_text("convert-to-euros")
    page.get_by_role("link", name="Zoom in").or_(page.get_by_role("link", name="+")).first.click()
    page.wait_for_url("**zoom=*")
    page.get_by_role("link", name="Whole run").click()
    expect(page.locator("#detail h2").first).to_have_text("convert-to-euros")


@pytest.mark.slow
def test_the_rest_of_a_value_is_loaded_when_it_is_asked_for(open_page: OpenPage, site: Site) -> None:
    data = {"order": "L-4", "amount": 1, "reason": "x" * 3000, "items": [{"n": n, "in": [n] * 3} for n in range(350)]}
    run = site.run_of(site.send("refund/requested", data), until=lambda run: True)
    page = open_page(f"/runs/{run.id}")
    tree = page.locator(".json").last
    page.evaluate(MARK)
    tree.get_by_text("2,000 more characters").click()
    expect(tree.get_by_text("x" * 3000)).to_be_attached()
    tree.locator("details", has_text="350 items").last.locator("> summary").click()
    tree.get_by_text("250 more", exact=True).click()
    expect(tree.get_by_text("199:")).to_be_attached()
    tree.get_by_text("150 more", exact=True).click()
    tree.get_by_text("50 more", exact=True).click()
    expect(tree.get_by_text("349:")).to_be_attached()
    assert page.evaluate(IS_MARKED)
