"""Queries of user code to the engine in its own processes."""

import asyncio
import datetime as dt
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from durably.engine.views import (
        AttemptView,
        BulkOperationView,
        EventView,
        FunctionView,
        RunStatus,
        RunView,
        StepView,
    )

T = TypeVar("T")

TIMEOUT_SECONDS = 30.0


def aware(name: str, moment: dt.datetime | None) -> dt.datetime | None:
    """Raises ``ValueError`` for a time without a time zone."""
    if moment is not None and moment.tzinfo is None:
        raise ValueError(f"{name} must have a time zone, such as datetime(…, tzinfo=UTC), not {moment!r}")
    return moment


class Queries:
    """Methods may be awaited on any event loop; those ending in ``_sync`` are the same for synchronous code.

    They raise ``durably.errors.TransportError`` if no engine answers within 30 s. The errors named below are those
    of ``durably.engine.core.errors``. Ids of functions begin with their app's. Times have time zones.
    """

    async def _request(self, operation: str, *arguments: Any, timeout: float | None = TIMEOUT_SECONDS) -> Any:
        raise NotImplementedError

    def _block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    # runs

    async def get_run(self, run_id: str) -> "RunView | None":
        """A run's status, its output (JSON) and more; ``None`` if it does not exist."""
        return cast("RunView | None", await self._request("get_run", run_id))

    def get_run_sync(self, run_id: str) -> "RunView | None":
        return self._block(self.get_run(run_id))

    async def wait_for_run(self, run_id: str, *, timeout: dt.timedelta | None = None) -> "RunView":
        """Wait until the run has ended with any status; the run.

        Without a ``timeout`` it waits without a limit, also while no engine answers. Raises
        ``TimeoutError`` and ``RunNotFoundError``.
        """
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return cast("RunView", await self._request("wait_for_run", run_id, timeout=None))
        except TimeoutError:
            raise TimeoutError(f"run {run_id} has not ended within {timeout}") from None

    def wait_for_run_sync(self, run_id: str, *, timeout: dt.timedelta | None = None) -> "RunView":
        return self._block(self.wait_for_run(run_id, timeout=timeout))

    async def event_runs(self, event_id: str) -> "list[RunView]":
        """The runs that an event started; its id is what ``Client.send`` returned."""
        return cast("list[RunView]", await self._request("event_runs", event_id))

    def event_runs_sync(self, event_id: str) -> "list[RunView]":
        return self._block(self.event_runs(event_id))

    async def list_runs(
        self,
        *,
        status: "RunStatus | None" = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        started_after: dt.datetime | None = None,
    ) -> "list[RunView]":
        """Runs, newest first. ``cursor`` is the id of the last run seen."""
        return cast(
            "list[RunView]", await self._request("list_runs", status, function_id, limit, cursor, started_after)
        )

    def list_runs_sync(
        self,
        *,
        status: "RunStatus | None" = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        started_after: dt.datetime | None = None,
    ) -> "list[RunView]":
        return self._block(
            self.list_runs(
                status=status, function_id=function_id, limit=limit, cursor=cursor, started_after=started_after
            )
        )

    async def run_steps(self, run_id: str) -> "list[StepView]":
        """Finished steps in the order of their ends, then steps under way."""
        return cast("list[StepView]", await self._request("run_steps", run_id))

    def run_steps_sync(self, run_id: str) -> "list[StepView]":
        return self._block(self.run_steps(run_id))

    async def run_attempts(self, run_id: str) -> "list[AttemptView]":
        """Attempts that failed and were repeated, the earliest first."""
        return cast("list[AttemptView]", await self._request("run_attempts", run_id))

    def run_attempts_sync(self, run_id: str) -> "list[AttemptView]":
        return self._block(self.run_attempts(run_id))

    # events

    async def get_event(self, event_id: str) -> "EventView | None":
        """An event by the id that ``Client.send`` returned."""
        return cast("EventView | None", await self._request("get_event", event_id))

    def get_event_sync(self, event_id: str) -> "EventView | None":
        return self._block(self.get_event(event_id))

    async def list_events(
        self,
        *,
        name: str | None = None,
        received_after: dt.datetime | None = None,
        received_before: dt.datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[EventView]":
        """Newest first; ``cursor`` is the id of the last event seen."""
        between = aware("received_after", received_after), aware("received_before", received_before)
        return cast("list[EventView]", await self._request("list_events", name, *between, limit, cursor))

    def list_events_sync(
        self,
        *,
        name: str | None = None,
        received_after: dt.datetime | None = None,
        received_before: dt.datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> "list[EventView]":
        return self._block(
            self.list_events(
                name=name, received_after=received_after, received_before=received_before, limit=limit, cursor=cursor
            )
        )

    # functions, and bulk operations on their runs

    async def list_functions(self) -> "list[FunctionView]":
        """The functions that apps serve, and whether they are paused."""
        return cast("list[FunctionView]", await self._request("list_functions"))

    def list_functions_sync(self) -> "list[FunctionView]":
        return self._block(self.list_functions())

    async def list_cancellations(self) -> "list[BulkOperationView]":
        """Bulk cancellations that ``cancel_runs`` started, newest first, and their progress."""
        return cast("list[BulkOperationView]", await self._request("list_cancellations"))

    def list_cancellations_sync(self) -> "list[BulkOperationView]":
        return self._block(self.list_cancellations())

    async def list_replays(self) -> "list[BulkOperationView]":
        """Bulk replays that ``replay_runs`` started, newest first, and their progress."""
        return cast("list[BulkOperationView]", await self._request("list_replays"))

    def list_replays_sync(self) -> "list[BulkOperationView]":
        return self._block(self.list_replays())
