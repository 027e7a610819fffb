"""Runs from Temporal's index of workflows and from Describe, without a worker: lists, views, outputs, events.

The index lags, usually below a second. SQL stores of Temporal do not sort. So a list reads time intervals that are
short enough to be sorted here.
"""

import asyncio
import datetime as dt
import re
from collections.abc import AsyncIterator, Iterable

import msgspec
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionCount,
    WorkflowExecutionStatus,
    WorkflowFailureError,
)
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.transition import encode_error
from durably.engine.model.runs import (
    Relation,
    Run,
    RunFilter,
    RunPage,
    RunStatus,
    StoredEvent,
    relation_by,
    to_datetime,
)
from durably.engine.temporal.client import describe, ignoring_not_found
from durably.engine.temporal.ids import run_id_of, run_workflow_id
from durably.engine.temporal.messages import END, RUN_MEMO, EventRecord, RunInput, RunMemo
from durably.engine.temporal.search_attributes import (
    APP,
    EVENT,
    EVENT_IDS,
    FUNCTION,
    PARENT,
    STATUS,
    keyword,
    short_event_id,
)
from durably.protocol.engine_errors import NotSupportedError, SelectionInvalidError
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event

_STATUS_OF_WORKFLOW = {
    WorkflowExecutionStatus.RUNNING: RunStatus.RUNNING,
    WorkflowExecutionStatus.COMPLETED: RunStatus.COMPLETED,
    WorkflowExecutionStatus.CANCELED: RunStatus.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: RunStatus.CANCELLED,
}
_MOST_AT_ONCE = 16
"""Maximum number of concurrent requests to the server for one page of runs."""
_MOST_OF_SUFFIX = 10_000
"""Maximum number of runs whose ids are compared for one list."""
_LONGEST_OUTPUT = 16 * 1024
_WHOLE_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}\Z")
_MOST_SORTED = 500
"""Maximum number of runs that are read and sorted together."""
_FIRST_INTERVAL = dt.timedelta(minutes=1)
_SHORTEST_INTERVAL = dt.timedelta(milliseconds=1)
_CLOCK_DIFFERENCE = dt.timedelta(minutes=5)
"""Maximum lead of the server's clock."""
_EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_RUNS = "WorkflowType = 'durably.Run' AND ExecutionStatus != 'ContinuedAsNew'"

_QUERIES: dict[RunStatus, str] = {
    RunStatus.RUNNING: "ExecutionStatus = 'Running'",
    RunStatus.COMPLETED: f"ExecutionStatus = 'Completed' AND {STATUS.name} IS NULL",
    RunStatus.FAILED: f"ExecutionStatus IN ('Failed', 'TimedOut') AND {STATUS.name} IS NULL",
    RunStatus.CANCELLED: f"(ExecutionStatus IN ('Canceled', 'Terminated') OR {STATUS.name} = 'Cancelled')",
    RunStatus.SKIPPED: f"{STATUS.name} = 'Skipped'",
}
_OF_ENGINE = (RunStatus.CANCELLED, RunStatus.SKIPPED)
"""Statuses that are stored in the search attribute."""
_STATUS_OF_NAME = {
    "Running": RunStatus.RUNNING,
    "Completed": RunStatus.COMPLETED,
    "Failed": RunStatus.FAILED,
    "TimedOut": RunStatus.FAILED,
    "Canceled": RunStatus.CANCELLED,
    "Terminated": RunStatus.CANCELLED,
}
"""Statuses by Temporal's names, for workflows without the search attribute."""


def quote(text: str) -> str:
    """A quoted string for a query of Temporal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class RunQuery(RunFilter, frozen=True, kw_only=True):
    """The runs of a list, by conditions of the index."""

    event_id: str | None = None
    parent: str | None = None
    ended_after: dt.datetime | None = None

    @property
    def query(self) -> str:
        """The conditions of a query. Raises ``NotSupportedError`` for scheduled runs."""
        if self.status is RunStatus.SCHEDULED:
            raise NotSupportedError(
                "lists of an engine on Temporal do not distinguish scheduled and running runs: select running ones, "
                "which include both"
            )
        clauses = [_RUNS]
        if self.status is not None:
            clauses.append(_QUERIES[self.status])
        for key, text in ((FUNCTION, self.function_id), (APP, self.app_id), (EVENT, self.event_name)):
            if text is not None:
                clauses.append(f"{key.name} = {quote(keyword(text))}")
        if self.parent is not None:
            clauses.append(f"{PARENT.name} = {quote(self.parent)}")
        if self.event_id is not None:
            ids = f"{quote(self.event_id)}, {quote(short_event_id(self.event_id))}"
            clauses.append(f"{EVENT_IDS.name} IN ({ids})")
        for condition, time in (
            ("StartTime >=", self.started_after),
            ("StartTime <", self.started_before),
            ("CloseTime >=", self.ended_after),
        ):
            if time is not None:
                utc = time.astimezone(dt.UTC).isoformat(timespec="microseconds")
                clauses.append(f"{condition} {quote(utc.replace('+00:00', 'Z'))}")
        return " AND ".join(clauses)


class RunLists:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)

    # one run

    async def describe(self, run_id: str) -> WorkflowExecution | None:
        """The run's workflow, or ``None``."""
        described = await describe(self._client, run_workflow_id(run_id))
        return described if described is not None and is_run(described) else None

    async def view(self, execution: WorkflowExecution, *, has_output: bool = True) -> Run:
        run_id = run_id_of(execution.id)
        memo = await memo_of(execution)
        status = status_of(execution)
        output: msgspec.Raw | None = None
        if has_output and status.has_ended:
            output = await execution.memo_value(END, None, type_hint=msgspec.Raw)
            if output is None:
                async with self._slots:
                    output = await self.output(run_id)
        return Run(
            id=run_id,
            function_id=memo.function_id,
            app_id=memo.app_id,
            status=status,
            event_ids=list(memo.event_ids),
            event_id=memo.event_ids[0],
            event_name=memo.event_name,
            created_at=execution.start_time,
            started_at=execution.start_time,
            ended_at=execution.close_time,
            output=output,
            attempt=0,
            max_attempts=memo.max_attempts,
            rerun_of=memo.rerun_of,
        )

    async def views(self, executions: Iterable[WorkflowExecution], *, has_output: bool = True) -> list[Run]:
        return list(await asyncio.gather(*(self.view(each, has_output=has_output) for each in executions)))

    async def link(self, execution: WorkflowExecution, *, has_relation: bool = True) -> Run:
        """A run without its output, with its relation to the run that started it."""
        run = await self.view(execution, has_output=False)
        if not has_relation:
            return run
        memo = await memo_of(execution)
        relation = relation_by(memo.event_name) if memo.rerun_of is None else Relation.RERUN
        return msgspec.structs.replace(run, relation=relation, step=memo.parent_step)

    async def output(self, run_id: str) -> msgspec.Raw:
        """The output of an ended run."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id), result_type=msgspec.Raw)
        try:
            output: msgspec.Raw = await handle.result()
            return output
        except WorkflowFailureError as error:
            return _error_output(error.cause)

    async def input(self, run_id: str) -> RunInput | None:
        """The input of a run with its events, from the first event of its history."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        with ignoring_not_found():
            async for event in handle.fetch_history_events(page_size=1):
                assert event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
                payloads = event.workflow_execution_started_event_attributes.input.payloads
                (run,) = await self._client.data_converter.decode(payloads, [RunInput])
                return run  # type: ignore[no-any-return]
        return None

    # the index

    async def count(self, wanted: RunQuery) -> int:
        return (await self._client.count_workflows(wanted.query)).count

    async def count_by_status(self, wanted: RunQuery) -> dict[RunStatus, int]:
        """Numbers of runs by status; running ones include scheduled ones.

        Raises ``NotSupportedError`` if the server cannot count groups.
        """
        by_temporal, *by_engine = await asyncio.gather(
            self._count_groups(f"{wanted.query} AND {STATUS.name} IS NULL"),
            *(self._client.count_workflows(f"{wanted.query} AND {STATUS.name} = {quote(each)}") for each in _OF_ENGINE),
        )
        counts = dict.fromkeys(_QUERIES, 0)
        for of_engine, found in zip(_OF_ENGINE, by_engine, strict=True):
            counts[of_engine] += found.count
        for group in by_temporal.groups:
            status = _STATUS_OF_NAME.get(str(group.group_values[0]))
            if status is not None:  # Lists by status have no other statuses either.
                counts[status] += group.count
        return counts

    async def _count_groups(self, query: str) -> WorkflowExecutionCount:
        try:
            return await self._client.count_workflows(f"{query} GROUP BY ExecutionStatus")
        except RPCError as error:
            if error.status is RPCStatusCode.INVALID_ARGUMENT:
                raise NotSupportedError(f"the Temporal server cannot count runs by status: {error}") from None
            raise

    async def read(self, wanted: RunQuery) -> list[WorkflowExecution]:
        """All runs, newest first."""
        found = [each async for each in self._client.list_workflows(wanted.query) if is_run(each)]
        return sorted(found, key=_place, reverse=True)

    async def walk(self, wanted: RunQuery, after: WorkflowExecution | None = None) -> AsyncIterator[WorkflowExecution]:
        """Runs, newest first, after a run if given."""
        now = dt.datetime.now(dt.UTC)
        until = min(wanted.started_before or now + _CLOCK_DIFFERENCE, now + _CLOCK_DIFFERENCE)
        if after is not None:
            until = min(until, after.start_time + _SHORTEST_INTERVAL)
        async for portion in self._portions(wanted, until):
            for each in portion:
                if after is None or _place(each) < _place(after):
                    yield each

    async def _portions(self, wanted: RunQuery, until: dt.datetime) -> AsyncIterator[list[WorkflowExecution]]:
        earliest, interval = wanted.started_after or _EARLIEST, _FIRST_INTERVAL
        while until > earliest:
            rest = msgspec.structs.replace(wanted, started_before=until)
            if await self.count(rest) <= _MOST_SORTED:
                yield await self.read(rest)
                return
            while True:
                since = max(until - interval, earliest)
                part = msgspec.structs.replace(wanted, started_after=since, started_before=until)
                count = await self.count(part)
                if count <= _MOST_SORTED or interval <= _SHORTEST_INTERVAL:
                    break
                interval = max(interval / 8, _SHORTEST_INTERVAL)
            if count:
                yield await self.read(part)
            until = since
            if count * 4 <= _MOST_SORTED:
                interval *= 4

    async def page(self, wanted: RunQuery, limit: int, cursor: str | None, id_suffix: str | None = None) -> list[Run]:
        """A page of runs after the run ``cursor``.

        Raises ``SelectionInvalidError`` for an unknown cursor, and ``NotSupportedError`` if too many runs must be
        compared.
        """
        position = None if cursor is None else await self.describe(cursor)
        if cursor is not None and position is None:
            raise SelectionInvalidError(
                f"the cursor {cursor!r} does not name a run of this engine (any more): begin again"
            )
        found: list[WorkflowExecution] = []
        seen = 0
        async for each in self.walk(wanted, position):
            seen += 1
            if id_suffix is None or each.id.endswith(id_suffix):
                found.append(each)
            if len(found) == limit:
                break
            if seen == _MOST_OF_SUFFIX and id_suffix is not None:
                raise NotSupportedError(
                    f"an engine on Temporal finds id suffixes among its {_MOST_OF_SUFFIX} newest runs only: give the "
                    f"whole id instead of {id_suffix!r}"
                )
        return await self.views(found)

    async def search(self, wanted: RunQuery, limit: int, cursor: str | None) -> RunPage:
        """A page of runs. Outputs of more than 16 KiB are omitted."""
        id = None if wanted.id is None else wanted.id.strip().upper()
        if id is None:
            runs = await self.page(wanted, limit, cursor)
        elif _WHOLE_ID.match(id) is None:
            runs = await self.page(wanted, limit, cursor, id)
        elif (run := await self.describe(id)) is not None and await self._fits(run, wanted):
            return RunPage(runs=[_shortened(await self.view(run))], cursor=None)
        else:
            runs = await self.page(msgspec.structs.replace(wanted, event_id=id), limit, cursor)
        return RunPage(runs=list(map(_shortened, runs)), cursor=runs[-1].id if len(runs) == limit else None)

    async def _fits(self, execution: WorkflowExecution, wanted: RunQuery) -> bool:
        memo = await memo_of(execution)
        pairs = (
            (wanted.status, status_of(execution)),
            (wanted.function_id, memo.function_id),
            (wanted.app_id, memo.app_id),
            (wanted.event_name, memo.event_name),
        )
        return all(each in (None, own) for each, own in pairs)

    # events

    async def event(self, event_id: str) -> StoredEvent | None:
        """An event from a run that it started; ``None`` if it started no run or the index lags."""
        for run in await self.read(RunQuery(event_id=event_id)):
            given = await self.input(run_id_of(run.id))
            for event in () if given is None else given.events:
                if event.id == event_id:
                    return stored_event(event)
        return None

    async def event_runs(self, event_id: str) -> list[Run]:
        """The runs that an event started, in their order, and their reruns."""
        runs = await self.views(reversed(await self.read(RunQuery(event_id=event_id))))
        return [run for run in runs if event_id in run.event_ids]


def status_of(execution: WorkflowExecution) -> RunStatus:
    """The status of a workflow. A live run counts as running.

    The server does not know whether the app was called.
    """
    own = execution.typed_search_attributes.get(STATUS)
    if own is not None:
        return RunStatus(own)
    return RunStatus.FAILED if execution.status is None else _STATUS_OF_WORKFLOW.get(execution.status, RunStatus.FAILED)


def is_run(execution: WorkflowExecution) -> bool:
    """Whether the engine started the workflow.

    Other clients of the namespace can start workflows of any type and id.
    """
    return RUN_MEMO in execution.raw_info.memo.fields


async def memo_of(execution: WorkflowExecution) -> RunMemo:
    memo: RunMemo = await execution.memo_value(RUN_MEMO, type_hint=RunMemo)
    return memo


def _error_output(cause: BaseException | None) -> msgspec.Raw:
    """The error of a run, as it wrote it, or as Temporal reports it."""
    if isinstance(cause, ApplicationError) and cause.details:
        return msgspec.Raw(msgspec.json.encode(cause.details[0]))
    match cause:
        case CancelledError():
            if cause.details:
                return msgspec.Raw(msgspec.json.encode(cause.details[0]))
            name, message = "FunctionCancelledError", "the run was cancelled"
        case TerminatedError():
            name, message = "FunctionCancelledError", f"the run was terminated on Temporal: {cause}"
        case TimeoutError():
            name, message = "RunTimedOutError", "the run's workflow has timed out on Temporal"
        case _:
            name, message = type(cause).__name__, str(cause)
    return msgspec.Raw(encode_error(ErrorData(name=name, message=message)))


def _place(execution: WorkflowExecution) -> tuple[dt.datetime, str]:
    return execution.start_time, execution.id


def _shortened(run: Run) -> Run:
    is_short = run.output is None or len(bytes(run.output)) <= _LONGEST_OUTPUT
    return run if is_short else msgspec.structs.replace(run, output=None)


def stored_event(event: EventRecord) -> StoredEvent:
    return StoredEvent.of(event.id, msgspec.json.decode(event.body, type=Event), to_datetime(event.at))
