"""Threads and event loops of functions. A slow function does not delay others."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..fake_engine import FakeEngine
from . import app_calls
from .servers import Server


@contextmanager
def in_background(function: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run beside the test; the list holds what was returned once the block has ended."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    yield results
    thread.join(60)
    assert results


@pytest.fixture
def held(engine: FakeEngine) -> dict[str, str]:
    """Data for a function that waits for a gate of the engine's."""
    return {"engine": engine.origin, "name": uuid.uuid4().hex}


def test_a_running_function_keeps_no_other_request_waiting(
    server: Server, engine: FakeEngine, kind: str, held: dict[str, str]
) -> None:
    url = server.url("dev")
    with in_background(lambda: app_calls.call(url, f"app-dev-held-{kind}", app_calls.call_body(held))) as answers:
        engine.wait_for_report(held["name"], "started")
        assert app_calls.request("GET", url, timeout=30).status == 200
        assert app_calls.call(url, f"app-dev-plain-{kind}", app_calls.call_body()).status == 200
        assert not answers
        engine.open_gate(held["name"])
    assert answers[0].json == "let go"


def in_request_thread(server: Server, variant: str, kind: str) -> bool:
    answer = app_calls.call(server.url(variant), f"app-{variant}-plain-{kind}", app_calls.call_body())
    if answer.status == 201:
        answer = answer.inner
    return bool(answer.json["in_request_thread"])


def test_async_functions_run_on_the_servers_loop_or_on_a_background_one(server: Server) -> None:
    assert in_request_thread(server, "dev", "async") == server.is_async


def test_sync_functions_run_in_a_pool_or_in_the_requests_thread(server: Server) -> None:
    assert in_request_thread(server, "dev", "sync") == (not server.is_async)


def test_without_a_pool_sync_functions_run_where_the_request_does(server: Server) -> None:
    assert in_request_thread(server, "no-pool", "sync")
    assert in_request_thread(server, "no-pool", "async") == server.is_async


def where_handlers_run(server: Server, variant: str) -> Any:
    function_id = f"app-{variant}-threads-async"
    answer = app_calls.call(server.url(variant), function_id, app_calls.call_body(), headers={"x-name": "Grace"})
    if answer.status == 201:
        answer = answer.inner
    return answer.json[0]["data"]


@pytest.mark.parametrize("variant", ["dev", "stream"])
def test_sync_handlers_of_async_functions_run_in_a_pool(server: Server, variant: str) -> None:
    where = where_handlers_run(server, variant)
    assert where == {"in_request_thread": False, "on_loop": False, "request_name": "Grace"}


def test_without_a_pool_sync_handlers_of_async_functions_run_on_the_loop(server: Server) -> None:
    assert where_handlers_run(server, "no-pool")["on_loop"]


def test_streaming_without_a_pool_is_not_done_for_sync_functions(server: Server) -> None:
    """Nothing could send the spaces while the function runs."""
    url = server.url("stream-no-pool")
    answer = app_calls.call(url, "app-stream-no-pool-plain-sync", app_calls.call_body())
    assert (answer.status, answer.json["in_request_thread"]) == (200, True)
    answer = app_calls.call(url, "app-stream-no-pool-plain-async", app_calls.call_body())
    assert answer.status == (201 if server.streams else 200)


@pytest.mark.parametrize("variant", ["dev", "no-pool", "stream"])
def test_context_variables_of_the_request_reach_functions(server: Server, kind: str, variant: str) -> None:
    function_id = f"app-{variant}-plain-{kind}"
    answer = app_calls.call(server.url(variant), function_id, app_calls.call_body(), headers={"x-name": "Grace"})
    if answer.status == 201:
        answer = answer.inner
    assert answer.json["request_name"] == "Grace"


def test_concurrent_functions_see_their_own_request(
    server: Server, engine: FakeEngine, kind: str, held: dict[str, str]
) -> None:
    """Two at once. The first is still running when the second comes."""
    url = server.url("dev")
    with in_background(
        lambda: app_calls.call(url, f"app-dev-held-{kind}", app_calls.call_body(held), headers={"x-name": "first"})
    ):
        engine.wait_for_report(held["name"], "started")
        answer = app_calls.call(url, f"app-dev-plain-{kind}", app_calls.call_body(), headers={"x-name": "second"})
        engine.open_gate(held["name"])
    assert answer.json["request_name"] == "second"
    assert app_calls.call(url, f"app-dev-plain-{kind}", app_calls.call_body()).json["request_name"] == "unset"
