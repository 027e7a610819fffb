"""What the official Go SDK (0.16) sends and expects, on an engine. A test machine need not have Go.

Its types are strict: a call whose fields have other types, or no UUID as ``fn_id``, is refused. It writes each field of
an op, also null ones, and a failed step's memo must have the ``data`` of its error.
"""

import json
import uuid
from typing import Any

import msgspec

from .. import wire
from .engine_under_test import Engine
from .scripted_app import Call, ScriptedApp

HEADERS = {"x-inngest-sdk": "go:v0.16.0", "x-inngest-req-version": "1", "content-type": "application/json"}


class Stack(msgspec.Struct):
    current: int
    stack: list[str]


class CallContext(msgspec.Struct):
    """The context of a call, with the types of the SDK."""

    fn_id: uuid.UUID
    run_id: str
    step_id: str
    stack: Stack
    attempt: int
    qi_id: str
    max_attempts: int | None
    disable_immediate_execution: bool
    env: str = ""


class Request(msgspec.Struct):
    ctx: CallContext
    event: dict[str, Any]
    events: list[dict[str, Any]]
    steps: dict[str, Any]
    use_api: bool


def op(kind: str, step_id: str, **fields: Any) -> wire.Op:
    """An op with all fields that the SDK writes."""
    written = {"opts": None, "data": None, "error": None, "displayName": None, "timing": {"a": 1_700_000_000, "b": 5}}
    known = {"op": kind, "id": wire.step_hash(step_id), "name": step_id, "userland": {"id": step_id}}
    return {**known, **written, **fields}


def answer(call: Call, status: int, body: Any, **headers: str) -> Request:
    call.answer(status, json.dumps(body).encode() + b"\n", HEADERS | headers)
    return msgspec.json.decode(call.raw, type=Request)


def test_a_function_of_the_go_sdk_runs_to_its_end(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function(retries=1)
    call = fn.first_call({"n": 1})
    first = answer(call, 206, [op("StepRun", "a", data={"n": 2})])
    assert first.ctx.run_id == call.run_id
    call = fn.next_call()
    second = answer(call, 206, [op("Sleep", "nap", opts={"duration": "1s"})])
    assert second.ctx.fn_id == first.ctx.fn_id
    assert second.steps == {wire.step_hash("a"): {"data": {"n": 2}}}
    assert second.ctx.stack.stack == [wire.step_hash("a")]
    error = {"name": "Step failed", "message": "no stock", "data": {"left": 3}}
    answer(fn.next_call(), 206, [op("StepFailed", "b", error=error)], **{"x-inngest-no-retry": "true"})
    last = answer(fn.next_call(), 200, {"done": True})
    assert last.steps[wire.step_hash("nap")] is None
    assert error.items() <= last.steps[wire.step_hash("b")]["error"].items()
    assert engine.completed(call.run_id) == {"done": True}


def test_an_error_of_the_go_sdk_is_retried_unless_it_says_no(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function(retries=3)
    answer(fn.first_call(), 500, {"message": "not yet"})
    call = fn.next_call()
    again = answer(call, 500, {"message": "never"}, **{"x-inngest-no-retry": "true"})
    assert (again.ctx.attempt, again.ctx.max_attempts) == (1, 4)
    assert engine.failed(call.run_id)["message"] == "never"


def test_a_sync_of_the_go_sdk_is_accepted(script: ScriptedApp, engine: Engine) -> None:
    """It has the version 1, names its platform in ``headers``, and writes ``Singleton`` with a capital letter."""
    url = "http://127.0.0.1:9/api/inngest?fnId=go-shop-buy&step=step"
    step = {"id": "step", "name": "buy", "retries": {"attempts": 2}, "runtime": {"type": "http", "url": url}}
    function = {
        "id": "go-shop-buy",
        "name": "buy",
        "triggers": [{"event": f"{script.id}/go"}],
        "retries": 2,
        "Singleton": None,
        "steps": {"step": step},
    }
    payload = {
        "url": "http://127.0.0.1:9/api/inngest",
        "v": "1",
        "deployType": "ping",
        "sdk": "go:v0.16.0",
        "framework": "",
        "appName": "go-shop",
        "appVersion": "",
        "headers": {"env": "", "platform": ""},
        "capabilities": {"in_band_sync": "v1", "trust_probe": "v1", "connect": "v1"},
        "functions": [function],
    }
    accepted = engine.register(payload)
    assert accepted.status == 200, accepted.body
    (found,) = engine.data("/v1/apps/go-shop/functions")
    assert (found["id"], found["config"]["triggers"][0]["event"]) == ("go-shop-buy", f"{script.id}/go")
