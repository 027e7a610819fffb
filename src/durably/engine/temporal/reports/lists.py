"""lists"""

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

from durably.engine.core.expressions import Expression
from durably.engine.core.transition import encode_error
from durably.engine.model.reports import EventPage, EventReport, Relation, RunLink, relation_by
from durably.engine.model.views import EventView, RunStatus, RunView, to_datetime, to_milliseconds
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

_STATUSES = {
    WorkflowExecutionStatus.RUNNING: RunStatus.RUNNING,
    WorkflowExecutionStatus.COMPLETED: RunStatus.COMPLETED,
    WorkflowExecutionStatus.CANCELED: RunStatus.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: RunStatus.CANCELLED,
}
_MOST_AT_ONCE = 16
"""Maximum number of concurrent requests to the server for one page of runs."""


def status_of(execution: WorkflowExecution) -> RunStatus:
    """The status of a workflow. A live run counts as running.

    The server does not know whether the app was called.
    """
    own = execution.typed_search_attributes.get(STATUS)
    if own is not None:
        return RunStatus(own)
    return RunStatus.FAILED if execution.status is None else _STATUSES.get(execution.status, RunStatus.FAILED)


def relation_of(memo: RunMemo) -> Relation:
    if memo.rerun_of is not None:
        return Relation.RERUN
    return relation_by(memo.event_name)


class RunViews:
    """Reads runs from a Temporal server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)

    async def find(self, run_id: str) -> RunView | None:
        described = await self.describe(run_id)
        return None if described is None else await self.view(described)

    async def describe(self, run_id: str) -> WorkflowExecution | None:
        """The run's workflow, or ``None``."""
        described = await describe(self._client, run_workflow_id(run_id))
        return described if described is not None and is_run(described) else None

    async def view(self, execution: WorkflowExecution, *, has_output: bool = True) -> RunView:
        run_id = run_id_of(execution.id)
        memo = await memo_of(execution)
        status = status_of(execution)
        output: msgspec.Raw | None = None
        if has_output and status.has_ended:
            output = await execution.memo_value(END, None, type_hint=msgspec.Raw)
            if output is None:
                async with self._slots:
                    output = await self.output(run_id)
        return RunView(
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

    async def views(self, executions: Iterable[WorkflowExecution], *, has_output: bool = True) -> list[RunView]:
        return list(await asyncio.gather(*(self.view(each, has_output=has_output) for each in executions)))

    async def link(self, execution: WorkflowExecution, *, has_relation: bool = True) -> RunLink:
        memo = await memo_of(execution)
        return RunLink(
            run_id=run_id_of(execution.id),
            function_id=memo.function_id,
            status=status_of(execution),
            created_at=execution.start_time,
            relation=relation_of(memo) if has_relation else None,
            step=memo.parent_step if has_relation else None,
        )

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


_MOST_SORTED = 500
"""Maximum number of runs that are read and sorted together."""
_FIRST_INTERVAL = dt.timedelta(minutes=1)
_SHORTEST_INTERVAL = dt.timedelta(milliseconds=1)
_CLOCK_DIFFERENCE = dt.timedelta(minutes=5)
"""Maximum lead of the server's clock."""
_EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_RUNS = "WorkflowType = 'durably.Run' AND ExecutionStatus != 'ContinuedAsNew'"

_ENDED: dict[RunStatus, str] = {
    RunStatus.RUNNING: "ExecutionStatus = 'Running'",
    RunStatus.COMPLETED: f"ExecutionStatus = 'Completed' AND {STATUS.name} IS NULL",
    RunStatus.FAILED: f"ExecutionStatus IN ('Failed', 'TimedOut') AND {STATUS.name} IS NULL",
    RunStatus.CANCELLED: f"(ExecutionStatus IN ('Canceled', 'Terminated') OR {STATUS.name} = 'Cancelled')",
    RunStatus.SKIPPED: f"{STATUS.name} = 'Skipped'",
}
_OF_ENGINE = (RunStatus.CANCELLED, RunStatus.SKIPPED)
"""Statuses that are stored in the search attribute."""
_STATUSES = {
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


def format_time(time: dt.datetime) -> str:
    return quote(time.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"))


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a list, by conditions of the index.

    - ``started_after``, ``started_before``: half-open range of creation times; the range of end times is the same way.
    - ``id_prefix``: the prefix of their ids.
    - ``only_children_from``: later runs count only if another run started them.
    """

    status: RunStatus | None = None
    function_id: str | None = None
    app_id: str | None = None
    event_name: str | None = None
    event_id: str | None = None
    parent: str | None = None
    id_prefix: str | None = None
    started_after: dt.datetime | None = None
    started_before: dt.datetime | None = None
    ended_after: dt.datetime | None = None
    ended_before: dt.datetime | None = None
    only_children_from: dt.datetime | None = None

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
            clauses.append(_ENDED[self.status])
        for key, text in ((FUNCTION, self.function_id), (APP, self.app_id), (EVENT, self.event_name)):
            if text is not None:
                clauses.append(f"{key.name} = {quote(keyword(text))}")
        if self.parent is not None:
            clauses.append(f"{PARENT.name} = {quote(self.parent)}")
        if self.event_id is not None:
            ids = f"{quote(self.event_id)}, {quote(short_event_id(self.event_id))}"
            clauses.append(f"{EVENT_IDS.name} IN ({ids})")
        if self.id_prefix is not None:
            clauses.append(f"WorkflowId STARTS_WITH {quote('durably/run/' + self.id_prefix)}")
        if self.only_children_from is not None:
            clauses.append(f"(StartTime < {format_time(self.only_children_from)} OR {PARENT.name} IS NOT NULL)")
        for condition, time in (
            ("StartTime >=", self.started_after),
            ("StartTime <", self.started_before),
            ("CloseTime >=", self.ended_after),
            ("CloseTime <", self.ended_before),
        ):
            if time is not None:
                clauses.append(f"{condition} {format_time(time)}")
        return " AND ".join(clauses)


class RunLists:
    """Reads the index of runs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def count(self, wanted: RunFilter) -> int:
        return (await self._client.count_workflows(wanted.query)).count

    async def count_by_status(self, wanted: RunFilter) -> dict[RunStatus, int]:
        """Numbers of runs by status; running ones include scheduled ones.

        Raises ``NotSupportedError`` if the server cannot count groups.
        """
        by_temporal, *by_engine = await asyncio.gather(
            self._count_groups(f"{wanted.query} AND {STATUS.name} IS NULL"),
            *(self._client.count_workflows(f"{wanted.query} AND {STATUS.name} = {quote(each)}") for each in _OF_ENGINE),
        )
        counts = dict.fromkeys(_ENDED, 0)
        for of_engine, found in zip(_OF_ENGINE, by_engine, strict=True):
            counts[of_engine] += found.count
        for group in by_temporal.groups:
            status = _STATUSES.get(str(group.group_values[0]))
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

    async def read(self, wanted: RunFilter) -> list[WorkflowExecution]:
        """All runs, newest first."""
        found = [each async for each in self._client.list_workflows(wanted.query) if is_run(each)]
        return sorted(found, key=_place, reverse=True)

    async def walk(self, wanted: RunFilter, after: WorkflowExecution | None = None) -> AsyncIterator[WorkflowExecution]:
        """Runs, newest first, after a run if given."""
        now = dt.datetime.now(dt.UTC)
        until = min(wanted.started_before or now + _CLOCK_DIFFERENCE, now + _CLOCK_DIFFERENCE)
        if after is not None:
            until = min(until, after.start_time + _SHORTEST_INTERVAL)
        async for portion in self._portions(wanted, until):
            for each in portion:
                if after is None or _place(each) < _place(after):
                    yield each

    async def _portions(self, wanted: RunFilter, until: dt.datetime) -> AsyncIterator[list[WorkflowExecution]]:
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


def _place(execution: WorkflowExecution) -> tuple[dt.datetime, str]:
    return execution.start_time, execution.id


_MOST_LOOKED_AT = 200
"""Runs that are read for one page of events."""
_MOST_RUNS = 50
_WHOLE_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}\Z")
_UNMATCHED = (
    "an engine on Temporal stores events in the runs that they start, so it has none that matched nothing: senders get "
    "their names in the answer, and log them"
)
_event_decoder = msgspec.json.Decoder(Event)


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The events of a list. ``id`` is an event id, or its suffix."""

    name: str | None = None
    received_after: dt.datetime | None = None
    received_before: dt.datetime | None = None
    is_unmatched: bool | None = None
    condition: Expression | None = None
    id: str | None = None


class EventLists:
    def __init__(self, lists: RunLists, views: RunViews) -> None:
        self._lists = lists
        self._views = views

    async def find(self, event_id: str) -> EventView | None:
        """The event, or ``None`` if it started no run or the list lags."""
        for each in await self._started_by(event_id):
            found = await self._event_of(each, event_id)
            if found is not None:
                return found
        return None

    async def runs(self, event_id: str) -> list[RunView]:
        """The runs that an event started, in their order, and their reruns."""
        runs = await self._views.views(reversed(await self._lists.read(RunFilter(event_id=event_id))))
        return [run for run in runs if event_id in run.event_ids]

    async def list_events(self, wanted: EventFilter, limit: int, cursor: str | None) -> list[EventView]:
        """A page of events. ``cursor`` is an event id."""
        position = None
        if cursor is not None:
            started = await self._started_by(cursor)
            if not started:
                raise SelectionInvalidError(f"the cursor {cursor!r} does not name an event of this engine (any more)")
            position = started[-1]
        events: list[EventReport] = []
        while True:
            page = await self._page(wanted, limit - len(events), position)
            events += page.events
            if page.cursor is None or len(events) >= limit:
                return [each.event for each in events[:limit]]
            position = await self._views.describe(page.cursor)

    async def search(self, wanted: EventFilter, limit: int, cursor: str | None) -> EventPage:
        """A page of events.

        Raises ``NotSupportedError`` for unmatched events, and ``SelectionInvalidError`` for an unknown cursor.
        """
        if wanted.is_unmatched:
            raise NotSupportedError(_UNMATCHED)
        if wanted.id is not None and _WHOLE_ID.match(wanted.id.upper()) is not None:
            event = await self.find(wanted.id.upper())
            return EventPage(events=[] if event is None else [await self._report(event)], cursor=None)
        position = None
        if cursor is not None and (position := await self._views.describe(cursor)) is None:
            raise SelectionInvalidError(f"the cursor {cursor!r} does not name a run of this engine (any more)")
        return await self._page(wanted, limit, position)

    async def _page(self, wanted: EventFilter, limit: int, position: WorkflowExecution | None) -> EventPage:
        events: list[EventReport] = []
        last: WorkflowExecution | None = None
        seen = 0
        of_runs = RunFilter(
            event_name=wanted.name, started_after=wanted.received_after, started_before=wanted.received_before
        )
        async for run in self._lists.walk(of_runs, position):
            if len(events) >= limit or seen == _MOST_LOOKED_AT:
                assert last is not None
                searched_until = None if len(events) >= limit else last.start_time
                return EventPage(events=events, cursor=run_id_of(last.id), searched_until=searched_until)
            seen, last = seen + 1, run
            async for event in self._events_first_shown_at(run, wanted):
                events.append(await self._report(event))
        return EventPage(events=events, cursor=None)

    async def _events_first_shown_at(self, run: WorkflowExecution, wanted: EventFilter) -> AsyncIterator[EventView]:
        """The events of a run that no newer run has."""
        memo = await memo_of(run)
        if memo.rerun_of is not None:
            return
        for event_id in memo.event_ids:
            if wanted.id is not None and not event_id.endswith(wanted.id.upper()):
                continue
            started = await self._started_by(event_id)
            if started and started[-1].id != run.id:
                continue
            event = await self._event_of(run, event_id)
            if event is not None and self._fits(event, wanted):
                yield event

    def _fits(self, event: EventView, wanted: EventFilter) -> bool:
        if wanted.condition is None:
            return True
        now = to_milliseconds(dt.datetime.now(dt.UTC))
        fields = msgspec.json.decode(msgspec.json.encode(event.event))
        return wanted.condition.matches(fields, now=now)

    async def _started_by(self, event_id: str) -> list[WorkflowExecution]:
        """The runs that an event started, without reruns, in their order."""
        found = []
        for each in reversed(await self._lists.read(RunFilter(event_id=event_id))):
            memo = await memo_of(each)
            if event_id in memo.event_ids and memo.rerun_of is None:
                found.append(each)
        return found

    async def _event_of(self, run: WorkflowExecution, event_id: str) -> EventView | None:
        given = await self._views.input(run_id_of(run.id))
        for event in () if given is None else given.events:
            if event.id == event_id:
                return event_view(event)
        return None

    async def _report(self, event: EventView) -> EventReport:
        started = (await self._started_by(event.id))[:_MOST_RUNS]
        links = [await self._views.link(each, has_relation=False) for each in started]
        return EventReport(event=event, runs=links, is_unmatched=False)


def event_view(event: EventRecord) -> EventView:
    return EventView.of(event.id, _event_decoder.decode(event.body), to_datetime(event.at))
