"""The engine on Temporal: its operations, and the engine of ``durably start --temporal``."""

import asyncio
import contextlib
import datetime as dt
import os
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Self
from urllib.parse import quote

import msgspec
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.api.local import LocalEngine
from durably.engine.api.metrics import Metric
from durably.engine.core.calls import Answer, CallData, Unreached, generation_of_checkpoint, shorten_op_error
from durably.engine.core.inputs import CancelRequested
from durably.engine.model.calls import HttpCaller
from durably.engine.model.dispatcher import Dispatcher
from durably.engine.model.events import make_id
from durably.engine.model.functions import SyncedFunction, read_sync
from durably.engine.model.overview import (
    App,
    Changes,
    EngineInfo,
    FunctionInfo,
    SyncResult,
)
from durably.engine.model.questions import (
    LONGEST_ASK_SECONDS,
    Asked,
    AskState,
    OpenQuestion,
    ask_until,
    check_question,
    find_outcome,
    make_ask,
    message_memo,
    open_questions,
    signal_memo,
)
from durably.engine.model.requests import OutboundClient
from durably.engine.model.run_report import RunRows, report_steps
from durably.engine.model.runs import (
    MAX_PROGRESS_TEXT,
    FromStep,
    InvokeReceipt,
    LogPage,
    Progress,
    Run,
    RunCall,
    RunFilter,
    RunMetadata,
    RunPage,
    RunUpdate,
    StoredEvent,
    to_datetime,
)
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.apps import AppSync, FunctionLists
from durably.engine.temporal.client import ignoring_not_found, is_unreachable, with_cancellation
from durably.engine.temporal.ids import HTTP_QUEUE, run_workflow_id, split_generation
from durably.engine.temporal.index import RunLists, RunQuery, register_search_attributes, status_of
from durably.engine.temporal.messages import PROGRESS, CallInput, CheckpointInput
from durably.engine.temporal.observers import ProcessMonitor
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.run_reports import RunReports
from durably.engine.temporal.run_streams import RunStreams
from durably.engine.temporal.runs.activities import ActivityCaller
from durably.engine.temporal.runs.sizes import (
    MAX_EVENT_BYTES,
    MAX_OUTPUT_BYTES,
    check_step,
    split_steps,
    without_large_arguments,
)
from durably.engine.temporal.support import UNSUPPORTED, check_support
from durably.engine.temporal.workers import ProcessWorkers, WorkerGroup, make_workers
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.channels import MessageBatch
from durably.protocol.engine_errors import (
    CheckpointInvalidError,
    EngineError,
    FunctionNotFoundError,
    FunctionPausedError,
    NotSupportedError,
    RunNotFoundError,
    ServerUnavailableError,
    StaleCallError,
    TooLargeError,
)
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event, EventReceipt
from durably.protocol.questions import Ask, reply_key, signal_of
from durably.protocol.sync import SyncRequest

_NOTES = [
    "Lists and counts come from Temporal's index, which lags behind, usually by less than a second.",
    "Temporal stores events in the runs that they start, and no others, so there is no list of events.",
]
_NO_MORE_CHECKPOINTS = (
    "Temporal accepts no further checkpoint, so each further step needs a call of its own: buffer steps "
    "(buffered_steps), or spread the work over several runs"
)
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.1, 1.0
"""Seconds between two looks at a run that is asked."""
_VERIFY_TIMEOUT = dt.timedelta(seconds=2)
_PROGRESS_SECONDS, _PROGRESS_GROWTH, _LONGEST_PROGRESS_SECONDS = 5.0, 1.02, 600.0
"""The pause after the first progress of a run, the growth of the following ones, and the longest."""
_MOST_COUNTED = 10_000
_HELD_SECONDS = 1.0
"""Seconds after which a waiter looks again for a run that flow control holds back."""
_CANCEL_SECONDS = 5.0
"""Seconds for which a cancellation waits for the run's end."""
_FUNCTION_SECONDS = 1.0
"""Seconds for which the URL of a function is cached. A change of an app's URL takes effect after this time."""


class WorkflowEngine(LocalEngine):
    """The engine on Temporal. ``client`` has ``DATA_CONVERTER``."""

    unsupported = frozenset(UNSUPPORTED)
    alternatives = UNSUPPORTED

    def __init__(self, client: Client, settings: EngineSettings) -> None:
        settings = msgspec.structs.replace(settings, max_event_bytes=min(settings.max_event_bytes, MAX_EVENT_BYTES))
        client = with_cancellation(client)
        self._client = client
        self._settings = settings
        self._outbound = OutboundClient(
            allow_private_addresses=settings.allow_private_addresses, max_bytes=MAX_OUTPUT_BYTES
        )
        self._router = Router(client, settings)
        self._apps = AppSync(client, settings)
        self._lists = RunLists(client)
        self._reports = RunReports(client, self._router.records, self._lists)
        self._streams = RunStreams(self._lists, self._reports)
        self._functions = FunctionLists(client, self._router.records)
        self._monitor = ProcessMonitor(settings)
        self._has_search_attributes = False
        self._progress_counts: dict[str, int] = {}
        self._ui_url: str | None = None
        if (url := settings.temporal_ui) is not None:
            self._ui_url = f"{url.rstrip('/')}/namespaces/{quote(client.namespace, safe='')}/workflows"

    def make_workers(self, calls_queues: Sequence[str], call: ActivityCaller) -> ProcessWorkers:
        """The workers of a process. They make the calls of task queues by ``call``."""
        return make_workers(
            self._client,
            calls_queues,
            self._monitor.monitor(self._client.namespace, calls_queues, call),
            router=self._router,
            apps=self._apps,
            outbound=self._outbound,
            max_calls=self._settings.max_calls,
        )

    async def close(self) -> None:
        """Close the connections of steps' requests, and end watches. Stop the workers first."""
        self._streams.close()
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

    def watch(self) -> contextlib.AbstractContextManager[AsyncIterator[RunUpdate]]:
        """The updates of runs that this process executes. Workflows report their changes to their process."""
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
        functions = read_sync(request, in_process=in_process)
        check_support(functions)
        await self.prepare()
        result = await self._apps.sync(request, functions, in_process=in_process)
        self._router.has_synced = self._router.has_synced or bool(functions)
        return result

    async def accept_events(
        self,
        events: Sequence[Event],
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
    ) -> EventReceipt:
        receipt = await self._router.receive(events, seed=seed, sender=sender, traceparent=traceparent)
        self._monitor.note_events([event.name for event in events], receipt.unmatched)
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

    async def _find_runs(self, wanted: RunFilter, limit: int, cursor: str | None) -> RunPage:
        """Runs that have not ended first, then in the order of their ends. Lists lag, usually below a second.

        ``event_name`` is that of the first event of a batch. Raises ``NotSupportedError`` for an expression.
        """
        if wanted.if_exp:
            raise NotSupportedError(
                f"an engine on Temporal has no search by expressions: {UNSUPPORTED['search_runs.if_exp']}"
            )
        return await self._lists.search(RunQuery(**msgspec.structs.asdict(wanted)), limit, cursor)

    async def get_run(self, run_id: str) -> Run | None:
        return await self._reports.find(run_id)

    async def _read_run(self, run_id: str, *, has_context: bool) -> RunRows | None:
        return await self._reports.rows(run_id, has_context=has_context)

    async def run_calls(self, run_id: str) -> list[RunCall]:
        return await self._reports.calls(run_id)

    async def run_batch(self, run_id: str) -> msgspec.Raw | None:
        return await self._reports.batch(run_id)

    async def run_actions(self, run_id: str) -> msgspec.Raw | None:
        return await self._reports.memos(run_id)

    async def add_run_metadata(self, run_id: str, body: msgspec.Raw) -> bool:
        """Discard metadata."""
        return False

    async def run_metadata(self, run_id: str) -> list[RunMetadata]:
        return []

    async def add_run_logs(self, run_id: str, lines: list[LogLine]) -> bool:
        """Discard lines, as each engine in production."""
        return False

    async def report_progress(self, run_id: str, fraction: float, message: str = "") -> float:
        """Store the progress in the run's memo. Each value costs about five events of its history, so pauses grow."""
        progress = Progress(fraction, message[:MAX_PROGRESS_TEXT], to_datetime(wall_clock()))
        with ignoring_not_found():  # The run has ended.
            await self._client.get_workflow_handle(run_workflow_id(run_id)).signal(PROGRESS, progress)
        count = self._progress_counts.pop(run_id, 0)
        self._progress_counts[run_id] = count + 1
        while len(self._progress_counts) > _MOST_COUNTED:
            del self._progress_counts[next(iter(self._progress_counts))]
        return min(_PROGRESS_SECONDS * _PROGRESS_GROWTH**count, _LONGEST_PROGRESS_SECONDS)

    async def read_messages(
        self, channels: dict[str, int], *, reader: str | None = None, waits: bool = True
    ) -> MessageBatch:
        """The engine's messages about runs. Raises ``NotSupportedError`` for other channels."""
        return await self._streams.read(channels, reader=reader, waits=waits)

    async def list_logs(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        position: int | None = None,
        limit: int = 100,
    ) -> LogPage:
        return LogPage(entries=[], position=1)

    async def add_traces(self, body: bytes, content_type: str) -> bool:
        """Discard spans. Apps need an OpenTelemetry exporter."""
        return False

    async def wait_for_run(self, run_id: str, *, within: float | None = None) -> Run:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while True:
                    described = await self._lists.describe(run_id)
                    if described is not None:
                        if not status_of(described).has_ended:
                            await self._lists.output(run_id)
                        break
                    run = await self._reports.find_start(run_id)
                    if run is None or run.status.has_ended:
                        break
                    if run.id == run_id:  # Flow control holds it back.
                        await asyncio.sleep(_HELD_SECONDS)
                    run_id = run.id
        run = await self.get_run(run_id)
        if run is None:
            raise RunNotFoundError(f"no run has the id {run_id!r}")
        return run

    async def cancel_run(self, run_id: str) -> bool:
        """Cancel a run. Returns when it has ended, or after 5 s if no worker executes it."""
        run = await self._lists.describe(run_id)
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
            await asyncio.wait_for(self._lists.output(run_id), _CANCEL_SECONDS)
        return True

    async def _start_invocation(
        self, function_id: str, event: Event, *, seed: str | None, sender: str | None, traceparent: str | None
    ) -> InvokeReceipt:
        return await self._router.invoke(function_id, event, seed=seed, sender=sender, traceparent=traceparent)

    async def signal(self, name: str, data: Any = None, *, run_id: str | None = None) -> str | None:
        return await self._router.waits.send_signal(name, signal_memo(name, msgspec.json.encode(data)), run_id)

    async def ask_run(
        self,
        run_id: str,
        name: str,
        data: Any = None,
        *,
        id: str,
        step_id: str | None = None,
        is_only: bool = False,
        needs_reply: bool = True,
        within: float = LONGEST_ASK_SECONDS,
    ) -> Asked:
        ask = make_ask(name, id, data, is_only, self._settings.max_event_bytes)
        seconds = _FIRST_POLL_SECONDS

        async def wait_for_change(most: float) -> None:
            nonlocal seconds
            await asyncio.sleep(min(seconds, most))
            seconds = min(2 * seconds, _LAST_POLL_SECONDS)

        return await ask_until(
            run_id,
            name,
            partial(self._try_to_ask, run_id, name, ask, step_id),
            wait_for_change,
            needs_reply=needs_reply,
            within=within,
        )

    async def _try_to_ask(self, run_id: str, name: str, ask: Ask, step_id: str | None) -> Asked:
        """Deliver a message as a signal, unless the run has it, and look for its reply.

        If the report of the run does not have a message yet that was delivered, it is delivered again: the function
        ignores it.
        """
        rows = await self._read_run(run_id, has_context=False)
        if rows is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        signal = signal_of(run_id, name)
        received = (memo for step, memo in rows.finished if step.times.topic == signal)
        memos = {step.step_id: memo for step, memo in rows.finished}
        outcome = find_outcome(name, ask, received, lambda ask_id: memos.get(reply_key(name, ask_id)))
        if outcome is None:
            question = next((each for each in open_questions(rows.run, report_steps(rows)) if each.name == name), None)
            check_question(question, run_id, name, ask, step_id)
            waits, is_sent = self._router.waits, None
            if question is not None:
                is_sent = await waits.send_signal(signal, message_memo(question, ask), step_id=question.step_id)
            outcome = Asked(state=AskState.DELIVERED if is_sent else AskState.WAITING)
        return msgspec.structs.replace(outcome, status=rows.run.status)

    async def list_questions(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> list[OpenQuestion]:
        """The open questions of the run ``run_id``. Raises ``NotSupportedError`` without it."""
        if run_id is None:
            advice = UNSUPPORTED["list_questions"]
            raise NotSupportedError(f"an engine on Temporal lists the questions of one run only: {advice}")
        rows = await self._read_run(run_id, has_context=False)
        if rows is None or cursor is not None or function_id not in (None, rows.run.function_id):
            return []
        return open_questions(rows.run, report_steps(rows))[:limit]

    async def rerun(self, run_id: str, *, from_step: FromStep | None = None) -> str:
        """See ``Engine``. Raises also ``RunUnavailableError`` if no worker reads the steps of the run."""
        given = await self._lists.input(run_id)
        if given is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        record = await self._functions.get(given.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {given.function_id!r} is paused; resume it before you run anything again"
            )
        # The invoking step has its result already.
        events = tuple(msgspec.structs.replace(event, invoker=None) for event in given.events)
        run = msgspec.structs.replace(
            self._router.run_input(record, events),
            run_id=make_id(wall_clock(), os.urandom),
            rerun_of=run_id,
            parent=None,
            parent_step=None,
            copied=None if from_step is None else await self._reports.copied_memos(given, from_step),
        )
        return await self._router.buckets.start(run, record)

    # events

    async def get_event(self, event_id: str) -> StoredEvent | None:
        """An event. Raises ``NotSupportedError`` if it started no run."""
        event = await self._lists.event(event_id)
        if event is None:
            raise NotSupportedError(
                f"no run was started by an event with the id {event_id!r}: an engine on Temporal stores events in the "
                "runs that they start, and no others. Idempotency, a rate limit or a debounce of a function may have "
                "dropped the event, or a debounce or a batch holds it; lists of new runs lag behind by about a second"
            )
        return event

    async def event_runs(self, event_id: str) -> list[Run]:
        return await self._lists.event_runs(event_id)

    # the engine, functions and apps

    async def describe_engine(self) -> EngineInfo:
        ui_url = self._ui_url
        return EngineInfo(
            kind="Temporal",
            notes=_NOTES,
            unsupported=self.unsupported,
            ui_url=ui_url,
            run_url=None if ui_url is None else f"{ui_url}/{quote(run_workflow_id(''), safe='')}{{run_id}}",
        )

    async def wait_for_changes(self, *, after: int | None = None, run_id: str | None = None) -> Changes:
        return await self._lists.wait_for_changes(after, run_id)

    async def read_metrics(self) -> list[Metric]:
        """Counts of this process. Temporal and its workers have their own metrics."""
        return self._monitor.read()

    async def list_functions(self) -> list[FunctionInfo]:
        return await self._functions.functions()

    async def list_apps(self) -> list[App]:
        return await self._functions.apps()

    async def list_app_functions(self, app_id: str) -> list[FunctionInfo] | None:
        return await self._functions.of_app(app_id)

    async def pause_function(self, function_id: str) -> None:
        await self._apps.set_paused(function_id, await self._functions.get(function_id), True)

    async def resume_function(self, function_id: str) -> None:
        await self._apps.set_paused(function_id, await self._functions.get(function_id), False)


class HttpWorkflowEngine(WorkflowEngine):
    """An engine that executes workflows and calls apps at their synced URLs.

    Several processes may serve the same apps.
    """

    def __init__(self, client: Client, settings: EngineSettings) -> None:
        super().__init__(client, settings)
        self._caller = HttpCaller(settings)
        self._workers = WorkerGroup(lambda: self.make_workers([HTTP_QUEUE], self._call_app), settings.close_grace)
        self._called: dict[str, tuple[float, SyncedFunction]] = {}

    @classmethod
    async def open(cls, client: Client, settings: EngineSettings) -> Self:
        """Prepare the namespace, and run workers.

        Raises ``RPCError``, and ``SearchAttributeError`` if the namespace cannot be prepared.
        """
        engine = cls(client, settings)
        try:
            await engine.prepare()
        except BaseException:
            await engine.close()
            raise
        engine._workers.start()
        return engine

    @property
    def connected(self) -> Dispatcher:
        return self._caller.connected

    async def close(self) -> None:
        self._monitor.end_updates()  # Streams of changes must end before calls do.
        self._streams.close()
        await self._workers.stop()
        await self._caller.close()
        await super().close()

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        result = await super().sync_app(request, in_process=in_process)
        self._called.clear()
        return result

    async def _call_app(self, call: CallInput, data: CallData) -> Answer:
        try:
            function = await self._find_function(call.function_id)
        except EngineError as error:
            return Unreached(ErrorData(name=type(error).__name__, message=error.message))
        return await self._caller.call(function, data)

    async def _find_function(self, function_id: str) -> SyncedFunction:
        known = self._called.get(function_id)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        record = await self._router.records.find_function(function_id)
        if record is None:
            raise FunctionNotFoundError(f"no app has synced a function with the id {function_id!r}")
        function = SyncedFunction.from_config(record.config, record.app_id, record.app_version)
        self._called[function_id] = (time.monotonic() + _FUNCTION_SECONDS, function)
        return function


def _error_of_checkpoint(error: WorkflowUpdateFailedError) -> Exception:
    cause = error.cause
    kinds = {each.__name__: each for each in (StaleCallError, CheckpointInvalidError, TooLargeError)}
    kind = kinds.get(getattr(cause, "type", ""), CheckpointInvalidError)
    return kind(getattr(cause, "message", str(cause)))
