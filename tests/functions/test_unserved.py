"""Functions that are made and not served: reported with their file, once, where that is certain."""

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

import durably
from durably import Client, Event
from durably.comm import CommHandler, CommRequest
from durably.functions import diagnostics

from ..fake_engine import Answer, FakeEngine, serving_fake_engine

ACCEPTED: Answer = (200, {"ids": ["01A"], "status": 200})
UNMATCHED: Answer = (200, {"ids": ["01A"], "status": 200, "unmatched": {"order": "no function is triggered by it"}})


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with serving_fake_engine() as engine:
        yield engine


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server: without it, this process is a test run. Functions of other tests are left out."""
    monkeypatch.setattr(diagnostics, "is_test_run", lambda: False)
    monkeypatch.setattr(diagnostics, "_made", {})


def make_client(engine: FakeEngine) -> Client:
    engine.answers["/e/key"] = ACCEPTED
    return Client(app_id="shop", engine=engine.origin, event_key="key", is_production=False)


def make_function(client: Client, fn_id: str, event: str) -> durably.Function[Any]:
    @client.create_function(fn_id=fn_id, trigger=durably.TriggerEvent(event=event))
    def function(ctx: durably.ContextSync) -> None: ...

    return function


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "do not run" in record.getMessage()]


def test_a_function_beside_served_ones_is_named_once(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(engine)
    served, forgotten = make_function(client, "served", "order"), make_function(client, "forgotten", "other")
    CommHandler(client=client, framework="test", functions=[served])
    for _ in range(2):
        client.send_sync(Event(name="order"))
    [line] = warnings(caplog)
    assert f"'{forgotten.id}' (in {__name__})" in line
    assert served.id not in line


def test_a_process_that_only_sends_is_not_warned(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Another process serves the functions of the module."""
    client = make_client(engine)
    _kept = make_function(client, "elsewhere", "order")
    client.send_sync(Event(name="order"))
    assert warnings(caplog) == []


@pytest.mark.parametrize("pattern", ["order", "order/*"])
def test_an_event_that_the_engine_does_not_know_leads_to_its_function(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    client = make_client(engine)
    _kept = make_function(client, "forgotten", pattern), make_function(client, "unrelated", "other")
    name = pattern.replace("*", "placed")
    engine.answers["/e/key"] = json.loads(json.dumps(UNMATCHED).replace('"order"', json.dumps(name)))
    client.send_sync(Event(name=name))
    [line] = warnings(caplog)
    assert "'shop-forgotten'" in line
    assert "unrelated" not in line


def test_sync_names_unserved_functions(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(engine)
    engine.answers["/fn/register"] = 200, {"ok": True, "modified": True}
    _kept = [make_function(client, f"f{number}", "order") for number in range(7)]
    comm = CommHandler(client=client, framework="test", functions=_kept[:1])
    url = "http://127.0.0.1:8000/api/inngest"
    for _ in range(2):
        comm.put_sync(CommRequest(body=b"", headers={}, query_params={}, raw_request=None, request_url=url))
    [line] = warnings(caplog)
    assert "the functions 'shop-f1' (" in line
    assert "'shop-f5'" in line
    assert "and 1 more" in line


def test_a_function_that_is_gone_is_not_named(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(engine)
    CommHandler(client=client, framework="test", functions=[make_function(client, "served", "order")])
    make_function(client, "dropped", "order")
    gc.collect()
    client.send_sync(Event(name="order"))
    assert warnings(caplog) == []
