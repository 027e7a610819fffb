"""Worker threads for blocking code, which keep the event loop free."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from durably.execution import StepInfo
from durably.protocol.text import printable

if TYPE_CHECKING:
    from durably.client import Logger

T = TypeVar("T")

Surroundings = Callable[[], AbstractContextManager[object]]


class WorkerThreads:
    """Threads of a pool. ``surroundings`` is the framework's context for work in a thread, ``size`` the number of
    threads, if it is known."""

    def __init__(self, pool: Executor, surroundings: Surroundings = nullcontext, size: int | None = None) -> None:
        self.size = size
        self._pool = pool
        self._surroundings = surroundings

    async def run(self, work: Callable[[], T], *, on_abandoned: Callable[[], None] | None = None) -> T:
        """Call ``work`` in a thread, with a copy of the caller's context variables. Raises what it raises.

        If the caller is cancelled, work that still waits for a thread does not begin. A thread cannot be interrupted:
        work that has begun continues, its result is dropped, and ``on_abandoned`` is called.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        job = self._pool.submit(contextvars.copy_context().run, self._work, work, loop, done)
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled() and not job.cancel() and on_abandoned is not None:
                on_abandoned()
            raise

    def _work(self, work: Callable[[], T], loop: asyncio.AbstractEventLoop, done: "asyncio.Future[T]") -> None:
        """In the thread. Future and loop are given directly: ``wrap_future`` costs half as much again."""
        deliver: Callable[[], None]
        try:
            with self._surroundings():
                deliver = partial(_resolve, done, work())
        except BaseException as error:
            deliver = partial(_reject, done, error)
        with suppress(RuntimeError):  # the loop is closed, so there is no waiter
            loop.call_soon_threadsafe(deliver)


def _resolve(done: "asyncio.Future[T]", value: T) -> None:
    if not done.done():
        done.set_result(value)


def _reject(done: "asyncio.Future[T]", error: BaseException) -> None:
    if done.done():
        return
    if isinstance(error, StopIteration):  # futures refuse it
        error = RuntimeError(f"StopIteration({error.value!r}) was raised in a worker thread").with_traceback(
            error.__traceback__
        )
    done.set_exception(error)


class StepThreads:
    """Worker threads for the steps of one call (an ``execution.Threads``)."""

    def __init__(self, threads: WorkerThreads, logger: "Logger", function_id: str, run_id: str) -> None:
        self._threads = threads
        self._logger = logger
        self._function_id = function_id
        self._run_id = run_id

    async def run(self, step: StepInfo, work: Callable[[], T]) -> T:
        return await self._threads.run(work, on_abandoned=partial(self._warn_of, step))

    def _warn_of(self, step: StepInfo) -> None:
        self._logger.warning(
            'step "%s" of function "%s" (run %s) was cancelled while its handler ran in a thread, which goes on: '
            "a thread cannot be interrupted. Its result is dropped, and if the function reaches the step again, "
            "the handler runs again",
            printable(step.id),
            self._function_id,
            self._run_id,
        )
