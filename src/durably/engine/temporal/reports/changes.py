"""Changes of runs from Temporal's index, for polls and as a stream of updates."""

import asyncio
import contextlib
import datetime as dt
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable

import msgspec
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription
from temporalio.service import RPCError

from durably.engine.model.overview import Changes
from durably.engine.model.runs import RunUpdate
from durably.engine.temporal.client import is_unreachable
from durably.engine.temporal.reports.lists import RunLists, RunQuery, status_of
from durably.protocol.engine_errors import TooManyWaitersError
from durably.protocol.text import get_logger

LONGEST_WAIT_SECONDS = 20.0
_POLL_SECONDS = 1.0
_MOST_WAITERS = 100
"""Maximum number of waiting clients. Each that waits for a run causes a request a second; the others share one."""
_EARLIEST = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_LAG = dt.timedelta(seconds=20)
"""Maximum lag of the index."""

_logger = get_logger("durably.engine")


class ChangePoll:
    """Waits for changes.

    A position identifies a state. Positions are compared for equality only.
    """

    def __init__(self, client: Client, lists: RunLists) -> None:
        self._client = client
        self._lists = lists
        self._waiters = 0
        self._counted_at = 0.0
        self._counting: asyncio.Task[str] | None = None

    async def wait(self, after: int | None, run_id: str | None) -> Changes:
        """Raises ``TooManyWaitersError``."""
        until = time.monotonic() + LONGEST_WAIT_SECONDS
        position = await self._position(run_id)
        if after is None or position != after:
            return Changes(position=position)
        if self._waiters >= _MOST_WAITERS:
            raise TooManyWaitersError(f"{_MOST_WAITERS} clients already wait for changes: close unused pages")
        self._waiters += 1
        try:
            while position == after and time.monotonic() < until:
                await asyncio.sleep(_POLL_SECONDS)
                position = await self._position(run_id)
        finally:
            self._waiters -= 1
        return Changes(position=position)

    async def _position(self, run_id: str | None) -> int:
        state = await (self._state() if run_id is None else self._state_of_run(run_id))
        return int.from_bytes(hashlib.sha256(state.encode()).digest()[:6]) + 1  # Below 2^53.

    async def _state(self) -> str:
        """The numbers of runs by Temporal's status. Each start and each end changes them.

        They are at most a second old: all waiters share a request.
        """
        now = time.monotonic()
        if self._counting is None or (self._counting.done() and now - self._counted_at >= _POLL_SECONDS):
            self._counted_at, self._counting = now, asyncio.create_task(self._count())
        return await asyncio.shield(self._counting)

    async def _count(self) -> str:
        counted = await self._client.count_workflows(f"{RunQuery().query} GROUP BY ExecutionStatus")
        return repr(sorted((str(group.group_values), group.count) for group in counted.groups))

    async def _state_of_run(self, run_id: str) -> str:
        described = await self._lists.describe(run_id)
        if not isinstance(described, WorkflowExecutionDescription):
            return ""
        pending = [
            (each.activity_id, each.state, each.attempt) for each in described.raw_description.pending_activities
        ]
        return f"{described.history_length} {described.status} {pending}"


class _Progress(msgspec.Struct, frozen=True):
    """The changes that were reported.

    ``latest`` is the time of the last one. ``ids`` are the runs with a change since ``since``.
    """

    latest: dt.datetime
    ids: frozenset[str] = frozenset()

    @property
    def since(self) -> dt.datetime:
        return self.latest - _LAG

    def after(self, times: Iterable[tuple[str, dt.datetime]]) -> "_Progress":
        """The next progress. ``times`` are all changes since ``since``."""
        known = dict(times)
        latest = max([self.latest, *known.values()])
        return _Progress(latest, frozenset(each for each, time in known.items() if time >= latest - _LAG))


class RunWatch(AsyncIterator[RunUpdate]):
    """Iterates over starts and ends of runs by one request a second.

    Times are the server's, because its clock and this process's may differ. A cancelled read loses no update. The
    iteration ends when ``closed`` is set.
    """

    def __init__(self, lists: RunLists, closed: asyncio.Event) -> None:
        self._lists, self._closed = lists, closed
        self._opened_at = dt.datetime.now(dt.UTC)
        self._pending: deque[RunUpdate] = deque()
        self._progress: tuple[_Progress, _Progress] | None = None
        self._is_unreachable = False

    async def __anext__(self) -> RunUpdate:
        while not self._pending:
            if self._closed.is_set():
                raise StopAsyncIteration
            await self._poll()
            if not self._pending:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), _POLL_SECONDS)
        return self._pending.popleft()

    async def _poll(self) -> None:
        try:
            before = self._progress or await self._first_progress()
            started = await self._lists.read(RunQuery(started_after=before[0].since))
            ended = [
                each
                for each in await self._lists.read(RunQuery(ended_after=before[1].since))
                if status_of(each).has_ended
            ]
            new_starts = [each for each in started if each.id not in before[0].ids]
            new_ends = [each for each in ended if each.id not in before[1].ids]
            updates = [RunUpdate.started(run) for run in await self._lists.views(new_starts, has_output=False)]
            updates += [RunUpdate.ended(run) for run in await self._lists.views(new_ends)]
        except RPCError as error:
            if not is_unreachable(error):
                raise
            if not self._is_unreachable:
                _logger.warning("changes of runs are reported when the Temporal server answers again: %s", error)
            self._is_unreachable = True
            return
        self._is_unreachable = False
        self._progress = (
            before[0].after((each.id, each.start_time) for each in started),
            before[1].after((each.id, _end_time(each)) for each in ended),
        )
        self._pending.extend(sorted(updates, key=lambda update: update.at))

    async def _first_progress(self) -> tuple[_Progress, _Progress]:
        """The changes before this iteration."""
        newest = await anext(self._lists.walk(RunQuery()), None)
        latest = _EARLIEST if newest is None else newest.start_time
        ends = await self._lists.read(RunQuery(ended_after=latest - _LAG))
        starts = await self._lists.read(RunQuery(started_after=latest - _LAG))
        old_ends = [(each.id, _end_time(each)) for each in ends if _end_time(each) < self._opened_at]
        old_starts = [(each.id, each.start_time) for each in starts if each.start_time < self._opened_at]
        return _Progress(latest).after(old_starts), _Progress(latest).after(old_ends)


def _end_time(execution: WorkflowExecution) -> dt.datetime:
    return execution.close_time or execution.start_time
