"""A call to an app that is down for an hour, on the server that skips time."""

import asyncio
import datetime as dt
import random
import uuid
from collections import Counter

import msgspec
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from durably.engine.core.calls import Answer, CallData, Returned, Unreached
from durably.engine.model.events import make_id
from durably.engine.model.requests import OutboundClient
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import CallInput, EventRecord, InternalEvents, RunInput
from durably.engine.temporal.routing.router import SEND
from durably.engine.temporal.runs.activities import CallActivities, StepRequests
from durably.engine.temporal.runs.call_slots import CallSlots
from durably.engine.temporal.runs.run_workflow import RunWorkflow
from durably.protocol.errors import ErrorData
from durably.temporal.errors import find_program

OUTAGE = dt.timedelta(hours=1)
QUEUE = "durably/app/down"


def count_events(history: WorkflowHistory) -> Counter[str]:
    """The events of each type. A task that timed out, on a slow machine, was scheduled and started once more."""
    counts = Counter(EventType.Name(event.event_type) for event in history.events)
    repeated = counts.pop("EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT", 0)
    for name in ("EVENT_TYPE_WORKFLOW_TASK_SCHEDULED", "EVENT_TYPE_WORKFLOW_TASK_STARTED"):
        counts[name] -= repeated
    return counts


@activity.defn(name=SEND)
async def send_nothing(sent: InternalEvents) -> None: ...


class DownApp:
    def __init__(self, environment: WorkflowEnvironment, outage: dt.timedelta) -> None:
        self._environment = environment
        self._outage = outage
        self._down_since: dt.datetime | None = None
        self.calls_at: list[dt.timedelta] = []

    async def call(self, call: CallInput, data: CallData) -> Answer:
        now = await self._environment.get_current_time()
        self._down_since = self._down_since or now
        self.calls_at.append(now - self._down_since)
        if now - self._down_since < self._outage:
            return Unreached(ErrorData(name="ConnectError", message="connection refused"))
        return Returned(b'"done"')


async def history_of_run(environment: WorkflowEnvironment, app: DownApp) -> WorkflowHistory:
    requests = StepRequests(f"durably/process/{uuid.uuid4()}", OutboundClient())
    calls = CallActivities(environment.client, app.call, requests, CallSlots(10), asyncio.Semaphore(10))
    run_id = make_id(1, random.randbytes)
    event = EventRecord(id="e", name="go", body=msgspec.Raw(b'{"name":"go","data":{},"id":"e","ts":1}'))
    run = RunInput(run_id=run_id, function_id="app-f", app_id="app", max_attempts=1, calls_queue=QUEUE, events=(event,))
    async with Worker(
        environment.client,
        task_queue=QUEUE,
        workflows=[RunWorkflow],
        activities=[*calls.activities, send_nothing],
    ):
        handle = await environment.client.start_workflow(
            "durably.Run", run, id=run_workflow_id(run_id), task_queue=QUEUE, result_type=str
        )
        assert await handle.result() == "done"
        return await handle.fetch_history()


async def test_an_hour_adds_no_events_and_at_most_a_call_a_minute() -> None:
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(find_program("temporal-test-server")), data_converter=DATA_CONVERTER
    ) as environment:
        down, up = DownApp(environment, OUTAGE), DownApp(environment, dt.timedelta(0))
        during, without = [await history_of_run(environment, app) for app in (down, up)]
    assert len(up.calls_at) == 1
    assert down.calls_at[-1] >= OUTAGE
    within = [at for at in down.calls_at if at < OUTAGE]
    print(f"{len(within)} calls within the hour")
    assert len(within) <= 60
    assert down.calls_at[-1] - within[-1] < dt.timedelta(seconds=70), "an app that is back gets its calls soon"
    assert count_events(during) == count_events(without)
