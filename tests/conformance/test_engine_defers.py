"""Deferred functions: stored while a run is under way, started when it has ended with any status."""

from collections.abc import Iterator

import pytest

from .. import wire
from .engine_under_test import Engine
from .scripted_app import Function, ScriptedApp


def deferred(step_id: str, function: Function, data: dict[str, object] | None = None) -> wire.Op:
    return wire.op("DeferAdd", step_id, opts={"fn_slug": function.id, "input": data or {}}, data=None)


def aborted(step_id: str, function: Function) -> wire.Op:
    opts = {"target_hashed_id": wire.step_hash(step_id), "fn_slug": function.id, "id": step_id}
    return wire.op("DeferAbort", f"{wire.step_hash(step_id)}:abort", opts=opts, data=None)


@pytest.fixture
def later(script: ScriptedApp) -> Iterator[Function]:
    """A function that is started only by defers."""
    expression = f"event.data._inngest.fn_slug == '{script.id}-later'"
    function = script.function("later", triggers=[{"event": "inngest/deferred.schedule", "expression": expression}])
    yield function
    function.forget_calls()


def test_a_deferred_function_starts_once_the_run_has_ended(
    script: ScriptedApp, engine: Engine, later: Function
) -> None:
    fn = script.function(retries=0)
    call = fn.first_call()
    assert not call.body.get("defers")
    call.reports(deferred("mail", later, {"to": "ann"}), wire.ran("a", 1))
    call = fn.next_call()
    assert call.body["defers"] == {wire.step_hash("mail"): {"abortable": True}}
    assert call.steps == {wire.step_hash("a"): {"data": 1}}
    assert not later.has_call
    call.returns("done")
    assert engine.completed(call.run_id) == "done"
    started = later.next_call()
    assert started.body["event"]["name"] == "inngest/deferred.schedule"
    data = started.body["event"]["data"]
    assert data["to"] == "ann"
    parent = {"fn_slug": later.id, "parent_fn_slug": fn.id, "parent_run_id": call.run_id}
    assert parent.items() <= data["_inngest"].items()
    started.returns(None)


def test_an_aborted_one_does_not_start_and_others_do(script: ScriptedApp, engine: Engine, later: Function) -> None:
    fn = script.function()
    fn.first_call().reports(deferred("one", later, {"n": 1}), deferred("two", later, {"n": 2}), wire.ran("a", 1))
    fn.next_call().reports(wire.ran("b", 2), aborted("one", later))
    call = fn.next_call()
    assert call.body["defers"][wire.step_hash("one")] == {"abortable": False}
    call.reports(deferred("three", later, {"n": 3}), {"op": "RunComplete", "id": "", "data": None})
    assert engine.completed(call.run_id) is None
    started = [later.next_call() for _ in range(2)]
    assert sorted(one.body["event"]["data"]["n"] for one in started) == [2, 3]
    for one in started:
        one.returns(None)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_they_start_after_a_run_that_did_not_complete(
    script: ScriptedApp, engine: Engine, later: Function, end: str
) -> None:
    fn = script.function(retries=0)
    fn.first_call().reports(deferred("mail", later), wire.ran("a", 1))
    call = fn.next_call()
    if end == "failed":
        call.raises("broken")
    else:
        engine.api("DELETE", f"/v1/runs/{call.run_id}")
        call.breaks_off()
    later.next_call().returns(None)


def test_invalid_defer_does_not_fail_the_run(script: ScriptedApp, engine: Engine, later: Function) -> None:
    fn = script.function(retries=0)
    call = fn.first_call()
    call.reports(wire.op("DeferAdd", "bad", opts={"input": {}}, data=None), wire.ran("a", 1))
    call = fn.next_call()
    call.returns("done")
    assert engine.completed(call.run_id) == "done"


@pytest.mark.parametrize("op", ["StepFailed", "StepError"])
def test_a_function_that_defers_and_raises_reports_its_error_as_an_op(
    script: ScriptedApp, engine: Engine, later: Function, op: str
) -> None:
    fn = script.function(retries=0)
    call = fn.first_call()
    error = {"name": "TypeError", "message": "broken"}
    call.reports(deferred("mail", later), {"op": op, "id": wire.step_hash("complete"), "error": error})
    later.next_call().returns(None)
    assert engine.failed(call.run_id)["message"] == "broken"
