"""Waits of runs for events and signals: their registration, and messages to them."""

import asyncio
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.temporal.client import describe, ignoring_not_found, update_with_start
from durably.engine.temporal.ids import (
    WORKFLOWS_QUEUE,
    run_workflow_id,
    signal_workflow_id,
    topic_workflow_id,
    wait_workflow_id,
)
from durably.engine.temporal.messages import EventRecord, LeaveInput, SignalRecord, TopicRecord, WaitRecord
from durably.engine.temporal.records import Records, Restorer, TopicWorkflow
from durably.engine.temporal.routing.workflows import SignalWorkflow, WaitState, WaitWorkflow

WAIT_FOR_EVENT, WAIT_FOR_SIGNAL, LEAVE = "durably.wait_for_event", "durably.wait_for_signal", "durably.leave"
"""Local activities of runs."""
_MOST_TRIES = 5
_NEVER_RAN = "not found"
"""Part of the server's error for a workflow that does not exist. The error for an ended workflow has another text."""


class Waits:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._records = Records(client)
        self._restorer = Restorer(client)

    # events

    @activity.defn(name=WAIT_FOR_EVENT)
    async def register(self, wait: WaitRecord) -> None:
        """Register a wait. Repeating it changes nothing.

        All events that are sent afterwards find the wait.
        """
        is_indexed, _ = await asyncio.gather(self.add_path(wait.event, wait.path), self._restorer.restore(_id_of(wait)))
        if not is_indexed:
            wait = _unindexed(wait)
            await self.add_path(wait.event, None)
            await self._restorer.restore(_id_of(wait))
        await self._client.start_workflow(
            WaitWorkflow.run,
            WaitState(),
            id=_id_of(wait),
            task_queue=WORKFLOWS_QUEUE,
            start_signal="wait",
            start_signal_args=[wait],
            static_summary=f"waits for {wait.event}",
        )

    async def add_path(self, event_name: str, path: str | None) -> bool:
        """Make events of a name search for waits by a path.

        Returns false if the name has the maximum number of paths.
        """
        topic = await self._records.find_topic(event_name)
        return path in topic.paths or bool(await self.update_topic(event_name, "add_path", path, topic, bool))

    async def update_topic(
        self, event_name: str, update: str, argument: Any, before: TopicRecord, result_type: type | None = None
    ) -> Any:
        return await update_with_start(
            self._client,
            update,
            argument,
            workflow=TopicWorkflow.run,
            state=[before],
            id=topic_workflow_id(event_name),
            summary=event_name,
            result_type=result_type,
        )

    async def deliver(self, event: EventRecord, path: str | None, value: str | None) -> None:
        """Send an event to the waits with a value at a path, if there are any."""
        handle = self._client.get_workflow_handle(wait_workflow_id(event.name, path, value))
        try:
            await handle.signal("event", event)
        except RPCError as error:
            if await self._is_restored(handle.id, error):
                with ignoring_not_found():
                    await handle.signal("event", event)

    async def _is_restored(self, workflow_id: str, error: RPCError) -> bool:
        """Whether the workflow that missed a message is restored. Raises other errors."""
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise error
        # Usually nothing ever waited for the value. Then the server has no such workflow.
        return _NEVER_RAN not in error.message.lower() and await self._restorer.restore(workflow_id)

    # signals

    @activity.defn(name=WAIT_FOR_SIGNAL)
    async def register_signal(self, wait: SignalRecord) -> bool:
        """Register a wait for a signal. Returns false if another step waits for it."""
        await self._restorer.restore(signal_workflow_id(wait.signal))
        for _ in range(_MOST_TRIES):
            holder = await self._try_signal(wait)
            if holder is None or await self.is_running(holder):
                return holder is None
            # Its run has ended without deregistering, for example because a user terminated it.
            await self._leave_signal(wait.signal, holder)
        return False

    async def _try_signal(self, wait: SignalRecord) -> str | None:
        """The id of the run that already waits for the signal."""
        holder: str | None = await update_with_start(
            self._client,
            "wait",
            wait,
            workflow=SignalWorkflow.run,
            id=signal_workflow_id(wait.signal),
            summary=f"waits for the signal {wait.signal}",
            result_type=str,
        )
        return holder

    async def send_signal(
        self, name: str, memo: bytes, only: str | None = None, *, step_id: str | None = None
    ) -> str | None:
        """Send a signal. Returns the id of the run that waited. Its step gets the memo.

        ``only``: the id of the run to which it is sent. ``step_id``: the step to which it is sent.
        """
        handle = self._client.get_workflow_handle(signal_workflow_id(name))
        for _ in range(_MOST_TRIES):
            try:
                update, given = ("send", only) if step_id is None else ("send_to_step", step_id)
                result: str | None = await handle.execute_update(
                    update, args=[msgspec.Raw(memo), given], result_type=str
                )
                return result
            except WorkflowUpdateFailedError:
                # The workflow ended at the same time, with the wait.
                return None
            except RPCError as error:
                if not await self._is_restored(handle.id, error):
                    return None
        return None

    async def is_running(self, run_id: str) -> bool:
        described = await describe(self._client, run_workflow_id(run_id))
        return described is not None and described.close_time is None

    # ends

    @activity.defn(name=LEAVE)
    async def leave(self, left: LeaveInput) -> None:
        """Remove waits. Repeating it changes nothing."""
        await asyncio.gather(
            *map(self._leave_wait, left.waits),
            *(self._leave_signal(wait.signal, wait.run_id, wait.step_id) for wait in left.signals),
        )

    async def _leave_wait(self, wait: WaitRecord) -> None:
        topic = await self._records.find_topic(wait.event)
        place = wait if wait.path in topic.paths else _unindexed(wait)
        with ignoring_not_found():
            handle = self._client.get_workflow_handle(_id_of(place))
            await handle.signal("leave", args=[wait.run_id, wait.step_id])

    async def _leave_signal(self, name: str, run_id: str, step_id: str | None = None) -> None:
        with ignoring_not_found():
            handle = self._client.get_workflow_handle(signal_workflow_id(name))
            await handle.signal("leave", args=[run_id, step_id])


def _unindexed(wait: WaitRecord) -> WaitRecord:
    """The same wait without a required value. Its run evaluates the condition."""
    return msgspec.structs.replace(wait, path=None, value=None, is_exact=False)


def _id_of(wait: WaitRecord) -> str:
    return wait_workflow_id(wait.event, wait.path, wait.value)
