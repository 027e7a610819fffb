"""Events on the engine on Temporal start their targets once."""

import base64
import datetime as dt
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from durably.engine.core.run_state import Origin
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, event_workflow_id, make_run_id, run_workflow_id
from durably.engine.temporal.messages import DeliveryRecord, EventRecord
from durably.engine.temporal.routing import router
from durably.engine.temporal.routing.workflows import EventWorkflow
from durably.protocol.engine_errors import FunctionNotFoundError

from ....temporal.dev_server import DevServer
from ...small_app import Steps
from ..routed_app import RoutedApp, data_of, routed_app


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    async with routed_app(server.address) as app:
        yield app


def one(app: RoutedApp, name: str = "one", **config: Any) -> None:
    @app.function(name, event=app.event("go"), **config)
    def one(steps: Steps) -> object:
        return data_of(steps).get("n")


async def exists(app: RoutedApp, workflow_id: str) -> bool:
    try:
        await app.client.get_workflow_handle(workflow_id).describe()
    except RPCError:
        return False
    return True


async def test_one_event_starts_each_function_that_it_triggers(app: RoutedApp) -> None:
    @app.function("one", triggers=[{"event": app.event("go"), "expression": "event.data.n > 1"}])
    def one(steps: Steps) -> object:
        return data_of(steps)["n"]

    @app.function("all", triggers=[{"event": f"{app.app_id}/*"}, {"event": app.event("go")}])
    def all_(steps: Steps) -> object:
        return "all"

    await app.sync()
    both = await app.send("go", n=2)
    assert await app.result(app.run_id(both, "one")) == 2
    assert await app.result(app.run_id(both, "all")) == "all"
    assert await exists(app, event_workflow_id(both.ids[0]))

    single = await app.send("go", n=1)
    assert await app.result(app.run_id(single, "all")) == "all"
    assert not await exists(app, run_workflow_id(app.run_id(single, "one")))
    assert not await exists(app, event_workflow_id(single.ids[0]))


async def test_a_repeated_event_changes_nothing_even_after_a_sync(app: RoutedApp) -> None:
    one(app)
    await app.sync()
    event_id, seed = f"{app.app_id}-1", f"1700000000000,{base64.b64encode(os.urandom(10)).decode()}"
    first = await app.send("go", id=event_id, n=1)
    seeded = await app.send("go", seed=seed, n=3)
    assert (await app.send("go", seed=seed, n=4)).ids == seeded.ids
    one(app, "later")
    await app.sync()
    assert await app.send("go", id=event_id, n=2) == first
    assert await app.result(app.run_id(seeded, "one")) == 3
    await app.run_to_end("go", "later", n=5)
    assert sorted(data["n"] for data in events_of(app)) == [1, 3, 5, 5]


def events_of(app: RoutedApp) -> list[dict[str, Any]]:
    return [dict(call.event.data) for call in app.calls if call.event is not None]


async def test_a_fan_out_is_finished_if_the_sender_ends_before_it(app: RoutedApp) -> None:
    one(app)
    one(app, "two")
    await app.sync()
    body = msgspec.Raw(msgspec.json.encode({"name": app.event("go"), "data": {"n": 7}, "id": "x", "ts": 1, "user": {}}))
    event = EventRecord(id="01J00000000000000000000000", name=app.event("go"), body=body, at=1_700_000_000_000)
    delivery = DeliveryRecord(event, (app.id_of("one"), app.id_of("two")))
    # The sender has only started the workflow, and its delay is over.
    fan_out = await app.client.start_workflow(
        EventWorkflow.run, delivery, id=event_workflow_id(f"{app.app_id}x"), task_queue=WORKFLOWS_QUEUE
    )
    await fan_out.result()
    await app.wait_for_calls(2)
    assert [data["n"] for data in events_of(app)] == [7, 7]


async def test_a_fan_out_that_the_sender_reported_is_not_repeated(
    app: RoutedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "SENDERS_TIME", dt.timedelta(seconds=1))
    one(app)
    one(app, "two")
    await app.sync()
    fan_out = app.client.get_workflow_handle(event_workflow_id((await app.send("go")).ids[0]))
    await fan_out.result()
    kinds = {event.event_type async for event in fan_out.fetch_history_events()}
    assert EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED in kinds
    assert EventType.EVENT_TYPE_MARKER_RECORDED not in kinds, "it was delivered by a local activity"


async def test_a_sender_that_stalls_after_the_delivery_gets_no_error(
    app: RoutedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event's workflow has delivered it too, and ended before the sender reports it."""
    monkeypatch.setattr(router, "SENDERS_TIME", dt.timedelta(milliseconds=100))
    one(app)
    one(app, "two")
    await app.sync()
    deliver, is_sender = router.Router.deliver, [True]

    async def stall(self: router.Router, delivery: DeliveryRecord) -> None:
        stalls = is_sender.pop() if is_sender else False
        await deliver(self, delivery)
        if stalls:
            workflow_id = event_workflow_id(delivery.event.id)
            await app.client.get_workflow_handle(workflow_id).result()

    monkeypatch.setattr(router.Router, "deliver", stall)
    receipt = await app.send("go", n=3)
    assert await app.result(app.run_id(receipt, "one")) == 3
    assert await app.result(app.run_id(receipt, "two")) == 3
    await app.wait_for_calls(2)
    assert len(app.calls) == 2


async def test_names_that_match_nothing_are_reported_to_the_sender(app: RoutedApp) -> None:
    one(app, cancel=[{"event": app.event("stop")}])
    await app.sync()
    receipt = await app.send("unknown")
    assert list(receipt.unmatched) == [app.event("unknown")]
    assert receipt.unmatched[app.event("unknown")].startswith("no function is triggered by it")
    assert not (await app.send("stop")).unmatched
    assert not (await app.send("go")).unmatched


async def test_a_paused_function_is_skipped_and_shown(app: RoutedApp) -> None:
    one(app)

    @app.function("invoker", event=app.event("invoke"), retries=0)
    def invoker(steps: Steps) -> object:
        return steps.invoke("it", data_of(steps)["invoked"])

    await app.sync()
    await app.engine.pause_function(app.id_of("one"))
    skipped = app.run_id(await app.send("go"), "one")
    assert (await app.result(skipped))["name"] == "FunctionSkippedError"
    run = await app.engine.get_run(skipped)
    assert run is not None
    assert run.status.value == "Skipped"
    for function, error in (("one", "FunctionSkippedError"), ("unknown", "FunctionNotFoundError")):
        with pytest.raises(WorkflowFailureError) as raised:
            await app.run_to_end("invoke", "invoker", invoked=app.id_of(function))
        assert error in str(raised.value.cause)
    await app.engine.resume_function(app.id_of("one"))
    assert await app.run_to_end("go", "one", n=1) == 1
    with pytest.raises(FunctionNotFoundError):
        await app.engine.pause_function(app.id_of("unknown"))


async def test_functions_that_start_each_other_endlessly_are_stopped(app: RoutedApp) -> None:
    one(app)
    await app.sync()
    body = msgspec.Raw(msgspec.json.encode({"name": app.event("go"), "data": {}, "id": "x", "ts": 1, "user": {}}))
    event = EventRecord(
        id="01J0000000000000000000000A",
        name=app.event("go"),
        body=body,
        at=1_700_000_000_000,
        origin=Origin(0, 10_000, 99, 0),
        chain=(app.id_of("two"),),
    )
    await app.engine._router.route(event)
    with pytest.raises(WorkflowFailureError) as raised:
        await app.result(make_run_id(event.at, event.id, app.id_of("one")))
    cause = raised.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "RunawayError"
    assert f"{app.id_of('two')} → {app.id_of('one')}" in cause.message


async def test_events_of_a_run_count_in_its_chain(app: RoutedApp) -> None:
    one(app)
    one(app, "two")
    await app.sync()
    run_id = app.run_id(await app.send("go"), "one")
    receipt = await app.engine.receive_events(msgspec.json.encode({"name": app.event("go"), "data": {}}), sender=run_id)
    memo = await app.engine._router.records.find_run(app.run_id(receipt, "two"))
    assert memo is not None
    assert memo.origin is not None
    assert memo.origin.chain == 1
    assert memo.chain == (app.id_of("two"), app.id_of("one"))


async def test_invocation_starts_a_function_regardless_of_its_triggers(app: RoutedApp) -> None:
    one(app)
    await app.sync()
    receipt = await app.engine.invoke(app.id_of("one"), {"n": 3})
    assert receipt.run_id is not None
    assert await app.result(receipt.run_id) == 3
    with pytest.raises(FunctionNotFoundError):
        await app.engine.invoke(app.id_of("unknown"), {"n": 3})


async def test_many_events_of_one_request_start_their_runs(app: RoutedApp) -> None:
    one(app)
    await app.sync()
    events = [{"name": app.event("go"), "data": {"n": n}} for n in range(10)]
    receipt = await app.engine.receive_events(msgspec.json.encode(events))
    assert len(set(receipt.ids)) == 10
    await app.wait_for_calls(10)
    assert sorted(data["n"] for data in events_of(app)) == list(range(10))
