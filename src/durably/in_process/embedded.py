"""``Embedded``, the public handle of an engine in the app's own processes."""

import contextlib
import datetime as dt
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Never, TypeVar

from durably.engine_interface import InProcessEngine
from durably.io.background_loop import get_background_loop
from durably.protocol.durations import Duration, to_timedelta

from .commands import Commands
from .process import Options, ProcessEngine
from .queries import TIMEOUT_SECONDS
from .server_start import refuse_green_threads

if TYPE_CHECKING:
    from durably.engine.settings import EngineSettings

T = TypeVar("T")

_SHORTEST_LEASE = dt.timedelta(seconds=0.5)


class Embedded(Commands):
    """The engine, in this app's own processes, on the SQLite database at ``path``.

    Every process of the app makes one, with the same path. Give it to the client, and serve functions as always::

        client = Client(app_id="shop", engine=Embedded("durably.db"))

    ``max_calls`` is the number of calls that this process takes at a time. ``lease`` is the time without a heartbeat
    after which the others treat a process as dead. ``settings`` are those of the engine: backoff of retries,
    durability, limits.

    Raises ``ValueError`` for a lease that is too short, ``max_calls`` below 1 or ``":memory:"``, ``ImportError`` if the
    extra is not installed, ``OSError`` on Windows, ``RuntimeError`` under gevent and eventlet, and
    ``DatabaseNotOwnedError`` or ``DatabasePathError`` for a symbolic link of another user or a loop of links.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_calls: int = 500,
        lease: Duration = dt.timedelta(seconds=2.5),
        settings: "EngineSettings | None" = None,
        **removed: Never,
    ) -> None:
        import durably.engine  # noqa: F401 (its error names a missing extra)
        from durably.engine.sqlite.files import resolve_path

        _refuse_arguments(removed)
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

        Functions run on it, sync ones in a thread pool. Returns when this process is the leader or is connected to it.
        Raises ``DatabaseLockedError``, ``DatabaseTooNewError``, ``DatabaseCorruptError``, ``ConfigInvalidError`` for
        invalid options of a function, and ``OSError`` for a path that cannot be used.
        """
        await self._process.start()

    def start_sync(self) -> None:
        """``start`` for synchronous code: on a background event loop."""
        get_background_loop().run(self.start())

    async def stop(self) -> None:
        """Take no more calls, and wait up to the settings' ``close_grace`` for calls under way. Return the others.

        If there are other processes, one of them becomes the leader.
        """
        await self._process.stop()

    def stop_sync(self) -> None:
        """``stop`` for synchronous code."""
        self._block(self.stop())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """``async with engine.running():`` starts the engine, and stops it at the end."""
        async with self._process.running():
            yield

    async def _request(self, operation: str, *arguments: Any, timeout: float | None = TIMEOUT_SECONDS) -> Any:
        return await self._process.request(operation, *arguments, timeout=timeout)

    def _block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._process.run(coroutine)


def _refuse_arguments(arguments: Mapping[str, object]) -> None:
    """Raises ``TypeError``."""
    for name in arguments:
        if name == "kill_stopped_owner":
            raise TypeError(
                "Embedded(kill_stopped_owner=…) was removed: Durably never signals other processes. If a stopped "
                "process blocks the database, the log names it, and you decide whether to continue or to end it"
            )
        raise TypeError(f"Embedded() got an unexpected keyword argument {name!r}")
