"""Waits for events and signals, and cancelling events, on the engine on Temporal."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from temporalio.client import WorkflowFailureError

from durably.engine.model.runs import RunStatus
from durably.engine.temporal.ids import run_workflow_id, signal_workflow_id, topic_workflow_id, wait_workflow_id
from durably.engine.temporal.messages import Condition, EventRecord, MatchInput, RunInput
from durably.engine.temporal.routing.workflows import matching, wait_key

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ...small_app import Steps
from ..routed_app import PATIENCE, RoutedApp, data_of, routed_app

SAME = "event.data.n == async.data.n"
ANOTHER = f"{SAME} && async.data.ok"


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    async with routed_app(server.address) as app:
        yield app


def wait_id(app: RoutedApp, event: str, expression: str | None = None, **trigger: object) -> str:
    key = wait_key(expression, {"data": trigger})
    return wait_workflow_id(app.event(event), key.path, key.value)


async def has_left(app: RoutedApp, workflow_id: str) -> None:
    """Wait until no run waits."""
    async with asyncio.timeout(PATIENCE):
        await app.client.get_workflow_handle(workflow_id).result()


async def test_an_event_ends_the_wait_with_its_value_and_no_other(app: RoutedApp) -> None:
    @app.function("wait", event=app.event("go"))
    def wait(steps: Steps) -> object:
        return steps.wait_registered("wait", app.event("reply"), SAME)["data"]

    await app.sync()
    runs = {n: app.run_id(await app.send("go", n=n), "wait") for n in (1, 2)}
    await app.wait_for_calls(4)  # A step that is called in parallel is called after the registration.
    other = wait_id(app, "reply", SAME, n=2)
    before = await app.history_length(other), await app.history_length(topic_workflow_id(app.event("reply")))
    await app.send("reply", n=1, text="yes")
    await app.send("reply", n=3)
    assert await app.result(runs[1]) == {"n": 1, "text": "yes"}
    await has_left(app, wait_id(app, "reply", SAME, n=1))
    assert (await app.history_length(other), await app.history_length(topic_workflow_id(app.event("reply")))) == before
    await app.send("reply", n=2)
    assert await app.result(runs[2]) == {"n": 2}


async def test_wait_with_a_complex_condition_stays_until_it_matches(app: RoutedApp) -> None:
    @app.function("wait", event=app.event("go"))
    def wait(steps: Steps) -> object:
        return steps.wait_registered("wait", app.event("reply"), ANOTHER)["data"]["ok"]

    await app.sync()
    run_id = app.run_id(await app.send("go", n=1), "wait")
    await app.wait_for_calls(2)
    await app.send("reply", n=1, ok=False)
    await app.send("reply", n=1, ok=True)
    assert await app.result(run_id) is True
    await has_left(app, wait_id(app, "reply", ANOTHER, n=1))


async def test_events_that_fail_a_condition_do_not_reach_the_run(app: RoutedApp) -> None:
    larger = "async.data.n > event.data.n"

    @app.function("wait", event=app.event("go"), cancel=[{"event": app.event("stop"), "if": larger}])
    def wait(steps: Steps) -> object:
        return steps.wait_registered("wait", app.event("reply"), larger)["data"]["n"]

    await app.sync()
    runs = {n: app.run_id(await app.send("go", n=n, other="x" * 5000), "wait") for n in (1, 2)}
    await app.wait_for_calls(4)
    for n in (0, 1, 1, 2):
        await app.send("reply", n=n)
    assert await app.result(runs[1]) == 2
    for n in (0, 2, 3):
        await app.send("stop", n=n)
    with pytest.raises(WorkflowFailureError):
        await app.result(runs[2])
    for run_id in runs.values():
        history = await app.client.get_workflow_handle(run_workflow_id(run_id)).fetch_history()
        assert sum(event.HasField("workflow_execution_signaled_event_attributes") for event in history.events) == 1
    await has_left(app, wait_id(app, "reply"))
    await has_left(app, wait_id(app, "stop"))


async def test_waits_leave_when_they_lose_a_race_time_out_or_their_run_ends(app: RoutedApp) -> None:
    @app.function("race", event=app.event("race"))
    def race(steps: Steps) -> object:
        if not steps.has("fast"):
            steps.parallel(
                steps.asking("slow", "WaitForEvent", event=app.event("never"), timeout="1h", parallelMode="race"),
                steps.running("fast", race=True),
            )
        return steps.wait_for_event("until", app.event("late"), "1s")

    @app.function("ends", event=app.event("ends"))
    def ends(steps: Steps) -> object:
        if not steps.has("fast"):
            steps.parallel(
                steps.asking("slow", "WaitForEvent", event=app.event("end"), timeout="1h", parallelMode="race"),
                steps.asking("signal", "WaitForSignal", signal=app.event("s"), timeout="1h", parallelMode="race"),
                steps.running("fast", race=True),
            )
        return "ended"

    @app.function("cancelled", event=app.event("cancelled"))
    def cancelled(steps: Steps) -> object:
        steps.parallel(
            steps.asking("slow", "WaitForEvent", event=app.event("more"), timeout="1h"), steps.running("fast")
        )
        return None

    await app.sync()
    assert await app.run_to_end("race", "race") is None
    await has_left(app, wait_id(app, "never"))
    await has_left(app, wait_id(app, "late"))
    assert await app.run_to_end("ends", "ends") == "ended"
    await has_left(app, wait_id(app, "end"))
    await has_left(app, signal_workflow_id(app.event("s")))
    calls = len(app.calls)
    run_id = app.run_id(await app.send("cancelled"), "cancelled")
    await app.wait_for_calls(calls + 2)
    await app.engine.cancel_run(run_id)
    await has_left(app, wait_id(app, "more"))


async def test_a_run_does_not_get_the_event_that_started_it(app: RoutedApp) -> None:
    """Even though the path of its wait is known, and the event is delivered again."""

    @app.function("turn", event=app.event("message"))
    def turn(steps: Steps) -> object:
        steps.parallel(
            steps.asking("next", "WaitForEvent", event=app.event("message"), timeout="1h"),
            steps.running("registered"),
        )
        return steps.wait_for_event("next", app.event("message"))["data"]["n"]

    await app.sync()
    first = app.run_id(await app.send("message", n=1), "turn")
    await app.wait_for_calls(2)
    second = await app.send("message", n=2)
    assert await app.result(first) == 2
    await app.wait_for_calls(5)
    # Like the fan-out if the sender ended before it reported the delivery.
    routes = await app.engine._router.find_routes(await started_by(app, app.run_id(second, "turn")))
    await app.engine._router.deliver(routes.delivery)
    await app.send("message", n=3)
    assert await app.result(app.run_id(second, "turn")) == 3


async def started_by(app: RoutedApp, run_id: str) -> EventRecord:
    history = await app.client.get_workflow_handle(run_workflow_id(run_id)).fetch_history()
    (payload,) = history.events[0].workflow_execution_started_event_attributes.input.payloads
    return msgspec.json.decode(payload.data, type=RunInput).events[0]


async def test_a_signal_ends_one_wait_and_a_second_wait_conflicts_or_replaces(app: RoutedApp) -> None:
    @app.function("wait", event=app.event("go"))
    def wait(steps: Steps) -> object:
        options = {"signal": app.event("ready"), "timeout": "1h", "conflict": data_of(steps)["conflict"]}
        steps.parallel(steps.asking("wait", "WaitForSignal", **options), steps.running("registered"))
        return steps.options("wait", "WaitForSignal", **options)["data"]

    await app.sync()
    first = app.run_id(await app.send("go", conflict="fail"), "wait")
    await app.wait_for_calls(2)
    with pytest.raises(WorkflowFailureError) as raised:
        await app.run_to_end("go", "wait", conflict="fail")
    assert getattr(raised.value.cause, "type", None) == "SignalConflictError"
    calls = len(app.calls)
    second = app.run_id(await app.send("go", conflict="replace"), "wait")
    await app.wait_for_calls(calls + 2)
    assert await app.engine.signal(app.event("ready"), {"x": 1}) == second
    assert await app.result(second) == {"x": 1}
    assert await app.engine.signal(app.event("ready")) is None
    await has_left(app, signal_workflow_id(app.event("ready")))
    await app.engine.cancel_run(first)


async def test_a_signal_is_free_again_after_its_run_was_terminated(app: RoutedApp) -> None:
    @app.function("wait", event=app.event("go"))
    def wait(steps: Steps) -> object:
        steps.parallel(
            steps.asking("wait", "WaitForSignal", signal=app.event("x"), timeout="1h"), steps.running("registered")
        )
        return steps.options("wait", "WaitForSignal", signal=app.event("x"), timeout="1h")["data"]

    await app.sync()
    first = app.run_id(await app.send("go"), "wait")
    await app.wait_for_calls(2)
    await app.client.get_workflow_handle(run_workflow_id(first)).terminate()
    second = app.run_id(await app.send("go"), "wait")
    await app.wait_for_calls(4)
    assert await app.engine.signal(app.event("x"), 5) == second
    assert await app.result(second) == 5


async def test_an_event_cancels_the_runs_whose_condition_it_meets(app: RoutedApp) -> None:
    @app.function("work", event=app.event("go"), cancel=[{"event": app.event("stop"), "if": SAME}])
    def work(steps: Steps) -> object:
        steps.sleep("long", "1h" if data_of(steps)["n"] < 3 else "0s")
        return "done"

    await app.sync()
    runs = [app.run_id(await app.send("go", n=n), "work") for n in (1, 2, 3)]
    # The wait is acknowledged, so the event cancels a run that has not begun.
    await app.send("stop", n=1)
    with pytest.raises(WorkflowFailureError):
        await app.result(runs[0])
    cancelled = await app.engine.get_run(runs[0])
    assert cancelled is not None
    assert cancelled.status is RunStatus.CANCELLED
    assert "cancelled by the event" in cancelled.decode_output()["message"]
    assert await app.result(runs[2]) == "done"
    await has_left(app, wait_id(app, "stop", SAME, n=3))
    run = await app.engine.get_run(runs[1])
    assert run is not None
    assert not run.status.has_ended
    await app.send("stop", n=2)
    with pytest.raises(WorkflowFailureError):
        await app.result(runs[1])


async def test_signals_of_strangers_neither_stop_nor_end_a_run(app: RoutedApp) -> None:
    """Other clients of the namespace may signal a run."""

    @app.function("wait", event=app.event("go"))
    def wait(steps: Steps) -> object:
        return steps.wait_registered("wait", app.event("reply"))["data"]["n"]

    await app.sync()
    run_id = app.run_id(await app.send("go"), "wait")
    await app.wait_for_calls(2)
    run = app.client.get_workflow_handle(run_workflow_id(run_id))
    for step_id in ("cancel:99", "cancel:x", "unknown"):
        await run.signal("deliver", {"step_id": step_id, "event": {"id": "x", "name": "x", "body": {}}})
    for signal in ("deliver", "resolve", "granted", "unknown"):
        await run.signal(signal, "malformed")
    await app.send("reply", n=5)
    assert await app.result(run_id) == 5


def test_conditions_for_which_no_time_is_left_are_evaluated_by_the_runs() -> None:
    conditions = tuple(Condition(f"async.data.n == {number}", msgspec.Raw(b"{}")) for number in range(3))
    event = EventRecord(id="e", name="n", body=msgspec.Raw(b'{"data": {"n": 1}}'))
    wanted = MatchInput(event, conditions)
    assert matching(wanted, 0) == [1]
    assert matching(wanted, 0, seconds=0) == [0, 1, 2]


async def ended_by_hand(app: RoutedApp, workflow_id: str, how: str) -> None:
    handle = app.client.get_workflow_handle(workflow_id)
    await getattr(handle, how)()

    async def has_ended() -> bool:
        return (await handle.describe()).close_time is not None

    await async_eventually(has_ended, "the workflow has ended")


@pytest.mark.parametrize("how", ["terminate", "cancel"])
async def test_terminated_waits_continue(app: RoutedApp, caplog: pytest.LogCaptureFixture, how: str) -> None:
    @app.function("wait", event=app.event("go"))
    def wait(steps: Steps) -> object:
        return steps.wait_registered("wait", app.event("reply"), SAME)["data"]["text"]

    await app.sync()
    workflow_id = wait_id(app, "reply", SAME, n=1)
    runs = [app.run_id(await app.send("go", n=1), "wait")]
    await app.wait_for_calls(2)
    await app.history_length(workflow_id)  # A worker has executed it.
    await ended_by_hand(app, workflow_id, how)
    runs.append(app.run_id(await app.send("go", n=1), "wait"))  # A further wait continues it, ...
    await app.wait_for_calls(4)
    await ended_by_hand(app, workflow_id, how)
    await app.send("reply", n=1, text="yes")  # ... and so does an event.
    assert [await app.result(run_id) for run_id in runs] == ["yes", "yes"]
    assert caplog.text.count(f"the workflow '{workflow_id}' was terminated on Temporal, and continues") == 2


async def test_terminated_waits_for_signals_continue(app: RoutedApp) -> None:
    @app.function("wait", event=app.event("go"), retries=0)
    def wait(steps: Steps) -> object:
        options = {"signal": app.event("x"), "timeout": "1h"}
        steps.parallel(steps.asking("wait", "WaitForSignal", **options), steps.running("registered"))
        return steps.options("wait", "WaitForSignal", **options)["data"]

    await app.sync()
    first = app.run_id(await app.send("go"), "wait")
    await app.wait_for_calls(2)
    await ended_by_hand(app, signal_workflow_id(app.event("x")), "terminate")
    with pytest.raises(WorkflowFailureError) as raised:
        await app.run_to_end("go", "wait")
    assert getattr(raised.value.cause, "type", None) == "SignalConflictError"
    await ended_by_hand(app, signal_workflow_id(app.event("x")), "terminate")
    assert await app.engine.signal(app.event("x"), 5) == first
    assert await app.result(first) == 5
