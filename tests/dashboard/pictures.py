"""Pictures of the dashboard for the README and the docs: ``make pictures``.

They show the runs of ``examples/showcase`` in both themes. The overview's numbers of the hour before are a sample.
``make pictures ALL=1`` takes each page in both themes and several widths instead, into ``build/pictures``, to be looked
at after a change of the style sheets.
"""

import contextlib
import math
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from examples.showcase.events import send_events
from playwright.sync_api import Page

from durably.engine.model.runs import RunStatus

from .browser import BrowserThread
from .site import Site

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000
SIZE = {"width": 1200, "height": 720}
ALL_FOLDER = ROOT / "build" / "pictures"
ALL_WIDTHS = (360, 800, 1600)
EVENTS = ("parcel/delivered", "refund/withdrawn", "refund/requestd", "photo/uploaded")
FUNCTIONS = ("pack-parcel", "settle-invoice", "approve-refund", "ask-for-review", "send-newsletter", "resize-photos")


def main() -> None:
    is_all = "--all" in sys.argv[1:]
    (ALL_FOLDER if is_all else FOLDER).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        # Tracebacks have the path of the app, which is not to be that of this checkout.
        shop = Path(directory) / "shop"
        shop.mkdir()
        shutil.copy(ROOT / "examples/showcase/app.py", shop / "back_office.py")
        os.chdir(shop)
        site, browser = Site(shop / "pictures.db", "back_office:app"), BrowserThread()
        try:
            add_sample_counts(shop / "pictures.db")
            site.run(send_events(site.engine))
            failed = site.wait(lambda: site.runs("settle-invoice", RunStatus.FAILED), "failed run")[0]
            packed = site.wait(lambda: site.runs("pack-parcel", RunStatus.COMPLETED), "packed parcel")[0]
            pages = {
                "overview": "/",
                "runs": "/runs",
                "failed-run": f"/runs/{failed.id}",
                "run": f"/runs/{packed.id}",
            }
            take_some = take_each if is_all else take_all
            pages |= other_pages(site) if is_all else {}
            for scheme in ("light", "dark"):
                browser.run(lambda scheme=scheme: take_some(browser, site.origin, pages, scheme))  # type: ignore[misc]
        finally:
            browser.close()
            site.close()


def add_sample_counts(database: Path) -> None:
    """An hour of runs: a wave, and a quarter of an hour in which many fail."""
    chance, minute = random.Random(7), int(time.time() // 60)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for ago in range(1, 60):
            for function, scale in (
                ("pack-parcel", 22),
                ("settle-invoice", 14),
                ("print-label", 30),
                ("count-stock", 1),
            ):
                created = round(scale * (1 + 0.5 * math.sin(ago / 8)) + chance.random() * scale / 4)
                is_bad = function == "settle-invoice" and 9 < ago < 17
                failed = round(created * 0.6) if is_bad else function != "count-stock" and chance.random() < 0.1
                connection.execute(
                    "INSERT OR REPLACE INTO run_counts VALUES (?, ?, ?, ?, ?, 0, 0)",
                    (minute - ago, f"back-office-{function}", created, created - failed, failed),
                )
        connection.execute("UPDATE statistics SET counted_until = coalesce(counted_until, ?)", (minute,))


def take_all(browser: BrowserThread, origin: str, pages: dict[str, str], scheme: str) -> None:
    context = browser.browser.new_context(viewport=SIZE, color_scheme=scheme, locale="en-GB")  # type: ignore[arg-type]
    page = context.new_page()
    for name, path in pages.items():
        page.goto(origin + path)
        take(page, FOLDER / f"{name}-{scheme}.png")
    context.close()


def other_pages(site: Site) -> dict[str, str]:
    function = "/functions/back-office-settle-invoice"
    sent = {name: site.run(site.engine.list_events(name=name, limit=1))[0].id for name in EVENTS}
    runs = {run.status.lower(): run.id for name in FUNCTIONS for run in site.runs(name)}
    return {
        "functions": "/functions",
        "function": function,
        "replay": f"{function}/replay?status-failed=1",
        "cancel": f"{function}/cancel",
        "events": "/events",
        "send": "/events/send",
        "apps": "/apps",
        "cron": "/cron",
        "missing": "/search?q=nothing-like-it",
        **{f"event-{name.replace('/', '-')}": f"/events/{event_id}" for name, event_id in sent.items()},
        **{f"run-{status}": f"/runs/{run_id}" for status, run_id in runs.items()},
    }


def take_each(browser: BrowserThread, origin: str, pages: dict[str, str], scheme: str) -> None:
    context = browser.browser.new_context(color_scheme=scheme, locale="en-GB")  # type: ignore[arg-type]
    page = context.new_page()
    for width in ALL_WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for name, path in pages.items():
            page.goto(origin + path)
            page.locator("main time, main svg, main h1").first.wait_for()
            page.screenshot(path=ALL_FOLDER / f"{name}-{scheme}-{width}.png", full_page=True)
    context.close()


def take(page: Page, file: Path) -> None:
    page.wait_for_load_state("load")
    page.locator("main time, main svg").first.wait_for()
    page.screenshot(path=file)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}  {size // 1000} kB")
    if size > MOST_BYTES:
        sys.exit(f"{file.name} is larger than {MOST_BYTES // 1000} kB")


if __name__ == "__main__":
    main()
