"""Worker threads for blocking code, which keep the event loop free."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")

Job = Callable[[], None]
Surroundings = Callable[[], AbstractContextManager[object]]


class WorkerThreads:
    """Threads of a pool. ``surroundings`` is the framework's context for work in a thread, ``size`` the number of
    threads, if it is known.

    Without a size, each job is a task of the executor, which may have other users. With a size, the executor gets at
    most ``size`` tasks at a time, and a task runs jobs until none waits. ``ThreadPoolExecutor`` creates a future with
    a condition for each task: a third of what a job costs, if many wait.
    """

    def __init__(self, pool: Executor, surroundings: Surroundings = nullcontext, size: int | None = None) -> None:
        self.size = size
        self._pool = pool
        self._surroundings = surroundings
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._running = 0
        """Tasks in the executor. Changed under the lock, like the queue."""

    async def run(self, work: Callable[[], T], *, on_abandoned: Callable[[], None] | None = None) -> T:
        """Call ``work`` in a thread, with a copy of the caller's context variables. Raises what it raises.

        If the caller is cancelled, work that still waits for a thread does not begin. A thread cannot be interrupted:
        work that has begun continues, its result is dropped, and ``on_abandoned`` is called.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        job = partial(contextvars.copy_context().run, partial(self._work, work, loop, done))
        self._submit(job)
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled() and not self._withdraw(job) and on_abandoned is not None:
                on_abandoned()
            raise

    def _submit(self, job: Job) -> None:
        """Raises ``RuntimeError`` if the executor is shut down."""
        with self._lock:
            self._jobs.append(job)
            if self._running == self.size:
                return
            self._running += 1
        try:
            self._pool.submit(self._run_jobs)
        except BaseException:
            with self._lock:
                self._running -= 1
            self._withdraw(job)
            raise

    def _withdraw(self, job: Job) -> bool:
        """Take back a job. False if a thread has begun it."""
        with self._lock, suppress(ValueError):
            self._jobs.remove(job)
            return True
        return False

    def _run_jobs(self) -> None:
        """In a thread, as a task of the executor. Jobs do not raise."""
        may_continue = True
        while True:
            with self._lock:
                if not self._jobs or not may_continue:
                    self._running -= 1  # under the same lock as the look at the queue: no job is left behind
                    return
                job = self._jobs.popleft()
            job()
            may_continue = self.size is not None

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
