"""rr"""

import asyncio
import datetime as dt
import hashlib
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution as WorkflowId
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.call_body import join_memos
from durably.engine.core.expressions import Expression, compile_expression
from durably.engine.core.inputs import CancelRequested
from durably.engine.core.run_state import RunState, RunStatus
from durably.engine.model.events import ENTROPY_BYTES, make_id
from durably.engine.model.registry import CANCELLED_IN_BULK
from durably.engine.model.reports import LogEntry, LogPage, RunLink, RunReport
from durably.engine.model.rows import AttemptRow, MemoRow
from durably.engine.model.step_reports import RunFacts, StepReporter, report_run
from durably.engine.model.step_views import call_views, called_step, finished_step, waiting_step
from durably.engine.model.views import (
    AttemptView,
    CallView,
    CancellationView,
    FromStep,
    ReplayView,
    RunStatus,
    RunView,
    Selection,
    StepView,
    to_datetime,
    to_milliseconds,
    to_optional_datetime,
    to_optional_milliseconds,
)
from durably.engine.temporal.client import describe, ignoring_not_found
from durably.engine.temporal.ids import CALL_ID_PREFIX, WORKFLOWS_QUEUE, bulk_workflow_id, run_id_of, run_workflow_id
from durably.engine.temporal.messages import CopiedMemos, FunctionRecord, MemoRecord, RunInput
from durably.engine.temporal.reports.function_lists import FunctionLists
from durably.engine.temporal.reports.lists import (
    RunFilter,
    RunLists,
    RunSearch,
    RunViews,
    event_view,
    memo_of,
    status_of,
)
from durably.engine.temporal.reports.XX import BULK, BULK_PAGE, BulkInput, BulkPage, BulkRecord, BulkWorkflow
from durably.engine.temporal.routing.bulk_cancellations import BulkCancellations
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.runs.record import RecordPage, RunSummary, StepsPage
from durably.protocol.engine_errors import (
    CancellationNotFoundError,
    FunctionNotFoundError,
    FunctionPausedError,
    RunNotFoundError,
    RunUnavailableError,
    SelectionInvalidError,
    StepNotFoundError,
)
from durably.protocol.opcodes import hash_step_id

_QUERY_TIMEOUT = dt.timedelta(seconds=10)
_SUMMARY_TIMEOUT = dt.timedelta(seconds=3)
_MOST_CHILDREN = 200
_NO_WORKERS = (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION)


class _Recorded(msgspec.Struct):
    """The record of a run, and its finished steps with their memos.

    ``state`` is set for a live run.
    """

    record: RecordPage
    failed: list[AttemptRow]
    steps: list[tuple[MemoRow, bytes]]
    state: RunState | None


class RunReports:
    def __init__(self, client: Client, router: Router, lists: RunLists, views: RunViews) -> None:
        self._client = client
        self._router = router
        self._lists = lists
        self._views = views

    async def find(self, run_id: str) -> RunView | None:
        """A run, with its current waits if a worker answers."""
        described = await self._views.describe(run_id)
        if described is None:
            return None
        try:
            return await self._view_now(described)
        except RunUnavailableError:
            return await self._views.view(described)

    async def _view_now(self, described: WorkflowExecution) -> RunView:
        """A run with its current waits. Raises ``RunUnavailableError``."""
        run = await self._views.view(described)
        if run.status.has_ended:
            return run
        summary: RunSummary = await self._query(run.id, "summary", result_type=RunSummary, timeout=_SUMMARY_TIMEOUT)
        calls = _calls_under_way(described)
        started_at = summary.started_at or min(calls.values(), default=None)
        return msgspec.structs.replace(
            run,
            status=RunStatus.SCHEDULED if started_at is None else RunStatus.RUNNING,
            started_at=to_optional_datetime(started_at),
            attempt=summary.attempt,
            waiting=summary.waiting,
        )

    async def steps(self, run_id: str) -> list[StepView]:
        described = await self._views.describe(run_id)
        if described is None:
            return []
        recorded = await self._read(described)
        views = [
            finished_step(
                row.step_id,
                row.name,
                row.op,
                row.attempts,
                row.failed,
                row.times.created_at,
                row.times.ended_at,
                memo,
            )
            for row, memo in recorded.steps
        ]
        state = recorded.state
        if state is not None:
            calls, waits = _calls_under_way(described), recorded.record.waits
            views += [called_step(call, call.generation in calls) for call in state.calls if call.name]
            views += [waiting_step(wait, waits[wait.step_id]) for wait in state.waits if wait.step_id in waits]
        return views

    async def attempts(self, run_id: str) -> list[AttemptView]:
        if await self._views.describe(run_id) is None:
            return []
        _, failed = await self._read_record(run_id)
        ordered = sorted(failed, key=lambda row: (row.ended_at, row.name, row.attempt))
        return [
            AttemptView(step=row.name or None, attempt=row.attempt, ended_at=to_datetime(row.ended_at), error=row.error)
            for row in ordered
        ]

    async def calls(self, run_id: str) -> list[CallView]:
        described = await self._views.describe(run_id)
        if described is None:
            return []
        if status_of(described).has_ended:
            return []
        record, _ = await self._read_record(run_id)
        assert record.state is not None
        return call_views(run_id, record.state, _calls_under_way(described).__contains__)

    async def report(self, run_id: str) -> RunReport | None:
        """Without a worker, it has only the server's data, and is marked so."""
        described = await self._views.describe(run_id)
        if described is None:
            return None
        memo = await memo_of(described)
        unavailable = None
        try:
            run = await self._view_now(described)
            recorded = await self._read(described)
        except RunUnavailableError as error:
            run = await self._views.view(described)
            recorded = _Recorded(RecordPage(total=0), [], [], None)
            unavailable = error.message
        if run.status.has_ended and recorded.record.started_at is not None:
            run = msgspec.structs.replace(run, started_at=to_datetime(recorded.record.started_at))
        calls = _calls_under_way(described)
        children, has_more = await self._children(run_id)
        reporter = StepReporter(run, calls.get, children, recorded.failed)
        record = recorded.record
        steps = reporter.report(recorded.steps, record.unfinished, recorded.state, record.waits)
        function = await self._router.records.find_function(run.function_id)
        given = await self._views.input(run_id)
        facts = RunFacts(
            function_name=(function.config.name if function is not None else None) or run.function_id,
            app_version=memo.app_version,
            last_called_at=record.last_called_at,
            events=[] if given is None else [event_view(event) for event in given.events],
            parent=await self._parent(described),
            children=children,
            has_more_children=has_more,
            logs=record.logs,
        )
        return msgspec.structs.replace(report_run(run, facts, reporter, steps), unavailable=unavailable)

    async def record(self, run_id: str) -> RecordPage | None:
        """The record of a run without its steps, or ``None`` if the run does not exist."""
        if await self._views.describe(run_id) is None:
            return None
        record, _ = await self._read_record(run_id)
        return record

    async def logs(self, run_id: str, position: int | None, limit: int) -> LogPage:
        """Lines from ``position`` on (1 is the first); by default the latest."""
        record = await self.record(run_id)
        described = await self._views.describe(run_id)
        if record is None or described is None:
            return LogPage(entries=[], position=1)
        function_id = (await memo_of(described)).function_id
        first = max(len(record.logs) - limit, 0) if position is None else position - 1
        lines = record.logs[first : first + limit]
        entries = [LogEntry(run_id=run_id, function_id=function_id, line=line) for line in lines]
        return LogPage(entries=entries, position=first + len(lines) + 1)

    async def batch(self, run_id: str) -> msgspec.Raw | None:
        """The run's events in the protocol's form."""
        given = await self._views.input(run_id)
        if given is None:
            return None
        return msgspec.Raw(b"[" + b",".join(bytes(event.body) for event in given.events) + b"]")

    async def memos(self, run_id: str) -> msgspec.Raw | None:
        """The run's memos by hashed step id in the protocol's form."""
        given = await self._views.input(run_id)
        if given is None:
            return None
        memos: list[tuple[str, bytes]] = []
        async for page in self.steps_pages(run_id):
            memos += [(row.step_id, bytes(memo)) for row, memo in zip(page.steps, page.memos, strict=True)]
        step_input = None if given.copied is None else given.copied.step_input
        if step_input is not None and all(step_id != step_input.step_id for step_id, _ in memos):
            memos.append((step_input.step_id, bytes(step_input.memo)))
        return msgspec.Raw(join_memos(memos))

    async def steps_pages(self, run_id: str) -> AsyncIterator[StepsPage]:
        """The finished steps of a run, with their memos. Raises ``RunUnavailableError``."""
        after = 0
        while True:
            page: StepsPage = await self._query(run_id, "steps", after, result_type=StepsPage)
            yield page
            after += len(page.steps)
            if after >= page.total or not page.steps:
                return

    async def _read(self, described: WorkflowExecution) -> _Recorded:
        run_id = run_id_of(described.id)
        record, failed = await self._read_record(run_id)
        steps: list[tuple[MemoRow, bytes]] = []
        async for page in self.steps_pages(run_id):
            steps += [(row, bytes(memo)) for row, memo in zip(page.steps, page.memos, strict=True)]
        return _Recorded(record, failed, steps, None if status_of(described).has_ended else record.state)

    async def _read_record(self, run_id: str) -> tuple[RecordPage, list[AttemptRow]]:
        """The record, and all failed attempts."""
        first: RecordPage = await self._query(run_id, "record", 0, result_type=RecordPage)
        failed = list(first.failed)
        while len(failed) < first.total:
            page: RecordPage = await self._query(run_id, "record", len(failed), result_type=RecordPage)
            failed += page.failed
        return first, failed

    async def _query(self, run_id: str, name: str, *arguments: Any, result_type: Any, timeout: Any = None) -> Any:
        """Query a run's workflow. Raises ``RunUnavailableError``."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        try:
            return await handle.query(
                name, args=arguments, result_type=result_type, rpc_timeout=timeout or _QUERY_TIMEOUT
            )
        except RPCError as error:
            if error.status not in _NO_WORKERS:
                raise
            reason = error.message
        except WorkflowQueryFailedError as error:
            reason = str(error)
        raise RunUnavailableError(
            f"no worker of the engine answers for run {run_id} ({reason}): to read its steps, start a process with the "
            "app (the app itself, or `durably worker`)"
        )

    async def _children(self, run_id: str) -> tuple[list[RunLink], bool]:
        """The runs that a run started, the earliest first, and whether there are more."""
        started = await self._lists.read(RunFilter(parent=run_id))
        links = [await self._views.link(each) for each in itertools.islice(reversed(started), _MOST_CHILDREN)]
        return links, len(started) > _MOST_CHILDREN

    async def _parent(self, described: WorkflowExecution) -> RunLink | None:
        memo = await memo_of(described)
        parent_id = memo.rerun_of or memo.parent
        parent = None if parent_id is None else await self._views.describe(parent_id)
        if parent is None:
            return None
        link = await self._views.link(described)
        of_parent = await self._views.link(parent, has_relation=False)
        return msgspec.structs.replace(of_parent, relation=link.relation, step=link.step)


def _calls_under_way(described: WorkflowExecution) -> dict[int, int]:
    """Start times of current calls in milliseconds, by generation."""
    if not isinstance(described, WorkflowExecutionDescription):
        return {}
    found = {}
    for each in described.raw_description.pending_activities:
        is_started = each.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        if is_started and each.activity_id.startswith(CALL_ID_PREFIX):
            started_at = each.last_started_time.ToDatetime(dt.UTC)
            found[int(each.activity_id.removeprefix(CALL_ID_PREFIX))] = to_milliseconds(started_at)
    return found


_MOST_NAMED = 20
View = TypeVar("View", CancellationView, ReplayView)
_TOGETHER = 100
"""Runs of one page."""
MAX_PRESENT_BYTES = 400_000
"""Maximum size of a function's current cancellations. The record is in a memo, which each event reads."""


class Reruns:
    def __init__(self, router: Router, functions: FunctionLists, reports: RunReports, views: RunViews) -> None:
        self._router = router
        self._functions = functions
        self._reports = reports
        self._views = views

    async def start(self, run_id: str, now: int, seed: str, from_step: FromStep | None = None) -> str:
        """Run again. The same ``now`` and ``seed`` give the same run.

        Raises ``RunNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, ``StepNotFoundError``, and
        ``RunUnavailableError`` if no worker reads the steps of the run.
        """
        given = await self._views.input(run_id)
        if given is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        record = await self._functions.get(given.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {given.function_id!r} is paused; resume it before you run anything again"
            )
        copied = None if from_step is None else await self._copied(given, from_step)
        # The invoking step has its result already.
        events = tuple(msgspec.structs.replace(event, invoker=None) for event in given.events)
        digest = hashlib.sha256(f"{seed}\n{run_id}".encode()).digest()[:ENTROPY_BYTES]
        run = msgspec.structs.replace(
            self._router.run_input(record, events),
            run_id=make_id(now, lambda _: digest),
            rerun_of=run_id,
            parent=None,
            parent_step=None,
            copied=copied,
        )
        return await self._router.buckets.start(run, record)

    async def _copied(self, given: RunInput, from_step: FromStep) -> CopiedMemos:
        """The memos before a step's memo. Raises ``StepNotFoundError``."""
        accepted = (from_step.step_id, hash_step_id(from_step.step_id))
        names: list[str] = []
        size = 0
        async for page in self._reports.steps_pages(given.run_id):
            for step, memo in zip(page.steps, page.memos, strict=True):
                if step.name == from_step.step_id or step.step_id in accepted:
                    arguments = from_step.input
                    step_input = None
                    if arguments is not None:
                        step_input = MemoRecord(step.step_id, msgspec.Raw(msgspec.json.encode({"input": arguments})))
                    return CopiedMemos(run_id=given.run_id, memos=len(names), size=size, step_input=step_input)
                names.append(step.name)
                size += len(memo)
        named = ", ".join(map(repr, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")
        known = f"it has {named}" if names else "no step has finished; rerun it from the start"
        raise StepNotFoundError(f"run {given.run_id} has no finished step {from_step.step_id!r}: {known}")


class Bulk:
    def __init__(
        self,
        client: Client,
        lists: RunLists,
        search: RunSearch,
        views: RunViews,
        functions: FunctionLists,
        reruns: Reruns,
        cancellations: BulkCancellations,
    ) -> None:
        self._client = client
        self._lists = lists
        self._search = search
        self._views = views
        self._functions = functions
        self._reruns = reruns
        self._cancellations = cancellations

    async def cancel(self, selection: Selection, now: int) -> CancellationView:
        """Raises ``FunctionNotFoundError`` and ``SelectionInvalidError``."""
        _check_room(await self._functions.get(selection.function_id), now)
        return _view(await self._start(selection, (), now), CancellationView)

    async def replay(self, selection: Selection, statuses: tuple[RunStatus, ...], now: int) -> ReplayView:
        """Raises ``FunctionNotFoundError`` and ``FunctionPausedError``."""
        record = await self._functions.get(selection.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {selection.function_id!r} is paused; resume it before you run anything again"
            )
        return _view(await self._start(selection, statuses, now), ReplayView)

    async def _start(self, selection: Selection, statuses: tuple[RunStatus, ...], now: int) -> BulkRecord:
        record = BulkRecord(
            id=make_id(now, os.urandom),
            function_id=selection.function_id,
            started_after=to_optional_milliseconds(selection.started_after),
            started_before=to_milliseconds(selection.started_before),
            expression=selection.expression,
            statuses=statuses,
            created_at=now,
        )
        await self._client.start_workflow(
            BulkWorkflow.run,
            BulkInput(record),
            id=bulk_workflow_id(record.id),
            task_queue=WORKFLOWS_QUEUE,
            memo={BULK: record},
            static_summary=f"{'replays' if statuses else 'cancels'} runs of {record.function_id}",
        )
        return record

    async def find(self, bulk_id: str, view: type[View]) -> View | None:
        record = await self._find(bulk_id)
        if record is None or record.is_stopped or record.is_replay is not (view is ReplayView):
            return None
        return _view(record, view)

    async def _find(self, bulk_id: str) -> BulkRecord | None:
        described = await describe(self._client, bulk_workflow_id(bulk_id))
        if described is None:
            return None
        record: BulkRecord = await described.memo_value(BULK, type_hint=BulkRecord)
        return record

    async def all(self, view: type[View]) -> list[View]:
        """All operations, newest first. The index lags."""
        ids = {each.id async for each in self._client.list_workflows("WorkflowType = 'durably.Bulk'")}
        prefix = bulk_workflow_id("")
        found = await asyncio.gather(
            *(self.find(each.removeprefix(prefix), view) for each in sorted(ids, reverse=True))
        )
        return [each for each in found if each is not None]

    async def stop(self, bulk_id: str) -> None:
        """Raises ``CancellationNotFoundError``."""
        if await self.find(bulk_id, CancellationView) is None:
            raise CancellationNotFoundError(f"there is no bulk cancellation with the id {bulk_id!r}")
        workflow_id = bulk_workflow_id(bulk_id)
        try:
            await self._client.get_workflow_handle(workflow_id).signal("stop")
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # It applies to no new runs any more. Only its record is left.
            await self._client.workflow_service.delete_workflow_execution(
                DeleteWorkflowExecutionRequest(
                    namespace=self._client.namespace, workflow_execution=WorkflowId(workflow_id=workflow_id)
                )
            )

    @activity.defn(name=BULK_PAGE)
    async def apply_page(self, work: BulkInput) -> BulkPage:
        """Apply an operation to the next runs. Repeating this changes nothing."""
        record = work.record
        began_at = 0 if record.is_replay else await self._cancellations.begin(record)
        condition = compile_expression(record.expression) if record.expression else None
        after = None if work.cursor is None else await self._views.describe(work.cursor)
        applied: list[str] = []
        seen = 0
        async for run in self._lists.walk(_filter_of(record), after):
            activity.heartbeat()
            seen += 1
            run_id = run_id_of(run.id)
            if await self._is_meant(record, run, condition, began_at) and await self._apply(record, run_id):
                applied.append(run_id)
            if seen == _TOGETHER:
                return BulkPage(applied, run_id)
        return BulkPage(applied)

    async def _is_meant(
        self, record: BulkRecord, run: WorkflowExecution, condition: Expression | None, began_at: int
    ) -> bool:
        if record.is_replay:
            if status_of(run) not in record.statuses:
                return False
        elif run.start_time >= to_datetime(record.started_before):
            sender = (await memo_of(run)).parent
            if await self._cancellations.ancestor_cancelled_at(record.function_id, sender) < began_at:
                return False
        return condition is None or await self._search.matches(run, condition, record.created_at)

    async def _apply(self, record: BulkRecord, run_id: str) -> bool:
        if record.is_replay:
            try:
                await self._reruns.start(run_id, record.created_at, record.id)
            except (RunNotFoundError, FunctionNotFoundError):
                return False
            return True
        with ignoring_not_found():
            await self._client.get_workflow_handle(run_workflow_id(run_id)).signal(
                "cancel", CancelRequested(CANCELLED_IN_BULK)
            )
            return True
        return False


def _view(record: BulkRecord, view: type[View]) -> View:
    fields: dict[str, Any] = {
        "id": record.id,
        "function_id": record.function_id,
        "started_after": to_optional_datetime(record.started_after),
        "started_before": to_datetime(record.started_before),
        "expression": record.expression,
        "statuses": record.statuses,
        "created_at": to_datetime(record.created_at),
        "ended_at": to_optional_datetime(record.ended_at),
        "affected": record.affected,
    }
    return view(**fields)


def _filter_of(record: BulkRecord) -> RunFilter:
    """The filter for the runs of an operation.

    A cancellation also includes runs that other runs have started since.
    """
    until = to_datetime(record.started_before)
    return RunFilter(
        status=None if record.is_replay else RunStatus.RUNNING,
        function_id=record.function_id,
        started_after=to_optional_datetime(record.started_after),
        started_before=until if record.is_replay else None,
        only_children_from=None if record.is_replay else until,
    )


def _check_room(function: FunctionRecord, now: int) -> None:
    """Raises ``SelectionInvalidError``."""
    present = [each for each in function.cancellations if not each.is_over(now)]
    if len(msgspec.json.encode(present)) > MAX_PRESENT_BYTES:
        raise SelectionInvalidError(
            f"there is no room for another bulk cancellation of the function {function.config.id!r}: Temporal holds no "
            f"more than the {len(present)} that apply to its new runs, each for an hour or until its range ends. "
            "Wait until one is over, or select more runs with a single one"
        )
