"""Local activities, by which workflows use the router and reach other runs."""

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus

from durably.engine.core.inputs import CancelRequested
from durably.engine.temporal.apps.app_sync import AppSync
from durably.engine.temporal.apps.record_workflows import APPLY_SYNC, AppliedSync
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import (
    END,
    DeliveryRecord,
    InternalEvents,
    InvokeInput,
    LeaveInput,
    MatchInput,
    ResolvedInvocation,
    SignalRecord,
    WaitRecord,
)
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.routing.wait_keys import matching
from durably.engine.temporal.routing.workflows import DELIVER, MATCH
from durably.engine.temporal.runs.activities import read_content
from durably.engine.temporal.runs.call_messages import ContentPage, MemosToCopy
from durably.engine.temporal.workflow_code import wall_clock
from durably.engine.temporal.workflow_requests import describe
from durably.protocol.errors import ErrorData

CANCEL = "durably.cancel"
COPY_MEMOS = "durably.copy_memos"
FIND_LOST = "durably.find_lost"
READ_END = "durably.read_end"
RESOLVE = "durably.resolve"
SEND = "durably.send"
WAIT_FOR_EVENT = "durably.wait_for_event"
WAIT_FOR_SIGNAL = "durably.wait_for_signal"
LEAVE = "durably.leave"
LOCAL_TIMEOUT = dt.timedelta(seconds=10)
CANCELLED_BY_TEMPORAL = ErrorData(name="FunctionCancelledError", message=CancelRequested().reason)
_LOST = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.TIMED_OUT)


def terminated_error(run_id: str) -> ErrorData:
    return ErrorData(name="FunctionCancelledError", message=f"the run {run_id} was terminated on Temporal")


class LocalActivities:
    """Activities by which workflows use the router, and reach other runs.

    Each costs one event of history.
    """

    def __init__(self, client: Client, router: Router, apps: AppSync) -> None:
        self._client = client
        self._router = router
        self._apps = apps

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [
            self.send,
            self.deliver,
            self.wait_for_event,
            self.wait_for_signal,
            self.leave,
            self.match,
            self.resolve,
            self.apply_sync,
            self.cancel,
            self.read_end,
            self.find_lost,
            self.copy_memos,
        ]

    @activity.defn(name=DELIVER)
    async def deliver(self, delivery: DeliveryRecord) -> None:
        await self._router.finish_delivery(delivery)

    @activity.defn(name=SEND)
    async def send(self, events: InternalEvents) -> None:
        await self._router.send_internal(events)

    @activity.defn(name=WAIT_FOR_EVENT)
    async def wait_for_event(self, wait: WaitRecord) -> None:
        await self._router.waits.register(wait)

    @activity.defn(name=WAIT_FOR_SIGNAL)
    async def wait_for_signal(self, wait: SignalRecord) -> bool:
        return await self._router.waits.register_signal(wait)

    @activity.defn(name=LEAVE)
    async def leave(self, left: LeaveInput) -> None:
        await self._router.waits.leave(left)

    @activity.defn(name=MATCH)
    async def match(self, wanted: MatchInput) -> list[int]:
        return await asyncio.to_thread(matching, wanted, wall_clock())

    @activity.defn(name=RESOLVE)
    async def resolve(self, invocation: InvokeInput) -> ResolvedInvocation:
        return await self._router.resolve_invocation(invocation)

    @activity.defn(name=APPLY_SYNC)
    async def apply_sync(self, sync: AppliedSync) -> None:
        await self._apps.apply(sync)

    @activity.defn(name=CANCEL)
    async def cancel(self, workflow_id: str) -> None:
        """Cancel a run that has cancelled itself, so that Temporal shows it as cancelled."""
        await self._client.get_workflow_handle(workflow_id).cancel()

    @activity.defn(name=READ_END)
    async def read_end(self, run_id: str) -> ErrorData:
        """The error of a cancelled run."""
        described = await self._client.get_workflow_handle(run_workflow_id(run_id)).describe()
        error: ErrorData = await described.memo_value(END, CANCELLED_BY_TEMPORAL, type_hint=ErrorData)
        return error

    @activity.defn(name=FIND_LOST)
    async def find_lost(self, run_id: str) -> ErrorData | None:
        """The error of a run that ended without its code and without a report."""
        described = await describe(self._client, run_workflow_id(run_id))
        return terminated_error(run_id) if described is not None and described.status in _LOST else None

    @activity.defn(name=COPY_MEMOS)
    async def copy_memos(self, wanted: MemosToCopy) -> ContentPage:
        page = await read_content(self._client.get_workflow_handle(run_workflow_id(wanted.run_id)), wanted.request)
        return msgspec.structs.replace(page, events=[], step_input=None)
