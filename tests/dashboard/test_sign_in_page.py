"""The dashboard of an engine in production, in a browser that has its key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from durably.engine.api.dashboard.dashboard import DashboardKeys
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.io.background_loop import BackgroundLoop
from durably.protocol.headers import ServerKind

from .conftest import OpenPage

KEY = "a-key-of-the-dashboard"


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """An engine in production whose dashboard has a key."""
    loop = BackgroundLoop("production")
    settings = EngineSettings(server_kind=ServerKind.CLOUD, signing_key="signkey-prod-" + "ab" * 32)
    opened = serve_database(
        tmp_path / "engine.db", settings, event_keys=["an event key"], port=0, dashboard_keys=DashboardKeys(KEY)
    )
    server = loop.run(opened)
    yield server.origin
    loop.run(server.close())


def test_a_person_with_the_key_sees_pages_and_sends_forms(open_page: OpenPage, origin: str) -> None:
    page = open_page(origin.replace("http://", f"http://ada:{KEY}@") + "/events")
    page.goto(f"{origin}/events/send")
    page.get_by_label("Name").fill("order/placed")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status").filter(has_text="The event was sent")).to_be_visible()
