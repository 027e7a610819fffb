"""The connection of a process to the engine on Temporal, and its workers."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError

from durably.engine.api.interface import OPERATIONS
from durably.engine.core.calls import Answer, CallData, Unreached
from durably.engine.model.dispatcher import CallReturnedError
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import is_unreachable
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import app_queue
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.runs.activities import returned_call
from durably.engine.temporal.workers import WorkerGroup
from durably.errors import TransportError
from durably.protocol.engine_errors import EngineError
from durably.protocol.errors import ErrorData
from durably.protocol.text import get_logger
from durably.temporal import Temporal
from durably.temporal.client.connect_failures import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, connect_with_retries

from .process import NodeClosedError, NotReadyError
from .worker import LocalWorker

LONGEST_GAP_SECONDS = 5.0
"""Seconds without a sign of life of this process after which a call may have been given up. Temporal gives up a call 20
s after its last heartbeat, which may have been sent 10 s before the process stalled."""
_BEAT_SECONDS = 1.0
_REPEAT_SECONDS = 0.2
"""Seconds before an unanswered operation is repeated."""

_NEED_FUNCTIONS = ("receive_events", "invoke")

_logger = get_logger("durably.engine")


class TemporalNode:
    """The ``EngineNode`` of ``TemporalEngine``.

    With functions it runs workers and syncs. Without functions it only makes requests. ``run_elsewhere`` are apps of
    this process whose functions other processes run. Sends wait until this process's functions are synced; otherwise an
    event would miss them.
    """

    def __init__(
        self,
        temporal: Temporal,
        settings: EngineSettings,
        worker: LocalWorker,
        loop: asyncio.AbstractEventLoop,
        *,
        run_elsewhere: Collection[str] = (),
    ) -> None:
        self.loop = loop
        self._run_elsewhere = run_elsewhere
        self._temporal = temporal
        self._settings = settings
        self._worker = worker
        self._engine: asyncio.Future[WorkflowEngine] = loop.create_future()
        self._synced: asyncio.Future[None] = loop.create_future()
        self._first_attempt: asyncio.Future[None] = loop.create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: WorkerGroup | None = None
        self._served: frozenset[str] = frozenset()
        self._changing = asyncio.Lock()
        self._last_error: Exception | None = None
        self._is_closed = False
        self._is_unreachable = False
        self._unanswered: set[asyncio.Timeout] = set()

    @property
    def last_error(self) -> Exception | None:
        return self._last_error

    def start(self) -> None:
        if not self._is_closed:
            self._tasks = [self.loop.create_task(each) for each in (self._run(), self._beat())]

    async def wait_started(self) -> None:
        """Wait until the functions are synced, or the server is found to be unreachable.

        Raises ``ConfigInvalidError`` and ``TemporalSettingsError``. An unreachable server does not prevent the start.
        """
        await asyncio.shield(self._first_attempt)

    async def request(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """See ``EngineNode``.

        Waits without a limit while the server is unreachable, and until the node is closed.
        """
        engine = await asyncio.shield(self._engine)
        if name in _NEED_FUNCTIONS:
            await asyncio.shield(self._synced)
        while True:
            if self._is_closed:
                raise NodeClosedError("the connection of this process is closed")
            try:
                async with self._answered_before_close(name, arguments):
                    result = await getattr(engine, name)(**arguments)
            except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
                if not is_unreachable(error):
                    raise TransportError(f"the Temporal server refused {name!r}: {error}") from error
                self._note_outage(error)
                if not OPERATIONS[name].may_repeat(arguments):
                    raise TransportError(
                        f"the Temporal server did not answer {name!r}: it is unclear whether it was executed ({error})"
                    ) from None
            else:
                self._note_answer()
                return result
            await asyncio.sleep(_REPEAT_SECONDS)

    @contextlib.asynccontextmanager
    async def _answered_before_close(self, name: str, arguments: Mapping[str, Any]) -> AsyncIterator[None]:
        """End the wait when the node is closed.

        Temporal answers some requests only after a worker has taken a task, and no worker may be left. Raises
        ``NodeClosedError``, and ``TransportError`` if an operation that must not be repeated may have been executed.
        """
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._unanswered.add(wait)
                try:
                    yield
                finally:
                    self._unanswered.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            if OPERATIONS[name].may_repeat(arguments):
                raise NodeClosedError("the connection of this process is closed") from None
            raise TransportError(
                f"this process stopped during {name!r}: it is unclear whether the operation was executed"
            ) from None

    def _note_outage(self, error: Exception) -> None:
        self._last_error = error
        if not self._is_unreachable:
            self._is_unreachable = True
            _logger.warning(
                "process %d: the Temporal server does not answer, and requests are repeated until it does: %s",
                os.getpid(),
                error,
            )

    def _note_answer(self) -> None:
        if self._is_unreachable:
            self._is_unreachable, self._last_error = False, None
            _logger.warning("process %d: the Temporal server answers again", os.getpid())

    async def update(self) -> None:
        if not self._engine.done():
            return  # The start reports them.
        try:
            await self._serve(self._engine.result())
        except EngineError as error:
            _logger.error("process %d serves functions that the engine refuses: %s", os.getpid(), error)

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        engine = self._engine.result() if self._engine.done() and not self._engine.exception() else None
        self._give_up(NodeClosedError("the connection of this process is closed"))
        await self._stop_workers()
        for wait in self._unanswered:
            if not wait.expired():
                wait.reschedule(self.loop.time())
        await self._worker.wait_ended()
        if engine is not None:
            await engine.close()

    def forget(self) -> None:
        """Do nothing: ``temporal/client/connection.py`` handles forks of ``temporalio``."""

    # the start

    async def _run(self) -> None:
        try:
            engine = WorkflowEngine(
                await connect_with_retries(self._temporal.connect, self._note_absence), self._settings
            )
            connection = self._temporal.settings
            _logger.info(
                "process %d is connected to Temporal at %s, namespace %s",
                os.getpid(),
                connection.address,
                connection.namespace,
            )
            self._engine.set_result(engine)
            await self._sync(engine)
            self._report_start()
            for app_id in self._run_elsewhere:
                await self._wait_synced(engine, app_id)
        except Exception as error:
            self._last_error = error
            self._give_up(error)
            _logger.error("process %d runs no functions on Temporal: %s", os.getpid(), error)
        else:
            self._last_error = None
            self._synced.set_result(None)

    def _give_up(self, error: Exception) -> None:
        for future in (self._engine, self._synced, self._first_attempt):
            if not future.done():
                future.set_exception(error)
                future.exception()

    async def _sync(self, engine: WorkflowEngine) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._serve(engine)
                return
            except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
                self._note_absence(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _wait_synced(self, engine: WorkflowEngine, app_id: str) -> None:
        while True:
            try:
                if await engine.has_synced(app_id):
                    return
                missing = NotReadyError(
                    f"no process has synced the functions of the app {app_id!r} yet: start one with workers, such as "
                    "`durably worker module:client`"
                )
                if str(self._last_error) != str(missing):
                    _logger.warning("process %d sends no events yet: %s", os.getpid(), missing)
                self._last_error = missing
            except RPCError as error:
                self._note_absence(error)
            await asyncio.sleep(LONGEST_PAUSE_SECONDS / 4)

    def _note_absence(self, error: Exception) -> None:
        if self._last_error is None or str(self._last_error) != str(error):
            _logger.warning("process %d: %s Trying again until it answers.", os.getpid(), error)
        self._last_error = error
        self._report_start()

    def _report_start(self) -> None:
        if not self._first_attempt.done():
            self._first_attempt.set_result(None)

    async def _beat(self) -> None:
        while True:
            self._worker.heartbeat.beat()
            await asyncio.sleep(_BEAT_SECONDS)

    # workers

    async def _serve(self, engine: WorkflowEngine) -> None:
        """Run workers for the apps of this process, and sync their functions.

        The workers start first, because the workflows that store functions need one. Raises ``ConfigInvalidError``.
        """
        async with self._changing:
            syncs = self._worker.syncs() if self._worker.capacity().max_calls else []
            queues = frozenset(app_queue(sync.app_id) for sync in syncs)
            if queues != self._served:
                await self._stop_workers(is_end=False)
                self._workers = WorkerGroup(
                    lambda: engine.make_workers(sorted(queues), self._call), self._settings.close_grace
                )
                self._workers.start()
                self._served = queues
            try:
                await asyncio.gather(*(engine.sync_app(sync, in_process=True) for sync in syncs))
            except EngineError:
                await self._stop_workers(is_end=False)
                raise
            for sync in syncs:
                functions = ", ".join(function.id for function in sync.functions) or "no functions"
                _logger.info("process %d synced the app %s with Temporal: %s", os.getpid(), sync.app_id, functions)

    async def _call(self, call: CallInput, data: CallData) -> Answer:
        """Run a call. The run makes a returned call again, for another worker.

        A process with other code of the app may lack the function, for example during a deployment. That uses up no
        attempt.
        """
        if not self._worker.serves(call.function_id):
            return _not_served(call.function_id)
        try:
            return await self._worker.run(call.app_id, data)
        except CallReturnedError as error:
            raise returned_call(str(error)) from None

    async def _stop_workers(self, *, is_end: bool = True) -> None:
        workers, self._workers, self._served = self._workers, None, frozenset()
        if workers is None:
            return
        if is_end:
            stopped = asyncio.create_task(workers.stop_calls())
            await asyncio.sleep(0)  # Request no more calls before the running ones are refused.
            self._worker.refuse()
            await self._worker.finish(self._settings.close_grace.total_seconds())
            await stopped
        await workers.stop()


def _not_served(function_id: str) -> Unreached:
    message = (
        f"process {os.getpid()} does not serve the function {function_id!r}; its call is repeated until a process that "
        "does takes it: deploy the code with the function to all processes of the app, or cancel its runs"
    )
    _logger.warning("%s", message)
    return Unreached(ErrorData(name="FunctionNotServedError", message=message))
