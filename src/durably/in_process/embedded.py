"""``Embedded``, the public handle of an engine in the app's own processes."""

import contextlib
import datetime as dt
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from durably.engine_interface import InProcessEngine
from durably.io.background_loop import get_portal
from durably.protocol.durations import Duration, to_timedelta

from .commands import Orders
from .process import Options, ProcessEngine
from .queries import TIMEOUT_SECONDS
from .server_start import refuse_green_threads

if TYPE_CHECKING:
    from durably.engine.settings import EngineSettings

T = TypeVar("T")

_SHORTEST_LEASE = dt.timedelta(seconds=0.5)


class Embedded(Orders):
    """The engine, in this app's own processes, on the SQLite database at ``path``.

    Every process of the app makes one, with the same path. Give it to the client, and serve functions as always::

        client = Client(app_id="shop", engine=Embedded("durably.db"))

    ``max_calls`` is the number of calls that this process takes at a time. ``lease`` is the time without a heartbeat
    after which the others treat a process as dead. An owner that is stopped (SIGSTOP) within a transaction blocks all
    others: ``kill_stopped_owner`` lets them kill it after another lease. ``settings`` are those of the engine: backoff
    of retries, durability, limits.

    Raises ``ValueError`` for a lease that is too short, no room for calls or ``":memory:"``, ``ImportError`` if the
    extra is not installed, ``OSError`` on Windows, ``RuntimeError`` under gevent and eventlet, and
    ``DatabaseNotOwnedError`` or ``DatabasePathError`` for a path that is a stranger's symbolic link or a loop of links.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_calls: int = 500,
        lease: Duration = dt.timedelta(seconds=2.5),
        kill_stopped_owner: bool = True,
        settings: "EngineSettings | None" = None,
    ) -> None:
        import durably.engine  # noqa: F401 (names the extra, where it is missing)
        from durably.engine.sqlite.files import resolve_path

        if sys.platform == "win32":
            raise OSError("Embedded needs Unix sockets and file locks, which Windows lacks: run `durably start` there")
        refuse_green_threads()
        lease = to_timedelta(lease)
        if lease < _SHORTEST_LEASE:
            raise ValueError(f"Embedded.lease must be {_SHORTEST_LEASE} or more, not {lease}")
        if os.fspath(path) == ":memory:":
            raise ValueError(
                'Embedded(":memory:") cannot be: its database is a file that the processes of an app share. Give a '
                "path; tests use durably.testing.TestEngine, which keeps nothing"
            )
        if max_calls < 1:
            raise ValueError(f"Embedded.max_calls must be 1 or more, not {max_calls}")
        self.path = resolve_path(path)
        self._process = ProcessEngine(
            Options(
                path=self.path,
                max_calls=max_calls,
                lease_seconds=lease.total_seconds(),
                kills_stopped_owner=kill_stopped_owner,
                settings=settings,
            )
        )

    def __repr__(self) -> str:
        return f"Embedded({str(self.path)!r})"

    def __in_process__(self) -> InProcessEngine:
        """See ``durably.engine_interface``."""
        return self._process

    async def start(self) -> None:
        """Start in this process, on the running event loop, and take calls.

        Functions run on it, sync ones in a thread pool. Returns once this process owns the database or is connected to
        the one that does. Raises ``DatabaseLockedError``, ``DatabaseTooNewError``, ``DatabaseCorruptError``, and
        ``ConfigInvalidError`` for a function with options that cannot be, and ``OSError`` for a path that cannot.
        """
        await self._process.start()

    def start_sync(self) -> None:
        """``start`` for synchronous code: on a background event loop."""
        get_portal().run(self.start())

    async def stop(self) -> None:
        """Take no more calls, let those under way end for the settings' ``close_grace``, hand the others back.

        If there are other processes, one of them takes the database over.
        """
        await self._process.stop()

    def stop_sync(self) -> None:
        """``stop`` for synchronous code."""
        self._block(self.stop())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """``async with engine.running():`` starts, and stops at the end."""
        async with self._process.running():
            yield

    async def _ask(self, operation: str, *arguments: Any, timeout: float | None = TIMEOUT_SECONDS) -> Any:
        return await self._process.ask(operation, *arguments, timeout=timeout)

    def _block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._process.run(coroutine)
