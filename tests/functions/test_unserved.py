"""Functions that are made and not served: reported with their file, once, where that is certain."""

import functools
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

import durably
from durably import Client, Event
from durably.comm import CommHandler, CommRequest
from durably.functions import unserved

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
    monkeypatch.setattr(unserved, "is_test_run", lambda: False)
    monkeypatch.setattr(unserved, "_made", {})


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
    code = forgotten.handler.__code__
    assert (
        f"the function 'shop-forgotten' ({__file__}, line {code.co_firstlineno}) and does not serve it: add it" in line
    )
    assert "served'" not in line.replace("forgotten'", "")


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
    assert "and 1 more and does not serve them" in line


def test_a_function_that_is_gone_is_not_named(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(engine)
    CommHandler(client=client, framework="test", functions=[make_function(client, "served", "order")])
    make_function(client, "dropped", "order")
    gc.collect()
    client.send_sync(Event(name="order"))
    assert warnings(caplog) == []


def test_a_handler_without_code_is_named_by_its_module(engine: FakeEngine) -> None:
    class Handler:
        def __call__(self, ctx: durably.ContextSync) -> None: ...

    client = make_client(engine)
    function = client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="order"))(Handler())
    assert f"'shop-f' ({__name__})" in unserved.report([function])


@pytest.mark.parametrize(
    ("adapter", "call"), [(name, call) for name, call in unserved.CALLS_OF_SERVE.items() if name != "durably.fast_api"]
)
def test_the_remedy_is_that_of_the_loaded_adapter(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, adapter: str, call: str
) -> None:
    monkeypatch.setattr(unserved.sys, "modules", {adapter: functools})
    function = make_function(make_client(engine), "f", "order")
    assert unserved.report([function]).endswith(f"add it to the functions of {call}")
    monkeypatch.setattr(unserved.sys, "modules", {})
    assert unserved.report([function]).endswith(
        "durably.fast_api.serve(app, client, functions), or of another framework"
    )
