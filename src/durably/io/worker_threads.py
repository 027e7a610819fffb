"""Worker threads for blocking code, which keep the event loop free."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

RequestContext = Callable[[], AbstractContextManager[object]]
_Job = tuple["asyncio.Future[Any]", asyncio.AbstractEventLoop, contextvars.Context, Callable[[], Any]]


class WorkerThreads:
    """Threads of a pool.

    ``request_context`` creates the framework's context for work in a thread. ``size`` is the number of threads, if it
    is known.

    Without a size, each job is a task of the executor, which may have other users. With a size, the executor gets at
    most ``size`` tasks at a time, and a task runs jobs until none waits. This saves ``ThreadPoolExecutor``'s future
    with a condition for each task: a third of a job's cost, if many wait.
    """

    def __init__(self, pool: Executor, request_context: RequestContext = nullcontext, size: int | None = None) -> None:
        self.size = size
        self._pool = pool
        self._request_context = None if request_context is nullcontext else request_context
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._running = 0
        """Tasks in the executor. Changed under the lock, like the queue."""

    async def run(self, work: Callable[[], T], *, on_abandoned: Callable[[], None] | None = None) -> T:
        """Call ``work`` in a thread, with a copy of the caller's context variables.

        Raises the errors of ``work``, and ``RuntimeError`` if the executor is shut down. If the caller is cancelled,
        work that has not begun is dropped. A thread cannot be interrupted: work that has begun continues, its result is
        dropped, and ``on_abandoned`` is called.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()  # ``wrap_future`` would add half of this cost
        job = (done, loop, contextvars.copy_context(), work)
        with self._lock:
            self._jobs.append(job)
            needs_task = self._running != self.size
            if needs_task:
                self._running += 1
        if needs_task:
            try:
                self._pool.submit(self._run_jobs)
            except BaseException:
                with self._lock:
                    self._running -= 1
                self._withdraw(job)
                raise
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled() and not self._withdraw(job) and on_abandoned is not None:
                on_abandoned()
            raise

    def _withdraw(self, job: _Job) -> bool:
        """Take back a job. Returns ``False`` if a thread has begun it."""
        with self._lock, suppress(ValueError):
            self._jobs.remove(job)
            return True
        return False

    def _run_jobs(self) -> None:
        """Run jobs in a thread, as a task of the executor."""
        may_continue = True
        while True:
            with self._lock:
                if not self._jobs or not may_continue:
                    self._running -= 1  # under the queue's lock, so that no job stays in it
                    return
                done, loop, context, work = self._jobs.popleft()
            deliver: Callable[[], None]
            try:
                if self._request_context is None:
                    deliver = partial(_resolve, done, context.run(work))
                else:
                    deliver = partial(_resolve, done, context.run(self._run_in_request_context, work))
            except BaseException as error:
                deliver = partial(_reject, done, error)
            with suppress(RuntimeError):  # The loop is closed, so no caller waits.
                loop.call_soon_threadsafe(deliver)
            may_continue = self.size is not None

    def _run_in_request_context(self, work: Callable[[], T]) -> T:
        assert self._request_context is not None
        with self._request_context():
            return work()


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
