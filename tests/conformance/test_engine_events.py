"""Events: taking them in, the runs that they trigger, and those that engines send themselves."""

import base64
import json
import time
from typing import Any

import pytest

from .. import wire
from ..waiting import eventually
from .engine_under_test import NO_EVENT_LOG, Engine
from .scripted_app import Function, ScriptedApp

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _ulid(milliseconds: int, entropy: bytes) -> str:
    number = int.from_bytes(milliseconds.to_bytes(6, "big") + entropy, "big")
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def test_one_event_and_a_list_are_answered_with_ids(script: ScriptedApp, engine: Engine) -> None:
    name = f"{script.id}/x"
    one = engine.post_events({"name": name, "data": {}}).json
    several = engine.post_events([{"name": name, "data": {"n": n}} for n in range(3)]).json
    assert one["status"] == several["status"] == 200
    assert len({*one["ids"], *several["ids"]}) == 4


@NO_EVENT_LOG
def test_events_are_listed_from_the_latest_whether_they_start_runs_or_not(script: ScriptedApp, engine: Engine) -> None:
    name = f"{script.id}/x"
    ids = engine.send(wire.event(name)) + engine.send(*(wire.event(name, {"n": n}) for n in range(3)))
    received = engine.data(f"/v1/events?name={name}")
    assert [event["internal_id"] for event in received] == list(reversed(ids))
    assert [event["data"] for event in received] == [{"n": 2}, {"n": 1}, {"n": 0}, {}]


@NO_EVENT_LOG
def test_events_that_start_runs_are_listed(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    sent = {fn.trigger({"n": n}): {"n": n} for n in range(2)}
    for _ in sent:
        fn.next_call().returns(None)

    def listed() -> bool | None:
        events = engine.data(f"/v1/events?name={fn.event}")
        return {event["internal_id"]: event["data"] for event in events} == sent or None

    eventually(listed, "the events to be listed")


@pytest.mark.parametrize(
    "fields", [{}, {"data": None}, {"data": None, "id": None, "ts": None, "user": None, "v": None}]
)
def test_only_the_name_is_required(script: ScriptedApp, fields: dict[str, Any]) -> None:
    fn = script.function()
    before = int(time.time() * 1000)
    assert script.engine.post_events({"name": fn.event} | fields).status == 200
    call = fn.next_call()
    event = call.body["event"]
    assert event["data"] == {}
    assert event["id"]
    assert before <= event["ts"] <= time.time() * 1000 + 1000
    call.returns(None)


def test_a_seed_makes_the_ids_and_sending_again_changes_nothing(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    entropy = bytes(range(10))
    milliseconds = int(time.time() * 1000)
    seed = f"{milliseconds},{base64.b64encode(entropy).decode()}"
    events = [wire.event(fn.event, {"n": n}) for n in range(2)]
    ids = engine.post_events(events, x_inngest_event_id_seed=seed).json["ids"]
    last = int.from_bytes(entropy[6:], "big")
    assert ids == [_ulid(milliseconds, entropy[:6] + (last + n).to_bytes(4, "big")) for n in range(2)]
    assert engine.post_events(events, x_inngest_event_id_seed=seed).json["ids"] == ids
    engine.send(wire.event(fn.event, {"n": "sentinel"}))
    calls = [fn.next_call() for _ in range(3)]
    assert {json.dumps(call.body["event"]["data"]["n"]) for call in calls} == {"0", "1", '"sentinel"'}
    assert not fn.has_call
    for call in calls:
        call.returns(None)


@pytest.mark.parametrize("seed", ["nonsense", "1,2,3", "x,AAAA", "1,AAAA", ",", ""])
def test_malformed_seed_is_refused_or_ignored(script: ScriptedApp, engine: Engine, seed: str) -> None:
    body = {"name": f"{script.id}/x", "data": {}}
    answers = [engine.post_events(body, x_inngest_event_id_seed=seed) for _ in range(2)]
    if answers[0].status == 400:
        assert "seed" in answers[0].json["error"]
    else:
        assert answers[0].json["ids"] != answers[1].json["ids"]


def test_an_event_of_the_same_id_triggers_once(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    event = wire.event(fn.event, {"n": 1}, id=f"{script.id}-once")
    engine.send(event)
    engine.send(event)
    engine.send(event, wire.event(fn.event, {"n": 2}))
    calls = [fn.next_call() for _ in range(2)]
    assert sorted(call.body["event"]["data"]["n"] for call in calls) == [1, 2]
    assert f"{script.id}-once" in {call.body["event"]["id"] for call in calls}
    assert not fn.has_call
    for call in calls:
        call.returns(None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"1",
        b'"text"',
        b"{}",
        b'{"name": ""}',
        b'{"name": 1}',
        b'{"name": "a", "data": []}',
        b'{"name": "a", "ts": "yesterday"}',
        b'[{"name": "a"}, {"name": ""}]',
        b'[{"name": "a"}, 1]',
        json.dumps({"name": "x" * 600}).encode(),
    ],
)
def test_malformed_event_is_refused_with_a_reason(engine: Engine, body: bytes) -> None:
    answer = engine.post_events(body)
    assert answer.status == 400
    assert answer.json["error"]
    assert answer.json["status"] == 400


def test_an_event_that_is_too_large_is_refused(script: ScriptedApp, engine: Engine) -> None:
    answer = engine.post_events(wire.event(f"{script.id}/x", {"text": "x" * 3 * 1024 * 1024}))  # no server takes more
    assert answer.status in (400, 413)
    assert answer.json["error"]


def test_too_many_events_are_refused(script: ScriptedApp, engine: Engine) -> None:
    assert engine.post_events([{"name": f"{script.id}/x"}] * 5001).status == 400


@NO_EVENT_LOG
def test_of_too_many_events_none_is_stored(script: ScriptedApp, engine: Engine) -> None:
    name = f"{script.id}/x"
    engine.post_events([{"name": name}] * 5001)
    assert engine.data(f"/v1/events?name={name}") == []


# -- triggers


def test_a_function_is_triggered_by_each_of_its_events(script: ScriptedApp, engine: Engine) -> None:
    one, two = f"{script.id}/one", f"{script.id}/two"
    fn = script.function(triggers=[{"event": one}, {"event": two}, {"cron": "0 0 1 1 *"}])
    for name in (one, two):
        engine.send(wire.event(name))
        call = fn.next_call()
        assert call.body["event"]["name"] == name
        call.returns(None)


def test_an_event_triggers_every_function_that_asks_for_it(script: ScriptedApp, engine: Engine) -> None:
    shared = [{"event": f"{script.id}/shared"}]
    first, second = script.function("first", triggers=shared), script.function("second", triggers=shared)
    (event_id,) = engine.send(wire.event(f"{script.id}/shared"))
    calls = [first.next_call(), second.next_call()]
    runs = eventually(
        lambda: engine.data(f"/v1/events/{event_id}/runs"),
        "the runs to be listed",
        is_right=lambda runs: len(runs) == 2,
    )
    assert {run["run_id"] for run in runs} == {call.run_id for call in calls}
    assert {run["function_id"] for run in runs} == {first.id, second.id}
    for call in calls:
        call.returns(None)


def test_a_triggers_expression_chooses_events(script: ScriptedApp, engine: Engine) -> None:
    event = f"{script.id}/x"
    fn = script.function(triggers=[{"event": event, "expression": "event.data.kind == 'b' && event.data.n > 1"}])
    engine.send(wire.event(event, {"kind": "a", "n": 2}), wire.event(event, {"kind": "b"}), wire.event(event))
    engine.send(wire.event(event, {"kind": "b", "n": 2}))
    call = fn.next_call()
    assert call.body["event"]["data"] == {"kind": "b", "n": 2}
    call.returns(None)
    assert not fn.has_call


def test_a_trigger_may_end_in_a_wildcard(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function(triggers=[{"event": f"{script.id}/*"}])
    engine.send(wire.event(f"{script.id}-other/x"), wire.event(f"{script.id}/deep.er"))
    call = fn.next_call()
    assert call.body["event"]["name"] == f"{script.id}/deep.er"
    call.returns(None)


# -- events that engines send


def listener(script: ScriptedApp, fn: Function, name: str) -> Function:
    """A function that starts with an event of the engine about runs of another."""
    trigger = {"event": name, "expression": f"event.data.function_id == '{fn.id}'"}
    return script.function(f"hears-{name.rpartition('.')[2]}", triggers=[trigger])


def heard(listener: Function, run_id: str) -> Any:
    """The data of the event about the run, which starts the listener."""
    call = listener.next_call()
    data = call.body["event"]["data"]
    assert data["run_id"] == run_id
    call.returns(None)
    return data


def test_a_completed_run_is_finished(script: ScriptedApp) -> None:
    fn = script.function()
    finished = listener(script, fn, "inngest/function.finished")
    call = fn.first_call({"n": 1})
    call.returns({"out": 1})
    data = heard(finished, call.run_id)
    assert data["function_id"] == fn.id
    assert data["result"] == {"out": 1}
    assert data["event"]["data"] == {"n": 1}
    assert not data.get("error")


@NO_EVENT_LOG
def test_events_of_the_engine_are_listed(script: ScriptedApp, engine: Engine) -> None:
    call = script.function().first_call()
    call.returns(None)

    def find() -> Any:
        events = engine.data("/v1/events?name=inngest/function.finished&limit=100")
        return next((event for event in events if event["data"]["run_id"] == call.run_id), None)

    eventually(find, f"the event about the end of {call.run_id}")


def test_a_failed_run_is_finished_and_failed(script: ScriptedApp) -> None:
    fn = script.function(retries=0)
    listeners = [listener(script, fn, f"inngest/function.{name}") for name in ("finished", "failed")]
    call = fn.first_call({"n": 1})
    call.raises("boom")
    for each in listeners:
        data = heard(each, call.run_id)
        assert data["function_id"] == fn.id
        assert data["event"]["data"] == {"n": 1}
        assert (data["error"]["name"], data["error"]["message"]) == ("ValueError", "boom")


def test_a_failure_handler_is_called_with_the_failure_and_the_event(script: ScriptedApp) -> None:
    fn = script.function(retries=0)
    handler = script.function(
        "fn-failure",
        triggers=[{"event": "inngest/function.failed", "expression": f"event.data.function_id == '{fn.id}'"}],
        retries=0,
    )
    failed = fn.first_call({"n": 1})
    failed.raises("boom")
    call = handler.next_call()
    data = call.body["event"]["data"]
    assert data["run_id"] == failed.run_id
    assert data["error"]["message"] == "boom"
    assert data["event"]["name"] == fn.event
    assert data["event"]["data"] == {"n": 1}
    call.raises("the handler fails too")
    assert not handler.has_call


def test_a_cancelled_run_is_finished_and_cancelled(script: ScriptedApp, engine: Engine) -> None:
    fn = script.function()
    listeners = [listener(script, fn, f"inngest/function.{name}") for name in ("finished", "cancelled")]
    call = fn.first_call({"n": 1})
    assert engine.api("DELETE", f"/v1/runs/{call.run_id}").status < 300
    assert engine.ended(call.run_id)["status"] == "Cancelled"
    for each in listeners:
        data = heard(each, call.run_id)
        assert data["function_id"] == fn.id
        assert data["event"]["data"] == {"n": 1}
    call.returns("too late")
    assert engine.run(call.run_id)["status"] == "Cancelled"
