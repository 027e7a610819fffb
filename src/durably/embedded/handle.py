"""``InProcessHandle``, the base of the public handles of engines in process."""

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from durably.engine.api.interface import SyncEngine
from durably.engine.api.metrics import Metric
from durably.engine.api.operations import Operation, blocking
from durably.engine.model.runs import BulkOperation, FromStep, InvokeReceipt, Run, RunStatus
from durably.engines import InProcessEngine
from durably.events import as_data
from durably.io.background_loop import get_background_loop
from durably.protocol.text import get_logger

from .process import TIMEOUT_SECONDS, ProcessEngine

_SCRAPE_SECONDS = 5.0
"""Seconds for reading the engine's metrics, shorter than Prometheus' timeout (10 s)."""

_logger = get_logger("durably.engine")

T = TypeVar("T")
P = TypeVar("P", bound=ProcessEngine[Any])


class InProcessHandle(SyncEngine, Generic[P]):
    """Start, stop and operations of an engine, on any event loop and in any thread."""

    _process: P

    def __in_process__(self) -> InProcessEngine:
        """The ``InProcessEngine``; see ``durably.engines``."""
        return self._process

    @property
    def function_ids(self) -> list[str]:
        """The functions that the app serves in this process."""
        return self._process.function_ids

    async def start(self) -> None:
        """Start in this process, on the running event loop, and accept calls.

        Async functions run on this loop, sync ones in a thread pool. Raises the error that prevents the start, such as
        ``ConfigInvalidError`` for invalid options of a function.
        """
        await self._process.start()

    async def start_worker(self) -> None:
        """``start`` in a process that only runs functions, for `durably worker`."""
        await self.start()

    def start_sync(self) -> None:
        """``start`` for synchronous code: on a background event loop."""
        get_background_loop().run(self.start())

    async def stop(self) -> None:
        """Accept no more calls, and wait for running ones.

        The wait is at most the settings' ``close_grace``. Calls that have not ended by then are returned, and other
        processes continue their runs.
        """
        await self._process.stop()

    def stop_sync(self) -> None:
        """``stop`` for synchronous code."""
        self.block(self.stop())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """``async with engine.running():`` starts the engine, and stops it at the end."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def scrape(self) -> list[Metric] | None:
        """The engine's metrics, for a collector; ``None`` if it does not answer."""
        try:
            metrics: list[Metric] = self._process.request("read_metrics", {}, _SCRAPE_SECONDS).result()
            return metrics
        except Exception as error:  # Another exception would also remove the app's own metrics.
            _logger.warning("the metrics could not be read: %s: %s", type(error).__name__, error)
            return None

    # operations

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """Execute an operation in the engine.

        Raises ``ValueError`` for a time without a time zone.
        """
        for name, value in arguments.items():
            if isinstance(value, dt.datetime) and value.tzinfo is None:
                raise ValueError(f"{name} must have a time zone, such as datetime(…, tzinfo=UTC), not {value!r}")
        return await self._process.request(operation.name, arguments, TIMEOUT_SECONDS)

    def block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Block this thread until the coroutine has ended. Returns its result."""
        return self._process.run(coroutine)

    async def wait_for_run(
        self, run_id: str, *, within: float | None = None, timeout: dt.timedelta | None = None
    ) -> Run:
        """Wait until the run has ended with any status. Returns the run.

        Without a ``timeout`` it waits without a limit, even while no engine answers. Raises ``TimeoutError`` and
        ``RunNotFoundError``.
        """
        if within is not None:
            return await super().wait_for_run(run_id, within=within)
        return await self._process.wait_for_run(run_id, None if timeout is None else timeout.total_seconds())

    async def rerun(
        self, run_id: str, *, from_step: FromStep | str | None = None, step_input: Sequence[Any] | None = None
    ) -> str:
        """Run the same function again with the same events. Returns the new run's id.

        ``from_step`` is the id of a finished step: the new run copies the results of the steps before it.
        ``step_input`` replaces the arguments of that step. Raises ``RunNotFoundError``, ``StepNotFoundError``,
        ``FunctionNotFoundError``, ``FunctionPausedError``, and ``ValueError`` for a ``step_input`` without a step.
        """
        if step_input is not None and from_step is None:
            raise ValueError("step_input needs from_step, the step that it is for")
        if isinstance(from_step, str):
            from_step = FromStep.of(from_step, step_input)
        return await super().rerun(run_id, from_step=from_step)

    async def invoke(
        self,
        function_id: str,
        data: Mapping[str, Any] | None = None,
        *,
        user: Any = None,
        v: str | None = None,
        id: str | None = None,
        **trace: Any,
    ) -> InvokeReceipt:
        """See ``Engine.invoke``. ``Function.start`` gives a handle of the run."""
        return await super().invoke(function_id, dict(as_data(data) or {}), user=user, v=v, id=id, **trace)

    async def cancel_runs(
        self,
        function_id: str,
        *,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> BulkOperation:
        """See ``Engine.cancel_runs``. ``started_before`` is now by default."""
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
    ) -> BulkOperation:
        """See ``Engine.replay_runs``. Raises ``ValueError`` for an unknown status."""
        return await super().replay_runs(
            function_id,
            statuses=[RunStatus.read(status) for status in statuses],
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
