"""Activities of the engine: calls to apps, and the routing that workflows ask for."""

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from durably.engine.core.answers import Answer, Unreached
from durably.engine.core.call_body import CallData
from durably.engine.core.policy import unreached_backoff

from .app_sync import AppSync
from .app_workflow import APPLY_SYNC, AppliedSync
from .contents import CONTENTS, RunContent
from .event_workflow import DELIVER
from .ids import run_workflow_id
from .messages import (
    CallInput,
    CallResult,
    ContentPage,
    DeliveryRecord,
    InternalEvents,
    InvokeInput,
    LeaveInput,
    ResolvedInvocation,
    SignalRecord,
    WaitRecord,
    result_of,
)
from .router import Router

CALL = "durably.call"
RESOLVE = "durably.resolve"
SEND = "durably.send"
WAIT_FOR_EVENT = "durably.wait_for_event"
WAIT_FOR_SIGNAL = "durably.wait_for_signal"
LEAVE = "durably.leave"
LOCAL_TIMEOUT = dt.timedelta(seconds=10)


class Caller(Protocol):
    """Makes calls to an app, in this process or over HTTP."""

    async def __call__(self, call: CallInput, data: CallData) -> Answer: ...


class CallActivities:
    """The activity that calls apps.

    It is apart from the others, because its task queue is that of the app.
    """

    def __init__(self, client: Client, call: Caller) -> None:
        self._client = client
        self._call = call

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [self.call]

    @activity.defn(name=CALL)
    async def call(self, call: CallInput) -> CallResult:
        content = await self._content_of(call)
        data = CallData(
            run_id=call.run_id,
            function_id=call.function_id,
            call=call.call,
            max_attempts=call.max_attempts,
            disable_immediate=call.disable_immediate,
            events=content.events,
            memos=content.memos[: call.memos],
            defers=call.defers,
            traceparent=call.traceparent,
        )
        heartbeat = asyncio.create_task(_heartbeat())
        try:
            answer = await self._call(call, data)
        finally:
            heartbeat.cancel()
        if isinstance(answer, Unreached):
            delay = unreached_backoff(activity.info().attempt - 1, 0)
            raise ApplicationError(
                answer.error.message or "", type=answer.error.name or "Unreached", next_retry_delay=delay
            )
        return result_of(answer)

    async def _content_of(self, call: CallInput) -> RunContent:
        content = CONTENTS.find(call.run_id)
        if content is None or not content.begins_with(call.memos, call.digest):
            content = await self._fetch_content(call, content)
            CONTENTS.put(call.run_id, content)
        return content

    async def _fetch_content(self, call: CallInput, known: RunContent | None) -> RunContent:
        """The content of a call, based on what this process has if that fits."""
        if known is not None:
            content = await self._extend(call, known.copy())
            if content.begins_with(call.memos, call.digest):
                return content
        page = await self._query_content(call, 0)
        content = RunContent([bytes(event) for event in page.events])
        content.add_all(page.memos)
        return await self._extend(call, content)

    async def _extend(self, call: CallInput, content: RunContent) -> RunContent:
        while len(content.memos) < call.memos:
            page = await self._query_content(call, len(content.memos))
            if not page.memos:
                raise ApplicationError(f"run {call.run_id} has fewer memos than its call", type="ContentMissingError")
            content.add_all(page.memos)
        return content

    async def _query_content(self, call: CallInput, after: int) -> ContentPage:
        handle = self._client.get_workflow_handle(run_workflow_id(call.run_id))
        page: ContentPage = await handle.query("content", after, result_type=ContentPage)
        return page


async def _heartbeat() -> None:
    """Send a heartbeat after each half of the time-out.

    Heartbeats are billed, and most calls are shorter.
    """
    timeout = activity.info().heartbeat_timeout
    assert timeout is not None
    seconds = timeout.total_seconds() / 2
    while True:
        await asyncio.sleep(seconds)
        activity.heartbeat()


class RoutingActivities:
    """Activities by which workflows use the router.

    They run as local activities. Each costs one event of history.
    """

    def __init__(self, router: Router, apps: AppSync) -> None:
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
            self.resolve,
            self.apply_sync,
        ]

    @activity.defn(name=DELIVER)
    async def deliver(self, delivery: DeliveryRecord) -> None:
        await self._router.deliver(delivery)

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

    @activity.defn(name=RESOLVE)
    async def resolve(self, invocation: InvokeInput) -> ResolvedInvocation:
        return await self._router.resolve_invocation(invocation)

    @activity.defn(name=APPLY_SYNC)
    async def apply_sync(self, sync: AppliedSync) -> None:
        await self._apps.apply(sync)
