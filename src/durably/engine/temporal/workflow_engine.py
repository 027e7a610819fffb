"""``WorkflowEngine``: the operations of an engine on a Temporal server."""

import asyncio
import datetime as dt
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
from durably.engine.core.transition import data_memo
from durably.engine.interface import LocalEngine
from durably.engine.json_bodies import decode_events
from durably.engine.reports import MatchCount, RunPage
from durably.engine.scheduling.bulk_operations import check_condition
from durably.engine.scheduling.registry import read_sync
from durably.engine.settings import EngineSettings
from durably.engine.views import RunStatus, RunView, SyncResult
from durably.protocol.call import CheckpointRequest
from durably.protocol.events import EventReceipt
from durably.protocol.sync import SyncRequest

from .activities import CallActivities, Caller, RoutingActivities
from .app_sync import AppSync
from .app_workflow import AppWorkflow
from .call_queue_workflow import CallQueueWorkflow
from .event_receiver import EventReceiver
from .event_workflow import EventWorkflow
from .function_workflow import FunctionWorkflow
from .gate_workflow import GateWorkflow
from .ids import WORKFLOWS_QUEUE, run_workflow_id
from .messages import CheckpointInput
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
    AppWorkflow,
    CallQueueWorkflow,
    EventWorkflow,
    FunctionWorkflow,
    GateWorkflow,
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
        self._router = Router(client, settings)
        self._apps = AppSync(client)
        self._events = EventReceiver(client, self._router, settings)
        self._views = RunViews(client)
        self._lists = RunLists(client)
        self._search = RunSearch(self._lists, self._views)
        self._has_search_attributes = False

    def make_workers(self, calls_queues: Sequence[str], call: Caller) -> list[Worker]:
        """The workers of a process.

        One executes workflows, the others the calls of one task queue each.
        """
        routing = RoutingActivities(self._router, self._apps)
        calls = CallActivities(self._client, call)
        return [
            Worker(
                self._client,
                task_queue=WORKFLOWS_QUEUE,
                workflows=WORKFLOWS,
                activities=[*routing.activities, *self._router.gates.activities],
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
        return await self._apps.sync(request, functions, in_process=in_process)

    async def receive_events(
        self, body: bytes, *, seed: str | None = None, sender: str | None = None, traceparent: str | None = None
    ) -> EventReceipt:
        events = await decode_events(body, self._settings.max_event_bytes)
        return await self._events.receive(events, seed=seed, sender=sender, traceparent=traceparent)

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
        memo = data_memo(b'{"data":' + msgspec.json.encode(data) + b',"signal":' + msgspec.json.encode(name) + b"}")
        return await self._router.waits.send_signal(name, memo)


def _error_of_checkpoint(error: WorkflowUpdateFailedError) -> Exception:
    cause = error.cause
    kinds = {each.__name__: each for each in (StaleCallError, CheckpointInvalidError, TooLargeError)}
    kind = kinds.get(getattr(cause, "type", ""), CheckpointInvalidError)
    return kind(getattr(cause, "message", str(cause)))
