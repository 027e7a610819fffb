"""Lists of runs from Temporal's index of workflows, newest first.

The index lags, usually below a second.

SQL stores of Temporal do not sort. So a list reads time intervals that are short enough to be sorted here.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator

import msgspec
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionCount
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.model.runs import RunStatus
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
from durably.protocol.engine_errors import NotSupportedError

from .run_views import is_run

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
