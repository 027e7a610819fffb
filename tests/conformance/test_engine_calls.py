"""Calls: what an engine sends, and what it makes of answers that end the function or fail the attempt."""

import datetime as dt
import email.utils
import json
import time
import uuid
from urllib.parse import urlsplit

import pytest

from .. import wire
from ..ports import free_port
from ..waiting import eventually
from .engine_under_test import Engine
from .scripted_app import SDK_HEADERS, ScriptedApp, serving_scripted_app


def test_a_run_begins_with_a_call_that_discovers(script: ScriptedApp) -> None:
    fn = script.function()
    event_id = fn.trigger({"n": 1}, ts=1_700_000_000_000, user={"id": "u1"}, v="2")
    call = fn.next_call()
    assert call.query["fnId"] == fn.id
    assert call.target == "step"
    assert call.headers["content-type"].startswith("application/json")
    assert call.headers["x-inngest-server-kind"] == "dev"
    body = call.body
    assert body["event"]["id"] == event_id
    assert body["event"]["name"] == fn.event
    assert body["event"]["data"] == {"n": 1}
    assert body["event"]["ts"] == 1_700_000_000_000
    assert body["event"]["user"] == {"id": "u1"}
    assert body["event"]["v"] == "2"
    assert body["events"] == [body["event"]]
    assert body["steps"] == {}
    assert body["use_api"] is False
    ctx = body["ctx"]
    assert ctx["attempt"] == 0
    assert ctx["max_attempts"] == 5
    assert ctx["disable_immediate_execution"] is False
    assert ctx["use_api"] is False
    assert ctx["stack"]["stack"] in ([], None)
    assert ctx["stack"]["current"] == 0
    assert all(isinstance(ctx[name], str) and ctx[name] for name in ("run_id", "fn_id", "step_id", "qi_id"))
    assert uuid.UUID(ctx["fn_id"]), "the official Go SDK refuses other ids"
    assert isinstance(ctx["env"], str)
    assert isinstance(ctx["generation_id"], int)
    assert ctx["request_id"]
    call.returns(None)


def test_headers_name_the_run_and_the_request(script: ScriptedApp) -> None:
    call = script.function().first_call()
    assert call.headers["x-run-id"] == call.run_id
    assert call.headers["x-request-id"]
    assert call.headers["x-inngest-job-id"]
    call.returns(None)


@pytest.mark.parametrize(
    "output", [None, True, 0, 1.5, "text", [1, {"a": None}], {"data": {"data": 1}}, 2**60, "☃\u0000"]
)
def test_a_200_completes_the_run_with_its_body(script: ScriptedApp, engine: Engine, output: object) -> None:
    call = script.function().first_call()
    call.returns(output)
    assert engine.completed(call.run_id) == output


def test_run_complete_completes_the_run_with_its_data(script: ScriptedApp, engine: Engine) -> None:
    """As the JavaScript SDK answers, whose steps travel along."""
    call = script.function().first_call()
    end = {"op": "RunComplete", "id": "0737c22d3bfae812339732d14d8c7dbd6dc4e09c", "data": {"done": True}}
    call.reports(wire.ran("a", 1), end)
    assert engine.completed(call.run_id) == {"done": True}
    assert engine.api("GET", f"/v0/runs/{call.run_id}/actions").json == {wire.step_hash("a"): {"data": 1}}


def test_a_streamed_answer_is_the_one_inside(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    call = fn.first_call()
    inner = {"status": 206, "headers": SDK_HEADERS, "body": json.dumps([wire.ran("a", 1)])}
    call.answer(201, b"   " + json.dumps(inner).encode())
    call = fn.next_call()
    assert call.steps == {wire.step_hash("a"): {"data": 1}}
    inner = {"status": 200, "headers": SDK_HEADERS, "body": '"streamed"'}
    call.answer(201, b" " + json.dumps(inner).encode())
    assert engine.completed(call.run_id) == "streamed"


def test_streamed_error_counts_as_an_error(script: ScriptedApp, engine: Engine) -> None:
    call = script.function().first_call()
    headers = SDK_HEADERS | {"x-inngest-no-retry": "true"}
    inner = {"status": 500, "headers": headers, "body": json.dumps(wire.error("streamed"))}
    call.answer(201, b" " + json.dumps(inner).encode())
    assert engine.failed(call.run_id)["message"] == "streamed"


# -- retries


def test_an_error_is_retried_until_its_attempts_are_used_up(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function(retries=1)
    call = fn.first_call()
    assert (call.ctx["attempt"], call.ctx["max_attempts"]) == (0, 2)
    call.raises("first")
    again = fn.next_call()
    assert again.run_id == call.run_id
    assert (again.ctx["attempt"], again.ctx["max_attempts"]) == (1, 2)
    again.raises("second")
    failure = engine.failed(call.run_id)
    assert (failure["name"], failure["message"]) == ("ValueError", "second")
    assert "Traceback" in failure["stack"]


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_that_forbids_retries_fails_the_run(script: ScriptedApp, engine: Engine, status: int) -> None:
    call = script.function().first_call()
    call.raises("for good", status=status, x_inngest_no_retry="true")
    assert engine.failed(call.run_id)["message"] == "for good"


def test_attempts_restart_at_zero_after_a_finished_step(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().raises("once", retry_after="1")
    call = fn.next_call()
    assert call.ctx["attempt"] == 1
    call.reports(wire.ran("a"))
    assert fn.next_call().ctx["attempt"] == 0


def _retry_after(kind: str, delay: dt.timedelta) -> str:
    timestamp = dt.datetime.now(dt.UTC) + delay
    return {
        "seconds": str(int(delay.total_seconds())),
        "rfc 3339": timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "http date": email.utils.format_datetime(timestamp, usegmt=True),
    }[kind]


@pytest.mark.parametrize("kind", ["seconds", "rfc 3339", "http date"])
def test_retry_after_sets_the_time_of_the_retry(script: ScriptedApp, engine: Engine, kind: str) -> None:
    fn = script.function()
    call = fn.first_call()
    call.raises("later", retry_after=_retry_after(kind, dt.timedelta(hours=1)))
    assert _due_in(engine, call.run_id) == pytest.approx(3600, abs=30)


@pytest.mark.parametrize(("asked", "given"), [("999999999", 86400), ("0", 1)])
def test_retry_after_is_clipped(script: ScriptedApp, engine: Engine, asked: str, given: float) -> None:
    fn = script.function()
    call = fn.first_call()
    started = time.monotonic()
    call.raises("later", retry_after=asked)
    if given > 10:
        assert _due_in(engine, call.run_id) == pytest.approx(given, abs=30)
    else:
        assert fn.next_call().ctx["attempt"] == 1
        assert time.monotonic() - started >= given - 0.05


def _due_in(engine: Engine, run_id: str) -> float:
    """Seconds until the run's retry."""

    def find() -> dt.datetime | None:
        jobs = engine.data(f"/v1/runs/{run_id}/jobs")
        return next((dt.datetime.fromisoformat(job["at"]) for job in jobs if job["attempt"] == 1), None)

    return (eventually(find, "a retry") - dt.datetime.now(dt.UTC)).total_seconds()


# -- malformed answers


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, b'"fine"', {"content-type": "application/json"}),
        (206, b"[]", {"content-type": "application/json"}),
        (200, b"<html>not JSON</html>", SDK_HEADERS),
        (206, b"not JSON", SDK_HEADERS),
        (206, b'{"op": "StepRun"}', SDK_HEADERS),
        (206, b"[1]", SDK_HEADERS),
        (206, b'[{"op": "StepRun", "data": 1}]', SDK_HEADERS),
        (206, b'[{"op": "Nonsense", "id": "x"}]', SDK_HEADERS),
        (201, b"   ", SDK_HEADERS),
        (201, b'{"status": "x"}', SDK_HEADERS),
        (302, b"", {"location": "http://127.0.0.1:1/"}),
        (404, b"<html>no such page</html>", {"content-type": "text/html"}),
        (503, b"", {}),
        (500, b"a proxy's words", {"content-type": "text/plain"}),
    ],
)
def test_malformed_answer_fails_the_attempt(
    script: ScriptedApp, engine: Engine, status: int, body: bytes, headers: dict[str, str]
) -> None:
    call = script.function(retries=0).first_call()
    call.answer(status, body, headers)
    failure = engine.failed(call.run_id)
    assert failure["message"]


def test_an_answer_that_is_not_from_an_app_is_retried(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().answer(200, b'"from a proxy"', {"content-type": "application/json"})
    assert fn.next_call().ctx["attempt"] == 1


def test_a_call_that_breaks_off_uses_up_an_attempt(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().breaks_off()
    assert fn.next_call().ctx["attempt"] == 1


def test_call_that_never_reached_the_app_fails_no_attempt(engine: Engine) -> None:
    port = free_port()
    with serving_scripted_app(engine, port) as app:
        fn = app.function()
    fn.trigger()
    with serving_scripted_app(engine, port, app.calls):
        assert fn.next_call().ctx["attempt"] == 0


def test_an_app_at_the_port_of_a_closed_one_gets_its_own_calls(engine: Engine) -> None:
    with serving_scripted_app(engine) as closed:
        closed.function().first_call().returns(None)
    port = urlsplit(closed.url).port
    assert port is not None
    with serving_scripted_app(engine, port) as app:
        call = app.function().first_call()
        call.returns("done")
        assert engine.completed(call.run_id) == "done"
