"""Steps: what an engine memoises of each op, in the spellings that official SDKs send, and what it calls then."""

import datetime as dt
import json
import time
from typing import Any

import pytest

from .. import wire
from ..wire import step_hash
from .engine_under_test import Engine
from .scripted_app import Call, Function, ScriptedApp


def next_memo(fn: Function, call: Call, op: wire.Op, **headers: str) -> Any:
    """Report the op; the memo that the next call brings for it."""
    call.reports(op, **headers)
    after = fn.next_call()
    after.returns(None)
    assert after.target == "step"
    assert after.stack == [op["id"]]
    return after.steps[op["id"]]


@pytest.mark.parametrize("kind", ["StepRun", "Step"])
@pytest.mark.parametrize("data", [None, 1, {"data": 2}, [{"error": "no"}], "text"])
def test_a_finished_step_is_memoised_with_its_data(script: ScriptedApp, kind: str, data: object) -> None:
    fn = script.function()
    assert next_memo(fn, fn.first_call(), wire.op(kind, "a", data=data)) == {"data": data}


def test_ops_as_the_javascript_sdk_writes_them(script: ScriptedApp) -> None:
    fn = script.function()
    op = {
        "id": step_hash("a"),
        "op": "StepRun",
        "name": "a",
        "displayName": "A",
        "mode": "sync",
        "opts": {"input": [1], "type": "step.ai.wrap"},
        "data": {"x": 1},
        "userland": {"id": "a"},
        "rawArgs": [],
        "timing": {"a": 1, "b": 2},
    }
    assert next_memo(fn, fn.first_call(), op) == {"data": {"x": 1}}


def test_ops_as_the_python_sdk_writes_them(script: ScriptedApp) -> None:
    fn = script.function()
    op = {"id": step_hash("a"), "displayName": "a", "name": "a", "op": "StepRun", "opts": None, "data": {"x": 1}}
    assert next_memo(fn, fn.first_call(), op | {"userland": {"id": "a", "index": None}}) == {"data": {"x": 1}}


def test_a_step_run_without_data_returned_nothing(script: ScriptedApp) -> None:
    fn = script.function()
    assert next_memo(fn, fn.first_call(), wire.op("StepRun", "a")) == {"data": None}


def test_memos_come_in_the_order_in_which_they_were_made(script: ScriptedApp) -> None:
    fn = script.function()
    call = fn.first_call()
    ids = ["z", "m", "a"]
    for step_id in ids:
        call.reports(wire.ran(step_id, step_id))
        call = fn.next_call()
    assert call.stack == [step_hash(step_id) for step_id in ids]
    assert call.ctx["stack"]["current"] == 3
    assert call.steps == {step_hash(step_id): {"data": step_id} for step_id in ids}
    call.returns(None)


def test_several_finished_steps_of_one_answer_are_all_memoised(script: ScriptedApp) -> None:
    """As apps answer that keep several steps until they hand them over."""
    fn = script.function()
    fn.first_call().reports(wire.ran("a", 1), wire.ran("b", 2))
    call = fn.next_call()
    assert call.steps == {step_hash("a"): {"data": 1}, step_hash("b"): {"data": 2}}
    call.returns(None)


def test_a_step_that_is_reported_again_keeps_its_first_memo(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    fn.first_call().reports(wire.ran("a", 1))
    fn.next_call().reports(wire.ran("a", 2), wire.ran("b", 3))
    call = fn.next_call()
    assert call.steps == {step_hash("a"): {"data": 1}, step_hash("b"): {"data": 3}}
    call.returns(None)


# -- steps that fail


def test_a_step_error_is_retried(script: ScriptedApp) -> None:
    fn = script.function(retries=1)
    fn.first_call().reports(wire.errored("a", "first"))
    call = fn.next_call()
    assert (call.ctx["attempt"], call.steps) == (1, {})
    assert next_memo(fn, call, wire.ran("a", "second time")) == {"data": "second time"}


def test_on_the_last_attempt_a_step_error_becomes_the_memo(script: ScriptedApp) -> None:
    fn = script.function(retries=0)
    memo = next_memo(fn, fn.first_call(), wire.errored("a", "last"))
    assert memo["error"]["message"] == "last"
    assert memo["error"]["name"] == "ValueError"
    assert "Traceback" in memo["error"]["stack"]


def test_a_step_that_failed_for_good_is_not_retried(script: ScriptedApp) -> None:
    fn = script.function()
    memo = next_memo(fn, fn.first_call(), wire.errored("a", "for good", "StepFailed"))
    assert memo["error"]["message"] == "for good"


def test_a_step_error_that_forbids_retries_is_final(script: ScriptedApp) -> None:
    """As the Python SDK answers for a step inside a step."""
    fn = script.function()
    memo = next_memo(fn, fn.first_call(), wire.errored("a", "for good"), x_inngest_no_retry="true")
    assert memo["error"]["message"] == "for good"


def test_the_javascript_sdks_errors_keep_their_cause(script: ScriptedApp) -> None:
    fn = script.function()
    raised = {"__serialized": True, "name": "TypeError", "message": "outer", "stack": "TypeError: outer\n  at x"}
    op = wire.op("StepFailed", "a", error=raised | {"cause": {"name": "Error", "message": "inner"}}, data=None)
    memo = next_memo(fn, fn.first_call(), op)
    assert (memo["error"]["name"], memo["error"]["message"]) == ("TypeError", "outer")
    assert memo["error"]["cause"]["message"] == "inner"


def test_retry_after_holds_for_steps_too(script: ScriptedApp) -> None:
    fn = script.function()
    started = time.monotonic()
    fn.first_call().reports(wire.errored("a", "soon"), retry_after="2")
    call = fn.next_call()
    assert 1.9 <= time.monotonic() - started < 30
    assert call.ctx["attempt"] == 1
    call.returns(None)


def test_a_step_that_was_not_found_fails_the_run(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function(retries=0)
    call = fn.first_call()
    call.reports(wire.planned("a"), wire.planned("b"))
    for targeted in fn.next_calls("a", "b"):
        targeted.reports({"op": "StepNotFound", "id": targeted.target, "name": "a", "displayName": "a"})
    assert engine.failed(call.run_id)["message"]


def test_an_error_that_says_the_step_was_not_found_fails_the_run(script: ScriptedApp, engine: Engine) -> None:
    """The answer of SDKs instead of the op ``StepNotFound``."""
    fn = script.function(retries=0)
    call = fn.first_call()
    call.reports(wire.planned("a"), wire.planned("b"))
    error = json.dumps({"name": "StepUnexpectedError", "code": "step_unexpected", "message": "gone"}).encode()
    for targeted in fn.next_calls("a", "b"):
        targeted.answer(500, error)
    assert engine.failed(call.run_id)["message"]


# -- sleeps


def _in(seconds: float) -> str:
    timestamp = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize(
    "spell",
    [
        lambda: {"opts": {"duration": "1s"}},
        lambda: {"opts": {"duration": _in(1)}},
        lambda: {"name": "1s", "opts": None},
        lambda: {"name": "1000ms"},
        lambda: {"name": _in(1)},
    ],
    ids=["opts", "opts, date", "name, nulls", "name, ms", "name, date"],
)
def test_a_sleep_takes_its_time_and_has_null_for_a_memo(script: ScriptedApp, spell: Any) -> None:
    fn = script.function()
    call = fn.first_call()
    started = time.monotonic()
    assert next_memo(fn, call, wire.op("Sleep", "nap", **spell())) is None
    assert 0.9 <= time.monotonic() - started < 30


def test_a_sleep_that_is_over_already_ends_at_once(script: ScriptedApp) -> None:
    fn = script.function()
    assert next_memo(fn, fn.first_call(), wire.op("Sleep", "nap", name=_in(-60))) is None


def test_a_sleep_without_a_duration_ends_at_once(script: ScriptedApp) -> None:
    fn = script.function()
    assert next_memo(fn, fn.first_call(), wire.op("Sleep", "nap", name="")) is None


@pytest.mark.parametrize("duration", ["soon", "-1s"])
def test_a_sleep_of_no_duration_is_an_error_that_names_the_step(
    script: ScriptedApp, engine: Engine, duration: str
) -> None:
    call = script.function(retries=0).first_call()
    call.reports(wire.op("Sleep", "nap", name=duration, opts={"duration": duration}))
    assert "nap" in engine.failed(call.run_id)["message"]


# -- parallel steps


def test_planned_steps_are_called_each_and_discovery_follows_once_all_have_ended(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().reports(wire.planned("a"), wire.planned("b"))
    first, second = fn.next_calls("a", "b")
    assert first.ctx["step_id"] == first.target
    assert first.ctx["disable_immediate_execution"] is True
    second.reports(wire.ran("b", "B"))
    first.reports(wire.ran("a", "A"))
    call = fn.next_call()
    assert call.target == "step"
    assert sorted(call.stack) == sorted([step_hash("a"), step_hash("b")])
    assert call.steps == {step_hash("a"): {"data": "A"}, step_hash("b"): {"data": "B"}}
    assert not fn.has_call
    call.returns(None)


def test_racing_steps_are_followed_by_discovery_each(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    fn.first_call().reports(wire.planned("a", race=True), wire.planned("b", race=True))
    first, second = fn.next_calls("a", "b")
    first.reports(wire.ran("a", "A"))
    call = fn.next_call()
    assert (call.target, call.steps) == ("step", {step_hash("a"): {"data": "A"}})
    call.returns("a won")
    assert engine.completed(call.run_id) == "a won"
    second.reports(wire.ran("b", "B"))


def test_a_racing_branch_advances_while_the_other_step_is_under_way(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    fn.first_call().reports(wire.planned("a1", race=True), wire.planned("b1", race=True))
    a1, b1 = fn.next_calls("a1", "b1")
    a1.reports(wire.ran("a1"))
    fn.next_call().reports(wire.planned("a2", race=True), wire.planned("b1", race=True))
    (a2,) = fn.next_calls("a2")
    a2.reports(wire.ran("a2"))
    discovery = fn.next_call()
    assert discovery.stack == [step_hash("a1"), step_hash("a2")]
    discovery.reports(wire.planned("b1", race=True))
    b1.reports(wire.ran("b1"))
    last = fn.next_call()
    assert last.stack == [step_hash("a1"), step_hash("a2"), step_hash("b1")]
    last.returns("done")
    assert engine.completed(last.run_id) == "done"


def test_a_race_that_is_over_holds_up_no_later_step(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    race = {"parallelMode": "race"}
    fn.first_call().reports(
        wire.planned("a", race=True),
        wire.op("Sleep", "nap", opts=race | {"duration": "1h"}),
        wire.planned("b", race=True),
    )
    a, b = fn.next_calls("a", "b")
    a.reports(wire.ran("a"))
    fn.next_call().reports(wire.planned("later"))
    (later,) = fn.next_calls("later")
    later.reports(wire.ran("later"))
    call = fn.next_call()
    assert call.stack == [step_hash("a"), step_hash("later")]
    call.returns("done")
    assert engine.completed(call.run_id) == "done"
    b.reports(wire.ran("b"))


def test_a_step_found_alone_after_parallel_ones_is_planned_and_called(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    fn.first_call().reports(wire.planned("a"), wire.planned("b"))
    for targeted, step_id in zip(fn.next_calls("a", "b"), "ab", strict=True):
        targeted.reports(wire.ran(step_id))
    fn.next_call().reports(wire.planned("c"))
    (targeted,) = fn.next_calls("c")
    targeted.reports(wire.ran("c"))
    call = fn.next_call()
    assert call.stack[-1] == step_hash("c")
    call.returns("done")
    assert engine.completed(call.run_id) == "done"


def test_a_targeted_step_is_retried_by_itself(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().reports(wire.planned("a"), wire.planned("b"))
    first, second = fn.next_calls("a", "b")
    first.reports(wire.errored("a", "once"))
    second.reports(wire.ran("b"))
    (again,) = fn.next_calls("a")
    assert again.ctx["attempt"] == 1
    again.reports(wire.ran("a"))
    call = fn.next_call()
    assert call.target == "step"
    assert call.stack == [step_hash("b"), step_hash("a")]
    call.returns(None)


def test_steps_of_different_kinds_run_at_the_same_time(script: ScriptedApp) -> None:
    fn = script.function()
    nap = wire.op("Sleep", "nap", opts={"duration": "1s"})
    fn.first_call().reports(wire.planned("a"), nap)
    (targeted,) = fn.next_calls("a")
    targeted.reports(wire.ran("a", 1))
    call = fn.next_call()
    assert call.steps == {step_hash("a"): {"data": 1}, step_hash("nap"): None}
    assert call.stack == [step_hash("a"), step_hash("nap")]
    call.returns(None)


def test_discovery_when_asked_for(script: ScriptedApp) -> None:
    fn = script.function()
    fn.first_call().reports({"op": "DiscoveryRequest", "id": step_hash("discover"), "name": "x", "displayName": "x"})
    call = fn.next_call()
    assert (call.target, call.steps) == ("step", {})
    call.returns(None)
