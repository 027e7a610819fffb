"""An engine that is killed in the middle: nothing it acknowledged is lost, and nothing that is memoised runs again."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from .. import wire
from ..waiting import eventually
from ..wire import step_hash
from .engines import RestartableEngine
from .scripted_app import serving_scripted_app
from .test_engine_checkpoints import checkpoint
from .test_engine_waits import invoke_op, signal_op, wait_op, waiting

Start = Callable[[], AbstractContextManager[RestartableEngine]]


def test_runs_continue_after_a_kill(restartable: Start) -> None:
    """A run in each of the ways in which runs wait, calls in flight, and an event that nothing was made of yet."""
    with restartable() as (engine, process), serving_scripted_app(engine) as app:
        names = ("fresh", "in-flight", "parallel", "sleeping", "waiting", "signal", "parent", "retrying")
        fn = {name: app.function(name) for name in (*names, "child")}
        calls = {name: fn[name].first_call({"n": 1}) for name in names if name != "fresh"}
        assert checkpoint(engine, calls["in-flight"], wire.ran("a", "committed")).status == 200
        calls["parallel"].reports(wire.planned("a"), wire.planned("b"))
        first, _second = fn["parallel"].next_calls("a", "b")
        first.reports(wire.ran("a", 1))
        calls["sleeping"].reports(wire.op("Sleep", "nap", opts={"duration": "8s"}))
        waiting(engine, calls["sleeping"].run_id)
        calls["waiting"].reports(wait_op(f"{app.id}/answer", "1h", if_exp="event.data.n == async.data.n"))
        calls["signal"].reports(signal_op(f"{app.id}-go", "1h"))
        calls["parent"].reports(invoke_op(fn["child"].id, {"n": 2}))
        child = fn["child"].next_call()
        calls["retrying"].raises("once")
        for name in ("waiting", "signal", "parent"):
            waiting(engine, calls[name].run_id)
        run = calls["retrying"].run_id
        eventually(lambda: _retry_of(engine.data(f"/v1/runs/{run}/jobs")), "the retry to be stored")
        parallel = calls["parallel"].run_id
        eventually(
            lambda: engine.api("GET", f"/v0/runs/{parallel}/actions").json or None, "the parallel step to be stored"
        )
        fn["fresh"].trigger()
        process.kill()
        process.wait()
        app.close()
        fn["fresh"].forget_calls()

        with restartable():
            engine.send(wire.event(f"{app.id}/answer", {"n": 2}), wire.event(f"{app.id}/answer", {"n": 1}))
            engine.api("POST", "/v1/signals", {"signal": f"{app.id}-go", "data": "go"})

            fresh = fn["fresh"].next_call()
            again = fn["in-flight"].next_call()
            assert again.steps == {step_hash("a"): {"data": "committed"}}
            assert again.ctx["generation_id"] > calls["in-flight"].ctx["generation_id"]
            assert checkpoint(engine, calls["in-flight"], wire.ran("b", "stale")).status == 409
            (second,) = fn["parallel"].next_calls("b")
            second.reports(wire.ran("b", 2))
            both = fn["parallel"].next_call()
            assert both.steps == {step_hash("a"): {"data": 1}, step_hash("b"): {"data": 2}}
            rested = fn["sleeping"].next_call()
            assert rested.steps == {step_hash("nap"): None}
            woken = fn["waiting"].next_call()
            assert woken.steps[step_hash("wait")]["data"] == {"n": 1}
            signalled = fn["signal"].next_call()
            assert signalled.steps[step_hash("signal")]["data"]["data"] == "go"
            invoked = fn["child"].next_call()
            assert invoked.run_id == child.run_id
            invoked.returns("from the child")
            parent = fn["parent"].next_call()
            assert parent.steps == {step_hash("call"): {"data": "from the child"}}
            retried = fn["retrying"].next_call()
            assert retried.ctx["attempt"] == 1

            last = {
                "fresh": fresh,
                "in-flight": again,
                "parallel": both,
                "sleeping": rested,
                "waiting": woken,
                "signal": signalled,
                "parent": parent,
                "retrying": retried,
            }
            for name, call in last.items():
                call.returns(name)
            for name, call in last.items():
                assert engine.completed(call.run_id) == name
                if name in calls:
                    assert call.run_id == calls[name].run_id


def _retry_of(jobs: list[dict[str, object]]) -> bool | None:
    return True if any(job["attempt"] == 1 for job in jobs) else None


@pytest.mark.slow
def test_a_sleep_that_ended_while_the_engine_was_down_ends_at_its_start(restartable: Start) -> None:
    with restartable() as (engine, process), serving_scripted_app(engine) as app:
        fn = app.function()
        call = fn.first_call()
        started = time.monotonic()
        call.reports(wire.op("Sleep", "nap", opts={"duration": "4s"}))
        waiting(engine, call.run_id)
        process.kill()
        process.wait()
        eventually(lambda: True if time.monotonic() - started > 4.1 else None, "the sleep's end")
        with restartable():
            fn.next_call().returns("rested")
            assert engine.completed(call.run_id) == "rested"
