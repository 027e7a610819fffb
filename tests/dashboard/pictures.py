"""Pictures of the dashboard for the README and the docs: ``make pictures``.

They show the runs of ``examples/showcase`` in both themes. The overview's numbers of the hour before are a sample.
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

from durably.engine.views import RunStatus

from .browser import BrowserThread
from .site import Site

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000
SIZE = {"width": 1200, "height": 720}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
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
            for scheme in ("light", "dark"):
                browser.run(lambda scheme=scheme: take_all(browser, site.origin, pages, scheme))  # type: ignore[misc]
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
