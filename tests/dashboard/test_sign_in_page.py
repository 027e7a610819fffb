"""The sign-in of an engine in production, in a browser."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from durably.engine.api.dashboard.sign_in import KeySignIn
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.io.background_loop import BackgroundLoop
from durably.protocol.headers import ServerKind

from .conftest import OpenPage

KEY = "a key of the dashboard"


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """An engine in production whose dashboard has a key."""
    loop = BackgroundLoop("production")
    settings = EngineSettings(server_kind=ServerKind.CLOUD, signing_key="signkey-prod-" + "ab" * 32)
    server = loop.run(
        serve_database(
            tmp_path / "engine.db",
            settings,
            event_keys=["an event key"],
            port=0,
            sign_in=lambda dashboard: KeySignIn(dashboard, KEY),
        )
    )
    yield server.origin
    loop.run(server.close())


def test_a_person_signs_in_and_out(open_page: OpenPage, check_accessibility: Callable[..., None], origin: str) -> None:
    page = open_page(f"{origin}/events", width=360, allowed="status of 403")
    expect(page.get_by_label("Dashboard key")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.type("a wrong key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is not the dashboard's key.")
    check_accessibility(page)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    check_accessibility(page, "color-contrast")
    page.get_by_label("Dashboard key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{origin}/events")
    expect(page.get_by_role("heading", level=1)).to_have_text("Events")
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{origin}/sign-in")
    page.goto(f"{origin}/runs")
    expect(page).to_have_url(f"{origin}/sign-in?next=%2Fruns")
