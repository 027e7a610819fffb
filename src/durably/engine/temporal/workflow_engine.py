"""``WorkflowEngine``: the operations of an engine on a Temporal server."""

import asyncio
import datetime as dt
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from durably.engine.core.call_body import generation_of
from durably.engine.core.errors import (
    CheckpointInvalidError,
    RunNotFoundError,
    StaleCallError,
    TooLargeError,
)
from durably.engine.core.inputs import CancelRequested
from durably.engine.interface import LocalEngine
from durably.engine.json_bodies import decode_events
from durably.engine.scheduling.events import IdSeed, check_event, make_id, make_received_event
from durably.engine.scheduling.registry import read_sync
from durably.engine.settings import EngineSettings
from durably.engine.views import RunStatus, RunView, SyncResult
from durably.protocol.call import CheckpointRequest
from durably.protocol.events import EventReceipt
from durably.protocol.sync import SyncRequest

from .activities import CallActivities, Caller, RoutingActivities
from .event_workflow import EventWorkflow
from .function_workflow import FunctionWorkflow
from .ids import WORKFLOWS_QUEUE, make_event_id, run_workflow_id
from .messages import CheckpointInput, EventRecord, FunctionRecord
from .router import Router
from .run_workflow import RunWorkflow
from .signal_workflow import SignalWorkflow
from .topic_workflow import TopicWorkflow
from .wait_workflow import WaitWorkflow

WORKFLOWS: Sequence[type] = (
    RunWorkflow,
    EventWorkflow,
    FunctionWorkflow,
    SignalWorkflow,
    TopicWorkflow,
    WaitWorkflow,
)

_STICKY_TIMEOUT = dt.timedelta(seconds=3)
"""Time after which another worker takes a workflow over whose worker is gone."""

_STATUSES = {
    WorkflowExecutionStatus.RUNNING: RunStatus.RUNNING,
    WorkflowExecutionStatus.COMPLETED: RunStatus.COMPLETED,
    WorkflowExecutionStatus.CANCELED: RunStatus.CANCELLED,
}


class WorkflowEngine(LocalEngine):
    """The engine on Temporal. ``client`` has ``DATA_CONVERTER``."""

    def __init__(self, client: Client, settings: EngineSettings) -> None:
        self._client = client
        self._settings = settings
        self._router = Router(client)

    def make_workers(self, calls_queues: Sequence[str], call: Caller) -> list[Worker]:
        """The workers of a process.

        One executes workflows, the others the calls of one task queue each.
        """
        routing = RoutingActivities(self._router)
        calls = CallActivities(self._client, call)
        return [
            Worker(
                self._client,
                task_queue=WORKFLOWS_QUEUE,
                workflows=WORKFLOWS,
                activities=routing.activities,
                sticky_queue_schedule_to_start_timeout=_STICKY_TIMEOUT,
            ),
            *(
                Worker(
                    self._client,
                    task_queue=queue,
                    activities=calls.activities,
                    max_concurrent_activities=self._settings.max_calls,
                )
                for queue in calls_queues
            ),
        ]

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        functions = read_sync(request, in_process=in_process)
        await self._router.configure(
            (
                function.id,
                FunctionRecord(
                    app_id=function.app_id,
                    config=function.config,
                    app_version=function.app_version,
                    in_process=in_process,
                ),
            )
            for function in functions
        )
        return SyncResult(app_id=request.app_id, modified=True, version=request.app_version)

    async def receive_events(
        self, body: bytes, *, seed: str | None = None, sender: str | None = None, traceparent: str | None = None
    ) -> EventReceipt:
        events = await decode_events(body, self._settings.max_event_bytes)
        checked = [check_event(event, self._settings.max_event_bytes) for event in events]
        id_seed = IdSeed(seed) if seed else None
        now = time.time_ns() // 1_000_000
        ids, records = [], []
        for index, each in enumerate(checked):
            event = each.event
            if event.id:
                event_id = make_event_id(0, event.id)
            else:
                event_id = id_seed.id_of(index) if id_seed else make_id(now, os.urandom)
            received = make_received_event(event, event_id, now, None, each.data, traceparent)
            ids.append(event_id)
            records.append(
                EventRecord(id=event_id, name=event.name, body=msgspec.Raw(received.body), traceparent=traceparent)
            )
        await asyncio.gather(*(self._router.route(record) for record in records))
        return EventReceipt(ids=ids)

    async def checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        generation = request.generation_id
        if generation is None:
            generation = generation_of(request.request_id or request.qi_id or "")
        if generation is None:
            raise CheckpointInvalidError("the checkpoint does not name its call")
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        checkpoint = CheckpointInput(generation, request.steps, request.request_started_at)
        try:
            await handle.execute_update("checkpoint", checkpoint)
        except WorkflowUpdateFailedError as error:
            raise _error_of_checkpoint(error) from None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise StaleCallError("the call is stale: its run has ended") from None
            raise

    async def get_run(self, run_id: str) -> RunView | None:
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        try:
            described = await handle.describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        status = _STATUSES.get(described.status, RunStatus.FAILED) if described.status else RunStatus.RUNNING
        output = None
        if status.has_ended:
            output = await self._output_of(run_id)
        return RunView(
            id=run_id,
            function_id=await described.static_summary() or "",
            app_id="",
            status=status,
            event_ids=[],
            created_at=described.start_time,
            started_at=described.start_time,
            ended_at=described.close_time,
            output=output,
            attempt=0,
            max_attempts=1,
            rerun_of=None,
        )

    async def _output_of(self, run_id: str) -> msgspec.Raw:
        handle = self._client.get_workflow_handle(run_workflow_id(run_id), result_type=msgspec.Raw)
        try:
            output: msgspec.Raw = await handle.result()
            return output
        except WorkflowFailureError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError) and cause.details:
                return msgspec.Raw(msgspec.json.encode(cause.details[0]))
            return msgspec.Raw(msgspec.json.encode({"name": type(cause).__name__, "message": str(cause)}))

    async def wait_for_run(self, run_id: str) -> RunView:
        await self._output_of(run_id)
        run = await self.get_run(run_id)
        if run is None:
            raise RunNotFoundError(f"no run has the id {run_id!r}")
        return run

    async def cancel_run(self, run_id: str) -> bool:
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        await handle.signal("cancel", CancelRequested())
        return True

    async def signal(self, name: str, data: Any = None) -> str | None:
        from durably.engine.core.transition import data_memo

        from .ids import signal_workflow_id

        memo = data_memo(b'{"data":' + msgspec.json.encode(data) + b',"signal":' + msgspec.json.encode(name) + b"}")
        handle = self._client.get_workflow_handle(signal_workflow_id(name))
        try:
            result: str | None = await handle.execute_update("send", msgspec.Raw(memo), result_type=str)
            return result
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise


def _error_of_checkpoint(error: WorkflowUpdateFailedError) -> Exception:
    cause = error.cause
    kinds = {each.__name__: each for each in (StaleCallError, CheckpointInvalidError, TooLargeError)}
    kind = kinds.get(getattr(cause, "type", ""), CheckpointInvalidError)
    return kind(getattr(cause, "message", str(cause)))
