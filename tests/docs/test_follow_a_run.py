"""The apps of the page on handles, word for word, on the embedded engine."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fastapi.testclient
import pytest

from durably import Embedded

from .pages import DOCS, blocks

APPS = [block.text for block in blocks(DOCS / "how-to" / "follow-a-run.md") if block.text.startswith("# shop.py")]


def load(number: int, database: Path) -> ModuleType:
    """An app of the page, with an engine in its own process."""
    module = ModuleType("shop")
    code = re.sub(r'app_id="shop"', f'app_id="shop", engine=durably.Embedded({str(database)!r})', APPS[number])
    exec(compile(code, "shop.py", "exec"), module.__dict__)
    return module


@pytest.fixture(params=["fast_api", "flask"])
def request_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Sends a request to the app, and returns the JSON of the answer."""
    shop = load(0 if request.param == "fast_api" else 1, tmp_path / "durably.db")
    engine = shop.client.engine
    assert isinstance(engine, Embedded)
    engine.start_sync()
    try:
        if request.param == "fast_api":
            web = fastapi.testclient.TestClient(shop.app)
            yield lambda method, path, **given: web.request(method, path, params=given).json()
        else:
            flask_client = shop.app.test_client()
            yield lambda method, path, **given: flask_client.open(path, method=method, data=given).get_json()
    finally:
        engine.stop_sync()


def test_an_app_starts_a_run_and_shows_its_result(request_of: Callable[..., Any]) -> None:
    first = request_of("POST", "/users/7", email="ada@example.com")
    assert request_of("POST", "/users/7", email="ada@example.com") == first
    assert request_of("GET", f"/runs/{first['run']}/result") == {"result": "welcomed ada@example.com"}
