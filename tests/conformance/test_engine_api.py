"""The API: syncing, runs and their state, and calls that carry too much to be made whole."""

from typing import Any

import pytest

from .. import wire
from ..waiting import eventually
from ..wire import step_hash
from .engine_under_test import NO_EVENT_LOG, Engine
from .scripted_app import ScriptedApp

MEGABYTE = 1024 * 1024
LARGE = 1_400_000
"""A size that each engine takes as a step's output. Three of them are more than a call has."""


def test_health_and_dev_are_answered(engine: Engine) -> None:
    assert engine.api("GET", "/health").status == 200
    dev = engine.api("GET", "/dev")
    assert dev.status == 200
    assert isinstance(dev.json, dict)


# -- syncing


def test_a_sync_says_whether_it_changed_anything(script: ScriptedApp, engine: Engine) -> None:
    script.function()
    first = engine.register(script.payload())
    assert (first.status, first.json["ok"], first.json["modified"]) == (200, True, False)
    payload = script.payload()
    payload["functions"][0]["name"] = "Renamed"
    assert engine.register(payload).json["modified"] is True
    functions = engine.data(f"/v1/apps/{script.id}/functions")
    assert [function["name"] for function in functions] == ["Renamed"]


def test_a_payload_as_the_python_sdk_writes_it(script: ScriptedApp, engine: Engine) -> None:
    """Nulls for all that is not set, and names of its own."""
    fn = script.function()
    payload = script.payload()
    payload |= {"appname": payload.pop("appName"), "deploy_type": payload.pop("deployType"), "app_version": None}
    payload["capabilities"] = {"in_band_sync": "v1", "trust_probe": "v1", "connect": "v1"}
    unset = ("batchEvents", "cancel", "concurrency", "debounce", "idempotency", "priority", "rateLimit", "throttle")
    (function,) = payload["functions"]
    function |= dict.fromkeys((*unset, "timeouts", "singleton"))
    function["steps"]["step"]["retries"] = None
    function["triggers"] = [{"event": fn.event, "expression": None}]
    assert engine.register(payload).status == 200
    call = fn.first_call()
    assert call.ctx["max_attempts"] == 5
    call.returns(None)


@pytest.mark.parametrize(
    "scope",
    [
        "fn",
        pytest.param(
            "env",
            marks=pytest.mark.differs(
                temporal="it refuses a limit that functions share with another one (docs/reference/"
                "options-on-temporal.md)"
            ),
        ),
    ],
)
def test_every_option_is_accepted(script: ScriptedApp, scope: str) -> None:
    fn = script.function(
        retries=20,
        idempotency="event.data.id",
        concurrency=[{"limit": 5, "key": "event.data.user", "scope": scope}, {"limit": 100}],
        rateLimit={"limit": 100, "period": "1h", "key": "event.data.user"},
        throttle={"limit": 100, "period": "1m", "burst": 10},
        priority={"run": "event.data.vip ? 60 : 0"},
        timeouts={"start": "1h", "finish": "1d"},
        cancel=[{"event": "never", "if": "event.data.id == async.data.id", "timeout": "1d"}],
        checkpoint={"batch_steps": 1, "batch_interval": "0s", "max_runtime": "10s"},
        unknownOption={"x": 1},
    )
    call = fn.first_call({"id": script.id})
    assert call.ctx["max_attempts"] == 21
    call.returns(None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"triggers": [{"event": "a", "expression": "event.data. =="}]}, "trigger"),
        ({"triggers": [{"event": f"e{n}"} for n in range(11)]}, "trigger"),
        ({"cancel": [{"event": f"e{n}"} for n in range(6)]}, "cancel"),
        ({"cancel": [{"event": "a", "if": "async.data. =="}]}, "cancel"),
        ({"concurrency": [{"limit": n} for n in range(1, 4)]}, "concurrency"),
        ({"steps": {}}, "step"),
    ],
)
def test_a_faulty_function_is_refused_with_its_name_and_the_option(
    script: ScriptedApp, engine: Engine, change: dict[str, Any], named: str
) -> None:
    script.function("good")
    payload = script.payload()
    payload["functions"][0] |= change
    answer = engine.register(payload)
    assert answer.status == 400
    assert f"{script.id}-good" in answer.json["error"]
    assert named in answer.json["error"]


@pytest.mark.parametrize("body", [None, [], {}, {"url": "x", "functions": 1}, {"url": "x", "functions": []}])
def test_malformed_sync_is_refused(engine: Engine, body: Any) -> None:
    answer = engine.register(body if body is not None else 1)
    assert answer.status == 400
    assert answer.json["error"]


def test_a_sync_meant_for_the_other_kind_of_engine_is_refused(script: ScriptedApp, engine: Engine) -> None:
    script.function()
    headers = {"x-inngest-expected-server-kind": "cloud"}
    assert engine.api("POST", "/fn/register", script.payload(), headers).status == 400


def test_a_function_that_is_synced_no_more_is_triggered_no_more(script: ScriptedApp, engine: Engine) -> None:
    gone, stays = script.function("gone"), script.function("stays")
    payload = script.payload()
    del payload["functions"][0]
    assert engine.register(payload).json["modified"] is True
    (event_id,) = engine.send(wire.event(gone.event))
    assert engine.data(f"/v1/events/{event_id}/runs") == []
    stays.first_call().returns(None)


# -- runs


def test_a_run_is_shown_while_it_runs_and_after(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    event_id = fn.trigger()
    call = fn.next_call()
    run = engine.run(call.run_id)
    assert run["run_id"] == call.run_id
    assert run["function_id"] == fn.id
    assert run["status"] == "Running"
    assert run["event_id"] == event_id
    assert run["run_started_at"]
    assert run["ended_at"] is None
    (job,) = engine.data(f"/v1/runs/{call.run_id}/jobs")
    assert job["attempt"] == 0
    call.returns({"out": 1})
    run = engine.ended(call.run_id)
    assert (run["status"], run["output"]) == ("Completed", {"out": 1})
    assert run["ended_at"] >= run["run_started_at"]
    assert engine.data(f"/v1/runs/{call.run_id}/jobs") == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/{}",
        "/v1/runs/{}/jobs",
        "/v0/runs/{}/batch",
        "/v0/runs/{}/actions",
        pytest.param("/v1/events/{}", marks=NO_EVENT_LOG),
        pytest.param("/v1/events/{}/runs", marks=NO_EVENT_LOG),
    ],
)
def test_unknown_ids_are_404(engine: Engine, path: str) -> None:
    answer = engine.api("GET", path.format("01ARZ3NDEKTSV4RRFFQ69G5FAV"))
    assert answer.status == 404
    assert answer.json["error"]


def test_invoke_over_http_starts_a_run(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    answer = engine.api("POST", f"/invoke/{fn.id}", {"data": {"n": 1}})
    assert answer.status == 200
    call = fn.next_call()
    assert call.body["event"]["name"] == "inngest/function.invoked"
    assert call.body["event"]["data"]["n"] == 1
    call.returns(None)
    assert engine.api("POST", "/invoke/unknown", {"data": {}}).status == 404


def test_a_cancelled_run_is_not_called_any_more(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    call = fn.first_call()
    call.reports(wire.op("Sleep", "nap", opts={"duration": "1s"}))
    eventually(lambda: True if not engine.data(f"/v1/runs/{call.run_id}/jobs") else None, "the sleep")
    assert engine.api("DELETE", f"/v1/runs/{call.run_id}").status < 300
    assert engine.ended(call.run_id)["status"] == "Cancelled"
    later = fn.first_call()
    later.reports(wire.op("Sleep", "nap", opts={"duration": "1s"}))
    assert fn.next_call().run_id == later.run_id


# -- state


def test_memos_and_events_of_a_run_can_be_fetched(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    call = fn.first_call({"n": 1})
    event = call.body["event"]
    call.reports(wire.ran("a", 1))
    call = fn.next_call()
    assert engine.api("GET", f"/v0/runs/{call.run_id}/batch").json == [event]
    assert engine.api("GET", f"/v0/runs/{call.run_id}/actions").json == {step_hash("a"): {"data": 1}}
    call.returns(None)


def test_a_call_that_would_be_too_large_says_to_fetch_instead(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    call = fn.first_call()
    for n in range(3):
        assert call.body["use_api"] is False
        call.reports(wire.ran(f"s{n}", "x" * LARGE))
        call = fn.next_call()
    assert len(call.raw) < 4 * MEGABYTE
    assert call.body["use_api"] is True
    assert call.ctx["use_api"] is True
    assert call.body["event"]["name"] == fn.event
    assert not call.body["events"]
    assert not call.body["steps"]
    assert len(call.stack) == 3
    memos = engine.api("GET", f"/v0/runs/{call.run_id}/actions").json
    assert {len(memo["data"]) for memo in memos.values()} == {LARGE}
    call.returns(None)


def test_a_step_whose_output_is_too_large_is_an_error_that_names_it(script: ScriptedApp, engine: Engine) -> None:
    """Of the step, which the function may catch, or of the run."""
    fn = script.function(retries=0)
    call = fn.first_call()
    call.reports(wire.ran("huge", "x" * (4 * MEGABYTE + 1)))

    def error() -> Any:
        if fn.has_call:
            after = fn.next_call()
            after.returns(None)
            return after.steps[step_hash("huge")]["error"]
        run = engine.run(call.run_id)
        return run["output"] if run["status"] == "Failed" else None

    assert "huge" in eventually(error, "the error")["message"]
