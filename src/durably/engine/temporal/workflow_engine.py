"""``WorkflowEngine``: the operations of an engine on a Temporal server."""

import asyncio
import contextlib
import datetime as dt
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.api.interface import LocalEngine
from durably.engine.api.metrics import Metric
from durably.engine.core.calls import generation_of_checkpoint, shorten_op_error
from durably.engine.core.inputs import CancelRequested
from durably.engine.core.transition import data_memo
from durably.engine.model.events import check_event, make_id
from durably.engine.model.json_bodies import decode_events
from durably.engine.model.overview import (
    App,
    AppReport,
    Changes,
    EngineInfo,
    FunctionInfo,
    FunctionLoad,
    FunctionReport,
    Overview,
    ScheduleInfo,
    SyncResult,
    UnreachedApp,
)
from durably.engine.model.registry import read_sync
from durably.engine.model.requests import OutboundClient
from durably.engine.model.runs import (
    Attempt,
    BulkOperation,
    EventPage,
    FromStep,
    InvokeReceipt,
    LogPage,
    MatchCount,
    Run,
    RunCall,
    RunMetadata,
    RunPage,
    RunReport,
    RunStatus,
    RunUpdate,
    Selection,
    StatusCounts,
    Step,
    StoredEvent,
    to_datetime,
)
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.transactions.bulk_operations import check_condition, check_selection, check_statuses
from durably.engine.temporal.apps.app_sync import AppSync
from durably.engine.temporal.reports.bulk import Bulk, Reruns
from durably.engine.temporal.reports.changes import ChangePoll, RunWatch
from durably.engine.temporal.reports.event_lists import EventFilter, EventLists
from durably.engine.temporal.reports.function_lists import FunctionLists, function_view
from durably.engine.temporal.reports.loads import Loads
from durably.engine.temporal.reports.run_lists import RunFilter, RunLists
from durably.engine.temporal.reports.run_search import RunSearch
from durably.engine.temporal.reports.run_views import RunViews, status_of
from durably.engine.temporal.reports.unreached_apps import UnreachedApps
from durably.engine.temporal.routing.event_receiver import EventReceiver
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.runs.activities import ActivityCaller
from durably.engine.temporal.runs.call_messages import CheckpointInput
from durably.engine.temporal.runs.run_record import Annotation
from durably.engine.temporal.runs.sizes import (
    MAX_EVENT_BYTES,
    MAX_OUTPUT_BYTES,
    check_step,
    split_steps,
    without_large_arguments,
)
from durably.engine.temporal.slots.leased_functions import LeasedFunctions
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.engine_errors import (
    CheckpointInvalidError,
    ConfigInvalidError,
    EventInvalidError,
    NotSupportedError,
    RunNotFoundError,
    ServerUnavailableError,
    StaleCallError,
    TooLargeError,
)
from durably.protocol.events import Event, EventReceipt, InternalEvent
from durably.protocol.headers import ServerKind, read_trace
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from .client import is_unreachable, with_cancellation
from .ids import HTTP_QUEUE, app_queue, run_workflow_id, split_generation
from .process_monitor import LiveRuns, ProcessMonitor
from .reports.run_reports import RunReports
from .search_attributes import register_search_attributes
from .support import check_support
from .workers import ProcessWorkers, make_workers
from .workflow_code import wall_clock

T = TypeVar("T", int, bool)

_LAG_NOTE = "Lists and counts come from Temporal's index, which lags behind, usually by less than a second."
_EVENTS_NOTE = "Events are shown if they started runs: Temporal stores no others."

_NO_MORE_CHECKPOINTS = (
    "Temporal accepts no further checkpoint, so each further step needs a call of its own: buffer steps "
    "(buffered_steps), or spread the work over several runs"
)

_VERIFY_TIMEOUT = dt.timedelta(seconds=2)

_logger = get_logger("durably.engine")

_CANCEL_SECONDS = 5.0
"""Seconds for which a cancellation waits for the run's end."""


class WorkflowEngine(LocalEngine):
    """The engine on Temporal. ``client`` has ``DATA_CONVERTER``.

    ``in_process``: its workers call apps in this process, not over HTTP.
    """

    unsupported = frozenset({"run_traces", "search_runs.status.Scheduled", "search_events.is_unmatched"})

    def __init__(self, client: Client, settings: EngineSettings, *, in_process: bool = True) -> None:
        settings = msgspec.structs.replace(settings, max_event_bytes=min(settings.max_event_bytes, MAX_EVENT_BYTES))
        client = with_cancellation(client)
        self._client = client
        self._settings = settings
        self._outbound = OutboundClient(
            allow_private_addresses=settings.allow_private_addresses, max_bytes=MAX_OUTPUT_BYTES
        )
        self._router = Router(client, settings)
        self._apps = AppSync(client, settings)
        self._events = EventReceiver(client, self._router, settings)
        self._views = RunViews(client)
        self._lists = RunLists(client)
        self._reports = RunReports(client, self._router, self._lists, self._views)
        self._search = RunSearch(self._lists, self._views)
        self._event_lists = EventLists(self._lists, self._views)
        self._function_lists = FunctionLists(client, self._router.records, self._lists, self._views)
        self._away: dict[str, UnreachedApp] = {}
        unreached = UnreachedApps(client, self._lists, self._views, self._away)
        self._loads = Loads(client, self._function_lists, self._lists, unreached)
        self._changes = ChangePoll(client, self._lists, self._views)
        self._reruns = Reruns(self._router, self._function_lists, self._reports, self._views)
        self._bulk = Bulk(
            client,
            self._lists,
            self._search,
            self._views,
            self._function_lists,
            self._reruns,
            self._router.cancellations,
        )
        self._leased = LeasedFunctions(
            client, self._router.records, self._function_lists, self._lists, in_process=in_process
        )
        self._monitor = ProcessMonitor(settings)
        self._live_runs = LiveRuns(self._count_live_runs)
        self._call_queues = frozenset[str]()
        self._has_search_attributes = False
        self._closed = asyncio.Event()
        self._ui_url: str | None = None
        if (url := settings.temporal_ui) is not None:
            self._ui_url = f"{url.rstrip('/')}/namespaces/{quote(client.namespace, safe='')}/workflows"
        self.alternative = f"Temporal's own UI ({self._ui_url or 'https://docs.temporal.io/web-ui'})"

    def make_workers(self, calls_queues: Sequence[str], call: ActivityCaller) -> ProcessWorkers:
        """The workers of a process. They make the calls of task queues by ``call``."""
        self._call_queues = frozenset(calls_queues)
        return make_workers(
            self._client,
            calls_queues,
            self._monitor.monitor(self._client.namespace, calls_queues, call),
            router=self._router,
            apps=self._apps,
            bulk=self._bulk,
            leased=self._leased,
            outbound=self._outbound,
            max_calls=self._settings.max_calls,
            away=self._away,
        )

    async def close(self) -> None:
        """Close the connections of steps' requests, and end watches.

        Stop the workers first.
        """
        self._closed.set()
        self._live_runs.close()
        await self._monitor.close()
        await self._outbound.close()

    async def verify(self) -> None:
        """Raises ``ServerUnavailableError`` if the server does not answer."""
        request = DescribeNamespaceRequest(namespace=self._client.namespace)
        try:
            await self._client.workflow_service.describe_namespace(request, timeout=_VERIFY_TIMEOUT)
        except Exception as error:
            raise self.explain(error) from None

    def explain(self, error: Exception) -> Exception:
        if is_unreachable(error):
            return ServerUnavailableError(f"the Temporal server does not answer: {error}")
        return error

    @contextlib.contextmanager
    def watch(self) -> Iterator[AsyncIterator[RunUpdate]]:
        """Starts and ends of runs, about a second later.

        Temporal's index has no steps.
        """
        yield RunWatch(self._lists, self._views, self._closed)

    def watch_process(self) -> contextlib.AbstractContextManager[AsyncIterator[RunUpdate]]:
        """The updates of this process. Workflows report their changes to their process."""
        return self._monitor.watch()

    async def prepare(self) -> None:
        """Prepare the namespace for runs. Each process does so before it serves functions.

        Raises ``SearchAttributeError`` with the commands to run if the server does not let this client do it, and
        ``TemporalCredentialsError`` if it denies the namespace.
        """
        if not self._has_search_attributes:
            await register_search_attributes(self._client)
            self._has_search_attributes = True

    async def has_synced(self, app_id: str) -> bool:
        """Whether events find the triggers of an app's functions."""
        return await self._apps.has_synced(app_id)

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        try:
            functions = read_sync(request, in_process=in_process)
            check_support(functions)
            await self.prepare()
            result = await self._apps.sync(request, functions, in_process=in_process)
            self._events.has_synced = self._events.has_synced or bool(functions)
            await self._leased.note_synced(request, in_process=in_process)
            return result
        except ConfigInvalidError as error:
            await self._apps.note_refused(request.app_id, error.message)
            raise

    async def receive_events(
        self,
        body: bytes,
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
    ) -> EventReceipt:
        events = await decode_events(body, self._settings.max_event_bytes)
        trace = read_trace({"traceparent": traceparent, "tracestate": tracestate, "baggage": baggage})
        tracing = self._settings.tracing
        names = [event.name for event in events]
        # The events of an untraced app's run continue the trace of the run.
        receiving: contextlib.AbstractContextManager[str | None]
        if tracing is None or (sender is not None and trace is None):
            receiving = contextlib.nullcontext(trace)
        else:
            receiving = tracing.receiving(names, trace)
        with receiving as received:
            receipt = await self._events.receive(events, seed=seed, sender=sender, traceparent=received)
        self._monitor.note_events(names, receipt.unmatched)
        return receipt

    async def checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        generation, execution = split_generation(generation_of_checkpoint(request))
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        for step in request.steps:
            check_step(step)
        try:
            for steps in split_steps([without_large_arguments(shorten_op_error(step)) for step in request.steps]):
                checkpoint = CheckpointInput(generation, steps, request.request_started_at, execution)
                await handle.execute_update("checkpoint", checkpoint)
        except WorkflowUpdateFailedError as error:
            raise _error_of_checkpoint(error) from None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise StaleCallError("the call is stale: its run has ended") from None
            if error.status is RPCStatusCode.FAILED_PRECONDITION:
                raise CheckpointInvalidError(f"run {run_id}: {_NO_MORE_CHECKPOINTS} ({error.message})") from None
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
    ) -> list[Run]:
        """A page of runs. Lists lag, usually below a second."""
        wanted = RunFilter(status=status, function_id=function_id, started_after=started_after)
        return await self._search.list_runs(wanted, limit, cursor, id_suffix and id_suffix.upper())

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
        """A page of runs. ``event_name`` is that of the first event of a batch."""
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

    async def count_runs(
        self,
        *,
        function_id: str | None = None,
        app_id: str | None = None,
        event_name: str | None = None,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
    ) -> StatusCounts:
        """Numbers of runs. Running runs include scheduled ones.

        Raises ``NotSupportedError`` if the server cannot count groups.
        """
        wanted = RunFilter(
            function_id=function_id,
            app_id=app_id,
            event_name=event_name,
            started_after=started_after,
            started_before=started_before,
        )
        counts = await self._lists.count_by_status(wanted)
        return StatusCounts(
            counts={status: MatchCount(count=count, is_complete=True) for status, count in counts.items()}
        )

    async def get_run(self, run_id: str) -> Run | None:
        return await self._reports.find(run_id)

    async def run_steps(self, run_id: str) -> list[Step]:
        return await self._reports.steps(run_id)

    async def run_attempts(self, run_id: str) -> list[Attempt]:
        return await self._reports.attempts(run_id)

    async def run_calls(self, run_id: str) -> list[RunCall]:
        return await self._reports.calls(run_id)

    async def inspect_run(self, run_id: str) -> RunReport | None:
        return await self._reports.report(run_id)

    async def run_batch(self, run_id: str) -> msgspec.Raw | None:
        return await self._reports.batch(run_id)

    async def run_actions(self, run_id: str) -> msgspec.Raw | None:
        return await self._reports.memos(run_id)

    async def skip_delays(self, run_id: str, *, step_id: str | None = None) -> int:
        return await self._update_live(run_id, "skip_delays", step_id, 0)

    async def add_run_metadata(self, run_id: str, body: msgspec.Raw) -> bool:
        metadata = RunMetadata(received_at=to_datetime(wall_clock()), body=body)
        return await self._update_live(run_id, "annotate", Annotation(metadata=metadata), False)

    async def add_run_logs(self, run_id: str, lines: list[LogLine]) -> bool:
        if self._settings.server_kind is not ServerKind.DEV:
            return False
        return await self._update_live(run_id, "annotate", Annotation(lines=lines), False)

    async def _update_live(self, run_id: str, update: str, argument: Any, of_ended: T) -> T:
        """The result of an Update of a run, or ``of_ended`` if the run has ended.

        Raises ``RunNotFoundError``, and ``NotSupportedError`` after too many Updates.
        """
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        try:
            result: T = await handle.execute_update(update, argument, result_type=type(of_ended))
        except (RPCError, WorkflowUpdateFailedError) as error:
            if isinstance(error, RPCError) and error.status is RPCStatusCode.FAILED_PRECONDITION:
                message = f"run {run_id}: Temporal accepts no further change of this run ({error.message})"
                raise NotSupportedError(message) from None
            has_ended = isinstance(error, WorkflowUpdateFailedError) or error.status is RPCStatusCode.NOT_FOUND
            if not has_ended:
                raise
            if await self._views.describe(run_id) is None:
                raise RunNotFoundError(f"there is no run with the id {run_id!r}") from None
            return of_ended
        return result

    async def run_metadata(self, run_id: str) -> list[RunMetadata] | None:
        record = await self._reports.record(run_id)
        return None if record is None else record.metadata

    async def list_logs(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        position: int | None = None,
        limit: int = 100,
    ) -> LogPage:
        """Lines of one run. Raises ``NotSupportedError`` without ``run_id``."""
        if run_id is None:
            raise NotSupportedError("an engine on Temporal has the log lines of one run at a time: name a run")
        return await self._reports.logs(run_id, position, limit)

    async def add_traces(self, body: bytes, content_type: str) -> bool:
        """Discard spans. Apps need an OpenTelemetry exporter."""
        return False

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

    async def wait_for_run(self, run_id: str) -> Run:
        run = await self._views.find(run_id)
        if run is not None and not run.status.has_ended:
            await self._views.output(run_id)
            run = await self._views.find(run_id)
        if run is None:
            raise RunNotFoundError(f"no run has the id {run_id!r}")
        return run

    async def cancel_run(self, run_id: str) -> bool:
        """Cancel a run. Returns when it has ended, or after 5 s if no worker executes it."""
        run = await self._views.describe(run_id)
        if run is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        if status_of(run).has_ended:
            return False
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        try:
            await handle.cancel(reason=CancelRequested().reason)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:  # It ended in between.
                return False
            raise
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._views.output(run_id), _CANCEL_SECONDS)
        return True

    async def invoke(
        self, function_id: str, data: dict[str, Any] | None = None, *, user: Any = None, v: str | None = None
    ) -> InvokeReceipt:
        if data is not None and not isinstance(data, dict):
            raise EventInvalidError(f"function {function_id!r} is invoked with data that is not an object")
        event = Event(name=InternalEvent.FUNCTION_INVOKED, data=data or {}, user=user, v=v)
        check_event(event, self._settings.max_event_bytes, is_internal=True)
        event_id = make_id(wall_clock(), os.urandom)
        return InvokeReceipt(event_id=event_id, run_id=await self._router.invoke(function_id, event, event_id))

    async def signal(self, name: str, data: Any = None) -> str | None:
        memo = data_memo(b'{"data":' + msgspec.json.encode(data) + b',"signal":' + msgspec.json.encode(name) + b"}")
        return await self._router.waits.send_signal(name, memo)

    async def rerun(self, run_id: str, *, from_step: FromStep | None = None) -> str:
        now = wall_clock()
        return await self._reruns.start(run_id, now, make_id(now, os.urandom), from_step)

    # bulk operations

    async def cancel_runs(
        self,
        function_id: str,
        *,
        started_before: dt.datetime,
        started_after: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> BulkOperation:
        selection = await self._select(function_id, app_id, started_after, started_before, if_exp)
        return await self._bulk.cancel(selection, wall_clock())

    async def _select(
        self,
        function_id: str,
        app_id: str | None,
        started_after: dt.datetime | None,
        started_before: dt.datetime | None,
        if_exp: str | None,
    ) -> Selection:
        if app_id and await self._router.records.find_function(function_id) is None:
            function_id = f"{app_id}-{function_id}"
        selection = Selection(
            function_id=function_id,
            started_after=started_after,
            started_before=started_before or to_datetime(wall_clock()),
            expression=if_exp or None,
        )
        check_selection(selection)
        return selection

    async def list_cancellations(self) -> list[BulkOperation]:
        return await self._bulk.all(is_replay=False)

    async def get_cancellation(self, cancellation_id: str) -> BulkOperation | None:
        return await self._bulk.find(cancellation_id, is_replay=False)

    async def delete_cancellation(self, cancellation_id: str) -> None:
        await self._bulk.stop(cancellation_id)

    async def replay_runs(
        self,
        function_id: str,
        *,
        statuses: Collection[RunStatus] = (RunStatus.FAILED,),
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> BulkOperation:
        check_statuses(statuses)
        selection = await self._select(function_id, app_id, started_after, started_before, if_exp)
        return await self._bulk.replay(selection, tuple(statuses), wall_clock())

    async def list_replays(self) -> list[BulkOperation]:
        return await self._bulk.all(is_replay=True)

    async def get_replay(self, replay_id: str) -> BulkOperation | None:
        return await self._bulk.find(replay_id, is_replay=True)

    # events

    async def list_events(
        self,
        *,
        name: str | None = None,
        received_after: dt.datetime | None = None,
        received_before: dt.datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        id_suffix: str | None = None,
    ) -> list[StoredEvent]:
        """Events that started runs. Temporal stores no others."""
        wanted = EventFilter(name=name, received_after=received_after, received_before=received_before, id=id_suffix)
        return await self._event_lists.list_events(wanted, limit, cursor)

    async def search_events(
        self,
        *,
        name: str | None = None,
        received_after: dt.datetime | None = None,
        received_before: dt.datetime | None = None,
        is_unmatched: bool | None = None,
        if_exp: str | None = None,
        id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> EventPage:
        """Events that started runs.

        Raises ``NotSupportedError`` for those that matched nothing.
        """
        wanted = EventFilter(
            name=name,
            received_after=received_after,
            received_before=received_before,
            is_unmatched=is_unmatched,
            condition=await asyncio.to_thread(check_condition, if_exp) if if_exp else None,
            id=id or None,
        )
        return await self._event_lists.search(wanted, limit, cursor)

    async def get_event(self, event_id: str) -> StoredEvent | None:
        """An event. Raises ``NotSupportedError`` if it started no run."""
        event = await self._event_lists.find(event_id)
        if event is None:
            raise NotSupportedError(
                f"no run was started by an event with the id {event_id!r}: an engine on Temporal stores events in the "
                "runs that they start, and no others. Idempotency, a rate limit or a debounce of a function may have "
                "dropped the event, or a debounce or a batch holds it; lists of new runs lag behind by about a second"
            )
        return event

    async def event_runs(self, event_id: str) -> list[Run]:
        return await self._event_lists.runs(event_id)

    # overviews

    async def describe_engine(self) -> EngineInfo:
        ui_url = self._ui_url
        return EngineInfo(
            kind="Temporal",
            notes=[_LAG_NOTE, _EVENTS_NOTE],
            unsupported=self.unsupported,
            ui_url=ui_url,
            run_url=None if ui_url is None else f"{ui_url}/{quote(run_workflow_id(''), safe='')}{{run_id}}",
        )

    async def overview(self, *, since: dt.datetime | None = None, until: dt.datetime | None = None) -> Overview:
        return await self._loads.overview(since, until, wall_clock())

    async def function_loads(
        self, *, since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[FunctionLoad]:
        return await self._loads.function_loads(since, until, wall_clock())

    async def inspect_function(self, function_id: str, *, since: dt.datetime | None = None) -> FunctionReport | None:
        record = await self._router.records.find_function(function_id)
        if record is None or not record.is_active:
            return None
        return await self._loads.function_report(function_view(function_id, record), since, wall_clock())

    async def inspect_apps(self) -> list[AppReport]:
        return await self._loads.app_reports()

    async def list_schedules(self) -> list[ScheduleInfo]:
        return await self._function_lists.schedules(wall_clock())

    async def wait_for_changes(self, *, after: int | None = None, run_id: str | None = None) -> Changes:
        return await self._changes.wait(after, run_id)

    async def read_metrics(self) -> list[Metric]:
        """Counts of this process, and live runs of its functions.

        Temporal and its workers have their own metrics.
        """
        return self._monitor.read(await self._live_runs.get())

    async def _count_live_runs(self) -> Counter[str]:
        """Count live runs of functions that this process serves.

        Other apps' functions would exhaust the labels.
        """
        served = [
            view.id
            for view in await self._function_lists.functions()
            if HTTP_QUEUE in self._call_queues or app_queue(view.app_id) in self._call_queues
        ]
        return await self._loads.live(served)

    # functions and apps

    async def list_functions(self) -> list[FunctionInfo]:
        return await self._function_lists.functions()

    async def list_apps(self) -> list[App]:
        return await self._function_lists.apps()

    async def list_app_functions(self, app_id: str) -> list[FunctionInfo] | None:
        return await self._function_lists.of_app(app_id)

    async def pause_function(self, function_id: str) -> None:
        await self._function_lists.set_paused(function_id, True)

    async def resume_function(self, function_id: str) -> None:
        await self._function_lists.set_paused(function_id, False)


def _error_of_checkpoint(error: WorkflowUpdateFailedError) -> Exception:
    cause = error.cause
    kinds = {each.__name__: each for each in (StaleCallError, CheckpointInvalidError, TooLargeError)}
    kind = kinds.get(getattr(cause, "type", ""), CheckpointInvalidError)
    return kind(getattr(cause, "message", str(cause)))
