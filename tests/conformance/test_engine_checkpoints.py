"""Checkpoints: steps that a call hands over while it continues."""

from typing import Any

import pytest

from .. import wire
from ..wire import step_hash
from .client import Answer
from .engine_under_test import Engine
from .scripted_app import Call, ScriptedApp


def checkpoint(engine: Engine, call: Call, *ops: wire.Op, **changes: Any) -> Answer:
    """As the JavaScript SDK hands steps over: with all that the call said of itself."""
    ctx = call.ctx
    body = {
        "run_id": ctx["run_id"],
        "fn_id": ctx["fn_id"],
        "qi_id": ctx["qi_id"],
        "request_id": ctx["request_id"],
        "generation_id": ctx["generation_id"],
        "request_started_at": 1_700_000_000_000,
        "ts": 1_700_000_000_000,
        "steps": list(ops),
    }
    return engine.api("POST", f"/v1/checkpoint/{ctx['run_id']}/async", body | changes)


def test_steps_are_stored_while_the_call_continues(script: ScriptedApp, engine: Engine) -> None:
    call = script.function().first_call()
    assert checkpoint(engine, call, wire.ran("a", 1)).status == 200
    assert checkpoint(engine, call, wire.ran("b", 2), wire.ran("c", 3)).status == 200
    stored = engine.api("GET", f"/v0/runs/{call.run_id}/actions").json
    assert stored == {step_hash(step_id): {"data": n} for step_id, n in (("a", 1), ("b", 2), ("c", 3))}
    call.reports(wire.op("RunComplete", "complete", data="done"))
    assert engine.completed(call.run_id) == "done"


def test_broken_call_continues_after_its_checkpoint(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    call = fn.first_call()
    assert checkpoint(engine, call, wire.ran("a", 1)).status == 200
    call.breaks_off()
    again = fn.next_call()
    assert again.steps == {step_hash("a"): {"data": 1}}
    assert again.ctx["generation_id"] > call.ctx["generation_id"]
    again.returns(None)


def test_attempts_restart_at_zero_after_a_checkpoint(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function(retries=1)
    fn.first_call().raises("first attempt")
    call = fn.next_call()
    assert call.ctx["attempt"] == 1
    assert checkpoint(engine, call, wire.ran("a", 1)).status == 200
    call.raises("of the next step, a first attempt")
    again = fn.next_call()
    assert again.ctx["attempt"] in (0, 1)
    again.returns("done")
    assert engine.completed(call.run_id) == "done"


def test_handing_over_twice_changes_nothing(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    call = fn.first_call()
    for data in (1, 2):
        assert checkpoint(engine, call, wire.ran("a", data)).status == 200
    call.reports(wire.ran("a", 3), wire.ran("b", 4))
    after = fn.next_call()
    assert after.steps == {step_hash("a"): {"data": 1}, step_hash("b"): {"data": 4}}
    after.returns(None)


def test_checkpoint_of_a_stale_call_is_409(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    stale = fn.first_call()
    stale.breaks_off()
    call = fn.next_call()
    assert checkpoint(engine, stale, wire.ran("a", "stale")).status == 409
    assert checkpoint(engine, call, wire.ran("a", "fresh")).status == 200
    call.returns("done")
    assert engine.completed(call.run_id) == "done"
    assert checkpoint(engine, call, wire.ran("b", 1)).status == 409
    assert engine.api("GET", f"/v0/runs/{call.run_id}/actions").json == {step_hash("a"): {"data": "fresh"}}


def test_checkpoint_of_a_cancelled_run_is_409(script: ScriptedApp, engine: Engine) -> None:
    call = script.function().first_call()
    engine.api("DELETE", f"/v1/runs/{call.run_id}")
    assert checkpoint(engine, call, wire.ran("a", 1)).status == 409
    call.returns(None)


def test_too_large_checkpoint_is_refused(script: ScriptedApp, engine: Engine) -> None:
    call = script.function().first_call()
    assert checkpoint(engine, call, wire.ran("a", "x" * (4 * 1024 * 1024 + 1))).status == 413
    call.returns("done")
    assert engine.completed(call.run_id) == "done"


@pytest.mark.parametrize(
    "op",
    [
        wire.op("Sleep", "nap", opts={"duration": "1s"}),
        wire.op("InvokeFunction", "call", opts={"function_id": "x", "payload": {}}),
        wire.op("WaitForEvent", "wait", opts={"event": "x", "timeout": "1s"}),
    ],
    ids=lambda op: op["op"],
)
def test_ops_that_need_a_decision_do_not_belong_into_checkpoints(
    script: ScriptedApp, engine: Engine, op: wire.Op
) -> None:
    call = script.function().first_call()
    assert checkpoint(engine, call, wire.ran("a", 1), op).status == 400
    assert engine.api("GET", f"/v0/runs/{call.run_id}/actions").json == {}
    call.returns("done")
    assert engine.completed(call.run_id) == "done"


def test_a_planned_step_may_be_announced(script: ScriptedApp, engine: Engine) -> None:
    call = script.function().first_call()
    assert checkpoint(engine, call, wire.planned("a")).status == 200
    assert checkpoint(engine, call, wire.ran("a", 1)).status == 200
    call.returns("done")
    assert engine.completed(call.run_id) == "done"


def test_a_checkpoint_of_no_run_is_refused(engine: Engine) -> None:
    unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    body = {"run_id": unknown, "qi_id": f"{unknown}.1", "generation_id": 1, "steps": [wire.ran("a", 1)]}
    assert engine.api("POST", f"/v1/checkpoint/{unknown}/async", body).status in (404, 409)
