"""Steps that wait for others: events, signals, invoked functions, and requests that the engine makes."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from .. import wire
from ..waiting import eventually
from ..wire import step_hash
from .engine_under_test import Engine
from .scripted_app import ScriptedApp


def wait_op(event: str, timeout: str, *, in_name: bool = False, if_exp: str | None = None) -> wire.Op:
    """In the spelling that has the event among the options, or in that of official SDKs: it is the op's name."""
    opts: dict[str, Any] = {"timeout": timeout, "if": if_exp}
    if in_name:
        return wire.op("WaitForEvent", "wait", name=event, opts=opts)
    return wire.op("WaitForEvent", "wait", opts=opts | {"event": event})


@pytest.mark.parametrize("in_name", [True, False])
def test_the_event_that_was_waited_for_is_the_memo(script: ScriptedApp, engine: Engine, in_name: bool) -> None:
    fn = script.function()
    call = fn.first_call()
    call.reports(wait_op(f"{script.id}/answer", "1m", in_name=in_name))
    waiting(engine, call.run_id)
    engine.send(wire.event(f"{script.id}/other", {"n": 0}))
    (event_id,) = engine.send(wire.event(f"{script.id}/answer", {"n": 1}, ts=1_700_000_000_000))
    after = fn.next_call()
    memo = after.steps[step_hash("wait")]
    assert (memo["name"], memo["data"], memo["ts"]) == (f"{script.id}/answer", {"n": 1}, 1_700_000_000_000)
    assert memo["id"] == event_id
    after.returns(None)


def test_a_wait_that_times_out_has_null_for_a_memo(script: ScriptedApp) -> None:
    fn = script.function()
    started = time.monotonic()
    fn.first_call().reports(wait_op(f"{script.id}/never", "1s"))
    call = fn.next_call()
    assert call.steps == {step_hash("wait"): None}
    assert 0.9 <= time.monotonic() - started < 30
    call.returns(None)


def test_an_empty_timeout_of_a_wait_means_now(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().reports(wait_op(f"{script.id}/never", ""))
    call = fn.next_call()
    assert call.steps == {step_hash("wait"): None}
    call.returns(None)


@pytest.mark.parametrize(
    ("expression", "wrong", "right"),
    [
        ("event.data.id == async.data.id", {"id": 8}, {"id": 7}),
        ("async.data.id == event.data.id && async.data.ok", {"id": 7, "ok": False}, {"id": 7, "ok": True}),
        ("async.data.id == 7", {"id": "7"}, {"id": 7.0}),
        ("async.data.kind == 'a' || async.data.kind == 'b'", {}, {"kind": "b"}),
        ("async.data.deep.list[0] == 'x'", {"deep": None}, {"deep": {"list": ["x"]}}),
        ("async.data.n > event.data.id", {"n": 7}, {"n": 7.5}),
        ("has(async.data.n) && async.data.tags.exists(t, t == 'vip')", {"n": 1, "tags": []}, {"n": 1, "tags": ["vip"]}),
    ],
)
def test_the_expression_chooses_the_event(
    script: ScriptedApp, engine: Engine, expression: str, wrong: dict[str, Any], right: dict[str, Any]
) -> None:
    fn = script.function()
    call = fn.first_call({"id": 7})
    call.reports(wait_op(f"{script.id}/answer", "1m", if_exp=expression))
    waiting(engine, call.run_id)
    engine.send(wire.event(f"{script.id}/answer", wrong))
    engine.send(wire.event(f"{script.id}/answer", right))
    after = fn.next_call()
    assert after.steps[step_hash("wait")]["data"] == right
    after.returns(None)


def test_invalid_expression_fails_with_the_name_of_the_step(script: ScriptedApp, engine: Engine) -> None:
    call = script.function(retries=0).first_call()
    call.reports(wait_op(f"{script.id}/answer", "1m", if_exp="event.data. =="))
    assert "wait" in engine.failed(call.run_id)["message"]


def test_one_event_wakes_all_that_wait_for_it(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    calls = [fn.first_call({"n": n}) for n in range(3)]
    for call in calls:
        call.reports(wait_op(f"{script.id}/answer", "1m"))
        waiting(engine, call.run_id)
    engine.send(wire.event(f"{script.id}/answer"))
    woken = [fn.next_call() for _ in calls]
    assert {call.run_id for call in woken} == {call.run_id for call in calls}
    for call in woken:
        call.returns(None)


def waiting(engine: Engine, run_id: str) -> None:
    """Wait until the engine has taken the answer in: the run has no call left, or none under way."""

    def look() -> bool | None:
        jobs = engine.data(f"/v1/runs/{run_id}/jobs")
        return True if not jobs else None

    eventually(look, f"run {run_id} to wait")


# -- signals


def signal_op(signal: str, timeout: str | None = "1m", conflict: str | None = "fail") -> wire.Op:
    opts = {"signal": signal, "timeout": timeout, "conflict": conflict}
    return wire.op("WaitForSignal", "signal", name=signal, opts={k: v for k, v in opts.items() if v is not None})


@pytest.mark.parametrize("timeout", ["1m", "", None])
def test_a_signal_is_the_memo(script: ScriptedApp, engine: Engine, timeout: str | None) -> None:
    fn = script.function()
    call = fn.first_call()
    call.reports(signal_op(f"{script.id}-go", timeout))
    waiting(engine, call.run_id)
    answer = engine.api("POST", "/v1/signals", {"signal": f"{script.id}-go", "data": {"n": 1}})
    assert answer.status == 200
    assert answer.json["data"]["run_id"] == call.run_id
    after = fn.next_call()
    assert after.steps == {step_hash("signal"): {"data": {"signal": f"{script.id}-go", "data": {"n": 1}}}}
    after.returns(None)


def test_a_signal_that_does_not_come_has_null_for_a_memo(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().reports(signal_op(f"{script.id}-go", "1s"))
    call = fn.next_call()
    assert call.steps == {step_hash("signal"): None}
    call.returns(None)


def test_signal_without_a_waiting_run_is_404(script: ScriptedApp, engine: Engine) -> None:
    assert engine.api("POST", "/v1/signals", {"signal": f"{script.id}-unknown", "data": 1}).status == 404


def test_a_second_wait_for_a_signal_fails_its_run(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    first = fn.first_call()
    first.reports(signal_op(f"{script.id}-go"))
    waiting(engine, first.run_id)
    second = fn.first_call()
    second.reports(signal_op(f"{script.id}-go"))
    assert f"{script.id}-go" in engine.failed(second.run_id)["message"]
    assert engine.run(first.run_id)["status"] == "Running"


def test_a_wait_for_a_signal_may_take_the_place_of_another(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    first = fn.first_call()
    first.reports(signal_op(f"{script.id}-go", "2s"))
    waiting(engine, first.run_id)
    second = fn.first_call()
    second.reports(signal_op(f"{script.id}-go", conflict="replace"))
    waiting(engine, second.run_id)
    engine.api("POST", "/v1/signals", {"signal": f"{script.id}-go", "data": 2})
    call = fn.next_call()
    assert call.run_id == second.run_id
    assert call.steps[step_hash("signal")]["data"]["data"] == 2
    call.returns(None)
    replaced = fn.next_call()
    assert (replaced.run_id, replaced.steps) == (first.run_id, {step_hash("signal"): None})
    replaced.returns(None)


# -- invoked functions


def invoke_op(function_id: str, data: Any = None, timeout: str | None = None) -> wire.Op:
    opts = {"function_id": function_id, "payload": {"data": data, "v": None}, "timeout": timeout}
    return wire.op("InvokeFunction", "call", opts=opts)


def test_an_invoked_function_gets_the_data_and_its_output_is_the_memo(script: ScriptedApp) -> None:
    child, parent = script.function("child"), script.function("parent")
    parent.first_call().reports(invoke_op(child.id, {"n": 1}))
    invoked = child.next_call()
    assert invoked.body["event"]["name"] == "inngest/function.invoked"
    assert invoked.body["event"]["data"]["n"] == 1
    invoked.returns({"out": 1})
    call = parent.next_call()
    assert call.steps == {step_hash("call"): {"data": {"out": 1}}}
    call.returns(None)


def test_an_invoked_function_that_fails_is_an_error(script: ScriptedApp) -> None:
    child, parent = script.function("child", retries=0), script.function("parent")
    parent.first_call().reports(invoke_op(child.id, {}))
    child.next_call().raises("child failed")
    call = parent.next_call()
    assert "child failed" in call.steps[step_hash("call")]["error"]["message"]
    call.returns(None)


def test_an_invoke_that_takes_too_long_is_an_error(script: ScriptedApp) -> None:
    child, parent = script.function("child"), script.function("parent")
    parent.first_call().reports(invoke_op(child.id, {}, "1s"))
    late = child.next_call()
    call = parent.next_call()
    error = call.steps[step_hash("call")]["error"]
    assert error["name"] == "InngestInvokeTimeoutError"
    assert error["message"] == "Timed out waiting for invoked function to complete"
    call.returns(None)
    late.returns("too late")


def test_an_invoke_of_an_unknown_function_is_an_error(script: ScriptedApp) -> None:
    parent = script.function("parent")
    parent.first_call().reports(invoke_op("unknown", {}))
    call = parent.next_call()
    assert "unknown" in call.steps[step_hash("call")]["error"]["message"]
    call.returns(None)


def test_an_invoked_run_that_is_cancelled_is_an_error(script: ScriptedApp, engine: Engine) -> None:
    child, parent = script.function("child"), script.function("parent")
    parent.first_call().reports(invoke_op(child.id, {}))
    invoked = child.next_call()
    assert engine.api("DELETE", f"/v1/runs/{invoked.run_id}").status < 300
    call = parent.next_call()
    assert call.steps[step_hash("call")]["error"]["message"]
    call.returns(None)
    invoked.returns("too late")


# -- requests that the engine makes


class Provider:
    """An HTTP server that the engine is asked to call. ``answers`` are statuses. The last one stays."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        self.statuses = [200]
        self.origin = ""


@pytest.fixture
def provider() -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.received.append((self.command, self.path, headers, body))
            status = found.statuses.pop(0) if len(found.statuses) > 1 else found.statuses[0]
            content = json.dumps({"choices": ["hello"]}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Provider()
        found.origin = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_fetch_makes_the_request_and_memoises_the_answer(script: ScriptedApp, provider: Provider) -> None:
    fn = script.function()
    opts = {"url": f"{provider.origin}/path?q=1", "method": "POST", "headers": {"x-test": "1"}, "body": '{"n":1}'}
    fn.first_call().reports(wire.op("Gateway", "get", opts=opts))
    call = fn.next_call()
    memo = call.steps[step_hash("get")]["data"]
    assert memo["status_code"] == 200
    assert {name.lower(): value for name, value in memo["headers"].items()}["content-type"] == "application/json"
    assert json.loads(memo["body"]) == {"choices": ["hello"]}
    ((method, path, headers, body),) = provider.received
    assert (method, path, body) == ("POST", "/path?q=1", b'{"n":1}')
    assert headers["x-test"] == "1"
    call.returns(None)


def test_fetch_of_an_unreachable_server_fails_after_its_retries(script: ScriptedApp) -> None:
    fn = script.function(retries=0)
    fn.first_call().reports(wire.op("Gateway", "get", opts={"url": "http://127.0.0.1:1/", "method": "GET"}))
    call = fn.next_call()
    assert call.steps[step_hash("get")]["error"]["message"]
    call.returns(None)


def test_infer_sends_the_body_with_the_key_and_memoises_the_models_answer(
    script: ScriptedApp, engine: Engine, provider: Provider
) -> None:
    fn = script.function()
    opts = {
        "type": "step.ai.infer",
        "url": f"{provider.origin}/v1/chat/completions",
        "auth_key": "sk-conformance-secret",
        "format": "openai-chat",
        "headers": {},
        "body": {"model": "small", "messages": []},
    }
    call = fn.first_call()
    call.reports(wire.op("AIGateway", "ask", opts=opts))
    after = fn.next_call()
    assert after.steps == {step_hash("ask"): {"data": {"choices": ["hello"]}}}
    ((method, path, headers, body),) = provider.received
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert headers["authorization"] == "Bearer sk-conformance-secret"
    assert json.loads(body) == {"model": "small", "messages": []}
    after.returns(None)
    assert b"sk-conformance-secret" not in engine.api("GET", f"/v1/runs/{call.run_id}/steps").body


def test_infer_is_retried_when_the_provider_fails(script: ScriptedApp, provider: Provider) -> None:
    provider.statuses = [503, 200]
    fn = script.function()
    opts = {"url": f"{provider.origin}/v1", "auth_key": "k", "format": "openai-chat", "headers": {}, "body": {}}
    fn.first_call().reports(wire.op("AIGateway", "ask", opts=opts))
    call = fn.next_call()
    assert call.steps == {step_hash("ask"): {"data": {"choices": ["hello"]}}}
    assert len(provider.received) == 2
    call.returns(None)
