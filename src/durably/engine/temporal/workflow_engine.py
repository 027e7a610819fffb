"""``WorkflowEngine``: the operations of an engine on a Temporal server."""

import asyncio
import datetime as dt
import os
import time
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from temporalio.client import Client, WorkflowUpdateFailedError
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
from durably.engine.reports import MatchCount, RunPage
from durably.engine.scheduling.bulk_operations import check_condition
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
from .run_lists import RunFilter, RunLists
from .run_search import RunSearch
from .run_views import RunViews
from .run_workflow import RunWorkflow
from .search_attributes import register_search_attributes
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

_CANCEL_GRACE = dt.timedelta(seconds=5)
"""Time for calls that were cancelled after the settings' ``close_grace``."""


class WorkflowEngine(LocalEngine):
    """The engine on Temporal. ``client`` has ``DATA_CONVERTER``."""

    def __init__(self, client: Client, settings: EngineSettings) -> None:
        self._client = client
        self._settings = settings
        self._router = Router(client)
        self._views = RunViews(client)
        self._lists = RunLists(client)
        self._search = RunSearch(self._lists, self._views)
        self._has_search_attributes = False

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
                    graceful_shutdown_timeout=self._settings.close_grace + _CANCEL_GRACE,
                )
                for queue in calls_queues
            ),
        ]

    async def prepare(self) -> None:
        """Prepare the namespace for runs. Each process does so before it serves functions.

        Raises ``SearchAttributeError`` with the commands to run, if the server does not let this client do it.
        """
        if not self._has_search_attributes:
            await register_search_attributes(self._client)
            self._has_search_attributes = True

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        functions = read_sync(request, in_process=in_process)
        await self.prepare()
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

    # runs

    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        started_after: dt.datetime | None = None,
        id_suffix: str | None = None,
    ) -> list[RunView]:
        """Lists lag behind, usually below a second."""
        wanted = RunFilter(status=status, function_id=function_id, started_after=started_after)
        return await self._search.list_runs(wanted, limit, cursor, id_suffix)

    async def search_runs(
        self,
        *,
        status: RunStatus | None = None,
        function_id: str | None = None,
        app_id: str | None = None,
        event_name: str | None = None,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """``event_name`` is that of the first event of a batch."""
        wanted = RunFilter(
            status=status,
            function_id=function_id,
            app_id=app_id,
            event_name=event_name,
            started_after=started_after,
            started_before=started_before,
        )
        condition = await asyncio.to_thread(check_condition, if_exp, has_output=True) if if_exp else None
        return await self._search.search(wanted, condition, id or None, limit, cursor)

    async def get_run(self, run_id: str) -> RunView | None:
        return await self._views.find(run_id)

    async def event_runs(self, event_id: str) -> list[RunView]:
        found = await self._lists.read(RunFilter(event_id=event_id))
        runs = await self._views.views(reversed(found))
        return [run for run in runs if event_id in run.event_ids]

    async def count_matching_runs(
        self,
        function_id: str,
        *,
        statuses: Collection[RunStatus],
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
    ) -> MatchCount:
        wanted = RunFilter(function_id=function_id, started_after=started_after, started_before=started_before)
        condition = await asyncio.to_thread(check_condition, if_exp) if if_exp else None
        return await self._search.count(wanted, statuses, condition)

    async def wait_for_run(self, run_id: str) -> RunView:
        run = await self.get_run(run_id)
        if run is not None and not run.status.has_ended:
            await self._views.output(run_id)
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
