"""``Embedded``, the public handle of an engine in the app's own processes."""

import asyncio
import contextlib
import datetime as dt
import os
import sys
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from typing import Any, Never, TypeVar

from durably.engine.interface import SyncEngine
from durably.engine.metrics.catalogue import Metric
from durably.engine.metrics.exposition import EngineCollector
from durably.engine.operations import Operation, blocking
from durably.engine.settings import EngineSettings
from durably.engine.sqlite.files import resolve_path
from durably.engine.views import CancellationView, FromStep, InvokeReceipt, ReplayView, RunStatus, RunView
from durably.engines import InProcessEngine
from durably.errors import Error
from durably.events import as_data
from durably.io.background_loop import get_background_loop
from durably.protocol.durations import Duration, to_timedelta
from durably.protocol.text import get_logger

from .process import TIMEOUT_SECONDS, Options, ProcessEngine
from .server_start import refuse_green_threads

T = TypeVar("T")

_SCRAPE_SECONDS = 5.0
"""The time for the engine's metrics, shorter than Prometheus' own (10 s)."""

_logger = get_logger("durably.engine")

_SHORTEST_LEASE = dt.timedelta(seconds=0.5)


class Embedded(SyncEngine):
    """The engine, in this app's own processes, on the SQLite database at ``path``.

    Every process of the app makes one, with the same path. Give it to the client, and serve functions as always::

        client = Client(app_id="shop", engine=Embedded("durably.db"))

    ``max_calls`` is the number of calls that this process takes at a time. ``lease`` is the time without a heartbeat
    after which the others treat a process as dead. ``settings`` are those of the engine: backoff of retries,
    durability, limits.

    Its other methods are the operations of an engine, for any event loop; those ending in ``_sync`` are the same for
    synchronous code. They raise ``durably.errors.TransportError`` if no engine answers within 30 s, or if the leader
    ended during an operation that starts something: it is then unclear whether it was executed.

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
        settings: EngineSettings | None = None,
        **removed: Never,
    ) -> None:
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
        """See ``durably.engines``."""
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
        """Take no more calls, and wait for calls under way.

        The wait is at most the settings' ``close_grace``. Calls that have not ended by then are returned. If there are
        other processes, one of them becomes the leader.
        """
        await self._process.stop()

    def stop_sync(self) -> None:
        """``stop`` for synchronous code."""
        self.block(self.stop())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """``async with engine.running():`` starts the engine, and stops it at the end."""
        async with self._process.running():
            yield

    # metrics

    def prometheus_collector(self, *, in_leader_only: bool = False) -> EngineCollector:
        """A collector of the engine's metrics for ``prometheus_client``::

            prometheus_client.REGISTRY.register(engine.prometheus_collector())

        Each process of the app shows the same values, those of the whole engine. ``in_leader_only``: only the leader
        shows them, for apps whose processes are all scraped. If no engine answers within 5 s, ``durably_up`` is 0.
        """
        return EngineCollector(lambda: self._read_metrics(in_leader_only=in_leader_only))

    def _read_metrics(self, *, in_leader_only: bool) -> list[Metric] | None:
        if in_leader_only and not self._process.is_leader:
            return []
        try:
            metrics: list[Metric] = self._process.request("read_metrics", {}, _SCRAPE_SECONDS).result()
            return metrics
        except Error as error:
            _logger.warning("the metrics could not be read: %s", error)
            return None

    # operations

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """Execute an operation in the leader.

        Raises ``ValueError`` for a time without a time zone.
        """
        for name, value in arguments.items():
            if isinstance(value, dt.datetime) and value.tzinfo is None:
                raise ValueError(f"{name} must have a time zone, such as datetime(…, tzinfo=UTC), not {value!r}")
        timeout = None if operation.name == "wait_for_run" else TIMEOUT_SECONDS
        return await self._process.request(operation.name, arguments, timeout)

    def block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Blocks this thread until then."""
        return self._process.run(coroutine)

    async def wait_for_run(self, run_id: str, *, timeout: dt.timedelta | None = None) -> RunView:
        """Wait until the run has ended with any status; the run.

        Without a ``timeout`` it waits without a limit, also while no engine answers. Raises ``TimeoutError`` and
        ``RunNotFoundError``.
        """
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return await super().wait_for_run(run_id)
        except TimeoutError:
            raise TimeoutError(f"run {run_id} has not ended within {timeout}") from None

    async def rerun(
        self, run_id: str, *, from_step: FromStep | str | None = None, step_input: Sequence[Any] | None = None
    ) -> str:
        """Run the same function again with the same events; the new run's id.

        ``from_step`` is the id of a step that the run has finished: the new run takes over the results of the steps
        before it. ``step_input`` are arguments for that step in place of its own. Raises ``RunNotFoundError``,
        ``StepNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, and ``ValueError`` for a
        ``step_input`` without a step.
        """
        if step_input is not None and from_step is None:
            raise ValueError("step_input needs from_step, the step that it is for")
        if isinstance(from_step, str):
            from_step = FromStep.of(from_step, step_input)
        return await super().rerun(run_id, from_step=from_step)

    async def invoke(
        self, function_id: str, data: Mapping[str, Any] | None = None, *, user: Any = None, v: str | None = None
    ) -> InvokeReceipt:
        """See ``Engine.invoke``."""
        return await super().invoke(function_id, dict(as_data(data) or {}), user=user, v=v)

    async def cancel_runs(
        self,
        function_id: str,
        *,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> CancellationView:
        """See ``Engine.cancel_runs``. ``started_before`` is by default the present."""
        return await super().cancel_runs(
            function_id,
            started_after=started_after,
            started_before=started_before or dt.datetime.now(dt.UTC),
            if_exp=if_exp,
            app_id=app_id,
        )

    async def replay_runs(
        self,
        function_id: str,
        *,
        statuses: Collection[RunStatus | str] = (RunStatus.FAILED,),
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> ReplayView:
        """See ``Engine.replay_runs``. Raises ``ValueError`` for an unknown status."""
        return await super().replay_runs(
            function_id,
            statuses=[RunStatus(status) for status in statuses],
            started_after=started_after,
            started_before=started_before,
            if_exp=if_exp,
            app_id=app_id,
        )

    wait_for_run_sync = blocking(wait_for_run)
    rerun_sync = blocking(rerun)
    invoke_sync = blocking(invoke)
    cancel_runs_sync = blocking(cancel_runs)
    replay_runs_sync = blocking(replay_runs)


def _refuse_arguments(arguments: Mapping[str, object]) -> None:
    """Raises ``TypeError``."""
    for name in arguments:
        if name == "kill_stopped_owner":
            raise TypeError(
                "Embedded(kill_stopped_owner=…) was removed: Durably never signals other processes. If a stopped "
                "process blocks the database, the log names it, and you decide whether to continue or to end it"
            )
        raise TypeError(f"Embedded() got an unexpected keyword argument {name!r}")
