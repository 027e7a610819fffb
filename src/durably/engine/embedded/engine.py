"""The embedded engine's interface: everything that its HTTP API, its command line and tests do with it."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from durably.protocol.checkpoint import CheckpointRequest
from durably.protocol.events import Event
from durably.protocol.sync import FunctionConfig, SyncRequest

from .settings import EngineSettings
from .views import (
    AppView,
    CallView,
    EventView,
    InvokeReceipt,
    RunStatus,
    RunUpdate,
    RunView,
    StepView,
    SyncResult,
)

_DEFAULT = EngineSettings()


class EmbeddedEngine:
    """Open with ``await EmbeddedEngine.open(path)``, close with ``await engine.close()``.

    Not thread-safe: use it on the event loop that opened it. What a method answers has been committed.
    """

    @classmethod
    async def open(cls, path: str | os.PathLike[str], settings: EngineSettings = _DEFAULT) -> "EmbeddedEngine":
        """Own the database at ``path`` (made where there is none), recover what it holds, and start.

        Raises ``DatabaseLockedError``, ``DatabaseTooNewError``, ``DatabaseCorruptError``.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Stop making calls, let those under way finish for ``close_grace``, hand the others back, close."""
        raise NotImplementedError

    # events

    async def send_events(self, events: Sequence[Event], *, seed: str | None = None) -> list[str]:
        """Store events and start the runs they trigger. Answers with their ids, in order, after the commit.

        ``seed`` is the value of ``x-inngest-event-id-seed``: the same seed gives the same ids, so that sending
        again changes nothing. Raises ``EventInvalidError``, and then nothing is stored.
        """
        raise NotImplementedError

    async def get_event(self, event_id: str) -> EventView | None:
        raise NotImplementedError

    async def list_events(
        self,
        *,
        name: str | None = None,
        received_after: int | None = None,
        received_before: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> list[EventView]:
        """Newest first. Times are milliseconds since the epoch; ``cursor`` is the id of the last one seen."""
        raise NotImplementedError

    async def event_runs(self, event_id: str) -> list[RunView]:
        raise NotImplementedError

    # apps

    async def sync_app(self, request: SyncRequest) -> SyncResult:
        """Raises ``ConfigInvalidError``, which names the function and the option."""
        raise NotImplementedError

    async def list_apps(self) -> list[AppView]:
        raise NotImplementedError

    async def list_functions(self, app_id: str) -> list[FunctionConfig] | None:
        """``None`` where no such app has synced."""
        raise NotImplementedError

    # runs

    async def get_run(self, run_id: str) -> RunView | None:
        raise NotImplementedError

    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        function_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> list[RunView]:
        """Newest first; ``cursor`` is the id of the last run seen."""
        raise NotImplementedError

    async def run_steps(self, run_id: str) -> list[StepView]:
        """Finished steps in the order of their memos, then those outstanding."""
        raise NotImplementedError

    async def run_calls(self, run_id: str) -> list[CallView]:
        """The calls that are scheduled or under way."""
        raise NotImplementedError

    async def run_batch(self, run_id: str) -> bytes | None:
        """A JSON array of the run's events (``GET /v0/runs/{run}/batch``)."""
        raise NotImplementedError

    async def run_actions(self, run_id: str) -> bytes | None:
        """A JSON object of the run's memos by hashed step id (``GET /v0/runs/{run}/actions``)."""
        raise NotImplementedError

    async def cancel_run(self, run_id: str) -> bool:
        """False where the run has ended already. Raises ``RunNotFoundError``."""
        raise NotImplementedError

    async def rerun(self, run_id: str) -> str:
        """Run the same function again with the same event. Raises ``RunNotFoundError``, ``FunctionNotFoundError``."""
        raise NotImplementedError

    async def invoke(self, function_id: str, *, data: Any, user: Any = None, v: str | None = None) -> InvokeReceipt:
        """Start a run of one function. Raises ``FunctionNotFoundError``, ``EventInvalidError``."""
        raise NotImplementedError

    async def signal(self, name: str, data: Any) -> str | None:
        """Wake the run that waits for a signal, and answer with its id; ``None`` where none waits."""
        raise NotImplementedError

    async def checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        """Store steps that a call has finished while it goes on.

        Raises ``StaleCallError`` (409), ``CheckpointInvalidError`` (400), ``TooLargeError`` (413).
        """
        raise NotImplementedError

    # watching

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        """What happens to runs from now on, for people to read: a slow reader loses the oldest updates."""
        raise NotImplementedError
