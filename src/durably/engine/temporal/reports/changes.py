"""Changes of runs, for clients that wait for them: Temporal is asked now and then."""

import asyncio
import hashlib
import time

from temporalio.client import Client, WorkflowExecutionDescription

from durably.engine.core.errors import TooManyWaitersError
from durably.engine.reports import Changes

from .run_lists import RunFilter, RunLists
from .run_views import RunViews

LONGEST_WAIT_SECONDS = 20.0
_POLL_SECONDS = 1.0
_MOST_WAITERS = 100
"""Those that wait for a run make a request a second each; all others share one."""


class ChangePoll:
    """Waits for changes.

    A position is a number of a state, and states are compared for equality only.
    """

    def __init__(self, client: Client, lists: RunLists, views: RunViews) -> None:
        self._client = client
        self._lists = lists
        self._views = views
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
            raise TooManyWaitersError(
                f"{_MOST_WAITERS} clients wait for changes already: close pages that are not looked at"
            )
        self._waiters += 1
        try:
            while position == after and time.monotonic() < until:
                await asyncio.sleep(_POLL_SECONDS)
                position = await self._position(run_id)
        finally:
            self._waiters -= 1
        return Changes(position=position)

    async def _position(self, run_id: str | None) -> int:
        return _number(await (self._state() if run_id is None else self._state_of_run(run_id)))

    async def _state(self) -> str:
        """The numbers of runs by Temporal's status. Each start and each end changes them.

        They are at most a second old: all waiters share a request.
        """
        now = time.monotonic()
        if self._counting is None or (self._counting.done() and now - self._counted_at >= _POLL_SECONDS):
            self._counted_at, self._counting = now, asyncio.create_task(self._count())
        return await asyncio.shield(self._counting)

    async def _count(self) -> str:
        counted = await self._client.count_workflows(f"{RunFilter().query} GROUP BY ExecutionStatus")
        return repr(sorted((str(group.group_values), group.count) for group in counted.groups))

    async def _state_of_run(self, run_id: str) -> str:
        described = await self._views.describe(run_id)
        if not isinstance(described, WorkflowExecutionDescription):
            return ""
        pending = [
            (each.activity_id, each.state, each.attempt) for each in described.raw_description.pending_activities
        ]
        return f"{described.history_length} {described.status} {pending}"


def _number(state: str) -> int:
    """A number below 2^53 for a text."""
    return int.from_bytes(hashlib.sha256(state.encode()).digest()[:6]) + 1
